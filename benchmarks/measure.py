"""Coding pictures and keeping what came out: one JSON per codec, a row per picture and setting.

Rows of the classical codecs do not depend on our model. Each carries a key made of everything that decides its figures
(codec, settings, library version, setting, the picture's SHA-256), so a later run takes it over instead of measuring.
What an interrupted run has finished is kept, picture by picture, and the next one goes on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import rd
from classical import Classical
from hvcompress.metrics import psnr
from learned import other
from looks import library, looks

OURS = "hvcompress"


@dataclass(frozen=True)
class Picked:
    """Which of our models to measure, where, and how."""

    model: str | None
    device: str
    threads: int  # torch threads per process, 0 leaves torch's own choice
    qualities: tuple[int, ...]
    effort: int = 1


def cache_key(codec: Classical, point: float, image_sha256: str) -> str:
    """16 hex digits that change whenever the row's figures could."""
    parts = [codec.key, codec.settings, codec.library(), codec.point_name, f"{point:g}", image_sha256]
    parts += [*rd.MEASURES, library()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def spread_evenly(paths: list[Path], limit: int) -> list[Path]:
    """At most `limit` of the paths, from the first to the last."""
    return [paths[i] for i in sorted({int(i) for i in np.linspace(0, len(paths) - 1, limit)})]


def read_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def figures(pixels: np.ndarray, decoded: np.ndarray, size: int) -> dict:
    """Rate and distortion of one file. pixels, decoded: (H, W, 3) uint8; size: bytes."""
    similarity, seen = rd.ms_ssim(pixels, decoded), looks(pixels, decoded)
    return {
        "bytes": size,
        "bpp": round(8 * size / (pixels.shape[0] * pixels.shape[1]), 6),
        "psnr": round(psnr(pixels, decoded), 5),
        "msssim": None if similarity is None else round(similarity, 7),
        **{name: None if value is None else round(value, 4) for name, value in seen.items()},
    }


# --------------------------------------------------------------------------------------------------------------------
# One picture: these run in worker processes, so they take and return plain values


def measure_classical(job: tuple[Path, str, tuple[float, ...]], key: str) -> list[dict]:
    """Rows of one picture. job: the picture, its SHA-256, and the points to measure."""
    path, digest, points = job
    codec = other(key)
    image = read_rgb(path)
    pixels = np.asarray(image)
    rows = []
    for point in points:
        data = codec.encode(image, point)
        row = {"image": path.name, "point": f"{codec.point_name} {point:g}"}
        rows.append(row | figures(pixels, codec.decode(data), len(data)) | {"key": cache_key(codec, point, digest)})
    return rows


def measure_ours(path: Path, picked: Picked) -> list[dict]:
    """Rows of one picture: real files, and what their own decoding gives."""
    codec = load_ours(picked)
    from hvcompress.effort import level_of
    from hvcompress.image_reading import read_picture

    pixels = np.asarray(read_rgb(path))
    picture = read_picture(pixels)
    rows = []
    for quality in picked.qualities:
        encoded = codec.encode(picture, quality, effort=picked.effort, verify=True)
        row = {"image": path.name, "point": f"quality {quality}"}
        row |= figures(pixels, encoded.picture.pixels, len(encoded.data))
        # Verification decodes the bytes alone, so its time is the decoder's; at a high effort, for each of its files.
        files = 1 + level_of(picked.effort).files
        names = {"fit": "encode_fit_s", "network": "encode_network_s", "coder": "encode_coder_s"}
        row |= {column: round(encoded.seconds[name], 4) for name, column in names.items()}
        names = {"verify_network": "decode_network_s", "verify_coder": "decode_coder_s"}
        row |= {column: round(encoded.seconds[name] / files, 4) for name, column in names.items()}
        row["estimated_bits"] = round(sum(codec.estimated_bits(encoded.data)), 1)
        rows.append(row)
    return rows


def load_ours(picked: Picked):
    """The codec, loaded once per process. Raises HvcompressError."""
    import torch

    from hvcompress.loading import load_model

    if picked.threads:
        torch.set_num_threads(picked.threads)
    return load_model(picked.model, device=picked.device)


def over_images(work: Callable, jobs: Iterable, processes: int) -> Iterator[list[dict]]:
    """work(job) for each job, in order, in this process or in several."""
    if processes == 1:
        yield from map(work, jobs)
        return
    # spawn: torch does not survive a fork once its threads run.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, jobs)


# --------------------------------------------------------------------------------------------------------------------
# One codec over all pictures


def run_classical(
    codec: Classical, images: dict[Path, str], folder: Path, processes: int, fresh: bool
) -> tuple[dict, int]:
    """Measure what folder/<codec>.json does not have yet, and write it after each picture. Returns its content and the
    rows reused.
    """
    path = folder / f"{codec.key}.json"
    known = {} if fresh or not path.is_file() else {row["key"]: row for row in read_rows(path)["rows"]}
    wanted = {
        image: {point: cache_key(codec, point, digest) for point in codec.points} for image, digest in images.items()
    }

    def record() -> dict:
        """What is known by now of what is wanted."""
        rows = [
            known[key] | {"image": image.name}
            for image, keys in wanted.items()
            for key in keys.values()
            if key in known
        ]
        about = {"codec": codec.key, "label": codec.label, "settings": codec.settings, "library": codec.library()}
        return about | {"rows": rows}

    reused, jobs = len(record()["rows"]), []
    for image, digest in images.items():
        points = tuple(point for point, key in wanted[image].items() if key not in known)
        if points:
            jobs.append((image, digest, points))
    for rows in over_images(partial(measure_classical, key=codec.key), jobs, processes):
        known |= {row["key"]: row for row in rows}
        write_rows(path, record())
        print(f"\r{codec.label}: {rows[0]['image']}   ", end="", flush=True)
    return record(), reused


def program() -> str:
    """SHA-256 of the package's source: figures made with another one must not be mixed with this one's."""
    import hvcompress

    digest = hashlib.sha256()
    for path in sorted(Path(hvcompress.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run_ours(
    images: dict[Path, str], folder: Path, picked: Picked, processes: int, fresh: bool = False
) -> tuple[dict, int]:
    """Measure our codec and write folder/hvcompress.json. Returns its content and the rows reused.

    An interrupted measurement, with the same settings of the same program, goes on; fresh: it begins anew.
    """
    import torch

    codec = load_ours(picked)  # here as well, so that a missing model is one clear error
    record = {
        "codec": OURS,
        "label": OURS,
        "settings": f"model {codec.name}, equal betas, effort {picked.effort}",
        "library": f"torch {torch.__version__}",
        "model": codec.name,
        "fingerprint": codec.fingerprint,
        "device": str(codec.device),
        "processes": processes,
        "threads": picked.threads or torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }
    unfinished = folder / f"{OURS}.unfinished.json"
    wanted = record | {"qualities": list(picked.qualities), "sha256": list(images.values()), "program": program()}
    wanted["measures"] = [*rd.MEASURES, library()]
    found = {} if fresh or not unfinished.is_file() else read_rows(unfinished)
    rows = found["rows"] if found == wanted | {"rows": found.get("rows")} else []
    reused = len(rows)
    known = {row["image"] for row in rows}
    missing = [image for image in images if image.name not in known]
    for done in over_images(partial(measure_ours, picked=picked), missing, processes):
        rows += done
        write_rows(unfinished, wanted | {"rows": rows})
        print(f"\r{OURS} {codec.name}: {done[0]['image']}   ", end="", flush=True)
    record |= {"rows": rows}
    write_rows(folder / f"{OURS}.json", record)
    unfinished.unlink(missing_ok=True)
    return record, reused


def read_rows(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write_rows(path: Path, record: dict) -> None:
    """JSON with a line per row: small, and its differences can be read."""
    head = json.dumps({name: value for name, value in record.items() if name != "rows"}, indent=1, ensure_ascii=False)
    rows = ",\n".join("  " + json.dumps(row) for row in record["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".json.part")
    whole.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
    whole.replace(path)
