"""The cheapest path through a trellis (Viterbi), as tensors on any device: all lanes at once, step by step.

Branch 2 * quantizer + parity stands for a symbol of that parity where that quantizer is in force.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from .machine import Machine, machine_of
from .search import COST_LIMIT, COST_UNIT, search_units

KERNEL_BITS = 12  # of the largest machine that the kernel for CUDA searches


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
    """`plain_search` for CPUs, in 16-bit integers: several times as fast, for a few millionths of the cost."""
    return _search_units(machine, _units(costs))


def _units(costs: Tensor) -> Tensor:
    """(T, 4, n) float32 -> int16, in COST_UNITs, by which each branch costs more than its step's cheapest."""
    return ((costs - costs.amin(1, keepdim=True)) * (1 / COST_UNIT) + 0.5).clamp_(max=COST_LIMIT).to(torch.int16)


def _search_units(machine: Machine, units: Tensor) -> Tensor:
    """(T, 4, n) int16 -> (T, n) int64."""
    return torch.from_numpy(search_units(machine, units.numpy(), torch.get_num_threads()))
