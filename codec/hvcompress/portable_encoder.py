"""The encoder without torch, in numpy alone: a small picture is encoded before torch would be imported.

What `network.Encoder` and `trellis.py` do, the network in float32 and what symbols cost in float64, over all of a
picture at once. No decoder depends on it; the priors are the integers of `portable.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import container, plan
from .batch import cores
from .errors import DeviceError, ModelError, verification
from .machine import FAST_BITS, machine_of
from .model import CONFIG, ModelFolder, read_encoder
from .packing import pack_picture
from .picture import Picture
from .plan import MAX_STRIDE, padded
from .portable import Arrays, PortableDecoder, Prior, convolved, descend
from .quality import checked_offsets, interpolation, layer_qualities
from .scales import MIN_PROBABILITY, scale
from .search import COST_LIMIT, COST_UNIT, WEIGHT, search_units
from .symbols import SYMBOL_LIMIT, edge, is_coded, lanes_of


def leaky(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, np.float32(0.125) * x)


def pixel_unshuffle(x: np.ndarray, n: int) -> np.ndarray:
    """(c, n h, n w) -> (c n n, h, w)."""
    c, h, w = len(x), x.shape[1] // n, x.shape[2] // n
    return x.reshape(c, h, n, w, n).transpose(0, 2, 4, 1, 3).reshape(c * n * n, h, w)


class Convolution:
    """`torch.nn.Conv2d` with zero padding."""

    def __init__(self, arrays: Arrays, name: str):
        """Takes its arrays out of `arrays`."""
        weight, bias = (arrays.pop(f"{name}.{part}").astype(np.float32) for part in ("weight", "bias"))
        self._taps = np.ascontiguousarray(weight.transpose(2, 3, 0, 1))  # (k, k, C_out, C_in)
        self._bias = bias[:, None]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(C_in, h, w) -> (C_out, h, w)."""
        return convolved(x, self._taps, self._bias).reshape(-1, *x.shape[1:])


@dataclass(frozen=True)
class Block:
    """`network.Block` of the encoder, which bounds nothing."""

    reduce: Convolution
    spatial: Convolution
    expand: Convolution
    gain: np.ndarray  # (LEVELS, C / 2)
    shift: np.ndarray

    def __call__(self, x: np.ndarray, quality: int) -> np.ndarray:
        gain, shift = (table[quality][:, None, None] for table in (self.gain, self.shift))
        return x + self.expand(leaky(self.spatial(leaky(self.reduce(x))) * gain + shift))


def _block(arrays: Arrays, name: str) -> Block:
    convolutions = (Convolution(arrays, f"{name}.{part}") for part in ("reduce", "spatial", "expand"))
    knots = [arrays.pop(f"{name}.{part}.knots").astype(np.float32) for part in ("gain", "shift")]
    hats = np.array(interpolation(len(knots[0])), np.float32)
    return Block(*convolutions, *(hats @ values for values in knots))


@dataclass(frozen=True)
class Posterior:
    """`network.Posterior`."""

    merge: Convolution
    block: Block
    mean: Convolution

    def __call__(self, feature: np.ndarray, encoded: np.ndarray, quality: int) -> np.ndarray:
        return self.mean(self.block(self.merge(np.concatenate((feature, encoded))), quality))


