"""Named allocations of the bits to the layers: quality offsets for any model, made from its layers' strides."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import UsageError

REACH = 14  # largest offset given here, a beta of about 2 or 1/2: models are trained with offsets up to this
# Name -> which way the coarse layers go: -1 is a beta below 1, more bits for them. The fine layers go the other way.
ALLOCATIONS = {"hyperprior": -1, "balanced": 0, "detail": 1}


def allocation_offsets(allocation: str, strides: Sequence[int]) -> tuple[int, ...]:
    """Quality offset per layer, within +-REACH.

    The coarsest and the finest stride get the full offset, with opposite signs; between them it is linear in the
    logarithm of the stride, so layers of equal stride have equal offsets. With a single stride all offsets are zero.

    allocation: "hyperprior" (more bits for the coarse layers), "balanced" (all betas 1) or "detail" (more bits for the
    fine ones). strides: of the layers, coarse to fine, in pixels. Raises UsageError for another name.
    """
    if allocation not in ALLOCATIONS:
        raise UsageError(f"an allocation must be one of {', '.join(ALLOCATIONS)}, not {allocation!r}")
    octaves = [math.log2(stride) for stride in strides]
    middle, half = (max(octaves) + min(octaves)) / 2, (max(octaves) - min(octaves)) / 2
    # The middle of a stride range is zero for either direction: the sign comes after the rounding.
    return tuple(ALLOCATIONS[allocation] * round(REACH * (octave - middle) / (half or 1)) for octave in octaves)
