"""How long coding takes, stage by stage, beside the codecs that people use; and how much memory.

    python benchmarks/speed.py DIR                       # DIR holds photographs; three sizes are made of them
    python benchmarks/speed.py DIR --device cuda --sizes 768x512 1920x1080 3840x2160

Every codec codes the same pictures in the same run, at settings of about the same PSNR on photographs (what was reached
is printed), each in a process of its own for each size (so the peak memory is its own); figures are medians of a few
rounds after one to warm up. The other codecs may use as many threads as ours. Only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

# Nothing here may import torch: the processes of the other codecs import this module, and their memory is measured.
import numpy as np  # noqa: E402
from PIL import Image, ImageOps, features  # noqa: E402

import learned  # noqa: E402
from classical import pillow_decode, save  # noqa: E402
from hvcompress.batch import cores  # noqa: E402
from hvcompress.metrics import psnr  # noqa: E402
from measure import read_rgb, write_rows  # noqa: E402
from peak import peak_mib  # noqa: E402

QUALITY = 60  # 35.4 dB on Kodak, as are, nearly, the settings of the others below
OURS = "hvcompress"
BASELINE, BASELINE_QUALITY = "mbt2018-mean", 4
UNTRAINED = f"CompressAI {BASELINE}, untrained"  # where it is installed; only its network's time means something
OTHERS = {
    "JPEG XL, effort 7": ("jxl", {"distance": 1.9, "effort": 7}),
    "AVIF, speed 6": ("AVIF", {"quality": 66, "speed": 6, "subsampling": "4:4:4"}),
    "WebP, method 4": ("WEBP", {"quality": 77}),
    "JPEG": ("JPEG", {"quality": 80}),
}


@dataclass(frozen=True)
class Task:
    """One codec at one size, in one process."""

    codec: str
    width: int
    height: int
    paths: tuple[Path, ...]  # photographs
    repeats: int
    device: str
    model: str | None


def picture(paths: tuple[Path, ...], width: int, height: int) -> Image.Image:
    """Photographs side by side, every second one mirrored, cropped to the size."""
    canvas, x, y, number, tall = Image.new("RGB", (width, height)), 0, 0, 0, 0
    while y < height:
        tile = read_rgb(paths[number % len(paths)])
        canvas.paste(ImageOps.mirror(tile) if number % 2 else tile, (x, y))
        x, tall, number = x + tile.width, max(tall, tile.height), number + 1
        if x >= width:
            x, y, tall = 0, y + tall, 0
    return canvas


def timed(stage: str, row: dict, work: Callable):
    began = time.perf_counter()
    result = work()
    row[stage] = time.perf_counter() - began
    return result


def measure(task: Task) -> list[dict]:
    """A row per round, in seconds; the first, which warms up, is left out."""
    image = picture(task.paths, task.width, task.height)
    one_round = (our_rounds if task.codec == OURS else other_rounds)(task, image)
    rows = [one_round() for _ in range(task.repeats + 1)][1:]
    return [{"peak_mib": peak_mib()} | row for row in rows]


def our_rounds(task: Task, image: Image.Image) -> Callable[[], dict]:
    from hvcompress.memory import use_memory_again

    use_memory_again()  # as the command does, before torch is imported
    from hvcompress.image_reading import read_picture
    from hvcompress.image_writing import image_bytes, to_pil
    from hvcompress.loading import load_model

    codec = load_model(task.model, task.device)
    codec._coder.compile()  # as after some pictures, and what follows as in the command
    codec.record_graphs = True
    png = image_bytes(image, ".png")

    def one_round() -> dict:
        row: dict = {}
        source = timed("read png", row, lambda: read_picture(png))
        encoded = timed("encode", row, lambda: codec.encode(source, QUALITY, verify=False))
        decoded, seconds = timed("decode", row, lambda: codec.decode_timed(encoded.data))
        timed("write png", row, lambda: image_bytes(to_pil(decoded), ".png"))
        row |= {"encode network": encoded.seconds["network"], "encode coder": encoded.seconds["coder"]}
        row |= {"decode network": seconds["network"], "decode coder": seconds["coder"], "bytes": len(encoded.data)}
        return row | {"psnr": psnr(source.pixels, decoded.pixels)}

    return one_round


def untrained_rounds(image: Image.Image) -> Callable[[], dict]:
    learned.network(BASELINE, BASELINE_QUALITY, pretrained=False)

    def one_round() -> dict:
        row: dict = {}
        data = timed("encode", row, lambda: learned.encode(image, BASELINE_QUALITY, BASELINE, pretrained=False))
        timed("decode", row, lambda: learned.decode(data, BASELINE, pretrained=False))
        return row | {"bytes": float("nan"), "psnr": float("nan")}

    return one_round


def other_rounds(task: Task, image: Image.Image) -> Callable[[], dict]:
    if task.codec == UNTRAINED:
        return untrained_rounds(image)
    kind, options = OTHERS[task.codec]
    pixels = np.asarray(image)

    def encode() -> bytes:
        if kind == "jxl":
            import imagecodecs

            return bytes(imagecodecs.jpegxl_encode(pixels, numthreads=cores(), **options))
        return save(image, kind, **options)

    def decode(data: bytes) -> np.ndarray:
        if kind == "jxl":
            import imagecodecs

            return imagecodecs.jpegxl_decode(data, numthreads=cores())
        return pillow_decode(data)

    def one_round() -> dict:
        row: dict = {}
        data = timed("encode", row, encode)
        decoded = timed("decode", row, lambda: decode(data))
        return row | {"bytes": len(data), "psnr": psnr(pixels, decoded)}

    return one_round


def batch(task: Task) -> list[dict]:
    """Images per second, one at a time and one per core (on a GPU two at least, so that the coder overlaps)."""
    import hvcompress

    codec = hvcompress.load_model(task.model, task.device)
    codec.record_graphs = True
    many = max(2, cores())
    images = [np.asarray(picture(task.paths, task.width, task.height))] * (4 * many)
    options = {"model": task.model, "device": str(codec.device)}
    files = list(hvcompress.encode_batch(images, QUALITY, jobs=many, verify=False, **options))
    rows = []
    for jobs in [1, many] * task.repeats:
        row: dict = {"jobs": jobs, "images": len(images)}
        timed("encode", row, lambda jobs=jobs: list(
            hvcompress.encode_batch(images, QUALITY, jobs=jobs, verify=False, **options)))  # fmt: skip
        timed("decode", row, lambda jobs=jobs: list(hvcompress.decode_batch(files, jobs=jobs, **options)))
        rows.append(row)
    return rows


def alone(work: Callable[[Task], list[dict]], task: Task) -> list[dict]:
    """In a fresh process, which ends with it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, task).result()


