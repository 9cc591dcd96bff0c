"""The codecs that people use, each at a ladder of settings from about 0.1 to 3 bits per pixel.

Each one gets the settings that serve its PSNR best at equal file size, as far as its package offers them, so that the
comparison does not flatter us. Nothing is imported until a codec is used.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, features
from PIL import __version__ as pillow_version


@dataclass(frozen=True)
class Classical:
    """One way to code a picture.

    settings: everything but the point, in words that change whenever a result could. point_name: what a point is.
    encode: (image, point) -> bytes. decode: bytes -> (H, W, 3) uint8. library: name and version.
    """

    key: str
    label: str
    settings: str
    point_name: str
    points: tuple[float, ...]
    encode: Callable[[Image.Image, float], bytes]
    decode: Callable[[bytes], np.ndarray]
    library: Callable[[], str]


def save(image: Image.Image, kind: str, **options) -> bytes:
    """The file that Pillow would write."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pillow_decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def jpeg(image: Image.Image, quality: float, subsampling: str) -> bytes:
    return save(image, "JPEG", quality=int(quality), subsampling=subsampling, optimize=True)


def jpeg420(image: Image.Image, quality: float) -> bytes:
    return jpeg(image, quality, "4:2:0")


def jpeg444(image: Image.Image, quality: float) -> bytes:
    return jpeg(image, quality, "4:4:4")


def webp(image: Image.Image, quality: float) -> bytes:
    return save(image, "WEBP", quality=int(quality), method=6)


def avif(image: Image.Image, quality: float) -> bytes:
    # tune=psnr: libavif's default tunes still pictures for looks, at the cost of about 5 % more bits at equal PSNR.
    options = {"subsampling": "4:4:4", "speed": 6, "max_threads": 1, "advanced": {"tune": "psnr"}}
    return save(image, "AVIF", quality=int(quality), **options)


def avif_default(image: Image.Image, quality: float) -> bytes:
    # libavif's default for still pictures, by looks and not by PSNR; Pillow's 4:2:0 and speed 6.
    return save(image, "AVIF", quality=int(quality), max_threads=1)


def jpeg2000(image: Image.Image, ratio: float) -> bytes:
    # Fixed rate: equal PSNR for all pictures (quality_mode="dB") needs more bits at the same mean PSNR.
    return save(image, "JPEG2000", irreversible=True, mct=1, quality_mode="rates", quality_layers=[ratio])


def jpegxl(image: Image.Image, distance: float) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(np.asarray(image), distance=distance, effort=7, numthreads=1))


def jpegxl_decode(data: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.jpegxl_decode(data, numthreads=1)


def _pillow(feature: str, name: str) -> Callable[[], str]:
    return lambda: f"Pillow {pillow_version}, {name} {features.version(feature)}"


def _imagecodecs_jxl() -> str:
    import imagecodecs

    return f"imagecodecs {imagecodecs.__version__}, {imagecodecs.jpegxl_version()}"


JPEG_POINTS = (3, 6, 10, 16, 25, 38, 55, 70, 80, 87, 92, 95)
WEBP_POINTS = (0, 3, 8, 16, 30, 50, 65, 76, 84, 90, 95)
AVIF_POINTS = (6, 12, 20, 28, 36, 45, 55, 64, 73, 82)
JPEG2000_POINTS = (240, 160, 96, 60, 40, 28, 20, 14, 9.6)  # file = 24 bits per pixel / ratio
JPEGXL_POINTS = (18, 12, 8, 5.5, 3.8, 2.6, 1.8, 1.2, 0.8, 0.55)

CLASSICAL = (
    Classical(
        "jpeg420", "JPEG 4:2:0", "4:2:0, optimized Huffman tables, baseline", "quality", JPEG_POINTS,
        jpeg420, pillow_decode, _pillow("libjpeg_turbo", "libjpeg-turbo"),
    ),
    Classical(
        "jpeg444", "JPEG 4:4:4", "4:4:4, optimized Huffman tables, baseline", "quality", JPEG_POINTS,
        jpeg444, pillow_decode, _pillow("libjpeg_turbo", "libjpeg-turbo"),
    ),
    Classical(
        "jpeg2000", "JPEG 2000", "irreversible 9/7, colour transform, fixed rate, one layer", "ratio", JPEG2000_POINTS,
        jpeg2000, pillow_decode, _pillow("jpg_2000", "OpenJPEG"),
    ),
    Classical(
        "webp", "WebP", "lossy, 4:2:0, method 6", "quality", WEBP_POINTS,
        webp, pillow_decode, _pillow("webp", "libwebp"),
    ),
    Classical(
        "jpegxl", "JPEG XL", "VarDCT, effort 7", "distance", JPEGXL_POINTS,
        jpegxl, jpegxl_decode, _imagecodecs_jxl,
    ),
    Classical(
        "avif", "AVIF", "4:4:4, 8 bits, speed 6, tune=psnr", "quality", AVIF_POINTS,
        avif, pillow_decode, _pillow("avif", "libavif"),
    ),
    Classical(
        "avif-default", "AVIF, default", "4:2:0, 8 bits, speed 6, default tuning", "quality", AVIF_POINTS,
        avif_default, pillow_decode, _pillow("avif", "libavif"),
    ),
)  # fmt: skip
CLASSICAL_KEYS = tuple(codec.key for codec in CLASSICAL)
