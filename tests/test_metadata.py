from __future__ import annotations

import io
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hvcompress.cli import main
from hvcompress.container import EXIF, ICC, XMP, pack, parse, read_info
from hvcompress.errors import FormatError, HvcompressWarning, InputError
from hvcompress.metadata import (
    MAX_BYTES,
    MAX_ICC_BYTES,
    clean_exif,
    clean_xmp,
    pack_icc,
    pack_metadata,
    unpack_icc,
    unpack_metadata,
    without_orientation,
)
from hvcompress.picture import Picture

ORIENTATION, MAKER_NOTE, EXIF_IFD = 0x0112, 0x927C, 0x8769
NOTE = b"CAMERA\0" + bytes(range(60))


def thumbnail() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (12, 16, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def exif_data(order: str = "<", orientation: int | None = 6, small: bytes = b"", after: bytes = b"") -> bytes:
    """EXIF as cameras lay it out: IFD0, the directory of EXIF with a MakerNote, IFD1, the thumbnail, `after`."""

    def directory(entries: list[tuple[int, int, int, int]], following: int) -> bytes:
        out = struct.pack(order + "H", len(entries))
        for tag, kind, count, value in entries:
            number = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
            out += struct.pack(order + "HHI", tag, kind, count) + number
        return out + struct.pack(order + "I", following)

    first = [(0x010F, 2, 8, 0)] + [(ORIENTATION, 3, 1, orientation)] * (orientation is not None) + [(EXIF_IFD, 4, 1, 0)]
    at_make = 8 + 2 + 12 * len(first) + 4
    at_exif = at_make + 8
    at_note = at_exif + 2 + 12 + 4
    at_ifd1 = at_note + len(NOTE)
    at_small = at_ifd1 + 2 + 3 * 12 + 4
    first[0], first[-1] = (0x010F, 2, 8, at_make), (EXIF_IFD, 4, 1, at_exif)
    second = [(ORIENTATION, 3, 1, 6), (0x0201, 4, 1, at_small), (0x0202, 4, 1, len(small))]
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    data += directory(first, at_ifd1 if small else 0) + b"Mak3r X\0"
    data += directory([(MAKER_NOTE, 7, len(NOTE), at_note)], 0) + NOTE
    return data + (directory(second, 0) + small + after if small else b"")


def read(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(data)
    return exif


XMP_PACKET = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""\n'
    b' xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:Make="Caf\xc3\xa9"/></rdf:RDF>\n'
    b"</x:xmpmeta>\n" + b" " * 2000 + b'<?xpacket end="w"?>'
)


# --------------------------------------------------------------------------------------------------------------------
# EXIF


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])
def test_only_the_orientation_changes(order, prefix):
    data = exif_data(order)
    clean = clean_exif(prefix + data)
    changed = [i for i, (a, b) in enumerate(zip(data, clean, strict=True)) if a != b]
    assert len(changed) == 1 and data[changed[0]] == 6 and clean[changed[0]] == 1
    assert read(clean)[ORIENTATION] == 1 and read(clean)[0x010F] == "Mak3r X"
    assert read(clean).get_ifd(EXIF_IFD)[MAKER_NOTE] == NOTE
    assert clean_exif(clean) == clean


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_of_another_type_is_reset_as_well(order):
    data = bytearray(exif_data(order))
    at = data.index(struct.pack(order + "HH", ORIENTATION, 3))
    struct.pack_into(order + "HHII", data, at, ORIENTATION, 4, 1, 8)
    assert read(bytes(data))[ORIENTATION] == 8
    assert read(clean_exif(bytes(data)))[ORIENTATION] == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("after", [b"", b"\0\0\0", b"more"])
def test_thumbnails_go(order, after):
    small = thumbnail()
    assert read(exif_data(order, small=small)).get_ifd(0x0201) is not None
    clean = clean_exif(exif_data(order, small=small, after=after))
    assert small[:20] not in clean and small[50:70] not in clean
    assert (b"more" in clean) == (after == b"more")
    assert len(clean) < 400 or after == b"more"
    assert read(clean).get_ifd(0xFFFF) == {} and read(clean)._info.next == 0
    assert read(clean).get_ifd(EXIF_IFD)[MAKER_NOTE] == NOTE


def test_a_thumbnail_inside_the_directory_is_none():
    """A hostile offset must not make the directory a victim."""
    data = bytearray(exif_data(small=thumbnail()))
    data[12:14] = b"\xff\xd8"
    at = data.index(struct.pack("<HH", 0x0201, 4))
    struct.pack_into("<I", data, at + 8, 12)
    clean = clean_exif(bytes(data))
    assert clean[12:14] == b"\xff\xd8" and clean_exif(clean) == clean
    assert without_orientation(clean) is not None