def start_up(device: str, model: str | None, repeats: int) -> dict[str, float]:
    """Seconds until a new process has imported torch, and until it has loaded the model. Medians."""
    code = (
        f"import sys, time; sys.path.insert(0, {str(HERE.parent / 'codec')!r}); t = time.perf_counter()\n"
        "import torch; u = time.perf_counter()\n"
        f"import hvcompress; hvcompress.load_model({model!r}, {device!r}); print(u - t, time.perf_counter() - u)"
    )
    runs = []
    for _ in range(repeats + 1):
        out = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
        runs.append([float(value) for value in out.split()])
    torch_s, load_s = np.median(runs[1:], 0)
    return {"import torch": round(float(torch_s), 3), "load model": round(float(load_s), 3)}


def integers_gain(paths: tuple[Path, ...], model: str | None, repeats: int) -> float | None:
    """Decoding time with exact sums in float32 over that with products of bytes; None where those do not pay."""
    from hvcompress.exact import ExactConv2d
    from hvcompress.image_reading import read_picture
    from hvcompress.kernels import int8
    from hvcompress.loading import load_model

    if int8.digits() is None:
        return None
    codec = load_model(model, "cpu")
    data = codec.encode(read_picture(np.asarray(picture(paths, 768, 512))), QUALITY, verify=False).data
    parts = (codec._topdown, codec._synthesis)
    kept = {m: m.byte_weights for part in parts for m in part.modules() if isinstance(m, ExactConv2d)}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * repeats + 2):
        with_bytes = number % 2 == 0
        for module, weights in kept.items():
            module.byte_weights = weights if with_bytes else None
        began = time.perf_counter()
        codec.decode(data)
        seconds[with_bytes].append(time.perf_counter() - began)
    for module, weights in kept.items():
        module.byte_weights = weights
    return float(np.median(seconds[False][1:]) / np.median(seconds[True][1:]))


def loops_gain(paths: tuple[Path, ...], model: str | None, repeats: int) -> float | None:
    """The range coder's time in decoding with its loops in Python over that with compiled ones; None without numba."""
    from hvcompress.entropy import LayerCoder
    from hvcompress.image_reading import read_picture
    from hvcompress.loading import load_model

    codec = load_model(model, "cpu")
    plain, compiled = LayerCoder(codec._tables, patience=1 << 62), LayerCoder(codec._tables)
    if not compiled.compile():
        return None
    data = codec.encode(read_picture(np.asarray(picture(paths, 768, 512))), QUALITY, verify=False).data
    kept, seconds = codec._coder, ([], [])
    for _ in range(2 * repeats):
        for number, coder in enumerate((plain, compiled)):
            codec._coder = coder
            seconds[number].append(codec.decode_timed(data)[1]["coder"])
    codec._coder = kept
    return float(np.median(seconds[0]) / np.median(seconds[1]))


