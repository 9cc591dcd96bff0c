"""Throughput of whole folders, and what very many photographs would cost at it.

    python benchmarks/scale.py DIR [--core-hour 0.03] [--photos 1e9] [--megapixels 12]

The folder is coded by the command line, one file at a time with all cores and as many at a time as there are cores, and
where Ray is installed by `hvcompress.cluster` on this machine; each in a process of its own, start included, which is
also measured alone. What it would cost elsewhere is arithmetic: time for a pixel x pixels x price of a core.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

from PIL import Image  # noqa: E402

from hvcompress.batch import cores  # noqa: E402
from hvcompress.model import find_model  # noqa: E402

QUALITY = 50


def seconds_of(module: str, *arguments: object) -> float:
    command = [sys.executable, "-m", module, *map(str, arguments), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "codec")}
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - began


def measure(folder: Path) -> dict:
    """Seconds of each way, for the same folder."""
    many, rows = cores(), {}
    with tempfile.TemporaryDirectory() as place:
        one = Path(place, "one.png")
        Image.new("RGB", (64, 64)).save(one)
        rows["start_s"] = seconds_of("hvcompress", "encode", one, "-f", "--no-verify")

        def encode(name: str, *options: object, module: str = "hvcompress", before: tuple = ()) -> Path:
            out = Path(place, name)
            command = [*before, "encode", folder, "-r", "--output-dir", out, "-q", QUALITY, *options]
            rows[f"{name}_s"] = seconds_of(module, *command)
            return out

        encode("encode_one_at_a_time", "--no-verify")
        encode("encode", "--no-verify", "-j", many)
        table = Path(place, "table.json")
        out = encode("encode_verified", "-j", many, "--summary", table)
        done = json.loads(table.read_text())
        rows |= {"files": len(done), "pixels": sum(row["width"] * row["height"] for row in done)}
        rows |= {
            "bytes": sum(row["bytes_before"] for row in done),
            "coded_bytes": sum(row["bytes_after"] for row in done),
        }
        rows["decode_s"] = seconds_of(
            "hvcompress", "decode", out, "-r", "--output-dir", Path(place, "back"), "--format", "ppm", "-j", many
        )
        rows["up_to_date_s"] = seconds_of(
            "hvcompress", "encode", folder, "-r", "--output-dir", out, "-q", QUALITY, "-u", "-j", many
        )
        if importlib.util.find_spec("ray") is not None:
            encode("ray_encode", "--no-verify", module="hvcompress.cluster", before=("--workers", many))
    return rows


def cost(rows: dict, photos: float, megapixels: float, core_hour: float) -> dict:
    """Core hours and money for so many photographs, with the throughput of one file per core."""
    result = {}
    for name in ("encode", "encode_verified", "decode"):
        core_seconds = cores() * (rows[f"{name}_s"] - rows["start_s"]) / rows["pixels"] * 1e6  # for a megapixel
        hours = core_seconds * megapixels * photos / 3600
        result[name] = {"core_s_per_megapixel": core_seconds, "core_hours": hours, "price": hours * core_hour}
    stored = rows["coded_bytes"] / rows["pixels"] * 1e6 * megapixels * photos
    return result | {"stored_terabytes": stored / 1e12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=float, default=1e9)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--core-hour", type=float, default=0.03, help="price of a core for an hour")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scale.json")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    model = find_model(None)
    rows = {"model": model.name, "fingerprint": model.fingerprint} | measure(arguments.folder)
    assumed = {"photos": arguments.photos, "megapixels": arguments.megapixels, "core_hour": arguments.core_hour}
    rows |= {"cores": cores(), "machine": platform.machine(), "assumed": assumed}
    rows["cost"] = cost(rows, arguments.photos, arguments.megapixels, arguments.core_hour)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
