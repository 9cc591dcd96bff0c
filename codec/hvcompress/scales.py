"""The table of scales: log-spaced standard deviations, in units of the quantization step."""

from __future__ import annotations

import math

SCALE_LEVELS = 64
SCALE_MIN, SCALE_MAX = 0.08, 80.0
MIN_PROBABILITY = 2.0**-24  # bounds the cost of what a Gaussian holds for impossible; an escape costs about as much
LOG_SCALE_STEP = math.log(SCALE_MAX / SCALE_MIN) / (SCALE_LEVELS - 1)


def scale(index: int) -> float:
    """Standard deviation of a scale index 0..SCALE_LEVELS-1."""
    return SCALE_MIN * math.exp(index * LOG_SCALE_STEP)
