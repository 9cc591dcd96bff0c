"""Files that mean harm: refused for ever with their error, at no cost; and many random ones (`benchmarks/fuzz.py`)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hvcompress
from hvcompress.container import (
    ALPHA,
    ICC,
    MAGIC,
    MAX_PIXELS,
    MAX_SIDE,
    STATE_BITS,
    VERSION,
    Container,
    Header,
    pack,
    parse,
    read_info,
)
from hvcompress.errors import FormatError, HvcompressError, LimitError, UnsupportedError
from hvcompress.picture import Picture

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import fuzz  # noqa: E402

GOLDEN, ERRORS = Path(__file__).parent / "golden", Path(__file__).parent / "golden_errors"
INDEX: dict[str, list[str]] = json.loads((ERRORS / "index.json").read_text())
PARSER_ERRORS = (FormatError, UnsupportedError, LimitError)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there a process can be limited like this")


@pytest.fixture(scope="module")
def shipped():
    return hvcompress.load_model(device="cpu")


# --------------------------------------------------------------------------------------------------------------------
# Files that must fail for ever


def test_every_file_is_listed():
    assert {path.stem for path in ERRORS.glob("*.hvci")} == set(INDEX)
    classes = {error for errors in INDEX.values() for error in errors}
    assert classes == {"FormatError", "UnsupportedError", "LimitError", "ModelError", "MismatchError"}


@pytest.mark.parametrize("name", INDEX)
def test_file_is_refused_with_its_error(shipped, name):
    data = (ERRORS / f"{name}.hvci").read_bytes()
    for decode in (shipped.decode, lambda data: hvcompress.decode(data, device="cpu")):
        with pytest.raises(HvcompressError) as caught:
            decode(data)
        assert type(caught.value).__name__ in INDEX[name]
        assert str(caught.value) and str(caught.value).isprintable()  # hence one line


# --------------------------------------------------------------------------------------------------------------------
# What a parser takes and refuses

quickly = settings(derandomize=True, deadline=None, max_examples=300, database=None)


@st.composite
def containers(draw) -> Container:
    """All that the format can hold, up to the length of streams and chunks."""
    width = draw(st.integers(1, MAX_SIDE))
    height = draw(st.integers(1, min(MAX_SIDE, MAX_PIXELS // width)))
    if draw(st.booleans()):
        width, height = height, width
    layers = draw(st.integers(1, 15))
    offsets = draw(st.just((0,) * layers) | st.tuples(*[st.integers(-40, 40)] * layers))
    four = st.binary(min_size=4, max_size=4)
    gray, quality, state_bits = draw(st.booleans()), draw(st.integers(0, 100)), draw(st.sampled_from(STATE_BITS))
    header = Header(width, height, gray, quality, offsets, draw(four), draw(four), state_bits)
    streams = draw(st.tuples(*[st.binary(max_size=300)] * layers))
    ancillary = st.from_regex(rb"\A[a-z][a-zA-Z]{3}\Z")
    chunks = draw(st.dictionaries(st.sampled_from([ALPHA, ICC]) | ancillary, st.binary(max_size=300), max_size=4))
    return Container(header, streams, chunks)


def sealed(data: bytes) -> bytes:
    return data[:4] + zlib.crc32(data[8:]).to_bytes(4, "little") + data[8:]


def answer(data: bytes) -> Container | None:
    """What the parser makes of any bytes; None if it refuses them, as it should."""
    try:
        parsed = parse(data)
    except PARSER_ERRORS as error:
        assert str(error) and str(error).isprintable()
        return None
    assert pack(parsed) == data  # there is one way to write a file
    return parsed


@quickly
@given(containers())
def test_parse_returns_what_was_packed(container):
    data = pack(container)
    parsed = parse(data)
    assert dataclasses.replace(parsed, header_bytes=0) == container
    assert list(parsed.chunks) == list(container.chunks)
    told = sum(map(len, parsed.streams)) + sum(4 + 1 + (len(b) > 127) + len(b) for b in parsed.chunks.values())
    assert parsed.header_bytes + told == len(data)
    assert read_info(data).file_bytes == len(data)


@quickly
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_parsed_or_refused(body, ours):
    answer(sealed(MAGIC + bytes((VERSION,)) + bytes(4) + body) if ours else body)


EDITS = st.lists(st.tuples(st.sampled_from(["put", "cut", "insert"]), st.integers(0, 2**16), st.binary(max_size=6)))


@quickly
@given(containers(), EDITS.filter(bool), st.booleans())
@example(Container(Header(1, 1, False, 0, (0,), b"abcd", b"hash"), (b"",)), [("put", 8, b"\x18")], True)
def test_a_damaged_file_is_parsed_or_refused(container, edits, behind):
    """behind: damage only what stands behind the length of the header's fixed part."""
    data = pack(container)
    for kind, place, new in edits:
        first = 19 if behind else 8
        place = first + place % max(len(data) - first, 1)
        data = data[:place] + (b"" if kind == "cut" else new) + data[place + (kind != "insert") * len(new) :]
    answer(sealed(data))


