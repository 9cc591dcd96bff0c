"""What the command line says about quality. The measures that need a library live in `benchmarks/`."""

from __future__ import annotations

import math

import numpy as np


def mean_squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """Of two pictures, over all samples of all three planes together, on the 0..255 scale. a, b: (H, W, 3) uint8."""
    for picture in (a, b):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
            raise ValueError(f"expected (H, W, 3) uint8, not {picture.shape} {picture.dtype}")
    if a.shape != b.shape:
        raise ValueError(f"pictures of different sizes: {a.shape} and {b.shape}")
    # Row by row in integers: exact, and without several copies of a large picture.
    squared = sum(int(np.square(x.astype(np.int32) - y).sum(dtype=np.int64)) for x, y in zip(a, b, strict=True))
    return squared / a.size


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures, over all samples of all three planes together.

    a, b: (H, W, 3) uint8. Equal pictures give infinity.

    >>> psnr(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8))
    0.0
    """
    error = mean_squared_error(a, b)
    return math.inf if error == 0 else 10.0 * math.log10(255.0**2 / error)
