"""Pixels of 16 bits: the same picture, finer."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import hvcompress
from hvcompress import plan
from hvcompress.cli import main
from hvcompress.deep import deep_bytes
from hvcompress.errors import UsageError
from hvcompress.image_reading import read_picture
from hvcompress.picture import Picture


def read_png(data: bytes) -> tuple[np.ndarray, dict[bytes, bytes]]:
    """(H, W, n) uint16 and the other chunks of a 16-bit PNG whose rows all have filter 2 (Up)."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, pixels, chunks = 8, b"", {}
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + content)
        at += 12 + length
        if kind == b"IDAT":
            pixels += content
        else:
            chunks[kind] = content
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    planes = {0: 1, 4: 2, 2: 3, 6: 4}[colour]
    rows = np.frombuffer(zlib.decompress(pixels), np.uint8).reshape(height, 1 + 2 * planes * width)
    assert depth == 16 and (rows[:, 0] == 2).all()
    values = np.add.accumulate(rows[:, 1:], 0, dtype=np.uint8)
    return np.ascontiguousarray(values).view(">u2").reshape(height, width, planes).astype(np.uint16), chunks


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 1 << 16, (height, width, 3)).astype(np.uint16)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (700, 600)])
def test_png_holds_every_bit(gray, transparent, size, photo_icc):
    alpha = (noise(*size)[..., 0] >> 8).astype(np.uint8) if transparent else None
    picture = Picture(noise(*size), gray, alpha, photo_icc, b"II*\0\x08\0\0\0\0\0\0\0\0\0", b"<x/>")
    data = deep_bytes(picture, ".png")
    values, chunks = read_png(data)
    planes = [picture.pixels[..., :1] if gray else picture.pixels]
    planes += [alpha[..., None] * np.uint16(257)] if transparent else []
    assert np.array_equal(values, np.concatenate(planes, 2))
    assert zlib.decompress(chunks[b"iCCP"].partition(b"\0")[2][1:]) == photo_icc
    opened = Image.open(io.BytesIO(data))
    opened.load()
    assert opened.size == size[::-1] and opened.info["icc_profile"] == photo_icc and opened.info["xmp"] == b"<x/>"
    if not gray:
        assert np.array_equal(np.asarray(opened), (values >> 8).astype(np.uint8))  # Pillow has 8 bits for colours


@pytest.fixture(scope="module")
def photo_icc() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_ppm_holds_every_bit():
    for gray, magic in ((False, b"P6"), (True, b"P5")):
        picture = Picture(noise(5, 7), gray)
        data = deep_bytes(picture, ".ppm")
        head = magic + b"\n7 5\n65535\n"
        planes = picture.pixels[..., :1] if gray else picture.pixels
        assert data == head + planes.astype(">u2").tobytes()
    with pytest.raises(UsageError, match="transparency"):
        deep_bytes(Picture(noise(5, 7), alpha=np.zeros((5, 7), np.uint8)), ".ppm")


def test_the_same_picture_with_finer_values(tiny, photo):
    picture = read_picture(photo)
    data = tiny.encode(picture, 70).data
    coarse, fine = tiny.decode(data).pixels, tiny.decode(data, bits=16).pixels
    assert fine.dtype == np.uint16 and fine.shape == coarse.shape
    inside = (coarse > 0) & (coarse < 255)
    assert np.abs(fine / 257 - coarse)[inside].max() <= 0.51
    assert len(np.unique(fine)) > 10 * len(np.unique(coarse))
    part = tiny.decode(data, crop=(5, 9, 20, 10), bits=16).pixels
    assert np.abs(part.astype(int) - fine[9:19, 5:25]).max() <= 257
    with pytest.raises(UsageError, match="8 or 16"):
        tiny.decode(data, bits=12)


def test_in_chunks_too(tiny, photo, monkeypatch):
    data = tiny.encode(read_picture(photo), 70).data
    whole = tiny.decode(data, bits=16).pixels
    monkeypatch.setattr(plan, "WHOLE", 1)
    monkeypatch.setattr(plan, "CHUNK", 1)
    assert np.abs(tiny.decode(data, bits=16).pixels.astype(int) - whole).max() <= 257


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_from_python_and_from_the_command_line(mode, tiny_folder, photo, tmp_path, monkeypatch):
    monkeypatch.setenv("HVCOMPRESS_MODELS", str(tiny_folder.parent))
    image = Image.fromarray(photo).convert(mode)
    data = hvcompress.encode(image, quality=70, model=tiny_folder, device="cpu")
    plain = hvcompress.decode_array(data, device="cpu")
    assert np.array_equal(plain, np.asarray(hvcompress.decode(data, device="cpu")))
    deep = hvcompress.decode_array(data, bits=16, device="cpu")
    assert deep.dtype == np.uint16 and deep.shape == plain.shape
    (tmp_path / "a.hvci").write_bytes(data)
    command = ["decode", str(tmp_path / "a.hvci"), "--bit-depth", "16", "--device", "cpu", "--quiet"]
    assert main(command) == 0
    values = read_png((tmp_path / "a.png").read_bytes())[0]
    assert np.array_equal(values.squeeze(2) if mode == "L" else values, deep)


def test_formats_of_8_bits_are_refused_at_once(tmp_path, capsys):
    (tmp_path / "a.hvci").write_bytes(b"not looked at")
    for out in ("a.webp", "a.tif", "a.jpg"):
        command = ["decode", str(tmp_path / "a.hvci"), "-o", str(tmp_path / out), "--bit-depth", "16"]
        assert main(command) == UsageError.exit_code
        assert "16 go into .png and .ppm" in capsys.readouterr().err
    assert main(["decode", "a.hvci", "--bit-depth", "12"]) == UsageError.exit_code
