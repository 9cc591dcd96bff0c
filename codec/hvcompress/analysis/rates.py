"""How many bits each layer of a file takes, and where in the picture it spends them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from .. import container
from ..codec import Codec


@dataclass(frozen=True)
class LayerRate:
    """The rate of one layer. Bits are those of its range-coded stream, whole bytes, but for the two estimates."""

    layer: int  # 1 is the coarsest
    stride: int  # pixels
    offset: int  # quality offset, `quality.beta_of` it is the layer's beta
    bits: int
    bpp: float  # bits per pixel of the picture
    share: float  # of the bits of all layers, 0..1
    cumulative: float  # share of this layer and all coarser ones
    estimated_bits: float  # information under the model's tables: what an ideal coder would need
    position_bits: np.ndarray = field(repr=False, compare=False)  # (h, w) float64, the estimate summed over channels


@dataclass(frozen=True)
class HeatMap:
    """Where bits are spent: black is 0 bits per pixel, `white` the most that any position of the picture has."""

    label: str  # "layer-1" .. "layer-L", or "sum"
    pixels: np.ndarray  # (H, W, 3) uint8
    white: float  # bits per pixel


def layer_rates(codec: Codec, data: bytes, memory_limit: int | None = None) -> list[LayerRate]:
    """The rates of a file's layers, coarse to fine. Decodes the latents, but no pixels.

    codec: the model that the file was made with. data: the bytes of an .hvci file. memory_limit: as `Codec.decode` has
    it.
    Raises what `Codec.decode` raises.
    """
    parsed = container.parse(data)
    header = parsed.header
    maps = codec.position_bits(data, memory_limit=memory_limit)  # (h, w) each
    bits = [8 * len(stream) for stream in parsed.streams]
    total = sum(bits) or 1  # streams may all be empty, where nothing is coded or every symbol is the likeliest
    return [
        LayerRate(
            number, stride, offset, b, b / (header.width * header.height), b / total, so_far / total, float(m.sum()), m
        )
        for number, (stride, offset, b, so_far, m) in enumerate(
            zip(codec.strides, header.offsets, bits, accumulate(bits), maps, strict=True), 1
        )
    ]


# --------------------------------------------------------------------------------------------------------------------
# Maps


def heat_maps(rates: Sequence[LayerRate], height: int, width: int) -> Iterator[HeatMap]:
    """A map of every layer, each with a scale of its own, and last one of their sum.

    A position's bits are spread evenly over its stride x stride pixels. Positions count as far as they lie in the
    picture: what codes the padding to multiples of 64 is not shown.

    height, width: of the picture in pixels.
    """
    finest = min(rate.stride for rate in rates)
    total = 0.0
    for rate in rates:
        density = rate.position_bits / rate.stride**2  # (h, w) bits per pixel
        yield _heat_map(f"layer-{rate.layer}", density, rate.stride, height, width)
        total = total + _enlarged(density, rate.stride // finest)
    yield _heat_map("sum", total, finest, height, width)


def _heat_map(label: str, density: np.ndarray, stride: int, height: int, width: int) -> HeatMap:
    """density: (h, w) bits per pixel of positions of stride x stride pixels."""
    inside = density[: -(-height // stride), : -(-width // stride)]
    white = float(inside.max())
    colours = COLOURS[np.rint(255 * inside / (white or 1.0)).astype(np.uint8)]
    return HeatMap(label, np.ascontiguousarray(_enlarged(colours, stride)[:height, :width]), white)


def _enlarged(grid: np.ndarray, factor: int) -> np.ndarray:
    """(h, w, ...) -> (factor * h, factor * w, ...) by the nearest neighbour."""
    return grid.repeat(factor, axis=0).repeat(factor, axis=1)


def cubehelix(levels: int = 256) -> np.ndarray:
    """(levels, 3) uint8 from black to white: hues turn once and a half while the perceived brightness only rises.

    D. A. Green, "A colour scheme for the display of astronomical intensity images", 2011, with its default turn.
    """
    brightness = np.linspace(0.0, 1.0, levels)
    angle = 2 * np.pi * (0.5 / 3 + 1 - 1.5 * brightness)  # starts at purple
    amplitude = brightness * (1 - brightness) / 2
    red = -0.14861 * np.cos(angle) + 1.78277 * np.sin(angle)
    green = -0.29227 * np.cos(angle) - 0.90649 * np.sin(angle)
    blue = 1.97294 * np.cos(angle)
    colours = brightness[:, None] + amplitude[:, None] * np.stack((red, green, blue), 1)
    return np.rint(255 * colours.clip(0, 1)).astype(np.uint8)


COLOURS = cubehelix()
