from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import types
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin, features
from test_metadata import XMP_PACKET, exif_data, thumbnail

from hvcompress import image_reading, plan
from hvcompress.container import MAX_PIXELS
from hvcompress.errors import InputError, LimitError
from hvcompress.files import read_file
from hvcompress.image_reading import read_picture
from hvcompress.image_writing import image_bytes, to_pil
from hvcompress.metadata import EXIF_PREFIX, clean_exif

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (13, 9, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (13, 9, 4), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (13, 9), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


AVIF = features.check("avif")
needs_avif = pytest.mark.skipif(not AVIF, reason="Pillow without AVIF")


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


def cmyk_profile() -> bytes:
    """Of a press whose colours are all green: four inks -> Lab by a table of 2 x 2 x 2 x 2 equal entries."""
    green = bytes((150, 128 - 60, 128 + 40))
    identity = struct.pack(">9I", *(65536 * (i % 4 == 0) for i in range(9)))
    curve = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + 4 * curve + 16 * green + 3 * curve
    head = struct.pack(">I4sI4s4s4s", 144 + len(table), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    head = (head + bytes(12) + b"acsp").ljust(68, b"\0") + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_goes_through_its_profile(kind):
    image = Image.fromarray(RGB).convert("CMYK")
    picture = read_picture(saved(image, kind, icc_profile=cmyk_profile()))
    assert len(np.unique(picture.pixels.reshape(-1, 3), axis=0)) == 1 and picture.icc is None
    red, green, blue = (int(value) for value in picture.pixels[0, 0])
    assert red < blue < green and green > 90


def test_cmyk_in_jpeg_is_not_inverted():
    """Photoshop stores the complement, and Pillow does as well."""
    image = Image.new("CMYK", (16, 16), (0, 200, 200, 0))
    assert np.abs(read_picture(saved(image, "JPEG", quality=95)).pixels.astype(int) - (255, 55, 55)).max() <= 3


def test_palette_with_alpha_and_premultiplied_modes():
    palette = Image.fromarray(RGB).quantize(8)
    palette.putalpha(Image.fromarray(RGBA[..., 3]))
    assert palette.mode == "PA"
    picture = read_picture(palette)
    assert np.array_equal(picture.alpha, RGBA[..., 3])
    assert np.array_equal(picture.pixels, np.asarray(palette.convert("RGBA"))[..., :3])
    for mode, premultiplied in (("RGBA", "RGBa"), ("LA", "La")):
        image = Image.fromarray(RGBA).convert(mode).convert(premultiplied)
        picture = read_picture(image)
        assert picture.gray == (mode == "LA") and np.array_equal(picture.alpha, RGBA[..., 3])
        assert np.array_equal(np.asarray(to_pil(picture)), np.asarray(image.convert(mode)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "PA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_bands_are_seamless(mode, orientation, monkeypatch):
    image = Image.fromarray(RGBA).convert(mode) if mode != "I;16" else Image.fromarray(GRAY.astype(np.uint16) * 257)
    image.getexif()[0x0112] = orientation
    whole = read_picture(image)
    assert whole.pixels.shape == ((13, 9, 3) if orientation == 1 else (9, 13, 3))
    for size in (1, 20):
        monkeypatch.setattr(image_reading, "_BAND", size)
        banded = read_picture(image)
        assert np.array_equal(banded.pixels, whole.pixels)
        assert whole.alpha is banded.alpha is None or np.array_equal(banded.alpha, whole.alpha)


@needs_avif
def test_avif():
    smooth = np.ascontiguousarray(np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3)))
    picture = read_picture(saved(Image.fromarray(smooth), "AVIF", quality=90))
    assert np.abs(picture.pixels.astype(int) - smooth).max() <= 4 and not picture.gray


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


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_a_turned_picture_is_upright_and_stays_so(kind, order):
    """Neither EXIF nor XMP of what is written turns it once more."""
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, :8] = 250, 40, 40  # the left, which is the top when upright
    options = {"exif": b"Exif\0\0" + exif_data(order, 6, small=thumbnail()), "xmp": XMP_PACKET}
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode())
    if kind == "TIFF":
        tags = Image.Exif()
        tags[0x010F], tags[0x0112], tags[700] = "Mak3r X", 6, options.pop("xmp")
        options["exif"] = tags
    picture = read_picture(saved(Image.fromarray(wide), kind, **options))
    assert picture.pixels.shape == (24, 8, 3) and picture.pixels[2, 4, 0] > 200 and picture.pixels[-3, 4, 0] < 50
    assert picture.exif is not None and picture.xmp is not None and b'Orientation="6"' not in picture.xmp
    for suffix in (".png", ".jpg", ".webp", ".tif") + (".avif",) * AVIF:
        data = image_bytes(picture, suffix)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.size == (8, 24) and image.getexif().get(0x0112, 1) == 1
            assert ImageOps.exif_transpose(image).size == (8, 24)
        back = read_picture(data)
        assert back.pixels.shape == (24, 8, 3) and back.pixels[2, 4, 0] > 200
        assert to_pil(back).getexif()[0x010F] == "Mak3r X" and back.xmp == picture.xmp


