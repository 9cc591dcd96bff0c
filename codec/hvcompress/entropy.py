"""Range coding of quantized latents with integer frequency tables, one per scale index and quantizer.

Where the scale index is 0, nothing is coded. A symbol's table depends on the state of the trellis (`trellis.py`), and
that on the parities of the symbols before it in its lane. So a layer is coded in two passes. First the parities, step
by step along the lanes, all lanes at once, each as a binary symbol. Then, when all tables are known, what remains of
the symbols, grouped by parity and table. The order of coding is part of the format, see `docs/format.md`. Grouping lets
one table serve a whole run of symbols, several times faster than a model per symbol.

Who codes much, and has numba, gets the loops compiled (`kernels/loops.py`): the same symbols, the same bytes.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .errors import FormatError
from .forking import is_forked
from .machine import TRAINED_BITS, machine_of
from .scales import SCALE_LEVELS, scale
from .symbols import SYMBOL_LIMIT, edge, is_coded, lanes_of

if TYPE_CHECKING:
    from .kernels.loops import Loops  # which imports numba

TOTAL = 1 << 24  # sum of a table's frequencies: the range coder's own precision
ESCAPE_MIN = 1 << 8  # smallest frequency of the escape symbol, 2^-16
# Zeros after the end that a decoder may need: two words of the coder's state, and as many that happen to be zero. Who
# needs more was given less than an encoder writes: a small file that declares a huge picture full of symbols is found
# out early.
SPARE_WORDS = 4
TAIL = 6.0  # tables reach this many standard deviations
TABLES = 2 * SCALE_LEVELS  # table index = SCALE_LEVELS * quantizer + scale index
PATIENCE = 1 << 20  # symbols that a coder codes before it takes some tenths of a second to get its loops compiled


@dataclass(frozen=True)
class Tables:
    """Per table: frequencies of the symbols k = -reach..reach and, last, of the escape; they sum to TOTAL."""

    reach: np.ndarray  # (SCALE_LEVELS,) int32, the same for both quantizers
    frequencies: tuple[np.ndarray, ...]  # TABLES arrays (2 * reach + 2,) int32


def _normalise(weights: np.ndarray, escape: float) -> np.ndarray:
    """(n,) nonnegative weights and the escape's share -> (n + 1,) positive integers that sum to TOTAL."""
    escape_frequency = max(ESCAPE_MIN, round(escape * TOTAL))
    free = TOTAL - escape_frequency - len(weights)
    frequencies = 1 + np.floor(weights / weights.sum() * free).astype(np.int64)
    frequencies[len(frequencies) // 2] += TOTAL - escape_frequency - frequencies.sum()  # what rounding left over
    return np.append(frequencies, escape_frequency).astype(np.int32)


def reach_of(index: int) -> int:
    """Largest magnitude of k that a new table of a scale index holds without an escape. A model stores the result."""
    return max(2, math.ceil(TAIL * scale(index)))


def gaussian_tables(histogram: list[np.ndarray] | None = None, confidence: float = 2000.0) -> Tables:
    """Tables of Gaussians integrated over a symbol's interval, optionally blended with what a model really produces.

    histogram: per table, counts (2 * reach + 2,) of the symbols seen and, last, of those beyond the reach; the
    Gaussian counts as `confidence` further symbols.
    """
    tables = []
    for table in range(TABLES):
        quantizer, index = divmod(table, SCALE_LEVELS)
        ends = [edge(k, quantizer) for k in range(reach_of(index) + 1)]
        below = [math.erf(end / scale(index) / math.sqrt(2)) for end in ends]
        tail = np.maximum(np.diff(below) / 2, 0)  # of k = 1..reach
        mass = np.concatenate((tail[::-1], below[:1], tail))
        escape = max(0.0, 1.0 - mass.sum())
        if histogram is not None:
            seen, beyond = histogram[table][:-1], histogram[table][-1]
            seen = (seen + seen[::-1]) / 2  # symmetric by construction of the prior
            total = seen.sum() + beyond + confidence
            mass = (seen + confidence * mass) / total
            escape = (beyond + confidence * escape) / total
        tables.append(_normalise(mass, escape))
    return Tables(np.array([reach_of(index) for index in range(SCALE_LEVELS)], np.int32), tuple(tables))


@lru_cache
def _transitions(state_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """[2 * state + parity]: twice the next state; [2 * state]: what its quantizer adds to a table's number. int32."""
    doubled = 2 * machine_of(state_bits).following.ravel()
    return doubled, SCALE_LEVELS * (np.arange(len(doubled), dtype=np.int32) >> 1 & 1)


def _quantizers(symbols: np.ndarray, state_bits: int) -> np.ndarray:
    """(N,) symbols k -> (N,) uint8: which quantizer is in force for each."""
    steps, lanes = lanes_of(len(symbols))
    parities = np.zeros(steps * lanes, np.uint8)  # the last step is filled up
    parities[: len(symbols)] = symbols & 1
    parities = parities.reshape(steps, lanes)
    following = machine_of(state_bits).following
    quantizers = np.empty_like(parities)
    state = np.zeros(lanes, np.int32)
    for step, parity in enumerate(parities):
        quantizers[step] = state & 1
        state = following[state, parity]
    return quantizers.ravel()[: len(symbols)]


def _levels(symbols: np.ndarray, quantizers: np.ndarray) -> np.ndarray:
    """Levels, in half steps, of symbols k."""
    return 2 * symbols - np.sign(symbols) * quantizers


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


def _words(data: bytes) -> np.ndarray:
    """A stream as the range decoder takes it: (n,) uint32, with SPARE_WORDS zeros after the end."""
    return np.frombuffer(data + b"\0" * (-len(data) % 4 + 4 * SPARE_WORDS), ">u4").astype(np.uint32)


def _check_rest(decoder) -> None:
    """Raises FormatError where a range decoder has used up its bytes and all SPARE_WORDS after them."""
    if decoder.maybe_exhausted():
        raise FormatError("a layer's bytes are too few")


class LayerCoder:
    """Codes layers of levels (`trellis.py`) with given tables. Threads may share it.

    Its methods take the state_bits of the machine, of 2^state_bits states, whose path the levels are.
    """

    def __init__(self, tables: Tables, patience: int = PATIENCE):
        """patience: how many symbols are coded before the loops are compiled, where they can be."""
        import constriction

        self.tables = tables
        self._loops: Loops | None = None
        self._patience, self._compiling = patience, threading.Lock()
        self._queue = constriction.stream.queue
        # perfect=False: a fixed rule from frequencies to the coder's integers, in plain IEEE arithmetic.
        self._parity = constriction.stream.model.Bernoulli(perfect=False)
        self._weights: list[np.ndarray] = []  # [TABLES * parity + table]: of the symbols of a parity, and of the escape
        for parity in (0, 1):
            for table, frequencies in enumerate(tables.frequencies):
                reach = int(tables.reach[table % SCALE_LEVELS])
                # Half of the escaped symbols count as odd. The numbers are float64, their sums exact.
                self._weights.append(np.append(frequencies[(reach ^ parity) & 1 : -1 : 2], frequencies[-1] / 2))
        self._odd = np.array([weights.sum() / TOTAL for weights in self._weights[TABLES:]])  # share of the odd symbols
        self._models = [
            constriction.stream.model.Categorical(weights / weights.sum(), perfect=False) for weights in self._weights
        ]
        self._raw = constriction.stream.model.Uniform(1 << 16)

    def compile(self) -> bool:
        """Have the loops compiled now, and not only when much has been coded. Returns whether that is possible."""
        # In a forked process numba's locks may be held, by a thread that is not there.
        if not is_forked() and self._compiling.acquire(blocking=False):  # once: it is never released
            try:
                from .kernels.loops import Loops

                loops = Loops(self._weights, self._even_shares(), self.tables.reach)
                self._loops = loops if self._agrees(loops) else None
            except Exception:  # no numba, or one that does not work here; its errors have no common root
                pass
        return self._loops is not None

    def _loops_for(self, count: int) -> Loops | None:
        """The compiled loops for `count` symbols more; None before much was coded, and where there are none."""
        self._patience -= count  # it does not matter if two threads do so at the same time, and count as one
        if self._patience <= 0:
            self.compile()
        return self._loops

    def _even_shares(self) -> np.ndarray:
        """(TABLES,) int64: how much of TOTAL constriction gives the even symbols."""
        ends = []
        for odd in self._odd:
            encoder = self._queue.RangeEncoder()
            encoder.encode(np.ones(1, np.int32), self._parity, np.array([odd]))
            ends.append(encoder.pos()[1][0] // (2**64 // TOTAL - 1))  # in units of the whole interval
        return np.array(ends)

    def _agrees(self, loops: Loops) -> bool:
        """Whether compiled loops find what was encoded, with all tables: symbols of all sizes, and escapes."""
        generator = np.random.Generator(np.random.PCG64(0))
        indices = np.repeat(np.arange(SCALE_LEVELS, dtype=np.uint8), 8 * self.tables.reach)
        indices = generator.permutation(indices)[:, None, None]
        reach = self.tables.reach[indices] + 1
        levels = path_of(generator.integers(-reach, reach, endpoint=True), indices)
        coded = is_coded(indices)
        found = loops.decode(_words(self.encode(levels, indices)), indices[coded], TRAINED_BITS)
        symbols, keys = self._keyed(levels, indices, TRAINED_BITS)
        same = found is not None and np.array_equal(found[0], symbols) and np.array_equal(found[1], keys)
        return same and np.array_equal(loops.quantizers(symbols, TRAINED_BITS), _quantizers(symbols, TRAINED_BITS))

    def _groups(self, keys: np.ndarray):
        """keys (N,) uint8 = TABLES * parity + table. Yields (key, its positions, reach, smallest symbol), ascending."""
        order = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=2 * TABLES)
        ends = np.cumsum(counts)
        for key in map(int, np.flatnonzero(counts)):
            reach = int(self.tables.reach[key % SCALE_LEVELS])
            smallest = -reach + ((reach ^ key // TABLES) & 1)
            yield key, order[ends[key] - counts[key] : ends[key]], reach, smallest

    def _keyed(self, levels: np.ndarray, indices: np.ndarray, state_bits: int) -> tuple[np.ndarray, np.ndarray]:
        """Symbols k (N,) that are coded and their keys (N,), in the order of the layer.

        Raises ValueError where the levels are not a path of the trellis, or out of range.
        """
        coded = is_coded(indices)
        found = levels[coded].astype(np.int32)
        symbols = np.sign(found) * ((np.abs(found) + 1) >> 1)
        loops = self._loops_for(len(symbols))
        quantizers = (loops.quantizers if loops else _quantizers)(symbols, state_bits)
        if levels[~coded].any() or not np.array_equal(_levels(symbols, quantizers), found):
            raise ValueError("these levels are not a path of the trellis")
        if np.abs(symbols).max(initial=0) > SYMBOL_LIMIT:
            raise ValueError("a level is out of range")
        return symbols, ((symbols & 1).astype(np.uint8) << 7) + (quantizers << 6) + indices[coded]

    @staticmethod
    def _slots(values: np.ndarray, reach: int, smallest: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of a group's symbols in its weights, and which of them are escaped."""
        outside = np.abs(values) > reach
        return np.where(outside, (reach - smallest) // 2 + 1, (values - smallest) >> 1).astype(np.int32), outside

    def encode(self, levels: np.ndarray, indices: np.ndarray, state_bits: int = TRAINED_BITS) -> bytes:
        """Levels (c, h, w) int16, and scale indices (c, h, w) uint8 below SCALE_LEVELS -> the fewest bytes.

        Raises ValueError where the levels are not a path of the trellis, or out of range.
        """
        symbols, keys = self._keyed(levels, indices, state_bits)
        encoder = self._queue.RangeEncoder()
        encoder.encode((keys >> 7).astype(np.int32), self._parity, self._odd[keys & 127])
        escaped = []
        for key, positions, reach, smallest in self._groups(keys):
            values = symbols[positions]
            slots, outside = self._slots(values, reach, smallest)
            encoder.encode(slots, self._models[key])
            if outside.any():
                escaped.append(values[outside])
        if escaped:
            encoder.encode(np.concatenate(escaped) + (1 << 15), self._raw)
        position, (lower, width) = encoder.pos()
        return _shortest(encoder.get_compressed().astype(">u4").tobytes(), position, lower, width)

    def decode(self, data: bytes, indices: np.ndarray, state_bits: int = TRAINED_BITS) -> np.ndarray:
        """Inverse of `encode`: (c, h, w) int16. Raises FormatError where the bytes cannot be a layer."""
        coded, words = is_coded(indices), _words(data)
        loops = self._loops_for(int(coded.sum()))
        found = loops.decode(words, indices[coded], state_bits) if loops else None
        symbols, keys = found or self._decode(words, indices[coded], state_bits)
        if np.abs(symbols).max(initial=0) > SYMBOL_LIMIT or ((symbols & 1) != keys >> 7).any():
            raise FormatError("a layer's bytes are damaged")
        levels = np.zeros(indices.shape, np.int16)
        levels[coded] = _levels(symbols, (keys >> 6) & 1)
        return levels

    def _decode(self, words: np.ndarray, indices: np.ndarray, state_bits: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale indices (N,) uint8 of what is coded -> symbols (N,) int32 and their keys (N,) uint8."""
        decoder = self._queue.RangeDecoder(words)
        keys = indices.astype(np.int32)  # to which quantizers are added
        lanes = lanes_of(len(keys))[1]
        following, added = _transitions(state_bits)
        doubled, quantizer = np.zeros((2, lanes), np.int32)  # of each lane twice the state, and what it adds to a key
        parities, escaped = [np.zeros(0, np.int32)], []
        try:
            for first in range(0, len(keys), lanes):  # a loop of few operations: they decide how fast we are
                key = keys[first : first + lanes]
                if len(key) < lanes:  # the last step
                    doubled, quantizer = doubled[: len(key)], quantizer[: len(key)]
                key += quantizer
                parity = decoder.decode(self._parity, self._odd.take(key))
                parities.append(parity)
                doubled = following.take(doubled + parity)
                quantizer = added.take(doubled)
                _check_rest(decoder)
            flat = (keys + (np.concatenate(parities) << 7)).astype(np.uint8)
            symbols = np.empty(flat.shape, np.int32)
            for key, positions, reach, smallest in self._groups(flat):
                values = smallest + 2 * decoder.decode(self._models[key], len(positions))
                symbols[positions] = values
                _check_rest(decoder)
                outside = positions[values > reach]
                if len(outside):
                    escaped.append(outside)
            if escaped:
                places = np.concatenate(escaped)
                symbols[places] = decoder.decode(self._raw, len(places)) - (1 << 15)
        except AssertionError as error:  # constriction's
            raise FormatError("a layer's bytes are damaged") from error
        return symbols, flat

    def bits(self, levels: np.ndarray, indices: np.ndarray, state_bits: int = TRAINED_BITS) -> float:
        """Information content under the tables, in bits: what `encode` would need with an ideal coder."""
        return float(self._information(*self._keyed(levels, indices, state_bits)).sum())

    def symbol_bits(self, levels: np.ndarray, indices: np.ndarray, state_bits: int = TRAINED_BITS) -> np.ndarray:
        """`bits` symbol by symbol: (c, h, w) float64, -log2 of each one's probability."""
        bits = np.zeros(levels.shape)
        bits[is_coded(indices)] = self._information(*self._keyed(levels, indices, state_bits))
        return bits

    def _information(self, symbols: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(N,) bits of symbols with their keys: of the parity, of the rest given the parity, and of what escapes."""
        odd = self._odd[keys & 127]
        information = -np.log2(np.where(keys >> 7, odd, 1.0 - odd))
        for key, positions, reach, smallest in self._groups(keys):
            weights = self._weights[key]
            slots, outside = self._slots(symbols[positions], reach, smallest)
            information[positions] -= np.log2(weights[slots] / weights.sum()) - 16.0 * outside
        return information

    def count(self, levels: np.ndarray, indices: np.ndarray, state_bits: int = TRAINED_BITS) -> list[np.ndarray]:
        """Per table, how often each symbol, and last those beyond the reach, was seen: for `gaussian_tables`."""
        symbols, keys = self._keyed(levels, indices, state_bits)
        counts = [np.zeros(len(frequencies), np.int64) for frequencies in self.tables.frequencies]
        for key, positions, reach, _ in self._groups(keys):
            values = symbols[positions]
            slots = np.where(np.abs(values) <= reach, values + reach, 2 * reach + 1)
            counts[key & 127] += np.bincount(slots, minlength=2 * reach + 2)
        return counts


def path_of(symbols: np.ndarray, indices: np.ndarray, state_bits: int = TRAINED_BITS) -> np.ndarray:
    """The levels that a trellis makes of symbols k, (c, h, w), where they are coded; elsewhere zero, int16."""
    coded, levels = is_coded(indices), np.zeros(symbols.shape, np.int16)
    found = symbols[coded].astype(np.int32)
    levels[coded] = _levels(found, _quantizers(found, state_bits))
    return levels
