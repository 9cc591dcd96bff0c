"""Segments, rows of a layer that are coded together, and the hash of all that a file's segments say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from .kernels.copies import fetch
from .network import Prior
from .rows import cut


@dataclass(frozen=True)
class Segment:
    """Rows of a layer that are coded together."""

    layer: int  # 0 is the coarsest
    levels: np.ndarray  # (c, h, w) int16
    indices: np.ndarray  # (c, h, w) uint8, of the scales
    z: Tensor  # (1, c, h, w) int16, the latent in units of 2^-10


def rows_of(prior: Prior, first: int, last: int) -> Prior:
    """What concerns rows first..last-1 of the layer, without the feature; itself where that is all."""
    a, b = first - prior.top, last - prior.top
    mean, index = cut(prior.mean, a, b), cut(prior.scale_index, a, b)
    return replace(prior, top=first, feature=None, mean=mean, scale_index=index)


def _units_bytes(x: Tensor) -> bytes:
    """Units, multiples of 2^-10, in raster order, as little-endian int32."""
    return x.cpu().contiguous().numpy().astype("<i4").tobytes()


class Layers:
    """Arrays of whole layers, filled from segments as they come, of each layer from the top."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], kind: type):
        """shapes: (c, h, w) of each layer; what of a segment lies to the right or below is left out."""
        self.arrays = [np.empty(shape, kind) for shape in shapes]
        self._filled = [0] * len(shapes)

    def add(self, layer: int, part: np.ndarray) -> None:
        """part: (c, rows, w)."""
        array, top = self.arrays[layer], self._filled[layer]
        inside = part[:, : max(0, array.shape[1] - top), : array.shape[2]]
        array[:, top : top + inside.shape[1]] = inside
        self._filled[layer] += part.shape[1]


class LatentHash:
    """SHA-256 of the SHA-256 of each layer's latents, which are little-endian int32 multiples of 2^-10.

    A layer's segments are hashed from top to bottom; layers may be hashed in turns.
    """

    def __init__(self, layers: int):
        self._digests = [hashlib.sha256() for _ in range(layers)]
        self._coming: list[tuple[int, Callable[[], Tensor]]] = []

    def update(self, layer: int, z: Tensor) -> None:
        """z: (1, c, h, w) in units, a segment of a layer, which may come from a GPU until it is hashed."""
        self._coming.append((layer, fetch(z)))

    def catch_up(self) -> None:
        """Hash what `update` was given: when it has arrived, and the device has been given something else to do."""
        coming, self._coming = self._coming, []
        for layer, wait in coming:
            self._digests[layer].update(_units_bytes(wait()))

    def digest(self) -> bytes:
        self.catch_up()
        return hashlib.sha256(b"".join(digest.digest() for digest in self._digests)).digest()
