"""Training images: decoded once into memory, then cropped at random as a pure function of (seed, step).

Because a batch depends on nothing but its step, a resumed run sees exactly the batches that an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..files import reason
from . import drawings

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff"}


def find_images(folder: Path) -> list[Path]:
    """All image files under `folder`, sorted by their path relative to it; but hidden ones, which macOS leaves."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def split(paths: list[Path], held_out: int) -> tuple[list[Path], list[Path]]:
    """(training, validation). The choice depends on file names alone, so it is the same everywhere."""
    ranked = sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())
    return sorted(ranked[held_out:]), ranked[:held_out]


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file, within which errors of any kind, for Pillow raises nearly all on damaged ones, are InputErrors."""
    try:
        with Image.open(path) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{path}: {reason(error)}") from error


def large_enough(paths: list[Path], min_side: int) -> list[Path]:
    """Those that `Crops` of that side would use, by their headers alone."""
    kept = []
    for path in paths:
        with opened(path) as image:
            if min(image.size) >= min_side:
                kept.append(path)
    return kept


def load(path: Path, min_side: int, downscale: tuple[float, float], seed: int) -> np.ndarray | None:
    """(H, W, 3) uint8, downscaled by a factor drawn from `downscale`; None where it is smaller than `min_side`.

    Downscaling hides what an earlier compression left in the photograph.
    """
    with opened(path) as file:
        image = file.convert("RGB")
    if min(image.size) < min_side:
        return None
    rng = np.random.default_rng([seed, int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16)])
    factor = max(rng.uniform(*downscale), min_side / min(image.size))
    if factor < 1:
        size = tuple(max(min_side, round(side * factor)) for side in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=None)
    return np.asarray(image)


class Crops:
    """Random square crops of photographs held in memory, which are drawn in proportion to their areas.

    So large photographs count for more than small ones, which are mostly thumbnails: sharper, pixel for pixel, than
    what a camera writes. A share of the crops is drawn instead (`drawings.py`).
    """

    def __init__(
        self, paths: list[Path], patch: int, downscale: tuple[float, float], seed: int, drawn_share: float = 0.0
    ):
        self.patch, self.seed, self.drawn_share = patch, seed, drawn_share
        if drawn_share:
            drawings.fonts()  # or an error, now
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            loaded = pool.map(lambda path: load(path, patch, downscale, seed), paths)
            self.images = [image for image in loaded if image is not None]
        if not self.images:
            raise InputError(f"no image of at least {patch} px on each side among {len(paths)} files")
        areas = np.array([image.shape[0] * image.shape[1] for image in self.images], np.float64)
        self.shares = areas / areas.sum()

    def batch(self, number: int, size: int) -> Tensor:
        """(size, 3, patch, patch) uint8, channels last in memory: a function of the seed and `number` alone."""
        rng = np.random.default_rng([self.seed, 1, number])
        patch = self.patch
        out = np.empty((size, patch, patch, 3), np.uint8)
        for row, index in enumerate(rng.choice(len(self.images), size=size, p=self.shares)):
            image = self.images[index]
            if self.drawn_share and rng.random() < self.drawn_share:
                out[row] = drawings.draw(rng, patch, image)
                continue
            y = rng.integers(image.shape[0] - patch + 1)
            x = rng.integers(image.shape[1] - patch + 1)
            crop = image[y : y + patch, x : x + patch]
            if rng.random() < 0.5:
                crop = crop[:, ::-1]
            if rng.random() < 0.2:  # other orientations, seldom: photographs are mostly upright
                crop = crop.transpose(1, 0, 2)
            out[row] = crop
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def batches(self, first: int, size: int, every: int = 1) -> Iterator[Tensor]:
        """The batches of numbers first, first + every, ... without end, the next few cut in the background."""
        workers = max(1, (os.cpu_count() or 1) // 4)
        numbers = count(first, every)
        with ThreadPoolExecutor(workers) as pool:
            coming = deque(pool.submit(self.batch, number, size) for number in islice(numbers, 2 * workers))
            try:
                while True:
                    yield coming.popleft().result()
                    coming.append(pool.submit(self.batch, next(numbers), size))
            finally:
                for batch in coming:
                    batch.cancel()


def to_unit(batch: Tensor, device: torch.device) -> Tensor:
    """(B, 3, P, P) uint8 -> float in [0, 1] on the device, channels last in memory."""
    return batch.to(device, non_blocking=True).float() / 255.0


def centre_crops(paths: list[Path], patch: int) -> Tensor:
    """(N, 3, patch, patch) float in [0, 1]: the middle of each validation photograph, at 0.6 of its size."""
    crops = []
    for path in paths:
        with opened(path) as file:
            image = file.convert("RGB")
        factor = max(0.6, patch / min(image.size))
        image = image.resize([max(patch, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)
        left, top = (image.width - patch) // 2, (image.height - patch) // 2
        crops.append(np.asarray(image.crop((left, top, left + patch, top + patch))))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255.0
