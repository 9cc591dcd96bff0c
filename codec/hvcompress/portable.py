"""The decoder without torch, in numpy alone: a small picture is there before torch would be imported.

The same integers as those of `network.py`, each a whole number in float64, which holds them all exactly: weights are
multiples of 2^-18 below 2^3, activations whole numbers up to 2^15, so that sums of fewer than 2^16 of their products
have 52 bits. All of a picture is computed at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import numpy as np

from . import container, plan
from .alpha import unpack_alpha
from .container import Container
from .entropy import LayerCoder
from .errors import ModelError
from .metadata import unpack_icc, unpack_metadata
from .model import ModelFolder, check_latents, check_made_with, read_decoder, split_tables
from .picture import Picture
from .plan import padded
from .quality import layer_qualities
from .self_test import QUALITIES, SIDES, SelfTest

Arrays = dict[str, np.ndarray]


def clamp(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -32768.0, 32767.0, out=x)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, np.floor((x + 4.0) * 0.125))


def pixel_shuffle(x: np.ndarray, n: int) -> np.ndarray:
    """(c n n, h, w) -> (c, n h, n w)."""
    c, h, w = len(x) // n**2, *x.shape[1:]
    return x.reshape(c, n, n, h, w).transpose(0, 3, 1, 4, 2).reshape(c, n * h, n * w)


def convolved(x: np.ndarray, taps: np.ndarray, bias: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """A convolution with zero padding: (C_in, h, w) -> (C_out, h w).

    taps: (k, k, C_out, C_in), each to be multiplied by scale. bias, scale: (C_out, 1).
    """
    (c, h, w), k = x.shape, len(taps)
    around = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2))) if k > 1 else x
    total = bias
    for row in range(k):
        for column in range(k):
            weight = taps[row, column] if scale is None else taps[row, column] * scale
            total = total + weight @ around[:, row : row + h, column : column + w].reshape(c, h * w)
    return total


class Convolution:
    """`exact.ExactConv2d`, rounded and clamped."""

    def __init__(self, arrays: Arrays, name: str):
        weight, bias, exponent = (arrays[f"{name}.{part}"] for part in ("weight", "bias", "exponent"))
        bits = 18 if weight.dtype == np.int16 else 12
        scale = 2.0 ** (exponent.astype(np.float64) - bits)
        self._taps = weight.transpose(2, 3, 0, 1)  # (k, k, C_out, C_in), of integers
        self._scale = scale[:, None]
        self._bias = bias[:, None] * 2.0**-12 + 0.5

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(C_in, h, w) -> (C_out, h, w)."""
        total = convolved(x, self._taps, self._bias, self._scale)
        return clamp(np.floor(total, out=total)).reshape(-1, *x.shape[1:])


@dataclass(frozen=True)
class Block:
    """`network.Block`."""

    reduce: Convolution
    spatial: Convolution
    expand: Convolution
    gain: np.ndarray  # (LEVELS, C / 2), of 2^-10
    shift: np.ndarray

    def __call__(self, x: np.ndarray, quality: int) -> np.ndarray:
        gain, shift = (table[quality][:, None, None] for table in (self.gain, self.shift))
        y = self.spatial(leaky(self.reduce(x)))
        y = leaky(clamp(np.floor(y * (gain * 2.0**-10) + (shift + 0.5))))
        return clamp(x + self.expand(y))


def _blocks(arrays: Arrays, name: str, count: int) -> list[Block]:
    parts = [f"{name}.{number}" for number in range(count)]
    return [
        Block(
            *(Convolution(arrays, f"{part}.{kind}") for kind in ("reduce", "spatial", "expand")),
            *(arrays[f"{part}.{kind}.table"] for kind in ("gain", "shift")),
        )
        for part in parts
    ]


def _through(blocks: Iterable[Block], x: np.ndarray, quality: int) -> np.ndarray:
    for block in blocks:
        x = block(x, quality)
    return x


