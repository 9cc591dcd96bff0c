"""Trellis-coded quantization: two quantizers, interleaved, and a state machine that says which of them is in force.

In units of half a step, one quantizer has the even levels, the other the odd ones and zero:

    quantizer 0    ... -4    -2     0     2     4 ...       level = 2 k
    quantizer 1    ...  -3    -1    0    1     3  ...       level = 2 k - sign(k)

The symbol k is what is coded. Its parity drives a state machine of 256 states, and the state chooses the quantizer of
the next symbol. So a symbol costs what one of a uniform quantizer with a whole step would, but the values that a
sequence can take lie more densely: by choosing the whole sequence of symbols at once (Viterbi), the encoder gets about
1.3 dB less error at the same rate, of the 1.53 that no quantizer can exceed at high rates. A decoder pays nothing for
the number of states. Sources: Marcellin & Fischer 1990, "Trellis coded quantization of memoryless and Gauss-Markov
sources"; Schwarz et al. 2019, "Hybrid video coding with trellis-coded quantization", whose two quantizers these are
(VVC has them with four states); the machine is Ungerboeck's of 256 states for amplitude modulation (1987,
"Trellis-coded modulation with redundant signal sets, part II", table I).

Where the prior is all but certain, at scale index 0, nothing is coded and the level is zero. The other symbols of a
layer, in the order (channel, row, column), are dealt to lanes in turns, as cards are: of n lanes, lane j gets symbols
j, j + n, j + 2 n and so on. Lanes are independent, and each starts in state 0, where there is no choice of paths yet;
so they are long, and what is certain, which leaves no choice either, takes no place in them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .rate import interval_bits

STATES = 256  # a state's lowest bit is its quantizer
_QUANTIZER_TAPS, _PARITY_TAPS = 0o515 >> 1, 0o362 >> 1  # of the code's parity checks, without the newest bit
LENGTH = 1024  # symbols of a lane, at least, if there are so many: a lane loses at its start
CHUNK = 1024  # lanes whose costs a CPU computes at a time, so that they stay in its caches
SYMBOL_LIMIT = 16383  # of |k|, so that levels are int16
ZERO_EDGE = 0.2  # in steps: where the zero of quantizer 1 ends, for a rate that knows nothing of neighbours (measured)
WEIGHT = 18.0  # bits per squared step that the encoder gives for less error


def _next(state: np.ndarray, parity: np.ndarray) -> np.ndarray:
    """A shift register with feedback, from the quantizer and from the symbol."""
    return (state >> 1) ^ ((state & 1) * _QUANTIZER_TAPS) ^ (parity * _PARITY_TAPS)


NEXT = _next(np.arange(STATES)[:, None], np.arange(2)).astype(np.uint8)  # [state, parity]
# Two states of the same quantizer lead to a state, one by an even symbol, the other by an odd one.
CAME_EVEN, CAME_ODD = (np.argsort(NEXT[:, parity]) for parity in (0, 1))  # (STATES,) each: from which state
_CAME = np.concatenate((CAME_EVEN, CAME_ODD))  # [state + STATES * parity]
_TWIN = np.argsort(CAME_EVEN)[CAME_ODD]  # an odd symbol leads to _TWIN[t] from where an even one leads to t


def is_coded(scale_index: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Where there is a symbol to code. scale_index: of any shape, whole or, in training, continuous."""
    return scale_index >= 0.5