def test_orientation_in_xmp_alone():
    data = saved(Image.fromarray(RGB), "WEBP", lossless=True, xmp=XMP_PACKET)
    picture = read_picture(data)
    assert picture.pixels.shape == (9, 13, 3) and np.array_equal(picture.pixels, np.rot90(RGB, -1))
    assert b'tiff:Orientation="1"' in picture.xmp


def test_exif_of_an_older_kind_in_png():
    """ImageMagick's, in hexadecimal digits."""
    text = f"\nexif\n{len(exif_data()):8}\n{(EXIF_PREFIX + exif_data()).hex()}"
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", text, zip=True)
    picture = read_picture(saved(Image.fromarray(RGB), pnginfo=info))
    assert picture.exif == clean_exif(exif_data()) and picture.pixels.shape == (9, 13, 3)


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
    assert picture.pixels.shape == RGB.shape and picture.exif is None


def test_profiles_are_kept_where_they_fit():
    assert read_picture(saved(Image.fromarray(RGB), icc_profile=SRGB)).icc == SRGB
    assert read_picture(saved(Image.fromarray(RGBA), icc_profile=SRGB)).icc == SRGB
    assert read_picture(saved(Image.fromarray(GRAY), icc_profile=profile(b"GRAY"))).icc == profile(b"GRAY")
    assert read_picture(saved(Image.fromarray(GRAY), icc_profile=SRGB)).icc is None
    assert read_picture(saved(Image.fromarray(RGB), icc_profile=profile(b"GRAY"))).icc is None
    assert read_picture(saved(Image.fromarray(RGB), icc_profile=b"short")).icc is None


# --------------------------------------------------------------------------------------------------------------------
# HEIC


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


@pytest.fixture
def pillow_heif(monkeypatch):
    """A stand-in for the package: every file is the same picture, with EXIF turned upright already, as it does."""

    class HeifImageFile(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            assert self.fp.tell() == 0
            if self.fp.read().endswith(b"damaged"):
                raise SyntaxError("no image inside")
            self._size, self._mode, self.tile = (9, 13), "RGB", []
            self.info = {"exif": EXIF_PREFIX + exif_data(orientation=1), "icc_profile": SRGB}

        def load(self):
            if self._im is None:
                self.load_prepare()
                self.frombytes(RGB.tobytes())
            return super().load()

    module = types.ModuleType("pillow_heif")
    module.HeifImageFile = HeifImageFile
    monkeypatch.setitem(sys.modules, "pillow_heif", module)


def test_heic_with_the_package(pillow_heif, tmp_path):
    path = tmp_path / "a.HEIC"
    path.write_bytes(HEIC)
    for source in (path, HEIC):
        picture = read_picture(source)
        assert np.array_equal(picture.pixels, RGB) and picture.icc == SRGB
        assert picture.exif == clean_exif(exif_data(orientation=1))
    with pytest.raises(InputError, match="no image inside"):
        read_picture(HEIC + b"damaged")
    with pytest.raises(LimitError):
        read_picture(HEIC, max_pixels=116)
    for other in (b"RIFF", b"\0\0\0\x18ftypisom" + bytes(40)):
        with pytest.raises(InputError, match="not an image"):
            read_picture(other)


def test_heic_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match="takes the package pillow-heif"):
        read_picture(HEIC)
    with pytest.raises(InputError, match="not an image"):
        read_picture(b"\0\0\0\x18ftypisom" + bytes(40))


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
from hvcompress.image_reading import read_picture

