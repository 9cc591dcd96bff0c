"""The cheapest path through a trellis (Viterbi) on a CPU, in 16-bit integers: all lanes at once, step by step.

Branch 2 * quantizer + parity stands for a symbol of that parity where that quantizer is in force. Only what a branch
costs more than its step's cheapest matters. Within log2(states) <= MAX_BITS steps any state can be reached from any
other, so from then on totals differ by MAX_BITS * COST_LIMIT at most. States that are not reached yet are kept there.
16 bits hold that, and what is added between two rebases.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from .forking import is_forked
from .machine import PARITY_CHECKS, Machine

Search = Callable[[Machine, np.ndarray], np.ndarray]  # what `_search_lanes` is

WEIGHT = 18.0  # bits per squared step that the encoder gives for less error
COST_UNIT = 1 / 32  # bits
COST_LIMIT = 1450  # units by which a branch may cost more than the cheapest of its step
MAX_BITS = max(PARITY_CHECKS)
REBASE = 6  # steps after which the totals are counted anew from their minimum
LANES = 96  # searched at a time
TOTALS = 1 << 17  # of so many lanes times states at most, which bounds a thread's memory to some 40 MiB
ROW = 512  # values that numpy should add costs to at a time, about
THREADS = 8  # that search at a time, at most
PATIENCE = 1 << 29  # states times symbols that are searched before it is worth the time to get the loop compiled

_searched = 0  # so many, by the loops of numpy
_compiled_searches: dict[Machine, Search | None] = {}


def search_units(machine: Machine, units: np.ndarray, threads: int, *, once: bool = False) -> np.ndarray:
    """The branches of the cheapest paths, (T, n) int64.

    units: (T, 4, n) int16, in COST_UNITs: by which each branch costs more than its step's cheapest, COST_LIMIT at most.
    once: so little is left to search that it is not worth the time to get the loop compiled.
    """
    length, _, count = units.shape
    units = units.reshape(length, 2, 2, 1, count)  # [t, quantizer, parity]
    compiled, threads = None if once else _compiled(machine, length * count), min(threads, THREADS)
    lanes = -(-count // threads) if compiled else max(1, min(LANES, TOTALS // machine.states))
    chunks = [units[..., first : first + lanes] for first in range(0, count, lanes)]
    search = partial(compiled or _search_lanes, machine)
    if min(threads, len(chunks)) < 2:
        parts = list(map(search, chunks))
    else:  # numpy, and what is compiled, lets others run meanwhile
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(search, chunks))
    return np.concatenate(parts, 1)


def _compiled(machine: Machine, symbols: int) -> Search | None:
    """The compiled loop for so many symbols more; None before much was searched, and where there is none."""
    global _searched
    if _searched <= PATIENCE:
        _searched += symbols * machine.states  # it does not matter if threads that do so at the same time lose some
    if _searched <= PATIENCE:
        return None
    # numba has locks that a thread of the parent may have held when this process was forked.
    if machine not in _compiled_searches and not is_forked():
        _compiled_searches[machine] = _try_compiling(machine)
    return _compiled_searches.get(machine)


def _try_compiling(machine: Machine) -> Search | None:
    """`kernels.loops.search`, if there is numba, and it finds what `_search_lanes` does."""
    try:
        from .kernels.loops import search

        costs = np.random.Generator(np.random.PCG64(0)).integers(0, COST_LIMIT + 1, (50, 2, 2, 1, 3), dtype=np.int16)
        return search if np.array_equal(search(machine, costs), _search_lanes(machine, costs)) else None
    except Exception:  # numba's errors have no common root
        return None


def _search_lanes(machine: Machine, costs: np.ndarray) -> np.ndarray:
    """(T, 2, 2, 1, n) int16 costs by quantizer and parity -> (T, n) branches."""
    length, count, states = len(costs), costs.shape[-1], machine.states
    came_even = machine.came[:states]
    far = np.int16(MAX_BITS * COST_LIMIT)
    total = np.full((states, count), far)
    total[0] = 0
    gathered, even, odd = (np.empty_like(total) for _ in range(3))
    # came_even lists the states that come from quantizer 0 first: [quantizer, which, lane]. To several states at a time
    # numpy adds costs faster than to few lanes.
    together = 1 << max(0, min(states // 2, ROW // count).bit_length() - 1)
    costs = np.tile(costs, together)
    by_quantizer = [x.reshape(2, states // 2 // together, together * count) for x in (gathered, even, odd)]
    # Whether the odd way was cheaper: a bit for each state and lane.
    cheaper = np.empty((length, states * count // 8), np.uint8)
    for t in range(length):
        np.take(total, came_even, axis=0, out=gathered, mode="clip")
        np.add(by_quantizer[0], costs[t, :, 0], out=by_quantizer[1])
        np.add(by_quantizer[0], costs[t, :, 1], out=by_quantizer[2])
        np.take(odd, machine.twins, axis=0, out=gathered, mode="clip")
        cheaper[t] = np.packbits(gathered < even, bitorder="little")
        np.minimum(even, gathered, out=total)
        if t < MAX_BITS:
            np.minimum(total, far, out=total)
        if t % REBASE == REBASE - 1:
            total -= total.min(0)
    state = total.argmin(0)
    lane = np.arange(count)
    branches = np.empty((length, count), np.int64)
    for t in range(length - 1, -1, -1):
        place = state * count + lane
        parity = (cheaper[t].take(place >> 3) >> (place & 7)) & 1
        state = machine.came.take(state + states * parity)
        branches[t] = 2 * (state & 1) + parity
    return branches
