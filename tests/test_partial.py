"""Files that are cut off: what is taken without the flag (nothing) and with it (layers that are whole, and no more)."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
import zlib
from pathlib import Path

import fake_codec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import hvcompress
from hvcompress import plan
from hvcompress.cli import main
from hvcompress.container import (
    ALPHA,
    ICC,
    MAGIC,
    MAX_HEADER_BYTES,
    STATE_BITS,
    VERSION,
    Container,
    Header,
    pack,
    parse,
    parse_prefix,
    read_ends,
)
from hvcompress.errors import FormatError, HvcompressError, LimitError, ModelError, UnsupportedError
from hvcompress.picture import Picture

HEADER = Header(769, 513, False, 60, (3, 0, 0, 0, -2, 0, 1), b"abcd", b"hash")
STREAMS = (b"1", b"", b"22" * 70, b"4444", b"", b"666666", b"7" * 300)
WHOLE = Container(HEADER, STREAMS, {ICC: b"profile" * 40, ALPHA: b"x"})

quickly = settings(derandomize=True, deadline=None, max_examples=300, database=None)


def sealed(data: bytes) -> bytes:
    return data[:4] + zlib.crc32(data[8:]).to_bytes(4, "little") + data[8:]


def ends(container: Container) -> list[int]:
    """Where each stream of a file ends."""
    position = parse(pack(container)).header_bytes
    return [position := position + len(stream) for stream in container.streams]


# --------------------------------------------------------------------------------------------------------------------
# Bytes


def test_every_length_of_a_file():
    data, last = pack(WHOLE), ends(WHOLE)
    for length in range(len(data)):
        whole = sum(end <= length for end in last[:-1])  # that of the last layer follows from the file's size alone
        with pytest.raises(FormatError):
            parse(data[:length])
        if whole == 0:
            with pytest.raises(FormatError):
                parse_prefix(data[:length])
            continue
        parsed = parse_prefix(data[:length])
        assert (parsed.header, parsed.streams, parsed.chunks) == (HEADER, STREAMS[:whole], {})
        assert parsed.header_bytes == last[0] - len(STREAMS[0])
    assert parse_prefix(data) == parse(data)


def test_what_is_said_of_too_little():
    data = pack(WHOLE)
    for length, message in ((0, "not an .hvci"), (2, "truncated"), (25, "truncated"), (ends(WHOLE)[0] - 1, "first")):
        with pytest.raises(FormatError, match=message):
            parse_prefix(data[:length])
    single = pack(Container(Header(1, 1, False, 0, (0,), b"abcd", b"hash"), (b"stream",)))
    with pytest.raises(FormatError, match="first layer"):
        parse_prefix(single[:-1])


def test_a_prefix_is_held_to_the_header_s_rules():
    data = pack(WHOLE)
    cut = data[: ends(WHOLE)[3]]
    for place, byte, error in (
        (0, 0x89, FormatError),
        (3, 2, UnsupportedError),
        (8, data[8] | 8, UnsupportedError),
        (8, data[8] & 15, FormatError),  # no layers
        (17, 101, FormatError),
        (18, 11, UnsupportedError),
        (20, 0x00, FormatError),  # a width that is not in its shortest form
        (23, 100, FormatError),  # an offset
    ):
        with pytest.raises(error) as caught:
            parse_prefix(cut[:place] + bytes((byte,)) + cut[place + 1 :])
        assert type(caught.value) is error
    huge = data[:19] + b"\xff\xff\x03\xff\xff\x03" + data[23:]
    with pytest.raises(LimitError):
        parse_prefix(huge)


def test_a_complete_file_gets_no_mercy():
    """With a right checksum it was not cut off; what is wrong with it is wrong."""
    data = pack(WHOLE)
    with pytest.raises(FormatError, match="contradict"):
        parse_prefix(sealed(data[: ends(WHOLE)[3]]))
    with pytest.raises(UnsupportedError, match="NEWS"):
        parse_prefix(pack(Container(HEADER, STREAMS, {b"NEWS": b""})))


def test_declared_sizes_take_no_memory():
    gigabytes = b"\xff\xff\xff\xff\x7f"
    data = pack(Container(Header(64, 64, False, 60, (0,) * 15, b"abcd", b"hash"), (b"",) * 15, {ICC: b"x"}))
    flags_to_size = data[:21]
    hostile = flags_to_size + gigabytes + b"\x01" + gigabytes * 13 + b"s" * 100
    tracemalloc.start()
    try:
        parsed = parse_prefix(hostile)
        assert read_ends(io.BytesIO(hostile)) == (parsed.header, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert parsed.streams == (b"s",) and peak < 100_000


@st.composite
def containers(draw) -> Container:
    layers = draw(st.integers(1, 15))
    offsets = draw(st.just((0,) * layers) | st.tuples(*[st.integers(-40, 40)] * layers))
    size, four = st.integers(1, 32768), st.binary(min_size=4, max_size=4)
    gray, quality, state_bits = draw(st.booleans()), draw(st.integers(0, 100)), draw(st.sampled_from(STATE_BITS))
    header = Header(draw(size), draw(size), gray, quality, offsets, draw(four), draw(four), state_bits)
    streams = draw(st.tuples(*[st.binary(max_size=200)] * layers))
    chunks = draw(st.dictionaries(st.sampled_from([ALPHA, ICC, b"note"]), st.binary(max_size=200), max_size=3))
    return Container(header, streams, chunks)


def answer(data: bytes) -> Container | None:
    """What the parser makes of any bytes; None if it refuses them, as it should."""
    try:
        parsed = parse_prefix(data)
    except (FormatError, LimitError) as error:
        assert str(error).isprintable() and str(error)
        return None
    assert 1 <= len(parsed.streams) <= len(parsed.header.offsets)
    assert parsed.header_bytes + sum(map(len, parsed.streams)) <= len(data)
    if parsed != data_or_none(data):
        assert len(parsed.streams) < len(parsed.header.offsets) and not parsed.chunks
    return parsed


def data_or_none(data: bytes) -> Container | None:
    try:
        return parse(data)
    except HvcompressError:
        return None


@quickly
@given(containers(), st.floats(0, 1, exclude_max=True))
def test_prefix_of_anything(made, share):
    data = pack(made)
    cut = data[: int(share * len(data))]
    parsed = answer(cut)
    whole = sum(end <= len(cut) for end in ends(made)[:-1])
    assert (parsed.streams if parsed else ()) == made.streams[:whole]


@quickly
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_parsed_or_refused(body, ours):
    answer(MAGIC + bytes((VERSION,)) + bytes(4) + body if ours else body)


@quickly
@given(containers(), st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=6)), min_size=1))
def test_a_damaged_prefix_is_parsed_or_refused(made, edits):
    data = pack(made)
    for place, new in edits:
        place = 8 + place % (len(data) - 8)
        data = data[:place] + new + data[place + len(new) :]
    answer(data)


# --------------------------------------------------------------------------------------------------------------------
# Header and chunks alone


class Counted(io.BytesIO):
    """A file that counts the bytes read from it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


