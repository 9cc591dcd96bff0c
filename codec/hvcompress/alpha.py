"""The alpha plane, kept losslessly: an 8-bit gray PNG inside a chunk, or one byte where the plane is constant."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .errors import FormatError
from .image_reading import opened


def pack_alpha(alpha: np.ndarray) -> bytes:
    """(H, W) uint8 -> bytes."""
    if alpha.min() == alpha.max():  # most often: fully opaque
        return bytes((alpha.flat[0],))
    buffer = io.BytesIO()
    Image.fromarray(alpha).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def unpack_alpha(data: bytes, width: int, height: int) -> np.ndarray:
    """Inverse of `pack_alpha`. Raises FormatError where it is neither a byte nor a gray PNG of that size."""
    if len(data) == 1:
        return np.full((height, width), data[0], np.uint8)
    try:
        with opened(io.BytesIO(data), width * height, ("PNG",)) as image:
            # Before any pixel is decoded.
            if image.size != (width, height) or image.mode != "L":
                raise FormatError("the alpha plane does not fit the picture")
            return np.asarray(image)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers raise nearly any kind on damaged files
        raise FormatError("the alpha plane is damaged") from error
