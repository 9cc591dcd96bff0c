"""Copies between a GPU and the computer by way of pinned memory: both go on working while one is on its way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def fetch(x: Tensor) -> Callable[[], Tensor]:
    """Have x copied into the computer's memory. What is returned waits until it is there, and gives it.

    Until then the device does what it was given to do before, and afterwards what it is given next.
    """
    if x.device.type != "cuda":
        return lambda: x
    try:
        copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
    except RuntimeError:  # there is a limit to what may be pinned
        copy = x.cpu()
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(x.device))

    def wait() -> Tensor:
        arrived.synchronize()
        return copy

    return wait


def send(x: Tensor, device: torch.device) -> Tensor:
    """x, of the computer's memory and not pinned, on a device, for which nobody waits; x may change at once."""
    if device.type != "cuda":
        return x.to(device)
    try:
        return x.pin_memory().to(device, non_blocking=True)  # torch keeps what it has pinned until the copy is made
    except RuntimeError:
        return x.to(device)