# --------------------------------------------------------------------------------------------------------------------
# Random files, and whether the program that tries them would notice


@linux
def test_parser_survives_random_files(tmp_path):
    result = fuzz.explore("parser", 20_000, 2, tmp_path)
    assert result["findings"] == [] and result["inputs"] == 20_000
    assert {"container", "FormatError", "UnsupportedError", "LimitError"} == set(result["outcomes"])
    assert result["outcomes"]["container"] > 1000


@linux
def test_decoder_survives_damaged_files(tmp_path):
    result = fuzz.explore("decoder", 150, 2, tmp_path)
    assert result["findings"] == [] and result["inputs"] == 150
    assert result["outcomes"]["MismatchError"] > 3  # the range decoder has seen damage


@linux
def test_crash_hang_and_greed_are_found(tmp_path):
    result = fuzz.explore("trap", 12, 2, tmp_path, every=1)
    assert {finding["input"] for finding in result["findings"]} == {3, 5, 7, 9}
    told = {finding["input"]: finding["what"] for finding in result["findings"]}
    assert "SIGABRT" in told[3] and "processor time" in told[5] and "MemoryError" in told[7] and "away" in told[9]
    assert result["outcomes"] == {"well": 8, "finding": 4} and result["processes_lost"] == 2
    assert (tmp_path / "trap-3.hvci").read_bytes() == b"\x03"  # the input is kept


def test_an_input_follows_from_its_number():
    assert fuzz.parser_input(3, 17) == fuzz.parser_input(3, 17) != fuzz.parser_input(4, 17)


def plain_file(**changes) -> Container:
    header = Header(3, 2, False, 60, (0,), b"abcd", b"hash")
    return Container(dataclasses.replace(header, **changes), (b"stream",), {})


@pytest.mark.parametrize(
    "fault", [ValueError("no"), FormatError("two\nlines"), FormatError(""), RecursionError(), HvcompressError("vague")]
)
def test_wrong_errors_of_the_parser_are_found(monkeypatch, fault):
    def parse(data):
        raise fault

    monkeypatch.setattr(fuzz, "parse", parse)
    with pytest.raises((fuzz.Finding, ValueError, RecursionError)):
        fuzz.check_parser(b"")


def test_a_file_that_packs_otherwise_is_found(monkeypatch):
    data = pack(plain_file())
    assert fuzz.check_parser(data) == "container"
    monkeypatch.setattr(fuzz, "parse", lambda data: plain_file(quality=61))
    with pytest.raises(fuzz.Finding, match="other bytes"):
        fuzz.check_parser(data)


class Decoder:
    """A codec of which the test says what it answers."""

    def __init__(self, picture: Picture, digest: str):
        self.picture, self.digest = picture, digest

    def decode(self, data: bytes) -> Picture:
        return self.picture

    def latent_digest(self, data: bytes) -> str:
        return self.digest


def outcome(picture: Picture, made: Container, *, digest="right", repaired=True) -> str:
    """Of a decoder that returns `picture` for the bytes of `made`, when `plain_file` is undamaged and all gray 7."""
    usual = Picture(np.full((2, 3, 3), 7, np.uint8))
    source = fuzz.Source(pack(plain_file()), plain_file(), "right", usual)
    given = fuzz.Input(pack(made), "-", repaired)
    return fuzz.check_decoder(Decoder(picture, digest), {"right": source}, given)


