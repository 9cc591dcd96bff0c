"""Files made here, decoded elsewhere: are latents and pixels the same, bit for bit?

    python benchmarks/exactness.py --write DIR       # makes files in DIR and notes the SHA-256 of their latents
    python benchmarks/exactness.py --check DIR       # on another machine, device, instruction set, version of torch ...

Both print the versions they ran with and one digest over all latents; `--check` compares file by file, with one thread
and with two, and ends with exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from hvcompress.codec import Codec  # noqa: E402
from hvcompress.image_reading import read_picture  # noqa: E402
from hvcompress.image_writing import image_bytes, to_pil  # noqa: E402
from hvcompress.loading import load_model  # noqa: E402
from hvcompress.picture import Picture  # noqa: E402

NOTES = "latents.json"
QUALITIES = (0, 35, 60, 100)


def pictures() -> dict[str, np.ndarray]:
    """Made up: (H, W, 3) uint8 each, from flat to noise, most of sizes that are no multiples of 64."""
    generator = np.random.Generator(np.random.PCG64(11))
    y, x = np.mgrid[0:150, 0:210].astype(np.float64)
    waves = [128 + 100 * np.sin(x / (9 + 5 * plane)) * np.cos(y / 14 - plane) for plane in range(3)]
    smooth = np.stack(waves, 2)
    edges = np.where(((x // 17 + y // 23) % 2 == 0)[..., None], smooth, 255 - smooth)
    grain = edges + generator.normal(0, 15, edges.shape)
    whole = {"smooth": smooth, "edges": edges, "grain": grain}
    whole |= {"pixel": np.full((1, 1, 3), 200.0), "noise": generator.uniform(0, 256, (64, 64, 3))}
    return {name: pixels.clip(0, 255).astype(np.uint8) for name, pixels in whole.items()}


def facts(codec: Codec) -> dict[str, str]:
    """What this process computes with."""
    on_cpu = codec.device.type == "cpu"
    processor = torch.backends.cpu.get_cpu_capability() if on_cpu else torch.cuda.get_device_name(codec.device)
    versions = {name: metadata.version(name) for name in ("numpy", "constriction", "safetensors")}
    system = f"{platform.system()} {platform.machine()}"
    return {
        "device": f"{codec.device} ({processor})",
        "system": system,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "model": f"{codec.name} ({codec.fingerprint[:8]})",
        "self-test": codec.self_test()[:16],
    }


def overall(digests: dict[str, str]) -> str:
    """One digest of all."""
    return hashlib.sha256("".join(digests[name] for name in sorted(digests)).encode()).hexdigest()[:16]


def write(codec: Codec, folder: Path) -> dict[str, str]:
    """Encode everything; returns the SHA-256 of each file's latents."""
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    for title, pixels in pictures().items():
        for quality in QUALITIES:
            offsets = [10 * (layer % 3 - 1) for layer in range(codec.layers)] if quality == 35 else None
            encoded = codec.encode(Picture(pixels), quality, offsets)
            name = f"{title}-{quality}"
            (folder / f"{name}.hvci").write_bytes(encoded.data)
            (folder / f"{name}.png").write_bytes(image_bytes(to_pil(encoded.picture)))
            digests[name] = codec.latent_digest(encoded.data)
    (folder / NOTES).write_text(json.dumps({"by": facts(codec), "latents": digests}, indent=1) + "\n")
    return digests


def check(codec: Codec, folder: Path) -> tuple[dict[str, str], list[str]]:
    """The SHA-256 of each file's latents here, and what differs."""
    expected = json.loads((folder / NOTES).read_text())["latents"]
    digests: dict[str, str] = {}
    wrong: list[str] = []
    before = torch.get_num_threads()
    try:
        for name, latents in expected.items():
            data = (folder / f"{name}.hvci").read_bytes()
            for threads in (1, 2):
                torch.set_num_threads(threads)
                try:
                    digests[name] = codec.latent_digest(data)
                    there = read_picture(folder / f"{name}.png").pixels.astype(int)
                    difference = np.abs(codec.decode(data).pixels - there)
                except Exception as error:  # a stream read with wrong tables may end in anything
                    digests[name] = f"{type(error).__name__}: {error}"
                    wrong.append(f"{name}, {threads} threads: {digests[name]}")
                    continue
                if digests[name] != latents:
                    wrong.append(f"{name}, {threads} threads: {digests[name][:16]}, not {latents[:16]}")
                if difference.any():
                    wrong.append(f"{name}, {threads} threads: pixels up to {difference.max()} levels apart")
    finally:
        torch.set_num_threads(before)
    return digests, wrong


def shown(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/exactness.py", description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="DIR", help="make files")
    what.add_argument("--check", type=Path, metavar="DIR", help="decode files that were made elsewhere")
    parser.add_argument("--model", help="name or folder (the default one)")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if options.check and not (options.check / NOTES).is_file():
        parser.error(f"no {NOTES} in {options.check}: make it with --write")
    codec = load_model(options.model, options.device)
    print(f"here:    {shown(facts(codec))}")
    if options.write:
        digests = write(codec, options.write)
        print(f"latents: {overall(digests)}, {len(digests)} files written to {options.write}")
        return 0
    print(f"made by: {shown(json.loads((options.check / NOTES).read_text())['by'])}")
    digests, wrong = check(codec, options.check)
    same = f"latents: {overall(digests)}; they and the pixels of all {len(digests)} files as where they were made"
    print("\n".join(wrong) if wrong else same)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
