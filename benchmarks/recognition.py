"""What the first layers of a file say about its picture: labels read from decoded symbols, no pixel computed.

    python benchmarks/recognition.py DATA_FOLDER
    python benchmarks/recognition.py DATA_FOLDER --images 300 --settings 20    # in a minute or two

DATA_FOLDER holds cifar10_png_4k_labelled.npz: x (N, 32, 32, 3) uint8 and y, ten classes. Each picture becomes a real
file; classifiers learn labels from the latents of layers 1..k of four fifths of the files, as `hvcompress.latents`
returns them, and are asked about the others. Beside each accuracy stand the bits of these layers, mean code lengths
under the model's tables, and the accuracy that no classifier can exceed that knows no more than so many bits (Fano;
docs/rate_space.md). A code is no shorter than the entropy of what it codes, so the bound holds for the symbols as they
are. For comparison the same classifiers are given the decoded and the original pixels.

Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from hvcompress.allocation import ALLOCATIONS, allocation_offsets  # noqa: E402
from hvcompress.analysis.bounds import entropy, fano_accuracy  # noqa: E402
from hvcompress.codec import Codec  # noqa: E402
from hvcompress.console import progress_line  # noqa: E402
from hvcompress.image_reading import read_picture  # noqa: E402
from hvcompress.loading import load_model  # noqa: E402
from measure import write_rows  # noqa: E402
from probes import accuracies, standard_error  # noqa: E402

DATA = "cifar10_png_4k_labelled.npz"
TEST_SHARE = 0.2
ITERATIONS = 100  # of the logistic regression, whose accuracy on so many dimensions gains nothing from more
SETTINGS = ("0", "20", "20:hyperprior", "50")


@dataclass(frozen=True)
class Setting:
    quality: int
    allocation: str

    @staticmethod
    def parse(text: str) -> Setting:
        """QUALITY or QUALITY:ALLOCATION."""
        quality, _, allocation = text.partition(":")
        setting = Setting(int(quality), allocation or "balanced")
        if not 0 <= setting.quality <= 100 or setting.allocation not in ALLOCATIONS:
            raise ValueError(text)
        return setting


@dataclass(frozen=True)
class Files:
    """What N files of one setting say."""

    latents: list[NDArray]  # of each layer: (N, c * h * w) float32
    bits: NDArray  # (N, L) code lengths under the model's tables
    pixels: NDArray  # (N, H * W * 3) float32, decoded, in [0, 1]


def flat(images: list[NDArray]) -> NDArray:
    return np.stack([image.ravel() for image in images]).astype(np.float32)


def compress(codec: Codec, images: NDArray, setting: Setting, name: str) -> Files:
    """images: (N, H, W, 3) uint8."""
    offsets = allocation_offsets(setting.allocation, codec.strides)
    latents, bits, pixels = [], [], []
    with progress_line(name, quiet=False) as tell:
        for number, image in enumerate(images):
            encoded = codec.encode(read_picture(image), setting.quality, offsets)
            latents.append(codec.latents(encoded.data))
            bits.append(codec.estimated_bits(encoded.data))
            pixels.append(encoded.picture.pixels)
            if tell:
                tell(number + 1, len(images))
    return Files([flat(list(layer)) for layer in zip(*latents, strict=True)], np.array(bits), flat(pixels) / 255)


def study(codec: Codec, images: NDArray, labels: NDArray, settings: list[Setting]) -> list[dict]:
    """A row per setting and number of layers, and one for the pixels of each setting and of the originals."""
    cut = len(images) - round(TEST_SHARE * len(images))
    classes = len(np.unique(labels))
    label_entropy = entropy(np.bincount(labels[cut:], minlength=classes) / len(labels[cut:]))

    def row(what: str, setting: Setting | None, features: NDArray, bits: float | None) -> dict:
        made = (
            {"what": what, "quality": None, "allocation": None} if setting is None else {"what": what} | vars(setting)
        )
        found = accuracies(features[:cut], labels[:cut], features[cut:], labels[cut:], ITERATIONS)
        bound = 1.0 if bits is None else float(fano_accuracy(bits * np.log(2), label_entropy, classes))
        figures = {"bits": bits, "dimensions": features.shape[1], "bound": bound, **found}
        return made | {name: round(v, 5) if isinstance(v, float) else v for name, v in figures.items()}

    rows = [row("original pixels", None, flat(list(images)) / 255, None)]
    print(line_of(rows[-1], codec.layers), flush=True)
    for setting in settings:
        files = compress(codec, images, setting, f"quality {setting.quality}, {setting.allocation}")
        for count in range(1, codec.layers + 1):
            # The bits of the pictures that are asked about: what the bound speaks of.
            bits = float(files.bits[cut:, :count].sum(1).mean())
            rows.append(row(f"layers 1 to {count}", setting, np.concatenate(files.latents[:count], 1), bits))
            print(line_of(rows[-1], codec.layers), flush=True)
        rows.append(row("decoded pixels", setting, files.pixels, float(files.bits[cut:].sum(1).mean())))
        print(line_of(rows[-1], codec.layers), flush=True)
    return rows


HEAD = "quality  allocation  given             dimensions     bits   bound  logistic     SVM"


def line_of(row: dict, layers: int) -> str:
    made = f"{'':19}" if row["quality"] is None else f"{row['quality']:7}  {row['allocation']:10}"
    bits = "       -" if row["bits"] is None else f"{row['bits']:8.1f}"
    return (
        f"{made}  {row['what']:16}  {row['dimensions']:10} {bits}  {row['bound']:6.3f}"
        f"  {row['logistic']:8.3f}  {row['svm']:6.3f}"
    )


def verdict(rows: list[dict], tested: int) -> str:
    """Whether the theorem is kept. An accuracy is measured on `tested` pictures: chance is allowed for."""
    excess = {
        (f"{row['what']} at quality {row['quality']}, {row['allocation']}", kind): row[kind]
        - 2 * standard_error(row[kind], tested)
        - row["bound"]
        for row in rows
        if row["bits"] is not None
        for kind in ("logistic", "svm")
    }
    worst = max(excess, key=excess.get)
    held = excess[worst] <= 0
    binding = sum(row["bound"] < 1 for row in rows)
    return (
        f"{'held' if held else 'DID NOT HOLD'}  no accuracy less two standard errors is above its bound "
        f"(nearest: {worst[0]}, {worst[1]}, by {excess[worst]:+.3f}; "
        f"the bound is below 1 in {binding} of {len(rows)} rows)"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/recognition.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DATA_FOLDER", help=f"it holds {DATA}")
    parser.add_argument("--images", type=int, default=2000, help="to take, a fifth of them to ask about (2000)")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="Q[:ALLOCATION]")
    parser.add_argument("--model", help="name or folder (the default one)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "recognition.json")
    options = parser.parse_args(arguments)
    try:
        settings = [Setting.parse(text) for text in options.settings]
    except ValueError as error:
        parser.error(
            f"--settings: {error}: expected a quality of 0..100, or one and an allocation, as in 20:hyperprior"
        )
    try:
        import sklearn  # noqa: F401 - said now, not after all files have been made
    except ImportError:
        parser.error("this needs scikit-learn: pip install scikit-learn")
    try:
        with np.load(options.folder / DATA) as arrays:
            images, labels = arrays["x"], arrays["y"].astype(np.int64)
    except (OSError, KeyError, ValueError) as error:
        parser.error(f"{options.folder / DATA}: {error}")
    if not 50 <= options.images <= len(images):
        parser.error(f"--images must be within 50..{len(images)}")
    chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(images))[: options.images]
    codec = load_model(options.model, options.device)
    print(f"model {codec.name}, {len(chosen)} pictures\n{HEAD}", flush=True)
    rows = study(codec, images[chosen], labels[chosen], settings)
    said = verdict(rows, round(TEST_SHARE * len(chosen)))
    print(said)
    record = {"model": codec.name, "fingerprint": codec.fingerprint, "images": len(chosen), "verdict": said}
    write_rows(options.out, record | {"rows": rows})


if __name__ == "__main__":
    main()