def peak():  # on Linux ru_maxrss begins at the peak of whoever started this process
    if {sys.platform == "linux"}:
        status = open("/proc/self/status").read()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if {sys.platform == "darwin"} else 1024)

before = peak()
try:
    read_picture({png_header(60000, 60000)!r})
except LimitError:
    print(peak() - before)
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


def test_a_picture_without_the_memory_is_refused_before_its_pixels_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    needed = plan.BYTES_WHOLE * 64 * 64  # that is what the network sees
    for source in (path, path.read_bytes(), RGB, Image.fromarray(RGB)):
        assert read_picture(source, memory_limit=needed).pixels.shape == RGB.shape
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for source in (path, path.read_bytes(), RGB, Image.fromarray(RGB)):
        with pytest.raises(LimitError, match="memory"):
            read_picture(source, memory_limit=needed - 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("kind", "orientation", "most"), [("PNG", 1, 7), ("JPEG", 6, 7), ("PPM", 1, 3)])
def test_reading_takes_one_copy_of_each_kind(kind, orientation, most, tmp_path):
    """Pillow's has 4 bytes per pixel and is gone afterwards, ours has 3 and stays."""
    path, exif = tmp_path / "a", Image.Exif()
    exif[0x0112] = orientation
    image = Image.effect_noise((64, 64), 50).convert("RGB").resize((4000, 3000), Image.Resampling.NEAREST)
    options = {"PNG": {"exif": exif, "compress_level": 1}, "JPEG": {"exif": exif}, "PPM": {}}[kind]
    image.save(path, kind, **options)
    program = f"""
import io, re
from PIL import Image
from hvcompress.image_reading import read_picture

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

out = io.BytesIO()
Image.new("RGB", (64, 64)).save(out, {kind!r})
read_picture(out.getvalue())
before = status("VmRSS")
picture = read_picture({str(path)!r})
print(status("VmHWM") - before, status("VmRSS") - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    peak, left = (int(value) for value in done.stdout.split())
    assert peak < most * 12e6 + 10e6 and left < 3 * 12e6 + 5e6


def test_pillows_own_limit_neither_matters_nor_changes(monkeypatch):
    files = [saved(Image.fromarray(RGB), kind) for kind in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (*files, Image.fromarray(RGB)):
            assert read_picture(source).pixels.shape == RGB.shape
            assert Image.MAX_IMAGE_PIXELS == 10
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # as where a process was forked while a thread was reading
    image_reading._readers.append(10)
    image_reading.forget_readers()
    assert Image.MAX_IMAGE_PIXELS == 10 and not image_reading._readers
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


def icon(picture: bytes) -> bytes:
    """An .ico file of one picture, which is 16x16 by the file's directory."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 24, len(picture), 22) + picture


def bitmap_header(width: int, height: int) -> bytes:
    return struct.pack("<IiiHHIIIIII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("header", [png_header, bitmap_header])
def test_icons_are_refused_by_the_size_of_what_they_hold(header, monkeypatch):
    """Pillow decodes an icon while it opens it."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *a: pytest.fail("pixels were decoded"))
    with pytest.raises(LimitError, match="more than an icon has"):
        read_picture(icon(header(12000, 10000)))
    monkeypatch.undo()
    for cut in range(80):
        with pytest.raises((InputError, LimitError)):
            read_picture(icon(header(16, 16))[:cut])


@pytest.mark.parametrize("side", [16, 256, 512])
def test_icons(side):
    pixels = RNG.integers(0, 256, (side, side, 4), dtype=np.uint8)
    picture = read_picture(icon(saved(Image.fromarray(pixels))))
    assert np.array_equal(picture.pixels, pixels[..., :3]) and np.array_equal(picture.alpha, pixels[..., 3])


def test_icons_of_macos_are_refused():
    written = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 4), dtype=np.uint8)), "ICNS")
    with pytest.raises(InputError, match="take one of them"):
        read_picture(written)
