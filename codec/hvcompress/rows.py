"""Bands of rows: how a picture of any size goes through the network in bounded memory.

A 3x3 convolution makes each row depend on one more row on either side, and nothing else in the network looks further.
So a band of rows is computed from a slightly larger one of its input, and where the arithmetic is exact the result is,
bit for bit, that of the whole picture at once: there is no seam.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .exact import ACTIVATION_BITS, ACTIVATION_LIMIT, ACTIVATION_MAX, from_units

Take = Callable[[int, int], Tensor]  # (first, last) -> rows first..last-1 of a feature map, (B, C, last - first, w)


def cut(x: Tensor, first: int, last: int) -> Tensor:
    """Rows first..last-1 of (B, C, h, w); x itself where that is all of it."""
    return x if first == 0 and last == x.shape[2] else x[:, :, first:last]


class Rows:
    """A feature map (B, C, height, w), kept as bands of rows in the order in which they are made.

    A map of one band is kept as it is. Of several, values are kept in 16 bits, multiples of 2^-10: exactly, if they lie
    on that grid.
    """

    def __init__(self, height: int):
        self.height = height
        self.known = 0  # the row after the last one that was added
        self._bands: list[tuple[int, Tensor, torch.dtype]] = []  # first row, values, their type

    @staticmethod
    def whole(x: Tensor) -> Rows:
        rows = Rows(x.shape[2])
        rows.add(0, x)
        return rows

    def add(self, top: int, band: Tensor) -> None:
        """band: (B, C, n, w), rows top..top+n-1."""
        kept = band
        if band.shape[2] < self.height:
            units = (band * 2.0**ACTIVATION_BITS).round_()
            unit_range = (-ACTIVATION_LIMIT * 2.0**ACTIVATION_BITS, ACTIVATION_MAX * 2.0**ACTIVATION_BITS)
            kept = units.clamp_(*unit_range).to(torch.int16)
        self._bands.append((top, kept, band.dtype))
        self.known = top + band.shape[2]

    def take(self, first: int, last: int) -> Tensor:
        """Rows first..last-1."""
        pieces = []
        for top, band, dtype in self._bands:
            a, b = max(first - top, 0), min(last - top, band.shape[2])
            if a < b:
                piece = cut(band, a, b)
                pieces.append(from_units(piece).to(dtype) if piece.dtype == torch.int16 else piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)

    def all(self) -> Tensor:
        """(B, C, height, w)."""
        return self.take(0, self.height)

    def forget_above(self, row: int) -> None:
        """Drop the bands that lie entirely above a row."""
        self._bands = [(top, band, dtype) for top, band, dtype in self._bands if top + band.shape[2] > row]


def through(blocks: nn.ModuleList, take: Take, first: int, last: int, height: int, quality: Tensor) -> Tensor:
    """Rows first..last-1 of what residual blocks, each with one 3x3 convolution, make of a map of that height."""
    top, bottom = max(0, first - len(blocks)), min(height, last + len(blocks))
    x = take(top, bottom)
    for block in blocks:
        x = block(x, quality)
    return cut(x, first - top, last - top)


def upsampled(up: nn.Module, take: Take) -> Take:
    """Rows of a map of twice the resolution, from those of the coarser one. up: (B, C, h, w) -> (B, C', 2 h, 2 w)."""

    def finer(first: int, last: int) -> Tensor:
        top = first // 2
        return cut(up(take(top, -(-last // 2))), first - 2 * top, last - 2 * top)

    return finer
