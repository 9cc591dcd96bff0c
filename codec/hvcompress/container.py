"""The .hvci bytes: write, parse, check. Pure Python without torch or numpy; `docs/format.md` is the contract.

Everything a file declares is checked against the limits and against the file's size before anybody allocates memory
on its word.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

from .errors import FormatError, LimitError, UnsupportedError, UsageError
from .quality import LEVELS, MAX_OFFSET

MAGIC = b"\x8fHV"  # the first byte is not ASCII, so no text file starts like this
VERSION = 1
MAX_SIDE = 65535
MAX_PIXELS = 1 << 30  # a program may set a lower limit, by the memory that it has
STATE_BITS = (8, 10, 12, 14, 16)  # of the machines that there are: those of `machine.py`, which needs numpy
FLAG_GRAY, FLAG_OFFSETS, FLAG_CHUNKS, FLAG_RESERVED = 1, 2, 4, 8
MIN_BYTES = 21
MAX_HEADER_BYTES = 19 + 2 * 5 + 15 + 5 + 14 * 5  # five bytes per varint
ALPHA, ICC = b"ALPH", b"ICCP"  # an upper-case first letter marks a chunk that a decoder must understand
EXIF, XMP = b"exif", b"xmpd"  # others may be skipped


@dataclass(frozen=True)
class Header:
    """What a file says about its picture."""

    width: int
    height: int
    gray: bool
    quality: int  # global quality index
    offsets: tuple[int, ...]  # quality offset per layer, coarse to fine
    fingerprint: bytes  # first 4 bytes of the model's fingerprint
    latent_hash: bytes  # first 4 bytes of the SHA-256 of the decoded latents
    state_bits: int = STATE_BITS[0]  # of the trellis's machine, which has 2^state_bits states


@dataclass(frozen=True)
class Container:
    """A parsed file."""

    header: Header
    streams: tuple[bytes, ...]  # range-coded layers, coarse to fine
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    header_bytes: int = 0


@dataclass(frozen=True)
class FileInfo:
    """What can be said of a file without a model."""

    version: int
    width: int
    height: int
    gray: bool
    alpha: bool
    icc: bool
    exif: bool
    xmp: bool
    quality: int
    state_bits: int
    offsets: tuple[int, ...]
    fingerprint: str
    header_bytes: int
    layer_bytes: tuple[int, ...]
    chunk_bytes: dict[str, int]
    file_bytes: int
    latent_hash: str


def check_size(width: int, height: int) -> None:
    """Raises LimitError where a picture is larger than the format or this program allows."""
    if max(width, height) > MAX_SIDE:
        raise LimitError(f"{width}x{height}: a side is longer than {MAX_SIDE} pixels")
    if width * height > MAX_PIXELS:
        raise LimitError(f"{width}x{height}: more than {MAX_PIXELS} pixels")


def pack_varint(value: int) -> bytes:
    """Little-endian base 128: seven bits a byte, the high bit set on all but the last."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def unpack_varint(data: bytes, position: int) -> tuple[int, int]:
    """A number at a position, and the position after it. Raises FormatError."""
    reader = _Reader(data, position)
    return reader.varint(), reader.position


class _Reader:
    """Reads bytes in order; every shortage is a FormatError."""

    def __init__(self, data: bytes, position: int):
        self.data, self.position = data, position

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.position:
            raise FormatError("the file is truncated")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                if byte == 0 and shift:
                    raise FormatError("a number is not written in its shortest form")
                return value
        raise FormatError("a number is too long")


def pack(container: Container) -> bytes:
    """The bytes of a file. Inverse of `parse`."""
    header, streams = container.header, container.streams
    check_size(header.width, header.height)
    section = b"".join(tag + pack_varint(len(body)) + body for tag, body in container.chunks.items())
    offsets = bytes(offset & 255 for offset in header.offsets) if any(header.offsets) else b""
    flags = header.gray * FLAG_GRAY | bool(offsets) * FLAG_OFFSETS | bool(section) * FLAG_CHUNKS | len(streams) << 4
    body = b"".join(
        (
            bytes((flags,)),
            header.fingerprint,
            header.latent_hash,
            bytes((header.quality, header.state_bits)),
            pack_varint(header.width),
            pack_varint(header.height),
            offsets,
            pack_varint(len(section)) if section else b"",
            *(pack_varint(len(stream)) for stream in streams[:-1]),
            *streams,
            section,
        )
    )
    return MAGIC + bytes((VERSION,)) + zlib.crc32(body).to_bytes(4, "little") + body


def parse(data: bytes) -> Container:
    """Parse and check a file.

    Raises FormatError (not one of ours, truncated, damaged, contradictory), UnsupportedError (newer version or an
    unknown critical chunk) or LimitError (larger than the limits).
    """
    _check_start(data)
    if not _is_whole(data):
        raise FormatError("the file is damaged or truncated (checksum mismatch)")
    reader = _Reader(data, 8)
    header, lengths, section_bytes = _parse_header(reader)
    header_bytes = reader.position
    last = len(data) - header_bytes - sum(lengths) - section_bytes
    if last < 0:
        raise FormatError("the stream lengths contradict the file's size")
    streams = tuple(reader.take(length) for length in (*lengths, last))
    return Container(header, streams, _parse_chunks(reader), header_bytes)


