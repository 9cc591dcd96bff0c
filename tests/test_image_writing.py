from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, features
from test_image_reading import AVIF, GRAY, RGB, RGBA, RNG, SRGB, needs_avif, profile, saved
from test_metadata import NOTE, XMP_PACKET, exif_data

from hvcompress import image_writing
from hvcompress.errors import InputError, OutputError, UsageError
from hvcompress.image_reading import read_picture
from hvcompress.image_writing import FORMATS, check_suffix, image_bytes, to_pil
from hvcompress.metadata import clean_exif, clean_xmp
from hvcompress.picture import Picture


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix not in (".jpg", ".jpeg", ".avif")])
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


@needs_avif
def test_avif_is_nearly_lossless():
    """Its YCbCr costs colours up to three levels; gray and alpha come back exactly."""
    for array in (RGB, RGBA, GRAY):
        picture = read_picture(array)
        back = read_picture(image_bytes(picture, ".avif"))
        assert np.abs(back.pixels.astype(int) - picture.pixels).max() <= (0 if picture.gray else 3)
        assert array is not RGBA or np.array_equal(back.alpha, picture.alpha)
    gray_alpha = Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(RGBA[..., 3])))
    back = Image.open(io.BytesIO(image_bytes(gray_alpha, ".avif")))
    assert np.array_equal(np.asarray(back.convert("LA")), np.asarray(gray_alpha))


def test_without_avif_it_is_told(monkeypatch):
    monkeypatch.setitem(features.modules, "avif", ("PIL._nothing", None))
    with pytest.raises(UsageError, match=r"cannot write '\.avif' with a Pillow that was built without AVIF"):
        check_suffix(".AVIF")


@pytest.mark.parametrize("gray", [True, False])
def test_ppm_is_written_and_read_without_pillow(gray, monkeypatch):
    picture = read_picture(GRAY if gray else RGB)
    expected = saved(to_pil(picture), "PPM")
    monkeypatch.setattr(image_writing, "to_pil", lambda picture: pytest.fail("a copy was made"))
    if not gray:
        monkeypatch.setattr(Image.core, "new", lambda *a: pytest.fail("a copy was made"))
    assert image_bytes(picture, ".ppm") == expected
    back = read_picture(expected)
    assert np.array_equal(back.pixels, picture.pixels) and back.pixels.flags.writeable and back.gray == gray
    with pytest.raises(InputError, match="damaged or truncated"):
        read_picture(expected[:-1])


def test_ppm_with_alpha_is_refused_all_the_same():
    with pytest.raises(UsageError, match="transparency"):
        image_bytes(read_picture(RGBA), ".ppm")


def test_other_kinds_of_ppm():
    plain = b"P3 # comment\n3 1 255\n1 2 3  4 5 6  255 254 253\n"
    assert read_picture(plain).pixels.tolist() == [[[1, 2, 3], [4, 5, 6], [255, 254, 253]]]
    assert read_picture(b"P6\n# comment\n1 1\n15\n\x0f\x00\x05").pixels.tolist() == [[[255, 0, 85]]]
    assert read_picture(b"P4\n8 1\n\x0f").pixels[0, :, 0].tolist() == [255] * 4 + [0] * 4


def test_profiles_travel_through_files():
    for suffix in (".png", ".jpg", ".webp", ".tif") + (".avif",) * AVIF:
        data = image_bytes(to_pil(Picture(RGB, icc=SRGB)), suffix)
        assert read_picture(data).icc == SRGB
    gray = to_pil(Picture(np.stack([GRAY] * 3, axis=2), gray=True, icc=profile(b"GRAY")))
    assert read_picture(image_bytes(gray, ".png")).icc == profile(b"GRAY")
    assert "icc_profile" not in Image.open(io.BytesIO(image_bytes(gray, ".webp"))).info


@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", pytest.param(".avif", marks=needs_avif)])
def test_metadata_travel_through_files(suffix, gray):
    picture = replace(read_picture(GRAY if gray else RGB), exif=clean_exif(exif_data()), xmp=clean_xmp(XMP_PACKET))
    data = image_bytes(picture, suffix)
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.getexif()[0x010F] == "Mak3r X" and image.getexif().get(0x0112, 1) == 1
    assert image.getexif().get_ifd(0x8769)[0x927C] == NOTE
    assert image.info["xmp"] == picture.xmp
    again = read_picture(data)
    assert again.pixels.shape == picture.pixels.shape and again.xmp == picture.xmp
    # Patched, not written anew: the camera's notes are where they were.
    assert again.exif.index(NOTE) == picture.exif.index(NOTE)
    if suffix != ".avif":
        assert again.exif == picture.exif


