"""Effort: a longer search, and an encoder fitted to the one picture that it is about to encode.

The decoder does not change. The first thing that time buys is a trellis of more states (`machine.py`). The second: a
copy of the encoder's weights goes on being trained, with the objective of training, on this picture at this quality
alone; what it has to give up is being right for all other pictures. (The weights of an encoder generalise imperfectly:
Cremer et al. 2018, "Inference suboptimality in variational autoencoders". Optimising the latents themselves gains next
to nothing here; see `docs/training.md`.)
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError
from .exact import relaxed
from .model import Parts
from .network import MAX_STRIDE, Encoder
from .precision import autocast
from .quality import is_whole
from .training.objective import evaluate

LEARNING_RATE = 1e-4  # of Adam, at its peak
WARMUP = 5  # steps
WINDOW = (512, 768)  # shorter and longer side, in pixels, of what one step sees of a larger picture


@dataclass(frozen=True)
class Level:
    """What an effort means."""

    state_bits: int  # of the trellis
    steps: int = 0  # of training


LEVELS = {
    1: Level(10),
    2: Level(12),
    3: Level(14),
    4: Level(14, steps=8),
    5: Level(14, steps=16),
    6: Level(14, steps=32),
    7: Level(14, steps=64),
    8: Level(14, steps=128),
    9: Level(14, steps=256),
}


def level_of(effort: int) -> Level:
    """What an effort of 1..9 means. Raises UsageError."""
    if not is_whole(effort) or effort not in LEVELS:
        raise UsageError(f"effort must be a whole number from {min(LEVELS)} to {max(LEVELS)}, not {effort!r}")
    return LEVELS[effort]


def _window(height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of a picture, on the grid of the coarsest latents."""
    limits = WINDOW if height <= width else WINDOW[::-1]
    sides = [min(size, limit) for size, limit in zip((height, width), limits, strict=True)]
    free = [size - side for size, side in zip((height, width), sides, strict=True)]
    top, left = (MAX_STRIDE * int(generator.integers(room // MAX_STRIDE + 1)) for room in free)
    return top, left, *sides


@torch.inference_mode(False)
@torch.enable_grad()
def fit_encoder(
    parts: Parts,
    image: Tensor,
    size: tuple[int, int],
    quality: int,
    offsets: tuple[int, ...],
    steps: int,
    tell: Callable[[], None] | None = None,
) -> Encoder:
    """A copy of the encoder, trained on one picture.

    parts: a model as it is loaded; not changed. image: (1, 3, H, W) in [0, 1], sides multiples of 64; size: the height
    and width of it that count, the rest being padding. tell: called after every step.
    """
    device = image.device
    image = image.clone()  # the caller's may not be fit for gradients
    encoder = deepcopy(parts.encoder).requires_grad_(True)
    student = Parts(encoder, relaxed(parts.topdown), relaxed(parts.synthesis), parts.tables)
    adam = torch.optim.Adam(encoder.parameters(), LEARNING_RATE, betas=(0.9, 0.99))
    qualities = torch.tensor([quality], device=device)
    layer_offsets = torch.tensor([offsets], device=device)
    noise = torch.Generator(device).manual_seed(0)  # so that a run can be repeated on the same machine
    places = np.random.Generator(np.random.PCG64(0))
    for step in range(steps):
        top, left, height, width = _window(*image.shape[-2:], places)
        window = image[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
        counts = min(height, size[0] - top), min(width, size[1] - left)
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * (1.0 - step / steps)
        with autocast(device):
            loss = evaluate(
                student, window, qualities, layer_offsets, noise=noise, weight_exponent=0.0, size=counts
            ).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        if tell is not None:
            tell()
    if not all(torch.isfinite(weight).all() for weight in encoder.parameters()):
        return parts.encoder  # nothing was learnt
    return encoder.requires_grad_(False)
