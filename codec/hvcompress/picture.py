"""A picture as the codec sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Picture:
    """A picture as the codec sees it."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB; gray is replicated; a decoded picture may be uint16
    gray: bool = False  # came from a gray image; is returned as mode "L"
    alpha: np.ndarray | None = None  # (H, W) uint8, kept losslessly
    icc: bytes | None = None  # ICC profile
    exif: bytes | None = None  # from the TIFF header on (`metadata.clean_exif`); the pixels are upright already
    xmp: bytes | None = None  # XMP packet


def stripped(picture: Picture, metadata: bool, profile: bool) -> Picture:
    """Without EXIF and XMP, and without ICC profile: its colours are then taken for sRGB."""
    if metadata:
        picture = replace(picture, exif=None, xmp=None)
    return replace(picture, icc=None) if profile else picture


def samples(picture: Picture, rows: slice = slice(None)) -> np.ndarray:
    """Those rows as an array (H, W) of a gray picture or (H, W, 3), with one plane more where there is alpha.

    In the type of the pixels, to whose range alpha is widened: 16 bits of opaque are 65535.
    """
    planes = picture.pixels[rows, :, :1] if picture.gray else picture.pixels[rows]
    if picture.alpha is not None:  # else, of large pictures, no needless copy
        alpha = picture.alpha[rows, :, None]
        alpha = alpha if planes.dtype == np.uint8 else alpha.astype(np.uint16) * 257
        planes = np.concatenate((planes, alpha), axis=2)
    return np.ascontiguousarray(planes[..., 0] if planes.shape[2] == 1 else planes)
