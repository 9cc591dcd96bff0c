"""What both sides know of the symbols of a layer: which there are, and in which lane each lies (`trellis.py`).

Without torch, for those who do without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 1024  # symbols of a lane, at least, if there are so many: a lane loses at its start
SYMBOL_LIMIT = 16383  # of |k|, so that levels are int16
ZERO_EDGE = 0.2  # in steps: where the zero of quantizer 1 ends, for a rate that knows nothing of neighbours (measured)


def is_coded(scale_index: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Where there is a symbol to code. scale_index: of any shape, whole or, in training, continuous."""
    return scale_index >= 0.5


def edge(k: int, quantizer: int) -> float:
    """Where the interval of |k| ends, in steps; as `trellis.level_bits` has it."""
    return k + 0.5 if quantizer == 0 else max(float(k), ZERO_EDGE)


def lanes_of(count: int) -> tuple[int, int]:
    """Steps T and lanes n of so many symbols: symbol i is that of lane i mod n at step i div n."""
    lanes = max(1, count // LENGTH)
    return -(-count // lanes), lanes
