"""The cheapest path through a trellis (Viterbi): all lanes at once, step by step.

Branch 2 * quantizer + parity stands for a symbol of that parity where that quantizer is in force.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from .forking import is_forked
from .machine import PARITY_CHECKS, Machine, machine_of

Search = Callable[[Machine, np.ndarray], np.ndarray]  # what `_search_lanes` is

COST_UNIT = 1 / 32  # bits
COST_LIMIT = 1450  # units by which a branch may cost more than the cheapest of its step
MAX_BITS = max(PARITY_CHECKS)
REBASE = 6  # steps after which the totals are counted anew from their minimum
LANES = 96  # searched at a time
TOTALS = 1 << 17  # of so many lanes times states at most, which bounds a thread's memory to some 40 MiB
THREADS = 8  # that search at a time, at most
KERNEL_BITS = 12  # of the largest machine that the kernel for CUDA searches
PATIENCE = 1 << 29  # states times symbols that are searched before it is worth the time to get the loop compiled

_searched = 0  # so many, by the loops of numpy
_compiled_searches: dict[Machine, Search | None] = {}


@lru_cache
def search_on(device: torch.device, state_bits: int) -> Callable[[Tensor], Tensor]:
    """A device's fastest search of the machine with 2^state_bits states.

    It takes (T, 4, n) float32, the costs of the branches, and returns (T, n) int64, the branches of the cheapest path.
    """
    machine = machine_of(state_bits)
    if device.type == "cpu":
        return partial(integer_search, machine)

    def on_cpu(costs: Tensor) -> Tensor:
        return _search_units(machine, _units(costs).cpu()).to(device)

    if state_bits > KERNEL_BITS:
        return on_cpu
    try:
        from .kernels.viterbi import search

        costs = torch.rand(40, 4, 5, generator=torch.Generator().manual_seed(0)).to(device)
        if torch.equal(search(machine, costs), plain_search(machine, costs)):
            return partial(search, machine)
    except Exception:  # no Triton, or one that does not work here; its errors have no common root
        pass
    return on_cpu


def plain_search(machine: Machine, costs: Tensor) -> Tensor:
    """(T, 4, n) costs of the branches -> (T, n) int64, the branch to take at every step: what all searches do."""
    length, _, count = costs.shape
    states = machine.states
    came = torch.from_numpy(machine.came).to(costs.device)
    branch = 2 * (came & 1) + (torch.arange(2 * states, device=costs.device) >= states)
    total = torch.full((states, count), 1e9, device=costs.device)
    total[0] = 0.0
    odd = torch.empty(length, states, count, dtype=torch.bool, device=costs.device)  # whether that way was cheaper
    for t in range(length):
        ways = total.index_select(0, came).add_(costs[t].index_select(0, branch))  # (2 * states, n)
        torch.lt(ways[states:], ways[:states], out=odd[t])
        total = torch.minimum(ways[:states], ways[states:])
    state = total.argmin(0, keepdim=True)  # (1, n)
    branches = torch.empty(length, 1, count, dtype=torch.long, device=costs.device)
    for t in range(length - 1, -1, -1):
        way = state + states * odd[t].gather(0, state)
        branches[t] = branch.take(way)
        state = came.take(way)
    return branches[:, 0]


def integer_search(machine: Machine, costs: Tensor) -> Tensor:
    """`plain_search` for CPUs, in 16-bit integers: several times as fast, for a few millionths of the cost.

    Only what a branch costs more than its step's cheapest matters. Within log2(states) <= MAX_BITS steps any state can
    be reached from any other, so from then on totals differ by MAX_BITS * COST_LIMIT at most. States that are not
    reached yet are kept there. 16 bits hold that, and what is added between two rebases.
    """
    return _search_units(machine, _units(costs))


def _units(costs: Tensor) -> Tensor:
    """(T, 4, n) float32 -> int16, in COST_UNITs, by which each branch costs more than its step's cheapest."""
    return ((costs - costs.amin(1, keepdim=True)) * (1 / COST_UNIT) + 0.5).clamp_(max=COST_LIMIT).to(torch.int16)


def _search_units(machine: Machine, units: Tensor) -> Tensor:
    """(T, 4, n) int16 -> (T, n) int64."""
    length, _, count = units.shape
    units = units.view(length, 2, 2, 1, count).numpy()  # [t, quantizer, parity]
    compiled, threads = _compiled(machine, length * count), min(torch.get_num_threads(), THREADS)
    lanes = -(-count // threads) if compiled else max(1, min(LANES, TOTALS // machine.states))
    chunks = [units[..., first : first + lanes] for first in range(0, count, lanes)]
    search = partial(compiled or _search_lanes, machine)
    if min(threads, len(chunks)) < 2:
        parts = list(map(search, chunks))
    else:  # numpy, and what is compiled, lets others run meanwhile
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(search, chunks))
    return torch.from_numpy(np.concatenate(parts, 1))


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
    # came_even lists the states that come from quantizer 0 first: [quantizer, which, lane].
    by_quantizer = [x.reshape(2, states // 2, count) for x in (gathered, even, odd)]
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
