"""Trellis-coded quantization: two quantizers, interleaved, and a state machine that says which of them is in force.

In units of half a step, one quantizer has the even levels, the other the odd ones and zero:

    quantizer 0    ... -4    -2     0     2     4 ...       level = 2 k
    quantizer 1    ...  -3    -1    0    1     3  ...       level = 2 k - sign(k)

The symbol k is what is coded. Its parity drives a state machine of 256 to 65,536 states (`machine.py`), and the state
chooses the quantizer of the next symbol. So a symbol costs what one of a uniform quantizer with a whole step would, but
the values that a sequence can take lie more densely: by choosing the whole sequence of symbols at once (`viterbi.py`),
the encoder gets 1.3 dB less error and more at the same rate, of the 1.53 that no quantizer can exceed at high rates.
Sources: Marcellin & Fischer 1990, "Trellis coded quantization of memoryless and Gauss-Markov sources"; Schwarz et al.
2019, "Hybrid video coding with trellis-coded quantization", whose two quantizers these are (VVC has them with four
states).

Where the prior is all but certain, at scale index 0, nothing is coded and the level is zero. The other symbols of a
layer, in the order (channel, row, column), are dealt to lanes in turns, as cards are: of n lanes, lane j gets symbols
j, j + n, j + 2 n and so on. Lanes are independent, and each starts in state 0, where there is no choice of paths yet;
so they are long, and what is certain, which leaves no choice either, takes no place in them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .machine import TRAINED_BITS
from .rate import interval_bits
from .search import WEIGHT
from .symbols import SYMBOL_LIMIT, ZERO_EDGE, is_coded, lanes_of
from .viterbi import search_on

CHUNK = 1024  # lanes whose costs a CPU computes at a time, so that they stay in its caches


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
def quantize(residual: Tensor, scale_index: Tensor, state_bits: int = TRAINED_BITS) -> tuple[Tensor, Tensor]:
    """The levels of least WEIGHT * error^2 + bits, with bits under the Gaussian of each symbol's scale.

    Considered are, of either parity, the symbols nearest to the residuals, and zero. What is not coded is zero.

    residual: (B, c, h, w), in steps; what is not a number counts as zero. The lanes are those of all B together.
    scale_index: of the same shape. state_bits: of the machine of 2^state_bits states.
    Returns levels, in half steps, in the type of the residual, and (bool) where quantizer 1 was in force.
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
        found[:, some], odd[:, some] = _cheapest(size[:, some], index[:, some], state_bits)
    # Not sign(signed): a residual of zero may become a level that is not, to steer the state.
    found = found.flatten()[: len(signed)]
    levels[coded] = torch.where(signed < 0, -found, found).to(levels.dtype)
    shifted[coded] = odd.flatten()[: len(signed)]
    return levels, shifted


def _cheapest(size: Tensor, index: Tensor, state_bits: int) -> tuple[Tensor, Tensor]:
    """(T, n) magnitudes and scale indices -> (T, n) magnitudes of levels, and where quantizer 1 is used."""
    levels, costs = _branches(size, index)  # (T, 4, n) each
    branches = search_on(size.device, state_bits)(costs)  # (T, n)
    return levels.gather(1, branches[:, None])[:, 0], branches >= 2


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
        even_cost, zero_cost = (_cost(size, level, shifted, index) for level in (even, zero))
        levels += [torch.where(zero_cost < even_cost, zero, even), odd]
        costs += [torch.minimum(zero_cost, even_cost), _cost(size, odd, shifted, index)]
    return torch.stack(levels, 1), torch.stack(costs, 1)
