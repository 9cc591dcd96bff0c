"""The search of `viterbi.py` as one kernel of Triton, for CUDA: torch alone would launch thousands a layer.

Only additions and comparisons of float32, in the order of the plain search, so the same path.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..machine import Machine
from .convolve import on


@triton.jit
def _viterbi(costs, came, ways, branches, length, count, STATES: tl.constexpr):
    """One lane. costs (T, 4, n) float32, came (2, STATES) int32 -> ways (n, T, STATES) uint8, branches (T, n) uint8."""
    lane = tl.program_id(0)
    ways += lane.to(tl.int64) * length * STATES
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
        tl.store(ways + t * STATES + state, (odd < even).to(tl.uint8))
        total = tl.minimum(even, odd)
    tl.debug_barrier()  # what other threads stored is read below
    last = tl.argmin(total, 0)
    for back in range(length):
        t = length - 1 - back
        parity = tl.load(ways + t * STATES + last).to(tl.int32)
        last = tl.load(came + STATES * parity + last)
        tl.store(branches + t * count + lane, (2 * (last & 1) + parity).to(tl.uint8))


@lru_cache
def _came(trellis: Machine, device: torch.device) -> Tensor:
    """(2, S) int32: from which state an even and an odd symbol come."""
    return torch.from_numpy(np.stack((trellis.came_even, trellis.came_odd)).astype(np.int32)).to(device)


def search(trellis: Machine, costs: Tensor) -> Tensor:
    """The branch taken at every step: (T, 4, n) contiguous float32 on a GPU -> (T, n) int64."""
    length, _, count = costs.shape
    ways = torch.empty(count, length, trellis.states, dtype=torch.uint8, device=costs.device)
    branches = torch.empty(length, count, dtype=torch.uint8, device=costs.device)
    with on(costs.device):
        _viterbi[(count,)](costs, _came(trellis, costs.device), ways, branches, length, count, trellis.states)
    return branches.long()
