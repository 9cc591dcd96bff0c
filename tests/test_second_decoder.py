"""The decoder of examples/, which knows no more than the documents say, gives the pixels of the golden files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hvcompress
from hvcompress import plan
from hvcompress.container import STATE_BITS
from hvcompress.image_reading import read_picture
from hvcompress.machine import machine_of
from hvcompress.model import find_model

ROOT = Path(__file__).resolve().parent.parent
PROGRAM, GOLDEN = ROOT / "examples" / "second_decoder.py", ROOT / "tests" / "golden"


pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="only a checkout has the examples")


@pytest.fixture(scope="module")
def second():
    spec = importlib.util.spec_from_file_location("second_decoder", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.png")), ids=lambda path: path.stem)
def test_same_pixels(second, path):
    pixels = second.decode(path.with_suffix(".hvci").read_bytes(), find_model().path)
    with Image.open(path) as expected:
        assert np.array_equal(pixels.squeeze(), np.asarray(expected).squeeze())


def test_several_segments(second, photo, monkeypatch):
    """Of a layer, as a picture of more than four megapixels has them."""
    monkeypatch.setattr(plan, "SEGMENT", 50)
    monkeypatch.setattr(second, "SEGMENT", 50)
    encoded = hvcompress.load_model(device="cpu").encode(read_picture(photo), 50)
    assert np.array_equal(second.decode(encoded.data, find_model().path), encoded.picture.pixels)


def test_it_stands_alone(tmp_path):
    """Neither torch nor anything of ours is imported."""
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'hvcompress', 'constriction', 'safetensors', 'numba')))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    model, out = find_model().path, tmp_path / "out.png"
    subprocess.run([sys.executable, "-c", code, PROGRAM, GOLDEN / "odd.hvci", model, out], check=True)
    with Image.open(out) as made, Image.open(GOLDEN / "odd.png") as expected:
        assert np.array_equal(np.asarray(made), np.asarray(expected))


def test_it_knows_all_machines(second):
    assert tuple(second.MACHINES) == STATE_BITS
    for state_bits, (q, p) in second.MACHINES.items():
        following = machine_of(state_bits).following
        assert following[1, 0] == q and following[0, 1] == p
