"""The test that a model is put to before it codes: fixed symbols, of which every device must make the same.

Here is what it draws and what it remembers; `Codec.self_test` and `PortableDecoder.self_test` compute with it.
"""

from __future__ import annotations

import hashlib

import numpy as np

from .entropy import LayerCoder, path_of
from .errors import DeviceError
from .scales import SCALE_LEVELS

SIDES = 64, 128  # height and width of the pictures
QUALITIES = 10, 90  # of two pictures, of which the second goes through the range coder


class SelfTest:
    """Draws levels, codes some of them, and makes a digest of all that is told.

    Raises DeviceError where the range coder does not return what it was given.
    """

    def __init__(self, coder: LayerCoder):
        self._coder, self._digest = coder, hashlib.sha256()
        self._generator = np.random.Generator(np.random.PCG64(2026))
        # Each table, for odd and even symbols.
        self._there_and_back(np.repeat(np.arange(SCALE_LEVELS, dtype=np.uint8), 64).reshape(SCALE_LEVELS, 8, 8))

    def levels(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """(c, h, w) uint8 scale indices of a layer of both pictures -> (2, c, h, w) int16."""
        self.tell(low)  # the range coder has enough with one of the two: it is the same everywhere
        return np.stack((self._draw(low), self._there_and_back(high)))

    def tell(self, *values: np.ndarray) -> None:
        """Of scale indices their bytes, of everything else int32, little-endian."""
        for array in values:
            self._digest.update(array.astype("<i4" if array.dtype != np.uint8 else np.uint8).tobytes())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def _draw(self, indices: np.ndarray) -> np.ndarray:
        # Mostly small, a few large: clamps and escapes are exercised as well.
        small, large = (self._generator.integers(*span, indices.shape) for span in ((-2, 3), (0, 50)))
        return path_of(small * (1 + 600 * (large == 0)), indices)

    def _there_and_back(self, indices: np.ndarray) -> np.ndarray:
        levels = self._draw(indices)
        coded = self._coder.encode(levels, indices)
        if not np.array_equal(self._coder.decode(coded, indices), levels):
            raise DeviceError("the range coder does not return what it was given")
        self._digest.update(coded)
        self.tell(indices)
        return levels
