"""Convolutions of 16-bit integers with 8-bit weights, by products of bytes.

An activation is split into digits, of which the highest is signed and the others are not:

    x = 256 x_1 + x_0                      so that        sum x m = 256 sum x_1 m + sum x_0 m
    x = 2^14 x_2 + 2^7 x_1 + x_0           or             sum x m = 2^14 sum x_2 m + 2^7 sum x_1 m + sum x_0 m

`plain_sums` computes the sums over the taps and channels of a patch, in two digits, as matrix products in float32, on
any device: as long as 255 sum |m| < 2^24 they are exact (`exact.prove`). `sums` has them, and an offset
with them, computed by instructions that processors have for products of bytes (VNNI, AMX, AVX2), which do several times
the work, in oneDNN's convolutions of quantized tensors. AVX2 adds two products in 16 bits, where they may saturate;
with digits of 7 bits they cannot.

A library may lack these convolutions, or fall back to something slow. So `digits` tries, once per process, the worst
cases and the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

UNFOLDED = 1 << 24  # values of patches that are laid out at a time, about: 64 MiB


@dataclass(frozen=True)
class ByteWeights:
    """Weights of a convolution, as oneDNN wants them, and the bits of the digits that they are multiplied with."""

    packed: Tensor
    ones: Tensor  # (O,) float32: the scales of quantized weights, which are all 1 here
    zeros: Tensor  # (O,) int32: their zero points
    added: tuple[Tensor | None, ...]  # (O,) float32 each: to the sums of the digits, from the lowest
    padding: int
    bits: int  # 8 or 7


def pack(mantissa: Tensor, bits: int, offset: Tensor | None = None) -> ByteWeights:
    """mantissa: (O, C, k, k) int8. offset: (O,) int32, to be added to the sums; None is zero."""
    outputs, padding = len(mantissa), mantissa.shape[2] // 2
    ones, weights = torch.ones(outputs), mantissa.cpu().contiguous(memory_format=torch.channels_last)
    packed = torch.ops.onednn.qconv_prepack(weights, ones, 1.0, 0, [1, 1], [padding] * 2, [1, 1], 1, None)
    added: list[Tensor | None] = [None] * (2 if bits == 8 else 3)
    if offset is not None:  # split as an activation is
        last = len(added) - 1
        rest = [offset >> bits * place for place in range(len(added))]
        added = [(x if place == last else x & (1 << bits) - 1).float() for place, x in enumerate(rest)]
    return ByteWeights(packed, ones, torch.zeros(outputs, dtype=torch.int32), tuple(added), padding, bits)


def sums(x: Tensor, weights: ByteWeights) -> Tensor:
    """(B, C, H, W) int16 -> (B, O, H, W) int32, channels last in memory: the convolution with zero padding, exactly,
    and the offset."""
    x, bits = x.contiguous(memory_format=torch.channels_last), weights.bits
    *lower, added = weights.added
    highest = bits * len(lower)
    zero = 1 << 15 - highest  # what the highest digit is raised by, so as not to be negative
    total = _products((x >> highest).add_(zero), zero, added, weights)
    for place in range(len(lower) - 1, -1, -1):
        digit = x >> bits * place if place else x
        digit = digit if bits == 8 else digit & (1 << bits) - 1  # a conversion to uint8 keeps the lower byte
        total = _products(digit, 0, lower[place], weights).add_(total, alpha=1 << bits)
    return total


def _products(digit: Tensor, zero: int, added: Tensor | None, weights: ByteWeights) -> Tensor:
    """(B, C, H, W), of which the lower bytes count, meaning digit - zero -> (B, O, H, W) int32."""
    around, along = [weights.padding] * 2, [1, 1]
    return torch.ops.onednn.qconv2d_pointwise(
        digit.to(torch.uint8), 1.0, zero, weights.packed, weights.ones, weights.zeros, added, along, around, along, 1,
        1.0, 0, torch.float32, "none", [], "",
    ).to(torch.int32)  # fmt: skip


def plain_sums(x: Tensor, mantissa: Tensor) -> Tensor:
    """What `sums` gives without an offset, on any device.

    x: (B, C, H, W) int16; mantissa: (O, C, k, k) int8 -> (B, O, H, W) int32.
    """
    k, height = mantissa.shape[2], x.shape[2]
    rows = max(1, UNFOLDED * height // (2 * k * k * x.numel()))
    if rows >= height:
        return _plain_sums(x, mantissa)
    # In bands: the unfolded patches of a large picture are many times as large as itself.
    out = torch.empty(len(x), len(mantissa), height, x.shape[3], dtype=torch.int32, device=x.device)
    reach = k // 2
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - reach, 0), min(bottom + reach, height)
        out[:, :, top:bottom] = _plain_sums(x[:, :, first:last], mantissa)[:, :, top - first : bottom - first]
    return out


def _plain_sums(x: Tensor, mantissa: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    outputs, k = len(mantissa), mantissa.shape[2]
    with torch.autocast(x.device.type, enabled=False):
        halves = torch.cat((x >> 8, x & 255)).float()  # (2 B, C, H, W)
        patches = halves.flatten(2) if k == 1 else F.unfold(halves, k, padding=k // 2)
        high, low = torch.matmul(mantissa.flatten(1).float(), patches).to(torch.int32).chunk(2)
    return low.add_(high, alpha=256).view(batch, outputs, height, width)


def _exact(bits: int) -> bool:
    """Whether sums of the largest products of either sign come out right, and everything between."""
    generator = torch.Generator().manual_seed(0)

    def cases(shape: tuple[int, ...], values: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        mixed = torch.randint(min(values), max(values) + 1, shape, generator=generator)
        return [case.to(dtype) for case in (mixed, *(torch.full(shape, value) for value in values))]

    offset = torch.randint(-(1 << 25), 1 << 25, (21,), generator=generator).to(torch.int32)
    for kernel, channels in ((1, 256), (3, 56)):
        for mantissa in cases((21, channels, kernel, kernel), (-127, 127), torch.int8):
            weights = pack(mantissa, bits, offset)
            for x in cases((1, channels, 5, 7), (-(1 << 15), -1, (1 << 15) - 1), torch.int16):
                if not torch.equal(sums(x, weights), plain_sums(x, mantissa).add_(offset[:, None, None])):
                    return False
    return True


def _faster(one: Callable[[], object], other: Callable[[], object], runs: int = 10) -> bool:
    """Whether `one` takes less time than `other`: by the shortest of several runs, in turns, since others use the
    processor too."""
    shortest = [math.inf, math.inf]
    for run in range(runs + 1):
        for number, task in enumerate((one, other)):
            began = time.perf_counter()
            task()
            if run:  # the first sets things up
                shortest[number] = min(shortest[number], time.perf_counter() - began)
    return shortest[0] < shortest[1]


@lru_cache
def digits() -> int | None:
    """Bits of the digits, 8 or 7, with which this machine computes `sums` exactly, and faster than the plain way; None
    where there are none. Tried once per process."""
    x, mantissa = torch.ones(1, 80, 24, 32, dtype=torch.int16), torch.ones(80, 80, 3, 3, dtype=torch.int8)
    with torch.inference_mode():
        try:
            bits = next((bits for bits in (8, 7) if _exact(bits)), None)
        except (RuntimeError, AttributeError):  # not made for this processor, or not in this release of torch
            return None
        if bits is None:
            return None
        weights = pack(mantissa, bits)
        return bits if _faster(lambda: sums(x, weights), lambda: plain_sums(x, mantissa)) else None
