"""Hostile files against the parser and the decoder: many random ones, and what came of each.

    python benchmarks/fuzz.py --parser 1000000 --decoder 20000 --seed 1

Each input is a valid file that was mutated, or one put together from hostile fields. In most the checksum is repaired,
or the first check would stop them all. They run in a process of its own that may take only so much memory and
processor time; one that dies or hangs is started again behind the input that did it, which is kept in --findings.

The parser must answer with a container that packs to the very same bytes, or with FormatError, UnsupportedError or
LimitError. The decoder must answer with one of those, ModelError or MismatchError, or with a picture that the file
means:

    same picture         other bytes for what an undamaged file says: surplus bytes behind a stream's end, an unknown
                         ancillary chunk. Latents, pixels, alpha, profile, metadata must be the undamaged file's.
    another valid file   the latents are an undamaged file's, but size, quality, offsets, gray flag, alpha, profile or
                         metadata were changed, and the checksum with them. No decoder can tell this from a file that
                         was meant so: the latents' hash protects the latents alone. Where neither quality nor the gray
                         flag changed, the pixels that both pictures have must be equal; else the pixels must be those
                         of the undamaged file's streams under that header.

Everything else is a finding: another exception, a message of several lines, a picture without an undamaged file's
latents, other pixels than those, a success though the checksum was not repaired, a crash, a hang, memory beyond the
limit. Every fourth file that is refused is also decoded as a truncated one (`decode --partial`): that must give a
preview of the size that it declares, or such an error. Files that declare more than LARGEST pixels are counted and not
decoded: time and memory grow with the declared size by design.

The parser is explored with atheris (coverage-guided) where that is installed, else with the mutations below. An input
of these follows from seed and number alone. Exit code 1 if anything was found.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import io
import json
import mmap
import os
import platform
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

from hvcompress import container  # noqa: E402
from hvcompress.container import (  # noqa: E402
    ALPHA,
    EXIF,
    ICC,
    MAGIC,
    MAX_SIDE,
    STATE_BITS,
    VERSION,
    XMP,
    Container,
    Header,
    pack,
    parse,
    parse_prefix,
)
from hvcompress.errors import (  # noqa: E402
    FormatError,
    HvcompressError,
    LimitError,
    MismatchError,
    ModelError,
    UnsupportedError,
)
from hvcompress.metadata import unpack_icc  # noqa: E402
from peak import peak_mib  # noqa: E402

if TYPE_CHECKING:
    from hvcompress.codec import Codec
    from hvcompress.picture import Picture

PARSER_ERRORS = (FormatError, UnsupportedError, LimitError)
DECODER_ERRORS = (*PARSER_ERRORS, ModelError, MismatchError)
LARGEST = 1 << 16  # pixels
REPAIRED = 0.85  # share of the inputs whose checksum is made right
SILENCE = 900  # seconds without a new input after which a process counts as hanging, should it use no processor time
KEPT = 50  # findings that are kept


@dataclass(frozen=True)
class Limits:
    """What one input may take."""

    mebibytes: int  # of address space, beyond what the process had before the first
    seconds: float  # of processor time


LIMITS = {"parser": Limits(64, 5), "decoder": Limits(768, 60)}


class Finding(Exception):
    """An answer that must not be."""


# --------------------------------------------------------------------------------------------------------------------
# Mutations


@dataclass(frozen=True)
class Input:
    """A hostile file."""

    data: bytes
    mutation: str
    repaired: bool


def sealed(data: bytes) -> bytes:
    """With a right checksum, as an attacker would make it."""
    return data[:4] + zlib.crc32(data[8:]).to_bytes(4, "little") + data[8:] if len(data) >= 8 else data


def varint(value: int) -> bytes:
    """As the format has it; not the product's, which refuses some values or may come to."""
    return bytes((value & 127 | 128,)) + varint(value >> 7) if value > 127 else bytes((value,))


