"""What `--effort` buys: bits saved at equal PSNR, and what it costs in time.

    python benchmarks/effort.py DIR --efforts 3 6 9 --qualities 20 50 80 --limit 6

Real files. The curve of effort 1 that a file is compared with goes through qualities 5 below to 5 above, so that a
mere shift along that curve counts as nothing. Times are ratios to encoding at effort 1, within this run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

import numpy as np  # noqa: E402

from hvcompress.codec import Codec, Encoded  # noqa: E402
from hvcompress.effort import lagrangian, level_of  # noqa: E402
from hvcompress.image_reading import read_picture  # noqa: E402
from hvcompress.loading import load_model  # noqa: E402
from hvcompress.metrics import psnr  # noqa: E402
from hvcompress.picture import Picture  # noqa: E402
from hvcompress.training.data import find_images  # noqa: E402
from measure import spread_evenly, write_rows  # noqa: E402

NEIGHBOUR = 5  # quality steps to either side


def saved(low: tuple[float, float], high: tuple[float, float], point: tuple[float, float]) -> float:
    """Share of the bits that `point` saves against the line from `low` to `high`; each is (bytes, PSNR).

    Between neighbouring qualities PSNR is very nearly linear in the logarithm of the rate. A picture whose neighbours
    are equally good has no such line: nan.
    """
    if high[1] == low[1]:
        return float("nan")
    place = (point[1] - low[1]) / (high[1] - low[1])
    return 1.0 - point[0] / np.exp((1 - place) * np.log(low[0]) + place * np.log(high[0]))


def measure(codec: Codec, picture: Picture, quality: int, efforts: list[int]) -> list[dict]:
    """A row per effort."""

    def point(encoded: Encoded) -> tuple[float, float]:
        return len(encoded.data), psnr(picture.pixels, encoded.picture.pixels)

    plain = codec.encode(picture, quality)
    below, above = max(quality - NEIGHBOUR, 0), min(quality + NEIGHBOUR, 100)
    low, middle, high = point(codec.encode(picture, below)), point(plain), point(codec.encode(picture, above))
    # The neighbours' line, shifted to pass through the plain file: what is left is what effort has gained.
    bend = saved(low, high, middle)
    rows = []
    for effort in efforts:
        made = codec.encode(picture, quality, effort=effort)
        size, decibel = point(made)
        rows.append(
            {
                "quality": quality,
                "effort": effort,
                "bytes": size,
                "psnr": round(decibel, 4),
                "bytes_effort_1": middle[0],
                "psnr_effort_1": round(middle[1], 4),
                "saved": round(1 - (1 - saved(low, high, (size, decibel))) / (1 - bend), 6),
                "lagrangian": round(lagrangian(picture, made) / lagrangian(picture, plain) - 1, 6),
                "time_ratio": round(sum(made.seconds.values()) / sum(plain.seconds.values()), 2),
            }
        )
    return rows


def table(rows: list[dict], efforts: list[int], qualities: list[int]) -> str:
    """Means over the pictures."""
    head = "effort  states  steps  files  " + "  ".join(f"q {quality:<3} saves" for quality in qualities)
    head += "  time, times effort 1"
    lines = [head]
    for effort in efforts:
        mine = [row for row in rows if row["effort"] == effort]
        gains = [100 * np.nanmean([row["saved"] for row in mine if row["quality"] == quality]) for quality in qualities]
        ratio = np.median([row["time_ratio"] for row in mine])
        level = level_of(effort)
        saves = "  ".join(f"{gain:9.2f} %" for gain in gains)
        lines.append(
            f"{effort:6}  {1 << level.state_bits:6}  {level.steps:5}  {1 + level.files:5}  {saves}  {ratio:10.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/effort.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="pictures")
    parser.add_argument("--efforts", type=int, nargs="+", default=[3, 6, 9], choices=range(2, 10), metavar="2..9")
    parser.add_argument("--qualities", type=int, nargs="+", default=[20, 50, 80])
    parser.add_argument("--limit", type=int, default=6, help="pictures to take, evenly from the folder's (6)")
    parser.add_argument("--model", help="name or folder (the default one)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "effort.json")
    options = parser.parse_args()
    if options.limit < 1:
        parser.error("--limit must be at least 1")
    paths = find_images(options.folder)
    if not paths:
        parser.error(f"no pictures in {options.folder}")
    chosen = spread_evenly(paths, options.limit)
    codec = load_model(options.model, options.device)
    rows = []
    made_with = {"model": codec.name, "fingerprint": codec.fingerprint, "device": str(codec.device)}
    for number, path in enumerate(chosen, 1):
        picture = read_picture(path)
        for quality in options.qualities:
            rows += [{"image": path.name} | row for row in measure(codec, picture, quality, options.efforts)]
        write_rows(options.out, made_with | {"rows": rows})
        print(f"{number}/{len(chosen)} {path.name}", file=sys.stderr, flush=True)
    print(f"model {codec.name}, {len(chosen)} pictures\n" + table(rows, options.efforts, options.qualities))


if __name__ == "__main__":
    main()
