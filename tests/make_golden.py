"""Make the golden files of tests/golden with the default model: `python tests/make_golden.py`.

Run it only when the format or the shipped model changes on purpose: a released golden file must decode for ever.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import ImageCms

from hvcompress.allocation import allocation_offsets
from hvcompress.container import STATE_BITS
from hvcompress.image_writing import to_pil
from hvcompress.loading import load_model
from hvcompress.picture import Picture

GOLDEN = Path(__file__).parent / "golden"
STRIDES = (64, 32, 16, 16, 16, 8, 8, 8)  # of the default model's layers


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8: shaded areas, edges and grain, made of integers alone."""
    generator = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([(x * a + y * b) // 3 % 256 for a, b in ((2, 1), (1, 2), (1, 1))], 2)
    for _ in range(8):
        cy, cx, r = (int(v) for v in generator.integers((0, 0, 3), (height + 1, width + 1, 30)))
        inside = (x - cx) ** 2 + (y - cy) ** 2 < r * r
        picture[inside] = (picture[inside] // 3 + generator.integers(0, 170, 3)) % 256
    grain = generator.integers(-12, 13, (height, width, 1)) * (y < height // 2)[:, :, None]
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def cases() -> dict[str, tuple[Picture, int, tuple[int, ...] | None]]:
    """Name -> picture, quality, offsets."""

    def gray(p):
        return np.repeat(p[:, :, :1], 3, axis=2)

    alpha = scene(48, 40, 9)[:, :, 1]
    return {
        "one_pixel": (Picture(scene(1, 1, 1)), 60, None),
        "row": (Picture(scene(1, 70, 2)), 60, None),
        "column": (Picture(scene(70, 1, 3)), 60, None),
        "odd": (Picture(scene(65, 127, 4)), 60, None),
        "worst": (Picture(scene(128, 192, 5)), 0, None),
        "middle": (Picture(scene(128, 192, 5)), 50, None),
        "best": (Picture(scene(128, 192, 5)), 100, None),
        "betas": (Picture(scene(128, 192, 5)), 50, (12, 12, -6, 0, 6, 12, 12, 6)),
        "hyperprior": (Picture(scene(96, 128, 10)), 50, allocation_offsets("hyperprior", STRIDES)),
        "detail": (Picture(scene(96, 128, 10)), 50, allocation_offsets("detail", STRIDES)),
        "icc": (
            Picture(scene(40, 56, 11), icc=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
            60,
            None,
        ),
        "metadata": (
            Picture(
                scene(40, 56, 12),
                icc=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
                exif=bytes.fromhex("49492a0008000000 0200 0f0102000400000043616d00 120103000100000001000000 00000000"),
                xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><!-- tiff:Orientation="1" --></x:xmpmeta>',
            ),
            60,
            None,
        ),
        "gray": (Picture(gray(scene(64, 64, 6)), gray=True), 60, None),
        "alpha": (Picture(scene(48, 40, 7), alpha=alpha), 60, None),
        "gray_alpha": (Picture(gray(scene(48, 40, 8)), gray=True, alpha=alpha), 60, None),
    }


def segmented() -> Picture:
    """Large enough for two segments, and smooth enough for a small file."""
    y, x = np.mgrid[0:2080, 0:2048]
    return Picture(np.stack([(x + y) // 17, x // 8, y // 9], 2).astype(np.uint8))


def main() -> None:
    codec = load_model(device="cpu")
    GOLDEN.mkdir(exist_ok=True)
    digests = {}
    for name, (picture, quality, offsets) in cases().items():
        encoded = codec.encode(picture, quality, offsets)
        (GOLDEN / f"{name}.hvci").write_bytes(encoded.data)
        to_pil(encoded.picture).save(GOLDEN / f"{name}.png", optimize=True)
        digests[name] = codec.latent_digest(encoded.data)
    for state_bits in STATE_BITS:
        made = codec._encode_with(codec._encoder, Picture(scene(96, 128, 13)), 50, (0,) * 8, state_bits, True)
        (GOLDEN / f"states_{state_bits}.hvci").write_bytes(made.data)
        to_pil(made.picture).save(GOLDEN / f"states_{state_bits}.png", optimize=True)
        digests[f"states_{state_bits}"] = codec.latent_digest(made.data)
    data = codec.encode(segmented(), 0).data
    (GOLDEN / "segmented.hvci").write_bytes(data)
    digests["segmented"] = codec.latent_digest(data)
    (GOLDEN / "latents.json").write_text(json.dumps(digests, indent=1) + "\n")


if __name__ == "__main__":
    main()
