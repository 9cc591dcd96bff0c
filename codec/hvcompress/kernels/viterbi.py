"""The search of `trellis.py` as one kernel of Triton, for CUDA: torch alone would launch a thousand small ones a layer.

Only additions and comparisons of float32, in the order of the plain search, so the same path.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 64  # of a program


@triton.jit
def _cheaper(first, second):
    """The cheaper of two ways into a state, and whether that is the second."""
    return tl.minimum(first, second), (second < first).to(tl.int32)


@triton.jit
def _viterbi(costs, ways, branches, length, count, FROM: tl.constexpr, BRANCH: tl.constexpr, LANES: tl.constexpr):
    """costs (T, 4, n) float32 -> ways (T, n) uint8, a bit per state, and branches (T, n) uint8.

    FROM, BRANCH: which state and which branch a way comes from, 3 and 2 bits at index state + 8 * way. The additions
    below are those tables written out.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    there = lane < count
    s0 = tl.zeros((LANES,), tl.float32)
    s1 = tl.full((LANES,), 1e9, tl.float32)
    s2 = tl.full((LANES,), 1e9, tl.float32)
    s3 = tl.full((LANES,), 1e9, tl.float32)
    s4 = tl.full((LANES,), 1e9, tl.float32)
    s5 = tl.full((LANES,), 1e9, tl.float32)
    s6 = tl.full((LANES,), 1e9, tl.float32)
    s7 = tl.full((LANES,), 1e9, tl.float32)
    for t in range(length):
        at = costs + t * 4 * count + lane
        c0 = tl.load(at, there, 0.0)
        c1 = tl.load(at + count, there, 0.0)
        c2 = tl.load(at + 2 * count, there, 0.0)
        c3 = tl.load(at + 3 * count, there, 0.0)
        n0, w0 = _cheaper(s0 + c0, s4 + c1)
        n1, w1 = _cheaper(s2 + c0, s6 + c1)
        n2, w2 = _cheaper(s0 + c1, s4 + c0)
        n3, w3 = _cheaper(s2 + c1, s6 + c0)
        n4, w4 = _cheaper(s3 + c3, s5 + c2)
        n5, w5 = _cheaper(s1 + c2, s7 + c3)
        n6, w6 = _cheaper(s3 + c2, s5 + c3)
        n7, w7 = _cheaper(s1 + c3, s7 + c2)
        s0, s1, s2, s3, s4, s5, s6, s7 = n0, n1, n2, n3, n4, n5, n6, n7
        bits = w0 | w1 << 1 | w2 << 2 | w3 << 3 | w4 << 4 | w5 << 5 | w6 << 6 | w7 << 7
        tl.store(ways + t * count + lane, bits.to(tl.uint8), there)
    state = tl.zeros((LANES,), tl.int64)
    best = s0
    state, best = tl.where(s1 < best, 1, state), tl.minimum(best, s1)
    state, best = tl.where(s2 < best, 2, state), tl.minimum(best, s2)
    state, best = tl.where(s3 < best, 3, state), tl.minimum(best, s3)
    state, best = tl.where(s4 < best, 4, state), tl.minimum(best, s4)
    state, best = tl.where(s5 < best, 5, state), tl.minimum(best, s5)
    state, best = tl.where(s6 < best, 6, state), tl.minimum(best, s6)
    state, best = tl.where(s7 < best, 7, state), tl.minimum(best, s7)
    for back in range(length):
        t = length - 1 - back
        bits = tl.load(ways + t * count + lane, there, 0).to(tl.int64)
        way = state + 8 * ((bits >> state) & 1)
        tl.store(branches + t * count + lane, ((BRANCH >> (2 * way)) & 3).to(tl.uint8), there)
        state = (FROM >> (3 * way)) & 7


def _packed(values: list[int], bits: int) -> int:
    return sum(value << bits * place for place, value in enumerate(values))


def search(costs: Tensor, came_from: list[int], by_branch: list[int]) -> Tensor:
    """The branch taken at every step: (T, 4, n) contiguous float32 on a GPU -> (T, n) int64.

    came_from, by_branch: of the two ways into each state, which state and which branch they come from, [state + 8 way].
    """
    length, _, count = costs.shape
    ways = torch.empty(length, count, dtype=torch.uint8, device=costs.device)
    branches = torch.empty_like(ways)
    grid = (triton.cdiv(count, LANES),)
    _viterbi[grid](costs, ways, branches, length, count, _packed(came_from, 3), _packed(by_branch, 2), LANES)
    return branches.long()
