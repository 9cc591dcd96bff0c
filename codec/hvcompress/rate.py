"""How many bits a value costs under a Gaussian of one of the tabulated scales."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .network import scale_of
from .scales import MIN_PROBABILITY, SCALE_LEVELS


class _Bound(torch.autograd.Function):
    """Clamp whose gradient is cut only where it would push further outside."""

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        blocked = ((x < low) & (grad > 0)) | ((x > high) & (grad < 0))  # descent would leave the range further
        return grad.masked_fill(blocked, 0.0), None, None


def interval_bits(low: Tensor, high: Tensor, scale_index: Tensor) -> Tensor:
    """Information, in bits, of falling between two values, in units of steps, under a zero-mean Gaussian.

    All of the same shape; low <= high, and above zero rather than below where there is a choice: the upper tail keeps
    its precision. scale_index may lie outside the table and is bounded here.
    """
    scale = scale_of(_Bound.apply(scale_index.float(), 0.0, SCALE_LEVELS - 1.0))
    root = math.sqrt(0.5)
    probability = 0.5 * (torch.erfc(low / scale * root) - torch.erfc(high / scale * root))
    return -torch.log2(_Bound.apply(probability, MIN_PROBABILITY, 1.0))


def bits(residual: Tensor, scale_index: Tensor) -> Tensor:
    """Information, in bits, of a residual, in units of steps, within half a step on either side."""
    distance = residual.float().abs()
    return interval_bits(distance - 0.5, distance + 0.5, scale_index)
