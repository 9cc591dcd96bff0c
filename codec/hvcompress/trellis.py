"""Trellis-coded quantization: two quantizers, interleaved, and a state machine that says which of them is in force.

In units of half a step, one quantizer has the even levels, the other the odd ones and zero:

    quantizer 0    ... -4    -2     0     2     4 ...       level = 2 k
    quantizer 1    ...  -3    -1    0    1     3  ...       level = 2 k - sign(k)

The symbol k is what is coded. Its parity drives a state machine of eight states, and the state chooses the quantizer of
the next symbol. So a symbol costs what one of a uniform quantizer with a whole step would, but the values that a
sequence can take lie more densely: by choosing the whole sequence of symbols at once (Viterbi), the encoder gets about
1 dB less error at the same rate. Sources: Marcellin & Fischer 1990, "Trellis coded quantization of memoryless and
Gauss-Markov sources"; Schwarz et al. 2019, "Hybrid video coding with trellis-coded quantization", whose form this is
(VVC has it with four states).

A layer (c, h, w) is split into lanes: `positions_of(c)` neighbouring positions in raster order make one lane, whose
sequence runs over the positions and, at each of them, over the channels; it starts in state 0. Lanes are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .rate import interval_bits

NEXT = ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5))  # state, parity of k -> next state
STATES = len(NEXT)  # a state's lowest bit is its quantizer
LENGTH = 128  # symbols of a lane, about: short sequences lose at their start, where there is no choice of states
SYMBOL_LIMIT = 16383  # of |k|, so that levels are int16
ZERO_EDGE = 0.2  # in steps: where the zero of quantizer 1 ends, for a rate that knows nothing of neighbours (measured)
WEIGHT = 18.0  # bits per squared step that the encoder gives for less error
CHUNK = 2048  # lanes that a CPU searches at a time, so that they stay in its caches

# The two ways into a state: from which state, and by which branch (2 * quantizer + parity).
_WAYS = [[(s, 2 * (s & 1) + p) for s in range(STATES) for p in (0, 1) if NEXT[s][p] == to] for to in range(STATES)]
_FROM = [ways[way][0] for way in (0, 1) for ways in _WAYS]
_BRANCH = [ways[way][1] for way in (0, 1) for ways in _WAYS]


def positions_of(channels: int) -> int:
    """How many neighbouring positions make a lane."""
    return max(1, LENGTH // channels)


def to_lanes(layer: Tensor) -> Tensor:
    """(B, c, h, w) -> (symbols of a lane, lanes); the last lane of an image is filled up with zeros."""
    batch, channels, height, width = layer.shape
    size = positions_of(channels)
    count = -(-height * width // size)
    flat = F.pad(layer.reshape(batch, channels, height * width), (0, count * size - height * width))
    return flat.view(batch, channels, count, size).permute(3, 1, 0, 2).reshape(size * channels, batch * count)


def from_lanes(lanes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `to_lanes`."""
    batch, channels, height, width = shape
    size = positions_of(channels)
    count = -(-height * width // size)
    flat = lanes.view(size, channels, batch, count).permute(2, 1, 3, 0).reshape(batch, channels, count * size)
    return flat[:, :, : height * width].reshape(shape)


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

    Considered are, of either parity, the symbols nearest to the residuals, and zero.

    residual: (B, c, h, w), in steps; what is not a number counts as zero. scale_index: of the same shape. Returns
    levels, in half steps, in the type of the residual, and (bool) where quantizer 1 was in force.
    """
    limit = SYMBOL_LIMIT - 2.0
    signed = to_lanes(residual.float().nan_to_num(0.0, limit, -limit).clamp(-limit, limit))
    index = to_lanes(scale_index.float())
    levels, shifted = torch.empty_like(signed), torch.empty_like(signed, dtype=torch.bool)
    chunk = CHUNK if signed.device.type == "cpu" else max(1, signed.shape[1])
    for first in range(0, signed.shape[1], chunk):
        lanes = slice(first, first + chunk)
        levels[:, lanes], shifted[:, lanes] = _search(signed[:, lanes].abs(), index[:, lanes])
    # Not sign(signed): a residual of zero may become a level that is not, to steer the state.
    levels = torch.where(signed < 0, -levels, levels)
    return from_lanes(levels, residual.shape).to(residual.dtype), from_lanes(shifted, residual.shape)


def _search(size: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Viterbi. (T, n) magnitudes and scale indices -> (T, n) magnitudes of levels, and where quantizer 1 is used."""
    levels, costs = _branches(size, index)  # (T, 4, n) each
    branches = (_kernel(size.device) or _plain_search)(costs, _FROM, _BRANCH)  # (T, n)
    return levels.gather(1, branches[:, None])[:, 0], branches >= 2


@lru_cache
def _kernel(device: torch.device) -> Callable | None:
    """The search as one kernel, where there is Triton."""
    if device.type != "cuda":
        return None
    try:
        from .kernels.viterbi import search
    except ImportError:
        return None
    return search


def _plain_search(costs: Tensor, came_from: list[int], by_branch: list[int]) -> Tensor:
    """(T, 4, n) costs of the branches -> (T, n) int64, the branch to take at every step.

    came_from, by_branch: of the two ways into each state, which state and which branch they come from, [state + 8 way].
    """
    length, _, count = costs.shape
    from_state = torch.tensor(came_from, device=costs.device)
    branch_of = torch.tensor(by_branch, device=costs.device)
    total = torch.full((STATES, count), 1e9, device=costs.device)
    total[0] = 0.0
    second = torch.empty(length, STATES, count, dtype=torch.bool, device=costs.device)  # which way in was cheaper
    for t in range(length):
        ways = total.index_select(0, from_state).add_(costs[t].index_select(0, branch_of))  # (2 * STATES, n)
        torch.lt(ways[STATES:], ways[:STATES], out=second[t])
        total = torch.minimum(ways[:STATES], ways[STATES:])
    state = total.argmin(0, keepdim=True)  # (1, n)
    branches = torch.empty(length, 1, count, dtype=torch.long, device=costs.device)
    for t in range(length - 1, -1, -1):
        way = state + STATES * second[t].gather(0, state)
        branches[t] = branch_of.take(way)
        state = from_state.take(way)
    return branches[:, 0]


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
