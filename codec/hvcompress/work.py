"""What the commands `encode` and `decode` do with a file: read, compute, write, and tell what came of it.

A `Job` and the options are plain values, so the same work can be done by threads of a process (`commands.py`) and by
the machines of a cluster (`cluster.py`). Nothing heavy is imported before a file has been read, so that a bad input is
told at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from .allocation import allocation_offsets
from .console import read_standard_input
from .container import Container, FileInfo, parse, parse_prefix, read_info
from .errors import FormatError, HvcompressError, UnsupportedError
from .jobs import STANDARD, Job, check, read_compressed, write
from .memory import give_back
from .model import find_model, folder_for
from .plan import padded
from .targets import Target, encode_to

if TYPE_CHECKING:
    from .model import ModelFolder
    from .picture import Picture

SMALL = 1 << 17  # pixels, with padding, that numpy codes before torch, which has to be imported first, has done so
Progress = Callable[[int, int], None]  # is told how many of how many steps are done, from 0

DONE, UP_TO_DATE, FAILED = "done", "up to date", "failed"


@dataclass(frozen=True)
class Common:
    """Options of both commands."""

    model: str | None = None
    device: str = "auto"
    strip: bool = False  # EXIF and XMP
    strip_icc: bool = False
    memory_limit: int | None = None
    force: bool = False  # overwrite
    update: bool = False  # leave an output that is there, as asked for and not older than its input
    alone: bool = False  # no other file will be coded by this process


@dataclass(frozen=True)
class Encoding(Common):
    rate: int | Target = 60  # a quality, or what to reach
    offsets: tuple[int, ...] | None = None  # per layer
    allocation: str | None = None  # instead of offsets
    effort: int = 1
    verify: bool = True


@dataclass(frozen=True)
class Decoding(Common):
    suffix: str | None = None  # the kind of image; None: as the output's name says
    layers: int | None = None
    crop: tuple[int, int, int, int] | None = None
    partial: bool = False
    bits: int = 8  # per sample


@dataclass(frozen=True)
class Outcome:
    """What became of a file; what is not known, or makes no sense, is None."""

    file: str
    output: str
    status: str = DONE
    width: int | None = None
    height: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    bpp: float | None = None  # of the compressed file
    quality: int | None = None
    psnr: float | None = None  # of the RGB picture, where it was verified
    seconds: float | None = None
    error: str | None = None
    exit_code: int = 0
    note: str | None = None  # for a person


def encode_file(options: Encoding, job: Job, progress: Progress | None = None) -> Outcome:
    """Raises HvcompressError."""
    from .image_reading import read_picture
    from .metrics import psnr
    from .picture import stripped

    if options.update and (found := _found(options, job)) is not None:
        return found
    check(job, options.force, options.update)
    source = read_standard_input() if job.source == STANDARD else job.source
    before = _size_of(source)
    picture = read_picture(source, memory_limit=options.memory_limit)
    picture = stripped(picture, options.strip, options.strip_icc)
    give_back()  # of a large picture Pillow had a copy of its own
    data, decoded, seconds = _encoded(options, picture, progress)
    write(job, data, options.force)
    decibels = None if decoded is None else psnr(picture.pixels, decoded.pixels)
    return replace(_described(job, read_info(data)), bytes_before=before, psnr=decibels, seconds=seconds)


def _encoded(options: Encoding, picture: Picture, progress: Progress | None) -> tuple[bytes, Picture | None, float]:
    """The file, the decoded picture if it is verified, and the seconds that it took without loading the model."""
    height, width = picture.pixels.shape[:2]
    if options.effort == 1 and not isinstance(options.rate, Target) and _without_torch(options, width, height):
        from .portable_encoder import PortableEncoder

        encoder = PortableEncoder(find_model(options.model))
        offsets = offsets_for(encoder.strides, options.offsets, options.allocation)
        began = time.perf_counter()
        made = encoder.encode(picture, options.rate, offsets, verify=options.verify, memory_limit=options.memory_limit)
        return *made, time.perf_counter() - began
    from .loading import load_model

    codec = load_model(options.model, options.device)
    codec.record_graphs = True
    encode = partial(encode_to, codec) if isinstance(options.rate, Target) else codec.encode
    encoded = encode(
        picture,
        options.rate,
        offsets_for(codec.strides, options.offsets, options.allocation),
        effort=options.effort,
        verify=options.verify,
        memory_limit=options.memory_limit,
        progress=progress,
    )
    return encoded.data, encoded.picture, sum(encoded.seconds.values())


def decode_file(options: Decoding, job: Job, progress: Progress | None = None) -> Outcome:
    """Raises HvcompressError."""
    from .deep import check_deep_suffix, deep_bytes
    from .image_writing import check_suffix, image_bytes, to_pil
    from .picture import stripped

    if options.update and _is_newer(job):
        return Outcome(job.source, job.output, UP_TO_DATE)
    check(job, options.force, options.update)
    kind = options.suffix
    if kind is None:
        kind = ".png" if job.output == STANDARD else check_suffix(os.path.splitext(job.output)[1])
    if options.bits == 16:
        check_deep_suffix(kind)
    data = read_compressed(job.source)
    container = parse_prefix(data) if options.partial else _parsed(data)
    header = container.header
    picture, seconds = _decoded(options, data, container, progress)
    height, width = picture.pixels.shape[:2]
    picture = stripped(picture, options.strip, options.strip_icc)
    if options.bits == 16:
        written = deep_bytes(picture, kind)
    else:
        if kind != ".ppm":  # of large pictures there should be no more copies in memory than needed
            picture = to_pil(picture)
        written = image_bytes(picture, kind)
    write(job, written, options.force)
    there, meant = len(container.streams), len(header.offsets)
    note = None if there == meant else f"truncated, {min(options.layers or there, there)} of {meant} layers decoded"
    return Outcome(
        job.source,
        job.output,
        width=width,
        height=height,
        bytes_before=len(data),
        bytes_after=len(written),
        bpp=8 * len(data) / (header.width * header.height),
        quality=header.quality,
        seconds=seconds,
        note=note,
    )


def _decoded(options: Decoding, data: bytes, container: Container, progress: Progress | None) -> tuple[Picture, float]:
    """The picture, and the seconds that it took without loading the model."""
    header, whole = container.header, (options.layers, options.crop, options.partial) == (None, None, False)
    if whole and _without_torch(options, header.width, header.height):
        from .portable import PortableDecoder

        decoder = PortableDecoder(folder_for(header, options.model))
        began = time.perf_counter()
        picture = decoder.decode(container, options.bits, options.memory_limit)
        return picture, time.perf_counter() - began
    from .loading import codec_for

    codec = codec_for(data, options.device, options.model, partial=options.partial)
    codec.record_graphs = True
    began = time.perf_counter()
    picture = codec.decode(
        data,
        options.layers,
        options.crop,
        partial=options.partial,
        bits=options.bits,
        memory_limit=options.memory_limit,
        progress=progress,
    )
    return picture, time.perf_counter() - began


def _without_torch(options: Common, width: int, height: int) -> bool:
    """Whether a picture is coded sooner in numpy, since torch, which is several times as fast, is not there yet."""
    small = padded(width) * padded(height) <= SMALL
    there = "torch" in sys.modules or f"{__package__}.loading" in sys.modules
    return small and options.alone and options.device in ("auto", "cpu") and not there


def _parsed(data: bytes) -> Container:
    """Raises FormatError, which also says what can be done with a file that was cut off."""
    try:
        return parse(data)
    except UnsupportedError:
        raise
    except FormatError as error:
        there, meant = 0, 0
        with contextlib.suppress(HvcompressError):
            prefix = parse_prefix(data)
            there, meant = len(prefix.streams), len(prefix.header.offsets)
        hint = f"; --partial decodes the first {there} of its {meant} layers" if there < meant else ""
        raise FormatError(f"{error}{hint}") from error


def offsets_for(
    strides: Sequence[int], offsets: tuple[int, ...] | None, allocation: str | None
) -> tuple[int, ...] | None:
    """Quality offset per layer of those strides, from themselves or the name of an allocation."""
    return offsets if allocation is None else allocation_offsets(allocation, strides)


def _described(job: Job, info: FileInfo) -> Outcome:
    return Outcome(
        job.source,
        job.output,
        width=info.width,
        height=info.height,
        bytes_after=info.file_bytes,
        bpp=8 * info.file_bytes / (info.width * info.height),
        quality=info.quality,
    )


def _found(options: Encoding, job: Job) -> Outcome | None:
    """An output that is there already and what encoding would make, as far as it tells: None where there is none."""
    if not _is_newer(job):
        return None
    model = find_model(options.model)
    try:
        info = read_info(read_compressed(job.output))
    except HvcompressError:
        return None
    there = not (options.strip and (info.exif or info.xmp)) and not (options.strip_icc and info.icc)
    if model.fingerprint.startswith(info.fingerprint) and there and _has_rate(options, model, info):
        return replace(_described(job, info), status=UP_TO_DATE, bytes_before=_size_of(job.source))
    return None


def _has_rate(options: Encoding, model: ModelFolder, info: FileInfo) -> bool:
    """Whether a file is of the quality and betas that are asked for, or about of the size."""
    if isinstance(options.rate, Target):  # of tiny pictures no file may come very near
        target = options.rate
        wanted = target.size if target.size is not None else target.bpp * info.width * info.height / 8
        return 0.95 * wanted - 16 <= info.file_bytes <= (wanted if target.strict else 1.05 * wanted + 16)
    strides = [latent["stride"] for latent in model.config["network"]["latents"]]
    offsets = offsets_for(strides, options.offsets, options.allocation) or (0,) * len(strides)
    return info.quality == options.rate and info.offsets == offsets


def _is_newer(job: Job) -> bool:
    """Whether there is an output, no older than its input. It is whole: it had no name before that."""
    try:
        return os.stat(job.output).st_mtime_ns >= os.stat(job.source).st_mtime_ns
    except (OSError, ValueError):
        return False


def _size_of(source: str | bytes) -> int:
    """Bytes of an input, 0 where it cannot be told: reading it will say why."""
    if isinstance(source, bytes):
        return len(source)
    try:
        return os.path.getsize(source)
    except (OSError, ValueError):
        return 0
