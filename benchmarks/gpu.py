"""Everything that needs a CUDA device, in one go: do the same bits come out, and how fast?

    python benchmarks/gpu.py DIR [--device cuda:N] [--steps tests bits kernels speed]    # DIR holds photographs

tests    those that are marked `cuda`
bits     files made on the CPU are decoded on the device, and the other way round (`exactness.py`)
kernels  decoding, for one picture and for many at once, with copies that are waited for, and without the graphs and
         the kernels of Triton
speed    `speed.py` on the device, beside the other codecs where imagecodecs is installed

Ends with exit code 1 where a test fails or a bit differs; then nothing is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "codec"), str(HERE)]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from hvcompress import codec as codec_module  # noqa: E402
from hvcompress import pixels as pixels_module  # noqa: E402
from hvcompress import segments  # noqa: E402
from hvcompress.codec import Codec  # noqa: E402
from hvcompress.exact import ExactConv2d  # noqa: E402
from hvcompress.image_reading import read_picture  # noqa: E402
from hvcompress.loading import load_model  # noqa: E402
from hvcompress.training.data import find_images  # noqa: E402
from speed import QUALITY, picture  # noqa: E402

STEPS = ("tests", "bits", "kernels", "speed")
SIZES = (768, 512), (1920, 1080)
AT_ONCE = 8  # pictures, each in a thread of its own: the range coder of one works while another is on the device


def run(*command: object) -> None:
    """A step that must succeed, told with its command."""
    line = [sys.executable, *map(str, command)]
    print("\n$ " + " ".join(["python", *line[1:]]), flush=True)
    path = os.pathsep.join(filter(None, (str(HERE.parent / "codec"), os.environ.get("PYTHONPATH"))))
    if subprocess.run(line, cwd=HERE.parent, env=os.environ | {"PYTHONPATH": path}).returncode:
        sys.exit(1)


def same_bits(device: str) -> None:
    """Files cross between the CPU and the device, both ways."""
    for made, read in (("cpu", device), (device, "cpu")):
        with tempfile.TemporaryDirectory() as folder:
            run(HERE / "exactness.py", "--write", folder, "--device", made)
            run(HERE / "exactness.py", "--check", folder, "--device", read)


@contextmanager
def without_tiles(codec: Codec) -> Iterator[None]:
    """No kernels of Triton for the convolutions."""
    paths = (codec._topdown, codec._synthesis)
    kept = {m: m.tile_weights for path in paths for m in path.modules() if isinstance(m, ExactConv2d)}
    for part in kept:
        part.tile_weights = None
    try:
        yield
    finally:
        for part, weights in kept.items():
            part.tile_weights = weights


@contextmanager
def without_graphs(codec: Codec) -> Iterator[None]:
    """Every kernel is launched by itself."""
    recorded, codec._recorded = codec._recorded, None
    try:
        yield
    finally:
        codec._recorded = recorded


@contextmanager
def waited_copies() -> Iterator[None]:
    """Every copy, by way of memory that is not pinned, holds up the thread that asks for it."""

    def fetched(x: torch.Tensor):
        copy = x.cpu()
        return lambda: copy

    fetch, send = codec_module.fetch, codec_module.send
    codec_module.fetch = pixels_module.fetch = segments.fetch = fetched
    codec_module.send = torch.Tensor.to
    try:
        yield
    finally:
        codec_module.fetch = pixels_module.fetch = segments.fetch = fetch
        codec_module.send = send


def seconds(work, rounds: int = 5, warm_up: int = 3) -> float:
    for _ in range(warm_up):  # so that a size is recorded
        work()
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


def kernels_gain(folder: Path, device: str) -> None:
    codec, paths = load_model(device=device), tuple(find_images(folder))
    codec._coder.compile()  # with numba; else the range coder, in Python, is most of the time
    codec.record_graphs = True
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for size in SIZES:
            data = codec.encode(read_picture(np.asarray(picture(paths, *size))), QUALITY, verify=False).data

            def one(data: bytes = data) -> None:
                codec.decode(data)

            def many(data: bytes = data) -> None:
                list(pool.map(codec.decode, [data] * AT_ONCE))

            coder = codec.decode_timed(data)[1]["coder"]
            alone, together = seconds(one), seconds(many, warm_up=AT_ONCE + 2) / AT_ONCE  # one recording at a time
            with waited_copies():
                waited = seconds(one)
            with without_graphs(codec):
                launched = seconds(one)
                with without_tiles(codec):
                    plain = seconds(one)
            recorded = "recorded" if codec._recorded.works else "not recorded"
            print(
                f"{size[0]}x{size[1]}: decode {1000 * alone:.1f} ms, of which range coder {1000 * coder:.1f};",
                f"{AT_ONCE} at once {1 / together:.1f} images/s;",
                f"{waited / alone:.2f} times as long with copies that are waited for,",
                f"{launched / alone:.2f} without graphs ({recorded}),",
                f"{plain / alone:.2f} without the kernels either",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="photographs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    options = parser.parse_args()
    if not find_images(options.folder):
        parser.error(f"no pictures in {options.folder}")
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    if "tests" in options.steps:
        run("-m", "pytest", "-q", "-m", "cuda", HERE.parent / "tests")
    if "bits" in options.steps:
        same_bits(options.device)
    if "kernels" in options.steps:
        kernels_gain(options.folder, options.device)
    if "speed" in options.steps:
        only = [] if importlib.util.find_spec("imagecodecs") else ["--only-ours"]
        out = HERE / "results" / "speed-cuda.json"
        run(HERE / "speed.py", options.folder, "--device", options.device, "--out", out, *only)


if __name__ == "__main__":
    main()
