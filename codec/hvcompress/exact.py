"""Fixed-point arithmetic carried in float64: the same bits on every device.

Everything that decides how the bitstream is read lies on dyadic grids: activations are multiples of 2^-10 within
[-32, 32), so they have 16 bits, weights multiples of 2^-12 within [-8, 8). A product of two such values, and every
partial sum of products, is an integer multiple of 2^-22 far below 2^53 of them, hence exact in float64, hence
independent of the order of summation, of fused multiply-add, and of the library that runs it. `docs/exactness.md` has
the argument in full; `prove` checks its premise for given weights.

The same modules are trained in ordinary floating point; `freeze` moves them to the grid once, at export.
"""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ModelError
from .kernels import int8
from .quality import LEVELS, interpolation

ACTIVATION_BITS = 10
ACTIVATION_LIMIT = 32.0
ACTIVATION_MAX = ACTIVATION_LIMIT - 2.0**-ACTIVATION_BITS  # the largest activation: int16 holds them all
WEIGHT_BITS = 12  # int16 holds |w| < 8
BIAS_BITS = 22  # the grid of the products, so that adding a bias needs no rounding
TABLE_BITS = 10
EXACT_LIMIT = 2.0**52  # integers of float64 below this, and their halves, are exact
PROFILE = "float64-dyadic-2"  # names the rules above; part of a model's fingerprint


def round_half_up(x: Tensor) -> Tensor:
    """floor(x + 1/2): unlike round-half-even, a rule that integer shifts reproduce."""
    return torch.floor(x + 0.5)


def to_units(x: Tensor) -> Tensor:
    """(...) activations on the grid -> int16, the multiples of 2^-10."""
    return (x * 2.0**ACTIVATION_BITS).to(torch.int16)


def from_units(x: Tensor) -> Tensor:
    """Inverse of `to_units`, in float64."""
    return x.double().mul_(2.0**-ACTIVATION_BITS)


class Snap(nn.Module):
    """Round to the activation grid and clamp to its range. In training only the clamp acts."""

    exact = False

    def forward(self, x: Tensor) -> Tensor:
        if self.exact:  # round_half_up in units of the grid; in place, since fresh memory costs more than arithmetic
            y = x * 2.0**ACTIVATION_BITS
            return y.add_(0.5).floor_().mul_(2.0**-ACTIVATION_BITS).clamp_(-ACTIVATION_LIMIT, ACTIVATION_MAX)
        return F.hardtanh(x, -ACTIVATION_LIMIT, ACTIVATION_LIMIT)  # a clamp whose backward pass is one kernel


