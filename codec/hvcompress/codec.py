"""Image -> bytes -> image with a loaded model.

Encoder and decoder drive the same generator, `TopDown.walk`: the encoder sends it quantized posteriors, the decoder
what the range coder returns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import container, plan
from .alpha import unpack_alpha
from .container import Container
from .devices import check_not_forked
from .effort import best_encoding, level_of
from .entropy import LayerCoder
from .errors import LimitError, UsageError, verification
from .exact import ACTIVATION_BITS, ACTIVATION_LIMIT, to_values, use_tiles
from .kernels.copies import fetch, send
from .kernels.graphs import RecordedWalks, cuda_recorder
from .machine import TRAINED_BITS
from .metadata import unpack_icc, unpack_metadata
from .model import ModelFolder, Parts, check_latents, check_made_with
from .network import PIXEL_STRIDE, POSTERIOR_REACH, Encoder, Prior, dequantize, descend, scale_of
from .packing import pack_picture
from .picture import Picture
from .pixels import Features, Painter
from .plan import padded
from .precision import autocast
from .quality import checked_offsets, is_whole, layer_qualities
from .rows import Rows, cut
from .segments import LatentHash, Layers, Segment, rows_of
from .self_test import QUALITIES, SIDES, SelfTest
from .symbols import is_coded
from .trellis import quantize


@dataclass(frozen=True)
class Encoded:
    """A compressed picture and how it came about."""

    data: bytes
    picture: Picture | None  # the decoded picture where it was verified
    seconds: dict[str, float]  # "fit", "network", "coder"; and of verification "verify_network", "verify_coder"


def _ticker(steps: Sequence[plan.Step], progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    """To be called before every step and at the end; tells how many are done, if any layer takes several."""
    total = len(steps)
    counted = iter(range(total + 1))
    several = total > len({layer for layer, _, _ in steps})

    def tick() -> None:
        done = next(counted)
        if progress is not None and several:
            progress(done, total)

    return tick


def _checked_crop(crop: Sequence[int] | None, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a part of a picture; None is all. Raises UsageError where it is not inside."""
    if crop is None:
        return 0, 0, width, height
    if len(crop) != 4 or not all(map(is_whole, crop)):
        raise UsageError(f"a crop is four whole numbers, left, top, width and height, not {crop!r}")
    left, top, across, down = map(int, crop)
    if min(left, top) < 0 or min(across, down) < 1 or left + across > width or top + down > height:
        raise UsageError(f"the crop {left},{top},{across},{down} is not inside the picture, {width}x{height}")
    return left, top, across, down


