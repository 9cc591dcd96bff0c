"""Exact convolutions on CUDA, in Triton: products of bytes on the tensor cores, and what follows them, in one kernel.

It is an implicit matrix product. Activations, int16, are split into bytes as they are read, the lower one less 128, so
that both are int8:

    x = 256 x_h + x_l + 128        sum x m = 256 sum x_h m + sum x_l m + 128 sum m

What is outside the picture reads as x = 0. The sums are int32, and so is everything after them: the very integers of
`exact.py`. A residual block is three such launches, and a few small ones for its tables, instead of some forty.

`works` tries a device once, against the plain way; where the kernel cannot be compiled or errs, that is taken.
(`tests/test_kernels.py` runs all of it in Triton's interpreter and compiles it for Ampere and Hopper.)
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..exact import leaky
from .int8 import plain_sums

POSITIONS, OUTPUTS, INPUTS = 128, 32, 32  # of a tile; int8 products want at least 32 inputs


@dataclass(frozen=True)
class TileWeights:
    """A convolution's integers, as the kernel reads them."""

    matrix: Tensor  # (k k C, O) int8, rows by tap, then by input channel
    constant: Tensor  # (O,) int32: offset + 128 sum m
    down: Tensor  # (O,) int32
    kernel: int  # k


@triton.jit
def _snap(y):
    return tl.minimum(tl.maximum(y, -32768), 32767)


