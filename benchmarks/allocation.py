"""How far betas per layer move the bits between the layers, and what that costs against equal betas.

    python benchmarks/allocation.py DIR --limit 4

Real files. Beside equal betas it measures the named allocations, and each offset on one layer at a time. A share is
compared with that of equal betas at the same PSNR, so that a mere change of quality counts as nothing. The verdict
looks for unequal betas that need fewer bits than equal ones over the whole curve, by more than chance. For the named
allocations previews are decoded as well, from all layers but those of the finest stride.
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
from hvcompress.codec import Codec  # noqa: E402
from hvcompress.container import read_info  # noqa: E402
from hvcompress.image_reading import read_picture  # noqa: E402
from hvcompress.loading import load_model  # noqa: E402
from hvcompress.metrics import psnr  # noqa: E402
from hvcompress.picture import Picture  # noqa: E402
from hvcompress.quality import LEVELS, beta_of  # noqa: E402
from hvcompress.training.data import find_images  # noqa: E402
from measure import spread_evenly, write_rows  # noqa: E402

EQUAL = "balanced"
TOLERANCE = 0.3  # percent of the bits; interpolating between qualities is no better than that


def settings_of(strides: tuple[int, ...], offsets: list[int]) -> dict[str, tuple[int, ...]]:
    """Name -> quality offset per layer; equal betas come first. strides: of the layers, coarse to fine."""
    made = {name: allocation_offsets(name, strides) for name in sorted(ALLOCATIONS, key=lambda name: name != EQUAL)}
    for moved in range(len(strides)):
        for offset in offsets:
            offsets_of = tuple(offset if layer == moved else 0 for layer in range(len(strides)))
            made[f"layer {moved + 1}, beta {beta_of(offset):.2f}"] = offsets_of
    return made


def measure(
    codec: Codec, picture: Picture, settings: dict[str, tuple[int, ...]], qualities: list[int]
) -> Iterator[dict]:
    """A row per setting and quality. bits: of each layer, headers left out; bpp is the whole file's."""
    height, width = picture.pixels.shape[:2]
    coarse = sum(stride > codec.strides[-1] for stride in codec.strides)
    for name, offsets in settings.items():
        for quality in qualities:
            encoded = codec.encode(picture, quality, offsets)
            yield {
                "setting": name,
                "point": f"{name}, quality {quality}",
                "quality": quality,
                "bpp": round(8 * len(encoded.data) / (height * width), 6),
                "psnr": round(psnr(picture.pixels, encoded.picture.pixels), 5),
                "bits": [8 * size for size in read_info(encoded.data).layer_bytes],
                "preview": round(psnr(picture.pixels, codec.decode(encoded.data, coarse).pixels), 5)
                if name in ALLOCATIONS
                else None,
            }


