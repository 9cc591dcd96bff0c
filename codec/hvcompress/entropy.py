"""Range coding of quantized latents: one integer frequency table per scale index, symbols grouped by index.

The order of coding within a layer is part of the format: scale indices ascending; within an index, positions in
raster order (channel, row, column); after all groups, the escaped values in the same order. Grouping lets one table
serve a whole run of symbols, several times faster than a model per symbol.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import FormatError
from .scales import SCALE_LEVELS, scale

TOTAL = 1 << 24  # sum of a table's frequencies: the range coder's own precision
ESCAPE_MIN = 1 << 8  # smallest frequency of the escape symbol, 2^-16
SYMBOL_LIMIT = 32767  # symbols are int16; -32768 stays unused
TAIL = 6.0  # tables reach this many standard deviations


@dataclass(frozen=True)
class Tables:
    """Per scale index k: frequencies of the symbols -reach[k]..reach[k] and, last, of the escape; they sum to TOTAL."""

    reach: np.ndarray  # (SCALE_LEVELS,) int32
    frequencies: tuple[np.ndarray, ...]  # SCALE_LEVELS arrays (2 * reach + 2,) int32


def _normalise(weights: np.ndarray, escape: float) -> np.ndarray:
    """(n,) nonnegative weights and the escape's share -> (n + 1,) positive integers that sum to TOTAL."""
    escape_frequency = max(ESCAPE_MIN, round(escape * TOTAL))
    free = TOTAL - escape_frequency - len(weights)
    frequencies = 1 + np.floor(weights / weights.sum() * free).astype(np.int64)
    frequencies[len(frequencies) // 2] += TOTAL - escape_frequency - frequencies.sum()  # what rounding left over
    return np.append(frequencies, escape_frequency).astype(np.int32)


def reach_of(index: int) -> int:
    """Largest magnitude that a new table of a scale index holds without an escape. A model stores the result."""
    return max(2, math.ceil(TAIL * scale(index)))


def gaussian_tables(histogram: list[np.ndarray] | None = None, confidence: float = 2000.0) -> Tables:
    """Tables of Gaussians integrated over one step, optionally blended with what a trained model really produces.

    histogram: per scale index, counts (2 * reach + 2,) of the symbols seen and, last, of those beyond the reach; the
    Gaussian counts as `confidence` further symbols.
    """
    reaches, tables = [], []
    for k in range(SCALE_LEVELS):
        deviation = scale(k)
        reach = reach_of(k)
        edges = np.array([math.erf((i - 0.5) / deviation / math.sqrt(2)) for i in range(-reach, reach + 2)])
        mass = np.maximum(np.diff(edges) / 2, 0)
        escape = max(0.0, 1.0 - mass.sum())
        if histogram is not None:
            seen, beyond = histogram[k][:-1], histogram[k][-1]
            seen = (seen + seen[::-1]) / 2  # symmetric by construction of the prior
            total = seen.sum() + beyond + confidence
            mass = (seen + confidence * mass) / total
            escape = (beyond + confidence * escape) / total
        reaches.append(reach)
        tables.append(_normalise(mass, escape))
    return Tables(np.array(reaches, np.int32), tuple(tables))


def _shortest(sealed: bytes, position: int, lower: int, width: int) -> bytes:
    """The fewest bytes that a range decoder, to which the bytes past the end are zeros, takes for the same symbols.

    sealed: what the encoder wrote, words big-endian. position, (lower, width): `RangeEncoder.pos` before that: after
    `position` words any number of [lower, lower + width) / 2^64 would do. This is, of those with the most zero
    bytes at the end, the smallest.
    """
    length = 4 * position + 8
    point = int.from_bytes(sealed.ljust(length, b"\0"), "big")
    first = (point >> 64 << 64) + lower
    if first > point:  # the encoder chose a point past a carry into the words before
        first -= 1 << 64
    for zeros in range(8, -1, -1):
        shortest = -(-first >> 8 * zeros) << 8 * zeros  # rounded up
        if shortest < first + width:
            return shortest.to_bytes(length, "big").rstrip(b"\0")
    raise AssertionError("a range coder's interval is never empty")


class LayerCoder:
    """Codes layers of symbols with given tables. Stateless between calls; safe to share between threads."""

    def __init__(self, tables: Tables):
        import constriction

        self.tables = tables
        self._queue = constriction.stream.queue
        # perfect=False: a fixed rule from frequencies to the coder's integers, in plain IEEE arithmetic.
        self._models = [
            constriction.stream.model.Categorical(f.astype(np.float64) / TOTAL, perfect=False)
            for f in tables.frequencies
        ]
        self._raw = constriction.stream.model.Uniform(1 << 16)

    def _groups(self, indices: np.ndarray):
        """Yields (scale index, its positions), ascending."""
        order = np.argsort(indices, kind="stable")
        counts = np.bincount(indices, minlength=SCALE_LEVELS)
        ends = np.cumsum(counts)
        for k in np.flatnonzero(counts):
            yield int(k), order[ends[k] - counts[k] : ends[k]]

    def encode(self, symbols: np.ndarray, indices: np.ndarray) -> bytes:
        """symbols (N,) int16 within +-SYMBOL_LIMIT, indices (N,) uint8 below SCALE_LEVELS -> the fewest bytes."""
        encoder = self._queue.RangeEncoder()
        escaped = []
        for k, positions in self._groups(indices):
            reach = int(self.tables.reach[k])
            values = symbols[positions].astype(np.int32)
            outside = np.abs(values) > reach
            encoder.encode(np.where(outside, 2 * reach + 1, values + reach).astype(np.int32), self._models[k])
            if outside.any():
                escaped.append(values[outside])
        if escaped:
            encoder.encode(np.concatenate(escaped) + (1 << 15), self._raw)
        position, (lower, width) = encoder.pos()
        return _shortest(encoder.get_compressed().astype(">u4").tobytes(), position, lower, width)

    def decode(self, data: bytes, indices: np.ndarray) -> np.ndarray:
        """Inverse of `encode`: (N,) int16. Raises FormatError where the bytes cannot be a layer."""
        padded = data + b"\0" * (-len(data) % 4)
        decoder = self._queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))
        symbols = np.empty(indices.shape, np.int32)
        escaped = []
        try:
            for k, positions in self._groups(indices):
                reach = int(self.tables.reach[k])
                values = decoder.decode(self._models[k], len(positions)) - reach
                symbols[positions] = values
                outside = positions[values > reach]
                if len(outside):
                    escaped.append(outside)
            if escaped:
                places = np.concatenate(escaped)
                symbols[places] = decoder.decode(self._raw, len(places)) - (1 << 15)
        except (AssertionError, ValueError, KeyError) as error:
            raise FormatError("a layer's bytes are damaged") from error
        if np.abs(symbols).max(initial=0) > SYMBOL_LIMIT:
            raise FormatError("a layer's bytes are damaged")
        return symbols.astype(np.int16)

    def bits(self, symbols: np.ndarray, indices: np.ndarray) -> float:
        """Information content under the tables, in bits: what `encode` would need with an ideal coder."""
        total = 0.0
        for k, positions in self._groups(indices):
            reach = int(self.tables.reach[k])
            values = symbols[positions].astype(np.int32)
            outside = np.abs(values) > reach
            slots = np.where(outside, 2 * reach + 1, values + reach)
            total -= np.log2(self.tables.frequencies[k][slots] / TOTAL).sum() - 16.0 * outside.sum()
        return float(total)