@triton.jit(do_not_specialize=["height", "width", "positions"])  # else it is compiled anew for some pictures
def _convolve(
    x, weights, constant, down, gain, shift, residual, out, height, width, positions, inputs, outputs,
    KERNEL: tl.constexpr, SCALE: tl.constexpr, LEAKY: tl.constexpr, ADD: tl.constexpr, SNAP: tl.constexpr,
    TABLE_BITS: tl.constexpr, POSITIONS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """One tile. x (B H W, C) int16, residual and out (B H W, O); gain and shift (B, O) int32."""
    place = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside, wanted = place < positions, channel < outputs
    row, column = (place // width) % height, place % width
    high = tl.zeros((POSITIONS, OUTPUTS), tl.int32)
    low = tl.zeros((POSITIONS, OUTPUTS), tl.int32)
    for tap in range(KERNEL * KERNEL):
        dy, dx = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
        there = inside & (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        start = (place + dy * width + dx).to(tl.int64) * inputs
        for first in range(0, inputs, INPUTS):
            source = first + tl.arange(0, INPUTS)
            known = source < inputs
            value = tl.load(x + start[:, None] + source[None, :], mask=there[:, None] & known[None, :], other=0)
            at = (tap * inputs + source).to(tl.int64) * outputs
            m = tl.load(weights + at[:, None] + channel[None, :], mask=known[:, None] & wanted[None, :], other=0)
            value = value.to(tl.int32)
            high = tl.dot((value >> 8).to(tl.int8), m, acc=high, out_dtype=tl.int32)
            low = tl.dot(((value & 255) - 128).to(tl.int8), m, acc=low, out_dtype=tl.int32)
    y = high * 256 + low + tl.load(constant + channel, mask=wanted, other=0)[None, :]
    y = y >> tl.load(down + channel, mask=wanted, other=0)[None, :]
    if SNAP:
        y = _snap(y)
    if SCALE:
        image = place // (height * width)
        table = image[:, None] * outputs + channel[None, :]
        known = inside[:, None] & wanted[None, :]
        y = y * tl.load(gain + table, mask=known, other=0) + tl.load(shift + table, mask=known, other=0)
        y = _snap(y >> TABLE_BITS)
    if LEAKY:
        y = tl.maximum(y, (y + 4) >> 3)
    target = place.to(tl.int64)[:, None] * outputs + channel[None, :]
    written = inside[:, None] & wanted[None, :]
    if ADD:
        y = _snap(y + tl.load(residual + target, mask=written, other=0).to(tl.int32))
    tl.store(out + target, y.to(out.dtype.element_ty), mask=written)


def on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, whatever the tensors are on. (On the CPU it is its interpreter.)"""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def pack(mantissa: Tensor, offset: Tensor, down: Tensor) -> TileWeights:
    """mantissa: (O, C, k, k) int8. offset, down: (O, 1, 1) int32; see `exact.ExactConv2d.set_integers`."""
    matrix = mantissa.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
    total = mantissa.flatten(1).sum(1, dtype=torch.int32)
    return TileWeights(matrix, offset.flatten() + 128 * total, down.flatten().contiguous(), mantissa.shape[2])


def _launch(
    x: Tensor,
    weights: TileWeights,
    *,
    snap: bool = True,
    leaky: bool = False,
    scale: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
    table_bits: int = 0,
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    batch, inputs, height, width = x.shape
    outputs, positions = len(weights.constant), batch * height * width
    out = torch.empty(
        (batch, outputs, height, width),
        dtype=torch.int16 if snap else torch.int32,
        device=x.device,
        memory_format=torch.channels_last,
    )
    gain, shift = scale or (weights.constant, weights.constant)  # not read
    if residual is None:
        added = x
    else:
        added = residual.contiguous(memory_format=torch.channels_last)
    grid = (triton.cdiv(positions, POSITIONS), triton.cdiv(outputs, OUTPUTS))
    with on(x.device):
        _convolve[grid](
            x, weights.matrix, weights.constant, weights.down, gain, shift, added, out,
            height, width, positions, inputs, outputs,
            KERNEL=weights.kernel, SCALE=scale is not None, LEAKY=leaky, ADD=residual is not None, SNAP=snap,
            TABLE_BITS=table_bits, POSITIONS=POSITIONS, OUTPUTS=OUTPUTS, INPUTS=INPUTS,
        )  # fmt: skip
    return out


def convolve(x: Tensor, weights: TileWeights) -> Tensor:
    """What `ExactConv2d` makes of units: (B, C, H, W) int16 -> (B, O, H, W) int32, channels last in memory."""
    return _launch(x, weights, snap=False)


def residual_block(
    x: Tensor,
    reduce: TileWeights,
    spatial: TileWeights,
    expand: TileWeights,
    gain: Tensor,
    shift: Tensor,
    table_bits: int,
    rows: tuple[int, int, int, int],
) -> Tensor:
    """What `network.Block` makes of units.

    x: (B, C, H, W) int16. gain, shift: (B, C/2) int32, of which the product with an activation, plus the shift, is to
    be moved `table_bits` to the right. rows: top and bottom of what is wanted, first and last of what that depends on.
    """
    top, bottom, first, last = rows
    y = _launch(x[:, :, first:last], reduce, leaky=True)
    y = _launch(y, spatial, scale=(gain, shift), table_bits=table_bits, leaky=True)[:, :, top - first : bottom - first]
    return _launch(y, expand, residual=x[:, :, top:bottom])


@lru_cache
def works(device: torch.device) -> bool:
    """Whether a device runs the kernel, in all its uses, and gets everything right. Tried once per process.

    The largest products of either sign are tried, and what is between them.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False  # no products of bytes that Triton knows
    try:
        return _right_sums(device) and _right_block(device)
    except Exception:  # Triton's errors have no common root: no compiler, not enough shared memory, ...
        return False


def _draw(shape: tuple[int, ...], low: int, high: int) -> Tensor:
    """Whole numbers from low to high, the same in every process."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(sum(shape)))


def _right_sums(device: torch.device) -> bool:
    # Triton makes other code where numbers are multiples of 16, and there is more than one tile of positions.
    for kernel, channels, outputs, height in ((1, 256, 40, 5), (3, 56, 33, 5), (1, 160, 80, 40), (3, 80, 80, 40)):
        shape, picture = (outputs, channels, kernel, kernel), (2, channels, height, 7)
        zero = torch.zeros(outputs, 1, 1, dtype=torch.int32, device=device)
        for m in (_draw(shape, -127, 127), torch.full(shape, -127), torch.full(shape, 127)):
            m = m.to(device, torch.int8)
            weights = pack(m, zero, zero)
            for x in (_draw(picture, -32768, 32767), torch.full(picture, -32768), torch.full(picture, 32767)):
                x = x.to(device, torch.int16)
                if not torch.equal(convolve(x, weights), plain_sums(x, m)):
                    return False
    return True


def _right_block(device: torch.device) -> bool:
    """Blocks of all sorts of numbers, beside the same by plain operations in int32."""
    return all(_right_block_of(device, channels, hidden) for channels, hidden in ((48, 40), (96, 48)))


def _right_block_of(device: torch.device, channels: int, hidden: int) -> bool:
    bits = 10
    x = _draw((2, channels, 6, 5), -32768, 32767).to(device, torch.int16)
    gain = _draw((2, hidden), -(1 << 15), 1 << 15).to(device, torch.int32)
    shift = _draw((2, hidden), -(1 << 27), 1 << 27).to(device, torch.int32)

    def layer(outputs: int, inputs: int, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
        m = _draw((outputs, inputs, kernel, kernel), -127, 127).to(device, torch.int8)
        offset = _draw((outputs, 1, 1), -(1 << 20), 1 << 20).to(device, torch.int32)
        return m, offset, _draw((outputs, 1, 1), 4, 12).to(device, torch.int32)

    def plain(x: Tensor, m: Tensor, offset: Tensor, down: Tensor) -> Tensor:
        return ((plain_sums(x, m) + offset) >> down).clamp(-32768, 32767).to(torch.int16)

    layers = layer(hidden, channels, 1), layer(hidden, hidden, 3), layer(channels, hidden, 1)
    y = plain(leaky(plain(x, *layers[0])), *layers[1]).to(torch.int32)
    y = ((y * gain[..., None, None] + shift[..., None, None]) >> bits).clamp(-32768, 32767).to(torch.int16)
    y = x.to(torch.int32) + plain(leaky(y), *layers[2])
    expected = y.clamp(-32768, 32767).to(torch.int16)[:, :, 1:4]
    packed = (pack(*integers) for integers in layers)
    return torch.equal(residual_block(x, *packed, gain, shift, bits, (1, 4, 0, 5)), expected)
