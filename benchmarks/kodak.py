"""Rate-distortion on the Kodak set: real files of ours beside JPEG, JPEG 2000, WebP, JPEG XL, AVIF and, where they are
installed with weights, codecs of CompressAI.

    python benchmarks/kodak.py DIR

DIR holds kodim01.png .. kodim24.png. See benchmarks/README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXTRAS = {"imagecodecs": "imagecodecs", "bjontegaard": "bjontegaard", "pytorch_msssim": "pytorch-msssim",
          "matplotlib": "matplotlib", "imageio_ffmpeg": "imageio-ffmpeg", "hvcompress": "hvcompress"}  # fmt: skip
QUALITIES = tuple(range(0, 101, 10))


def parse(argv: list[str] | None) -> argparse.Namespace:
    from classical import CLASSICAL_KEYS
    from learned import ARCHITECTURES, has_weights

    at_hand = tuple(key for key in ARCHITECTURES if has_weights(key))
    parser = argparse.ArgumentParser(prog="benchmarks/kodak.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="the 24 PNGs of the Kodak set")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where results go (benchmarks/results)")
    parser.add_argument("--qualities", type=int, nargs="+", default=QUALITIES, help="of ours (0 10 20 ... 100)")
    parser.add_argument("--effort", type=int, default=1, choices=range(1, 10), help="of ours, 1..9 (1)", metavar="E")
    parser.add_argument("--model", help="name or folder of our model (the default one)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N; only for ours")
    parser.add_argument("--codecs", nargs="+", choices=("hvcompress", *CLASSICAL_KEYS, *ARCHITECTURES),
                        default=("hvcompress", *CLASSICAL_KEYS, *at_hand), metavar="CODEC",
                        help="any of: %(choices)s (all whose weights are at hand)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="processes (1); our seconds are only fair with 1")
    parser.add_argument("--threads", type=int, default=0, help="torch threads per process (torch's own choice)")
    parser.add_argument("--fresh", action="store_true", help="measure the other codecs again as well, take up nothing")
    parser.add_argument("--any-images", action="store_true", help="accept a folder that is not the Kodak set")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    if not all(0 <= quality <= 100 for quality in options.qualities):
        parser.error("--qualities lie between 0 and 100")
    return options


def main(argv: list[str] | None = None) -> int:
    from kodak_set import NotKodakError, find_images

    options = parse(argv)
    try:
        images = find_images(options.folder, options.any_images)
    except NotKodakError as error:
        print(f"benchmarks/kodak.py: {error}", file=sys.stderr)
        return 2
    missing = missing_packages()
    if missing:
        print(f"benchmarks/kodak.py: not installed: {', '.join(missing)}; pip install -e '.[bench]'", file=sys.stderr)
        return 2
    from hvcompress.errors import HvcompressError

    try:
        measure_all(options, images)
    except HvcompressError as error:
        print(f"benchmarks/kodak.py: hvcompress: {error} (--codecs leaves it out)", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nbenchmarks/kodak.py: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    return 0


def missing_packages() -> list[str]:
    from importlib.util import find_spec

    return [package for module, package in EXTRAS.items() if find_spec(module) is None]


def measure_all(options: argparse.Namespace, images: dict[Path, str]) -> None:
    """Measure, write per_image/, and what follows from it."""
    from learned import other
    from measure import OURS, Picked, run_classical, run_ours

    records = []
    folder = options.out / "per_image"
    # The others first: they are kept even if ours then fails.
    for key in sorted(options.codecs, key=lambda k: k == OURS):
        if key == OURS:
            qualities = tuple(sorted(set(options.qualities)))
            picked = Picked(options.model, options.device, options.threads, qualities, options.effort)
            record, reused = run_ours(images, folder, picked, options.jobs, options.fresh)
            records.insert(0, record)
            print(f"\r{OURS}: {len(record['rows']) - reused} files measured, {reused} of an interrupted run" + " " * 9)
            continue
        codec = other(key)
        record, reused = run_classical(codec, images, folder, options.jobs, options.fresh)
        records.append(record)
        measured = len(record["rows"]) - reused
        print(f"\r{codec.label} ({record['library']}): {measured} files measured, {reused} results reused" + " " * 9)
    name = f"{len(images)} pictures of {options.folder.name}" if options.any_images else "Kodak, 24 pictures"
    write_results(records, options.out, name, options.effort, published=not options.any_images)


def write_results(records: list[dict], out: Path, name: str, effort: int, published: bool) -> None:
    """Write per_image.csv, curves.json, summary.json, report.txt and rd.png of what was measured, ours first.

    name: of the pictures. published: whether the cited curves are of the same ones.
    """
    import rd
    import rd_plot
    import report
    from measure import OURS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # interpolators warn about the ends of curves
        curves = [rd.mean_curve(record["codec"], record["label"], record["rows"]) for record in records]
        cited = rd.published_curves() if published else []
        ours = next((record for record in records if record["codec"] == OURS), None)
        rows = {record["codec"]: record["rows"] for record in records}
        summary = report.summarise(curves, cited, rows)
    title = f"{name}: means over pictures of bits per pixel and of RGB PSNR, 8-bit output"
    if ours:
        title += f"\n{OURS} model {ours['model']}, fingerprint {ours['fingerprint'][:16]}, on {ours['device']}"
        title += f", effort {effort}"
        title += f" (processes: {ours['processes']}, threads: {ours['threads']})"
    text = report.as_text(summary, curves, title)
    write_csv(out / "per_image.csv", records)
    write_json(out / "curves.json", {"pictures": name, "curves": [asdict(curve) for curve in curves]})
    write_json(out / "summary.json", summary)
    (out / "report.txt").write_text(text, encoding="utf-8")
    rd_plot.draw(curves, cited, out / "rd.png", name)
    print(f"\n{text}\nWritten to {out}")


def write_csv(path: Path, records: list[dict]) -> None:
    """A flat table of everything in per_image/."""
    import rd
    from report import SECONDS

    names = ["codec", "image", "point", "bytes", "bpp", *rd.MEASURES, *SECONDS, "estimated_bits"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"codec": record["codec"], **row} for record in records for row in record["rows"])


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