class ExactConv2d(nn.Conv2d):
    """Stride-1 convolution, 1x1 or 3x3 with zero padding. (B, C_in, H, W) -> (B, C_out, H, W).

    When exact it runs as a matrix product over unfolded patches: a convolution routine may choose Winograd or FFT,
    whose intermediate values leave the grid. Where a CPU gains by it, a 3x3 convolution is computed in integers.
    """

    exact = False
    byte_weights: int8.ByteWeights | None = None

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.exact:
            return super().forward(x)
        if self.byte_weights is not None and x.device.type == "cpu":
            return int8.convolve(to_units(x), self.byte_weights).mul_(2.0**-BIAS_BITS)
        batch, _, height, width = x.shape
        k = self.kernel_size[0]
        patches = x.reshape(batch, -1, height * width) if k == 1 else F.unfold(x, k, padding=k // 2)
        y = torch.matmul(self.weight.reshape(self.out_channels, -1), patches)  # (B, C_out, H*W)
        return y.add_(self.bias[:, None]).reshape(batch, self.out_channels, height, width)


class QualityTable(nn.Module):
    """One row of `channels` values per quality index. (B,) int64 -> (B, channels, 1, 1).

    Trained as a curve through a few knots, spread evenly over the quality range; exact as a stored table.
    """

    exact = False

    def __init__(self, channels: int, knots: int, start: Tensor | float = 0.0):
        super().__init__()
        self.channels = channels
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


def _on_grid(x: Tensor, bits: int) -> Tensor:
    """(...) float -> int64 multiples of 2^-bits."""
    return round_half_up(x.detach().double() * 2.0**bits).long()


def _join(module: str, name: str) -> str:
    """Full name of a module's parameter; the outermost module has no name."""
    return f"{module}.{name}" if module else name


def to_integers(module: nn.Module) -> dict[str, Tensor]:
    """The grid values of a trained exact path as integers, for storage: weights int16, everything else int32.

    Raises ModelError if a weight does not fit the grid.
    """
    integers: dict[str, Tensor] = {}

    def put(name: str, values: Tensor, dtype: torch.dtype) -> None:
        info = torch.iinfo(dtype)
        if values.min() < info.min or values.max() > info.max:
            raise ModelError(f"{name} does not fit the fixed-point grid: {values.min()}..{values.max()}")
        integers[name] = values.to(dtype).contiguous()

    covered: set[str] = set()
    for name, part in module.named_modules():
        if isinstance(part, ExactConv2d):
            put(_join(name, "weight"), _on_grid(part.weight, WEIGHT_BITS), torch.int16)
            put(_join(name, "bias"), _on_grid(part.bias, BIAS_BITS), torch.int32)
            covered |= {_join(name, "weight"), _join(name, "bias")}
        elif isinstance(part, QualityTable):
            put(_join(name, "table"), _on_grid(part.table(), TABLE_BITS), torch.int32)
            covered.add(_join(name, "knots"))
    for name, parameter in module.named_parameters():
        if name not in covered:  # the learned start vector
            put(name, _on_grid(parameter.clamp(-ACTIVATION_LIMIT, ACTIVATION_MAX), ACTIVATION_BITS), torch.int32)
    return integers


def from_integers(module: nn.Module, integers: dict[str, Tensor]) -> nn.Module:
    """Load stored grid values into `module` and make it exact (float64, inference only). Inverse of `to_integers`.

    Raises ModelError if a value is missing or has the wrong shape.
    """

    def take(name: str, shape: tuple[int, ...], bits: int, dtype: torch.dtype = torch.int32) -> Tensor:
        if name not in integers or tuple(integers[name].shape) != shape or integers[name].dtype != dtype:
            raise ModelError(f"the model has no {name} of shape {shape} and type {dtype}")
        return integers[name].double() * 2.0**-bits

    module.double().eval().requires_grad_(False)
    covered: set[str] = set()
    for name, part in module.named_modules():
        if isinstance(part, ExactConv2d):
            part.weight.data = take(_join(name, "weight"), tuple(part.weight.shape), WEIGHT_BITS, torch.int16)
            part.bias.data = take(_join(name, "bias"), tuple(part.bias.shape), BIAS_BITS)
            covered |= {_join(name, "weight"), _join(name, "bias")}
            if part.kernel_size == (3, 3) and int8.pays():
                part.byte_weights = int8.split(integers[_join(name, "weight")], integers[_join(name, "bias")])
        elif isinstance(part, QualityTable):
            table = take(_join(name, "table"), (LEVELS, part.channels), TABLE_BITS)
            part.register_buffer("frozen", table, persistent=False)
            covered.add(_join(name, "knots"))
        if isinstance(part, (ExactConv2d, QualityTable, Snap)):
            part.exact = True
    for name, parameter in module.named_parameters():
        if name not in covered:
            parameter.data = take(name, tuple(parameter.shape), ACTIVATION_BITS)
    return module


def freeze(module: nn.Module) -> nn.Module:
    """Move a trained exact path onto the grid, in place: what export does, and what a file will be decoded with."""
    return from_integers(module, to_integers(module))


def relaxed(module: nn.Module) -> nn.Module:
    """A float32 copy of a frozen path through which gradients flow: the same values but for rounding to the grid."""
    copied = deepcopy(module).float().requires_grad_(False)
    for part in copied.modules():
        if isinstance(part, (ExactConv2d, Snap)):
            part.exact = False  # tables stay as they are stored: a row per quality index
    return copied


def prove(module: nn.Module) -> float:
    """Largest sum that any output channel of any convolution can reach, as a share of what float64 holds exactly.

    For each output channel: (sum |w| * max |x| + |b|), counted in units of the product grid 2^-22, against 2^52.
    Raises ModelError where the share is 1 or more; then sums might round and the order of summation would matter.
    """
    worst = 0.0
    for name, part in module.named_modules():
        if isinstance(part, ExactConv2d):
            reach = part.weight.abs().flatten(1).sum(1) * ACTIVATION_LIMIT + part.bias.abs()  # (C_out,)
            share = (reach.max() * 2.0 ** (WEIGHT_BITS + ACTIVATION_BITS) / EXACT_LIMIT).item()
            if not share < 1.0:
                raise ModelError(f"sums of {name} may exceed 2^52 on the grid")
            worst = max(worst, share)
    return worst
