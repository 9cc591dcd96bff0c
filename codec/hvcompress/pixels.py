"""Both ends of the network, band by band: pixels -> features of the encoder, and the last feature -> pixels."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import plan
from .network import MAX_STRIDE, PIXEL_STRIDE, Encoder, Synthesis
from .rows import Rows

_tf32 = threading.Lock()  # cuDNN's flags are global


def padded(size: int) -> int:
    """A side of the picture that the network sees."""
    return -(-size // MAX_STRIDE) * MAX_STRIDE


def to_tensor(pixels: np.ndarray, device: torch.device, first: int = 0, last: int | None = None) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H', W') float in [0, 1], edges repeated up to multiples of 64.

    first, last: only those rows of it.
    """
    height, width = pixels.shape[:2]
    last = padded(height) if last is None else last
    inside = torch.tensor(pixels[min(first, height - 1) : last], device=device)
    image = inside.permute(2, 0, 1)[None].float() / 255.0
    image = F.pad(image, (0, padded(width) - width, 0, last - first - len(inside)), mode="replicate")
    return image.contiguous(memory_format=torch.channels_last)


class Features:
    """The encoder's features of a picture, made from top to bottom as they are asked for.

    Those of a large picture at fine strides would take much memory. So they are made twice, first for those at coarser
    strides, which are kept, and then for the layers at the finest stride, and forgotten as soon as may be.
    """

    def __init__(self, encoder: Encoder, pixels: np.ndarray, quality: Tensor, finest: int):
        """pixels: (H, W, 3) uint8. quality: (1,). finest: the smallest stride that will be asked for."""
        self._encoder, self._pixels, self._quality, self._finest = encoder, pixels, quality, finest
        self.height, self.width = (padded(side) for side in pixels.shape[:2])
        at_once = plan.at_a_time(self.height * self.width) == self.height * self.width
        self._forgotten = (PIXEL_STRIDE,) if at_once else (PIXEL_STRIDE, finest)  # strides, when a coarser one is made
        self._kept = {stride: Rows(self.height // stride) for stride in self._encoder.strides}
        if at_once:
            self.take(MAX_STRIDE, 0, self.height // MAX_STRIDE)
            return
        step = max(1, plan.BAND // (self.width * MAX_STRIDE))
        for row in range(step, self.height // MAX_STRIDE + step, step):
            self.take(MAX_STRIDE, 0, min(row, self.height // MAX_STRIDE))
        for stride in self._forgotten:
            self._kept[stride] = Rows(self.height // stride)

    def take(self, stride: int, first: int, last: int) -> Tensor:
        """Rows first..last-1 of the feature at a stride: (1, C, last - first, W/s)."""
        kept = self._kept[stride]
        if last > kept.known:
            finer = self._image if stride == PIXEL_STRIDE else partial(self.take, stride // 2)
            kept.add(kept.known, self._encoder.rows(stride, finer, kept.known, last, kept.height, self._quality))
            if stride // 2 in self._forgotten:
                needed = 2 * (kept.known - self._encoder.reach(stride)) if kept.known < kept.height else 2 * kept.height
                self._kept[stride // 2].forget_above(needed)
        return kept.take(first, last)

    def forget_above(self, row: int) -> None:
        """Drop what will not be asked for again at the finest stride."""
        self._kept[self._finest].forget_above(row)

    def _image(self, first: int, last: int) -> Tensor:
        return to_tensor(self._pixels, self._quality.device, first, last)


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
    ):
        """h: the feature (1, C, H'/8, W'/8), which may still grow. quality: (1,). size: H, W.

        gray: all planes become the rounded mean of the three. rows, columns: a part of the picture; else all of it.
        """
        self._synthesis, self._h, self._quality, self._gray = synthesis, h, quality, gray
        self._width, self._columns = size[1], columns
        self._height = padded(size[0]) // PIXEL_STRIDE
        self._first, self._last = rows or (0, size[0])
        self.pixels = np.empty((self._last - self._first, len(range(size[1])[columns]), 3), np.uint8)
        step = max(1, plan.at_a_time(padded(size[0]) * padded(size[1])) // (PIXEL_STRIDE * padded(size[1])))
        end = -(-self._last // PIXEL_STRIDE)
        tops = range(self._first // PIXEL_STRIDE, end, step)
        self._bands = [(top, min(top + step, end)) for top in tops]  # rows at stride 4

    def advance(self) -> None:
        """Make all pixels that the known rows of the feature suffice for."""
        while self._bands and self._needed(self._bands[0])[1] <= self._h.known:
            self._paint(*self._bands.pop(0))
            self._h.forget_above(self._needed(self._bands[0])[0] if self._bands else self._h.height)

    def _needed(self, band: plan.Span) -> plan.Span:
        return self._synthesis.rows_before(*band, self._height)

    def _take(self, first: int, last: int) -> Tensor:
        return self._h.take(first, last).float()

    def _paint(self, top: int, bottom: int) -> None:
        device = self._quality.device
        # cuDNN's default, TF32, has 10-bit mantissas: pixels would differ from the CPU's by more than one level.
        exactly = torch.backends.cudnn.flags(allow_tf32=False) if device.type == "cuda" else nullcontext()
        with _tf32 if device.type == "cuda" else nullcontext(), exactly:
            output = self._synthesis.rows(self._take, top, bottom, self._height, self._quality)
        values = (output[0, :, :, : self._width] * 255.0).round().clamp(0, 255).to(torch.uint8)
        band = values.permute(1, 2, 0).cpu().numpy()[:, self._columns]
        a, b = max(self._first, PIXEL_STRIDE * top), min(self._last, PIXEL_STRIDE * bottom)
        band = band[a - PIXEL_STRIDE * top : b - PIXEL_STRIDE * top]
        if self._gray:  # the network does not know that the planes should be equal
            band = np.rint(band.mean(2, keepdims=True))
        self.pixels[a - self._first : b - self._first] = band