def test_silently_wrong_pictures_are_found():
    sevens = np.full((2, 3, 3), 7, np.uint8)
    eight = sevens.copy()
    eight[0, 0, 0] = 8
    surplus = dataclasses.replace(plain_file(), streams=(b"stream!",))
    assert outcome(Picture(sevens), plain_file()) == "unchanged"
    assert outcome(Picture(sevens), surplus) == "same picture"
    assert outcome(Picture(sevens[:, :2]), plain_file(width=2)) == "another valid file (width)"
    assert outcome(Picture(sevens, gray=True), plain_file(gray=True)) == "another valid file (gray)"
    profile = dataclasses.replace(surplus, chunks={ICC: zlib.compress(b"x")})
    assert outcome(Picture(sevens, icc=b"x"), profile) == "another valid file (ICCP)"
    wrong = [
        (Picture(eight), surplus, {}),
        (Picture(eight[:, :2]), plain_file(width=2), {}),
        (Picture(sevens), plain_file(width=2), {}),  # not of the size that the header says
        (Picture(sevens), plain_file(gray=True), {}),
        (Picture(sevens), profile, {}),
        (Picture(sevens, alpha=sevens[..., 0]), surplus, {}),
        (Picture(sevens), surplus, {"digest": "wrong"}),
        (Picture(sevens), surplus, {"repaired": False}),
    ]
    for picture, made, options in wrong:
        with pytest.raises(fuzz.Finding):
            outcome(picture, made, **options)


# --------------------------------------------------------------------------------------------------------------------
# Small files that ask for much

PROGRAM = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
import fuzz
from hvcompress.loading import load_model
from hvcompress.errors import HvcompressError
codec = load_model(device="cpu")
folder = pathlib.Path(sys.argv[2])
codec.decode((folder / "sound").read_bytes())
fuzz.limit_memory(96)  # MiB more than it has now
told = {}
for path in sorted(folder.glob("*.hvci")):
    try:
        codec.decode(path.read_bytes())
        told[path.stem] = "decoded"
    except HvcompressError as error:
        told[path.stem] = type(error).__name__
    except MemoryError:
        told[path.stem] = "out of memory"
try:
    block = bytearray(1 << 30)
    told["limit"] = "none"
except MemoryError:
    told["limit"] = "in force"
print(json.dumps(told))
"""


def bombs(sound: bytes) -> dict[str, tuple[bytes, str]]:
    """Name -> file, and what must come of it. sound: a file that decodes."""
    base = parse(sound)
    width, height = base.header.width, base.header.height
    deflated = zlib.compress(bytes(128 << 20), 1)  # all zero

    def resized(width: int, height: int) -> bytes:
        return fuzz.assembled(dataclasses.replace(base.header, width=width, height=height), base.streams, {})

    def alpha(png: bytes) -> bytes:
        return pack(dataclasses.replace(base, chunks={ALPHA: png}))

    def extra(name: bytes) -> bytes:
        return alpha(fuzz.png_of(width, height, extra=fuzz.png_chunk(name, b"a\0\0" + deflated)))

    listed = ("lengths_of_gigabytes", "chunk_of_gigabytes", "side_of_35_bits", "too_many_pixels")
    return {
        **{name: ((ERRORS / f"{name}.hvci").read_bytes(), *INDEX[name]) for name in listed},
        "a_row_too_many": (resized(MAX_SIDE, MAX_PIXELS // MAX_SIDE + 1), "LimitError"),
        "alpha_of_100_megapixels": (alpha(fuzz.png_of(1, 1, declared=(10000, 10000))), "FormatError"),
        "alpha_of_4_gigapixels": (alpha(fuzz.png_of(1, 1, declared=(MAX_SIDE, MAX_SIDE))), "FormatError"),
        "alpha_with_more_behind_its_pixels": (alpha(fuzz.png_of(width, height, deflated=deflated)), "decoded"),
        "alpha_with_a_long_text": (extra(b"zTXt"), "FormatError"),
        "alpha_with_a_long_profile": (extra(b"iCCP"), "FormatError"),
    }


@linux
def test_small_files_cannot_ask_for_memory(tmp_path):
    sound = (GOLDEN / "gray.hvci").read_bytes()
    (tmp_path / "sound").write_bytes(sound)
    files = bombs(sound)
    for name, (data, _) in files.items():
        (tmp_path / f"{name}.hvci").write_bytes(data)
    command = [sys.executable, "-c", PROGRAM, str(BENCHMARKS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: told for name, (_, told) in files.items()} | {"limit": "in force"}
