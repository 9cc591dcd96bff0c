"""Files that must decode for ever to the same latents and pixels, whatever computes them; with the model that ships."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from make_golden import cases, segmented
from PIL import Image

import hvcompress
from hvcompress import loading
from hvcompress.errors import HvcompressError

GOLDEN = Path(__file__).parent / "golden"
LATENTS: dict[str, str] = json.loads((GOLDEN / "latents.json").read_text())
SEGMENTED = LATENTS.pop("segmented")  # of a large picture, which takes some seconds


def of_pixels(pixels: np.ndarray) -> str:
    """SHA-256 of (H, W, 3) uint8."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def stored(name: str) -> str:
    """`of_pixels` of the picture that a golden file stands for."""
    with Image.open(GOLDEN / f"{name}.png") as image:
        return of_pixels(np.asarray(image.convert("RGB")))


DIGESTS = {name: [latents, stored(name)] for name, latents in LATENTS.items()}


def digests(codec) -> dict[str, list[str]]:
    """Of latents and pixels, by file."""
    files = {name: (GOLDEN / f"{name}.hvci").read_bytes() for name in LATENTS}
    return {name: [codec.latent_digest(data), of_pixels(codec.decode(data).pixels)] for name, data in files.items()}


@pytest.fixture(scope="module")
def shipped():
    return hvcompress.load_model(device="cpu")


@pytest.mark.parametrize("name", DIGESTS)
def test_latents_and_pixels(shipped, name):
    data = (GOLDEN / f"{name}.hvci").read_bytes()
    assert shipped.latent_digest(data) == LATENTS[name]
    decoded = hvcompress.decode(data, device="cpu")
    with Image.open(GOLDEN / f"{name}.png") as expected:
        assert decoded.mode == expected.mode and np.array_equal(np.asarray(decoded), np.asarray(expected))


def test_profile_and_metadata(shipped):
    decoded, meant = shipped.decode((GOLDEN / "metadata.hvci").read_bytes()), cases()["metadata"][0]
    assert decoded.exif == meant.exif and decoded.xmp == meant.xmp
    assert decoded.icc[:4] + decoded.icc[12:24] == meant.icc[:4] + meant.icc[12:24]  # the rest has a date in it


def test_a_large_picture(shipped):
    """Of two segments, whose pixels are not stored: they are near those that were encoded."""
    data = (GOLDEN / "segmented.hvci").read_bytes()
    assert shipped.latent_digest(data) == SEGMENTED
    part = shipped.decode(data, crop=(1000, 1500, 64, 64)).pixels.astype(int)
    assert np.abs(part - segmented().pixels[1500:1564, 1000:1064]).mean() < 3


def test_threads(shipped):
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert digests(shipped) == DIGESTS
    finally:
        torch.set_num_threads(threads)


def test_channels_last(shipped):
    parts = loading.load_parts(loading.find_model())
    for path in (parts.topdown, parts.synthesis):
        path.to(memory_format=torch.channels_last)
    assert digests(loading.Codec(loading.find_model(), parts, torch.device("cpu"))) == DIGESTS


@pytest.mark.parametrize(
    "environment",
    [
        {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        {"MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "2"},
    ],
    ids=lambda environment: "-".join(f"{key}={value}" for key, value in environment.items()),
)
def test_other_instruction_sets(environment, tmp_path):
    """Decode here what another process, with other kernels, encodes there; and let it decode the golden files."""
    script = (
        "import sys, json, pathlib; sys.path.insert(0, sys.argv[1]); import test_golden as g, hvcompress\n"
        "codec = hvcompress.load_model(device='cpu')\n"
        "from hvcompress.image_reading import read_picture\n"
        "picture = read_picture(g.GOLDEN / 'odd.png')\n"
        "pathlib.Path(sys.argv[2]).write_bytes(codec.encode(picture, 70, verify=False).data)\n"
        "print(json.dumps([g.digests(codec), codec.latent_digest(pathlib.Path(sys.argv[2]).read_bytes())]))"
    )
    made = tmp_path / "made.hvci"
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(made)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    there, digest = json.loads(done.stdout)
    assert there == DIGESTS
    assert hvcompress.load_model(device="cpu").latent_digest(made.read_bytes()) == digest


@pytest.mark.cuda
def test_cuda_with_and_without_tf32():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
            torch.backends.cudnn.benchmark = allowed
            assert digests(hvcompress.load_model(device="cuda")) == DIGESTS
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[:2]
        torch.backends.cudnn.benchmark = before[2]


def test_every_truncation_and_2000_flips_of_a_real_file(shipped):
    data = (GOLDEN / "odd.hvci").read_bytes()
    damaged = [data[:length] for length in range(len(data))]
    generator = random.Random(5)
    for _ in range(2000):
        flipped = bytearray(data)
        bit = generator.randrange(8 * len(data))
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for broken in damaged:
        with pytest.raises(HvcompressError):
            shipped.decode(broken)
