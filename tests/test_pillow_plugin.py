"""Pillow opens and saves .hvci files as it does others: lazily, with its own errors, from any kind of file."""

from __future__ import annotations

import copy
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import lru_cache
from pathlib import Path

import fake_codec
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageSequence, UnidentifiedImageError

import hvcompress
from hvcompress import pillow_plugin
from hvcompress.container import MAGIC, Container, Header, pack, parse, read_info
from hvcompress.errors import FormatError, HvcompressError, LimitError, ModelError, UnsupportedError, UsageError
from hvcompress.picture import Picture
from hvcompress.quality import offset_of, quality_of

ROOT = Path(__file__).resolve().parent.parent
CONTRIB = ROOT / "contrib"
ORIENTATION, ARTIST = 0x0112, 0x013B


@pytest.fixture(autouse=True)
def codec(monkeypatch):
    """Stands in for hvcompress.loading: its quality 100 is lossless."""
    made = fake_codec.module()
    monkeypatch.setitem(sys.modules, "hvcompress.loading", made)
    return made


@pytest.fixture
def truncated_allowed(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


def gradient(mode: str = "RGB", width: int = 32, height: int = 24) -> Image.Image:
    planes = len(Image.new(mode, (1, 1)).getbands())
    y, x, p = np.mgrid[0:height, 0:width, 0:planes]
    return Image.fromarray((3 * y + 2 * x + 40 * p).astype(np.uint8).squeeze())


def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "HVCI", **{"quality": 100, **options})
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@lru_cache
def srgb() -> bytes:  # always the same: the time is in it
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif_of(**tags) -> Image.Exif:
    exif = Image.Exif()
    for name, value in tags.items():
        exif[{"orientation": ORIENTATION, "artist": ARTIST}[name]] = value
    return exif


# --------------------------------------------------------------------------------------------------------------------
# Open


def test_registered():
    assert Image.registered_extensions()[".hvci"] == "HVCI" and Image.MIME["HVCI"] == "image/x-hvci"
    image = opened(saved(gradient()))
    assert image.format == "HVCI" and image.get_format_mimetype() == "image/x-hvci"
    assert image.format_description == "hvcompress image"


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pixels_come_back(mode, tmp_path):
    image, path = gradient(mode), tmp_path / "a.hvci"
    image.save(path, quality=100)
    back = Image.open(path)
    assert (back.mode, back.size) == (mode, (32, 24)) and back.filename == str(path)
    assert np.array_equal(np.asarray(back), np.asarray(image))