def _flips(rng: random.Random, data: bytes) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        bit = rng.randrange(8 * len(flipped))
        flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def _edits(rng: random.Random, data: bytes) -> bytes:
    """Bytes inserted, deleted, overwritten or repeated."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 16))
        new = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length, data[place : place + length]))
        skipped = rng.choice((0, length, len(new)))  # nothing: an insertion
        data = data[:place] + rng.choice((new, b"")) + data[place + skipped :]
    return data


def _truncation(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _extension(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((bytes(rng.randrange(1, 9)), rng.randbytes(rng.randrange(1, 40))))


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _stream_bytes(rng: random.Random, stream: bytes) -> bytes:
    """In place of one stream: noise of any length, the stream with surplus bytes, damage within it."""
    kind = rng.randrange(7)
    if kind == 0:
        return rng.randbytes(len(stream))
    if kind == 6:  # a stream begins with the lengths of its segments, if it has several
        return _hostile_varint(rng, rng.randrange(8)) + stream[rng.randrange(2) :]
    if kind == 1:
        return rng.randbytes(rng.choice((0, 1, 3, 4, 5, 64, 2000)))
    if kind == 2:
        return rng.choice((b"", b"\0", b"\xff", b"\xff" * 64, bytes(64)))
    if kind == 3:
        return stream + rng.choice((bytes(3), rng.randbytes(7), b"\xff" * 20))
    if not stream:
        return b"\x80"
    return _flips(rng, stream) if kind == 4 else _truncation(rng, stream)


def _streams(rng: random.Random, base: Container, other: Container) -> bytes:
    streams = list(base.streams)
    for _ in range(rng.choice((1, 1, 2, len(streams)))):
        place = rng.randrange(len(streams))
        foreign = other.streams[min(place, len(other.streams) - 1)]
        streams[place] = foreign if rng.random() < 0.2 else _stream_bytes(rng, streams[place])
    if rng.random() < 0.1:
        rng.shuffle(streams)
    return pack(dataclasses.replace(base, streams=tuple(streams)))


def _header(rng: random.Random, base: Container) -> bytes:
    """Fields at and beyond their limits. The bytes are put together here: `pack` would refuse some."""
    header, count = base.header, len(base.streams)
    near = [header.width, header.height, header.width + rng.choice((-64, -1, 1, 64)), 1, 2, 63, 64, 65, 128, 200, 256]
    extreme = [0, 1000, 9000, MAX_SIDE, MAX_SIDE + 1, 1 << 21, (1 << 32) - 1, (1 << 35) - 1]
    changes: dict = {
        "width": max(rng.choice(near if rng.random() < 0.7 else extreme), 0),
        "height": max(rng.choice(near if rng.random() < 0.7 else extreme), 0),
        "gray": not header.gray,
        "quality": rng.choice((0, 1, 50, 99, 100, 101, 127, 128, 255, max(header.quality - 1, 0), header.quality + 1)),
        "offsets": tuple(rng.choice((-128, -41, -40, -1, 0, 1, 40, 41, 127)) for _ in range(count)),
        "state_bits": rng.choice((0, 8, 9, 10, 12, 14, 16, 255)),
        "fingerprint": rng.randbytes(4),
        "latent_hash": rng.randbytes(4),
    }
    # A small change of quality that the offsets undo: the layers keep theirs, and with them the latents.
    if rng.random() < 0.1:
        shift = rng.choice((-1, 1))
        changed = {"quality": header.quality + shift, "offsets": tuple(offset + shift for offset in header.offsets)}
    else:
        changed = {name: changes[name] for name in rng.sample(list(changes), rng.choice((1, 1, 2)))}
    return assembled(dataclasses.replace(header, **changed), base.streams, base.chunks)


def assembled(header: Header, streams: tuple[bytes, ...], chunks: dict[bytes, bytes]) -> bytes:
    """`pack` without its check of the size, and with bytes that hold what fits into them."""
    small = dataclasses.replace(header, width=1, height=1, quality=0)
    data = pack(Container(small, streams, chunks))  # quality at 17, state bits at 18, width and height at 19 and 20
    size = varint(header.width) + varint(header.height)
    return sealed(data[:17] + bytes((header.quality & 255, header.state_bits)) + size + data[21:])


def png_of(
    width: int,
    height: int,
    *,
    declared: tuple[int, int] | None = None,
    extra: bytes = b"",
    deflated: bytes | None = None,
) -> bytes:
    """A gray PNG, all zero. declared: a size that its header has instead. extra: chunks behind the header. deflated: in
    place of its rows.
    """
    rows = zlib.compress(bytes((width + 1) * height), 1) if deflated is None else deflated
    head = struct.pack(">IIBBBBB", *(declared or (width, height)), 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + extra + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def hostile_metadata(rng: random.Random, usual: bytes) -> bytes:
    """A chunk of metadata: no zlib stream, a damaged one, a bomb, or EXIF data that point anywhere."""
    order = rng.choice("<>")
    numbers = [rng.choice((0, 1, 2, 8, 26, 0x0112, 0xFFFF, rng.randrange(1 << 16))) for _ in range(rng.randrange(60))]
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", rng.choice((8, 0, 9, 1 << 31)))
    tiff += struct.pack(f"{order}{len(numbers)}H", *numbers)
    bomb = zlib.compress(bytes(8 << 20)) if rng.random() < 0.1 else b""
    return rng.choice((rng.randbytes(rng.randrange(60)), _flips(rng, usual or b"x"), bomb, zlib.compress(tiff)))


BOMB = zlib.compress(bytes(40 << 20), 1)  # longer than a profile may be


def _chunks(rng: random.Random, base: Container) -> bytes:
    chunks = dict(base.chunks)
    width, height = base.header.width, base.header.height
    right = png_of(width, height) if width * height <= LARGEST else png_of(1, 1, declared=(width, height))
    planes = [
        b"",
        rng.randbytes(1),
        rng.randbytes(rng.randrange(2, 60)),
        right,
        png_of(1, 1, declared=(width, height)),
        png_of(1, 1, declared=(width + 1, height)),
        png_of(1, 1, declared=(MAX_SIDE, MAX_SIDE)),
        _flips(rng, chunks.get(ALPHA) or right),
        _truncation(rng, chunks.get(ALPHA) or right),
    ]
    name, body = rng.choice(
        [
            *((ALPHA, plane) for plane in planes),
            (ICC, rng.choice((rng.randbytes(rng.randrange(40)), zlib.compress(rng.randbytes(rng.randrange(400)))))),
            (ICC, BOMB[: rng.choice((None, 99))]),
            (rng.choice((EXIF, XMP)), hostile_metadata(rng, chunks.get(EXIF) or b"")),
            (rng.choice((b"note", b"NEWS", b"aLPH", b"\0\0\0\0", b"ab c")), rng.randbytes(rng.randrange(9))),
        ]
    )
    chunks[name] = body
    if rng.random() < 0.2:
        chunks.pop(rng.choice(list(chunks)))
    return pack(dataclasses.replace(base, chunks=chunks))


def mutated(rng: random.Random, files: list[bytes], containers: list[Container]) -> Input:
    """One of the valid files, damaged, so that it is none of them. containers: what the files hold."""
    while True:
        given = _mutated(rng, files, containers)
        if given.data not in files:
            return given


def _mutated(rng: random.Random, files: list[bytes], containers: list[Container]) -> Input:
    place, partner = rng.randrange(len(files)), rng.randrange(len(files))
    data, base, other = files[place], containers[place], containers[partner]
    work: dict[str, Callable[[], bytes]] = {
        "bit flips": lambda: _flips(rng, data),
        "edits": lambda: _edits(rng, data),
        "truncation": lambda: _truncation(rng, data),
        "extension": lambda: _extension(rng, data),
        "splice": lambda: _splice(rng, data, files[partner]),
        "streams": lambda: _streams(rng, base, other),
        "header": lambda: _header(rng, base),
        "chunks": lambda: _chunks(rng, base),
    }
    weights = (3, 2, 1, 1, 2, 5, 4, 2)
    mutation = rng.choices(list(work), weights)[0]
    result = work[mutation]()
    repaired = rng.random() < REPAIRED
    if not repaired and mutation in ("streams", "header", "chunks"):  # these were sealed when they were put together
        result = result[:4] + data[4:8] + result[8:]
    return Input(sealed(result) if repaired else result, mutation, repaired)


def _hostile_varint(rng: random.Random, usual: int) -> bytes:
    if rng.random() < 0.7:
        return varint(usual)
    if rng.random() < 0.3:
        return rng.choice((b"\x80\0", b"\xff" * 5, b"\xff\xff\xff\xff\x7f", b"\x80\x80\x80\x80\x01", b"\x80"))
    return varint(rng.choice((0, 1, 127, 128, 16383, MAX_SIDE, MAX_SIDE + 1, (1 << 35) - 1)))


def put_together(rng: random.Random) -> Input:
    """A file made field by field, some of them hostile; short, so that most bytes are looked at by the parser."""
    layers = rng.choice((0, 1, 1, 2, 3, 8, 15))
    flags = rng.choice((0, 0, 1, 2, 3, 4, 6, 7, rng.randrange(16))) | layers << 4
    streams = [rng.randbytes(rng.choice((0, 0, 1, 5, 130))) for _ in range(layers)]
    names = rng.choices((ALPHA, ICC, b"note", b"xyzw", b"NEWS", b"no1e", rng.randbytes(4)), (4, 4, 4, 3, 1, 1, 1), k=3)
    section = b""
    for name in names[: rng.randrange(4)]:
        body = rng.randbytes(rng.choice((0, 1, 7)))
        section += name + _hostile_varint(rng, len(body)) + body
    if not flags & container.FLAG_CHUNKS and rng.random() < 0.9:
        section = b""
    sound = [rng.choice((-40, -1, 0, 3, 40)) & 255 for _ in range(layers)]
    parts = [
        bytes((flags,)),
        rng.randbytes(8),
        bytes((rng.choice((0, 50, 100, 100, 101, 255)),)),
        _hostile_varint(rng, rng.choice((1, 64, 768))),
        _hostile_varint(rng, rng.choice((1, 64, 512))),
        (bytes(sound) if rng.random() < 0.8 else rng.randbytes(layers)) if flags & container.FLAG_OFFSETS else b"",
        _hostile_varint(rng, len(section)) if flags & container.FLAG_CHUNKS else b"",
        *(_hostile_varint(rng, len(stream)) for stream in streams[:-1]),
        *streams,
        section,
    ]
    if rng.random() < 0.1:
        parts.pop(rng.randrange(len(parts)))
    version = VERSION if rng.random() < 0.97 else rng.randrange(256)
    data = MAGIC + bytes((version,)) + bytes(4) + b"".join(parts)
    repaired = rng.random() < 0.97
    return Input(sealed(data) if repaired else data, "put together", repaired)


def valid_files(rng: random.Random, count: int) -> list[bytes]:
    """Files that a parser takes; no model could decode them."""
    files = []
    for _ in range(count):
        layers = rng.choice((1, 2, 8, 15))
        offsets = tuple(rng.choice((0, 0, rng.randint(-40, 40))) for _ in range(layers))
        size = rng.choice((1, 64, 768, 5000)), rng.choice((1, 64, 512, 5000))
        hashes, state_bits = (rng.randbytes(4), rng.randbytes(4)), rng.choice(STATE_BITS)
        header = Header(*size, rng.random() < 0.5, rng.randrange(101), offsets, *hashes, state_bits)
        chunks = {name: rng.randbytes(rng.choice((1, 9, 200))) for name in (ALPHA, ICC, b"note") if rng.random() < 0.4}
        streams = tuple(rng.randbytes(rng.choice((0, 1, 4, 200))) for _ in range(layers))
        files.append(pack(Container(header, streams, chunks)))
    return files


def parser_input(seed: int, number: int) -> Input:
    """The input of that number."""
    rng = random.Random((seed << 32) + number)
    if rng.random() < 0.5:
        return put_together(rng)
    files = valid_files(rng, 2)
    return mutated(rng, files, [parse(data) for data in files])


# --------------------------------------------------------------------------------------------------------------------
# What is asked of an answer


def error_name(error: HvcompressError, allowed: tuple[type[HvcompressError], ...]) -> str:
    """The outcome that an error is. Raises Finding if it is not one of the classes, or not told in one line."""
    if type(error) not in allowed:
        raise Finding(f"{type(error).__name__}: {error}")
    text = str(error)
    if not text or not text.isprintable():
        raise Finding(f"{type(error).__name__} with the message {text!r}")
    return type(error).__name__


def check_parser(data: bytes) -> str:
    """What came of a file in the parser. Raises Finding."""
    check_tolerant_parsers(data)
    try:
        parsed = parse(data)
    except HvcompressError as error:
        return error_name(error, PARSER_ERRORS)
    if pack(parsed) != data:
        raise Finding("parsed, but packs to other bytes")
    container.read_info(data)
    return "container"


def check_tolerant_parsers(data: bytes) -> None:
    """Those that do not look at the checksum. Raises Finding."""
    try:
        parsed = parse_prefix(data)
        if not 1 <= len(parsed.streams) <= len(parsed.header.offsets):
            raise Finding("a prefix without layers, or with too many")
    except HvcompressError as error:
        error_name(error, PARSER_ERRORS)
    try:
        container.read_ends(io.BytesIO(data))
    except HvcompressError as error:
        error_name(error, PARSER_ERRORS)


@dataclass(frozen=True)
class Source:
    """An undamaged file and what it decodes to."""

    data: bytes
    container: Container
    digest: str  # of its latents, whole
    picture: Picture


def scene(height: int, width: int, seed: int):
    """(H, W, 3) uint8: a gradient, a disc and some grain."""
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x + y, 2 * x, 255 - y], 2) % 256
    disc = 70 * ((x - width // 2) ** 2 + (y - height // 3) ** 2 < (height + width) ** 2 // 40)
    return np.clip(smooth // 2 + disc[..., None] + generator.integers(0, 30, smooth.shape), 0, 255).astype(np.uint8)


# Maker "Cam", orientation 1.
EXIF_DATA = bytes.fromhex("49492a0008000000 0200 0f0102000400000043616d00 120103000100000001000000 00000000")


def make_sources(codec: Codec, every: int = 1) -> list[Source]:
    """Small pictures, coded: colour and gray, with alpha and profile, at several sizes and qualities.

    every: 1 takes them all, 3 each third.
    """
    from hvcompress.picture import Picture

    alpha = scene(50, 75, 21)[..., 0]
    flat = alpha[:40, :60] * 0 + 128
    gray = scene(64, 64, 22)[..., :1].repeat(3, 2)
    bent = tuple((-1) ** layer * 12 for layer in range(codec.layers))
    cases = [
        (Picture(scene(64, 64, 1)), 60, None),
        (Picture(scene(64, 64, 2)), 0, None),
        (Picture(scene(64, 64, 3)), 100, None),
        (Picture(scene(64, 64, 4)), 50, bent),
        (Picture(gray, gray=True), 40, None),
        (Picture(scene(1, 1, 5)), 60, None),
        (Picture(scene(40, 60, 6), alpha=flat, icc=bytes(range(140))), 20, None),
        (Picture(scene(50, 75, 7), alpha=alpha, exif=EXIF_DATA, xmp=b"<x:xmpmeta/>"), 70, None),
        (Picture(scene(128, 128, 8)), 30, None),
        (Picture(scene(100, 128, 9)), 90, None),
    ]
    sources = []
    for picture, quality, offsets in cases[::every]:
        encoded = codec.encode(picture, quality, offsets)
        digest = codec.latent_digest(encoded.data)
        sources.append(Source(encoded.data, parse(encoded.data), digest, encoded.picture))
    return sources


def check_decoder(codec: Codec, sources: dict[str, Source], given: Input) -> str:
    """What came of a file in the decoder. sources: by the digest of their latents. Raises Finding."""
    try:
        parsed = parse(given.data)
        if parsed.header.width * parsed.header.height > LARGEST:
            return "declares a large picture"
        picture = codec.decode(given.data)
    except HvcompressError as error:
        if zlib.crc32(given.data) % 4 == 0:  # it takes as long as all the rest
            check_preview(codec, given.data)
        return error_name(error, DECODER_ERRORS)
    source = sources.get(codec.latent_digest(given.data))
    if source is None:
        raise Finding("decoded to latents that no undamaged file has")
    if given.data == source.data:
        return "unchanged"
    if not given.repaired:
        raise Finding("decoded with a checksum that nobody repaired")
    return check_picture(codec, source, parsed, picture)


def check_preview(codec: Codec, data: bytes) -> None:
    """What comes of a damaged file that is taken for a truncated one: any picture, or an error. Raises Finding."""
    try:
        header = parse_prefix(data).header
        if header.width * header.height > LARGEST:
            return
        picture = codec.decode(data, partial=True)
    except HvcompressError as error:
        error_name(error, DECODER_ERRORS)
        return
    if picture.pixels.shape != (header.height, header.width, 3) or picture.gray != header.gray:
        raise Finding("the preview is not of the kind that the header says")


def check_picture(codec: Codec, source: Source, parsed: Container, picture: Picture) -> str:
    """What a file with the right latents is. Raises Finding where its picture is not what it says."""
    import numpy as np

    header, chunks, before = parsed.header, parsed.chunks, source.container
    if picture.pixels.shape != (header.height, header.width, 3) or picture.gray != header.gray:
        raise Finding("the picture is not of the kind that the header says")
    if picture.icc != unpack_icc(chunks):
        raise Finding("the profile is not the file's")
    if (picture.alpha is None) == (ALPHA in chunks):
        raise Finding("the alpha plane is not the file's")
    if picture.alpha is not None and picture.alpha.shape != picture.pixels.shape[:2]:
        raise Finding("the alpha plane does not fit the picture")
    names = ("width", "height", "quality", "offsets", "gray")
    changed = [name for name in names if getattr(header, name) != getattr(before.header, name)]
    changed += [name.decode() for name in (ALPHA, ICC, EXIF, XMP) if chunks.get(name) != before.chunks.get(name)]
    if not {"exif", "xmpd"} & set(changed) and (picture.exif, picture.xmp) != (source.picture.exif, source.picture.xmp):
        raise Finding("silently other metadata")
    if not changed and picture.alpha is not None and not np.array_equal(picture.alpha, source.picture.alpha):
        raise Finding("silently another alpha plane")
    if {"quality", "gray"} & set(changed):
        plain = codec.decode(pack(Container(header, before.streams))).pixels
    else:
        plain = source.picture.pixels
    height, width = np.minimum(plain.shape[:2], picture.pixels.shape[:2])
    if not np.array_equal(plain[:height, :width], picture.pixels[:height, :width]):
        raise Finding("silently another picture")
    return f"another valid file ({' '.join(changed)})" if changed else "same picture"


# --------------------------------------------------------------------------------------------------------------------
# In the process that may die


@dataclass(frozen=True)
class Job:
    """What a process is to do."""

    target: str
    first: int  # number of the first input
    last: int  # and of the one after the last
    seed: int
    folder: str  # of its notes
    skipped: tuple[int, ...] = ()  # inputs that ended a process before
    engine: str = "random"
    model: str | None = None
    every: int = 500  # inputs between two reports


class Notes:
    """Which input is at work, kept in a file that outlives the process at no cost for it."""

    ROOM = 1 << 20

    def __init__(self, folder: str, *, create: bool = False):
        path = Path(folder) / "current"
        if create:
            path.write_bytes(struct.pack("<qI", -1, 0).ljust(self.ROOM, b"\0"))
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), self.ROOM)

    def put(self, number: int, data: bytes) -> None:
        data = data[: self.ROOM - 12]
        self.memory[: 12 + len(data)] = struct.pack("<qI", number, len(data)) + data

    def get(self) -> tuple[int, bytes]:
        number, length = struct.unpack_from("<qI", self.memory)
        return number, self.memory[12 : 12 + length]


@dataclass
class Report:
    """What a process has seen so far."""

    next: int  # number of the input that comes next
    outcomes: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # by mutation
    findings: list[dict] = dataclasses.field(default_factory=list)
    about: dict = dataclasses.field(default_factory=dict)
    loaded_mib: float = 0.0
    peak_mib: float = 0.0
    slowest: float = 0.0  # seconds of processor time that an input took

    def count(self, mutation: str, outcome: str) -> None:
        row = self.outcomes.setdefault(mutation, {})
        row[outcome] = row.get(outcome, 0) + 1

    def found(self, number: int, what: str, data: bytes) -> None:
        self.count("-", "finding")
        if len(self.findings) < KEPT:
            self.findings.append({"input": number, "what": what[:500], "hex": data.hex()})

    def write(self, folder: str) -> None:
        part = Path(folder) / "report.part"
        part.write_text(json.dumps(dataclasses.asdict(self)))
        part.replace(Path(folder) / "report.json")


def limit_memory(mebibytes: int) -> None:
    """Let the address space grow by so much and no further. Only where the system tells how large it is (Linux)."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    most = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


