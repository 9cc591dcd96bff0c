from __future__ import annotations

import errno
import io
import os
import stat
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from hvcompress import image_io
from hvcompress.container import MAX_PIXELS
from hvcompress.errors import InputError, LimitError, OutputError, UsageError
from hvcompress.image_io import (
    FORMATS,
    Picture,
    check_suffix,
    image_bytes,
    read_file,
    read_picture,
    to_pil,
    write_atomically,
)

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (13, 9, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (13, 9, 4), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (13, 9), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def profile(space: bytes) -> bytes:
    return SRGB[:16] + space + SRGB[20:]


def chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG file that declares a size and has next to no pixel data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


# --------------------------------------------------------------------------------------------------------------------
# Sources


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    image = Image.fromarray(RGB)
    path = tmp_path / "a.png"
    image.save(path)
    for source in (str(path), path, path.read_bytes(), bytearray(path.read_bytes()), image, Image.open(path), RGB):
        picture = read_picture(source)
        assert np.array_equal(picture.pixels, RGB)
        assert (picture.gray, picture.alpha, picture.icc) == (False, None, None)
        assert picture.pixels.flags.c_contiguous and picture.pixels.flags.writeable


def test_arrays():
    assert np.array_equal(read_picture(RGBA).alpha, RGBA[..., 3])
    assert np.array_equal(read_picture(RGBA).pixels, RGBA[..., :3])
    for array in (GRAY, GRAY[..., None]):
        picture = read_picture(array)
        assert picture.gray and np.array_equal(picture.pixels, np.stack([GRAY] * 3, axis=2))
    assert np.array_equal(read_picture(RGB[::2, ::-1]).pixels, RGB[::2, ::-1])
    frozen = RGB.copy()
    frozen.flags.writeable = False
    assert read_picture(frozen).pixels.flags.writeable


@pytest.mark.parametrize(
    "array",
    [RGB.astype(np.float32), RGB > 3, RGB.astype(np.int64), RGB[0, 0], RGB[None], RGB[..., :2], RGB[:0], RGB[:, :0]],
    ids=["float", "bool", "int64", "1-d", "4-d", "2 planes", "no rows", "no columns"],
)
def test_wrong_arrays(array):
    with pytest.raises(InputError):
        read_picture(array)


@pytest.mark.parametrize("source", [None, 3, ["a.png"]])
def test_wrong_types(source):
    with pytest.raises(InputError, match="cannot read a picture from"):
        read_picture(source)


def test_the_callers_image_is_left_alone():
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = 6
    read_picture(image)
    assert image.size == (9, 13) and image.getexif()[0x0112] == 6


# --------------------------------------------------------------------------------------------------------------------
# Modes


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_colour_modes_become_rgb(mode):
    image = Image.fromarray(RGB).convert("RGB" if mode == "RGBX" else mode)
    image = Image.merge("RGBX", (*image.split(), image.split()[0])) if mode == "RGBX" else image
    picture = read_picture(image)
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert not picture.gray and picture.alpha is None


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray_modes(mode):
    image = Image.fromarray(GRAY).convert(mode)
    picture = read_picture(saved(image))
    assert picture.gray and picture.alpha is None
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert to_pil(picture).mode == "L"


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits_spans_the_whole_range(bits):
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(1, 16) % 2**bits)
    image = image.convert("P")
    image.putpalette([v for i in range(2**bits) for v in [i * 255 // (2**bits - 1)] * 3])
    assert read_picture(saved(image, bits=bits)).pixels.max() == 255


def test_gray_with_alpha():
    image = Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(RGBA[..., 3])))
    picture = read_picture(saved(image))
    assert picture.gray and np.array_equal(picture.pixels[..., 1], GRAY)
    assert np.array_equal(picture.alpha, RGBA[..., 3])
    assert to_pil(picture).mode == "LA" and np.array_equal(np.asarray(to_pil(picture)), np.asarray(image))


def test_rgba_keeps_the_colour_under_full_transparency():
    array = RGBA.copy()
    array[:5, :, 3] = 0
    picture = read_picture(saved(Image.fromarray(array)))
    assert np.array_equal(np.asarray(to_pil(picture)), array)


def test_transparent_palette_and_colour_keys():
    palette = Image.fromarray(RGB).quantize(8)
    one = read_picture(saved(palette, transparency=3)).alpha
    assert np.array_equal(one, np.where(np.asarray(palette) == 3, 0, 255))
    assert read_picture(saved(palette)).alpha is None
    several = read_picture(saved(palette, transparency=bytes(range(0, 80, 10)))).alpha
    assert np.array_equal(several, np.asarray(palette) * 10)
    key = tuple(int(v) for v in RGB[2, 3])
    assert read_picture(saved(Image.fromarray(RGB), transparency=key)).alpha[2, 3] == 0
    gray = read_picture(saved(Image.fromarray(GRAY), transparency=int(GRAY[2, 3])))
    assert gray.gray and np.array_equal(gray.alpha, np.where(GRAY == GRAY[2, 3], 0, 255))
    bitmap = read_picture(saved(Image.fromarray(GRAY).convert("1"), transparency=0))
    assert bitmap.gray and np.array_equal(bitmap.alpha, bitmap.pixels[..., 0])


def test_sixteen_bit_gray_is_rounded_not_clipped(tmp_path):
    values = np.arange(0, 65536, 37, dtype=np.uint16)[:1700].reshape(17, 100)
    values[0, :2] = 0, 65535
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    for data in (saved(image), saved(image, "TIFF"), saved(image, "PPM")):
        picture = read_picture(data)
        assert picture.gray and np.array_equal(picture.pixels[..., 0], expected)
    assert np.array_equal(read_picture(image).pixels[..., 0], expected)
    assert np.array_equal(read_picture(Image.fromarray(values.astype(np.int32))).pixels[..., 0], expected)
    keyed = read_picture(saved(image, transparency=37)).alpha
    assert np.array_equal(keyed, np.where(values == 37, 0, 255))


@pytest.mark.parametrize(
    "image",
    [
        Image.new("F", (4, 4)),
        Image.new("LAB", (4, 4)),
        Image.fromarray(np.array([[0, 65536]], np.int32)),
        Image.fromarray(np.array([[0, -1]], np.int32)),
    ],
    ids=["F", "LAB", "I large", "I negative"],
)
def test_modes_without_an_8_bit_meaning_are_refused(image):
    with pytest.raises(InputError, match="not supported"):
        read_picture(image)


def test_cmyk_with_a_profile_goes_through_it_and_without_by_formula():
    image = Image.fromarray(RGB).convert("CMYK")
    for icc in (None, b"rubbish", profile(b"CMYK")):  # the last is no valid CMYK profile either
        picture = read_picture(saved(image, "TIFF", **({"icc_profile": icc} if icc else {})))
        assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
        assert picture.icc is None


def test_the_first_frame_of_several_is_taken():
    frames = [Image.fromarray(np.full((5, 6, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(read_picture(data).pixels.astype(int) - 10).max() <= 2


# --------------------------------------------------------------------------------------------------------------------
# Orientation and profiles


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    upright = RGB
    # How a camera would store `upright` so that the orientation restores it.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert np.array_equal(read_picture(data).pixels, upright)


def test_orientation_applies_to_gray_16_bit_and_alpha():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_picture(saved(Image.fromarray(np.full((2, 5), 257, np.uint16)), exif=exif))
    assert picture.pixels.shape == (5, 2, 3)
    picture = read_picture(saved(Image.fromarray(RGBA), exif=exif))
    assert np.array_equal(picture.alpha, RGBA[..., 3].T[:, ::-1])


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0"])
def test_damaged_exif_does_not_matter(exif):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on the damage
        picture = read_picture(saved(Image.fromarray(RGB), "JPEG", exif=exif))
    assert picture.pixels.shape == RGB.shape


def test_profiles_are_kept_where_they_fit():
    assert read_picture(saved(Image.fromarray(RGB), icc_profile=SRGB)).icc == SRGB
    assert read_picture(saved(Image.fromarray(RGBA), icc_profile=SRGB)).icc == SRGB
    assert read_picture(saved(Image.fromarray(GRAY), icc_profile=profile(b"GRAY"))).icc == profile(b"GRAY")
    assert read_picture(saved(Image.fromarray(GRAY), icc_profile=SRGB)).icc is None
    assert read_picture(saved(Image.fromarray(RGB), icc_profile=profile(b"GRAY"))).icc is None
    assert read_picture(saved(Image.fromarray(RGB), icc_profile=b"short")).icc is None


# --------------------------------------------------------------------------------------------------------------------
# Bad input


def test_missing_directory_and_odd_names(tmp_path):
    for path, message in (
        (tmp_path / "none.png", "none.png: no such file"),
        (tmp_path, "is a directory"),
        ("", "no such file"),
        ("a\0b", "null"),
    ):
        with pytest.raises(InputError, match=message):
            read_picture(path)


def test_a_foreign_file_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\x8fHV and more")
    assert read_file(str(path), b"\x8fHV") == b"\x8fHV and more"
    path.write_bytes(b"a gigabyte of video")
    assert read_file(str(path), b"\x8fHV") == b"a g"
    for name, message in (("none", "none: no such file"), ("", "directory")):
        with pytest.raises(InputError, match=message):
            read_file(str(tmp_path / name), b"")


def test_not_images(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("This is not an image.")
    with pytest.raises(InputError, match=r"text\.png: not an image"):
        read_picture(path)
    with pytest.raises(InputError, match=r"^not an image"):
        read_picture(b"This is not an image.")
    with pytest.raises(InputError, match="empty"):
        read_picture(b"")
    with pytest.raises(InputError, match=r"\.hvci file already"):
        read_picture(b"\x8fHV\1" + bytes(40))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on the damage
def test_truncated_at_any_byte(kind):
    """A picture or InputError, nothing else; no file cut in half is taken for whole."""
    data = saved(Image.fromarray(RGB), kind)
    for length in range(len(data)):
        try:
            read_picture(data[:length])
            assert length > len(data) * 3 // 4, "only marks at the end may be missing"
        except InputError:
            pass


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on the damage
def test_flipped_bits_are_a_picture_or_our_error(kind):
    data = saved(Image.fromarray(RGB), kind)
    rng = np.random.default_rng(5)
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 200), 2):
            damaged[position] ^= 1 << rng.integers(8)
        try:
            read_picture(bytes(damaged), max_pixels=10**6)
        except (InputError, LimitError):
            pass


def test_postscript_is_not_run(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("it was run"))
    with pytest.raises(InputError, match="PostScript"):
        read_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


# --------------------------------------------------------------------------------------------------------------------
# Limits


@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (32769, 32768), (65536, 1), (2**31 - 1, 2**31 - 1)])
def test_too_large_pictures_are_refused_by_their_header(width, height):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LimitError):
            read_picture(png_header(width, height))


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_a_header_takes_no_memory():
    program = f"""
import resource
from hvcompress.errors import LimitError
from hvcompress.image_io import read_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_picture({png_header(60000, 60000)!r})
except LimitError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if {sys.platform == "darwin"} else 1024))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40e6


def test_the_limit_can_be_lowered_and_is_exact():
    assert read_picture(RGB, max_pixels=117).pixels.size
    for source in (RGB, Image.fromarray(RGB), saved(Image.fromarray(RGB))):
        read_picture(source, max_pixels=117)
        for limit in (116, 50, 1):
            with pytest.raises(LimitError):
                read_picture(source, max_pixels=limit)
    assert read_picture(np.zeros((1, 1, 3), np.uint8), max_pixels=1).pixels.shape == (1, 1, 3)
    read_picture(saved(Image.new("RGB", (1, 1))), max_pixels=1)


def test_pillows_own_limit_neither_matters_nor_changes(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(saved(Image.fromarray(RGB))).pixels.shape == RGB.shape
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(InputError):
        read_picture(b"nothing")
    assert Image.MAX_IMAGE_PIXELS == 10


def test_many_threads_may_read_at_once():
    before, data, failures = Image.MAX_IMAGE_PIXELS, saved(Image.fromarray(RGB)), []

    def work(limit: int) -> None:
        for _ in range(50):
            try:
                assert read_picture(data, max_pixels=limit).pixels.size
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (117, 1000, MAX_PIXELS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and Image.MAX_IMAGE_PIXELS == before


# --------------------------------------------------------------------------------------------------------------------
# Out


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if "jp" not in suffix])
def test_written_files_are_lossless(suffix):
    for array in (RGB, GRAY):
        back = Image.open(io.BytesIO(image_bytes(to_pil(read_picture(array)), suffix)))
        assert np.array_equal(np.asarray(back.convert("RGB")), read_picture(array).pixels)
    gray_alpha = Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(RGBA[..., 3])))
    for image in (Image.fromarray(RGBA), gray_alpha):
        if suffix in (".ppm", ".bmp"):
            with pytest.raises(UsageError, match="transparency"):
                image_bytes(image, suffix)
        else:
            back = Image.open(io.BytesIO(image_bytes(image, suffix)))
            assert np.array_equal(np.asarray(back.convert("RGBA")), np.asarray(image.convert("RGBA")))


def test_jpeg_comes_close_and_has_no_alpha():
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    for array in (smooth, smooth[..., 0]):
        back = Image.open(io.BytesIO(image_bytes(Image.fromarray(np.ascontiguousarray(array)), ".JPG")))
        assert np.abs(np.asarray(back).astype(int) - array).max() <= 3
    with pytest.raises(UsageError, match="transparency"):
        image_bytes(Image.fromarray(RGBA), ".jpg")


def test_profiles_travel_through_files():
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        data = image_bytes(to_pil(Picture(RGB, icc=SRGB)), suffix)
        assert read_picture(data).icc == SRGB
    gray = to_pil(Picture(np.stack([GRAY] * 3, axis=2), gray=True, icc=profile(b"GRAY")))
    assert read_picture(image_bytes(gray, ".png")).icc == profile(b"GRAY")
    assert "icc_profile" not in Image.open(io.BytesIO(image_bytes(gray, ".webp"))).info


def test_unknown_suffixes_and_what_a_format_cannot_hold():
    for suffix in (".gif", "", "png", ".hvci"):
        with pytest.raises(UsageError, match="cannot write"):
            image_bytes(Image.fromarray(RGB), suffix)
    assert check_suffix(".PNG") == ".png"
    with pytest.raises(OutputError, match=r"\.webp"):
        image_bytes(Image.new("RGB", (16384, 1)), ".webp")


# --------------------------------------------------------------------------------------------------------------------
# Atomic writes


def test_a_new_file(tmp_path):
    path = tmp_path / "ünï çode and space"
    write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == [path.name]


def test_overwriting_is_asked_for(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists"):
        write_atomically(path, b"new", overwrite=False)
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


def test_the_longest_name_works(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"x", overwrite=False)
    assert path.read_bytes() == b"x"


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("-a", b"x", overwrite=False)
    assert os.listdir() == ["-a"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_permissions_follow_the_umask_or_the_old_file(tmp_path):
    umask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"x", overwrite=False)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o640
    os.chmod(tmp_path / "new", 0o600)
    write_atomically(tmp_path / "new", b"y", overwrite=True)
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_symbolic_links_are_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "target")
    write_atomically(tmp_path / "link", b"1", overwrite=False)
    write_atomically(tmp_path / "link", b"2", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "target").read_bytes() == b"2"
    assert os.listdir(tmp_path / "folder") == ["target"]


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no /dev/null")
def test_devices_and_pipes_are_written_to_and_never_replaced(tmp_path):
    write_atomically("/dev/null", b"x" * 10, overwrite=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_atomically(tmp_path / "pipe", b"through", overwrite=False)
    reader.join()
    assert received == [b"through"] and os.listdir(tmp_path) == ["pipe"]


def test_missing_folder_folder_as_file_and_odd_names(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "none" / "a", tmp_path / "file" / "a", "a\0b", tmp_path / ("n" * 300)):
        with pytest.raises(OutputError, match="cannot write"):
            write_atomically(path, b"x", overwrite=False)
    (tmp_path / "folder").mkdir()
    for overwrite in (True, False):
        with pytest.raises((OutputError, UsageError)):
            write_atomically(tmp_path / "folder", b"x", overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="ermission"):
            write_atomically(tmp_path / "a", b"x", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_at_any_step_leaves_the_old_file_alone(tmp_path, monkeypatch, step, overwrite, problem):
    path = tmp_path / "a"
    if overwrite:
        path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise problem

    if step == "replace":
        monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(image_io.os, step, fail)
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        write_atomically(path, b"new", overwrite=overwrite)
    monkeypatch.undo()
    assert caught.type is KeyboardInterrupt or "No space left on device".lower() in str(caught.value).lower()
    assert os.listdir(tmp_path) == (["a"] if overwrite else [])
    assert not overwrite or path.read_bytes() == b"old"


def test_without_hard_links_there_is_another_way(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(tmp_path / "a", b"x", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"x" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_clobbered(tmp_path, monkeypatch, links):
    path, fsync, link = tmp_path / "a", os.fsync, os.link

    def meanwhile(descriptor: int) -> None:
        fsync(descriptor)
        path.write_bytes(b"theirs")

    def linked(*args, **options) -> None:
        if not links:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        link(*args, **options)

    monkeypatch.setattr(os, "fsync", meanwhile)
    monkeypatch.setattr(os, "link", linked)
    with pytest.raises(UsageError, match="exists"):
        write_atomically(path, b"ours", overwrite=False)
    assert path.read_bytes() == b"theirs" and os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_device_is_an_output_error():
    with pytest.raises(OutputError, match="space"):
        write_atomically(Path("/dev/full"), b"x", overwrite=True)
