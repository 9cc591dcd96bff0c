"""Which device to compute on, by name."""

from __future__ import annotations

import torch

from .errors import DeviceError, UsageError


def check_not_forked(device: torch.device) -> None:
    """Raises DeviceError where CUDA is of no use, since this process was forked from one that had used it."""
    if device.type == "cuda" and getattr(torch.cuda, "_is_in_bad_fork", bool)():
        raise DeviceError("CUDA was in use when this process was forked; have it started by spawn, not by fork")


def pick_device(device: str = "auto") -> torch.device:
    """auto is CUDA where there is one, else the CPU. Raises DeviceError."""
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from error
    if picked.type not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N")
    if picked.type == "cuda":
        check_not_forked(picked)
        picked = torch.device("cuda", picked.index or 0)
        if picked.index >= torch.cuda.device_count():
            raise DeviceError(f"there is no device {device}")
    return picked