def test_without_orientation():
    for order in "<>":
        clean = clean_exif(exif_data(order))
        bare = without_orientation(clean)
        assert len(bare) == len(clean) and ORIENTATION not in read(bare)
        assert read(bare)[0x010F] == "Mak3r X" and read(bare).get_ifd(EXIF_IFD)[MAKER_NOTE] == NOTE
        assert without_orientation(bare) == bare
    alone = Image.Exif()
    alone[ORIENTATION] = 3
    assert without_orientation(clean_exif(alone.tobytes())) is None


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"Exif\0\0",
        b"garbage",
        b"II*\0",
        b"II*\0\x08\0\0\0",
        b"II*\0\x08\0\0\0\0\0\0\0\0\0",
        b"II*\0\0\0\0\0" + bytes(99),
        b"MM\0*\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff" + bytes(99),
        exif_data()[:30],
    ],
    ids=["none", "empty", "prefix", "garbage", "head", "no IFD", "no entry", "in head", "far", "many", "cut"],
)
def test_damaged_exif_is_not_kept(data):
    assert clean_exif(data) is None


@given(st.binary(max_size=120), st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_exif_or_none(rest, head, entries):
    data = head + (bytes((entries, 0)) if head[0] == 73 else bytes((0, entries))) + rest
    clean = clean_exif(data)
    if clean is not None:
        assert clean_exif(clean) == clean and len(clean) <= len(data)
        bare = without_orientation(clean)
        assert bare is None or clean_exif(bare) == bare


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_flipped_bits_are_exif_or_none(data):
    damaged = bytearray(exif_data(data.draw(st.sampled_from("<>")), small=b"\xff\xd8" + bytes(range(50))))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    clean = clean_exif(bytes(damaged))
    if clean is not None:
        assert clean_exif(clean) == clean
        without_orientation(clean)


# --------------------------------------------------------------------------------------------------------------------
# XMP


@pytest.mark.parametrize(
    "written",
    [
        b'tiff:Orientation="6"',
        b"tiff:Orientation='8'",
        b'tiff:Orientation = "3"',
        b"<tiff:Orientation> 5</tiff:Orientation>",
    ],
)
def test_xmp_orientation_is_one(written):
    clean = clean_xmp(b"<a " + written + b" other:Orientation='6'>")
    digits = [c for c in clean if chr(c).isdigit()]
    assert bytes(digits) == b"16" and len(clean) == len(written) + len(b"<a  other:Orientation='6'>")


def test_nothing_else_changes_in_xmp():
    clean = clean_xmp(XMP_PACKET)
    assert clean == XMP_PACKET.replace(b'Orientation="6"', b'Orientation="1"') != XMP_PACKET
    assert clean_xmp(XMP_PACKET.decode()) == clean == clean_xmp(XMP_PACKET + b"\0\0")
    assert clean_xmp(None) is clean_xmp(b"") is clean_xmp("") is clean_xmp(b"\0") is None
    assert clean_xmp(b"\xff\xfe not even text") == b"\xff\xfe not even text"


def test_entities_are_not_expanded_and_long_runs_take_no_time():
    bomb = b'<!DOCTYPE a [<!ENTITY a "' + b"a" * 100 + b'"><!ENTITY b "' + b"&a;" * 100 + b'">]><a>&b;&b;</a>'
    began = time.perf_counter()
    assert clean_xmp(bomb) == bomb
    for run in (b"tiff:Orientation", b"tiff:Orientation=", b'tiff:Orientation="', b"tiff:Orientation" + b" " * 999):
        data = run * (MAX_BYTES // len(run))
        assert clean_xmp(data) == data
    spaces = b"tiff:Orientation" + b" " * (MAX_BYTES - 100)
    assert clean_xmp(spaces) == spaces
    assert time.perf_counter() - began < 5


# --------------------------------------------------------------------------------------------------------------------
# Chunks


def test_chunks_are_zlib_streams_and_come_back():
    chunks = pack_metadata(exif_data(), XMP_PACKET)
    assert list(chunks) == [EXIF, XMP] and all(name[:1].islower() for name in chunks)
    assert zlib.decompress(chunks[EXIF]) == clean_exif(exif_data()) and len(chunks[XMP]) < len(XMP_PACKET) // 5
    assert unpack_metadata(chunks) == (clean_exif(exif_data()), clean_xmp(XMP_PACKET))
    assert pack_metadata(None, None) == {} and unpack_metadata({}) == (None, None)
    assert pack_metadata(b"rubbish", XMP_PACKET) == {XMP: chunks[XMP]}


def test_a_writer_that_left_the_orientation_does_not_turn_the_picture():
    exif, xmp = unpack_metadata({EXIF: zlib.compress(exif_data()), XMP: zlib.compress(XMP_PACKET)})
    assert read(exif)[ORIENTATION] == 1 and b'tiff:Orientation="1"' in xmp


def test_the_command_line_tells_what_is_not_kept(tiny_folder, tmp_path, capsys):
    image = Image.new("RGB", (20, 10), "red")
    image.save(tmp_path / "a.png", exif=exif_data().ljust(MAX_BYTES + 1, b"x"))
    assert main(["encode", str(tmp_path / "a.png"), "--model", str(tiny_folder)]) == 0
    told = capsys.readouterr().err
    assert told.startswith("hvcompress: EXIF data of") and told.count("\n") == 1


def test_damaged_chunks_are_as_good_as_none():
    whole = pack_metadata(exif_data(), XMP_PACKET)
    for bad in (b"", b"rubbish", whole[EXIF][:-1], whole[EXIF][:10]):
        assert unpack_metadata({EXIF: bad, XMP: bad}) == (None, None)
        assert unpack_metadata(whole | {EXIF: bad})[1] == clean_xmp(XMP_PACKET)


def test_what_is_too_long_is_not_kept():
    exif = exif_data()
    assert clean_exif(exif.ljust(MAX_BYTES, b"x")) is not None
    with pytest.warns(HvcompressWarning, match="EXIF data of 4,194,305 bytes are not kept"):
        assert clean_exif(exif.ljust(MAX_BYTES + 1, b"x")) is None
    with pytest.warns(HvcompressWarning, match="XMP"):
        assert pack_metadata(exif, b"x" * (MAX_BYTES + 1)).keys() == {EXIF}
    longest = b"x" * MAX_BYTES
    assert unpack_metadata(pack_metadata(None, longest)) == (None, longest)
    bomb = zlib.compress(bytes(30 << 20), 1)
    began = time.perf_counter()
    assert unpack_metadata({EXIF: bomb, XMP: bomb}) == (None, None)
    assert time.perf_counter() - began < 1


def test_a_profile_is_a_zlib_stream_that_must_be_whole():
    profile = bytes(range(128)) * 9
    chunks = pack_icc(profile)
    assert list(chunks) == [ICC] and ICC[:1].isupper() and len(chunks[ICC]) < len(profile) // 3
    assert unpack_icc(chunks) == profile and pack_icc(None) == {} and unpack_icc({}) is None
    for bad in (b"", profile, chunks[ICC][:-1], zlib.compress(bytes(MAX_ICC_BYTES + 1))):
        with pytest.raises(FormatError, match="the ICC profile is damaged"):
            unpack_icc({ICC: bad})
    assert len(unpack_icc(pack_icc(bytes(MAX_ICC_BYTES)))) == MAX_ICC_BYTES
    with pytest.raises(InputError, match="16,777,217 bytes is too long"):
        pack_icc(bytes(MAX_ICC_BYTES + 1))


def test_a_file_holds_them_and_hostile_ones_do_not_hinder_decoding(tiny, photo):
    picture = Picture(photo[:40, :40].copy(), icc=b"profile", exif=exif_data(), xmp=XMP_PACKET)
    encoded = tiny.encode(picture, 30)
    bare = tiny.encode(Picture(picture.pixels), 30)
    for found in (encoded.picture, tiny.decode(encoded.data), tiny.decode(encoded.data, crop=(0, 0, 8, 8))):
        assert (found.icc, found.exif, found.xmp) == (b"profile", clean_exif(exif_data()), clean_xmp(XMP_PACKET))
    parsed = parse(encoded.data)
    assert parsed.streams == parse(bare.data).streams
    assert (read_info(encoded.data).exif, read_info(encoded.data).xmp, read_info(encoded.data).icc) == (True,) * 3
    assert not (read_info(bare.data).exif or read_info(bare.data).xmp or read_info(bare.data).icc)
    hostile = pack(replace(parsed, chunks={EXIF: b"rubbish", XMP: zlib.compress(bytes(MAX_BYTES + 1))}))
    found = tiny.decode(hostile)
    with pytest.raises(FormatError, match="profile"):
        tiny.decode(pack(replace(parsed, chunks={ICC: b"rubbish"})))
    assert (found.exif, found.xmp) == (None, None) and np.array_equal(found.pixels, encoded.picture.pixels)