def test_only_the_ends_are_read():
    made = Container(HEADER, (*STREAMS[:-1], bytes(100_000)), WHOLE.chunks)
    file = Counted(pack(made))
    assert read_ends(file) == (HEADER, WHOLE.chunks)
    assert file.count < 500


@quickly
@given(containers())
def test_ends_are_those_of_the_file(made):
    assert read_ends(io.BytesIO(pack(made))) == (made.header, made.chunks)


def test_the_longest_header_is_read():
    streams = (*(bytes(200) for _ in range(14)), b"")
    header = Header(65535, 16384, True, 100, (40,) * 15, b"abcd", b"hash")
    data = pack(Container(header, streams, {ICC: bytes(300)}))
    assert parse(data).header_bytes <= MAX_HEADER_BYTES
    assert read_ends(io.BytesIO(data))[0] == header


def test_ends_of_a_truncated_file_are_its_header():
    data = pack(WHOLE)
    for length in range(ends(WHOLE)[0], len(data)):
        assert read_ends(io.BytesIO(data[:length])) == (HEADER, {})
    with pytest.raises(FormatError):
        read_ends(io.BytesIO(data[:30]))


# --------------------------------------------------------------------------------------------------------------------
# Pictures


@pytest.fixture(scope="module")
def encoded(tiny, photo) -> bytes:
    alpha = np.arange(photo.shape[0] * photo.shape[1], dtype=np.uint32).reshape(photo.shape[:2]).astype(np.uint8)
    return tiny.encode(Picture(photo, alpha=alpha), 60, verify=False).data


def test_a_prefix_gives_the_preview_of_its_layers(tiny, encoded):
    last = ends(parse(encoded))
    previews = {}
    for layers, length in ((1, last[0]), (3, last[3] - 1), (5, len(encoded) - 1)):
        previews[layers] = tiny.decode(encoded, layers).pixels
        decoded = tiny.decode(encoded[:length], partial=True)
        assert np.array_equal(decoded.pixels, previews[layers]) and decoded.alpha is None
        with pytest.raises(FormatError):
            tiny.decode(encoded[:length])
    cut = encoded[: last[2]]
    assert np.array_equal(tiny.decode(cut, 1, partial=True).pixels, previews[1])
    part = tiny.decode(cut, crop=(5, 7, 40, 30), partial=True)
    assert np.array_equal(part.pixels, previews[3][7:37, 5:45])


def test_a_complete_file_is_decoded_and_checked_as_ever(tiny, encoded, tiny_folder):
    whole, decoded = tiny.decode(encoded), tiny.decode(encoded, partial=True)
    assert np.array_equal(decoded.pixels, whole.pixels) and np.array_equal(decoded.alpha, whole.alpha)
    parsed = parse(encoded)
    wrong = pack(Container(Header(**{**vars(parsed.header), "latent_hash": b"none"}), parsed.streams, parsed.chunks))
    with pytest.raises(HvcompressError, match="not those of the encoder"):
        tiny.decode(wrong, partial=True)