def lanes_of(count: int) -> tuple[int, int]:
    """Steps T and lanes n of so many symbols: symbol i is that of lane i mod n at step i div n."""
    lanes = max(1, count // LENGTH)
    return -(-count // lanes), lanes


def dealt(symbols: Tensor) -> Tensor:
    """(N,) -> (T, n): which lane has which symbol at each step; the last step is filled up with zeros."""
    steps, lanes = lanes_of(len(symbols))
    return F.pad(symbols, (0, steps * lanes - len(symbols))).view(steps, lanes)


def symbols_of(levels: Tensor) -> Tensor:
    """k of levels, of either quantizer."""
    return torch.sign(levels) * ((levels.abs() + 1) / 2).floor()


def level_bits(levels: Tensor, shifted: Tensor, scale_index: Tensor) -> Tensor:
    """Information, in bits, of levels under a Gaussian whose intervals end half way between a quantizer's values.

    levels: in half steps. shifted: where quantizer 1 is in force. All of the same shape.
    """
    k = symbols_of(levels.float()).abs()
    low = torch.where(shifted, torch.where(k < 1, -ZERO_EDGE, (k - 1).clamp_min(ZERO_EDGE)), k - 0.5)
    high = torch.where(shifted, k.clamp_min(ZERO_EDGE), k + 0.5)
    return interval_bits(low, high, scale_index)


@torch.no_grad()
def quantize(residual: Tensor, scale_index: Tensor) -> tuple[Tensor, Tensor]:
    """The levels of least WEIGHT * error^2 + bits, with bits under the Gaussian of each symbol's scale.

    Considered are, of either parity, the symbols nearest to the residuals, and zero. What is not coded is zero.

    residual: (B, c, h, w), in steps; what is not a number counts as zero. The lanes are those of all B together.
    scale_index: of the same shape. Returns levels, in half steps, in the type of the residual, and (bool) where
    quantizer 1 was in force.
    """
    limit = SYMBOL_LIMIT - 2.0
    coded = is_coded(scale_index)
    signed = residual[coded].float().nan_to_num(0.0, limit, -limit).clamp(-limit, limit)  # (N,)
    levels, shifted = torch.zeros_like(residual), torch.zeros_like(coded)
    if len(signed) == 0:
        return levels, shifted
    size, index = dealt(signed.abs()), dealt(scale_index[coded].float())
    found, odd = torch.empty_like(size), torch.empty_like(size, dtype=torch.bool)
    lanes = size.shape[1]
    chunk = CHUNK if signed.device.type == "cpu" else lanes
    for first in range(0, lanes, chunk):
        some = slice(first, first + chunk)
        found[:, some], odd[:, some] = _search(size[:, some], index[:, some])
    # Not sign(signed): a residual of zero may become a level that is not, to steer the state.
    found = found.flatten()[: len(signed)]
    levels[coded] = torch.where(signed < 0, -found, found).to(levels.dtype)
    shifted[coded] = odd.flatten()[: len(signed)]
    return levels, shifted


def _search(size: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Viterbi. (T, n) magnitudes and scale indices -> (T, n) magnitudes of levels, and where quantizer 1 is used."""
    levels, costs = _branches(size, index)  # (T, 4, n) each
    branches = _search_of(size.device)(costs)  # (T, n)
    return levels.gather(1, branches[:, None])[:, 0], branches >= 2


@lru_cache
def _search_of(device: torch.device) -> Callable[[Tensor], Tensor]:
    """A device's fastest search: (T, 4, n) costs of the branches -> (T, n) int64, the branches to take."""
    if device.type == "cpu":
        return _integer_search
    try:
        from .kernels.viterbi import search

        costs = torch.rand(9, 4, 5, generator=torch.Generator().manual_seed(0)).to(device)
        return search if torch.equal(search(costs), _plain_search(costs)) else _plain_search
    except Exception:  # no Triton, or one that does not work here; its errors have no common root
        return _plain_search


def _plain_search(costs: Tensor) -> Tensor:
    """(T, 4, n) costs of the branches -> (T, n) int64, the branch to take at every step: what all searches do.

    A branch is 2 * quantizer + parity.
    """
    length, _, count = costs.shape
    came = torch.from_numpy(_CAME).to(costs.device)
    branch = 2 * (came & 1) + (torch.arange(2 * STATES, device=costs.device) >= STATES)
    total = torch.full((STATES, count), 1e9, device=costs.device)
    total[0] = 0.0
    odd = torch.empty(length, STATES, count, dtype=torch.bool, device=costs.device)  # whether that way was cheaper
    for t in range(length):
        ways = total.index_select(0, came).add_(costs[t].index_select(0, branch))  # (2 * STATES, n)
        torch.lt(ways[STATES:], ways[:STATES], out=odd[t])
        total = torch.minimum(ways[:STATES], ways[STATES:])
    state = total.argmin(0, keepdim=True)  # (1, n)
    branches = torch.empty(length, 1, count, dtype=torch.long, device=costs.device)
    for t in range(length - 1, -1, -1):
        way = state + STATES * odd[t].gather(0, state)
        branches[t] = branch.take(way)
        state = came.take(way)
    return branches[:, 0]


COST_UNIT = 1 / 32  # bits
COST_LIMIT = 2000  # units by which a branch may cost more than the cheapest of its step
REBASE = 8  # steps after which the totals are counted anew from their minimum
LANES = 96  # searched at a time: 24 MiB, few enough for the allocator to keep them for the next


def _integer_search(costs: Tensor) -> Tensor:
    """`_plain_search` for CPUs, in 16-bit integers: three times as fast, for a few millionths of the cost.

    Only what a branch costs more than its step's cheapest matters. Within eight steps any state can be reached from
    any other, so totals differ by 8 * COST_LIMIT at most, and 16 bits hold them between two rebases.
    """
    length, _, count = costs.shape
    units = ((costs - costs.amin(1, keepdim=True)) * (1 / COST_UNIT) + 0.5).clamp_(max=COST_LIMIT).to(torch.int16)
    units = units.view(length, 2, 2, 1, count).numpy()  # [t, quantizer, parity]
    parts = [_search_lanes(units[..., first : first + LANES]) for first in range(0, count, LANES)]
    return torch.from_numpy(np.concatenate(parts, 1))


def _search_lanes(costs: np.ndarray) -> np.ndarray:
    """(T, 2, 2, 1, n) int16 costs by quantizer and parity -> (T, n) branches."""
    length, count, half = len(costs), costs.shape[-1], STATES // 2
    total = np.full((STATES, count), 8 * COST_LIMIT, np.int16)
    total[0] = 0
    gathered, even, odd = (np.empty_like(total) for _ in range(3))
    # CAME_EVEN lists the states that come from quantizer 0 first: [quantizer, which, lane].
    by_quantizer = [x.reshape(2, half, count) for x in (gathered, even, odd)]
    cheaper = np.empty((length, STATES, count), bool)  # whether the odd way was
    for t in range(length):
        np.take(total, CAME_EVEN, axis=0, out=gathered, mode="clip")
        np.add(by_quantizer[0], costs[t, :, 0], out=by_quantizer[1])
        np.add(by_quantizer[0], costs[t, :, 1], out=by_quantizer[2])
        np.take(odd, _TWIN, axis=0, out=gathered, mode="clip")
        np.less(gathered, even, out=cheaper[t])
        np.minimum(even, gathered, out=total)
        if t % REBASE == REBASE - 1:
            total -= total.min(0)
    state = total.argmin(0)
    lane = np.arange(count)
    branches = np.empty((length, count), np.int64)
    for t in range(length - 1, -1, -1):
        parity = cheaper[t, state, lane]
        state = _CAME[state + STATES * parity]
        branches[t] = 2 * (state & 1) + parity
    return branches


def _cost(size: Tensor, level: Tensor, shifted: Tensor, index: Tensor) -> Tensor:
    return WEIGHT * (size - level / 2).square() + level_bits(level, shifted, index)


def _branches(size: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Per branch, the level to take and its cost: (T, n) twice -> (T, 4, n) twice. The sign is that of the residual."""
    levels, costs = [], []
    zero = torch.zeros_like(size)
    for quantizer in (0, 1):
        shifted = torch.full_like(size, quantizer, dtype=torch.bool)
        middle = size + quantizer / 2  # the levels of this quantizer are 2 k - quantizer, in half steps, and 0
        even = (4 * torch.round(middle / 2) - quantizer).clamp_min(0)
        odd = 4 * torch.floor(middle / 2) + 2 - quantizer
        even_cost, zero_cost = _cost(size, even, shifted, index), _cost(size, zero, shifted, index)
        levels += [torch.where(zero_cost < even_cost, zero, even), odd]
        costs += [torch.minimum(zero_cost, even_cost), _cost(size, odd, shifted, index)]
    return torch.stack(levels, 1), torch.stack(costs, 1)
