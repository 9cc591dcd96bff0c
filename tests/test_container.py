"""The bytes: round trips, every truncation, bit flips, limits. No torch."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcompress.container import ALPHA, ICC, MAX_SIDE, Container, Header, pack, parse, read_info
from hvcompress.errors import FormatError, HvcompressError, LimitError, UnsupportedError

HEADER = Header(769, 513, False, 60, (0,) * 7, b"abcd", b"hash")
STREAMS = (b"", b"1", b"22" * 70, b"4444", b"", b"666666", b"7" * 300)


def sealed(body: bytes, version: int = 1) -> bytes:
    """A file with a right checksum over arbitrary content, as an attacker would make it."""
    return b"\x8fHV" + bytes((version,)) + zlib.crc32(body).to_bytes(4, "little") + body


def test_round_trip():
    container = Container(HEADER, STREAMS, {ICC: b"profile", ALPHA: b"plane"})
    parsed = parse(pack(container))
    assert (parsed.header, parsed.streams, parsed.chunks) == (container.header, container.streams, container.chunks)


def test_ordinary_header_is_short():
    streams = tuple(b"x" * size for size in (400, 600, 6000, 5000, 3000, 7000, 9000))
    header = Header(768, 512, False, 60, (0,) * 7, b"abcd", b"hash")
    data = pack(Container(header, streams))
    assert len(data) - sum(map(len, streams)) == 35
    assert read_info(data).header_bytes == 35


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.booleans(),
    st.integers(0, 100),
    st.lists(st.tuples(st.integers(-40, 40), st.binary(max_size=300)), min_size=1, max_size=15),
    st.dictionaries(st.sampled_from([ALPHA, ICC, b"note", b"xyzw"]), st.binary(max_size=300)),
)
def test_round_trip_of_anything(width, height, gray, quality, layers, chunks):
    header = Header(width, height, gray, quality, tuple(o for o, _ in layers), b"\0\1\2\3", b"\xff" * 4)
    container = Container(header, tuple(s for _, s in layers), chunks)
    parsed = parse(pack(container))
    assert (parsed.header, parsed.streams, parsed.chunks) == (container.header, container.streams, container.chunks)


def test_every_truncation_and_extension_is_refused():
    data = pack(Container(HEADER, STREAMS, {ICC: b"profile"}))
    for length in range(len(data)):
        with pytest.raises(FormatError):
            parse(data[:length])
    with pytest.raises(FormatError):
        parse(data + b"\0")


def test_every_flipped_bit_is_refused():
    data = pack(Container(HEADER, STREAMS))
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            parse(bytes(flipped))


def test_random_content_under_a_right_checksum():
    generator = random.Random(1)
    outcomes = set()
    for _ in range(20000):
        body = bytes(generator.choices(range(256), k=generator.randrange(13, 60)))
        if generator.random() < 0.7:  # past the first checks
            body = bytes((generator.choice((0x10, 0x24, 0x72)),)) + body[1:9] + bytes((50, 10, 64, 64)) + body[13:]
        try:
            parse(sealed(body))
            outcomes.add("parsed")
        except HvcompressError as error:
            outcomes.add(type(error).__name__)
    assert {"parsed", "FormatError"} <= outcomes


def body(flags=0x10, quality=50, state_bits=10, width=b"\x40", height=b"\x40", rest=b""):
    return bytes((flags,)) + b"fingHASH" + bytes((quality, state_bits)) + width + height + rest


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", FormatError),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, FormatError),
        (sealed(body(), version=2), UnsupportedError),
        (sealed(body(flags=0x18)), UnsupportedError),  # reserved flag
        (sealed(body(flags=0x00)), FormatError),  # no layers
        (sealed(body(quality=101)), FormatError),
        (sealed(body(state_bits=9)), UnsupportedError),  # no such machine
        (sealed(body(state_bits=18)), UnsupportedError),
        (sealed(body(width=b"\x00")), FormatError),
        (sealed(body(width=b"\xc0\x00")), FormatError),  # not the shortest form
        (sealed(body(width=b"\xff\xff\xff\xff\xff\x01")), FormatError),
        (sealed(body(width=b"\x80\x80\x08", height=b"\x80\x80\x02")), LimitError),  # 131072 wide
        (sealed(body(width=b"\xff\xff\x03", height=b"\xff\xff\x03")), LimitError),  # 65535 x 65535
        (sealed(body(flags=0x12, rest=b"\x00")), FormatError),  # offsets flagged, all zero
        (sealed(body(flags=0x12, rest=b"\x7f")), FormatError),  # offset out of range
        (sealed(body(flags=0x14, rest=b"\x00")), FormatError),  # chunks flagged, none there
        (sealed(body(flags=0x14, rest=b"\x7f")), FormatError),  # chunks longer than the file
        (sealed(body(flags=0x20, rest=b"\x7f")), FormatError),  # stream longer than the file
        (sealed(body(flags=0x14, rest=b"\x05NEWS\x00")), UnsupportedError),  # unknown critical chunk
        (sealed(body(flags=0x14, rest=b"\x0aICCP\x00ICCP\x00")), FormatError),  # twice
        (sealed(body(flags=0x14, rest=b"\x06ICCP\x09a")), FormatError),  # chunk longer than its section
        (sealed(body(flags=0x14, rest=b"\x051234\x00")), FormatError),  # no name
    ],
)
def test_contradictions_have_their_error(data, error):
    with pytest.raises(error) as caught:
        parse(data)
    assert type(caught.value) is error


def test_unknown_ancillary_chunk_is_kept():
    assert parse(sealed(body(flags=0x14, rest=b"\x06note\x01a"))).chunks == {b"note": b"a"}


def test_writer_refuses_what_the_reader_would():
    with pytest.raises(LimitError):
        pack(Container(Header(MAX_SIDE + 1, 1, False, 0, (0,), b"abcd", b"hash"), (b"",)))
