"""Make the files of tests/golden_errors from tests/golden/gray.hvci: `python tests/make_golden_errors.py`.

Each must fail for ever, with the error that index.json has for it. Where a check behind the checksum is meant, the
checksum is right. Run it only when the golden file changes on purpose. Each file is decoded before any is written.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hvcompress.alpha import pack_alpha
from hvcompress.codec import Codec
from hvcompress.container import (
    ALPHA,
    FLAG_CHUNKS,
    FLAG_OFFSETS,
    FLAG_RESERVED,
    ICC,
    MAGIC,
    MAX_SIDE,
    VERSION,
    Container,
    pack,
    parse,
)
from hvcompress.errors import HvcompressError
from hvcompress.loading import load_model

HERE = Path(__file__).parent
BASE, ERRORS = HERE / "golden" / "gray.hvci", HERE / "golden_errors"
DAMAGED = ["FormatError", "MismatchError"]  # which of the two depends on where the damage leads the range decoder


def varint(value: int, padding: int = 0) -> bytes:
    """padding: bytes more than it needs."""
    digits = [value & 127]
    while value := value >> 7:
        digits.append(value & 127)
    digits += [0] * padding
    return bytes(digit | 128 for digit in digits[:-1]) + bytes(digits[-1:])


def sealed(body: bytes, version: int = VERSION) -> bytes:
    """A file with a right checksum over any content."""
    return MAGIC + bytes((version,)) + zlib.crc32(body).to_bytes(4, "little") + body


def fields(container: Container) -> dict[str, bytes]:
    """What stands behind the checksum, in order, of a file without offsets and chunks."""
    header, streams = container.header, container.streams
    return {
        "flags": bytes((header.gray | len(streams) << 4,)),
        "fingerprint": header.fingerprint,
        "latent_hash": header.latent_hash,
        "quality": bytes((header.quality,)),
        "state_bits": bytes((header.state_bits,)),
        "width": varint(header.width),
        "height": varint(header.height),
        "offsets": b"",
        "section_bytes": b"",
        "lengths": b"".join(varint(len(stream)) for stream in streams[:-1]),
        "streams": b"".join(streams),
        "section": b"",
    }


def cases(data: bytes) -> dict[str, tuple[bytes, str]]:
    """Name -> file, and the class of its error. Without those whose streams are damaged."""
    base = parse(data)
    header, streams = base.header, base.streams
    plain = fields(base)
    if sealed(b"".join(plain.values())) != data:
        raise SystemExit("the base must be a file without offsets and chunks")
    flags, layers = plain["flags"][0], len(streams)

    def other(**changes: bytes) -> bytes:
        return sealed(b"".join((plain | changes).values()))

    def offset(*values: int) -> bytes:
        return other(flags=bytes((flags | FLAG_OFFSETS,)), offsets=bytes(value & 255 for value in values))

    def section(*chunks: bytes, declared: int | None = None) -> bytes:
        whole = b"".join(chunks)
        size = varint(len(whole) if declared is None else declared)
        return other(flags=bytes((flags | FLAG_CHUNKS,)), section_bytes=size, section=whole)

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + varint(len(body)) + body

    def alpha(body: bytes) -> bytes:
        return pack(replace(base, chunks={ALPHA: body}))

    steep = np.arange((header.height + 1) * header.width, dtype=np.uint8).reshape(header.height + 1, header.width)
    plane = pack_alpha(steep[1:])
    padded = b"".join(varint(len(stream), padding=1) for stream in streams[:-1])
    no_hash = bytes(byte ^ 255 for byte in header.latent_hash)
    return {
        "not_ours": (b"\x89PNG\r\n\x1a\n" + data[8:], "FormatError"),
        "not_ours_text": (b"This is a text.\n", "FormatError"),
        "empty": (b"", "FormatError"),
        "truncated_in_magic": (data[:2], "FormatError"),
        "truncated_in_checksum": (data[:6], "FormatError"),
        "truncated_in_header": (data[:15], "FormatError"),
        "truncated_in_lengths": (data[: base.header_bytes - 1], "FormatError"),
        "truncated_before_streams": (data[: base.header_bytes], "FormatError"),
        "truncated_in_streams": (data[: (base.header_bytes + len(data)) // 2], "FormatError"),
        "truncated_last_byte": (data[:-1], "FormatError"),
        "truncated_in_size_sealed": (sealed(data[8:19] + b"\x80" * 4), "FormatError"),
        "truncated_in_lengths_sealed": (sealed(data[8 : base.header_bytes - 1]), "FormatError"),
        "trailing_byte": (data + b"\0", "FormatError"),
        "checksum": (data[:4] + bytes((data[4] ^ 1,)) + data[5:], "FormatError"),
        "flipped_bit": (data[:-1] + bytes((data[-1] ^ 16,)), "FormatError"),
        "newer_version": (sealed(data[8:], VERSION + 1), "UnsupportedError"),
        "version_zero": (sealed(data[8:], 0), "UnsupportedError"),
        "reserved_flag": (other(flags=bytes((flags | FLAG_RESERVED,))), "UnsupportedError"),
        "no_layers": (other(flags=bytes((flags & 15,))), "FormatError"),
        "fewer_layers": (pack(replace(base, header=_layers(base, layers - 1), streams=streams[1:])), "FormatError"),
        "more_layers": (pack(replace(base, header=_layers(base, layers + 1), streams=(b"", *streams))), "FormatError"),
        "quality_101": (other(quality=bytes((101,))), "FormatError"),
        "quality_255": (other(quality=bytes((255,))), "FormatError"),
        "states_0": (other(state_bits=bytes(1)), "UnsupportedError"),
        "states_18": (other(state_bits=bytes((18,))), "UnsupportedError"),
        "no_width": (other(width=b"\0"), "FormatError"),
        "no_height": (other(height=b"\0"), "FormatError"),
        "side_too_long": (other(width=varint(MAX_SIDE + 1), height=b"\1"), "LimitError"),
        "side_of_35_bits": (other(height=varint((1 << 35) - 1)), "LimitError"),
        "too_many_pixels": (other(width=varint(MAX_SIDE), height=varint(MAX_SIDE)), "LimitError"),
        "padded_varint": (other(width=varint(header.width, padding=1)), "FormatError"),
        "padded_varint_zero": (other(height=varint(0, padding=1)), "FormatError"),
        "too_long_varint": (other(width=b"\xff" * 5 + b"\1"), "FormatError"),
        "padded_length": (other(lengths=padded), "FormatError"),
        "offsets_zero": (offset(*[0] * layers), "FormatError"),
        "offset_41": (offset(*[0] * (layers - 1), 41), "FormatError"),
        "offset_minus_41": (offset(-41, *[0] * (layers - 1)), "FormatError"),
        "offset_minus_128": (offset(*[-128] * layers), "FormatError"),
        "lengths_beyond_file": (other(lengths=varint(len(data)) * (layers - 1)), "FormatError"),
        "lengths_of_gigabytes": (other(lengths=varint((1 << 35) - 1) * (layers - 1)), "FormatError"),
        "chunks_flagged_none_there": (section(), "FormatError"),
        "chunks_beyond_file": (section(chunk(b"note", b""), declared=len(data)), "FormatError"),
        "chunk_beyond_section": (section(b"note" + varint(9) + b"short"), "FormatError"),
        "chunk_of_gigabytes": (section(b"note" + varint((1 << 35) - 1)), "FormatError"),
        "chunk_without_length": (section(b"note"), "FormatError"),
        "chunk_name_cut": (section(b"no"), "FormatError"),
        "chunk_name_digit": (section(chunk(b"not1", b"")), "FormatError"),
        "chunk_name_not_ascii": (section(chunk("n\u00e9t".encode(), b"")), "FormatError"),
        "chunk_twice": (section(chunk(ICC, b"a"), chunk(ICC, b"a")), "FormatError"),
        "chunk_critical_unknown": (section(chunk(b"NEWS", b"a")), "UnsupportedError"),
        "alpha_empty": (alpha(b""), "FormatError"),
        "alpha_not_png": (alpha(b"no PNG at all"), "FormatError"),
        "alpha_cut": (alpha(plane[: len(plane) // 2]), "FormatError"),
        "alpha_too_high": (alpha(pack_alpha(steep)), "FormatError"),
        "alpha_too_narrow": (alpha(pack_alpha(steep[1:, 1:])), "FormatError"),
        "other_model": (other(fingerprint=bytes(byte ^ 255 for byte in header.fingerprint)), "ModelError"),
        "other_latents": (other(latent_hash=no_hash), "MismatchError"),
    }


def _layers(base: Container, count: int):
    return replace(base.header, offsets=(0,) * count)


def damaged(data: bytes, codec: Codec) -> dict[str, bytes]:
    """Name -> file with a right checksum whose streams are not what the encoder wrote."""
    base = parse(data)

    def with_stream(layer: int, stream: bytes) -> bytes:
        return pack(replace(base, streams=(*base.streams[:layer], stream, *base.streams[layer + 1 :])))

    made = {}
    for layer, stream in enumerate(base.streams):
        generator = random.Random(layer)

        def noise(length: int = max(len(stream), 8), layer=layer, generator=generator) -> bytes:
            return with_stream(layer, generator.randbytes(length))

        made[f"noise_in_layer_{layer + 1}"] = first_refused(noise, codec)
    longest = max(range(len(base.streams)), key=lambda layer: len(base.streams[layer]))
    stream = base.streams[longest]
    made["stream_cut"] = with_stream(longest, stream[: len(stream) // 2])
    made["stream_gone"] = with_stream(longest, b"")
    flipped = bytes((stream[0] ^ 1,)) + stream[1:]
    made["stream_flipped_bit"] = with_stream(longest, flipped)
    made["all_streams_gone"] = pack(replace(base, streams=(b"",) * len(base.streams)))
    made["all_streams_ones"] = pack(replace(base, streams=(b"\xff" * 16,) * len(base.streams)))
    quality = base.header.quality + (1 if base.header.quality < 100 else -1)
    made["other_quality"] = pack(replace(base, header=replace(base.header, quality=quality)))
    return made


def first_refused(make: Callable[[], bytes], codec: Codec) -> bytes:
    """A layer that takes a few bits may by chance survive noise."""
    while True:
        data = make()
        if error_of(codec, data) is not None:
            return data


def error_of(codec: Codec, data: bytes) -> str | None:
    try:
        codec.decode(data)
    except HvcompressError as error:
        return type(error).__name__
    return None


def main() -> None:
    codec = load_model(device="cpu")
    data = BASE.read_bytes()
    if error_of(codec, data) is not None:
        raise SystemExit(f"{BASE} does not decode with model {codec.name}: make the golden files first")
    files = {name: (made, [error]) for name, (made, error) in cases(data).items()}
    files |= {name: (made, DAMAGED) for name, made in damaged(data, codec).items()}
    for name, (made, errors) in files.items():
        if error_of(codec, made) not in errors:
            raise SystemExit(f"{name}: {error_of(codec, made)} instead of {' or '.join(errors)}")
    ERRORS.mkdir(exist_ok=True)
    for old in ERRORS.glob("*.hvci"):
        old.unlink()
    for name, (made, _) in files.items():
        (ERRORS / f"{name}.hvci").write_bytes(made)
    rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(errors)}" for name, (_, errors) in files.items())
    (ERRORS / "index.json").write_text("{\n" + rows + "\n}\n")


if __name__ == "__main__":
    main()