def test_metadata_in_tiff():
    """There the file's own directory holds them, so they are written anew, and only what describes the picture."""
    hostile = Image.Exif()
    hostile[0x010F], hostile[0x0106], hostile[0x0111], hostile[0x0116], hostile[0x0112] = "Maker", 0, 7, 1, 6
    hostile.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"
    hostile.get_ifd(0x8825)[1] = "N"
    for array in (GRAY, RGB, RGBA):
        picture = replace(read_picture(array), exif=clean_exif(hostile.tobytes()), xmp=clean_xmp(XMP_PACKET))
        data = image_bytes(picture, ".tif")
        back = read_picture(data)
        assert np.array_equal(back.pixels, picture.pixels) and back.xmp == picture.xmp
        exif = to_pil(back).getexif()
        assert exif[0x010F] == "Maker" and exif.get(0x0112, 1) == 1 and 0x0111 not in exif
        assert exif.get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05" and exif.get_ifd(0x8825)[1] == "N"
        assert read_picture(image_bytes(back, ".png")).exif == back.exif
    plain = image_bytes(read_picture(RGB), ".tif")
    assert read_picture(plain).exif is None and read_picture(plain).xmp is None
    alone = image_bytes(replace(read_picture(RGB), xmp=XMP_PACKET), ".tif")
    assert read_picture(alone).exif is None and read_picture(alone).xmp == clean_xmp(XMP_PACKET)


@pytest.mark.parametrize("suffix", [".ppm", ".bmp"])
def test_formats_without_room_for_metadata(suffix):
    picture = replace(read_picture(RGB), icc=SRGB, exif=clean_exif(exif_data()), xmp=XMP_PACKET)
    assert read_picture(image_bytes(picture, suffix)).exif is None
    assert np.array_equal(read_picture(image_bytes(picture, suffix)).pixels, RGB)


def test_what_is_too_long_for_jpeg_is_left_out_of_it():
    note = RNG.bytes(70000)
    picture = replace(read_picture(RGB), exif=clean_exif(exif_data() + note), xmp=b"x" * 70000)
    back = read_picture(image_bytes(picture, ".jpg"))
    assert back.exif is None and back.xmp is None
    back = read_picture(image_bytes(replace(picture, xmp=XMP_PACKET), ".jpg"))
    assert back.exif is None and back.xmp == clean_xmp(XMP_PACKET)
    most = clean_exif(exif_data() + note)[: 65533 - 6]
    assert read_picture(image_bytes(replace(picture, exif=most), ".jpg")).exif == most
    for suffix in (".png", ".webp"):
        back = read_picture(image_bytes(picture, suffix))
        assert (back.exif, back.xmp) == (picture.exif, picture.xmp)


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".avif" or AVIF])
@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on the damage
def test_hostile_metadata_do_not_hinder_writing(suffix):
    rng = np.random.default_rng(11)
    for _ in range(15):
        damaged = bytearray(exif_data("<>"[rng.integers(2)], small=b"\xff\xd8more"))
        for _ in range(4):
            damaged[rng.integers(10, len(damaged))] = rng.integers(256)
        picture = replace(read_picture(RGB), exif=clean_exif(bytes(damaged)), xmp=rng.bytes(50))
        assert read_picture(image_bytes(picture, suffix)).pixels.shape == RGB.shape


def test_a_pillow_image_has_the_metadata_as_pillow_itself_would():
    picture = replace(read_picture(RGB), exif=clean_exif(exif_data()), xmp=XMP_PACKET)
    image = to_pil(picture)
    assert image.getexif()[0x010F] == "Mak3r X" and image.info["xmp"] == XMP_PACKET
    assert read_picture(saved(image, "JPEG", exif=image.info["exif"])).exif == picture.exif
    assert (read_picture(image).exif, read_picture(image).xmp) == (picture.exif, clean_xmp(XMP_PACKET))
    assert not {"exif", "xmp", "icc_profile"} & to_pil(read_picture(RGB)).info.keys()


def test_unknown_suffixes_and_what_a_format_cannot_hold():
    for suffix in (".gif", "", "png", ".hvci"):
        with pytest.raises(UsageError, match="cannot write"):
            image_bytes(Image.fromarray(RGB), suffix)
    assert check_suffix(".PNG") == ".png"
    with pytest.raises(OutputError, match=r"\.webp"):
        image_bytes(Image.new("RGB", (16384, 1)), ".webp")