@dataclass(frozen=True)
class Layer:
    """`network.LatentLayer`."""

    stride: int
    up: Convolution | None
    blocks: list[Block]
    prior: Convolution
    project: Convolution
    step: np.ndarray  # (LEVELS, c), of 2^-10
    scale_shift: np.ndarray


def _layers(arrays: Arrays, network: dict) -> list[Layer]:
    layers, stride = [], plan.MAX_STRIDE
    for number, latent in enumerate(network["latents"]):
        name = f"topdown.layers.{number}"
        up = None if latent["stride"] == stride else Convolution(arrays, f"{name}.up.mix")
        stride = latent["stride"]
        prior, project = Convolution(arrays, f"{name}.prior"), Convolution(arrays, f"{name}.project")
        tables = arrays[f"{name}.step.table"], arrays[f"{name}.scale_shift.table"]
        layers.append(Layer(stride, up, _blocks(arrays, f"{name}.blocks", latent["blocks"]), prior, project, *tables))
    return layers


@dataclass(frozen=True)
class Prior:
    """`network.Prior`, of a whole layer."""

    layer: int  # 0 is the coarsest
    feature: np.ndarray  # (C, h, w), in units
    mean: np.ndarray  # (c, h, w), in units
    index: np.ndarray  # (c, h, w) uint8, of scales
    step: np.ndarray  # (c, 1, 1), in units

    def dequantized(self, levels: np.ndarray) -> np.ndarray:
        """`network.dequantize`. (c, h, w) levels -> the latent, in units."""
        return clamp(np.floor(self.mean + 0.5 * (self.step * levels + 1.0)))


Walk = Generator[Prior, np.ndarray, tuple[np.ndarray, bytes]]


def _next(walk: Walk, levels: np.ndarray) -> Prior | tuple[np.ndarray, bytes]:
    """The next prior, or what the walk returns at its end."""
    try:
        return walk.send(levels)
    except StopIteration as stop:
        return stop.value


def descend(walk: Walk, choose: Callable[[Prior], np.ndarray]) -> tuple[np.ndarray, bytes]:
    """`network.descend`: `choose` maps each prior to its levels."""
    found = next(walk)
    while isinstance(found, Prior):
        found = _next(walk, choose(found))
    return found


