"""What the measurements say: figures as a dictionary for summary.json, and as tables for a person."""

from __future__ import annotations

import math
from dataclasses import asdict
from importlib.metadata import version

import numpy as np

import rd
from measure import OURS

# Anchors by key, measured or published. Published JPEG has default Huffman tables, which cost it 14 %: the figures that
# papers give against JPEG are mostly against such files.
ANCHORS = ("jpeg420", "jpeg-published", "webp", "jpegxl", "avif", "avif-default", "bpg", "av1", "vtm18")
JPEG = "jpeg420"  # whose quality scale people know
LOOKS = {"msssim": "MS-SSIM in dB", "vmaf": "VMAF (NEG)", "psnr_hvs": "PSNR-HVS"}  # in tables, beside PSNR
BANDS = ((28, 31), (31, 34), (34, 37), (37, 40))
SECONDS = ("encode_fit_s", "encode_network_s", "encode_coder_s", "decode_network_s", "decode_coder_s")
EQUAL_RATE = (0.15, 1.5)  # bpp, where our curve is to lie above WebP's PSNR


def summarise(measured: list[rd.Curve], published: list[rd.Curve], rows: dict[str, list[dict]]) -> dict:
    """All figures that follow from the curves and from the rows of the measured codecs, by key."""
    known = {curve.key: curve for curve in (*published, *measured)}
    anchors = [known[key] for key in ANCHORS if key in known]
    everyone = [*measured, *published]
    summary: dict = {
        "bd_method": f"{rd.BD_METHOD} on log rate over the shared range, package bjontegaard {version('bjontegaard')}",
        "anchors": {anchor.key: anchor.label for anchor in anchors},
        "labels": {curve.key: curve.label for curve in everyone},
        "bd_rate_psnr": {c.key: {a.key: _rounded(rd.bd_rate(a, c)) for a in anchors} for c in everyone},
    }
    for measure in LOOKS:
        shared = [anchor for anchor in anchors if getattr(anchor, measure)]
        found = {c.key: {a.key: _rounded(rd.bd_rate(a, c, measure)) for a in shared} for c in measured}
        summary[f"bd_rate_{measure}"] = found
    ours = next((curve for curve in measured if curve.key == OURS), None)
    if ours is None:
        return summary
    summary["bands"] = {
        a.key: {f"{low}-{high} dB": _rounded(rd.bd_rate_in_band(a, ours, low, high)) for low, high in BANDS}
        for a in anchors
    }
    summary["equal_rate"] = {}
    for key in ("webp", "webp-published", "jpeg420", "avif", "bpg"):
        margin = rd.compare_at_equal_rate(ours, known[key], *EQUAL_RATE) if key in known else None
        if margin is not None:
            summary["equal_rate"][key] = asdict(margin)
    summary["range"] = {"bpp": [min(ours.bpp), max(ours.bpp)], "psnr": [min(ours.psnr), max(ours.psnr)]}
    beaten = len(ours.bpp) - len(rd.rising(ours.bpp, ours.psnr)[0])
    summary["settings_beaten_by_a_smaller_file"] = beaten
    summary["ours"] = _per_setting(rows[OURS])
    if JPEG in rows:
        summary["jpeg_of_equal_psnr"] = _of_equal_psnr(summary["ours"], known[JPEG], _per_setting(rows[JPEG]))
    return summary


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 2)


def _of_equal_psnr(ours: list[dict], curve: rd.Curve, jpeg: list[dict]) -> list[dict]:
    """For each setting of ours the quality and the rate at which JPEG has its PSNR, interpolated between settings.

    curve, jpeg: JPEG's curve and its means per setting. None where it was measured at no PSNR so low or so high.
    """
    from scipy.interpolate import PchipInterpolator

    settings = [float(line["point"].removeprefix("quality ")) for line in jpeg]
    qualities, decibels = rd.rising(settings, [line["psnr"] for line in jpeg])
    if len(qualities) < 2:
        return []
    quality_at = PchipInterpolator(decibels, qualities, extrapolate=False)
    out = []
    for line in ours:
        quality, bpp = float(quality_at(line["psnr"])), float(rd.bpp_at(curve, line["psnr"]))
        found = {"jpeg_quality": None, "jpeg_bpp": None}
        if not math.isnan(quality + bpp):
            found = {"jpeg_quality": round(quality), "jpeg_bpp": bpp}
        out.append({"point": line["point"], "psnr": line["psnr"], "bpp": line["bpp"]} | found)
    return out


def _per_setting(rows: list[dict]) -> list[dict]:
    """Means (medians for seconds) over the images at each setting of a codec."""
    rows = rd.capped(rows)
    out = []
    for point in dict.fromkeys(row["point"] for row in rows):
        group = [row for row in rows if row["point"] == point]
        line: dict = {"point": point}
        for name in ("bytes", "bpp", *rd.MEASURES):
            values = [row.get(name) for row in group]
            line[name] = None if None in values else float(np.mean(values))
        for name in SECONDS:
            if all(name in row for row in group):
                line[name] = float(np.median([row[name] for row in group]))
        if all("estimated_bits" in row for row in group):
            excess = [100 * (8 * row["bytes"] / row["estimated_bits"] - 1) for row in group]
            total = 100 * (8 * sum(r["bytes"] for r in group) / sum(r["estimated_bits"] for r in group) - 1)
            line |= {"over_estimate_percent": total, "over_estimate_percent_worst": max(excess)}
        out.append(line)
    return out


# --------------------------------------------------------------------------------------------------------------------
# For a person


