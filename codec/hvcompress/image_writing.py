"""Pictures -> Pillow images and image files."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from PIL import Image, PngImagePlugin, features

from .errors import OutputError, UsageError
from .files import reason
from .metadata import EXIF_PREFIX, clean_exif, clean_xmp, without_orientation
from .picture import Picture, samples
from .tiff import DIRECTORIES, describing, with_directories

# Suffix -> Pillow's name of the format and how to save. Decoding adds no second loss, except to JPEG; AVIF has another
# colour space, which costs up to three levels (gray and alpha come back exactly). Speed 8 takes a quarter of the time
# of 6, the default, for 2 % more bytes.
FORMATS: dict[str, tuple[str, dict]] = {
    ".png": ("PNG", {}),
    ".ppm": ("PPM", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
    ".avif": ("AVIF", {"quality": 100, "speed": 8}),
}
_OPAQUE_FORMATS = ("PPM", "JPEG", "BMP")  # these cannot store transparency, or few readers honour it

_TIFF_XMP = 700  # the tag
PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"  # what comes before a packet in a chunk iTXt
_JPEG_SEGMENT = 65533  # bytes of data


def to_pil(picture: Picture) -> Image.Image:
    """As a Pillow image of mode L, LA, RGB or RGBA.

    With its profile in `info["icc_profile"]`, EXIF data in `info["exif"]` and XMP in `info["xmp"]`, if there are any.
    """
    image = Image.fromarray(samples(picture))
    if picture.icc is not None:
        image.info["icc_profile"] = picture.icc
    if picture.exif is not None:
        image.info["exif"] = EXIF_PREFIX + picture.exif
    if picture.xmp is not None:
        image.info["xmp"] = picture.xmp
    return image


def check_suffix(suffix: str) -> str:
    """The suffix in lower case. Raises UsageError where we do not write such files, or this Pillow cannot."""
    if suffix.lower() not in FORMATS:
        raise UsageError(f"cannot write {suffix or 'a file without suffix'!r}; known are {' '.join(FORMATS)}")
    if suffix.lower() == ".avif" and not features.check_module("avif"):
        raise UsageError("cannot write '.avif' with a Pillow that was built without AVIF")
    return suffix.lower()


def image_bytes(image: Image.Image | Picture, suffix: str = ".png") -> bytes:
    """The image as a file of the kind that the suffix names: lossless, but for .jpg, and nearly for .avif.

    Profile, EXIF and XMP of the image's `info` go with it where the format holds them: not in .ppm and .bmp, and EXIF
    and XMP of more than 64 KiB not in .jpg. A picture goes into .ppm without a copy in Pillow.

    Raises UsageError for an unknown suffix and for transparency in a format that has none, OutputError where the
    format cannot hold the image (WebP is limited to 16383 pixels a side, JPEG to 65500).
    """
    suffix = check_suffix(suffix)
    name, options = FORMATS[suffix]
    if isinstance(image, Picture):
        if name == "PPM" and image.alpha is None:
            return _ppm_bytes(image)
        image = to_pil(image)
    if name in _OPAQUE_FORMATS and image.has_transparency_data:
        raise UsageError(f"{suffix} does not store transparency; .png, .webp, .tif and .avif do")
    icc = image.info.get("icc_profile")
    if name == "WEBP" and image.mode in ("L", "LA") or name == "AVIF" and image.mode == "LA":
        icc = None  # gray becomes RGB there, which the profile of a gray image does not describe
    if name == "AVIF" and image.mode != "L":
        options = options | {"subsampling": "4:4:4"}
    options = options | {"icc_profile": icc}
    exif, xmp = clean_exif(image.info.get("exif")), clean_xmp(image.info.get("xmp"))
    try:
        if exif is not None or xmp is not None:
            # Pillow parses EXIF data for some formats, and they may be damaged where it looks. Better without, then.
            with contextlib.suppress(Exception):
                return _saved_with_metadata(image, name, options, exif, xmp)
        return _saved(image, name, options)
    except (OSError, ValueError) as error:
        raise OutputError(f"the picture cannot be stored as {suffix}: {reason(error)}") from error


def _saved(image: Image.Image, name: str, options: dict) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def _saved_with_metadata(image: Image.Image, name: str, options: dict, exif: bytes | None, xmp: bytes | None) -> bytes:
    """exif, xmp: clean."""
    if name == "TIFF":
        return _tiff_with_metadata(image, options, exif, xmp)
    if name in ("PPM", "BMP"):
        return _saved(image, name, options)
    if name == "AVIF" and exif is not None:  # the format has an orientation of its own, and Pillow would write all anew
        exif = without_orientation(exif)
    if name == "JPEG" and exif is not None:
        exif = EXIF_PREFIX + exif
    if exif is not None and (name != "JPEG" or len(exif) <= _JPEG_SEGMENT):
        options = options | {"exif": exif}
    if xmp is not None and name == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add(b"iTXt", PNG_XMP + xmp)
        options = options | {"pnginfo": text}
    elif xmp is not None and (name != "JPEG" or len(xmp) <= _JPEG_SEGMENT - 29):  # less the name of the segment
        options = options | {"xmp": xmp}
    return _saved(image, name, options)


def _tiff_with_metadata(image: Image.Image, options: dict, exif: bytes | None, xmp: bytes | None) -> bytes:
    """EXIF data lie in a TIFF file's own directory, and in two more that it names."""
    tags = Image.Exif()
    if exif is not None:
        with contextlib.suppress(Exception):
            given = Image.Exif()
            given.load(exif)
            tags = describing(given)
    directories = {tag: tags.pop(tag) for tag in DIRECTORIES if tag in tags}
    if xmp is not None:
        tags[_TIFF_XMP] = xmp
    data = _saved(image, "TIFF", options | {"exif": tags})
    with contextlib.suppress(Exception):  # values that cannot be written
        return with_directories(data, directories) if directories else data
    return data


def _ppm_bytes(picture: Picture) -> bytes:
    height, width = picture.pixels.shape[:2]
    values = picture.pixels[..., 0] if picture.gray else picture.pixels
    head = b"P%d\n%d %d\n255\n" % (5 if picture.gray else 6, width, height)
    return b"".join((head, np.ascontiguousarray(values).data))