class PortableDecoder:
    """A model's decoder. Its pictures are those of `codec.Codec`, to the bit."""

    def __init__(self, folder: ModelFolder):
        """Raises ModelError."""
        arrays, network = read_decoder(folder), folder.config["network"]
        self.fingerprint = folder.fingerprint
        try:
            self.coder = LayerCoder(split_tables(arrays["entropy.reach"], arrays["entropy.frequencies"]))
            self._start = arrays["topdown.start"].astype(np.float64)
            self._layers = _layers(arrays, network)
            self._stages: list[tuple[Convolution | None, list[Block]]] = []
            stride = self._layers[-1].stride
            while stride >= 4:
                up = None if not self._stages else Convolution(arrays, f"synthesis.ups.{stride}.mix")
                count = network["synthesis_blocks"][str(stride)]
                self._stages.append((up, _blocks(arrays, f"synthesis.stages.{stride}", count)))
                stride //= 2
            self._out = Convolution(arrays, "synthesis.out")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError("the model lacks parts or its sizes make no sense") from error

    def decode(self, parsed: Container, bits: int = 8, memory_limit: int | None = None) -> Picture:
        """All of a picture, with 8 or 16 bits per sample.

        Raises FormatError, LimitError, ModelError (made with another model), and MismatchError where the latents are
        not those that the encoder had.
        """
        header = parsed.header
        check_made_with(header, self.fingerprint, len(self._layers))
        has_alpha = len(parsed.chunks.get(container.ALPHA, b"")) > 1
        needed = plan.needed_memory(header.width, header.height, bits=bits, has_alpha=has_alpha)
        with plan.memory_for(header.width, header.height, needed, memory_limit):
            profile, alpha = unpack_icc(parsed.chunks), None
            pixels = self._pixels(self._feature(parsed), header, (1 << bits) - 1)
            if container.ALPHA in parsed.chunks:
                alpha = unpack_alpha(parsed.chunks[container.ALPHA], header.width, header.height)
        return Picture(pixels, header.gray, alpha, profile, *unpack_metadata(parsed.chunks))

    def _feature(self, parsed: Container) -> np.ndarray:
        """The last feature, (C, H / 8, W / 8), of the latents that are coded."""
        header = parsed.header

        def choose(prior: Prior) -> np.ndarray:
            spans = plan.segments(*prior.index.shape[1:])
            streams = zip(spans, plan.split(parsed.streams[prior.layer], len(spans)), strict=True)
            decode, bits = self.coder.decode, header.state_bits
            return np.concatenate([decode(stream, prior.index[:, slice(*span)], bits) for span, stream in streams], 1)

        h, digest = descend(
            self.walk(header.height, header.width, layer_qualities(header.quality, header.offsets)), choose
        )
        check_latents(header, digest)
        return h

    def walk(self, height: int, width: int, qualities: list[int]) -> Walk:
        """`TopDown.walk`, of a picture of that size: yields each prior, is sent each layer's levels (c, h, w).

        qualities: of the layers. Returns the last feature (C, H / 8, W / 8) and the SHA-256 of the latents.
        """
        digests = b""
        h = np.empty((len(self._start), padded(height) // plan.MAX_STRIDE, padded(width) // plan.MAX_STRIDE))
        h[:] = self._start[:, None, None]
        for number, (layer, quality) in enumerate(zip(self._layers, qualities, strict=True)):
            if layer.up is not None:
                h = pixel_shuffle(layer.up(h), 2)
            h = _through(layer.blocks, h, quality)
            mean, raw = np.split(layer.prior(h), 2)
            step, shift = (table[quality][:, None, None] for table in (layer.step, layer.scale_shift))
            index = np.clip(np.floor((16.0 * raw + (shift + 512.0)) * 2.0**-10), 0, 63).astype(np.uint8)
            prior = Prior(number, h, mean, index, step)
            levels = yield prior
            z, digest = prior.dequantized(levels), hashlib.sha256()
            for top, bottom in plan.segments(*h.shape[1:]):
                digest.update(z[:, top:bottom].astype("<i4").tobytes())
            digests += digest.digest()
            h = clamp(h + layer.project(z))
        return h, hashlib.sha256(digests).digest()

    def _patches(self, h: np.ndarray, quality: int) -> np.ndarray:
        """`Synthesis.patches`: (48, H / 4, W / 4), in units."""
        for up, blocks in self._stages:
            h = _through(blocks, h if up is None else pixel_shuffle(up(h), 2), quality)
        return self._out(h)

    def self_test(self) -> str:
        """`Codec.self_test`."""
        test = SelfTest(self.coder)
        walks = [self.walk(*SIDES, [quality] * len(self._layers)) for quality in QUALITIES]
        priors = [next(walk) for walk in walks]
        for _ in self._layers:
            levels = test.levels(*(prior.index for prior in priors))
            test.tell(*(prior.dequantized(values) for prior, values in zip(priors, levels, strict=True)))
            priors = [_next(walk, values) for walk, values in zip(walks, levels, strict=True)]
        features = [h for h, _ in priors]
        test.tell(*features)
        test.tell(*(self._patches(h, quality) for h, quality in zip(features, QUALITIES, strict=True)))
        return test.hexdigest()

    def _pixels(self, h: np.ndarray, header: container.Header, white: int) -> np.ndarray:
        """`Synthesis` and `pixels.Painter`: (height, width, 3) uint8, or uint16."""
        patches = self._patches(h, header.quality)
        samples = pixel_shuffle(patches, 4)[:, : header.height, : header.width].transpose(1, 2, 0)
        samples = np.floor((np.clip(samples, -2048, 2048) * white + 2048.0 * (white + 1)) * 2.0**-12)
        if header.gray:  # the network does not know that the planes should be equal
            samples[:] = np.rint(samples.mean(2, keepdims=True))
        return samples.astype(np.uint8 if white == 255 else np.uint16)
