"""Fixed-point arithmetic: the same integers on every device.

Everything that a decoder computes is an integer: activations are multiples of 2^-10 within [-32, 32), kept as int16; a
weight is an int8 times a power of two that its output channel has, or two of those where precision counts. A
convolution splits its activations into bytes and sums products of bytes. Such a sum stays below 2^24, so float32 holds
it, and every partial sum, exactly, whatever the order of summation and whether a device multiplies in float32, TF32,
bfloat16 or int8.
`docs/exactness.md` has the argument in full; `prove` checks its premise for given weights.

The same modules are trained in ordinary floating point; `freeze` moves them to integers once, at export. Which of the
two is meant is seen by the type of a tensor: values in floating point, or "units", integer multiples of 2^-10.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ModelError
from .kernels import int8
from .quality import LEVELS, interpolation

if TYPE_CHECKING:
    from .kernels.convolve import TileWeights  # which imports Triton

ACTIVATION_BITS = 10
ACTIVATION_LIMIT = 32.0
ACTIVATION_MAX = ACTIVATION_LIMIT - 2.0**-ACTIVATION_BITS  # the largest activation: int16 holds them all
UNITS_MIN, UNITS_MAX = -(1 << 15), (1 << 15) - 1  # the range of activations in units
WEIGHT_BITS = 12  # a weight is m * 2^exponent * 2^-12, with m in -127..127 and an exponent of its output channel
WEIGHT_MAX, EXPONENT_MAX = 127, 8  # so that |w| < 8
WIDE_BITS = 18  # a wide weight is (128 m + n) * 2^exponent * 2^-18, with n in -64..63
WIDE_MAX, WIDE_EXPONENT_MAX = 127 * 128 + 63, 7
BIAS_BITS = 22  # biases are multiples of 2^-22, as products are
BIAS_MAX = 2**31 - 2**WEIGHT_BITS  # of their multiples, so that rounding does not leave int32
TABLE_BITS = 10
FLOAT32_LIMIT, INT32_LIMIT = 2**24, 2**31  # integers of float32, and int32, below these are exact


def round_half_up(x: Tensor) -> Tensor:
    """floor(x + 1/2): unlike round-half-even, a rule that integer shifts reproduce."""
    return torch.floor(x + 0.5)


def to_units(x: Tensor) -> Tensor:
    """(...) values -> int16, the nearest multiples of 2^-10 that activations can have."""
    return round_half_up(x.double() * 2.0**ACTIVATION_BITS).clamp_(UNITS_MIN, UNITS_MAX).to(torch.int16)


def to_values(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(...) units -> values; what is in floating point already only changes its type."""
    return x.to(dtype) if x.is_floating_point() else x.to(dtype) * 2.0**-ACTIVATION_BITS


# --------------------------------------------------------------------------------------------------------------------
# Operations on values (in training) or units


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 1/8; of units rounded half up."""
    if x.is_floating_point():
        return F.leaky_relu(x, 0.125)
    return torch.maximum(x, (x + 4).bitwise_right_shift_(3))  # of int16: where x + 4 wraps around, x is the larger


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, in place: x is a convolution's result, and of units sums, int32 (int16 would wrap around)."""
    return x.add_(y)