def as_text(summary: dict, measured: list[rd.Curve], title: str) -> str:
    """The whole report."""
    parts = [title]
    if "ours" in summary:
        parts += [_ours_table(summary["ours"]), _ours_lines(summary)]
    if "jpeg_of_equal_psnr" in summary:
        parts += [_jpeg_table(summary["jpeg_of_equal_psnr"], summary["labels"][JPEG])]
    if not summary["anchors"]:
        return "\n\n".join(parts) + "\n"
    parts += [_bd_tables(summary, [curve.key for curve in measured])]
    if "bands" in summary:
        columns = [f"{low}-{high} dB" for low, high in BANDS]
        lines = [[summary["labels"][a], *(_percent(v[c]) for c in columns)] for a, v in summary["bands"].items()]
        parts += [f"BD-rate of {OURS} by PSNR band, %\n" + table(["against", *columns], lines)]
    return "\n\n".join(parts) + "\n"


def _ours_table(lines: list[dict]) -> str:
    head = ["setting", "bytes", "bpp", "PSNR", "MS-SSIM", "in dB", "VMAF", "PSNR-HVS"]
    head += ["encode fit", "+ network", "+ coder", "decode network", "+ coder", "file/estimate"]
    body = []
    for line in lines:
        similarity = line["msssim"]
        seconds = [f"{line[n]:.3f} s" if n in line else "-" for n in SECONDS]
        over = "-"
        if "over_estimate_percent" in line:
            over = f"{line['over_estimate_percent']:+.2f} % (worst {line['over_estimate_percent_worst']:+.2f} %)"
        body.append(
            [line["point"], f"{line['bytes']:.0f}", f"{line['bpp']:.4f}", f"{line['psnr']:.3f}"]
            + ["-" if similarity is None else f"{similarity:.5f}"]
            + ["-" if similarity is None else f"{rd.msssim_db([similarity])[0]:.2f}"]
            + ["-" if line[name] is None else f"{line[name]:.2f}" for name in ("vmaf", "psnr_hvs")]
            + [*seconds, over]
        )
    return f"{OURS}: means over the pictures (seconds: medians)\n" + table(head, body)


def _ours_lines(summary: dict) -> str:
    low, high = EQUAL_RATE
    bpp, decibels = summary["range"]["bpp"], summary["range"]["psnr"]
    lines = [f"Range of {OURS}: {bpp[0]:.3f} to {bpp[1]:.3f} bpp, {decibels[0]:.2f} to {decibels[1]:.2f} dB."]
    beaten = summary["settings_beaten_by_a_smaller_file"]
    if beaten:
        lines.append(f"{beaten} settings are left out of the curve: a smaller file has the same or a higher PSNR.")
    for key, m in summary["equal_rate"].items():
        rate = "it never has its PSNR"
        if m["worst_percent"] is not None:
            rate = f"worst rate for its PSNR {m['worst_percent']:+.1f} % at {m['worst_percent_at']:.3f} bpp"
        verdict = "YES" if m["always_better"] else "NO"
        if not m["always_better"] and m["worst_db"] > 0:
            verdict = f"only from {m['low']:.3f} to {m['high']:.3f}, where {OURS} has files"
        lines.append(
            f"Better than {summary['labels'][key]} at every rate from {low} to {high} bpp: {verdict}; "
            f"worst margin {m['worst_db']:+.2f} dB at {m['worst_db_at']:.3f} bpp, {rate}."
        )
        if m["uncovered"]:
            lines.append(f"    compared from {m['low']:.3f} to {m['high']:.3f} bpp only: {'; '.join(m['uncovered'])}")
    return "\n".join(lines)


def _jpeg_table(lines: list[dict], label: str) -> str:
    body = []
    for line in lines:
        cells = [line["point"], f"{line['psnr']:.3f}", f"{line['bpp']:.4f}"]
        reached = line["jpeg_quality"] is not None
        body.append(cells + ([str(line["jpeg_quality"]), f"{line['jpeg_bpp']:.4f}"] if reached else ["-", "-"]))
    title = f"JPEG of equal PSNR: {label}, interpolated between the settings that were measured\n"
    return title + table(["setting", "PSNR", "bpp", "JPEG quality", "JPEG bpp"], body)


def _bd_tables(summary: dict, measured: list[str]) -> str:
    labels, anchors = summary["labels"], summary["anchors"]

    def block(name: str, keys: list[str]) -> list[list[str]]:
        figures = summary[name]
        used = list(anchors) if name == "bd_rate_psnr" else list(next(iter(figures.values())))
        return [[labels[key], *(_percent(figures[key][a]) for a in used)] for key in keys]

    published = [key for key in summary["bd_rate_psnr"] if key not in measured]
    head = ["against", *(anchors[a] for a in anchors)]
    text = f"BD-rate over PSNR, % (negative: fewer bits); {summary['bd_method']}\n"
    groups = [("measured here", measured), ("published, cited", published)]
    body = [line for name, keys in groups if keys for line in ([f"[{name}]"], *block("bd_rate_psnr", keys))]
    text += table(head, body)
    for measure, title in LOOKS.items():
        used = list(next(iter(summary[f"bd_rate_{measure}"].values())))
        if used:
            text += f"\n\nBD-rate over {title}, %\n"
            text += table(["against", *(anchors[a] for a in used)], block(f"bd_rate_{measure}", measured))
    return text


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def table(head: list[str], body: list[list[str]]) -> str:
    """Columns to the right, the first one to the left; a row of one cell is a heading."""
    whole = [row for row in (head, *body) if len(row) > 1]
    widths = [max(len(row[i]) for row in whole) for i in range(len(head))]
    widths[0] = max([widths[0], *(len(row[0]) for row in body)])

    def line(row: list[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1 : len(row)], strict=True))
        return "  ".join([row[0].ljust(widths[0]), *rest]).rstrip()

    return "\n".join([line(head), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, body)])
