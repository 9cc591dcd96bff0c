"""What weighing bits against error in rounding gains, on held-out training photographs (never on Kodak).

    python benchmarks/rounding.py DIR [--pictures 12] [--weights 20 30 40 60]

DIR is the folder that the model was trained on; its held-out part is used. Prints, per quality and weight, the change
of rate and of the Lagrangian (bits + lambda * squared error) against plain rounding, both as shares of the rate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from hvcompress import codec as codec_module
from hvcompress.image_io import Picture
from hvcompress.quality import lambda_of
from hvcompress.training import data

QUALITIES = (10, 30, 50, 70, 90)
PLAIN = 1e9  # no saving of bits is worth that


def lagrangians(codec, pictures: list[np.ndarray], weight: float) -> dict[int, tuple[float, float]]:
    """Quality -> mean (bits per pixel, bits per pixel + lambda * squared error)."""
    codec_module.ROUNDING_WEIGHT = weight
    result = {}
    for quality in QUALITIES:
        costs = []
        for pixels in pictures:
            encoded = codec.encode(Picture(pixels), quality)
            bpp = encoded.estimated_bits / (pixels.shape[0] * pixels.shape[1])
            error = np.mean((encoded.picture.pixels.astype(float) - pixels) ** 2)
            costs.append((bpp, bpp + lambda_of(quality) * error))
        result[quality] = tuple(np.mean(costs, 0))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--model", help="name or folder of a model (the default one)")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--held-out", type=int, default=40, help="of the recipe (40)")
    parser.add_argument("--weights", type=float, nargs="+", default=(20, 30, 40, 60))
    options = parser.parse_args()
    _, held_out = data.split(data.find_images(options.folder), options.held_out)
    crops = data.centre_crops(held_out[: options.pictures], 256).permute(0, 2, 3, 1).numpy()
    pictures = list((crops * 255).round().astype(np.uint8))
    codec = codec_module.load_model(options.model, "cpu")
    plain = lagrangians(codec, pictures, PLAIN)
    print("weight  " + "".join(f"{f'quality {quality}':>22}" for quality in QUALITIES))
    for weight in options.weights:
        cells = []
        for quality, (rate, cost) in lagrangians(codec, pictures, weight).items():
            rate0, cost0 = plain[quality]
            cells.append(f"{100 * (rate / rate0 - 1):+7.2f} %, cost {100 * (cost - cost0) / rate0:+6.2f} %")
        print(f"{weight:6g}  " + "".join(f"{cell:>22}" for cell in cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
