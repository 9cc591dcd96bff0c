"""Feature maps that grow from the top: how a picture of any size goes through the network in bounded memory.

A 3x3 convolution makes each row depend on one more row on either side, and nothing else in the network looks further.
So every map is made a few rows at a time, as the next one asks for them, and what lies above the rows that it will
still ask for is forgotten: of most maps two rows are left. Nothing is computed twice, and where the arithmetic is exact
the result is, bit for bit, that of the whole picture at once: there is no seam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .exact import ACTIVATION_BITS, ACTIVATION_LIMIT, ACTIVATION_MAX, to_values

Make = Callable[[int, int], Tensor]  # (first, last) -> rows first.. of a map, at least to last-1, (B, C, n, w)


def cut(x: Tensor, first: int, last: int) -> Tensor:
    """Rows first..last-1 of (B, C, h, w); x itself where that is all of it."""
    return x if first == 0 and last == x.shape[2] else x[:, :, first:last]


@dataclass
class _Band:
    """Rows top.. of a map: (B, C, n, w) in the type of the map, or int16 multiples of 2^-10 of it."""

    top: int
    values: Tensor
    dtype: torch.dtype

    @property
    def bottom(self) -> int:
        return self.top + self.values.shape[2]


class Rows:
    """A feature map (B, C, height, w), of which rows are added from top to bottom, or made as they are asked for.

    It begins at the first row that is added or asked for: those above are never made.
    """

    def __init__(self, height: int, make: Make | None = None, chunk: int | None = None, *, packed: bool = False):
        """make: gives rows that are not there yet; None: they are added. chunk: how many rows to make at a time, about;
        None: all that are asked for. packed: keep floating-point values in 16 bits, as the nearest multiples of 2^-10.
        A map that is made all at once is kept as it is.
        """
        self.height = height
        self._make, self._chunk, self.packed = make, chunk or height, packed
        self._bands: list[_Band] = []
        self._known: int | None = None

    @staticmethod
    def whole(x: Tensor) -> Rows:
        rows = Rows(x.shape[2])
        rows.add(0, x)
        return rows

    @property
    def known(self) -> int:
        """The row after the last one that is there."""
        return self._known or 0

    def add(self, top: int, band: Tensor) -> None:
        """band: (B, C, n, w), rows top..top+n-1, those after the last one that is there."""
        if self._known not in (None, top):
            raise ValueError(f"row {top} was added where row {self._known} comes next")
        values = band
        if self.packed and band.is_floating_point() and band.shape[2] < self.height:
            units = (band * 2.0**ACTIVATION_BITS).round_()
            unit_range = (-ACTIVATION_LIMIT * 2.0**ACTIVATION_BITS, ACTIVATION_MAX * 2.0**ACTIVATION_BITS)
            values = units.clamp_(*unit_range).to(torch.int16)
        self._bands.append(_Band(top, values, band.dtype))
        self._known = top + band.shape[2]

    def take(self, first: int, last: int) -> Tensor:
        """Rows first..last-1. Raises ValueError where some are not there yet, or are forgotten."""
        if self._make is not None:
            self._known = first if self._known is None else self._known
            while self._known < last:
                self.add(self._known, self._make(self._known, min(self._known + self._chunk, last)))
        pieces = []
        for band in self._bands:
            a, b = max(first, band.top), min(last, band.bottom)
            if a < b:
                piece = cut(band.values, a - band.top, b - band.top)
                pieces.append(to_values(piece, band.dtype) if piece.dtype != band.dtype else piece)
        if sum(piece.shape[2] for piece in pieces) != last - first:
            raise ValueError(f"rows {first}..{last - 1} are not all there")
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)

    def all(self) -> Tensor:
        """(B, C, height, w)."""
        return self.take(0, self.height)

    def forget_above(self, row: int) -> None:
        """Give back the memory of what lies above a row, which nobody will ask for."""
        self._bands = [band for band in self._bands if band.bottom > row]
        for band in self._bands:
            left = band.bottom - max(row, band.top)
            if 2 * left <= band.values.shape[2]:  # so that no row is copied often
                band.values, band.top = band.values[:, :, -left:].clone(), band.bottom - left


def looking_further(x: Rows, compute: Callable[[Tensor, int, int], Tensor], chunk: int | None) -> Rows:
    """What a 3x3 convolution, or a block with one, makes of a map that nobody else reads.

    compute: (rows of x, first, last) -> rows first..last-1 of the result, counted as those of x are.
    """

    def make(first: int, last: int) -> Tensor:
        top, bottom = max(0, first - 1), min(x.height, last + 1)
        around = x.take(top, bottom)
        x.forget_above(last - 1 if last < x.height else x.height)
        return compute(around, first - top, last - top)

    return Rows(x.height, make, chunk)


def through(blocks: Iterable[nn.Module], x: Rows, quality: Tensor, chunk: int | None) -> Rows:
    """What residual blocks, each with one 3x3 convolution, make of a map that nobody else reads."""

    def compute_with(block: nn.Module) -> Callable[[Tensor, int, int], Tensor]:
        return lambda around, first, last: block(around, quality, first, last)

    for block in blocks:
        x = looking_further(x, compute_with(block), chunk)
    return x


def upsampled(up: nn.Module, x: Rows, chunk: int | None) -> Rows:
    """A map of twice the resolution of one that nobody else reads. up: (B, C, h, w) -> (B, C', 2 h, 2 w)."""

    def make(first: int, last: int) -> Tensor:
        top, bottom = first // 2, -(-last // 2)
        coarser = x.take(top, bottom)
        x.forget_above(bottom)
        finer = up(coarser)
        return cut(finer, first - 2 * top, finer.shape[2])

    return Rows(2 * x.height, make, chunk)
