"""Quality index <-> lambda, and beta per layer <-> quality offset per layer.

A quality index is an integer 0..100. It stands for the Lagrange multiplier of

    loss = sum_l beta_l R_l + lambda * 255^2 * MSE          (R in bits per pixel, MSE of pixels in [0, 1])

on a logarithmic scale. Layer l works at lambda / beta_l, that is at its own quality index: the global one minus an
integer offset. Only integers are written to a file, so nothing here has to be computed alike on two machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from .errors import UsageError

LEVELS = 101  # quality 0..100
LAMBDA_MIN = 0.0010  # quality 0: about 0.08 bpp on photographs
LAMBDA_MAX = 0.2500  # quality 100: about 1.7 bpp
_LOG_RANGE = math.log(LAMBDA_MAX / LAMBDA_MIN)
MAX_OFFSET = 40  # |offset| stored in a file; beta between about 1/9 and 9


def is_whole(value: object) -> bool:
    """Whether it is an integer, Python's or numpy's; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def lambda_of(quality: float) -> float:
    """Lagrange multiplier of a quality index (bits per pixel, per unit of squared error on the 0..255 scale)."""
    return LAMBDA_MIN * math.exp(_LOG_RANGE * quality / (LEVELS - 1))


def quality_of(multiplier: float) -> int:
    """The quality index whose Lagrange multiplier is nearest, on the logarithmic scale. Inverse of `lambda_of`.

    Raises UsageError where there is no such quality.
    """
    if not LAMBDA_MIN <= multiplier <= LAMBDA_MAX:
        raise UsageError(f"lambda must be a number from {LAMBDA_MIN:g} to {LAMBDA_MAX:g}, not {multiplier!r}")
    return round((LEVELS - 1) * math.log(multiplier / LAMBDA_MIN) / _LOG_RANGE)


def offset_of(beta: float) -> int:
    """Quality offset of a layer whose rate is weighted with `beta`; beta > 1 means fewer bits, a positive offset."""
    if not (isinstance(beta, Real) and math.isfinite(beta) and beta > 0):
        raise UsageError(f"beta must be a positive number, not {beta!r}")
    offset = round((LEVELS - 1) * math.log(beta) / _LOG_RANGE)
    if abs(offset) > MAX_OFFSET:
        raise UsageError(f"beta {beta:g} is out of range ({beta_of(-MAX_OFFSET):.2f} to {beta_of(MAX_OFFSET):.2f})")
    return offset


def checked_offsets(quality: int, offsets: Sequence[int] | None, layers: int) -> tuple[int, ...]:
    """The offset of each of so many layers; None is zero. Raises UsageError, also where there is no such quality."""
    if not is_whole(quality) or not 0 <= quality < LEVELS:
        raise UsageError(f"quality must be a whole number from 0 to {LEVELS - 1}, not {quality!r}")
    if offsets is None:
        return (0,) * layers
    if len(offsets) != layers:
        raise UsageError(f"the model has {layers} layers, but {len(offsets)} betas were given")
    if not all(is_whole(offset) and abs(offset) <= MAX_OFFSET for offset in offsets):
        raise UsageError(f"a layer's quality offset must be a whole number within +-{MAX_OFFSET}")
    return tuple(map(int, offsets))


def offsets_of(betas: Iterable[float]) -> list[int]:
    """`offset_of` each layer's beta, coarse to fine. Raises UsageError."""
    if isinstance(betas, str) or not isinstance(betas, Iterable):
        raise UsageError(f"beta must be a number for each layer, not {betas!r}")
    return [offset_of(beta) for beta in betas]


def beta_of(offset: float) -> float:
    """Rate weight that a quality offset stands for; the inverse of `offset_of` up to rounding."""
    return math.exp(_LOG_RANGE * offset / (LEVELS - 1))


def layer_qualities(quality: int, offsets: Sequence[int]) -> list[int]:
    """Quality index of every layer, coarse to fine: the global one minus the layer's offset, kept within 0..100."""
    return [min(max(quality - offset, 0), LEVELS - 1) for offset in offsets]


def interpolation(knots: int) -> list[list[float]]:
    """(LEVELS, knots) hat functions: row q holds the linear interpolation weights of quality q between the knots."""
    rows = []
    for quality in range(LEVELS):
        position = quality / (LEVELS - 1) * (knots - 1)
        rows.append([max(0.0, 1.0 - abs(position - knot)) for knot in range(knots)])
    return rows
