"""The decoder without torch gives the pixels of the one with torch, and refuses what that refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import hvcompress
from hvcompress import container, errors, plan, work
from hvcompress.errors import FormatError, LimitError, MismatchError, ModelError
from hvcompress.exact import ExactConv2d
from hvcompress.model import CONFIG, WEIGHTS, find_model, read_folder
from hvcompress.picture import Picture
from hvcompress.portable import Convolution, PortableDecoder
from hvcompress.work import SMALL, Decoding

HERE = Path(__file__).parent
GOLDEN, GOLDEN_ERRORS = HERE / "golden", HERE / "golden_errors"
ERRORS: dict[str, list[str]] = json.loads((GOLDEN_ERRORS / "index.json").read_text())


@pytest.fixture(scope="module")
def shipped():
    return PortableDecoder(find_model())


@pytest.fixture(scope="module")
def portable(tiny_folder):
    return PortableDecoder(read_folder(tiny_folder))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(height)).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.png")), ids=lambda path: path.stem)
def test_golden_files(shipped, path):
    parsed = container.parse(path.with_suffix(".hvci").read_bytes())
    pixels = shipped.decode(parsed).pixels
    with Image.open(path) as expected:
        assert np.array_equal(pixels, np.asarray(expected.convert("RGB"))) and pixels.dtype == np.uint8


@pytest.mark.parametrize("quality, offsets", [(0, None), (60, [0, 3, -9, 0, 12, -12]), (100, None)])
def test_any_picture(portable, tiny, photo, quality, offsets):
    """Also of noise, with values at the ends of their ranges; with 8 and 16 bits."""
    for pixels in (photo, noise(70, 131), noise(1, 1), np.full((5, 200, 3), 255, np.uint8)):
        data = tiny.encode(Picture(pixels), quality, offsets, verify=False).data
        for bits in (8, 16):
            made, expected = portable.decode(container.parse(data), bits), tiny.decode(data, bits=bits)
            assert made.pixels.dtype == expected.pixels.dtype and np.array_equal(made.pixels, expected.pixels)


@pytest.mark.parametrize("name", ["metadata", "gray_alpha", "alpha"])
def test_all_that_a_file_holds(shipped, name):
    data = (GOLDEN / f"{name}.hvci").read_bytes()
    made, expected = shipped.decode(container.parse(data)), hvcompress.load_model(device="cpu").decode(data)
    for field in dataclasses.fields(Picture):
        assert np.array_equal(getattr(made, field.name), getattr(expected, field.name)), field.name
    assert (made.exif and made.xmp and made.icc) if name == "metadata" else made.alpha is not None


def test_several_segments(portable, tiny, monkeypatch):
    monkeypatch.setattr(plan, "SEGMENT", 60)
    data = tiny.encode(Picture(noise(150, 70)), 40).data
    assert np.array_equal(portable.decode(container.parse(data)).pixels, tiny.decode(data).pixels)


@pytest.mark.parametrize("wide", [False, True])
def test_the_largest_sums(wide):
    """The most extreme weights, activations and biases, against integers of any size."""
    bits, limit, top = (18, 127 * 128 + 63, 7) if wide else (12, 127, 8)
    generator = np.random.Generator(np.random.PCG64(0))
    weight = np.full((6, 300, 3, 3), limit, np.int16 if wide else np.int8)
    weight[3:] = generator.integers(-limit, limit + 1, weight[3:].shape)
    arrays = {
        "c.weight": weight,
        "c.bias": np.array([2**31 - 4096, -(2**31) + 4096, 0, 1, -1, 12345], np.int32),
        "c.exponent": np.array([top, top, 0, top, 0, 1], np.uint8),
    }
    x = np.full((300, 4, 5), 32767)
    x[150:] = generator.integers(-32768, 32768, x[150:].shape)
    made = Convolution(arrays, "c")(x.astype(np.float64))
    around = np.pad(x, ((0, 0), (1, 1), (1, 1))).astype(object)
    for channel in range(6):
        for row, column in ((0, 0), (2, 3), (3, 4)):
            patch = around[:, row : row + 3, column : column + 3]
            total = int((patch * weight[channel].astype(object)).sum()) << int(arrays["c.exponent"][channel])
            value = (total + (int(arrays["c.bias"][channel]) << bits - 12) + (1 << bits - 1)) >> bits
            assert made[channel, row, column] == min(max(value, -32768), 32767)


def test_it_computes_what_torch_does():
    """Convolutions of random integers, of all kinds that a model has."""
    torch.manual_seed(0)
    for kernel in (1, 3):
        conv = ExactConv2d(24, 16, kernel)
        weight = torch.randint(-127, 128, conv.weight.shape, dtype=torch.int8)
        exponent, bias = torch.randint(0, 3, (16,), dtype=torch.uint8), torch.randint(-(1 << 24), 1 << 24, (16,)).int()
        conv.set_integers(weight, exponent, bias)
        x = torch.randint(-32768, 32768, (1, 24, 9, 7), dtype=torch.int16)
        arrays = {"c.weight": weight.numpy(), "c.exponent": exponent.numpy(), "c.bias": bias.numpy()}
        made = Convolution(arrays, "c")(x[0].numpy().astype(np.float64))
        assert np.array_equal(made, conv(x)[0].clamp(-32768, 32767).numpy())


@pytest.mark.parametrize("name", ERRORS)
def test_damaged_files(shipped, name):
    data = (GOLDEN_ERRORS / f"{name}.hvci").read_bytes()
    with pytest.raises(tuple(getattr(errors, kind) for kind in ERRORS[name])):
        shipped.decode(container.parse(data))


def test_limits_and_models(portable, shipped, tiny, photo, tiny_folder, tmp_path):
    parsed = container.parse(tiny.encode(Picture(photo), 50).data)
    with pytest.raises(LimitError):
        portable.decode(parsed, memory_limit=1000)
    with pytest.raises(ModelError, match="another model"):
        shipped.decode(parsed)
    with pytest.raises(MismatchError, match="not those of the encoder"):
        portable.decode(dataclasses.replace(parsed, header=dataclasses.replace(parsed.header, latent_hash=b"none")))
    with pytest.raises(FormatError):
        portable.decode(dataclasses.replace(parsed, streams=(*parsed.streams[:-1], b"\xff" * 40)))
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1  # of the decoder or the encoder: one of them is refused by whoever reads it
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ModelError):
        hvcompress.load_model(folder)
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        PortableDecoder(read_folder(folder))
    config = json.loads((folder / CONFIG).read_text())
    config["network"]["architecture"] = 99
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match="architecture 99"):
        PortableDecoder(read_folder(folder))


def test_the_command_decodes_a_small_picture_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from hvcompress.cli import main; sys.exit(main())"
    out = tmp_path / "out.png"
    for options in ([], ["--device", "cpu"], ["--bit-depth", "16"]):
        command = [sys.executable, "-c", code, tmp_path, "decode", GOLDEN / "metadata.hvci", "-f", "-o", out, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "metadata.hvci" in done.stdout + done.stderr, done.stderr
    with Image.open(out) as made:
        assert made.info.get("exif")
    for options in (["--layers", "3"], ["--crop", "0,0,9,9"], ["--partial"]):
        command = [sys.executable, "-c", code, tmp_path, "decode", GOLDEN / "metadata.hvci", "-f", "-o", out, *options]
        assert "torch was imported" in subprocess.run(command, capture_output=True, text=True).stderr


def test_when_torch_is_worth_its_import(monkeypatch):
    assert 256 * 512 == SMALL
    monkeypatch.setattr(work, "sys", SimpleNamespace(modules={}))
    alone = Decoding(alone=True)
    assert work._without_torch(alone, 256, 512) and not work._without_torch(alone, 257, 512)
    for change in ({"alone": False}, {"device": "cuda"}):
        assert not work._without_torch(dataclasses.replace(alone, **change), 256, 512)
    monkeypatch.setattr(work, "sys", SimpleNamespace(modules={"hvcompress.loading": hvcompress}))
    assert not work._without_torch(alone, 256, 512)
