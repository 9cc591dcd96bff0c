"""3x3 convolutions of 16-bit integers on a CPU, by dot products of 8-bit integers summed in 32 bits.

Activations and weights are split into bytes,

    x = 256 x_h + x_l + 128        w = 256 w_h + w_l        each of x_h, x_l, w_h, w_l in -128..127

so that with sums over the taps and channels of a patch

    sum x w = 2^16 sum x_h w_h + 2^8 (sum x_h w_l + sum x_l w_h) + sum x_l w_l + 128 sum w

The four sums on the right are one matrix product of bytes, for which processors have instructions (VNNI, AMX) that do
many times the work of those for float64. Sums of n products stay below 2^15 n in magnitude, so they are exact in int32
as long as n < 2^16, and what is made of them is exact in float64.

An instruction set without VNNI may saturate at 16 bits on the way, and a library may fall back to something slow. So
`pays` tries, once per process, the worst cases and the clock.
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

TAPS = 9
WEIGHT_MIN, WEIGHT_MAX = -128 * 256, 127 * 256 + 127  # what two bytes hold as above
BYTE_ORDER = torch.tensor([1], dtype=torch.int16).view(torch.int8).argmax().item()  # 0: the low byte comes first


@dataclass(frozen=True)
class ByteWeights:
    """Weights of a 3x3 convolution from C to O channels."""

    matrix: Tensor  # (2 O, 9 C) int8: w_h of all output channels, then w_l; columns run over taps, then channels
    bias: Tensor  # (O, 1) float64 integers: bias + 128 sum w


def split(weight: Tensor, bias: Tensor) -> ByteWeights | None:
    """(O, C, 3, 3) and (O,) of integers in any type -> their bytes, or None where they do not fit."""
    outputs, channels = weight.shape[:2]
    if weight.min() < WEIGHT_MIN or weight.max() > WEIGHT_MAX or TAPS * channels >= 1 << 16:
        return None
    flat = weight.to(torch.int16).permute(0, 2, 3, 1).reshape(outputs, TAPS * channels)
    matrix = torch.empty(2 * outputs, TAPS * channels, dtype=torch.int8)
    matrix[:outputs].copy_((flat + 128) >> 8)
    matrix[outputs:].copy_(flat.view(torch.int8)[:, BYTE_ORDER::2])  # the low byte, which counts from -128 to 127
    return ByteWeights(matrix, (bias.double() + 128.0 * flat.sum(1))[:, None])


def _patches(x: Tensor) -> Tensor:
    """(B, C, H, W) int16 -> (9 C, 2 B H W) int8: the bytes x_h of all patches, then x_l."""
    batch, channels, height, width = x.shape
    data = x.contiguous().view(torch.int8).unflatten(-1, (width, 2)).transpose(0, 1)  # (C, B, H, W, 2)
    planes = torch.empty(2, channels, batch, height + 2, width + 2, dtype=torch.int8)
    planes[0].fill_(0)  # x = 0 around the picture
    planes[1].fill_(-128)
    inner = planes[..., 1:-1, 1:-1]
    inner[0].copy_(data[..., 1 - BYTE_ORDER])
    torch.bitwise_xor(data[..., BYTE_ORDER], -128, out=inner[1])  # the low byte, less 128
    half, channel, image, row, column = planes.stride()
    taps = planes.as_strided(
        (3, 3, channels, 2, batch, height, width), (row, column, channel, half, image, row, column)
    )
    return taps.reshape(TAPS * channels, 2 * batch * height * width)


def convolve(x: Tensor, weights: ByteWeights) -> Tensor:
    """(B, C, H, W) int16 -> (B, O, H, W) float64 integers: the convolution with zero padding, plus bias, exactly."""
    batch, _, height, width = x.shape
    outputs, count = len(weights.bias), batch * height * width
    sums = torch._int_mm(weights.matrix, _patches(x))  # (2 O, 2 B H W) int32
    of_high, of_low = sums[:, :count], sums[:, count:]
    y = of_high[:outputs].double().mul_(256.0).add_(of_high[outputs:] + of_low[:outputs])
    y.mul_(256.0).add_(of_low[outputs:]).add_(weights.bias)
    return y.view(outputs, batch, height, width).transpose(0, 1)


def _plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `convolve` must equal, for one picture: (1, C, H, W), (O, C, 3, 3), (O,), all float64 integers."""
    height, width = x.shape[2:]
    y = weight.flatten(1) @ F.unfold(x, 3, padding=1)[0] + bias[:, None]
    return y.view(1, -1, height, width)


def _exact() -> bool:
    """Whether sums of the largest products of either sign come out right, and everything between."""
    generator = torch.Generator().manual_seed(0)

    def cases(shape: tuple[int, ...], *values: int) -> list[Tensor]:
        mixed = torch.randint(min(values), max(values) + 1, shape, generator=generator)
        return [mixed, *(torch.full(shape, value) for value in values)]

    bias = torch.arange(21) << 20
    for weight in cases((21, 128, 3, 3), WEIGHT_MIN, -127 * 256 - 128, WEIGHT_MAX):
        weights = split(weight, bias)
        for x in cases((1, 128, 5, 7), -(1 << 15), (1 << 15) - 1):
            expected = _plain(x.double(), weight.double(), bias.double())
            if not torch.equal(convolve(x.to(torch.int16), weights), expected):
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
def pays() -> bool:
    """Whether this machine computes `convolve` exactly, and faster than the plain way. Tried once per process."""
    if not hasattr(torch, "_int_mm"):
        return False
    with torch.inference_mode():
        try:
            if not _exact():
                return False
        except RuntimeError:  # not made for this processor
            return False
        x, weight, bias = torch.ones(1, 80, 24, 32), torch.ones(80, 80, 3, 3), torch.ones(80)
        weights = split(weight, bias)
        return _faster(
            lambda: convolve(x.to(torch.int16), weights),
            lambda: _plain(x.double(), weight.double(), bias.double()),
        )
