"""How far betas per layer move the bits between the layers, and what that costs against equal betas.

    python benchmarks/allocation.py DIR --limit 4

Real files. Beside equal betas it measures the named allocations, and each offset on the layers of one stride at a time.
A share is compared with that of equal betas at the same PSNR, so that a mere change of quality counts as nothing. The
verdict looks for a point of unequal betas that needs fewer bits than equal betas do for its PSNR.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

import numpy as np  # noqa: E402

import rd  # noqa: E402
from hvcompress.allocation import ALLOCATIONS, REACH, allocation_offsets  # noqa: E402
from hvcompress.codec import Codec, load_model  # noqa: E402
from hvcompress.container import read_info  # noqa: E402
from hvcompress.image_io import Picture, read_picture  # noqa: E402
from hvcompress.metrics import psnr  # noqa: E402
from hvcompress.quality import LEVELS, beta_of  # noqa: E402
from hvcompress.training.data import find_images  # noqa: E402
from measure import spread_evenly, write_rows  # noqa: E402

EQUAL = "balanced"
TOLERANCE = 0.3  # percent of the bits; interpolating the curve of equal betas is no better than that


def settings_of(strides: tuple[int, ...], offsets: list[int]) -> dict[str, tuple[int, ...]]:
    """Name -> quality offset per layer; equal betas come first."""
    made = {name: allocation_offsets(name, strides) for name in sorted(ALLOCATIONS, key=lambda name: name != EQUAL)}
    for stride in sorted(set(strides), reverse=True):
        for offset in offsets:
            made[f"stride {stride}, {offset:+}"] = tuple(offset if s == stride else 0 for s in strides)
    return made


def measure(
    codec: Codec, picture: Picture, settings: dict[str, tuple[int, ...]], qualities: list[int]
) -> Iterator[dict]:
    """A row per setting and quality. bits: of the layers of each stride, headers left out; bpp is the whole file's."""
    strides = codec.strides
    height, width = picture.pixels.shape[:2]
    for name, offsets in settings.items():
        for quality in qualities:
            encoded = codec.encode(picture, quality, offsets)
            layers = list(zip(strides, read_info(encoded.data).layer_bytes, strict=True))
            yield {
                "setting": name,
                "point": f"{name}, quality {quality}",
                "quality": quality,
                "bpp": round(8 * len(encoded.data) / (height * width), 6),
                "psnr": round(psnr(picture.pixels, encoded.picture.pixels), 5),
                "bits": {str(stride): sum(8 * n for s, n in layers if s == stride) for stride in set(strides)},
            }