class Watch:
    """Asks the target about one input after another, and keeps the report."""

    def __init__(self, job: Job, about: dict, limits: Limits):
        self.job, self.notes, self.limits = job, Notes(job.folder), limits
        self.report = Report(job.first, about=about)
        limit_memory(limits.mebibytes)
        self.report.loaded_mib = self.report.peak_mib = peak_mib()
        self.report.write(job.folder)

    def ask(self, number: int, mutation: str, data: bytes, target: Callable[[], str]) -> None:
        """Runs the target. What it raises is a finding; if it ends the process, the parent sees the notes."""
        self.notes.put(number, data)
        # Processor time, which does not depend on what else the machine does. The signal's default ends the process
        # even from within compiled code.
        signal.setitimer(signal.ITIMER_PROF, self.limits.seconds)
        began, findings = time.process_time(), len(self.report.findings)
        try:
            self.report.count(mutation, target())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # compiled code may panic with exceptions that are no Exception
            text = str(error) if isinstance(error, Finding) else f"{type(error).__name__}: {error}"
            self.report.found(number, text, data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.report.slowest = max(self.report.slowest, time.process_time() - began)
        self.report.next = number + 1
        if self.report.next % self.job.every == 0 or len(self.report.findings) > findings:
            self.save()

    def save(self) -> None:
        self.report.peak_mib = peak_mib()
        self.report.write(self.job.folder)

    def numbers(self) -> Iterator[int]:
        yield from (n for n in range(self.job.first, self.job.last) if n not in self.job.skipped)


def work_on_parser(job: Job) -> None:
    """The parser under the mutations above, or under atheris."""
    if job.engine == "atheris":
        return guided_parser(job)
    watch = Watch(job, {"engine": "structured random mutations"}, LIMITS["parser"])
    for number in watch.numbers():
        given = parser_input(job.seed, number)
        watch.ask(number, given.mutation, given.data, partial(check_parser, given.data))
    watch.report.next = job.last
    watch.save()


def guided_parser(job: Job) -> None:
    """The parser under atheris, which looks for inputs that reach new lines of container.py."""
    import atheris

    del sys.modules["hvcompress.container"]  # imported anew, instrumented
    with atheris.instrument_imports(include=["hvcompress.container"]):
        instrumented = importlib.import_module("hvcompress.container")
    globals().update(container=instrumented, parse=instrumented.parse, pack=instrumented.pack)
    corpus = Path(job.folder) / "corpus"
    corpus.mkdir(exist_ok=True)
    for place, data in enumerate(valid_files(random.Random(job.seed), 40)):
        (corpus / f"valid-{place}").write_bytes(data)
    watch = Watch(job, {"engine": f"atheris {importlib.metadata.version('atheris')}"}, Limits(1024, 5))
    number = job.first

    def one_input(data: bytes) -> None:
        nonlocal number
        watch.ask(number, "coverage-guided", data, partial(check_parser, data))
        number += 1
        if number == job.last:
            watch.save()
            os._exit(0)  # libFuzzer would print statistics and exit in its own way

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.2:  # it would hardly find the chunks' names by itself
            data = put_together(rng).data
        return sealed(atheris.Mutate(data, most)) if rng.random() < 0.95 else atheris.Mutate(data, most)

    options = [f"-seed={job.seed + job.first + 1}", "-max_len=600", "-verbosity=0", "-timeout=600", "-rss_limit_mb=0"]
    atheris.Setup(["fuzz", *options, str(corpus)], one_input, custom_mutator=mutate)
    atheris.Fuzz()


def work_on_decoder(job: Job) -> None:
    """The whole decoder with a real model, under the mutations above."""
    import torch

    from hvcompress import plan
    from hvcompress.loading import load_model

    torch.set_num_threads(1)
    codec = load_model(job.model, device="cpu")
    sizes = {"": (plan.SEGMENT, plan.WHOLE, plan.CHUNK), ", many segments": (16, 2048, 2048)}
    found: dict[str, list[Source]] = {}
    for kind, (plan.SEGMENT, plan.WHOLE, plan.CHUNK) in sizes.items():
        found[kind] = sources = make_sources(codec, 3 if kind else 1)
        if any(check_decoder(codec, {s.digest: s}, Input(s.data, "none", True)) != "unchanged" for s in sources):
            raise SystemExit("the undamaged files do not decode to what was encoded")
    about = {"model": codec.name, "fingerprint": codec.fingerprint, "torch": torch.__version__}
    watch = Watch(job, about, LIMITS["decoder"])
    for number in watch.numbers():
        rng = random.Random((job.seed << 32) + number)
        # Only pictures of some megapixels have several segments in a layer. So that their lengths are damaged as well,
        # a quarter of the inputs is made and decoded with small ones.
        kind = rng.choices(list(sizes), (3, 1))[0]
        plan.SEGMENT, plan.WHOLE, plan.CHUNK = sizes[kind]
        sources = found[kind]
        given = mutated(rng, [source.data for source in sources], [source.container for source in sources])
        target = partial(check_decoder, codec, {source.digest: source for source in sources}, given)
        watch.ask(number, given.mutation + kind, given.data, target)
    watch.report.next = job.last
    watch.save()


def work_on_trap(job: Job) -> None:
    """Inputs that do what must not be, for the test of this program. The number of the input says what."""
    watch = Watch(job, {}, Limits(256, 1))

    def trap(number: int) -> str:
        if number == 3:
            os.abort()
        if number == 5:
            while True:
                pass
        if number == 7:
            bytearray(4 << 30)
        if number == 9:
            raise SystemExit("away")
        return "well"

    for number in watch.numbers():
        watch.ask(number, "-", bytes((number,)), partial(trap, number))
    watch.report.next = job.last
    watch.save()


WORK = {"parser": work_on_parser, "decoder": work_on_decoder, "trap": work_on_trap}


# --------------------------------------------------------------------------------------------------------------------
# In the process that lives


def explore(
    target: str,
    count: int,
    seed: int,
    folder: Path,
    *,
    engine: str = "random",
    model: str | None = None,
    every: int = 500,
) -> dict:
    """Try `count` inputs on a target, in as many processes as it takes. folder: for notes, and findings as files.

    Stops early, with what was counted until then and "interrupted", on Ctrl-C. Raises RuntimeError where a process
    cannot even begin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    total = Report(0)
    skipped: list[int] = []
    interrupted = False
    while total.next < count and not interrupted:
        Notes(str(folder), create=True)
        (folder / "report.json").unlink(missing_ok=True)
        job = Job(target, total.next, count, seed, str(folder), tuple(skipped), engine, model, every)
        interrupted, ended = run_job(job)
        if not (folder / "report.json").exists():
            if interrupted:
                break
            raise RuntimeError(f"the process for the {target} did not begin: {ended}")
        add(total, Report(**json.loads((folder / "report.json").read_text())))
        number, data = Notes(str(folder)).get()
        if total.next < count and not interrupted:
            if number < total.next:
                raise RuntimeError(f"the process for the {target} ended between two inputs: {ended}")
            total.found(number, f"the process ended: {ended}", data)
            skipped.append(number)
            if engine == "atheris":  # its inputs have no numbers to come back to
                total.next = number + 1
    for finding in total.findings:
        (folder / f"{target}-{finding['input']}.hvci").write_bytes(bytes.fromhex(finding["hex"]))
    for name in ("current", "report.json"):
        (folder / name).unlink(missing_ok=True)
    result = summary(target, total, seed, time.monotonic() - began, len(skipped))
    return result | {"interrupted": True} if interrupted else result


def run_job(job: Job) -> tuple[bool, str]:
    """Runs a job in a process. Returns whether it was interrupted, and how the process ended, in words."""
    with open(Path(job.folder) / "log", "w+b") as log:
        command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(dataclasses.asdict(job))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # so that processor time is time
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        seen, since = None, time.monotonic()
        try:
            while process.poll() is None:
                try:
                    process.wait(1)
                except subprocess.TimeoutExpired:
                    number = Notes(job.folder).get()[0]
                    if number != seen:
                        seen, since = number, time.monotonic()
                    elif time.monotonic() - since > SILENCE:
                        process.kill()
                        process.wait()
                        return False, f"nothing happened for {SILENCE} s"
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            return True, "interrupted"
        log.seek(0)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    code = process.returncode
    if code == -signal.SIGPROF:
        return False, "too much processor time for one input"
    return False, (signal.Signals(-code).name if code < 0 else f"exit code {code}") + f" ({lines[-1] if lines else ''})"


def add(total: Report, part: Report) -> None:
    for mutation, row in part.outcomes.items():
        total.outcomes[mutation] = dict(Counter(total.outcomes.get(mutation, {})) + Counter(row))
    total.findings = (total.findings + part.findings)[:KEPT]
    total.next, total.about, total.loaded_mib = part.next, part.about, part.loaded_mib
    total.peak_mib, total.slowest = max(total.peak_mib, part.peak_mib), max(total.slowest, part.slowest)


def summary(target: str, total: Report, seed: int, seconds: float, deaths: int) -> dict:
    outcomes: Counter = Counter()
    for row in total.outcomes.values():
        outcomes.update(row)
    return {
        "target": target,
        "seed": seed,
        "inputs": sum(outcomes.values()),
        "outcomes": dict(outcomes.most_common()),
        "by_mutation": {name: dict(Counter(row).most_common()) for name, row in sorted(total.outcomes.items())},
        "findings": [{"input": f["input"], "what": f["what"]} for f in total.findings],
        "processes_lost": deaths,
        "memory_before_mib": round(total.loaded_mib, 1),
        "memory_peak_mib": round(total.peak_mib, 1),
        "slowest_input_cpu_s": round(total.slowest, 3),
        "seconds": round(seconds, 1),
        **total.about,
    }


def table(result: dict) -> str:
    lines = [f"{result['target']}: {result['inputs']} inputs in {result['seconds']:.0f} s, seed {result['seed']}"]
    lines += [f"  {count:>9}  {outcome}" for outcome, count in result["outcomes"].items()]
    lines.append(
        f"  memory: {result['memory_before_mib']} MiB before the first input, {result['memory_peak_mib']} MiB at most; "
        f"slowest input: {result['slowest_input_cpu_s']} s of processor time"
    )
    lines += [f"  FOUND, input {finding['input']}: {finding['what']}" for finding in result["findings"]]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parser", type=int, default=1_000_000, metavar="N", help="inputs to the parser (1000000)")
    parser.add_argument("--decoder", type=int, default=20_000, metavar="N", help="inputs to the decoder (20000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("auto", "atheris", "random"), default="auto", help="of the parser's files")
    parser.add_argument("--model", help="name or folder (the default one)")
    parser.add_argument("--findings", type=Path, default=HERE / "results" / "fuzz_findings", help="folder for them")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fuzz.json")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = Job(**json.loads(options.job))
        WORK[job.target](job)
        return 0
    guided = options.engine == "atheris" or options.engine == "auto" and importlib.util.find_spec("atheris")
    runs = {"parser": options.parser, "decoder": options.decoder}
    record = json.loads(options.out.read_text()) if options.out.is_file() else {}
    found = 0
    for target, count in runs.items():
        if count:
            engine = "atheris" if guided and target == "parser" else "random"
            folder = options.findings / target
            every = 20_000 if target == "parser" else 100
            result = explore(target, count, options.seed, folder, engine=engine, model=options.model, every=every)
            if "interrupted" in result:  # its figures must not take the place of those of a whole run
                print(f"{table(result)}\nbenchmarks/fuzz.py: interrupted; {options.out} is as it was", flush=True)
                return 130
            record[target] = result | {"python": platform.python_version(), "cpus": os.cpu_count()}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=1) + "\n")
            print(table(result), flush=True)
            found += len(result["findings"])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
