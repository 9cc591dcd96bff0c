"""The examples run, as a reader of `examples/README.md` would run them, with the model that ships."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hvcompress
from hvcompress.model import find_model

ROOT = Path(hvcompress.__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "codec"), "PYTHONWARNINGS": "error::ResourceWarning"}

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="only a checkout has the examples")


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def album(tmp_path, photo):
    """The same picture three times, once almost; and another."""
    pictures = {"a": photo, "b": photo[:, ::-1], "c": 255 - photo // 2}
    for name, pixels in pictures.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_all_are_listed_and_tried():
    listed = set(re.findall(r"examples/(\w+\.py)", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}
    tried = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text()))
    assert listed <= tried


def test_fit_in_bytes(album):
    out = run("fit_in_bytes.py", album / "a.png", 1500)
    ours, jpeg = re.findall(r"([\d,]+) bytes, ([\d.]+) dB", out)
    assert int(ours[0].replace(",", "")) <= 1500 and float(ours[1]) > float(jpeg[1]) + 1


def test_fit_in_bytes_of_a_picture_taken_sideways(album):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    Image.open(album / "a.png").save(album / "a.jpg", quality=95, exif=exif)
    out = run("fit_in_bytes.py", album / "a.jpg", 1500)
    ours, jpeg = re.findall(r"([\d,]+) bytes, ([\d.]+) dB", out)
    assert float(ours[1]) > float(jpeg[1]) + 1


def test_preview(album):
    out = run("preview.py", album / "a.png")
    made = sorted(album.glob("a.preview-*.png"), key=lambda path: int(path.stem.split("-")[1]))
    assert len(made) >= 3 and all(str(path) in out for path in made)
    photo = np.asarray(Image.open(album / "a.png"), np.float64)
    errors = [np.square(np.asarray(Image.open(path)) - photo).mean() for path in made]
    assert errors == sorted(errors, reverse=True)


def test_similar_and_many(album):
    out = run("many.py", album, album / "out")
    assert out.count(" -> ") == 4 and len(list((album / "out").glob("*.hvci"))) == 3
    ranked = run("similar.py", *(album / "out" / f"{name}.png.hvci" for name in "aabc"))
    assert [line.split("/")[-1] for line in ranked.split()[1::2]] == ["b.png.hvci", "c.png.hvci"]


def test_serve(album):
    (album / "good.hvci").write_bytes(hvcompress.encode(album / "a.png", quality=30, device="cpu"))
    (album / "bad.hvci").write_bytes(b"nothing")
    command = [sys.executable, str(EXAMPLES / "serve.py"), str(album), "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes) as server:
        try:
            address = server.stdout.readline().strip()

            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says

            def get(name: str) -> bytes:
                with direct.open(f"{address}/{name}") as answer:
                    return answer.read()

            assert b'src="good.hvci"' in get("")
            assert get("good.hvci").startswith(b"RIFF")
            for name, code in (("bad.hvci", 500), ("none.hvci", 404), ("..%2Fa.png", 404), ("a.png", 404)):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    get(name)
                assert refused.value.code == code
                refused.value.close()
        finally:
            server.terminate()


def test_second_decoder(tmp_path):
    golden, out = ROOT / "tests" / "golden", tmp_path / "out.png"
    run("second_decoder.py", golden / "odd.hvci", find_model().path, out)
    with Image.open(out) as made, Image.open(golden / "odd.png") as expected:
        assert np.array_equal(np.asarray(made), np.asarray(expected))