def scale_and_shift(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """x * gain + shift, per channel; of units in int32 in place, rounded half up. gain, shift: (B, C, 1, 1)."""
    if x.is_floating_point():
        return (x * gain.to(x.dtype)).add_(shift.to(x.dtype))
    return x.mul_(gain).add_(rounding_shift(shift)).bitwise_right_shift_(TABLE_BITS)


def rounding_shift(shift: Tensor) -> Tensor:
    """What is added to the product of a gain and units before it is moved TABLE_BITS to the right, int32."""
    return (shift << TABLE_BITS) + (1 << TABLE_BITS - 1)


def _is_within(x: Tensor) -> bool:
    """Whether no activation (B, C, H, W) is out of range, nor not a number."""
    low, high = x.permute(0, 2, 3, 1).aminmax()  # channels last, as training has it: else it is slow
    return bool(low >= -ACTIVATION_LIMIT and high <= ACTIVATION_LIMIT)


class Snap(nn.Module):
    """Bound activations to their range: in training values; on the exact path sums of units, int32, which become int16.

    Sums are clamped in place, so they must be nobody else's.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.bound(x).to(torch.int16) if x.dtype == torch.int32 else self.bound(x)

    def bound(self, x: Tensor) -> Tensor:
        """The same of what is an operand next: sums stay int32."""
        if x.is_floating_point():
            # A clamp whose backward pass is one kernel. On a CPU it takes less to see that there is nothing to bound.
            within = x.device.type == "cpu" and _is_within(x.detach())
            return x if within else F.hardtanh(x, -ACTIVATION_LIMIT, ACTIVATION_LIMIT)
        return x.clamp_(UNITS_MIN, UNITS_MAX) if x.dtype == torch.int32 else x


class Unbounded(nn.Identity):
    """In place of a Snap in the encoder, which no decoder depends on."""

    def bound(self, x: Tensor) -> Tensor:
        return x


_blank = ContextVar("_blank", default=False)


@contextmanager
def left_blank() -> Iterator[None]:
    """Convolutions made inside have no initial values: to draw them takes longer than to load a model over them."""
    before = _blank.set(True)
    try:
        yield
    finally:
        _blank.reset(before)


class Conv2d(nn.Conv2d):
    """torch's, except where it is `left_blank`."""

    def reset_parameters(self) -> None:
        if not _blank.get():
            super().reset_parameters()

    def start_orthogonal(self, gain: float = 1.0) -> Conv2d:
        """Start as a scaled orthogonal map, 1x1: at first the whole network is linear and well conditioned."""
        if not _blank.get():
            middle = self.kernel_size[0] // 2
            with torch.no_grad():
                self.weight.zero_()
                nn.init.orthogonal_(self.weight[:, :, middle, middle], gain)
            nn.init.zeros_(self.bias)
        return self


class ExactConv2d(Conv2d):
    """Stride-1 convolution, 1x1 or 3x3 with zero padding. (B, C_in, H, W) -> (B, C_out, H, W).

    Of units x, int16, it gives units rounded half up, int32: floor(sum x w + 2^10 b + 1/2). It is then a matrix product
    over unfolded patches: a convolution routine may choose Winograd or FFT, whose intermediate values are no integers.
    Where a device has instructions for products of bytes, those are used.
    """

    byte_weights: int8.ByteWeights | None = None  # for a CPU
    tile_weights: TileWeights | None = None  # for CUDA
    as_stored = False  # whether training sees the weights as they will be stored, with a straight-through gradient

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, *, wide: bool = False):
        """wide: weights have 15 bits instead of 8, and take twice the time."""
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.wide = wide
        self.bits = WIDE_BITS if wide else WEIGHT_BITS
        self.exponent_max = WIDE_EXPONENT_MAX if wide else EXPONENT_MAX

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return self._conv_forward(x, _Stored.apply(self.weight) if self.as_stored else self.weight, self.bias)
        if self.runs_in_tiles(x):
            from .kernels.convolve import convolve

            sums = convolve(x, self.tile_weights)
            if not self.wide:
                return sums  # the kernel has done the rest
        elif self.byte_weights is not None and x.device.type == "cpu":
            sums = int8.sums(x, self.byte_weights)
            if not self.wide:
                return sums.bitwise_right_shift_(self.down)  # they have the offset in them
        else:
            sums = int8.plain_sums(x, self.mantissa)
        if self.wide:
            high, low = sums.chunk(2, 1)
            sums = low.long().add_(high, alpha=128)
        return sums.add_(self.offset).bitwise_right_shift_(self.down).to(torch.int32)

    def runs_in_tiles(self, x: Tensor) -> bool:
        """Whether this convolution of x has a kernel on its device."""
        tiles = self.tile_weights
        return tiles is not None and x.device == tiles.matrix.device and not x.is_floating_point()

    def set_integers(self, weight: Tensor, exponent: Tensor, bias: Tensor) -> None:
        """weight: (C_out, C_in, k, k) int8, or int16 if wide. exponent: (C_out,) uint8. bias: (C_out,) int32, of 2^-22.

        With w = weight * 2^exponent * 2^-bits and x in units, sum x w + 2^10 b + 1/2 is, but for a fraction that the
        floor takes away, (sum x weight + offset) / 2^down. Of wide weights the sums of x m and of x n are computed, m
        and n being output channels of one convolution.
        """
        mantissa, half = weight, 1 << self.bits - 1
        offset = ((bias.long() << self.bits - WEIGHT_BITS) + half) >> exponent.long()
        if self.wide:
            high = (weight + 64) >> 7
            mantissa = torch.cat((high, weight - (high << 7))).to(torch.int8)
        else:
            offset = offset.to(torch.int32)
        self.register_buffer("mantissa", mantissa, persistent=False)
        self.register_buffer("offset", offset[:, None, None], persistent=False)
        self.register_buffer("down", (self.bits - exponent.to(torch.int32))[:, None, None], persistent=False)
        digits = int8.digits()
        self.byte_weights = int8.pack(mantissa, digits, None if self.wide else offset) if digits else None
        self.weight.data = weight.float().mul_(weight_scale(exponent, self.bits))
        self.bias.data = (bias.double() * 2.0**-BIAS_BITS).float()

    def largest_share(self) -> float:
        """The largest sum that can occur, as a share of what float32 and int32 hold, whichever is nearer."""
        total = self.mantissa.abs().flatten(1).sum(1)  # int64; -128 is not among them
        offset = self.offset.flatten().long().abs()
        # No less than what `int8.sums` adds to a digit's sums. (It decides where weights are nearly all zero.)
        added = 0 if self.wide else (offset >> 7) + 256
        of_bytes = (255 * total + added).max().item() / FLOAT32_LIMIT
        of_units = (total << 15).max() if self.wide else ((total << 15) + offset).max()
        reach = (self.weight.abs().flatten(1).sum(1) * 2.0**15 + self.bias.abs() * 2.0**ACTIVATION_BITS + 1).max()
        return max(of_bytes, of_units.item() / INT32_LIMIT, reach.item() / INT32_LIMIT)


