"""Large pictures: memory, time per pixel, seams, and parts decoded alone.

    python benchmarks/large.py DIR --sides 2000 5000 20000

DIR holds photographs, of which pictures of any size are made: enlarged, mirrored and laid side by side. Each is coded
and decoded by the command in a process of its own, which tells its peak memory. A seam would show as more error in the
rows along the borders of bands and segments than in all others. Rows of other sides, and of other models, are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from hvcompress import plan, read_info  # noqa: E402
from hvcompress.model import find_model  # noqa: E402
from hvcompress.training.data import find_images  # noqa: E402

STRIDE = 8  # of the finest layer, whose bands are the narrowest
AROUND = 4  # pixel rows on either side of a border
# The command line; the last line that it prints is then its peak memory.
COMMAND = """
import sys
from hvcompress.cli import main
from peak import peak_mib
code = main()
print(peak_mib())
sys.exit(code)
"""


def mosaic(paths: list[Path], side: int, out: Path) -> np.ndarray:
    """A PPM file of side x side pixels, and its pixels, (side, side, 3) uint8, from the disk."""
    with open(out, "wb") as file:
        file.write(f"P6\n{side} {side}\n255\n".encode())
        number = done = 0
        while done < side:
            row, height = [], min(1024, side - done)
            for _ in range(0, side, 1536):
                with Image.open(paths[number % len(paths)]) as opened:
                    enlarged = opened.convert("RGB").resize((1536, 1024), Image.Resampling.BICUBIC)
                tile = np.asarray(enlarged)[:height]
                row.append(tile[:, ::-1] if number // len(paths) % 2 else tile)
                number += 1
            file.write(np.ascontiguousarray(np.concatenate(row, 1)[:, :side]).tobytes())
            done += height
    return pixels_of(out, side, side)


def pixels_of(path: Path, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 of a PPM file, read from the disk as needed."""
    return np.memmap(path, np.uint8, "r", path.stat().st_size - 3 * height * width, (height, width, 3))


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in GiB of a command."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE.parent / "codec"), str(HERE)))}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], env=environment, stdout=subprocess.PIPE)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"hvcompress {arguments[0]} failed with exit code {done.returncode}")
    return seconds, float(done.stdout.splitlines()[-1]) / 2**10


def squared_errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(H,) mean squared error of every row."""
    step = 256
    return np.concatenate(
        [
            np.square(a[top : top + step].astype(np.float32) - b[top : top + step]).mean((1, 2))
            for top in range(0, len(a), step)
        ]
    )


def borders(height: int, width: int) -> np.ndarray:
    """(H,) bool: rows next to where one segment or band of the finest layer ends and another begins."""
    size = -(-height // 64) * 64 // STRIDE, -(-width // 64) * 64 // STRIDE
    near = np.zeros(height, bool)
    for top, _ in plan.segments(*size)[1:]:
        near[max(0, top * STRIDE - AROUND) : top * STRIDE + AROUND] = True
    return near


def decibels(error: float) -> float:
    return float(10 * np.log10(255.0**2 / error))


def measure(paths: list[Path], side: int, quality: int, folder: Path) -> dict:
    source, coded, back, part = (folder / name for name in ("in.ppm", "in.hvci", "out.ppm", "part.ppm"))
    original = mosaic(paths, side, source)
    row: dict = {"side": side, "megapixels": side * side / 1e6, "quality": quality}
    row["encode_s"], row["encode_gib"] = run(["encode", "--no-verify", "-f", "-q", str(quality), str(source)])
    row["decode_s"], row["decode_gib"] = run(["decode", "-f", str(coded), "-o", str(back)])
    decoded = pixels_of(back, side, side)
    errors, near = squared_errors(original, decoded), borders(side, side)
    row["bpp"] = 8 * coded.stat().st_size / (side * side)
    row["psnr"] = decibels(errors.mean())
    row["borders"] = int(near.sum()) // (2 * AROUND)
    if near.any():
        row["psnr_at_borders"], row["psnr_elsewhere"] = decibels(errors[near].mean()), decibels(errors[~near].mean())
    size = min(1000, side)
    corner = (side - size) // 2
    row["crop_s"], row["crop_gib"] = run(
        ["decode", "-f", "--crop", f"{corner},{corner},{size},{size}", str(coded), "-o", str(part)]
    )
    there = decoded[corner : corner + size, corner : corner + size].astype(int)
    row["crop_difference"] = int(np.abs(pixels_of(part, size, size) - there).max())
    row["layer_bytes"] = read_info(coded.read_bytes()).layer_bytes
    return row


def merged(rows: list[dict], row: dict) -> list[dict]:
    """The rows with this one, which takes the place of that of the same model and side."""

    def key(of: dict) -> tuple[str | None, int]:
        return of.get("fingerprint"), of["side"]  # older rows do not say which model made them

    return sorted([kept for kept in rows if key(kept) != key(row)] + [row], key=lambda of: of["side"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[2000, 5000, 20000])
    parser.add_argument("--quality", type=int, default=40)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "large.json")
    arguments = parser.parse_args()
    paths = find_images(arguments.folder)
    model = find_model(None)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(arguments.out.read_text()) if arguments.out.is_file() else []
    for side in sorted(set(arguments.sides)):
        with tempfile.TemporaryDirectory() as folder:
            row = {"model": model.name, "fingerprint": model.fingerprint}
            row |= measure(paths, side, arguments.quality, Path(folder))
        rows = merged(rows, row)
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        print(json.dumps(shown), flush=True)
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
