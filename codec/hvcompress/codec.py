"""Image -> bytes -> image with a loaded model.

Encoder and decoder drive the same generator, `TopDown.walk`: the encoder sends it quantized posteriors, the decoder
what the range coder returns.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import container
from .alpha import pack_alpha, unpack_alpha
from .container import Container, Header
from .effort import fit_encoder, steps_of
from .entropy import LayerCoder, path_of
from .errors import DeviceError, FormatError, MismatchError, ModelError, UsageError
from .exact import ACTIVATION_BITS, ACTIVATION_LIMIT
from .image_io import Picture
from .metrics import mean_squared_error
from .model import ModelFolder, Parts, find_fingerprint, find_model, load_parts
from .network import MAX_STRIDE, Encoder, Prior, dequantize, descend, scale_of
from .quality import LEVELS, MAX_OFFSET, is_whole, lambda_of, layer_qualities
from .scales import SCALE_LEVELS
from .trellis import quantize


@dataclass(frozen=True)
class Encoded:
    """A compressed picture and how it came about."""

    data: bytes
    picture: Picture | None  # the decoded picture where it was verified
    seconds: dict[str, float]  # "fit", "network", "coder"; and of verification "verify_network", "verify_coder"


@dataclass(frozen=True)
class DecodedLayer:
    """One layer of a file."""

    levels: np.ndarray  # (c, h, w) int16
    indices: np.ndarray  # (c, h, w) uint8, of the scales
    z: Tensor  # (1, c, h, w) float64, the latent
    seconds: float  # that the range coder took


def lagrangian(picture: Picture, encoded: Encoded) -> float:
    """What training minimises, of a real file: sum_l beta_l R_l + lambda * MSE, in bits per pixel.

    R_l are the bytes of the layers, beta_l = lambda / lambda(quality of layer l), the squared error is that of the
    decoded pixels on the 0..255 scale. encoded: verified, so that its picture is known.
    """
    parsed = container.parse(encoded.data)
    height, width = picture.pixels.shape[:2]
    scale = lambda_of(parsed.header.quality)
    levels = layer_qualities(parsed.header.quality, parsed.header.offsets)
    bits = sum(scale / lambda_of(q) * 8 * len(s) for q, s in zip(levels, parsed.streams, strict=True))
    return bits / (height * width) + scale * mean_squared_error(picture.pixels, encoded.picture.pixels)


def _grid_bytes(x: Tensor) -> bytes:
    """Values on the activation grid, in raster order, as little-endian int32 multiples of 2^-10."""
    integers = (x * 2.0**ACTIVATION_BITS).to(torch.int32).contiguous().cpu().numpy()
    return integers.astype("<i4").tobytes()


def _indices(prior: Prior) -> np.ndarray:
    """(c, h, w) uint8 scale indices, for the range coder."""
    return prior.scale_index[0].to(torch.uint8).cpu().numpy()


class LatentHash:
    """SHA-256 of the latents in decoding order, as little-endian int32 multiples of 2^-10."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, z: Tensor) -> None:
        """z: (1, c, h, w) on the activation grid."""
        self._digest.update(_grid_bytes(z))

    def digest(self) -> bytes:
        return self._digest.digest()