def test_opening_decodes_nothing_and_imports_neither_torch_nor_numpy(tmp_path):
    (tmp_path / "a.hvci").write_bytes(saved(gradient("RGBA"), icc_profile=srgb(), exif=exif_of(artist="me")))
    program = """
import sys
import xml.etree.ElementTree as ElementTree
import hvcompress.pillow_plugin
from PIL import Image
image = Image.open("a.hvci")
assert (image.size, image.mode, image.info["quality"]) == ((32, 24), "RGBA", 100)
assert image.getexif()[0x013B] == "me" and "icc_profile" in image.info
image.verify()
assert not {"torch", "numpy"} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(hvcompress.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_decoded_once_and_only_when_asked(codec):
    calls, real = [], codec.codec_for
    codec.codec_for = lambda *a, **k: calls.append(1) or real(*a, **k)
    image = opened(saved(gradient()))
    assert image.size == (32, 24) and image.getexif() == {} and image.draft("L", (8, 8)) is None and not calls
    assert image.load() is not None and image.getpixel((1, 1)) == (5, 45, 85)
    image.load()
    image.convert("L").resize((3, 3))
    assert len(calls) == 1


def test_paths_streams_and_descriptors(tmp_path):
    path, data = tmp_path / "a.hvci", saved(gradient())
    path.write_bytes(data)

    class Pipe(io.RawIOBase):
        """Cannot seek."""

        def __init__(self):
            self.file = io.BytesIO(data)

        def readable(self):
            return True

        def read(self, size=-1):
            return self.file.read(size)

    wanted = np.asarray(gradient())
    with open(path, "rb") as file:
        for source in (path, str(path), file, io.BytesIO(data), Pipe()):
            with Image.open(source) as image:
                assert image.format == "HVCI" and np.array_equal(np.asarray(image), wanted)
        assert not file.closed  # it belongs to the caller
    parser = ImageFile.Parser()
    for start in range(0, len(data), 20):
        parser.feed(data[start : start + 20])
    assert np.array_equal(np.asarray(parser.close()), wanted)


def test_files_are_closed(tmp_path):
    path = tmp_path / "a.hvci"
    path.write_bytes(saved(gradient()))
    image = Image.open(path)
    file = image.fp
    image.load()
    assert file.closed
    with Image.open(path) as unread:
        file = unread.fp
    assert file.closed
    with pytest.raises((ValueError, AssertionError)):
        unread.load()


def test_copies_and_pickles():
    wanted = np.asarray(gradient("RGBA"))
    for make in (Image.Image.copy, copy.copy, copy.deepcopy, lambda image: pickle.loads(pickle.dumps(image))):
        made = make(opened(saved(gradient("RGBA"), icc_profile=srgb())))
        assert np.array_equal(np.asarray(made), wanted) and made.info["icc_profile"] == srgb()
    image = opened(saved(gradient()))
    image.putpixel((0, 0), (9, 9, 9))
    assert image.getpixel((0, 0)) == (9, 9, 9) and image.getpixel((1, 1)) == (5, 45, 85)
    image.thumbnail((8, 8))
    assert image.size == (8, 6)
    assert len(list(ImageSequence.Iterator(opened(saved(gradient()))))) == 1


def test_pillow_s_limit_of_pixels(monkeypatch):
    data = saved(gradient(width=60, height=50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.warns(Image.DecompressionBombWarning):
        opened(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        opened(data)


# --------------------------------------------------------------------------------------------------------------------
# What is wrong with a file


def test_other_files_are_not_ours(tmp_path):
    for data in (b"", b"\x8f", b"\x8fHX" + bytes(30), b"text" * 10):
        with pytest.raises(UnidentifiedImageError):
            opened(data)
    png = io.BytesIO()
    gradient().save(png, "PNG")
    assert opened(png.getvalue()).format == "PNG"
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(saved(gradient())), formats=["PNG"])


def test_errors_are_oserrors_with_ours_as_cause():
    data = saved(gradient())
    for wrong, kind in (
        (data[:21], FormatError),
        (data[:3] + b"\x09" + data[4:], UnsupportedError),
        (data[:19] + b"\xff\xff\x03\xff\xff\x03" + data[21:], LimitError),
    ):
        with pytest.raises(OSError, match=r"\S") as caught:
            opened(wrong)
        assert type(caught.value.__cause__) is kind and not isinstance(caught.value, UnidentifiedImageError)
    for wrong in (data[:-1], data + b"\0", data[:60] + bytes((data[60] ^ 1,)) + data[61:]):
        image = opened(wrong)
        assert image.size == (32, 24)
        for check in (image.load, image.load, opened(wrong).verify):
            with pytest.raises(OSError, match="damaged or truncated") as caught:
                check()
            assert type(caught.value.__cause__) is FormatError


def test_a_model_that_is_not_there():
    parsed = parse(saved(gradient()))
    other = pack(Container(Header(**{**vars(parsed.header), "fingerprint": b"none"}), parsed.streams))
    assert opened(other).size == (32, 24)
    with pytest.raises(OSError, match="not installed") as caught:
        opened(other).load()
    assert type(caught.value.__cause__) is ModelError


def test_a_file_that_changes(tmp_path):
    path = tmp_path / "a.hvci"
    path.write_bytes(saved(gradient()))
    image = Image.open(path)
    path.write_bytes(saved(gradient(width=64)))
    with pytest.raises(OSError, match="changed"):
        image.load()


def test_verify_looks_at_the_checksum_alone(codec):
    codec.codec_for = lambda *a, **k: pytest.fail("decoded")
    image = opened(saved(gradient("RGBA")))
    image.verify()
    assert image.fp is None


def cut(data: bytes, layers: int) -> bytes:
    parsed = parse(data)
    return data[: parsed.header_bytes + sum(map(len, parsed.streams[:layers])) + 1]


def test_truncated_files_are_refused():
    with pytest.raises(OSError, match="truncated"):
        opened(cut(saved(gradient()), 2)).load()


def test_truncated_files_are_loaded_on_request(truncated_allowed):
    data = saved(gradient("RGBA"), icc_profile=srgb())
    image = opened(cut(data, 2))
    assert image.mode == "RGB" and "icc_profile" not in image.info  # they are at the end
    assert np.array_equal(np.asarray(image), np.asarray(gradient("RGBA"))[..., :3])
    assert np.asarray(opened(cut(data, 1))).max() == 0  # the fake codec's pixels are in the second layer
    assert opened(data).mode == "RGBA" and np.array_equal(np.asarray(opened(data)), np.asarray(gradient("RGBA")))
    damaged = data[:4] + bytes(4) + data[8:]
    image = opened(damaged)
    image.load()
    assert image.mode == "RGB" == image.convert("RGB").mode
    with pytest.raises(OSError, match="first layer"):
        opened(single_layer()[:-1]).load()


def single_layer() -> bytes:
    return pack(Container(Header(3, 2, False, 60, (0,), bytes.fromhex(fake_codec.FINGERPRINT)[:4], b"hash"), (b"abc",)))


# --------------------------------------------------------------------------------------------------------------------
# Save


def test_options_reach_the_encoder(codec):
    asked, real = {}, codec.load_model  # and what was asked of it

    def load_model(name, device):
        asked.update(name=name, device=device)
        made = real(name, device)
        encode = made.encode
        made.encode = lambda picture, quality, offsets, **rest: (
            asked.update(quality=quality, offsets=offsets, **rest) or encode(picture, quality, offsets, **rest)
        )
        made.strides = (32, 16, 8)
        return made

    codec.load_model = load_model
    file = io.BytesIO()
    gradient().save(file, "HVCI")
    rest = dict(memory_limit=None, progress=None)
    assert asked == dict(name=None, device="auto", quality=60, offsets=None, effort=1, verify=True, **rest)
    saved(gradient(), quality=7, effort=3, beta=[1, 2, 0.5], model="fake", device="cpu", verify=False)
    offsets = [offset_of(beta) for beta in (1, 2, 0.5)]
    assert asked == dict(name="fake", device="cpu", quality=7, offsets=offsets, effort=3, verify=False, **rest)
    assert read_info(saved(gradient(), quality=None, lmbda=0.01)).quality == quality_of(0.01)
    saved(gradient(), allocation="hyperprior")
    assert asked["offsets"] == (-14, 0, 14)


@pytest.mark.parametrize("options", [{"beta": [0, 1, 1]}, {"beta": [1, 1]}, {"beta": [1], "allocation": "detail"}])
def test_wrong_options_are_value_errors(options, tmp_path):
    path = tmp_path / "a.hvci"
    with pytest.raises(ValueError, match="beta") as caught:
        gradient().save(path, **options)
    assert isinstance(caught.value.__cause__, UsageError) and not path.exists()


def test_what_cannot_be_saved():
    with pytest.raises(OSError, match="mode F") as caught:
        saved(Image.new("F", (3, 3)))
    assert isinstance(caught.value.__cause__, HvcompressError)
    with pytest.raises(OSError, match="unknown model"):
        saved(gradient(), model="none")
    with pytest.raises(OSError, match="there is no device"):
        saved(gradient(), device="cuda")


def test_other_modes_are_converted():
    palette = gradient().quantize(16)
    palette.info["transparency"] = 3
    for image, mode in ((palette, "RGBA"), (gradient("L").convert("1"), "L"), (gradient().convert("CMYK"), "RGB")):
        assert opened(saved(image)).mode == mode


def test_an_image_is_saved_over_itself(tmp_path):
    path = tmp_path / "a.hvci"
    gradient().save(path, quality=100)
    with Image.open(path) as image:
        image.save(path, quality=100)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(gradient()))


def test_profiles():
    image = gradient()
    image.info["icc_profile"] = srgb()
    assert opened(saved(image)).info["icc_profile"] == srgb()
    assert opened(saved(gradient(), icc_profile=srgb())).info["icc_profile"] == srgb()
    for none in (None, b""):
        assert "icc_profile" not in opened(saved(image, icc_profile=none)).info
    assert image.info["icc_profile"] == srgb()  # saving changes nothing
    assert "icc_profile" not in opened(saved(gradient(), icc_profile=b"no profile")).info


def test_exif_and_xmp():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    image = gradient()
    image.info.update(exif=exif_of(artist="me").tobytes(), xmp=xmp)
    kept = opened(saved(image))
    assert kept.getexif()[ARTIST] == "me" and kept.info["xmp"] == xmp and kept.info["exif"].startswith(b"Exif\0\0")
    for given in (exif_of(artist="you"), exif_of(artist="you").tobytes()):
        assert opened(saved(image, exif=given)).getexif()[ARTIST] == "you"
    assert opened(saved(gradient(), xmp=xmp.decode())).info["xmp"] == xmp
    without = opened(saved(image, exif=b"", xmp=b""))
    assert not {"exif", "xmp"} & without.info.keys() and without.getexif() == {}
    assert Image.Exif.tobytes(image.getexif()) == exif_of(artist="me").tobytes()


def test_pixels_are_stored_upright():
    image = gradient()
    image.info["exif"] = exif_of(orientation=6).tobytes()
    turned = opened(saved(image))
    assert turned.size == (24, 32) and turned.getexif().get(ORIENTATION, 1) == 1
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))
    image.getexif()  # from now on the image remembers it
    assert opened(saved(image, exif=b"")).size == (32, 24)  # the caller says that there is nothing to turn
    assert opened(saved(gradient(), exif=exif_of(orientation=8))).size == (24, 32)


def test_imageio(tmp_path):
    iio = pytest.importorskip("imageio.v3")
    array, path = np.asarray(gradient()), tmp_path / "a.hvci"
    iio.imwrite(path, array, plugin="pillow", quality=100)
    assert np.array_equal(iio.imread(path, plugin="pillow"), array) and np.array_equal(iio.imread(path), array)
    assert iio.improps(path, plugin="pillow").shape == array.shape
    data = iio.imwrite("<bytes>", array, plugin="pillow", extension=".hvci", quality=100)
    assert np.array_equal(iio.imread(data, plugin="pillow", extension=".hvci"), array)


def test_with_a_real_model(tiny, tiny_folder, photo, monkeypatch):
    """From here to the pixels of `Codec.decode`, on the way of the models that are installed."""
    monkeypatch.undo()
    monkeypatch.setenv("HVCOMPRESS_MODELS", str(tiny_folder.parent))
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "HVCI", quality=40, model=tiny_folder, device="cpu", verify=False)
    assert file.getvalue() == tiny.encode(Picture(photo), 40, verify=False).data
    assert read_info(file.getvalue()).quality == 40 == opened(file.getvalue()).info["quality"]
    assert np.array_equal(np.asarray(opened(file.getvalue())), tiny.decode(file.getvalue()).pixels)


# --------------------------------------------------------------------------------------------------------------------
# What tells other programs of the format


def file_of(width: int, height: int, **header) -> bytes:
    values = dict(gray=False, quality=60, offsets=(0,) * 8, fingerprint=b"abcd", latent_hash=b"hash") | header
    return pack(Container(Header(width, height, **values), (b"1", b"", *(bytes(700),) * 6)))


@pytest.mark.skipif(not shutil.which("file"), reason="no file(1) on this machine")
def test_magic_tells_size_and_quality(tmp_path):
    sizes = [(1, 1), (127, 128), (128, 127), (768, 512), (4000, 127), (300, 4096)]
    for number, (width, height) in enumerate(sizes):
        (tmp_path / f"{number}.hvci").write_bytes(file_of(width, height, quality=10 * number))
    (tmp_path / "gray.hvci").write_bytes(file_of(2, 300, gray=True))
    (tmp_path / "none.txt").write_text("text")

    def told(name: str, *options: str) -> str:
        command = ["file", "-b", "-m", CONTRIB / "hvcompress.magic", *options, tmp_path / name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.strip()

    for number, (width, height) in enumerate(sizes):
        wanted = f"hvcompress image, version 1, quality {10 * number}, {width} x {height}"
        assert told(f"{number}.hvci") == wanted
    assert told("gray.hvci") == "hvcompress image, version 1, quality 60, gray, 2 x 300"
    assert told("0.hvci", "--mime-type") == pillow_plugin.MIME
    assert "hvcompress" not in told("none.txt")


@pytest.mark.skipif(not shutil.which("file"), reason="no file(1) on this machine")
def test_magic_of_large_pictures_and_of_flat_ones(tmp_path):
    path = tmp_path / "a.hvci"

    def told(data: bytes) -> str:
        path.write_bytes(data)
        command = ["file", "-b", "-m", CONTRIB / "hvcompress.magic", path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().partition("60, ")[2]

    for width, height in ((16383, 16384), (16384, 16383), (65535, 16384), (100, 20000), (20000, 100), (300, 20000)):
        large = Container(Header(width, height, False, 60, (0, 0), b"abcd", b"hash"), (b"", bytes(66000)))
        assert told(pack(large)) == f"{width} x {height}"
    assert told(file_of(20000, 100)) == ""  # fewer bytes than columns


def test_mime_type_of_the_desktop():
    name = "{http://www.freedesktop.org/standards/shared-mime-info}"
    (kind,) = ElementTree.parse(CONTRIB / "hvcompress.xml").getroot().findall(f"{name}mime-type")
    assert kind.get("type") == pillow_plugin.MIME
    assert kind.find(f"{name}glob").get("pattern") == "*" + pillow_plugin.SUFFIX
    value = kind.find(f"{name}magic/{name}match").get("value")
    assert re.sub(r"\\x(..)", lambda found: chr(int(found[1], 16)), value).encode("latin-1") == MAGIC


@pytest.mark.skipif(not shutil.which("update-mime-database"), reason="no shared-mime-info on this machine")
def test_mime_database_takes_the_file(tmp_path):
    (tmp_path / "packages").mkdir()
    shutil.copy(CONTRIB / "hvcompress.xml", tmp_path / "packages")
    done = subprocess.run(["update-mime-database", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0 and "hvcompress" not in done.stderr, done.stderr
    assert "image/x-hvci:*.hvci" in (tmp_path / "globs").read_text()
