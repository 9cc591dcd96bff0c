"""Files of 16 bits per sample, which Pillow does not write in colour: PNG and PPM.

The network computes samples in 4,096 steps from black to white.
With 16 bits a smooth sky, brightened later, keeps them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from .errors import UsageError
from .image_writing import PNG_XMP
from .picture import Picture, samples

SUFFIXES = (".png", ".ppm")
_BAND = 1 << 18  # pixels that are made ready at a time
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # planes -> PNG's code


def check_deep_suffix(suffix: str) -> None:
    """Raises UsageError where 16 bits cannot be written."""
    if suffix not in SUFFIXES:
        raise UsageError(f"{suffix} is written with 8 bits per sample; 16 go into {' and '.join(SUFFIXES)}")


def deep_bytes(picture: Picture, suffix: str) -> bytes:
    """The picture, whose pixels are uint16, as a file with its alpha plane and metadata, as far as the format has them.

    Raises UsageError for an unknown suffix, and for transparency in a .ppm file.
    """
    check_deep_suffix(suffix)
    if suffix == ".png":
        return _png(picture)
    if picture.alpha is not None:
        raise UsageError(".ppm does not store transparency; .png does")
    height, width = picture.pixels.shape[:2]
    head = b"P%d\n%d %d\n65535\n" % (5 if picture.gray else 6, width, height)
    return b"".join((head, *(rows.tobytes() for rows in _bands(picture))))


def _bands(picture: Picture) -> Iterator[np.ndarray]:
    """`samples` in big-endian uint16, some rows at a time: a large picture is not copied as a whole."""
    height, width = picture.pixels.shape[:2]
    step = max(1, _BAND // width)
    for top in range(0, height, step):
        yield samples(picture, slice(top, top + step)).astype(">u2")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(picture: Picture) -> bytes:
    """PNG (ISO/IEC 15948). Rows are stored as differences from those above, filter 2: photographs get small enough."""
    height, width = picture.pixels.shape[:2]
    planes = (1 if picture.gray else 3) + (picture.alpha is not None)
    parts = [b"\x89PNG\r\n\x1a\n"]
    parts.append(_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[planes], 0, 0, 0)))
    if picture.icc is not None:
        parts.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc)))
    if picture.exif is not None:
        parts.append(_chunk(b"eXIf", picture.exif))
    if picture.xmp is not None:
        parts.append(_chunk(b"iTXt", PNG_XMP + picture.xmp))
    packer, above = zlib.compressobj(), np.zeros((1, 2 * planes * width), np.uint8)
    for band in _bands(picture):
        rows = band.view(np.uint8).reshape(-1, 2 * planes * width)
        filtered = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)
        np.subtract(rows, np.concatenate((above, rows[:-1])), out=filtered[:, 1:])
        above = rows[-1:]
        if data := packer.compress(filtered.tobytes()):
            parts.append(_chunk(b"IDAT", data))
    parts += [_chunk(b"IDAT", packer.flush()), _chunk(b"IEND", b"")]
    return b"".join(parts)