def _padded(size: int) -> int:
    return -(-size // MAX_STRIDE) * MAX_STRIDE


class Codec:
    """A model on a device, ready to code. Safe to share between threads: nothing changes after loading."""

    def __init__(self, folder: ModelFolder, parts: Parts, device: torch.device):
        self.name, self.fingerprint, self.device = folder.name, folder.fingerprint, device
        self.strides = tuple(latent.stride for latent in parts.topdown.config.latents)  # of the layers, coarse to fine
        self.layers = len(self.strides)
        self._encoder = parts.encoder.to(device, memory_format=torch.channels_last)
        self._topdown = parts.topdown.to(device)
        self._synthesis = parts.synthesis.to(device, memory_format=torch.channels_last)
        self._tables = parts.tables
        self._coder = LayerCoder(parts.tables)

    # ---------------------------------------------------------------------------------------------- encoding

    def encode(
        self,
        picture: Picture,
        quality: int = 60,
        offsets: Sequence[int] | None = None,
        *,
        effort: int = 1,
        verify: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> Encoded:
        """Compress a picture.

        quality: 0..100. offsets: quality offset per layer, coarse to fine (`quality.offset_of` a beta); None is zero.
        effort: 1 (fast) to 9; above 1 the encoder is first fitted to the picture. The result is never worse than that
        of effort 1 by the measure that is minimised, `lagrangian`.
        verify: decode the bytes again, from the bytes alone, and compare the latents. Above effort 1 that is done in
        any case, since the decoded picture is needed.
        progress: told the steps of fitting done, from 0, and how many there are.
        Raises UsageError, LimitError, and MismatchError if verification fails.
        """
        offsets, quality, steps = self._check(quality, offsets), int(quality), steps_of(effort)
        container.check_size(picture.pixels.shape[1], picture.pixels.shape[0])
        plain = self._encode_with(self._encoder, picture, quality, offsets, verify or steps > 0)
        if steps == 0:
            return plain
        began = time.perf_counter()
        parts = Parts(self._encoder, self._topdown, self._synthesis, self._tables)
        image = self._to_tensor(picture.pixels)
        encoder = fit_encoder(parts, image, picture.pixels.shape[:2], quality, offsets, steps, progress)
        fitting = time.perf_counter() - began
        fitted = self._encode_with(encoder, picture, quality, offsets, True)
        best = min(plain, fitted, key=lambda encoded: lagrangian(picture, encoded))
        seconds = {part: plain.seconds[part] + fitted.seconds[part] for part in plain.seconds} | {"fit": fitting}
        return Encoded(best.data, best.picture, seconds)

    def _encode_with(
        self, encoder: Encoder, picture: Picture, quality: int, offsets: tuple[int, ...], verify: bool
    ) -> Encoded:
        """Compress with the given encoder, which need not be the model's own."""
        height, width = picture.pixels.shape[:2]
        began = time.perf_counter()
        layers, indices, latent_hash = self.analyse(picture.pixels, quality, offsets, encoder)
        networked = time.perf_counter() - began
        streams = tuple(self._coder.encode(levels, i) for levels, i in zip(layers, indices, strict=True))
        coded = time.perf_counter() - began - networked
        chunks = {}
        if picture.icc is not None:
            chunks[container.ICC] = picture.icc
        if picture.alpha is not None:
            chunks[container.ALPHA] = pack_alpha(picture.alpha)
        fingerprint = bytes.fromhex(self.fingerprint)[:4]
        header = Header(width, height, picture.gray, quality, offsets, fingerprint, latent_hash[:4])
        data = container.pack(Container(header, streams, chunks))
        decoded, spent = self._verified(data) if verify else (None, {"network": 0.0, "coder": 0.0})
        seconds = {
            "fit": 0.0,
            "network": networked,
            "coder": coded,
            "verify_network": spent["network"],
            "verify_coder": spent["coder"],
        }
        return Encoded(data, decoded, seconds)

    def _verified(self, data: bytes) -> tuple[Picture, dict[str, float]]:
        """Decode what is about to be handed out, from its bytes alone."""
        try:
            return self.decode_timed(data)
        except (FormatError, MismatchError) as error:
            raise MismatchError("verification failed: the result does not decode to what was encoded") from error

    def _check(self, quality: int, offsets: Sequence[int] | None) -> tuple[int, ...]:
        """The offsets as a tuple. Raises UsageError."""
        if not is_whole(quality) or not 0 <= quality < LEVELS:
            raise UsageError(f"quality must be a whole number from 0 to {LEVELS - 1}, not {quality!r}")
        if offsets is None:
            return (0,) * self.layers
        if len(offsets) != self.layers:
            raise UsageError(f"the model has {self.layers} layers, but {len(offsets)} betas were given")
        if not all(is_whole(offset) and abs(offset) <= MAX_OFFSET for offset in offsets):
            raise UsageError(f"a layer's quality offset must be a whole number within +-{MAX_OFFSET}")
        return tuple(map(int, offsets))

    @torch.inference_mode()
    def analyse(
        self, pixels: np.ndarray, quality: int, offsets: tuple[int, ...], encoder: Encoder | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray], bytes]:
        """(H, W, 3) uint8 -> per layer: levels (c, h, w) int16 and scale indices (c, h, w) uint8; the latents' SHA-256.

        encoder: None is the model's own.
        """
        encoder = self._encoder if encoder is None else encoder
        image = self._to_tensor(pixels)
        qualities = self._qualities(quality, offsets)
        features = encoder(image, torch.tensor([quality], device=self.device))
        layers: list[np.ndarray] = []
        indices: list[np.ndarray] = []
        latents = LatentHash()

        def choose(prior: Prior) -> Tensor:
            posterior, encoded = encoder.posteriors[prior.layer], features[self.strides[prior.layer]]
            mean = posterior(prior.feature.float(), encoded, qualities[:, prior.layer])
            target = mean.double().clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)
            levels, _ = quantize((target - prior.mean) / prior.step, prior.scale_index)
            layers.append(levels[0].to(torch.int16).cpu().numpy())
            indices.append(_indices(prior))
            z = dequantize(prior, levels, self._topdown.snap)
            latents.update(z)
            return z

        descend(self._topdown.walk(qualities, *image.shape[-2:]), choose)
        return layers, indices, latents.digest()

    # ---------------------------------------------------------------------------------------------- decoding

    def decode(self, data: bytes, layers: int | None = None) -> Picture:
        """Decompress a file.

        layers: None is all; fewer give a preview, in which the finer layers are as the coarser ones lead one to expect.
        A preview's latents cannot be compared with the encoder's.
        Raises FormatError, UnsupportedError, LimitError, ModelError (made with another model), MismatchError where
        this device arrives at other latents than the encoder had, and UsageError for a number of layers that the model
        does not have.
        """
        return self.decode_timed(data, layers)[0]

    @torch.inference_mode()
    def decode_timed(self, data: bytes, layers: int | None = None) -> tuple[Picture, dict[str, float]]:
        """`decode`, and the seconds that "network" and range "coder" took."""
        began = time.perf_counter()
        parsed = container.parse(data)
        header = parsed.header
        h, _, coder = self._decode_latents(parsed, layers)
        alpha = None
        if container.ALPHA in parsed.chunks:
            alpha = unpack_alpha(parsed.chunks[container.ALPHA], header.width, header.height)
        pixels = self._synthesise(h, header.quality)[: header.height, : header.width]
        if header.gray:
            # The mean of the three planes; the network does not know that they should be equal.
            pixels = np.repeat(np.rint(pixels.mean(2, keepdims=True)), 3, axis=2).astype(np.uint8)
        picture = Picture(np.ascontiguousarray(pixels), header.gray, alpha, parsed.chunks.get(container.ICC))
        return picture, {"network": time.perf_counter() - began - coder, "coder": coder}

    @torch.inference_mode()
    def latent_digest(self, data: bytes) -> str:
        """SHA-256 of a file's decoded latents, 64 hex digits: the same on every device. Raises as `decode` does."""
        return self._decode_latents(container.parse(data))[1].hex()

    @torch.inference_mode()
    def information(self, data: bytes) -> list[np.ndarray]:
        """Bits of every symbol of a file under the model's tables: (c, h, w) each. Raises as `decode` does."""
        bits: list[np.ndarray] = []

        def look(layer: DecodedLayer) -> None:
            bits.append(self._coder.symbol_bits(layer.levels, layer.indices))

        self._decode_latents(container.parse(data), look=look)
        return bits

    @torch.inference_mode()
    def latents(self, data: bytes, layers: int | None = None) -> list[np.ndarray]:
        """The latents of a file's first `layers` layers (None: all), coarse to fine: (c, h, w) float32 each.

        What the file says before any pixel is computed, for search or recognition. h and w are the picture's sides
        divided by the layer's stride and rounded up; positions beyond its border are left out. Finer layers are not
        read, and with less than all of them the latents cannot be compared with the encoder's.
        Raises UsageError where the model has no such number of layers, and otherwise as `decode` does.
        """
        count = self._check_layers(layers)
        parsed = container.parse(data)
        height, width = parsed.header.height, parsed.header.width
        found: list[np.ndarray] = []

        def look(layer: DecodedLayer) -> None:
            stride = self.strides[len(found)]
            inside = layer.z[0, :, : -(-height // stride), : -(-width // stride)]
            found.append(inside.float().cpu().numpy().copy())  # exact: the grid's values have at most 16 bits

        if count == self.layers:
            self._decode_latents(parsed, look=look)
            return found
        walk = self._walk(parsed)
        prior = next(walk)
        while True:
            layer = self._decode_layer(parsed, prior)
            look(layer)
            if len(found) == count:
                return found
            prior = walk.send(layer.z)

    def estimated_bits(self, data: bytes) -> list[float]:
        """What the model's tables predict for each layer of a file, in bits, headers not included."""
        return [float(bits.sum()) for bits in self.information(data)]

    def _decode_latents(
        self,
        parsed: Container,
        layers: int | None = None,
        look: Callable[[DecodedLayer], None] | None = None,
    ) -> tuple[Tensor, bytes, float]:
        """The last top-down feature (1, C, H'/8, W'/8), the SHA-256 of all latents, and the range coder's seconds.

        layers: how many to decode; the finer ones take the means of their priors, and then nothing is compared with
        the encoder's latents. look: shown every layer that is decoded.
        """
        count = self._check_layers(layers)
        latents = LatentHash()
        coder = 0.0

        def choose(prior: Prior) -> Tensor:
            nonlocal coder
            if prior.layer >= count:
                return prior.mean
            layer = self._decode_layer(parsed, prior)
            coder += layer.seconds
            if look is not None:
                look(layer)
            latents.update(layer.z)
            return layer.z

        h = descend(self._walk(parsed), choose)
        digest = latents.digest()
        if count == self.layers and digest[:4] != parsed.header.latent_hash:
            raise MismatchError(
                "the decoded latents are not those of the encoder: this device or its software computes differently"
            )
        return h, digest, coder

    def _check_layers(self, layers: int | None) -> int:
        """How many layers are meant; None is all. Raises UsageError."""
        if layers is None:
            return self.layers
        if not is_whole(layers) or not 1 <= layers <= self.layers:
            raise UsageError(f"layers must be a whole number from 1 to {self.layers}, not {layers!r}")
        return int(layers)

    def _walk(self, parsed: Container) -> Generator[Prior, Tensor, Tensor]:
        """The way down for a file that this model can decode. Raises ModelError, FormatError."""
        header = parsed.header
        if not self.fingerprint.startswith(header.fingerprint.hex()):
            raise ModelError(f"the file was made with another model (fingerprint {header.fingerprint.hex()})")
        if len(parsed.streams) != self.layers:
            raise FormatError(f"the file has {len(parsed.streams)} layers, its model {self.layers}")
        qualities = self._qualities(header.quality, header.offsets)
        return self._topdown.walk(qualities, _padded(header.height), _padded(header.width))

    def _decode_layer(self, parsed: Container, prior: Prior) -> DecodedLayer:
        indices = _indices(prior)
        began = time.perf_counter()
        levels = self._coder.decode(parsed.streams[prior.layer], indices)
        seconds = time.perf_counter() - began
        z = dequantize(prior, torch.from_numpy(levels).to(self.device).double()[None], self._topdown.snap)
        return DecodedLayer(levels, indices, z, seconds)

    @torch.inference_mode()
    def sample(self, width: int, height: int, quality: int = 60, seed: int = 0) -> Picture:
        """A picture drawn from the model itself: every latent from its prior. What the model believes pictures are."""
        self._check(quality, None)
        container.check_size(width, height)
        qualities = self._qualities(quality, (0,) * self.layers)
        generator = np.random.Generator(np.random.PCG64(seed))

        def choose(prior: Prior) -> Tensor:
            noise = torch.from_numpy(generator.standard_normal(tuple(prior.mean.shape))).to(self.device)
            return dequantize(prior, torch.round(2 * noise * scale_of(prior.scale_index)), self._topdown.snap)

        h = descend(self._topdown.walk(qualities, _padded(height), _padded(width)), choose)
        return Picture(np.ascontiguousarray(self._synthesise(h, quality)[:height, :width]))

    # ---------------------------------------------------------------------------------------------- helpers

    def _qualities(self, quality: int, offsets: Sequence[int]) -> Tensor:
        """(1, L) quality index of every layer."""
        return torch.tensor([layer_qualities(quality, offsets)], device=self.device)

    def _to_tensor(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, H', W') float in [0, 1], edges repeated up to multiples of 64."""
        height, width = pixels.shape[:2]
        image = torch.tensor(pixels, device=self.device).permute(2, 0, 1)[None].float() / 255.0
        image = F.pad(image, (0, _padded(width) - width, 0, _padded(height) - height), mode="replicate")
        return image.contiguous(memory_format=torch.channels_last)

    def _synthesise(self, h: Tensor, quality: int) -> np.ndarray:
        """(1, C, H'/8, W'/8) float64 -> (H', W', 3) uint8."""
        level = torch.tensor([quality], device=self.device)
        if self.device.type == "cuda":
            # cuDNN's default, TF32, has 10-bit mantissas: pixels would differ from the CPU's by more than one level.
            with _tf32, torch.backends.cudnn.flags(allow_tf32=False):
                output = self._synthesis(h.float(), level)
        else:
            output = self._synthesis(h.float(), level)
        return (output[0] * 255.0).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()

    @torch.inference_mode()
    def self_test(self) -> str:
        """Hex digest of the exact path's answer to fixed symbols, and of the coder's to that. The same everywhere."""
        digest = hashlib.sha256()
        generator = np.random.Generator(np.random.PCG64(2026))

        def draw(shape: tuple[int, int, int]) -> np.ndarray:
            # Mostly small, a few large: clamps and escapes are exercised as well.
            small, large = generator.integers(-2, 3, shape), generator.integers(0, 50, shape) == 0
            return path_of(small * (1 + 600 * large))

        def there_and_back(indices: np.ndarray) -> np.ndarray:
            levels = draw(indices.shape)
            coded = self._coder.encode(levels, indices)
            if not np.array_equal(self._coder.decode(coded, indices), levels):
                raise DeviceError("the range coder does not return what it was given")
            digest.update(coded)
            digest.update(indices.tobytes())
            return levels

        # Each table, for odd and even symbols.
        there_and_back(np.repeat(np.arange(SCALE_LEVELS, dtype=np.uint8), 64).reshape(SCALE_LEVELS, 8, 8))

        def choose(prior: Prior) -> Tensor:
            levels = there_and_back(_indices(prior))
            z = dequantize(prior, torch.from_numpy(levels).to(self.device).double()[None], self._topdown.snap)
            digest.update(_grid_bytes(z))
            return z

        for quality in (10, 90):
            qualities = torch.tensor([[quality] * self.layers], device=self.device)
            h = descend(self._topdown.walk(qualities, 64, 128), choose)
            digest.update(_grid_bytes(h))
        return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------------
# Loading


def pick_device(device: str = "auto") -> torch.device:
    """auto is CUDA where there is one, else the CPU. Raises DeviceError."""
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from error
    if picked.type not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N")
    if picked.type == "cuda":
        picked = torch.device("cuda", picked.index or 0)
        if picked.index >= torch.cuda.device_count():
            raise DeviceError(f"there is no device {device}")
    return picked


_tf32 = threading.Lock()  # cuDNN's flags are global
_loaded: dict[tuple[str, str], Codec] = {}
_loading = threading.Lock()


def load_folder(folder: ModelFolder, device: str = "auto") -> Codec:
    """Load a model from its folder, once per device. "auto" falls back to the CPU where the GPU is of no use.

    Raises ModelError, DeviceError.
    """
    try:
        return _load_on(folder, pick_device(device))
    except DeviceError as error:
        if device != "auto":
            raise
        warnings.warn(f"{error}; using the CPU", RuntimeWarning, stacklevel=3)
        return _load_on(folder, torch.device("cpu"))


def _load_on(folder: ModelFolder, picked: torch.device) -> Codec:
    key = (str(folder.path.resolve()) + folder.fingerprint, str(picked))
    with _loading, torch.inference_mode(False):  # it is kept, and may be trained from later
        if key not in _loaded:
            parts = load_parts(folder)
            try:
                codec = Codec(folder, parts, picked)
                answer = codec.self_test()
            except RuntimeError as error:  # no kernel for this GPU, driver too old, out of its memory
                raise DeviceError(f"{picked} cannot run model {folder.name}: {str(error).splitlines()[0]}") from error
            if answer != folder.config["self_test"]:
                raise DeviceError(f"{picked} does not pass the self-test of model {folder.name}: nothing can be coded")
            _loaded[key] = codec
        return _loaded[key]


def load_model(name_or_path: str | os.PathLike | None = None, device: str = "auto") -> Codec:
    """Load a model by name or folder (None: the default one), check it, and keep it for the next call."""
    return load_folder(find_model(name_or_path), device)


def codec_for(data: bytes, device: str = "auto", model: str | os.PathLike | None = None) -> Codec:
    """The codec that a file needs: the model that its fingerprint names, or the given one."""
    header = container.parse(data).header
    folder = find_model(model) if model is not None else find_fingerprint(header.fingerprint)
    return load_folder(folder, device)
