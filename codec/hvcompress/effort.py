"""Effort: a longer search, and an encoder fitted to the one picture that it is about to encode.

The decoder does not change. The first thing that time buys is a trellis of more states (`machine.py`). The second: a
copy of the encoder's weights goes on being trained, with the objective of training, on this picture at this quality
alone; what it has to give up is being right for all other pictures. (The weights of an encoder generalise imperfectly:
Cremer et al. 2018, "Inference suboptimality in variational autoencoders". Optimising the latents themselves gains next
to nothing here; see `docs/training.md`.) A step sees a small part of the picture: many inexact steps gain more in the
same time than few exact ones. What scatters from step to step is averaged out of the weights.

A layer's prior follows from the symbols of the coarser ones, so the slightest change of the encoder leads to another
file, tenths of a percent or more better or worse. So several of the last encoders make a file each, and the best is
taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import container
from .errors import UsageError
from .exact import relaxed
from .machine import FAST_BITS
from .metrics import mean_squared_error
from .model import Parts
from .network import MAX_STRIDE, Encoder
from .picture import Picture
from .pixels import to_tensor
from .plan import padded
from .precision import autocast
from .quality import is_whole, lambda_of, layer_qualities
from .training.average import follow
from .training.objective import evaluate

if TYPE_CHECKING:
    from .codec import Encoded

LEARNING_RATE = 1.5e-4  # of Adam, at its peak
WARMUP = 5  # steps
WINDOW = 256  # pixels on each side of what one step sees of a larger picture
TAIL = 0.2  # share of the steps: the time constant of the weights' average, and the last steps, in which files are made


@dataclass(frozen=True)
class Level:
    """What an effort means."""

    state_bits: int  # of the trellis
    steps: int = 0  # of training
    files: int = 0  # made by encoders that it led to


LEVELS = {
    1: Level(FAST_BITS),
    2: Level(14),
    3: Level(16),
    4: Level(16, steps=32, files=1),
    5: Level(16, steps=64, files=1),
    6: Level(16, steps=128, files=2),
    7: Level(16, steps=256, files=4),
    8: Level(16, steps=512, files=8),
    9: Level(16, steps=1024, files=16),
}


def level_of(effort: int) -> Level:
    """What an effort of 1..9 means. Raises UsageError."""
    if not is_whole(effort) or effort not in LEVELS:
        raise UsageError(f"effort must be a whole number from {min(LEVELS)} to {max(LEVELS)}, not {effort!r}")
    return LEVELS[effort]


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


def best_encoding(
    encode: Callable[[Encoder, Callable[[int, int], None]], Encoded],
    parts: Parts,
    picture: Picture,
    quality: int,
    offsets: tuple[int, ...],
    level: Level,
    progress: Callable[[int, int], None] | None,
) -> Encoded:
    """The best of the files that the model's own encoder makes and those that are fitted to the picture.

    encode: makes a verified file with an encoder, and tells how far it is. parts: the model. progress: as that of
    `Codec.encode`.
    """
    done, total = 0, level.steps + 1 + level.files

    def tell(more: int = 0) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    def encoded(encoder: Encoder) -> Encoded:
        made = encode(encoder, lambda *_: tell())
        tell(1)
        return made

    tell()
    began = time.perf_counter()
    best = encoded(parts.encoder)
    cost, seconds = lagrangian(picture, best), best.seconds
    for encoder in fitted_encoders(parts, picture.pixels, quality, offsets, level, lambda: tell(1)):
        made = encoded(encoder)
        seconds = {part: seconds[part] + made.seconds[part] for part in seconds}
        made_cost = lagrangian(picture, made)
        if made_cost < cost:
            best, cost = made, made_cost
    if done < total:  # training broke down
        tell(total - done)
    seconds["fit"] = time.perf_counter() - began - sum(seconds.values())  # with what it takes to compare the files
    return replace(best, seconds=seconds)


def _window(height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of a picture, on the grid of the coarsest latents."""

    def span(size: int) -> tuple[int, int]:
        side = min(size, WINDOW)
        # Drawn from beyond the ends as well: else corners were seen a 16th as often as the middle, now a third.
        first = MAX_STRIDE * int(generator.integers(1 - side // MAX_STRIDE, size // MAX_STRIDE))
        return min(max(first, 0), size - side), side

    (top, height), (left, width) = span(height), span(width)
    return top, left, height, width


@torch.inference_mode(False)
@torch.enable_grad()
def fitted_encoders(
    parts: Parts,
    pixels: np.ndarray,
    quality: int,
    offsets: tuple[int, ...],
    level: Level,
    tell: Callable[[], None] | None = None,
) -> Iterator[Encoder]:
    """Train a copy of the encoder on one picture; yields level.files encoders, fewer if training breaks down.

    They come evenly from the last TAIL of the training, in turns the weights as they are and their average, which comes
    last. They are changed in place: use each before asking for the next.

    parts: a model as it is loaded; not changed. pixels: (H, W, 3) uint8. tell: called after every step.
    """
    steps, tail = level.steps, TAIL * level.steps
    moments = [steps - round(tail * number / level.files) for number in range(level.files)]  # the last one first
    device = parts.encoder.stem.weight.device
    encoder = deepcopy(parts.encoder).requires_grad_(True)
    student = Parts(encoder, relaxed(parts.topdown), relaxed(parts.synthesis), parts.tables)
    average = deepcopy(parts.encoder)
    adam = torch.optim.Adam(encoder.parameters(), LEARNING_RATE, betas=(0.9, 0.99))
    qualities = torch.tensor([quality], device=device)
    layer_offsets = torch.tensor([offsets], device=device)
    noise = torch.Generator(device).manual_seed(0)  # so that a run can be repeated on the same machine
    places = np.random.Generator(np.random.PCG64(0))
    for step in range(steps):
        top, left, height, width = _window(*map(padded, pixels.shape[:2]), places)
        part = pixels[top : top + height, left : left + width]
        window = to_tensor(part, device)  # padded as the whole picture is
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * (1.0 - step / steps)
        with autocast(device):
            loss = evaluate(
                student, window, qualities, layer_offsets, noise=noise, weight_exponent=0.0, size=part.shape[:2]
            ).loss
        if not torch.isfinite(loss):
            return
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay = min(1.0 - 1.0 / tail, (step + 1) / (step + 3))  # at first less, or the model's own weights would linger
        follow(average, encoder, decay)
        if tell is not None:
            tell()
        if step + 1 in moments:
            yield (average, encoder)[moments.index(step + 1) % 2]