class QualityTable(nn.Module):
    """One row of `channels` values per quality index. (B,) int64 -> (B, channels, 1, 1).

    Trained as a curve through a few knots, spread evenly over the quality range; exact as a stored table, int32, of
    multiples of 2^-10 of values below `limit`.
    """

    exact = False

    def __init__(self, channels: int, knots: int, start: Tensor | float = 0.0, limit: float = 128.0):
        super().__init__()
        self.channels, self.limit = channels, limit
        self.knots = nn.Parameter(torch.zeros(knots, channels) + start)

    def table(self) -> Tensor:
        """(LEVELS, channels), float."""
        return _hats(len(self.knots), self.knots.device) @ self.knots

    def forward(self, quality: Tensor) -> Tensor:
        if self.exact:
            rows = self.frozen[quality]
        else:
            with torch.autocast(quality.device.type, enabled=False):
                rows = _hats(len(self.knots), quality.device)[quality] @ self.knots
        return rows[:, :, None, None]


@lru_cache
def _hats(knots: int, device: torch.device) -> Tensor:
    """(LEVELS, knots) interpolation weights."""
    with torch.inference_mode(False):  # it is kept, and may serve training later
        return torch.tensor(interpolation(knots), dtype=torch.float32, device=device)


# --------------------------------------------------------------------------------------------------------------------
# Storage


def _on_grid(x: Tensor, bits: int) -> Tensor:
    """(...) float -> int64 multiples of 2^-bits."""
    return round_half_up(x.detach().double() * 2.0**bits).long()


def weight_scale(exponent: Tensor, bits: int) -> Tensor:
    """(C_out,) integers -> what a stored weight of 1 is worth, (C_out, 1, 1, 1) float."""
    return ((1 << exponent.long()) * 2.0**-bits)[:, None, None, None]


def _split_weights(weight: Tensor, bits: int = WEIGHT_BITS, limit: int = WEIGHT_MAX) -> tuple[Tensor, Tensor]:
    """Weights (C_out, ...) -> whole numbers within +-limit, and exponents (C_out,) as small as can be.

    weight is nearly the first times `weight_scale(exponent, bits)`.
    """
    largest = weight.detach().abs().flatten(1).amax(1) * (2.0**bits / limit)
    exponent = torch.ceil(torch.log2(largest.clamp_min(1.0))).long()
    stored = round_half_up(weight.detach() / weight_scale(exponent, bits))
    return stored.clamp_(-limit, limit), exponent


class _Stored(torch.autograd.Function):
    """Weights as they will be stored; the gradient is passed on as it is."""

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        stored, exponent = _split_weights(weight)
        return stored.mul_(weight_scale(exponent, WEIGHT_BITS))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def _join(module: str, name: str) -> str:
    """Full name of a module's parameter; the outermost module has no name."""
    return f"{module}.{name}" if module else name


def to_integers(module: nn.Module) -> dict[str, Tensor]:
    """The integers of a trained exact path, for storage: weights int8 or int16, exponents uint8, everything else int32.

    Raises ModelError if a value does not fit.
    """
    integers: dict[str, Tensor] = {}

    def put(name: str, values: Tensor, dtype: torch.dtype, limit: int) -> None:
        if values.double().abs().max() > limit:
            raise ModelError(f"{name} does not fit the fixed-point grid: {values.min()}..{values.max()}")
        integers[name] = values.to(dtype).contiguous()

    covered: set[str] = set()
    for name, part in module.named_modules():
        if isinstance(part, ExactConv2d):
            limit, dtype = (WIDE_MAX, torch.int16) if part.wide else (WEIGHT_MAX, torch.int8)
            stored, exponent = _split_weights(part.weight, part.bits, limit)
            put(_join(name, "exponent"), exponent, torch.uint8, part.exponent_max)
            put(_join(name, "weight"), stored, dtype, limit)
            put(_join(name, "bias"), _on_grid(part.bias, BIAS_BITS), torch.int32, BIAS_MAX)
            covered |= {_join(name, "weight"), _join(name, "bias")}
        elif isinstance(part, QualityTable):
            put(_join(name, "table"), _on_grid(part.table(), TABLE_BITS), torch.int32, int(part.limit * 2**TABLE_BITS))
            covered.add(_join(name, "knots"))
    for name, parameter in module.named_parameters():
        if name not in covered:  # the learned start vector
            bounded = parameter.clamp(-ACTIVATION_LIMIT, ACTIVATION_MAX)
            put(name, _on_grid(bounded, ACTIVATION_BITS), torch.int32, 1 << 15)
    return integers


