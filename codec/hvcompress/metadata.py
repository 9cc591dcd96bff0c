"""ICC profiles, EXIF and XMP: what is kept of them, and their chunks. Bytes are patched where they are, not rewritten.

A camera's own notes (MakerNote) hold offsets into the EXIF data, which do not survive a rewriting. XMP is not parsed
at all: an XML parser on foreign data is a risk, and there is one attribute of concern.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib

from .container import EXIF, ICC, XMP
from .errors import FormatError, HvcompressWarning, InputError

MAX_BYTES = 4 << 20  # of EXIF and XMP each; JPEG holds 64 KiB of them
MAX_ICC_BYTES = 16 << 20
EXIF_PREFIX = b"Exif\0\0"  # before the data in JPEG, and in Pillow's `info["exif"]`

_ORIENTATION, _THUMBNAIL_OFFSET, _THUMBNAIL_BYTES = 0x0112, 0x0201, 0x0202
_SHORT = 3
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation\s*(?:=\s*["']|>)\s*)[0-9]+""")


def clean_exif(data: bytes | None) -> bytes | None:
    """EXIF data as they are stored: from the TIFF header on, with orientation 1, without a thumbnail.

    Pixels are stored upright, so another orientation would turn them twice. The thumbnail is that of the picture before
    it was coded, or even before it was edited, and often larger than the picture's own layers.
    Returns None where there are no data, or damaged ones, or more than MAX_BYTES (with a warning).
    """
    data = data or b""
    data = data.removeprefix(EXIF_PREFIX).removeprefix(EXIF_PREFIX)  # some writers put it there twice
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or _too_long("EXIF", data):
        return None
    out = bytearray(data)
    try:
        directory = struct.unpack_from(order + "I", out, 4)[0]
        first, end = _entries(out, order, directory)
    except struct.error:
        return None
    for entry in range(first, end, 12):
        if struct.unpack_from(order + "H", out, entry)[0] == _ORIENTATION:
            struct.pack_into(order + "HHIHH", out, entry, _ORIENTATION, _SHORT, 1, 1, 0)
    if end + 4 <= len(out):  # the offset of the thumbnail's directory; some writers leave it out
        start, size = _thumbnail(out, order, struct.unpack_from(order + "I", out, end)[0])
        out[end : end + 4] = bytes(4)
        if start >= end + 4 or start + size <= directory:
            out[start : start + size] = bytes(size)
            if not any(out[start:]):  # as a rule it is the last
                del out[start:]
    return bytes(out)


def without_orientation(exif: bytes) -> bytes | None:
    """Clean EXIF data without the orientation's entry, for formats that have one of their own; None if nothing is left.

    The entries behind it move up, and twelve bytes stay unused.
    """
    order = "<" if exif[:2] == b"II" else ">"
    out = bytearray(exif)
    directory = struct.unpack_from(order + "I", out, 4)[0]
    first, end = _entries(out, order, directory)
    kept = [out[e : e + 12] for e in range(first, end, 12)]
    kept = [entry for entry in kept if struct.unpack_from(order + "H", entry)[0] != _ORIENTATION]
    if not kept:
        return None
    struct.pack_into(order + "H", out, directory, len(kept))
    out[first:end] = b"".join(kept).ljust(end - first, b"\0")  # after the last entry there is no further directory
    return bytes(out)


def _entries(data: bytearray, order: str, directory: int) -> tuple[int, int]:
    """Where the entries of a directory, 12 bytes each, begin and end. Raises struct.error unless there are some."""
    count = struct.unpack_from(order + "H", data, directory)[0]
    first, end = directory + 2, directory + 2 + 12 * count
    if directory < 8 or count == 0 or end > len(data):
        raise struct.error("no such directory")
    return first, end


def _thumbnail(data: bytearray, order: str, directory: int) -> tuple[int, int]:
    """Offset and bytes of the JPEG thumbnail that a directory names; none where there is no such."""
    try:
        first, end = _entries(data, order, directory)
    except struct.error:
        return len(data), 0
    found = {}
    for entry in range(first, end, 12):
        tag, kind, _, long = struct.unpack_from(order + "HHII", data, entry)
        found[tag] = struct.unpack_from(order + "H", data, entry + 8)[0] if kind == _SHORT else long
    start, size = found.get(_THUMBNAIL_OFFSET, 0), found.get(_THUMBNAIL_BYTES, 0)
    if data[start : start + 2] != b"\xff\xd8" or start + size > len(data):
        return len(data), 0
    return start, size


def clean_xmp(data: bytes | str | None) -> bytes | None:
    """An XMP packet as it is stored: UTF-8, with tiff:Orientation 1.

    Returns None where there is none, or more than MAX_BYTES (with a warning).
    """
    data = data.encode() if isinstance(data, str) else data or b""
    data = data.strip(b"\0")
    if not data or _too_long("XMP", data):
        return None
    return _XMP_ORIENTATION.sub(rb"\g<1>1", data)


def _too_long(name: str, data: bytes) -> bool:
    if len(data) <= MAX_BYTES:
        return False
    text = f"{name} data of {len(data):,} bytes are not kept (limit {MAX_BYTES:,})"
    warnings.warn(text, HvcompressWarning, stacklevel=4)
    return True


# --------------------------------------------------------------------------------------------------------------------
# Chunks


def pack_icc(profile: bytes | None) -> dict[bytes, bytes]:
    """The chunk of a profile, a zlib stream. Raises InputError where it is too long."""
    if profile is None:
        return {}
    if len(profile) > MAX_ICC_BYTES:
        raise InputError(f"an ICC profile of {len(profile):,} bytes is too long (limit {MAX_ICC_BYTES:,})")
    return {ICC: zlib.compress(profile, 9)}


def unpack_icc(chunks: dict[bytes, bytes]) -> bytes | None:
    """Inverse of `pack_icc`. Raises FormatError: without its profile a picture has other colours."""
    if ICC not in chunks:
        return None
    profile = _inflated(chunks[ICC], MAX_ICC_BYTES)
    if profile is None:
        raise FormatError("the ICC profile is damaged")
    return profile


def pack_metadata(exif: bytes | None, xmp: bytes | None) -> dict[bytes, bytes]:
    """The chunks of a picture's EXIF and XMP, each a zlib stream."""
    found = {EXIF: clean_exif(exif), XMP: clean_xmp(xmp)}
    return {tag: zlib.compress(data, 9) for tag, data in found.items() if data is not None}


def unpack_metadata(chunks: dict[bytes, bytes]) -> tuple[bytes | None, bytes | None]:
    """Inverse of `pack_metadata`: EXIF and XMP. None for what is damaged or too long: the picture is sound without.

    The orientation is reset here as well, whatever the file's writer has left there.
    """
    exif, xmp = (_inflated(chunks[tag], MAX_BYTES) if tag in chunks else None for tag in (EXIF, XMP))
    return clean_exif(exif), clean_xmp(xmp)


def _inflated(data: bytes, limit: int) -> bytes | None:
    """What a zlib stream holds; None where it is damaged, cut off, or longer than the limit."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, limit + 1)
    except zlib.error:
        return None
    return found if stream.eof and len(found) <= limit else None
