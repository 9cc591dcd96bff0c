"""Everything that needs a CUDA device, in one go: do the same bits come out, and how fast?

    python benchmarks/gpu.py DIR [--device cuda:N] [--steps first tests bits kernels speed]    # DIR holds photographs

first    the kernels one by one, with the errors that otherwise lead to the plain way without a word
tests    those that are marked `cuda`
bits     files made on the CPU are decoded on the device, and the other way round (`exactness.py`)
kernels  decoding, for one picture and for many at once, with copies that are waited for, and without the graphs and
         the kernels of Triton
speed    `speed.py` on the device, beside the other codecs where imagecodecs is installed

A step that fails does not stop the others; the exit code is then 1. What is timed is worth something only where the
steps before it passed. `--limit` is for machines that are lent for some minutes: seconds for each program.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
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
from hvcompress.machine import FAST_BITS, machine_of  # noqa: E402
from hvcompress.picture import Picture  # noqa: E402
from hvcompress.training.data import find_images  # noqa: E402
from hvcompress.viterbi import plain_search  # noqa: E402
from speed import QUALITY, picture  # noqa: E402

STEPS = ("first", "tests", "bits", "kernels", "speed")
TESTS = ("codec", "concurrency", "copies", "golden", "graphs", "kernels", "trellis")  # of the files, that have some
SIZES = (768, 512), (1920, 1080)
AT_ONCE = 8  # pictures, each in a thread of its own: the range coder of one works while another is on the device


def run(*command: object, limit: float | None = None) -> bool:
    """A program, told with its command. Returns whether it succeeded, in so many seconds."""
    line = [sys.executable, *map(str, command)]
    print("\n$ " + " ".join(["python", *line[1:]]), flush=True)
    path = os.pathsep.join(filter(None, (str(HERE.parent / "codec"), os.environ.get("PYTHONPATH"))))
    try:
        return not subprocess.run(
            line, cwd=HERE.parent, env=os.environ | {"PYTHONPATH": path}, timeout=limit
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"not done within {limit:.0f} s")
        return False


def passes(step: Callable[[], object]) -> bool:
    """Whether a step raises nothing, and does not return False; what it raises is printed."""
    try:
        return step() is not False
    except Exception:
        traceback.print_exc()
        return False


def first_steps(device: torch.device) -> bool:
    """Each kernel against the plain way, and loading."""
    if importlib.util.find_spec("triton") is None:
        print("there is no Triton: the plain ways are taken")
        return False
    from hvcompress.kernels import convolve, viterbi

    def searched() -> bool:
        machine = machine_of(FAST_BITS)
        costs = torch.rand(50, 4, 3, generator=torch.Generator().manual_seed(0))
        return torch.equal(viterbi.search(machine, costs.to(device)).cpu(), plain_search(machine, costs))

    steps = {
        "sums of products": lambda: convolve._right_sums(device),
        "residual blocks": lambda: convolve._right_block(device),
        f"search with 2^{FAST_BITS} states": searched,
        "the model that ships": lambda: load_model(device=str(device)) is not None,
    }
    passed = {name: passes(step) for name, step in steps.items()}
    for name, right in passed.items():
        print(f"{name}: {'as on the CPU' if right else 'WRONG, or not to be had'}", flush=True)
    return all(passed.values())


def same_bits(device: str, limit: float | None) -> bool:
    """Files cross between the CPU and the device, both ways."""
    same = True
    for made, read in (("cpu", device), (device, "cpu")):
        with tempfile.TemporaryDirectory() as folder:
            written = run(HERE / "exactness.py", "--write", folder, "--device", made, limit=limit)
            same &= written and run(HERE / "exactness.py", "--check", folder, "--device", read, limit=limit)
    return same


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
    codec_module.send = pixels_module.send = torch.Tensor.to
    try:
        yield
    finally:
        codec_module.fetch = pixels_module.fetch = segments.fetch = fetch
        codec_module.send = pixels_module.send = send


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
    loops = "compiled" if codec._coder.compile() else "in Python, most of the time, for want of numba"
    parts = [m for path in (codec._topdown, codec._synthesis) for m in path.modules() if isinstance(m, ExactConv2d)]
    tiles = sum(part.tile_weights is not None for part in parts)
    print(f"loops of the range coder {loops}; kernels of Triton for {tiles} of {len(parts)} convolutions", flush=True)
    codec.record_graphs = True
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for size in SIZES:
            pixels = read_picture(np.asarray(picture(paths, *size)))
            data = codec.encode(pixels, QUALITY, verify=False).data

            def encode(pixels: Picture = pixels) -> None:
                codec.encode(pixels, QUALITY, verify=False)

            def one(data: bytes = data) -> None:
                codec.decode(data)

            def many(data: bytes = data) -> None:
                list(pool.map(codec.decode, [data] * AT_ONCE))

            coder = codec.decode_timed(data)[1]["coder"]
            alone, together = seconds(one), seconds(many, warm_up=AT_ONCE + 2) / AT_ONCE  # one recording at a time
            encoded = seconds(encode)
            recorded = "recorded" if codec._recorded.count() else "not recorded"
            with waited_copies():
                waited = seconds(one)
            with without_graphs(codec):
                launched = seconds(one)
                with without_tiles(codec):
                    plain = seconds(one)
            print(
                f"{size[0]}x{size[1]}: encode {1000 * encoded:.1f} ms (not verified),",
                f"decode {1000 * alone:.1f} ms, of which range coder {1000 * coder:.1f};",
                f"{AT_ONCE} at once {1 / together:.1f} images/s;",
                f"{waited / alone:.2f} times as long with copies that are waited for,",
                f"{launched / alone:.2f} without graphs ({recorded}),",
                f"{plain / alone:.2f} without the kernels either",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="photographs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="for each program that is started")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speed-cuda.json", help="of speed.py")
    options = parser.parse_args()
    if not find_images(options.folder):
        parser.error(f"no pictures in {options.folder}")
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    only = [] if importlib.util.find_spec("imagecodecs") else ["--only-ours"]
    speed = (HERE / "speed.py", options.folder, "--device", options.device, "--out", options.out, *only)
    files = [HERE.parent / "tests" / f"test_{name}.py" for name in TESTS]
    steps = {
        "first": lambda: first_steps(torch.device(options.device)),
        "tests": lambda: run("-m", "pytest", "-q", "-m", "cuda", *files, limit=options.limit),
        "bits": lambda: same_bits(options.device, options.limit),
        "kernels": lambda: kernels_gain(options.folder, options.device),
        "speed": lambda: run(*speed, limit=options.limit),
    }
    passed = {name: passes(steps[name]) for name in STEPS if name in options.steps}
    print("\n" + ", ".join(f"{name}: {'passed' if right else 'FAILED'}" for name, right in passed.items()))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
