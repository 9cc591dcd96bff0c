"""The pictures of the README: the rate-distortion curves, and one photo beside JPEG at equal file size.

    python benchmarks/pictures.py DIR --out docs/images

DIR is the Kodak set. The curves are those that benchmarks/kodak.py measured last; nothing is measured again for them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
MARGIN, GAP, CAPTION = 12, 10, 62  # pixels
INK, PAPER = (32, 32, 32), (255, 255, 255)


@dataclass(frozen=True)
class Shown:
    """One panel: a name, a line of figures, and the whole picture, (H, W, 3) uint8."""

    name: str
    figures: str
    pixels: np.ndarray


def jpeg_at_least(image: Image.Image, size: int) -> tuple[int, bytes]:
    """The smallest JPEG 4:2:0 (optimized) of at least `size` bytes, and its quality; the largest one if none is."""
    from classical import jpeg420

    best: tuple[int, bytes] | None = None
    for quality in range(1, 96):  # not a bisection: sizes do not quite rise with every step
        data = jpeg420(image, quality)
        if len(data) >= size and (best is None or len(data) < len(best[1])):
            best = quality, data
    return best or (95, jpeg420(image, 95))


def side_by_side(panels: list[Shown], box: tuple[int, int, int, int]) -> Image.Image:
    """The same crop (left, top, width, height) of each, pixel for pixel, with captions under them."""
    left, top, width, height = box
    full = 2 * MARGIN + len(panels) * width + (len(panels) - 1) * GAP
    canvas = Image.new("RGB", (full, 2 * MARGIN + height + CAPTION), PAPER)
    draw = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(17), ImageFont.load_default(14)
    for i, panel in enumerate(panels):
        x = MARGIN + i * (width + GAP)
        canvas.paste(Image.fromarray(panel.pixels[top : top + height, left : left + width]), (x, MARGIN))
        draw.text((x, MARGIN + height + 8), panel.name, INK, large)
        draw.text((x, MARGIN + height + 34), panel.figures, INK, small)
    return canvas


def photo(path: Path, quality: int, box: tuple[int, int, int, int], model: str | None, device: str) -> Image.Image:
    """Original, ours, and JPEG of (at least) our size. Raises HvcompressError."""
    from classical import pillow_decode
    from hvcompress.image_reading import read_picture
    from hvcompress.loading import load_model
    from hvcompress.metrics import psnr
    from measure import read_rgb

    image = read_rgb(path)
    original = np.asarray(image)
    encoded = load_model(model, device=device).encode(read_picture(original), quality, verify=True)
    jpeg_quality, jpeg_data = jpeg_at_least(image, len(encoded.data))
    jpeg, ours = pillow_decode(jpeg_data), encoded.picture.pixels

    def panel(name: str, data: bytes, decoded: np.ndarray) -> Shown:
        return Shown(name, f"{len(data):,} bytes, PSNR {psnr(original, decoded):.2f} dB", decoded)

    return side_by_side(
        [
            panel(f"JPEG 4:2:0, quality {jpeg_quality}", jpeg_data, jpeg),
            panel(f"hvcompress, quality {quality}", encoded.data, ours),
            Shown("original", f"{original.nbytes:,} bytes uncompressed", original),
        ],
        box,
    )


def main(argv: list[str] | None = None) -> int:
    from kodak import missing_packages
    from kodak_set import NotKodakError, find_images

    parser = argparse.ArgumentParser(prog="benchmarks/pictures.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="the 24 PNGs of the Kodak set")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "images", help="folder (docs/images)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="what kodak.py wrote")
    parser.add_argument("--image", default="kodim15.png", help="the photo (kodim15.png)")
    parser.add_argument("--quality", type=int, default=10, help="of ours (10)")
    parser.add_argument("--crop", type=int, nargs=4, default=(300, 70, 288, 360), metavar=("X", "Y", "W", "H"),
                        help="what is shown of it (300 70 288 360)")  # fmt: skip
    parser.add_argument("--model", help="name or folder of our model (the default one)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    options = parser.parse_args(argv)
    try:
        images = {path.name: path for path in find_images(options.folder)}
    except NotKodakError as error:
        print(f"benchmarks/pictures.py: {error}", file=sys.stderr)
        return 2
    if options.image not in images:
        parser.error(f"--image is one of {min(images)} to {max(images)}")
    with Image.open(images[options.image]) as image:
        size = image.size
    x, y, width, height = options.crop
    if min(x, y) < 0 or min(width, height) < 1 or x + width > size[0] or y + height > size[1]:
        parser.error(f"--crop does not lie within {options.image}, {size[0]}x{size[1]}")
    if not (options.results / "curves.json").is_file():
        parser.error(f"{options.results} has no curves.json: run benchmarks/kodak.py first")
    missing = missing_packages()
    if missing:
        parser.error(f"not installed: {', '.join(missing)}; pip install -e '.[bench]'")
    from hvcompress.errors import HvcompressError

    options.out.mkdir(parents=True, exist_ok=True)
    draw_curves(options.results / "curves.json", options.out / "rd.png")
    try:
        shown = photo(images[options.image], options.quality, tuple(options.crop), options.model, options.device)
    except HvcompressError as error:
        print(f"benchmarks/pictures.py: {error}", file=sys.stderr)
        return error.exit_code
    shown.save(options.out / "photo.png", optimize=True)
    print(f"written: {options.out / 'rd.png'}, {options.out / 'photo.png'}")
    return 0


def draw_curves(source: Path, path: Path) -> None:
    """The picture of curves.json."""
    import rd
    import rd_plot

    measured = json.loads(source.read_text(encoding="utf-8"))
    names = ("bpp", *rd.MEASURES)
    curves = [rd.Curve(**{**c, **{name: tuple(c.get(name, ())) for name in names}}) for c in measured["curves"]]
    kodak = measured["pictures"].startswith("Kodak")
    rd_plot.draw(curves, rd.published_curves() if kodak else [], path, measured["pictures"])


if __name__ == "__main__":
    sys.exit(main())