def test_a_large_picture_s_layers_consist_of_segments(tiny, monkeypatch):
    monkeypatch.setattr(plan, "SEGMENT", 64)
    picture = Picture(np.random.default_rng(2).integers(0, 256, (150, 130, 3), dtype=np.uint8))
    data = tiny.encode(picture, 50, verify=False).data
    cut = data[: ends(parse(data))[4] + 1]
    assert np.array_equal(tiny.decode(cut, partial=True).pixels, tiny.decode(data, 5).pixels)


def test_in_the_library(tiny_folder, tiny, encoded):
    options = {"model": tiny_folder, "device": "cpu"}
    cut = encoded[: ends(parse(encoded))[1]]
    image = hvcompress.decode(cut, partial=True, **options)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), tiny.decode(encoded, 2).pixels)
    assert hvcompress.decode(encoded, partial=True, **options).mode == "RGBA"
    with pytest.raises(FormatError, match="truncated"):
        hvcompress.decode(cut, **options)
    with pytest.raises(FormatError, match="first layer"):
        hvcompress.decode(encoded[:60], partial=True, **options)
    with pytest.raises(ModelError):  # the shipped models did not make it
        hvcompress.decode(cut, partial=True, device="cpu")


def test_damage_ends_in_a_picture_or_an_error(tiny, encoded):
    """It cannot be noticed for certain; but nothing else may happen."""
    generator, outcomes = np.random.default_rng(6), set()
    parsed = parse(encoded)
    for _ in range(12):
        data = bytearray(encoded[: generator.integers(parsed.header_bytes, len(encoded))])
        for place in generator.integers(parsed.header_bytes, len(data) + 1, 3):
            data[place : place + 1] = generator.bytes(1)
        try:
            outcomes.add(tiny.decode(bytes(data), partial=True).pixels.shape)
        except FormatError:
            outcomes.add("refused")
    assert (75, 131, 3) in outcomes and outcomes <= {(75, 131, 3), "refused"}


# --------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with whole.hvci, of three layers by the fake codec, and two.hvci, which lacks the last."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hvcompress.loading", fake_codec.module())
    pixels = np.full((24, 32, 3), 90, np.uint8)
    data = fake_codec.FakeCodec().encode(Picture(pixels, alpha=pixels[..., 0].copy())).data
    Path("whole.hvci").write_bytes(data)
    Path("two.hvci").write_bytes(data[: ends(parse(data))[1] + 1])
    return tmp_path


def test_without_the_flag_a_truncated_file_is_refused(here, capsys):
    assert main(["decode", "two.hvci"]) == FormatError.exit_code
    assert "two.hvci: the file is damaged or truncated" in capsys.readouterr().err
    assert sorted(os.listdir(here)) == ["two.hvci", "whole.hvci"]


def test_the_command_says_how_much_was_there(here, capsys):
    assert main(["decode", "two.hvci", "--partial"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "hvcompress: two.hvci: truncated, 2 of 3 layers decoded\n"
    assert captured.out.startswith("two.hvci  32x24 ")
    image = Image.open("two.png")
    assert image.mode == "RGB" and image.getpixel((3, 3)) == (90, 90, 90)
    assert main(["decode", "two.hvci", "--partial", "--layers", "1", "-f"]) == 0
    assert ": truncated, 1 of 3 layers decoded\n" in capsys.readouterr().err
    assert main(["decode", "two.hvci", "--partial", "--quiet", "-f"]) == 0
    assert capsys.readouterr() == ("", "")


def test_the_command_on_complete_and_hopeless_files(here, capsys):
    Path("none.hvci").write_bytes(Path("whole.hvci").read_bytes()[:22])
    assert main(["decode", "whole.hvci", "none.hvci", "--partial", "-o", "."]) == FormatError.exit_code
    assert capsys.readouterr().err == "hvcompress: none.hvci: the file is truncated\n"
    assert Image.open("whole.png").mode == "RGBA" and not os.path.exists("none.png")


def test_whoever_has_a_prefix_is_told_what_it_is_good_for(here, capsys):
    assert main(["decode", "two.hvci", "-o", "whole.png"]) == FormatError.exit_code
    assert "; --partial decodes the first 2 of its 3 layers" in capsys.readouterr().err
    Path("damaged.hvci").write_bytes(b"\xff".join(Path("two.hvci").read_bytes().split(b"\x00", 1)))
    assert main(["decode", "damaged.hvci", "-o", "whole.png"]) == FormatError.exit_code
    assert not Path("whole.png").exists()


def test_a_prefix_from_standard_input(here, capsysbinary, monkeypatch):
    data = io.TextIOWrapper(io.BytesIO(Path("two.hvci").read_bytes()))
    monkeypatch.setattr(sys, "stdin", data)
    assert main(["decode", "-", "--partial", "--format", "ppm"]) == 0
    captured = capsysbinary.readouterr()
    assert captured.out.startswith(b"P6\n32 24\n")
    assert b"standard input: truncated, 2 of 3 layers decoded\n" in captured.err