def parse_prefix(data: bytes) -> Container:
    """Parse a file that may be cut off at its end: the container has the layers that are whole, from the coarsest.

    `header.offsets` has as many numbers as the file had layers. A complete file is parsed and checked as by `parse`.
    Of all others the last layer is missing, since only the size of the file tells where it ends, and so are the chunks,
    which come last. Without the rest the CRC cannot be checked: whether what is there is damaged, nobody knows.

    Raises as `parse` does, and FormatError where not even the first layer is whole.
    """
    _check_start(data)
    if _is_whole(data):
        return parse(data)
    reader = _Reader(data, 8)
    header, lengths, _ = _parse_header(reader)
    header_bytes = reader.position
    streams = []
    for length in lengths:
        if length > len(data) - reader.position:
            break
        streams.append(reader.take(length))
    if not streams:
        raise FormatError("the file is truncated, and not even its first layer is whole")
    return Container(header, tuple(streams), {}, header_bytes)


def read_ends(file: BinaryIO) -> tuple[Header, dict[bytes, bytes]]:
    """The header and the chunks of a file, of which only those parts are read, and the CRC is not checked.

    Of a truncated file there is just the header, and so of one whose chunks make no sense: `parse` says what is wrong.

    file: seekable. Raises as `parse` does where something is wrong with the header.
    """
    file.seek(0)
    head = file.read(MAX_HEADER_BYTES)
    _check_start(head)
    reader = _Reader(head, 8)
    header, lengths, section_bytes = _parse_header(reader)
    size = file.seek(0, os.SEEK_END)
    if section_bytes == 0 or reader.position + sum(lengths) + section_bytes > size:
        return header, {}
    file.seek(size - section_bytes)
    try:
        return header, _parse_chunks(_Reader(file.read(section_bytes), 0))
    except FormatError:
        return header, {}


def _check_start(data: bytes) -> None:
    if data[:3] != MAGIC[: len(data[:3])] or not data:
        raise FormatError("not an .hvci file")
    if len(data) < MIN_BYTES:
        raise FormatError("the file is truncated")
    if data[3] != VERSION:
        raise UnsupportedError(f"format version {data[3]} is not supported by this program (it knows {VERSION})")


def _is_whole(data: bytes) -> bool:
    """Whether the checksum says so."""
    return zlib.crc32(memoryview(data)[8:]) == int.from_bytes(data[4:8], "little")


def _parse_header(reader: _Reader) -> tuple[Header, list[int], int]:
    """The header, the bytes of every stream but the last, and those of the chunk section. From the flags on."""
    flags = reader.take(1)[0]
    if flags & FLAG_RESERVED:
        raise UnsupportedError("the file uses a feature that this program does not know")
    layers = flags >> 4
    if layers == 0:
        raise FormatError("the file has no layers")
    fingerprint, latent_hash = reader.take(4), reader.take(4)
    quality = reader.take(1)[0]
    if quality >= LEVELS:
        raise FormatError(f"quality {quality} is out of range")
    state_bits = reader.take(1)[0]
    if state_bits not in STATE_BITS:
        raise UnsupportedError(f"the file needs a machine of 2^{state_bits} states, which this program does not know")
    width, height = reader.varint(), reader.varint()
    if width == 0 or height == 0:
        raise FormatError("the picture has no pixels")
    check_size(width, height)
    offsets = (0,) * layers
    if flags & FLAG_OFFSETS:
        offsets = tuple((byte ^ 128) - 128 for byte in reader.take(layers))
        if not any(offsets) or max(map(abs, offsets)) > MAX_OFFSET:
            raise FormatError("the layer offsets are out of range")
    section_bytes = reader.varint() if flags & FLAG_CHUNKS else 0
    if flags & FLAG_CHUNKS and section_bytes == 0:
        raise FormatError("the file should have chunks, but has none")
    lengths = [reader.varint() for _ in range(layers - 1)]
    header = Header(width, height, bool(flags & FLAG_GRAY), quality, offsets, fingerprint, latent_hash, state_bits)
    return header, lengths, section_bytes


def _parse_chunks(reader: _Reader) -> dict[bytes, bytes]:
    chunks: dict[bytes, bytes] = {}
    while reader.position < len(reader.data):
        tag = reader.take(4)
        if not (tag.isalpha() and tag.isascii()):
            raise FormatError("a chunk has no proper name")
        body = reader.take(reader.varint())
        if tag in chunks:
            raise FormatError(f"chunk {tag.decode()} appears twice")
        if tag[:1].isupper() and tag not in (ALPHA, ICC):
            raise UnsupportedError(f"the file needs chunk {tag.decode()}, which this program does not know")
        chunks[tag] = body
    return chunks


def file_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """Raises UsageError for anything but bytes: bytes(Path(...)) would be those of the path."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise UsageError(f"expected the bytes of an .hvci file, not {type(data).__name__}; read the file first")
    return bytes(data)


def read_info(data: bytes) -> FileInfo:
    """What a file says of itself, after all checks of `parse`. Needs no model."""
    data = file_bytes(data)
    container = parse(data)
    header = container.header
    return FileInfo(
        version=data[3],
        width=header.width,
        height=header.height,
        gray=header.gray,
        alpha=ALPHA in container.chunks,
        icc=ICC in container.chunks,
        exif=EXIF in container.chunks,
        xmp=XMP in container.chunks,
        quality=header.quality,
        state_bits=header.state_bits,
        offsets=header.offsets,
        fingerprint=header.fingerprint.hex(),
        header_bytes=container.header_bytes,
        layer_bytes=tuple(map(len, container.streams)),
        chunk_bytes={tag.decode(): len(body) for tag, body in container.chunks.items()},
        file_bytes=len(data),
        latent_hash=header.latent_hash.hex(),
    )