def mean_shares(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one setting -> mean PSNR (Q,), and percent of the bits by layer (Q, L), coarse to fine.

    Both in order of PSNR.
    """
    points: dict[int, list[dict]] = {}
    for row in rows:
        points.setdefault(row["quality"], []).append(row)
    decibels = np.array([np.mean([row["psnr"] for row in group]) for group in points.values()])
    bits = np.array([np.sum([row["bits"] for row in group], 0) for group in points.values()], float)
    order = np.argsort(decibels)
    return decibels[order], (100 * bits / bits.sum(1, keepdims=True))[order]


def previews(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one setting -> mean bits per pixel of the files and mean PSNR of the previews, (Q,) each, ascending."""
    points: dict[int, list[dict]] = {}
    for row in rows:
        points.setdefault(row["quality"], []).append(row)
    means = sorted(
        (np.mean([r["bpp"] for r in group]), np.mean([r["preview"] for r in group])) for group in points.values()
    )
    bpp, decibels = np.array(means).T
    return bpp, decibels


def preview_gain(equal: list[dict], other: list[dict]) -> float | None:
    """Mean dB by which previews are better than those of equal betas, for files of the same size."""
    if any(row["preview"] is None for row in other):
        return None
    (equal_bpp, expected), (bpp, found) = previews(equal), previews(other)
    within = (bpp >= equal_bpp[0]) & (bpp <= equal_bpp[-1])
    return float((found - np.interp(np.log(bpp), np.log(equal_bpp), expected))[within].mean()) if within.any() else None


def error_of_bd_rate(equal: list[dict], other: list[dict]) -> float | None:
    """Standard error of the BD-rate over the pictures; None for fewer than two."""

    def curve(rows: list[dict], image: str) -> rd.Curve:
        return rd.mean_curve(image, image, [row | {"msssim": None} for row in rows if row["image"] == image])

    images = sorted({row["image"] for row in equal})
    rates = [rd.bd_rate(curve(equal, image), curve(other, image)) for image in images]
    rates = [rate for rate in rates if rate is not None]
    return float(np.std(rates, ddof=1) / np.sqrt(len(rates))) if len(rates) > 1 else None


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
        bd_rate, bd_rate_error = rd.bd_rate(curves[EQUAL], curve), error_of_bd_rate(by_setting[EQUAL], by_setting[name])
        gain = preview_gain(by_setting[EQUAL], by_setting[name])
        results.append(
            {
                "setting": name,
                "offsets": list(offsets),
                "shares": [round(share, 2) for share in shares.mean(0).tolist()],
                "moved": moved and [round(share, 2) for share in moved],
                "bd_rate": None if bd_rate is None else round(bd_rate, 3),
                "bd_rate_error": None if bd_rate_error is None else round(bd_rate_error, 3),
                "preview": None if gain is None else round(gain, 3),
                "best": round(float(excess.min()), 3) if len(excess) else None,
                "worst": round(float(excess.max()), 3) if len(excess) else None,
            }
        )
    return results


def verdict(results: list[dict]) -> str:
    """Whether some setting saves more than the tolerance and more than two standard errors over the pictures."""
    found = [result for result in results if result["bd_rate"] is not None]
    if not found:
        return "equal betas lie on the hull: cannot tell (no curves to compare)"
    winner = min(found, key=lambda result: result["bd_rate"])
    saves, error = -winner["bd_rate"], winner["bd_rate_error"]
    beaten = saves > TOLERANCE and error is not None and saves > 2 * error
    chance = "" if error is None else f", standard error {error:.2f}"
    return (
        f"equal betas lie on the hull: {'no' if beaten else 'yes'} "
        f"(most is saved by {winner['setting']}: {saves:.2f} % of the bits{chance})"
    )


def table(results: list[dict]) -> str:
    """Share: mean over the qualities, by layer. Moved: of the layer that has an offset, in points at equal PSNR.

    BD-rate, its standard error, best and worst point: percent of the bits. Preview: dB for files of the same size.
    """

    def percent(value: float | None) -> str:
        return "       -" if value is None else f"{value:+8.2f}"

    width = max(len(result["setting"]) for result in results)
    layers = range(len(results[0]["shares"]))
    head = " ".join(f"{layer + 1:5}" for layer in layers)
    lines = [f"{'setting':{width}}  share of layer, %: {head}    moved  BD-rate    error     best    worst  preview"]
    for result in results:
        changed = [layer for layer in layers if result["offsets"][layer]]
        moved = result["moved"][changed[0]] if result["moved"] and len(changed) == 1 else None
        shares = " ".join(f"{share:5.1f}" for share in result["shares"])
        cost = " ".join(percent(result[key]) for key in ("bd_rate", "bd_rate_error", "best", "worst", "preview"))
        lines.append(f"{result['setting']:{width}}  {'':18} {shares} {percent(moved)} {cost}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/allocation.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="pictures")
    parser.add_argument("--qualities", type=int, nargs="+", default=list(range(10, 100, 10)), metavar="Q")
    parser.add_argument("--offsets", type=int, nargs="+", default=[-REACH, REACH], help="in quality steps")
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
    settings = settings_of(codec.strides, [offset for offset in sorted(set(options.offsets)) if offset])
    rows: list[dict] = []
    for number, path in enumerate(chosen, 1):
        rows += [{"image": path.name} | row for row in measure(codec, read_picture(path), settings, qualities)]
        print(f"{number}/{len(chosen)} {path.name}", file=sys.stderr, flush=True)
    results = compare(rows, settings)
    record = {
        "model": codec.name,
        "fingerprint": codec.fingerprint,
        "device": str(codec.device),
        "qualities": qualities,
        "strides": list(codec.strides),
        "verdict": verdict(results),
        "settings": results,
        "rows": rows,
    }
    write_rows(options.out, record)
    print(f"model {codec.name}, {len(chosen)} pictures, qualities {' '.join(map(str, qualities))}")
    print(f"offsets of {REACH} are betas of {beta_of(-REACH):.2f} and {beta_of(REACH):.2f}")
    print(table(results))
    print(verdict(results))


if __name__ == "__main__":
    main()
