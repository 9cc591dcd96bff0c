"""Both ends of the network: pixels -> features of the encoder, and the last feature -> pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import plan
from .kernels.copies import fetch, send
from .network import PIXEL_STRIDE, Encoder, Synthesis, samples_of
from .plan import padded
from .rows import Rows


def to_tensor(pixels: np.ndarray, device: torch.device, first: int = 0, last: int | None = None) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H', W') float in [0, 1], edges repeated up to multiples of 64.

    first, last: only those rows of it.
    """
    height, width = pixels.shape[:2]
    last = padded(height) if last is None else last
    inside = send(torch.tensor(pixels[min(first, height - 1) : last]), device)
    image = inside.permute(2, 0, 1)[None].float() / 255.0
    image = F.pad(image, (0, padded(width) - width, 0, last - first - len(inside)), mode="replicate")
    return image.contiguous(memory_format=torch.channels_last)


class Features:
    """The encoder's features of a picture, made from top to bottom as they are asked for.

    The coarsest layer's first rows depend on much of a picture, and until the finest layer comes to them, their
    features wait. Those at the finest stride would take most memory by far: of a very large picture they are made a
    second time instead.
    """

    def __init__(self, encoder: Encoder, pixels: np.ndarray, quality: Tensor, finest: int):
        """pixels: (H, W, 3) uint8. quality: (1,). finest: the smallest stride that will be asked for."""
        self.height, self.width = (padded(side) for side in pixels.shape[:2])
        chunk = plan.chunk(self.height, self.width)
        wanted = [stride for stride in encoder.strides if stride >= finest]
        twice = self.height * self.width > plan.KEPT

        def features(kept: list[int]) -> dict[int, Rows]:
            image = Rows(self.height, lambda first, last: to_tensor(pixels, quality.device, first, last))
            return encoder.features(image, quality, kept, chunk)

        self._rows = features(wanted[1:] if twice else wanted)
        if twice:
            self._rows[finest] = features([finest])[finest]

    def take(self, stride: int, first: int, last: int) -> Tensor:
        """Rows first..last-1 of the feature at a stride: (1, C, last - first, W/s)."""
        return self._rows[stride].take(first, last)

    def forget_above(self, stride: int, row: int) -> None:
        """Drop what will not be asked for again at a stride."""
        self._rows[stride].forget_above(row)


class Painter:
    """Pixels from the last feature of the exact path, as soon as its rows are there, which are then forgotten."""

    def __init__(
        self,
        synthesis: Synthesis,
        h: Rows,
        quality: Tensor,
        size: tuple[int, int],
        gray: bool = False,
        rows: plan.Span | None = None,
        columns: slice = slice(None),
        bits: int = 8,
    ):
        """h: the feature (1, C, H'/8, W'/8), which may still grow. quality: (1,). size: H, W.

        gray: all planes become the rounded mean of the three. rows, columns: a part of the picture; else all of it.
        bits: per sample, 8 or 16.
        """
        self._synthesis, self._h, self._gray = synthesis, h, gray
        self._width, self._columns = size[1], columns
        self._height = padded(size[0]) // PIXEL_STRIDE
        chunk = plan.chunk(*map(padded, size))
        self._patches = synthesis.patches(h, quality, chunk)
        self._first, self._last = rows or (0, size[0])
        self._type, self._white = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
        self.pixels = np.empty((self._last - self._first, len(range(size[1])[columns]), 3), self._type)
        end = -(-self._last // PIXEL_STRIDE)
        step = chunk or end
        tops = range(self._first // PIXEL_STRIDE, end, step)
        self._bands = [(top, min(top + step, end)) for top in tops]  # rows of patches
        self._place: Callable[[], None] | None = None  # what `_start` returned for the last band

    def advance(self) -> None:
        """Make all pixels that the known rows suffice for; of a GPU's the last band may be on its way."""
        while self._bands and self._synthesis.rows_before(*self._bands[0], self._height)[1] <= self._h.known:
            place, self._place = self._place, self._start(*self._bands.pop(0))
            if place is not None:
                place()  # the band before, while this one is being computed
        if not self._bands and self._place is not None:
            self._place()
            self._place = None

    def _start(self, top: int, bottom: int) -> Callable[[], None]:
        """Have a band computed. What is returned waits for that, and puts it into its place."""
        samples = samples_of(self._patches.take(top, bottom), self._white)[0, :, :, : self._width]
        self._patches.forget_above(bottom)
        values = samples.to(torch.uint8) if self._type == np.uint8 else samples  # less to copy from a GPU
        values = values.permute(1, 2, 0)
        wait = fetch(values) if self._bands else values.cpu  # nothing is left to do meanwhile

        def place() -> None:
            band = wait().numpy()[:, self._columns]
            a, b = max(self._first, PIXEL_STRIDE * top), min(self._last, PIXEL_STRIDE * bottom)
            band = band[a - PIXEL_STRIDE * top : b - PIXEL_STRIDE * top]
            if self._gray:  # the network does not know that the planes should be equal
                band = np.rint(band.mean(2, keepdims=True))
            self.pixels[a - self._first : b - self._first] = band

        return place
