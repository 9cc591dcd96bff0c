"""The picture of the rate-distortion curves: measured ones bold with markers, published ones thin."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import rd
from measure import OURS

# Published curves that are drawn, with a line style. The table has all of them; a picture of twenty says nothing.
PUBLISHED_STYLE = {
    "mlic++": ("#7b3294", (0, (1, 1.2))),
    "qarv": ("#c2571a", (0, (4, 1.5))),
    "qres": ("#e0982f", (0, (4, 1.5, 1, 1.5))),
    "vtm18": ("#000000", (0, (5, 1))),
    "mbt2018-mean": ("#2a9d8f", (0, (1, 1.2))),
    "hyperprior": ("#76b7b2", (0, (4, 1.5))),
    "bpg": ("#7f7f7f", (0, (5, 1))),
}
OTHER_MARKER = "*"  # of measured codecs that are not in MEASURED_STYLE, in colours of matplotlib's choice
MEASURED_STYLE = {
    OURS: ("#d62728", "o"),
    "avif": ("#1f5fb4", "s"),
    "avif-default": ("#7fa6dd", "s"),
    "webp": ("#2e8b3d", "^"),
    "jpegxl": ("#8c6bb1", "D"),
    "jpeg2000": ("#a0722a", "v"),
    "jpeg444": ("#9a9a9a", "P"),
    "jpeg420": ("#4d4d4d", "X"),
}
PANELS = (((0, 0.8), (25, 38)), ((0, 2.0), (25, 44)))  # bpp, dB


def draw(measured: list[rd.Curve], published: list[rd.Curve], path: Path, title: str) -> None:
    """Write a PNG with two panels: low rates and the whole range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MultipleLocator

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    handles = {}
    for ax, (rates, decibels) in zip(axes, PANELS, strict=True):
        for curve in published:
            if curve.key in PUBLISHED_STYLE:
                colour, dashes = PUBLISHED_STYLE[curve.key]
                (handles[curve.key],) = ax.plot(
                    curve.bpp, curve.psnr, color=colour, linestyle=dashes, linewidth=1.1, label=curve.label
                )
        for curve in measured:
            colour, marker = MEASURED_STYLE.get(curve.key, (None, OTHER_MARKER))
            ours = curve.key == OURS
            (handles[curve.key],) = ax.plot(
                curve.bpp, curve.psnr, color=colour, marker=marker, markersize=6 if ours else 4.5,
                linewidth=2.8 if ours else 1.5, zorder=5 if ours else 3, label=curve.label,
            )  # fmt: skip
        ax.set(xlim=rates, ylim=decibels, xlabel="bits per pixel", ylabel="PSNR (RGB), dB")
        ax.grid(color="#e4e4e4", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.yaxis.set_major_locator(MultipleLocator(2))
    # The legend reads from top to bottom as the curves do at half a bit per pixel; its headings are invisible lines.
    height = {curve.key: float(np.nan_to_num(rd.psnr_at(curve, 0.5))) for curve in (*measured, *published)}
    entries = []
    for group, curves in (("measured here, real files:", measured), ("published:", published)):
        keys = sorted((c.key for c in curves if c.key in handles), key=height.__getitem__, reverse=True)
        if keys:
            entries += [Line2D([], [], color="none", label=label) for label in ([" "] if entries else []) + [group]]
            entries += [handles[key] for key in keys]
    figure.legend(handles=entries, loc="outside right center", frameon=False, handlelength=3, labelspacing=0.7)
    figure.suptitle(f"Rate-distortion: {title}", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