class PortableEncoder:
    """A model's encoder. Its files are much like those of `codec.Codec`, not the same: that computes in bfloat16."""

    def __init__(self, folder: ModelFolder):
        """Raises ModelError, and DeviceError where numpy does not compute what the model requires."""
        self._decoder = PortableDecoder(folder)
        if self._decoder.self_test() != folder.config["self_test"]:
            raise DeviceError(f"numpy does not pass the self-test of model {folder.name}: nothing can be coded")
        arrays, network = read_encoder(folder), folder.config["network"]
        try:
            self._stem = Convolution(arrays, "encoder.stem")
            self._downs, self._stages, stride = {}, {}, 4
            while stride <= MAX_STRIDE:
                if stride > 4:
                    self._downs[stride] = Convolution(arrays, f"encoder.downs.{stride}.mix")
                count = network["encoder_blocks"][str(stride)]
                self._stages[stride] = [_block(arrays, f"encoder.stages.{stride}.{number}") for number in range(count)]
                stride *= 2
            self.strides = [latent["stride"] for latent in network["latents"]]
            self._posteriors = [
                Posterior(
                    Convolution(arrays, f"{name}.merge"),
                    _block(arrays, f"{name}.block"),
                    Convolution(arrays, f"{name}.mean"),
                )
                for name in (f"encoder.posteriors.{number}" for number in range(len(self.strides)))
            ]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError("the model lacks parts or its sizes make no sense") from error
        if arrays:
            raise ModelError(f"the model's weights do not fit its {CONFIG}")

    def encode(
        self,
        picture: Picture,
        quality: int,
        offsets: Sequence[int] | None = None,
        *,
        verify: bool = True,
        memory_limit: int | None = None,
    ) -> tuple[bytes, Picture | None]:
        """A file as `Codec.encode` makes it at effort 1, and the decoded picture if it is verified.

        Raises UsageError, LimitError, and MismatchError if verification fails.
        """
        offsets, quality = checked_offsets(quality, offsets, len(self.strides)), int(quality)
        height, width = picture.pixels.shape[:2]
        container.check_size(width, height)
        with plan.memory_for(width, height, plan.needed_memory(width, height), memory_limit):
            streams, digest = self._coded(picture.pixels, quality, offsets)
            data = pack_picture(picture, quality, offsets, self._decoder.fingerprint, digest, FAST_BITS, streams)
            if not verify:
                return data, None
            with verification():
                return data, self._decoder.decode(container.parse(data))

    def _coded(self, pixels: np.ndarray, quality: int, offsets: tuple[int, ...]) -> tuple[tuple[bytes, ...], bytes]:
        """The streams of the layers, and the SHA-256 of the latents."""
        features = self._features(pixels, quality)
        qualities = layer_qualities(quality, offsets)
        streams = []

        def choose(prior: Prior) -> np.ndarray:
            encoded, posterior = features[self.strides[prior.layer]], self._posteriors[prior.layer]
            feature = (prior.feature * 2.0**-10).astype(np.float32)
            mean = posterior(feature, encoded, qualities[prior.layer]).astype(np.float64)
            residual = (np.clip(mean, -32.0, 32.0) * 2.0**10 - prior.mean) / prior.step
            spans = [slice(*span) for span in plan.segments(*residual.shape[1:])]
            segments = [quantize(residual[:, span], prior.index[:, span]) for span in spans]
            coded = zip(segments, (prior.index[:, span] for span in spans), strict=True)
            streams.append(plan.join([self._decoder.coder.encode(*segment, FAST_BITS) for segment in coded]))
            return np.concatenate(segments, 1)

        height, width = pixels.shape[:2]
        _, digest = descend(self._decoder.walk(height, width, qualities), choose)
        return tuple(streams), digest

    def _features(self, pixels: np.ndarray, quality: int) -> dict[int, np.ndarray]:
        """(H, W, 3) uint8 -> features by stride, (C, H'/s, W'/s)."""
        height, width = pixels.shape[:2]
        extended = np.pad(pixels, ((0, padded(height) - height), (0, padded(width) - width), (0, 0)), mode="edge")
        x = (extended.transpose(2, 0, 1) / np.float32(255) - np.float32(0.5)) * np.float32(4)
        features = {}
        for stride, blocks in self._stages.items():
            x = self._stem(pixel_unshuffle(x, 4)) if stride == 4 else self._downs[stride](pixel_unshuffle(x, 2))
            for block in blocks:
                x = block(x, quality)
            features[stride] = x
        return features


# --------------------------------------------------------------------------------------------------------------------
# Quantization


def quantize(residual: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`trellis.quantize`. residual, index: (c, h, w), in steps, and uint8 -> levels (c, h, w) int16, in half steps."""
    coded, limit = is_coded(index), SYMBOL_LIMIT - 2.0
    signed = np.clip(np.nan_to_num(residual[coded], nan=0.0), -limit, limit)  # (N,)
    levels = np.zeros(residual.shape, np.int16)
    if len(signed) == 0:
        return levels
    steps, lanes = lanes_of(len(signed))
    missing = (0, steps * lanes - len(signed))  # the last step is filled up
    size, scales = np.pad(np.abs(signed), missing), np.pad(index[coded], missing)
    found, costs = _branches(size, scales)  # (4, steps * lanes) each
    units = np.minimum((costs - costs.min(0)) * (1 / COST_UNIT) + 0.5, COST_LIMIT).astype(np.int16)
    units = units.reshape(4, steps, lanes).transpose(1, 0, 2)
    branches = search_units(machine_of(FAST_BITS), np.ascontiguousarray(units), cores(), once=True)
    taken = np.take_along_axis(found, branches.reshape(1, -1), 0)[0, : len(signed)]
    levels[coded] = np.where(signed < 0, -taken, taken)
    return levels


def _branches(size: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`trellis._branches`: per branch, the magnitude of the level to take and its cost, (4, N) each."""
    levels, costs = [], []
    for quantizer in (0, 1):
        middle = size + quantizer / 2
        even = np.maximum(4 * np.rint(middle / 2) - quantizer, 0)
        odd = 4 * np.floor(middle / 2) + 2 - quantizer
        even_cost, zero_cost = (_cost(size, level, quantizer, scales) for level in (even, np.zeros_like(even)))
        levels += [np.where(zero_cost < even_cost, 0, even), odd]
        costs += [np.minimum(zero_cost, even_cost), _cost(size, odd, quantizer, scales)]
    return np.stack(levels), np.stack(costs)


def _cost(size: np.ndarray, level: np.ndarray, quantizer: int, scales: np.ndarray) -> np.ndarray:
    k = (level + 1).astype(np.int64) // 2
    # As many different symbols and scales there are, as many bits have to be computed.
    pairs, which = np.unique(k << 6 | scales, return_inverse=True)
    bits = np.array([_bits(int(pair) >> 6, int(pair) & 63, quantizer) for pair in pairs])
    return WEIGHT * np.square(size - level / 2) + bits[which]


def _bits(k: int, index: int, quantizer: int) -> float:
    """`trellis.level_bits` of a symbol k >= 0."""
    high, unit = edge(k, quantizer), scale(index) * math.sqrt(2.0)
    low = edge(k - 1, quantizer) if k else -high
    probability = 0.5 * (math.erfc(low / unit) - math.erfc(high / unit))
    return -math.log2(min(max(probability, MIN_PROBABILITY), 1.0))