def mean_shares(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one setting -> mean PSNR (Q,), and percent of the bits by stride (Q, strides), coarse to fine.

    Both in order of PSNR.
    """
    points: dict[int, list[dict]] = {}
    for row in rows:
        points.setdefault(row["quality"], []).append(row)
    decibels = np.array([np.mean([row["psnr"] for row in group]) for group in points.values()])
    strides = sorted(rows[0]["bits"], key=int, reverse=True)
    bits = np.array([[sum(row["bits"][s] for row in group) for s in strides] for group in points.values()], float)
    order = np.argsort(decibels)
    return decibels[order], (100 * bits / bits.sum(1, keepdims=True))[order]


def compare(rows: list[dict], settings: dict[str, tuple[int, ...]]) -> list[dict]:
    """Per setting: shares, how far they are from those of equal betas at equal PSNR, and the cost in bits.

    worst and best: of the points, percent of the bits against the curve of equal betas at the point's PSNR; None where
    that curve does not reach any of them.
    """
    by_setting = {name: [row for row in rows if row["setting"] == name] for name in settings}
    curves = {
        name: rd.mean_curve(name, name, [row | {"msssim": None} for row in mine]) for name, mine in by_setting.items()
    }
    equal_psnr, equal_shares = mean_shares(by_setting[EQUAL])
    results = []
    for name, offsets in settings.items():
        curve = curves[name]
        decibels, shares = mean_shares(by_setting[name])
        within = (decibels >= equal_psnr[0]) & (decibels <= equal_psnr[-1])
        expected = np.stack([np.interp(decibels, equal_psnr, column) for column in equal_shares.T], 1)
        excess = 100 * (np.array(curve.bpp) / rd.bpp_at(curves[EQUAL], np.array(curve.psnr)) - 1)
        excess = excess[~np.isnan(excess)]
        moved = (shares - expected)[within].mean(0).tolist() if within.any() else None
        bd_rate = rd.bd_rate(curves[EQUAL], curve)
        results.append(
            {
                "setting": name,
                "offsets": list(offsets),
                "shares": [round(share, 2) for share in shares.mean(0).tolist()],
                "moved": moved and [round(share, 2) for share in moved],
                "bd_rate": None if bd_rate is None else round(bd_rate, 3),
                "best": round(float(excess.min()), 3) if len(excess) else None,
                "worst": round(float(excess.max()), 3) if len(excess) else None,
            }
        )
    return results


def verdict(results: list[dict]) -> str:
    gains = {result["setting"]: result["best"] for result in results if result["best"] is not None}
    winner = min(gains, key=gains.get)
    if gains[winner] < -TOLERANCE:
        return f"equal betas lie on the hull: no ({winner} saves up to {-gains[winner]:.2f} % of the bits)"
    return f"equal betas lie on the hull: yes (no point saves more than {TOLERANCE} % of the bits)"


def table(results: list[dict], strides: list[int]) -> str:
    """shares: mean over the qualities, coarse to fine; moved: percentage points."""

    def cells(values: list[float] | None, form: str) -> str:
        return " ".join(f"{value:{form}}" for value in values) if values else " ".join(["     -"] * len(strides))

    def percent(value: float | None) -> str:
        return "       -" if value is None else f"{value:+8.2f}"

    width = max(len(result["setting"]) for result in results)
    groups = " ".join(f"{f's{stride}':>6}" for stride in strides)
    lines = [
        f"{'':{width}}  {'share, %':{len(groups)}}  {'moved at equal PSNR':{len(groups)}}  BD-rate     best    worst",
        f"{'setting':{width}}  {groups}  {groups}        %        %        %",
    ]
    for result in results:
        figures = "  ".join((cells(result["shares"], "6.2f"), cells(result["moved"], "+6.2f")))
        cost = " ".join(percent(result[key]) for key in ("bd_rate", "best", "worst"))
        lines.append(f"{result['setting']:{width}}  {figures} {cost}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/allocation.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="pictures")
    parser.add_argument("--qualities", type=int, nargs="+", default=list(range(10, 100, 10)), metavar="Q")
    parser.add_argument("--offsets", type=int, nargs="+", default=[-REACH, -REACH // 2, REACH // 2, REACH])
    parser.add_argument("--limit", type=int, default=4, help="pictures to take, evenly from the folder's (4)")
    parser.add_argument("--model", help="name or folder (the default one)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "allocation.json")
    options = parser.parse_args()
    if options.limit < 1:
        parser.error("--limit must be at least 1")
    qualities = sorted(set(options.qualities))
    if len(qualities) < 2 or not 0 <= qualities[0] < qualities[-1] < LEVELS:
        parser.error(f"--qualities must be at least two of 0..{LEVELS - 1}")
    paths = find_images(options.folder)
    if not paths:
        parser.error(f"no pictures in {options.folder}")
    chosen = spread_evenly(paths, options.limit)
    codec = load_model(options.model, options.device)
    strides = codec.strides
    settings = settings_of(strides, [offset for offset in sorted(set(options.offsets)) if offset])
    rows: list[dict] = []
    for number, path in enumerate(chosen, 1):
        rows += [{"image": path.name} | row for row in measure(codec, read_picture(path), settings, qualities)]
        print(f"{number}/{len(chosen)} {path.name}", file=sys.stderr, flush=True)
    results = compare(rows, settings)
    groups = sorted(set(strides), reverse=True)
    record = {
        "model": codec.name,
        "fingerprint": codec.fingerprint,
        "device": str(codec.device),
        "qualities": qualities,
        "strides": groups,
        "verdict": verdict(results),
        "settings": results,
        "rows": rows,
    }
    write_rows(options.out, record)
    print(f"model {codec.name}, {len(chosen)} pictures, qualities {' '.join(map(str, qualities))}")
    print(f"offsets of {REACH} are betas of {beta_of(-REACH):.2f} and {beta_of(REACH):.2f}")
    print(table(results, groups))
    print(verdict(results))


if __name__ == "__main__":
    main()
