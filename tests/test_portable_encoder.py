"""The encoder without torch makes files as good as the one with torch, which any decoder reads."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from test_portable import noise
from test_trellis import cost
from test_verification import corrupt_coder

from hvcompress import codec as codec_module
from hvcompress import container, plan, trellis
from hvcompress.container import read_info
from hvcompress.effort import LEVELS
from hvcompress.errors import DeviceError, LimitError, MismatchError, ModelError, UsageError
from hvcompress.machine import FAST_BITS, machine_of
from hvcompress.metrics import psnr
from hvcompress.model import CONFIG, WEIGHTS, find_model, read_folder
from hvcompress.picture import Picture
from hvcompress.pixels import to_tensor
from hvcompress.portable_encoder import PortableEncoder, quantize
from hvcompress.symbols import lanes_of


@pytest.fixture(scope="module")
def portable(tiny_folder):
    return PortableEncoder(read_folder(tiny_folder))


@pytest.fixture
def in_float32(monkeypatch):
    monkeypatch.setattr(codec_module, "autocast", lambda device: contextlib.nullcontext())


def test_features_are_those_of_the_network(portable, tiny, photo):
    made = portable._features(photo, 35)
    expected = tiny._encoder(to_tensor(photo, torch.device("cpu")), torch.tensor([35]))
    assert list(made) == list(expected)
    for stride, feature in expected.items():
        assert made[stride].dtype == np.float32 and made[stride].shape == feature.shape[1:]
        assert np.abs(made[stride] - feature[0].numpy()).max() < 1e-4 * float(feature.abs().max())


@pytest.mark.parametrize("spread", [0.4, 3, 300])
def test_levels_cost_what_those_of_the_trellis_do(spread):
    generator = np.random.Generator(np.random.PCG64(7))
    residual = generator.laplace(0, spread, (3, 30, 40)).astype(np.float32)  # of which torch's has costs in float32
    index = generator.integers(0, 64, residual.shape).astype(np.uint8)
    made = quantize(residual, index)
    assert made.dtype == np.int16 and not made[index == 0].any()
    expected, _ = trellis.quantize(torch.tensor(residual[None]), torch.tensor(index[None]), FAST_BITS)
    assert np.mean(made == expected[0].numpy()) > (0.999 if spread < 100 else 0.95)
    levels = torch.tensor(np.stack((made, expected[0].numpy())), dtype=torch.float32)
    shifted = torch.stack([quantizer_of(one, index) for one in levels])
    ours, theirs = (cost(torch.tensor(residual), *of, torch.tensor(index)) for of in zip(levels, shifted, strict=True))
    assert float(ours / theirs) == pytest.approx(1, abs=1e-4)


def quantizer_of(levels: torch.Tensor, index: np.ndarray) -> torch.Tensor:
    """(c, h, w) bool: where quantizer 1 is in force, by the parities of the symbols before."""
    coded = index >= 1
    symbols = trellis.symbols_of(levels).numpy().astype(np.int64)[coded]
    lanes, following = lanes_of(len(symbols))[1], machine_of(FAST_BITS).following
    states, found = np.zeros(lanes, np.int64), np.zeros(len(symbols), bool)
    for i, symbol in enumerate(symbols):
        found[i] = states[i % lanes] & 1
        states[i % lanes] = following[states[i % lanes], symbol & 1]
    shifted = np.zeros(index.shape, bool)
    shifted[coded] = found
    even = trellis.symbols_of(levels) * 2 == levels  # of quantizer 0, and zero
    assert np.array_equal((even | (levels == 0)).numpy()[coded], (~found | (symbols == 0)))
    return torch.tensor(shifted)


def test_residuals_that_are_no_numbers():
    residual = np.array([np.nan, np.inf, -np.inf, 1e30, 0.0]).reshape(1, 1, 5)
    levels = quantize(residual, np.full(residual.shape, 63, np.uint8))[0, 0]
    assert levels[1] > 32000 and levels[2] < -32000 and abs(levels[0]) < 9 and levels[3] > 32000
    assert not quantize(residual, np.zeros(residual.shape, np.uint8)).any()


@pytest.mark.parametrize("quality, offsets", [(0, None), (60, [0, 3, -9, 0, 12, -12]), (100, None)])
def test_files_are_as_good(portable, tiny, photo, in_float32, quality, offsets):
    for pixels in (photo, noise(70, 131), noise(1, 1), np.full((5, 200, 3), 255, np.uint8)):
        picture = Picture(pixels)
        data, decoded = portable.encode(picture, quality, offsets)
        assert np.array_equal(tiny.decode(data).pixels, decoded.pixels)
        header, expected = container.parse(data).header, tiny.encode(picture, quality, offsets)
        assert header.state_bits == LEVELS[1].state_bits and header.offsets == tuple(offsets or (0,) * 6)
        assert abs(len(data) - len(expected.data)) <= 4 + 0.02 * len(expected.data)
        assert psnr(pixels, decoded.pixels) > psnr(pixels, expected.picture.pixels) - 0.1
        assert portable.encode(picture, quality, offsets, verify=False) == (data, None)


def test_all_that_goes_with_a_picture(portable, tiny, photo):
    gray = np.repeat(photo[..., :1], 3, 2)
    exif, icc = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[0x010F] = "maker"
    picture = Picture(gray, True, photo[..., 1].copy(), icc, exif.tobytes().removeprefix(b"Exif\0\0"), b"<x/>")
    found = tiny.decode(portable.encode(picture, 50)[0])
    assert found.gray and np.array_equal(found.alpha, picture.alpha)
    assert (found.icc, found.exif, found.xmp) == (icc, picture.exif, picture.xmp)


def test_the_shipped_model(photo):
    encoder = PortableEncoder(find_model())
    data, decoded = encoder.encode(Picture(photo), 60)
    assert psnr(photo, decoded.pixels) > 28 and len(data) < 5000
    assert find_model().fingerprint.startswith(read_info(data).fingerprint)


def test_several_segments(portable, tiny, monkeypatch):
    monkeypatch.setattr(plan, "SEGMENT", 60)
    data, decoded = portable.encode(Picture(noise(150, 70)), 40)
    assert np.array_equal(tiny.decode(data).pixels, decoded.pixels)


def test_the_self_test(portable, tiny_folder, monkeypatch):
    folder = read_folder(tiny_folder)
    assert portable._decoder.self_test() == folder.config["self_test"]
    monkeypatch.setattr("hvcompress.portable.leaky", lambda x: np.maximum(x, np.floor(x * 0.125)))
    with pytest.raises(DeviceError, match="numpy does not pass the self-test of model tiny"):
        PortableEncoder(folder)


@pytest.mark.parametrize("count", [0, -1, 2])
def test_a_model_with_other_blocks_than_it_says(tiny_folder, tmp_path, count):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / CONFIG).read_text())
    config["network"]["encoder_blocks"]["16"] = count
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match="do not fit|lacks parts"):
        PortableEncoder(read_folder(folder))


def test_what_goes_wrong(portable, tiny, photo, tiny_folder, tmp_path, monkeypatch):
    picture = Picture(photo)
    for quality, offsets in ((101, None), (-1, None), (True, None), (60, [0]), (60, [99] * 6), (60, [0.5] * 6)):
        told = []
        for encoder in (portable, tiny):
            with pytest.raises(UsageError) as error:
                encoder.encode(picture, quality, offsets)
            told.append(str(error.value))
        assert told[0] == told[1]
    with pytest.raises(LimitError):
        portable.encode(picture, 60, memory_limit=1000)
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = bytearray((folder / WEIGHTS).read_bytes())
    size = int.from_bytes(weights[:8], "little")
    place = json.loads(weights[8 : 8 + size])["encoder.stem.weight"]["data_offsets"][0]
    weights[8 + size + place] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ModelError, match="its encoder is not the one"):
        PortableEncoder(read_folder(folder))
    corrupt_coder(monkeypatch, 2)
    with pytest.raises(MismatchError, match="verification failed"):
        portable.encode(picture, 80)


def test_the_command_encodes_a_small_picture_without_torch(photo, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(noise(257, 512)).save(tmp_path / "large.png")
    code = "import sys; sys.path.insert(0, '.'); from hvcompress.cli import main; sys.exit(main())"

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, "encode", "-f", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    for options in ([], ["-q", "20", "--allocation", "detail"], ["--lambda", "0.01", "--no-verify", "--device", "cpu"]):
        done = run("photo.png", *options)
        assert done.returncode == 0 and "photo.png  131x75" in done.stdout, done.stderr
        assert (" dB" in done.stdout) == ("--no-verify" not in options)
    for options, exit_code in ((["--model", "none"], 6), (["--beta", "1,2"], 2), (["--memory-limit", "1k"], 7)):
        done = run("photo.png", *options)
        assert done.returncode == exit_code and done.stderr.count("\n") == 1 and "torch" not in done.stderr, done.stderr
    for options in (["--effort", "2"], ["--psnr", "30"], ["large.png"], ["--device", "cuda"]):
        assert "torch was imported" in run("photo.png", *options).stderr, options
    assert "torch was imported" in run("large.png").stderr
