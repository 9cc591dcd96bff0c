"""Rate-distortion arithmetic: MS-SSIM, curves, Bjontegaard deltas, and comparison at equal rate.

Rates are bits per pixel. A curve is the mean over images of rate and of PSNR at each setting of a codec, which is how
the published curves were made (not the PSNR of a pooled error).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PUBLISHED = Path(__file__).resolve().parent / "published" / "kodak_rd.json"
BD_METHOD = "pchip"
MIN_OVERLAP = 1.0  # dB, or points of VMAF: a delta over less than this says nothing
# What an exact reconstruction counts as: its PSNR, and its MS-SSIM in dB, would be infinite.
BEST_PSNR = 100.0
BEST_MSSSIM = 1 - 5e-8  # rows have seven digits
MEASURES = ("psnr", "msssim", "vmaf", "psnr_hvs")  # of distortion: columns of rows, and fields of curves


@dataclass(frozen=True)
class Curve:
    """Points of one codec in order of rate. source: where published figures were taken from, empty if measured here."""

    key: str
    label: str
    bpp: tuple[float, ...]
    psnr: tuple[float, ...]  # dB, RGB
    msssim: tuple[float, ...] = ()  # 0..1, may be missing
    source: str = ""
    vmaf: tuple[float, ...] = ()  # 0..100, may be missing
    psnr_hvs: tuple[float, ...] = ()  # dB, may be missing


@dataclass(frozen=True)
class EqualRate:
    """How one curve lies to another between two rates; positive dB and negative percent favour the first."""

    low: float  # bpp, the range in which both curves exist
    high: float
    worst_db: float
    worst_db_at: float  # bpp
    worst_percent: float | None  # rate for the other one's PSNR; None where the first never has that PSNR
    worst_percent_at: float | None  # bpp of the other one
    uncovered: tuple[str, ...]  # parts of the range asked for where a curve is missing, in words
    always_better: bool  # higher PSNR at every rate asked for where the other exists; False where the first is missing


# --------------------------------------------------------------------------------------------------------------------
# Distortion (PSNR is the package's own, hvcompress.metrics)


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float | None:
    """MS-SSIM of two (H, W, 3) uint8 arrays by pytorch-msssim; None for a side under 161 pixels (five scales)."""
    if min(a.shape[:2]) <= 160:
        return None
    import torch
    from pytorch_msssim import ms_ssim as measure

    x, y = (torch.from_numpy(np.array(p, np.float32).transpose(2, 0, 1))[None] for p in (a, b))
    return float(measure(x, y, data_range=255))


def msssim_db(values: Iterable[float]) -> list[float]:
    return [-10 * math.log10(1 - value) for value in values]


# --------------------------------------------------------------------------------------------------------------------
# Curves


def capped(rows: list[dict]) -> list[dict]:
    """The rows with finite figures, also where a reconstruction is exact."""
    return [
        row
        | {"psnr": min(row["psnr"], BEST_PSNR)}
        | {"msssim": None if row["msssim"] is None else min(row["msssim"], BEST_MSSSIM)}
        for row in rows
    ]


def mean_curve(key: str, label: str, rows: list[dict]) -> Curve:
    """Mean over images at each setting. rows: dicts with point, image, bpp, psnr, msssim, and other MEASURES if any.

    Raises ValueError if the settings were not all measured on the same images.
    """
    by_point: dict[str, list[dict]] = {}
    for row in capped(rows):
        by_point.setdefault(row["point"], []).append(row)
    if len({frozenset(row["image"] for row in group) for group in by_point.values()}) != 1:
        raise ValueError(f"{label}: some settings were not measured on every image")
    groups = sorted(by_point.values(), key=lambda group: _mean(group, "bpp"))
    measured = {name: tuple(_mean(group, name) for group in groups) for name in ("bpp", *MEASURES)}
    return Curve(key, label, **{name: () if None in values else values for name, values in measured.items()})


def _mean(rows: list[dict], name: str) -> float | None:
    """None where a row lacks it."""
    values = [row.get(name) for row in rows]
    return None if None in values else float(np.mean(values))


def published_curves() -> list[Curve]:
    """The cited curves of published/kodak_rd.json."""
    entries = json.loads(PUBLISHED.read_text(encoding="utf-8"))["entries"]
    return [
        Curve(e["key"], e["label"], tuple(e["bpp"]), tuple(e["psnr"]), tuple(e.get("msssim", ())), e["source"])
        for e in entries
    ]


def rising(rate: Iterable[float], quality: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """The points that a smaller file does not beat: rate and quality both strictly rising, as interpolation needs."""
    kept: list[tuple[float, float]] = []
    for r, q in sorted(zip(rate, quality, strict=True), key=lambda point: (point[0], -point[1])):
        if not kept or (r > kept[-1][0] and q > kept[-1][1]):
            kept.append((r, q))
    return np.array([r for r, _ in kept]), np.array([q for _, q in kept])


def psnr_at(curve: Curve, bpp: np.ndarray | float) -> np.ndarray:
    """PSNR at a rate, NaN outside the curve."""
    from scipy.interpolate import PchipInterpolator

    rate, decibels = rising(curve.bpp, curve.psnr)
    if len(rate) < 2:  # no curve
        return np.full(np.shape(bpp), np.nan)
    return PchipInterpolator(np.log(rate), decibels, extrapolate=False)(np.log(bpp))


def bpp_at(curve: Curve, psnr: np.ndarray | float) -> np.ndarray:
    """Rate needed for a PSNR, NaN outside the curve."""
    from scipy.interpolate import PchipInterpolator

    rate, decibels = rising(curve.bpp, curve.psnr)
    if len(rate) < 2:  # no curve
        return np.full(np.shape(psnr), np.nan)
    return np.exp(PchipInterpolator(decibels, np.log(rate), extrapolate=False)(psnr))


# --------------------------------------------------------------------------------------------------------------------
# Comparison


def bd_rate(anchor: Curve, test: Curve, measure: str = "psnr") -> float | None:
    """BD-rate of test against anchor in percent over the quality range they share; negative means fewer bits.

    measure: one of MEASURES; MS-SSIM counts in dB, -10 log10(1 - MS-SSIM). None where a curve lacks it, or if they
    share less than MIN_OVERLAP.
    """
    values = [getattr(curve, measure) for curve in (anchor, test)]
    if not all(values):
        return None
    if measure == "msssim":
        values = [msssim_db(similarity) for similarity in values]
    return _delta(rising(anchor.bpp, values[0]), rising(test.bpp, values[1]))


def bd_rate_in_band(anchor: Curve, test: Curve, low: float, high: float) -> float | None:
    """BD-rate over low..high dB only; None unless both curves span the whole band."""
    # The package integrates over all that two curves share, so the curves are cut at the band's ends, with enough
    # points between them to stay the same curves.
    levels = np.linspace(low, high, 33)
    rates = [bpp_at(curve, levels) for curve in (anchor, test)]
    if any(np.isnan(rate).any() for rate in rates):
        return None
    return _delta((rates[0], levels), (rates[1], levels))


def _delta(anchor: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float | None:
    import bjontegaard

    if min(len(anchor[0]), len(test[0])) < 2:
        return None
    overlap = min(anchor[1].max(), test[1].max()) - max(anchor[1].min(), test[1].min())
    if overlap < MIN_OVERLAP:
        return None
    # min_overlap=0: its warning about partial overlap is noise here, most curves have different ends.
    return float(bjontegaard.bd_rate(*anchor, *test, BD_METHOD, require_matching_points=False, min_overlap=0))


def compare_at_equal_rate(ours: Curve, other: Curve, low: float, high: float) -> EqualRate | None:
    """Compare two curves at every rate between low and high bpp where both exist; None if there is no such rate."""
    uncovered = []
    for name, curve in ((ours.label, ours), (other.label, other)):
        if min(curve.bpp) > low:
            uncovered.append(f"{name} starts at {min(curve.bpp):.3f} bpp")
        if max(curve.bpp) < high:
            uncovered.append(f"{name} ends at {max(curve.bpp):.3f} bpp")
    start = max(low, min(ours.bpp), min(other.bpp))
    end = min(high, max(ours.bpp), max(other.bpp))
    if start >= end:
        return None
    rates = np.geomspace(start * (1 + 1e-9), end * (1 - 1e-9), 400)
    target = psnr_at(other, rates)
    gain = psnr_at(ours, rates) - target
    percent = 100 * (bpp_at(ours, target) / rates - 1)  # NaN where ours does not come so low or so high
    finite = ~np.isnan(gain)
    if not finite.any():
        return None
    rates, gain, percent = rates[finite], gain[finite], percent[finite]
    worst = int(np.argmin(gain))
    worst_percent, percent_at = None, None
    if not np.isnan(percent).all():
        i = int(np.nanargmax(percent))
        worst_percent, percent_at = float(percent[i]), float(rates[i])
    # A rate that the other cannot reach is no rate to be beaten at; one that the first cannot reach is.
    reaches = min(ours.bpp) <= max(low, min(other.bpp)) and max(ours.bpp) >= min(high, max(other.bpp))
    return EqualRate(
        low=start,
        high=end,
        worst_db=float(gain[worst]),
        worst_db_at=float(rates[worst]),
        worst_percent=worst_percent,
        worst_percent_at=percent_at,
        uncovered=tuple(uncovered),
        always_better=reaches and bool(gain.min() > 0),
    )
