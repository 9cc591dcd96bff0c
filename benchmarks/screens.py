"""Rate-distortion on screenshots, which are not what the model is for: real files of ours beside the other codecs.

    python benchmarks/screens.py DIR

DIR holds the pictures of the Debian handbook in English, as the package debian-handbook 11.20220922 has them in
html/en-US/images (anywhere: apt-get download debian-handbook, then dpkg -x it). 14 screenshots of desktops, programs
and installers and two diagrams are measured, laid on white where they are transparent. None was trained on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

import kodak

HERE = Path(__file__).resolve().parent
NAMES = (
    "aptitude cinnamon evolution firefox gnome kmail lxqt synaptic wireshark webmin inst-partman release-cycle "
    "thunderbird inst-country-txt mate netfilter"
).split()
QUALITIES = ("10", "30", "50", "70", "90")
CODECS = ("hvcompress", "webp", "jpegxl", "avif")


def flattened(path: Path) -> Image.Image:
    with Image.open(path) as file:
        if file.mode == "RGB":
            return file.copy()
        picture = file.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/screens.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="html/en-US/images of the package debian-handbook")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "screens", help="where results go")
    parser.add_argument("--model", help="name or folder of our model (the default one)")
    options = parser.parse_args(argv)
    missing = [name for name in NAMES if not (options.folder / f"{name}.png").is_file()]
    if missing:
        parser.error(f"{options.folder} lacks {missing[0]}.png")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "screens"  # as the report calls them
        folder.mkdir()
        for name in NAMES:
            flattened(options.folder / f"{name}.png").save(folder / f"{name}.png")
        model = ["--model", options.model] if options.model else []
        settings = ["--out", str(options.out), "--qualities", *QUALITIES, "--codecs", *CODECS, *model]
        return kodak.main([str(folder), "--any-images", *settings])


if __name__ == "__main__":
    sys.exit(main())
