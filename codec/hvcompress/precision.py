"""In which floating-point type a device computes what need not be exact: training and the encoder."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def fast_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    # torch has no public question for this; older releases lack these too, and are content with float32.
    asked = (getattr(torch.cpu, name, bool) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.bfloat16 if any(supported() for supported in asked) else torch.float32


def autocast(device: torch.device) -> AbstractContextManager:
    """A context in which the insides of residual blocks run in `fast_precision`, the rest in float32."""
    precision = fast_precision(device)
    if precision is torch.float32:
        return torch.autocast(device.type, enabled=False)
    # Within a caller's own autocast, a cache would keep weights as they were before they were trained.
    return torch.autocast(device.type, precision, cache_enabled=False)