class Codec:
    """A model on a device, ready to code. Threads may share it.

    record_graphs: of sizes that come often, record the way down as CUDA graphs (`kernels/graphs.py`), which saves a GPU
    the wait for the CPU. Off, since meanwhile other threads must not wait for the whole device
    (`torch.cuda.synchronize`): the command, whose threads do not, turns it on.
    """

    record_graphs = False

    def __init__(self, folder: ModelFolder, parts: Parts, device: torch.device):
        self.name, self.fingerprint, self.device = folder.name, folder.fingerprint, device
        self._latents = parts.topdown.config.latents  # coarse to fine
        self.strides = tuple(latent.stride for latent in self._latents)
        self.layers = len(self.strides)
        self._encoder = parts.encoder.to(device, memory_format=torch.channels_last)
        self._topdown = parts.topdown.to(device)
        self._synthesis = parts.synthesis.to(device)
        self._recorded: RecordedWalks | None = None
        if device.type == "cuda":
            for path in (self._topdown, self._synthesis):
                use_tiles(path, device)
            self._recorded = RecordedWalks(self._topdown, device, cuda_recorder)
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
        memory_limit: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Encoded:
        """Compress a picture.

        quality: 0..100. offsets: quality offset per layer, coarse to fine (`quality.offset_of` a beta); None is zero.
        effort: 1 (fast) to 9, see `effort.py`. From 4 on further files are made by encoders fitted to the picture, and
        the best by the measure that is minimised, `lagrangian`, is taken; the first is that of effort 3.
        verify: decode the bytes again, from the bytes alone, and compare the latents. From effort 4 on that is done in
        any case, since the decoded picture is needed.
        memory_limit: in bytes; None is what the machine has to spare. A picture that needs more is refused at once.
        progress: told how many of how many steps of fitting and encodings are done, from 0; below effort 4 how many
        bands of rows of a picture that is too large to be coded at once.
        Raises UsageError, LimitError, and MismatchError if verification fails.
        """
        offsets, quality = self._check(quality, offsets), int(quality)
        level = level_of(effort)
        height, width = picture.pixels.shape[:2]
        container.check_size(width, height)
        with self._memory(width, height, plan.needed_memory(width, height), memory_limit):
            if level.steps == 0:
                encoder, state_bits = self._encoder, level.state_bits
                return self._encode_with(encoder, picture, quality, offsets, state_bits, verify, progress)

            def encode(encoder: Encoder, told: Callable[[int, int], None]) -> Encoded:
                return self._encode_with(encoder, picture, quality, offsets, level.state_bits, True, told)

            parts = Parts(self._encoder, self._topdown, self._synthesis, self._tables)
            return best_encoding(encode, parts, picture, quality, offsets, level, progress)

    def _encode_with(
        self,
        encoder: Encoder,
        picture: Picture,
        quality: int,
        offsets: tuple[int, ...],
        state_bits: int,
        verify: bool,
        progress: Callable[[int, int], None] | None = None,
    ) -> Encoded:
        """Compress with the given encoder, which need not be the model's own."""
        began = time.perf_counter()
        parts: list[list[bytes]] = [[] for _ in self.strides]
        coded = 0.0

        def use(segment: Segment) -> None:
            nonlocal coded
            started = time.perf_counter()
            parts[segment.layer].append(self._coder.encode(segment.levels, segment.indices, state_bits))
            coded += time.perf_counter() - started

        halves = 1 + verify  # decoding visits as many bands

        def first_half(done: int, total: int) -> None:
            progress(done, halves * total)

        def second_half(done: int, total: int) -> None:
            progress(total + done, 2 * total)

        watched = progress is not None
        seen = first_half if watched else None
        latent_hash = self.analyse(picture.pixels, quality, offsets, use, encoder, state_bits, seen)
        networked = time.perf_counter() - began - coded
        streams = tuple(map(plan.join, parts))
        data = pack_picture(picture, quality, offsets, self.fingerprint, latent_hash, state_bits, streams)
        decoded, spent = None, {"network": 0.0, "coder": 0.0}
        if verify:
            decoded, spent = self._verified(data, second_half if watched else None)
        seconds = {
            "fit": 0.0,
            "network": networked,
            "coder": coded,
            "verify_network": spent["network"],
            "verify_coder": spent["coder"],
        }
        return Encoded(data, decoded, seconds)

    def _verified(self, data: bytes, progress: Callable[[int, int], None] | None) -> tuple[Picture, dict[str, float]]:
        """Decode what is about to be handed out, from its bytes alone."""
        with verification():
            return self.decode_timed(data, progress=progress)

    def _check(self, quality: int, offsets: Sequence[int] | None) -> tuple[int, ...]:
        """The offsets as a tuple. Raises UsageError, and DeviceError in a forked process."""
        check_not_forked(self.device)
        return checked_offsets(quality, offsets, self.layers)

    @torch.inference_mode()
    def analyse(
        self,
        pixels: np.ndarray,
        quality: int,
        offsets: tuple[int, ...],
        use: Callable[[Segment], None],
        encoder: Encoder | None = None,
        state_bits: int = TRAINED_BITS,
        progress: Callable[[int, int], None] | None = None,
    ) -> bytes:
        """The latents of (H, W, 3) uint8, of which `use` is shown one segment after another; returns their SHA-256.

        encoder: None is the model's own. state_bits: of the trellis. progress: as `decode` tells it.
        """
        encoder = self._encoder if encoder is None else encoder
        qualities = self._qualities(quality, offsets)
        features = Features(encoder, pixels, self._on_device([quality]), self.strides[-1])
        latents = LatentHash(self.layers)
        steps = self._steps(features.height, features.width)
        tick = _ticker(steps, progress)
        last = Rows(features.height // self.strides[-1])

        def choose(prior: Prior) -> Tensor:
            tick()
            last.forget_above(last.known)  # no pixels are made of it
            layer, stride = prior.layer, self.strides[prior.layer]
            first, height = prior.top - prior.above, prior.feature.shape[2]
            encoded = features.take(stride, first, first + height)
            if stride not in self.strides[layer + 1 :]:  # other layers of that stride are ahead of it
                features.forget_above(stride, first + height - 2 * POSTERIOR_REACH)
            mean = prior.inside(encoder.posteriors[layer](to_values(prior.feature), encoded, qualities[:, layer]))
            target = mean.double().clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT) * 2.0**ACTIVATION_BITS
            residual = (target - prior.mean) / prior.step

            def quantized(top: int, bottom: int) -> Tensor:
                part = rows_of(prior, top, bottom)
                levels, _ = quantize(cut(residual, top - prior.top, bottom - prior.top), part.scale_index, state_bits)
                levels = levels.to(torch.int16)
                coming = fetch(levels[0]), fetch(part.scale_index[0])
                z = dequantize(part, levels, self._topdown.snap)
                latents.catch_up()
                latents.update(layer, z)
                use(Segment(layer, *(wait().numpy() for wait in coming), z))
                return z

            return self._by_segments(prior, features.height, features.width, lambda _, *span: quantized(*span))

        with autocast(self.device):
            descend(self._walk(qualities, features.height, features.width, steps, last), choose)
        tick()
        return latents.digest()

    # ---------------------------------------------------------------------------------------------- decoding

    def decode(
        self,
        data: bytes,
        layers: int | None = None,
        crop: tuple[int, int, int, int] | None = None,
        *,
        partial: bool = False,
        bits: int = 8,
        memory_limit: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Picture:
        """Decompress a file.

        layers: None is all; fewer give a preview, in which the finer layers are as the coarser ones lead one to expect.
        crop: left, top, width and height of the part to decode; the work is that for its rows, and some around them.
        The latents of a preview or of a part cannot be compared with the encoder's.
        partial: of a file that is cut off at its end, the layers that are whole, but at most `layers`; without the flag
        such a file is refused. It has lost its alpha plane and its profile.
        bits: per sample of the pixels, 8 or 16 (then uint16, 65535 is white). What is coded does not depend on it.
        memory_limit: in bytes; None is what the machine has to spare. A file that needs more is refused at once.
        progress: told how many of how many bands of rows are done, from 0, if there are several to a layer.
        Raises FormatError, UnsupportedError, LimitError, ModelError (made with another model), MismatchError where
        this device arrives at other latents than the encoder had, and UsageError for a number of layers that the model
        does not have.
        """
        return self.decode_timed(data, layers, crop, memory_limit, progress, partial, bits)[0]

    @torch.inference_mode()
    def decode_timed(
        self,
        data: bytes,
        layers: int | None = None,
        crop: tuple[int, int, int, int] | None = None,
        memory_limit: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        partial: bool = False,
        bits: int = 8,
    ) -> tuple[Picture, dict[str, float]]:
        """`decode`, and the seconds that "network" and range "coder" took."""
        began = time.perf_counter()
        check_not_forked(self.device)
        if bits not in (8, 16):
            raise UsageError(f"pixels have 8 or 16 bits per sample, not {bits!r}")
        parsed = (container.parse_prefix if partial else container.parse)(data)
        header = parsed.header
        check_made_with(header, self.fingerprint, self.layers)
        left, top, width, height = _checked_crop(crop, header.width, header.height)
        has_alpha = len(parsed.chunks.get(container.ALPHA, b"")) > 1  # a byte stands for a plane of equal values
        needed = plan.needed_memory(header.width, header.height, rows=height, bits=bits, has_alpha=has_alpha)
        with self._memory(header.width, header.height, needed, memory_limit):
            picture, coder = self._decode(parsed, layers, (left, top, width, height), progress, bits)
        return picture, {"network": time.perf_counter() - began - coder, "coder": coder}

    def _decode(
        self,
        parsed: Container,
        layers: int | None,
        crop: tuple[int, int, int, int],
        progress: Callable[[int, int], None] | None,
        bits: int,
    ) -> tuple[Picture, float]:
        """The picture, or the part of it, and the range coder's seconds."""
        header, (left, top, width, height) = parsed.header, crop
        profile = unpack_icc(parsed.chunks)
        columns, rows = slice(left, left + width), (top, top + height)
        whole = rows == (0, header.height)  # then all segments are decoded, also those that lie in the padding
        last = Rows(padded(header.height) // self.strides[-1])
        level = self._on_device([header.quality])
        size = header.height, header.width
        painter = Painter(self._synthesis, last, level, size, header.gray, rows, columns, bits)
        _, coder = self._decode_latents(
            parsed, layers, rows=None if whole else rows, progress=progress, last=last, grown=painter.advance
        )
        alpha = None
        if container.ALPHA in parsed.chunks:
            alpha = unpack_alpha(parsed.chunks[container.ALPHA], header.width, header.height)
            alpha = alpha if alpha.shape == painter.pixels.shape[:2] else alpha[slice(*rows), columns].copy()
        return Picture(painter.pixels, header.gray, alpha, profile, *unpack_metadata(parsed.chunks)), coder

    @torch.inference_mode()
    def latent_digest(self, data: bytes) -> str:
        """SHA-256 of a file's decoded latents, 64 hex digits: the same on every device. Raises as `decode` does."""
        parsed = container.parse(data)
        width, height = parsed.header.width, parsed.header.height
        with self._memory(width, height, plan.needed_memory(width, height), None):
            return self._decode_latents(parsed)[0].hex()

    def information(self, data: bytes, *, memory_limit: int | None = None) -> list[np.ndarray]:
        """Bits of every symbol of a file under the model's tables: (c, h, w) each. Raises as `decode` does."""
        return self._information(data, [latent.channels for latent in self._latents], memory_limit, lambda bits: bits)

    def position_bits(self, data: bytes, *, memory_limit: int | None = None) -> list[np.ndarray]:
        """`information`, summed over the channels: (h, w) each, which takes a thirtieth of the memory."""

        def summed(bits: np.ndarray) -> np.ndarray:
            return bits.sum(0, keepdims=True)

        return [bits[0] for bits in self._information(data, [1] * self.layers, memory_limit, summed)]

    @torch.inference_mode()
    def _information(
        self, data: bytes, channels: list[int], memory_limit: int | None, kept: Callable[[np.ndarray], np.ndarray]
    ) -> list[np.ndarray]:
        """What is `kept` of the bits of all symbols, so many channels of each layer."""
        parsed = container.parse(data)
        state_bits, width, height = parsed.header.state_bits, parsed.header.width, parsed.header.height
        shapes = [
            (count, padded(height) // stride, padded(width) // stride)
            for count, stride in zip(channels, self.strides, strict=True)
        ]
        needed = plan.needed_memory(width, height) + 8 * sum(map(math.prod, shapes))
        with self._memory(width, height, needed, memory_limit):
            found = Layers(shapes, np.float64)

            def look(segment: Segment) -> None:
                bits = self._coder.symbol_bits(segment.levels, segment.indices, state_bits)
                found.add(segment.layer, kept(bits))

            self._decode_latents(parsed, look=look)
            return found.arrays

    @torch.inference_mode()
    def latents(self, data: bytes, layers: int | None = None, *, memory_limit: int | None = None) -> list[np.ndarray]:
        """The latents of a file's first `layers` layers (None: all), coarse to fine: (c, h, w) float32 each.

        What the file says before any pixel is computed, for search or recognition. h and w are the picture's sides
        divided by the layer's stride and rounded up; positions beyond its border are left out. Finer layers are not
        read, and with less than all of them the latents cannot be compared with the encoder's.
        Raises UsageError where the model has no such number of layers, and otherwise as `decode` does.
        """
        count = self._check_layers(layers)
        parsed = container.parse(data)
        height, width = parsed.header.height, parsed.header.width
        shapes = [
            (latent.channels, -(-height // latent.stride), -(-width // latent.stride))
            for latent in self._latents[:count]
        ]
        needed = plan.needed_memory(width, height) + 4 * sum(map(math.prod, shapes))
        with self._memory(width, height, needed, memory_limit):
            found = Layers(shapes, np.float32)

            def look(segment: Segment) -> None:
                found.add(segment.layer, to_values(segment.z[0]).cpu().numpy())

            self._decode_latents(parsed, count, look, finer=False)
            return found.arrays

    def estimated_bits(self, data: bytes) -> list[float]:
        """What the model's tables predict for each layer of a file, in bits, headers not included."""
        return [float(bits.sum()) for bits in self.position_bits(data)]

    def _decode_latents(
        self,
        parsed: Container,
        layers: int | None = None,
        look: Callable[[Segment], None] | None = None,
        finer: bool = True,
        rows: plan.Span | None = None,
        progress: Callable[[int, int], None] | None = None,
        last: Rows | None = None,
        grown: Callable[[], None] | None = None,
    ) -> tuple[bytes, float]:
        """Returns the SHA-256 of all latents, and the range coder's seconds.

        layers: how many to decode; the finer ones take the means of their priors (or are left out, with `finer` False),
        and then nothing is compared with the encoder's latents. look: shown every segment that is decoded.
        rows: of pixels, if not all are wanted; then nothing is compared either.
        last: to which the last top-down feature is added, band by band; after each `grown` is called.
        """
        check_not_forked(self.device)
        count = min(self._check_layers(layers), len(parsed.streams))  # of a file that is cut off there are fewer
        height, width = padded(parsed.header.height), padded(parsed.header.width)
        latents = LatentHash(self.layers)
        steps = self._steps(height, width, self.layers if finer else count, rows)
        tick = _ticker(steps, progress)
        last = Rows(height // self.strides[-1]) if last is None else last
        check_made_with(parsed.header, self.fingerprint, self.layers)
        qualities = self._qualities(parsed.header.quality, parsed.header.offsets)
        streams = [
            plan.split(stream, len(plan.segments(height // stride, width // stride)))
            for stream, stride in zip(parsed.streams[:count], self.strides, strict=False)
        ]
        walk = self._walk(qualities, height, width, steps, last)
        coder = 0.0

        def choose(prior: Prior) -> Tensor:
            tick()
            if grown is None:
                last.forget_above(last.known)  # nobody asks for it
            else:
                grown()
            if prior.layer >= count:
                return prior.mean

            def decoded(number: int, top: int, bottom: int) -> Tensor:
                nonlocal coder
                part = rows_of(prior, top, bottom)
                coming = fetch(part.scale_index[0])
                latents.catch_up()
                indices = coming().numpy()
                began = time.perf_counter()
                levels = self._coder.decode(streams[prior.layer][number], indices, parsed.header.state_bits)
                coder += time.perf_counter() - began
                z = dequantize(part, send(torch.from_numpy(levels), self.device)[None], self._topdown.snap)
                latents.update(prior.layer, z)
                if look is not None:
                    look(Segment(prior.layer, levels, indices, z))
                return z

            return self._by_segments(prior, height, width, decoded)

        descend(walk, choose)
        if grown is not None:
            grown()
        tick()
        digest = latents.digest()
        if count == self.layers and rows is None:
            check_latents(parsed.header, digest)
        return digest, coder

    def _by_segments(self, prior: Prior, height: int, width: int, make: Callable[[int, int, int], Tensor]) -> Tensor:
        """The latent of a band, made segment by segment: make(number, top, bottom) -> (1, c, bottom - top, w)."""
        stride = self.strides[prior.layer]
        spans = plan.segments(height // stride, width // stride)
        bottom = prior.top + prior.mean.shape[2]
        made = [make(n, *span) for n, span in enumerate(spans) if prior.top <= span[0] < bottom]
        return made[0] if len(made) == 1 else torch.cat(made, 2)

    def _steps(
        self, height: int, width: int, layers: int | None = None, rows: plan.Span | None = None
    ) -> list[plan.Step]:
        """Which rows of which layer to compute one after another, for a picture of that size with its padding.

        layers: how many (None: all). rows: of pixels that are wanted (None: all; else all layers are meant).
        """
        sizes = [(height // stride, width // stride) for stride in self.strides[:layers]]
        bands: list[list[plan.Span]] = []
        if rows is None:
            bands = [plan.bands(*size, stride) for size, stride in zip(sizes, self.strides, strict=False)]
        else:
            needed = rows[0] // PIXEL_STRIDE, -(-rows[1] // PIXEL_STRIDE)
            needed = self._synthesis.rows_before(*needed, height // PIXEL_STRIDE)
            for layer in reversed(range(self.layers)):
                bands.insert(0, plan.bands(*sizes[layer], self.strides[layer], needed))
                needed = self._topdown.rows_before(layer, bands[0][0][0], bands[0][-1][1], sizes[layer][0])

        def before(layer: int, top: int, bottom: int) -> plan.Span:
            return self._topdown.rows_before(layer, top, bottom, sizes[layer][0])

        return plan.interleave(bands, before)

    def _check_layers(self, layers: int | None) -> int:
        """How many layers are meant; None is all. Raises UsageError."""
        if layers is None:
            return self.layers
        if not is_whole(layers) or not 1 <= layers <= self.layers:
            raise UsageError(f"layers must be a whole number from 1 to {self.layers}, not {layers!r}")
        return int(layers)

    def _walk(
        self, qualities: Tensor, height: int, width: int, steps: list[plan.Step], last: Rows
    ) -> Generator[Prior, Tensor, Rows]:
        """The way down for a picture of that size with its padding: `TopDown.walk`, or a recording of it."""
        chunk, recorded = plan.chunk(height, width), None
        if self.record_graphs and self._recorded is not None and chunk is None and steps == self._steps(height, width):
            recorded = self._recorded.walk(qualities, height, width, last)
        return recorded or self._topdown.walk(qualities, height, width, steps, last, chunk)

    @contextmanager
    def _memory(self, width: int, height: int, needed: int, limit: int | None) -> Iterator[None]:
        """`plan.memory_for`, and the same error where a GPU's memory does not suffice, of which we have no estimate."""
        with plan.memory_for(width, height, needed, limit):
            try:
                yield
            except torch.cuda.OutOfMemoryError as error:
                if self._recorded is not None:
                    self._recorded.give_up()
                raise LimitError(
                    f"{width}x{height}: {self.device} has not enough memory for it; the CPU may"
                ) from error

    @torch.inference_mode()
    def sample(self, width: int, height: int, quality: int = 60, seed: int = 0) -> Picture:
        """A picture drawn from the model itself: every latent from its prior. What the model believes pictures are."""
        self._check(quality, None)
        container.check_size(width, height)
        qualities = self._qualities(quality, (0,) * self.layers)
        generator = np.random.Generator(np.random.PCG64(seed))

        def choose(prior: Prior) -> Tensor:
            noise = torch.from_numpy(generator.standard_normal(tuple(prior.mean.shape))).to(self.device)
            levels = torch.round(2 * noise * scale_of(prior.scale_index)) * is_coded(prior.scale_index)
            return dequantize(prior, levels, self._topdown.snap)

        h = descend(self._topdown.walk(qualities, padded(height), padded(width)), choose)
        painter = Painter(self._synthesis, h, torch.tensor([quality], device=self.device), (height, width))
        painter.advance()
        return Picture(painter.pixels)

    # ---------------------------------------------------------------------------------------------- helpers

    def _on_device(self, values: list) -> Tensor:
        """As int64, without waiting for what a GPU is doing."""
        return send(torch.tensor(values), self.device)

    def _qualities(self, quality: int, offsets: Sequence[int]) -> Tensor:
        """(1, L) quality index of every layer."""
        return self._on_device([layer_qualities(quality, offsets)])

    @torch.inference_mode()
    def self_test(self) -> str:
        """Hex digest of what a decoder makes of fixed symbols, and the coder of that. The same everywhere."""
        test = SelfTest(self._coder)

        def choose(prior: Prior) -> Tensor:
            levels = torch.from_numpy(test.levels(*prior.scale_index.cpu().numpy()))
            z = dequantize(prior, levels.to(self.device), self._topdown.snap)
            test.tell(z.cpu().numpy())
            return z

        qualities = torch.tensor([[quality] * self.layers for quality in QUALITIES], device=self.device)
        h = descend(self._topdown.walk(qualities, *SIDES), choose).all()
        test.tell(h.cpu().numpy())
        for one, level in zip(h.split(1), qualities[:, 0].split(1), strict=True):  # by itself, as a decoder has it
            test.tell(self._synthesis.patches(Rows.whole(one), level).all().cpu().numpy())
        return test.hexdigest()
