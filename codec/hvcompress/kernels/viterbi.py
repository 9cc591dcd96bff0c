"""The search of `viterbi.py` as one kernel of Triton, for CUDA: torch alone would launch thousands a layer.

Only additions and comparisons of float32, in the order of the plain search, so the same path.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..machine import Machine
from .convolve import on

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 4):
    # Their compiler ends the whole process at a gather from a vector that several warps hold (triton #6958).
    raise ImportError("the search takes Triton 3.4 or newer")

WAYS = 1 << 28  # bytes of a GPU's memory for the ways that its lanes came, at most


@triton.jit(do_not_specialize=["length", "count"])
def _viterbi(costs, came, ways, branches, length, count, STATES: tl.constexpr):
    """One lane. costs (T, 4, n) float32, came (2, STATES) int32 -> branches (T, n) uint8.

    ways: (n, T, STATES / 8) uint8, in bit s mod 8 of byte s div 8 whether state s was reached by an odd symbol.
    """
    lane = tl.program_id(0)
    ways += lane.to(tl.int64) * length * (STATES // 8)
    state = tl.arange(0, STATES)
    from_even, from_odd = tl.load(came + state), tl.load(came + STATES + state)
    shifted = (from_even & 1) == 1  # both ways into a state come from the same quantizer
    total = tl.where(state == 0, 0.0, 1e9)
    for t in range(length):
        at = costs + t * 4 * count + lane
        even_cost = tl.where(shifted, tl.load(at + 2 * count), tl.load(at))
        odd_cost = tl.where(shifted, tl.load(at + 3 * count), tl.load(at + count))
        even = tl.gather(total, from_even, 0) + even_cost
        odd = tl.gather(total, from_odd, 0) + odd_cost
        bits = tl.reshape((odd < even).to(tl.int32), (STATES // 8, 8)) << tl.arange(0, 8)[None, :]
        tl.store(ways + t * (STATES // 8) + tl.arange(0, STATES // 8), tl.sum(bits, 1).to(tl.uint8))
        total = tl.minimum(even, odd)
    tl.debug_barrier()  # what other threads stored is read below
    last = tl.argmin(total, 0)
    for back in range(length):
        t = length - 1 - back
        parity = tl.load(ways + t * (STATES // 8) + (last >> 3)).to(tl.int32) >> (last & 7) & 1
        last = tl.load(came + STATES * parity + last)
        tl.store(branches + t * count + lane, (2 * (last & 1) + parity).to(tl.uint8))


@lru_cache
def _came(machine: Machine, device: torch.device) -> Tensor:
    """(2 S,) int32: from which state an even symbol comes, then from which an odd one."""
    return torch.from_numpy(machine.came).int().to(device)


def search(machine: Machine, costs: Tensor) -> Tensor:
    """The branch taken at every step: (T, 4, n) contiguous float32 on a GPU -> (T, n) int64."""
    length, _, count = costs.shape
    lanes = min(count, max(1, WAYS // (length * machine.states // 8)))
    ways = torch.empty(lanes, length, machine.states // 8, dtype=torch.uint8, device=costs.device)
    warps = max(4, machine.states // 256)  # 8 states a thread at most, or the totals would not fit its registers
    parts = []
    for some in costs.split(lanes, 2):
        number = some.shape[2]
        branches = torch.empty(length, number, dtype=torch.uint8, device=costs.device)
        with on(costs.device):
            came = _came(machine, costs.device)
            _viterbi[(number,)](
                some.contiguous(), came, ways, branches, length, number, machine.states, num_warps=warps
            )
        parts.append(branches)
    return torch.cat(parts, 1).long()