def from_integers(module: nn.Module, integers: dict[str, Tensor]) -> nn.Module:
    """Load stored integers into `module` and make it exact (inference only). Inverse of `to_integers`.

    Raises ModelError if a value is missing, has the wrong shape, or is out of range.
    """

    def take(name: str, shape: tuple[int, ...], dtype: torch.dtype, limit: int) -> Tensor:
        values = integers.get(name)
        if values is None or tuple(values.shape) != shape or values.dtype != dtype:
            raise ModelError(f"the model has no {name} of shape {shape} and type {dtype}")
        low, high = values.aminmax()  # no copy of all weights at every start
        if max(-int(low), int(high)) > limit:
            raise ModelError(f"the model's {name} is out of range")
        return values

    module.float().eval().requires_grad_(False)
    covered: set[str] = set()
    for name, part in module.named_modules():
        if isinstance(part, ExactConv2d):
            limit, dtype = (WIDE_MAX, torch.int16) if part.wide else (WEIGHT_MAX, torch.int8)
            part.set_integers(
                take(_join(name, "weight"), tuple(part.weight.shape), dtype, limit),
                take(_join(name, "exponent"), (part.out_channels,), torch.uint8, part.exponent_max),
                take(_join(name, "bias"), (part.out_channels,), torch.int32, BIAS_MAX),
            )
            covered |= {_join(name, "weight"), _join(name, "bias")}
        elif isinstance(part, QualityTable):
            limit = int(part.limit * 2**TABLE_BITS)
            table = take(_join(name, "table"), (LEVELS, part.channels), torch.int32, limit)
            part.register_buffer("frozen", table, persistent=False)
            covered.add(_join(name, "knots"))
            part.exact = True
    for name, parameter in module.named_parameters():
        if name not in covered:
            units = take(name, tuple(parameter.shape), torch.int32, -UNITS_MIN)
            parameter.data = units.clamp_max(UNITS_MAX).to(torch.int16)
    return module


def freeze(module: nn.Module) -> nn.Module:
    """Move a trained exact path to integers, in place: what export does, and what a file will be decoded with."""
    return from_integers(module, to_integers(module))


def use_tiles(module: nn.Module, device: torch.device) -> None:
    """Have the convolutions of a frozen path on a CUDA device run as kernels of Triton, if that works there."""
    try:
        from .kernels import convolve
    except ImportError:  # no Triton
        return
    if convolve.works(device):
        for part in module.modules():
            if isinstance(part, ExactConv2d):
                # What becomes of wide sums needs 64 bits, and is left to torch.
                none = torch.zeros(len(part.mantissa), 1, 1, dtype=torch.int32, device=device)
                rest = (none, none) if part.wide else (part.offset, part.down)
                part.tile_weights = convolve.pack(part.mantissa, *rest)


def train_as_stored(module: nn.Module) -> None:
    """Have the convolutions of a path in training see their weights rounded as they will be."""
    for part in module.modules():
        if isinstance(part, ExactConv2d):
            part.as_stored = not part.wide


def relaxed(module: nn.Module) -> nn.Module:
    """A float32 copy of a frozen path through which gradients flow: the same values but for rounding to the grid."""
    convolutions = [part for part in module.modules() if isinstance(part, ExactConv2d)]
    packed = [weights for part in convolutions for weights in (part.byte_weights, part.tile_weights)]
    copied = deepcopy(module, {id(weights): weights for weights in packed})  # those are not copied, but shared
    for parameter in copied.parameters():
        parameter.data = to_values(parameter.data)
    for part in copied.modules():
        if isinstance(part, QualityTable):  # which stays one row per quality index
            part.frozen = part.frozen * 2.0**-TABLE_BITS
    return copied.requires_grad_(False)


def prove(module: nn.Module) -> float:
    """The largest sum that any output channel of any convolution can reach, as a share of what is held exactly.

    For each output channel: 255 sum |mantissa| and a digit's part of the offset against 2^24, and
    2^15 sum |mantissa| + |offset| against 2^31.
    Raises ModelError where a share is 1 or more; then sums might round and the order of summation would matter.
    """
    worst = 0.0
    for name, part in module.named_modules():
        if isinstance(part, ExactConv2d):
            share = part.largest_share()
            if not share < 1.0:
                raise ModelError(f"sums of {name} may exceed what float32 and int32 hold exactly")
            worst = max(worst, share)
    return worst
