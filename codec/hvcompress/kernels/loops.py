"""The loops of the range coder and of the trellis's search, compiled by numba, for those who code much.

They are in `entropy.py` and `search.py` as well, which try whether these agree with them, and do without them where
there is no numba. Other threads run while these do.

`entropy.py` uses constriction's coder. Here is that coder's arithmetic (Martin 1979; a state of 64 bits, words of 32,
frequencies of 24). Decoding here gives up wherever the bytes are not what an encoder writes: `entropy.py` says what is
wrong with them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

from ..entropy import TABLES, TOTAL
from ..machine import Machine, machine_of, shift_register
from ..scales import SCALE_LEVELS
from ..search import COST_LIMIT, MAX_BITS, REBASE
from ..symbols import lanes_of

WORD, PRECISION = np.uint64(32), np.uint64(24)
FULL = np.uint64(2**64 - 1)
NARROW = np.uint64(2**32)  # an interval below that takes in another word
RAW_BITS = np.uint64(8)  # what an escaped symbol's 16 leave of the precision


def compiled(function: Callable) -> Callable:
    """Compiled at its first call, or loaded from where numba keeps what it has compiled, if it may write anywhere."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


class Loops:
    """The loops, with a coder's tables as they read them. Threads may share it."""

    def __init__(self, weights: list[np.ndarray], even: np.ndarray, reach: np.ndarray):
        """All of `entropy.LayerCoder`.

        weights: per key, TABLES * parity + table, those of its symbols and, last, of the escape. even: (TABLES,) the
        even symbols' share of TOTAL. reach: (SCALE_LEVELS,).
        """
        ends = [_ends(values) for values in weights]
        reach = np.tile(reach, 2 * TABLES // SCALE_LEVELS).astype(np.int64)
        odd = np.repeat([0, 1], TABLES)
        smallest = -reach + ((reach ^ odd) & 1)
        starts = np.cumsum([0, *map(len, ends)])
        self._tables = even.astype(np.uint64), np.concatenate(ends), starts, smallest, reach

    def quantizers(self, symbols: np.ndarray, state_bits: int) -> np.ndarray:
        """(N,) symbols k -> (N,) uint8: which quantizer is in force for each."""
        return _quantizers(symbols & 1, lanes_of(len(symbols))[1], machine_of(state_bits).following)

    def decode(self, words: np.ndarray, indices: np.ndarray, state_bits: int) -> tuple[np.ndarray, np.ndarray] | None:
        """What is coded of a layer: symbols (N,) int32 and their keys (N,) uint8. None where the bytes are damaged.

        words: (n,) uint32, with zeros after their end. indices: (N,) uint8, of scales.
        """
        lanes, following = lanes_of(len(indices))[1], machine_of(state_bits).following
        symbols, keys, whole = _decode(words, indices, lanes, following, *self._tables)
        return (symbols, keys) if whole else None


def _ends(weights: np.ndarray) -> np.ndarray:
    """(n,) -> (n + 1,) uint64: the ends of the symbols' intervals, by constriction's rule for `perfect=False`."""
    share = weights / weights.sum()
    through = np.cumsum(share)  # from left to right, as constriction adds them up
    before, numbers = np.append(0.0, through[:-1]), np.arange(len(share))
    begins = (before * ((TOTAL - len(share)) / through[-1])).astype(np.int64) + numbers
    return np.append(begins, TOTAL).astype(np.uint64)


@compiled
def _quantizers(parities, lanes, following):
    """(N,) parities of symbols, dealt to lanes, and (S, 2) the machine's next states -> (N,) uint8 quantizers."""
    quantizers = np.empty(len(parities), np.uint8)
    states = np.zeros(lanes, np.int32)
    lane = 0
    for i in range(len(parities)):
        quantizers[i] = states[lane] & 1
        states[lane] = following[states[lane], parities[i]]
        lane = lane + 1 if lane + 1 < lanes else 0
    return quantizers


@compiled
def _place(ends, first, last, quantile):
    """Which of the intervals first..last-1, interval i being from ends[i] to ends[i + 1], the quantile lies in."""
    while last - first > 1:
        middle = (first + last) >> 1
        if quantile < ends[middle]:
            last = middle
        else:
            first = middle
    return first


@compiled
def _refilled(rest, width, words, position):
    """What is left of the point and the interval, with another word where the interval has become narrow."""
    if width >= NARROW:
        return rest, width, position
    word = words[position] if position < len(words) else np.uint32(0)
    return rest << WORD | np.uint64(word), width << WORD, position + 1


@compiled
def _decode(words, indices, lanes, following, even, ends, starts, smallest, reach):
    """`entropy.LayerCoder._decode`, and whether all went as it does with an encoder's bytes.

    even: (TABLES,) the even symbols' share. Per key: `starts` of its symbols' intervals in `ends`, the smallest symbol,
    and the largest without an escape.
    """
    count, tables = len(indices), len(even)
    symbols, keys = np.empty(count, np.int32), np.empty(count, np.uint8)
    # The coder's point lies `rest` above the lower end of its interval.
    rest, width, position = np.uint64(words[0]) << WORD | np.uint64(words[1]), FULL, 2
    states, lane = np.zeros(lanes, np.int32), 0
    for i in range(count):
        state = states[lane]
        table = indices[i] + (tables >> 1) * (state & 1)
        unit = width >> PRECISION
        if rest >= unit << PRECISION:
            return symbols, keys, False
        edge = unit * even[table]
        parity = np.int64(rest >= edge)  # as a number: which branch it is cannot be foretold
        rest -= edge * np.uint64(parity)
        width = edge if parity == 0 else (unit << PRECISION) - edge
        rest, width, position = _refilled(rest, width, words, position)
        keys[i] = table + tables * parity
        states[lane] = following[state, parity]
        lane = lane + 1 if lane + 1 < lanes else 0
    order = _sorted(keys, 2 * tables)
    for i in order:
        key = keys[i]
        unit = width >> PRECISION
        quantile = rest // unit
        if quantile >> PRECISION:
            return symbols, keys, False
        place = _place(ends, starts[key], starts[key + 1] - 1, quantile)
        rest, width = rest - unit * ends[place], unit * (ends[place + 1] - ends[place])
        rest, width, position = _refilled(rest, width, words, position)
        symbols[i] = smallest[key] + 2 * (place - starts[key])
    for i in order:
        if symbols[i] > reach[keys[i]]:
            unit = width >> PRECISION
            quantile = rest // unit
            if quantile >> PRECISION:
                return symbols, keys, False
            value = quantile >> RAW_BITS
            rest, width = rest - unit * (value << RAW_BITS), unit << RAW_BITS
            rest, width, position = _refilled(rest, width, words, position)
            symbols[i] = np.int64(value) - 32768
    return symbols, keys, position < len(words)


@compiled
def _sorted(keys, count):
    """(N,) keys below `count` -> (N,) their places, in the order of the keys; of the same key, in their own."""
    next_place = np.zeros(count + 1, np.int64)
    for key in keys:
        next_place[key + 1] += 1
    next_place = np.cumsum(next_place)
    order = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        order[next_place[keys[i]]] = i
        next_place[keys[i]] += 1
    return order


def search(machine: Machine, costs: np.ndarray) -> np.ndarray:
    """What `search._search_lanes` finds. costs: (T, 2, 2, 1, n) int16 -> (T, n) int64."""
    length, lanes = costs.shape[0], costs.shape[-1]
    by_lane = np.ascontiguousarray(costs.reshape(length, 4, lanes).transpose(2, 0, 1))
    registers = shift_register(machine.states.bit_length() - 1)
    # Given and not looked up: what numba has kept would not notice that constants of another file have changed.
    return _search(by_lane, *registers, np.int16(MAX_BITS * COST_LIMIT), MAX_BITS, REBASE)


@compiled
def _search(costs, state_of, parity_for_zero, far, near_steps, rebase):
    """costs: (n, T, 4) int16. state_of, parity_for_zero: (S,), by register, of `machine.shift_register`. In the first
    near_steps steps no total is above `far`, that of registers which are not reached yet; see `search.py`.

    Registers 2 i and 2 i + 1 have the same quantizer and lead to i and to i + S / 2, by symbols of different parity.
    """
    lanes, length = costs.shape[0], costs.shape[1]
    half = len(state_of) >> 1
    # Masks, for register 2 i: of quantizer 1, and of an odd symbol on the way to i.
    shifted, odd = -(state_of[::2] & 1).astype(np.int16), -parity_for_zero[::2].astype(np.int16)
    branches = np.empty((length, lanes), np.int64)
    sources, packed = np.empty(half, np.uint8), np.empty((length, half >> 2), np.uint8)
    total, following = np.empty(2 * half, np.int16), np.empty(2 * half, np.int16)
    for lane in range(lanes):
        total[:] = far
        total[0] = 0
        for t in range(length):
            _add_step(total, following, sources, shifted, odd, costs[lane, t])
            _pack(sources, packed[t])
            total, following = following, total
            if t < near_steps:
                np.minimum(total, far, total)
            if t % rebase == rebase - 1:
                _subtract(total, total.min())
        register, least = 0, total.min()
        for other in range(len(state_of)):  # of several, as numpy's argmin does, the first state
            if total[other] == least and (total[register] > least or state_of[other] < state_of[register]):
                register = other
        for t in range(length - 1, -1, -1):
            bit, i = register // half, register % half
            register = 2 * i + (_unpacked(packed[t], i) >> bit & 1)
            branches[t, lane] = 2 * (state_of[register] & 1) + (parity_for_zero[register] ^ bit)
    return branches


@compiled
def _add_step(total, following, sources, shifted, odd, costs):
    """The totals after a step. sources[i]: in bit 0 whether the way to i is from 2 i + 1, in bit 1 that to i + S / 2.

    Without branches and with all in 16 bits, so that a processor takes as many i at a time as its vectors hold. Of two
    ways that cost the same, the one by an even symbol is taken.
    """
    half = len(sources)
    low, high = following[:half], following[half:]
    even_0, odd_0, even_1, odd_1 = costs
    even_change, odd_change = np.int16(even_0 ^ even_1), np.int16(odd_0 ^ odd_1)  # from those of quantizer 0
    for i in range(half):
        cost_even = np.int16(even_0 ^ np.int16(shifted[i] & even_change))
        cost_odd = np.int16(odd_0 ^ np.int16(shifted[i] & odd_change))
        change = np.int16(cost_even ^ cost_odd)
        straight = np.int16(cost_even ^ np.int16(odd[i] & change))  # from 2 i to i, and from 2 i + 1 to i + S / 2
        across = np.int16(straight ^ change)
        first, second = total[2 * i], total[2 * i + 1]
        low_first, low_second = np.int16(first + straight), np.int16(second + across)
        high_first, high_second = np.int16(first + across), np.int16(second + straight)
        low[i], high[i] = min(low_first, low_second), min(high_first, high_second)
        low_source = np.int16(low_second + odd[i]) < low_first
        high_source = high_second < np.int16(high_first + np.int16(odd[i] + 1))
        sources[i] = np.uint8(low_source) | np.uint8(high_source) << np.uint8(1)


@compiled
def _pack(pairs, packed):
    """(4 n,) pairs of bits -> (n,) bytes: pair i is in byte i mod n, at bit 2 (i div n)."""
    count = len(packed)
    for i in range(count):
        packed[i] = pairs[i] | pairs[count + i] << 2 | pairs[2 * count + i] << 4 | pairs[3 * count + i] << 6


@compiled
def _unpacked(packed, i):
    """Pair i, and in higher bits others."""
    return packed[i % len(packed)] >> 2 * (i // len(packed))


@compiled
def _subtract(total, amount):
    for i in range(len(total)):
        total[i] -= amount