def medians(rows: list[dict]) -> dict:
    return {key: float(np.median([row[key] for row in rows])) for key in rows[0]}


def table(results: list[dict]) -> str:
    """Milliseconds, and how they grow with the pixels."""
    lines = ["| codec | picture | encode [ms] | decode [ms] | bits per pixel | PSNR [dB] | peak memory [MiB] |"]
    lines.append("|---" * 7 + "|")
    for row in results:
        stages = ""
        if row["codec"] == OURS:
            stages = " (network {:.0f} + coder {:.0f})"
        cells = [row["codec"], f"{row['width']}x{row['height']}"]
        for way in ("encode", "decode"):
            parts = [1000 * row.get(f"{way} {part}", 0.0) for part in ("network", "coder")]
            cells.append(f"{1000 * row[way]:.0f}" + stages.format(*parts))
        cells += [
            f"{8 * row['bytes'] / row['width'] / row['height']:.2f}",
            f"{row['psnr']:.2f}",
            f"{row['peak_mib']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/speed.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="photographs")
    parser.add_argument("--sizes", nargs="+", default=["768x512", "1920x1080", "3840x2160"], metavar="WxH")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true", help="leave the other codecs out")
    parser.add_argument("--model", help="name or folder (the default one)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speed.json")
    options = parser.parse_args()
    from hvcompress.model import find_model
    from hvcompress.training.data import find_images

    paths = tuple(find_images(options.folder))
    if not paths:
        parser.error(f"no pictures in {options.folder}")
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
    model = find_model(options.model)
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def task(codec: str, size: tuple[int, int]) -> Task:
        return Task(codec, *size, paths, options.repeats, options.device, options.model)

    facts = {"model": model.name, "fingerprint": model.fingerprint, "machine": platform.machine()}
    facts |= {"cores": cores(), "cpus": os.cpu_count(), "device": options.device}
    start = start_up(options.device, options.model, options.repeats)
    print("start-up: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in start.items()), flush=True)
    others = (*OTHERS, UNTRAINED) if learned.installed() else tuple(OTHERS)
    if not features.check("avif"):
        others = tuple(name for name in others if not name.startswith("AVIF"))
    results = []
    for size in sizes:
        for codec in (OURS, *(() if options.only_ours else others)):
            row = {"codec": codec, "width": size[0], "height": size[1]} | medians(alone(measure, task(codec, size)))
            results.append(row)
            line = f"{codec} {size[0]}x{size[1]}: encode {row['encode']:.3f} s, decode {row['decode']:.3f} s"
            print(line, flush=True)
            keep(options.out, facts | {"start_up_s": start}, results)  # what follows may fail, or be cut off
    throughput = []
    for jobs, rows in sorted(_by_jobs(alone(batch, task(OURS, sizes[0]))).items()):
        middle = medians(rows)
        throughput.append({"jobs": jobs} | {way: middle["images"] / middle[way] for way in ("encode", "decode")})
    gain = integers_gain(paths, options.model, options.repeats)
    compiled = loops_gain(paths, options.model, options.repeats)

    mine = [row for row in results if row["codec"] == OURS]
    print("\n" + table(results))
    for way in ("encode", "decode"):
        per_pixel = [1e9 * row[way] / (row["width"] * row["height"]) for row in mine]
        print(f"{way}: " + ", ".join(f"{value:.0f}" for value in per_pixel) + " ns per pixel, small to large")
    for row in throughput:
        print(f"{row['jobs']} at a time: {row['encode']:.2f} encoded, {row['decode']:.2f} decoded per second")
    if gain is not None:
        print(f"decoding with exact convolutions in float32 takes {gain:.2f} times as long as with products of bytes")
    if compiled is not None:
        print(f"the range coder's loops in Python take {compiled:.1f} times as long to decode as compiled ones")
    facts |= {"start_up_s": start, "throughput": throughput}
    facts |= {"float32_over_bytes": gain, "python_over_compiled": compiled}
    keep(options.out, facts, results)


def keep(out: Path, facts: dict, results: list[dict]) -> None:
    write_rows(out, facts | {"rows": [{k: _short(v) for k, v in row.items()} for row in results]})


def _by_jobs(rows: list[dict]) -> dict[int, list[dict]]:
    return {jobs: [row for row in rows if row["jobs"] == jobs] for jobs in {row["jobs"] for row in rows}}


def _short(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
