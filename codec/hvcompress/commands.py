"""What the commands do with the arguments that `cli.py` has read: they name files, call the library and report.

Nothing here imports torch, numpy or Pillow before a command needs them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, TextIO

from .console import read_standard_input, say, shown
from .container import MAGIC, FileInfo, read_info
from .errors import DeviceError, HvcompressError, ModelError, UsageError
from .files import is_special, read_file
from .jobs import IMAGE_SUFFIXES, STANDARD, Inputs, Job, check, jobs_for, read_compressed, same_file, write
from .memory import use_memory_again
from .quality import LEVELS, beta_of
from .reporting import Report, code_each, for_each
from .summary import check_summary
from .targets import Target, rate_of
from .work import Decoding, Encoding, Outcome, Progress, decode_file, encode_file, offsets_for

if TYPE_CHECKING:
    from .analysis.rates import LayerRate
    from .picture import Picture

_SUM_MAP = ".sum.png"  # of the map that stands for all maps of an input


def _inputs(args: argparse.Namespace, suffixes: Collection[str]) -> Inputs:
    return Inputs(args.input, args.output, args.output_dir, args.recursive, suffixes)


def _common_options(args: argparse.Namespace, jobs: list[Job]) -> dict:
    names = ("model", "device", "strip", "strip_icc", "memory_limit", "force", "update")
    return {name: getattr(args, name) for name in names} | {"alone": args.ends_with_it and len(jobs) == 1}


@dataclass(frozen=True)
class Task:
    """What `encode` or `decode` was asked for: the same work for many files, wherever it is done (`cluster.py`)."""

    jobs: list[Job]
    work: Callable[..., Outcome]  # (options, job) or (options, job, progress)
    options: Encoding | Decoding
    report: Report
    fatal: tuple[type[Exception], ...]  # after which other files need not be tried


def encoding_of(args: argparse.Namespace) -> Task:
    """Raises HvcompressError."""
    check_summary(args.summary)
    rate = rate_of(args.quality, args.bpp, args.size, args.psnr, args.lmbda, args.strict)
    if args.update and args.psnr is not None:
        raise UsageError("-u cannot tell from a file whether it has the PSNR; -q, --size and --bpp can be told")
    jobs = jobs_for(_inputs(args, IMAGE_SUFFIXES), ".hvci")
    options = Encoding(
        rate=rate,
        offsets=args.beta,
        allocation=args.allocation,
        effort=args.effort,
        verify=not args.no_verify,
        **_common_options(args, jobs),
    )

    def columns(outcome: Outcome) -> list[str]:
        decibels = "-" if outcome.psnr is None else f"{outcome.psnr:.2f} dB"
        found = [f"quality {outcome.quality:3}"] if isinstance(rate, Target) or args.lmbda is not None else []
        return [
            *_size_columns(outcome),
            f"{outcome.bpp:7.3f} bpp",
            f"{decibels:>8}",
            f"{outcome.seconds:6.2f} s",
            *found,
        ]

    report = Report(_report_stream(jobs), args.quiet, columns, args.summary, args.recursive)
    return Task(jobs, encode_file, options, report, (ModelError, DeviceError))


def decoding_of(args: argparse.Namespace) -> Task:
    """Raises HvcompressError."""
    from .deep import check_deep_suffix
    from .image_writing import check_suffix

    check_summary(args.summary)
    suffix = "." + args.format.lower().lstrip(".") if args.format else None
    if suffix is not None:
        check_suffix(suffix)
        if args.bit_depth == 16:
            check_deep_suffix(suffix)
    if args.update and (args.layers, args.crop, args.partial) != (None, None, False):
        raise UsageError("-u cannot tell a preview or a part from a whole picture")
    if args.update and (args.bit_depth, args.strip, args.strip_icc) != (8, False, False):
        raise UsageError("-u cannot tell how an image was written: it goes with neither --bit-depth nor --strip")
    jobs = jobs_for(_inputs(args, (".hvci",)), suffix or ".png")
    options = Decoding(
        suffix=suffix,
        layers=args.layers,
        crop=args.crop,
        partial=args.partial,
        bits=args.bit_depth,
        **_common_options(args, jobs),
    )

    report = Report(_report_stream(jobs), args.quiet, _columns, args.summary, args.recursive)
    return Task(jobs, decode_file, options, report, (DeviceError,))


def code_command(args: argparse.Namespace) -> int:
    """`encode` and `decode`."""
    task = args.task_of(args)
    use_memory_again()
    return code_each(task.jobs, partial(task.work, task.options), args.jobs, task.report, task.fatal)


def _size_columns(outcome: Outcome) -> list[str]:
    size = f"{outcome.width}x{outcome.height}"
    return [f"{size:>11}", f"{outcome.bytes_before:>11,} -> {outcome.bytes_after:>10,} bytes"]


def _columns(outcome: Outcome) -> list[str]:
    return [*_size_columns(outcome), f"{outcome.seconds:6.2f} s"]


def _report_stream(jobs: list[Job]) -> TextIO:
    """Standard output, unless it carries a file."""
    return sys.stderr if any(job.output == STANDARD for job in jobs) else sys.stdout


def info_command(args: argparse.Namespace) -> int:
    names = _model_names()

    def work(job: Job) -> None:
        info = read_info(read_compressed(job.source))
        model = next((name for full, name in names.items() if full.startswith(info.fingerprint)), None)
        if args.json:
            values = {"file": job.source, **asdict(info), "betas": [round(beta_of(o), 3) for o in info.offsets]}
            values.update(model=model, bpp=8 * info.file_bytes / (info.width * info.height))
            say(json.dumps(values), sys.stdout)
        else:
            say(describe(job.name, info, model), sys.stdout)

    return for_each([Job(source, STANDARD) for source in args.input], work)


def rates_command(args: argparse.Namespace) -> int:
    jobs = [Job(source, STANDARD) for source in args.input]
    if args.maps is not None:
        if args.maps == STANDARD or not os.path.isdir(args.maps):
            raise UsageError(f"--maps must name an existing folder, which {args.maps!r} is not")
        jobs = jobs_for(Inputs(args.input, args.maps), _SUM_MAP)  # two inputs that share one map share them all

    def work(job: Job) -> None:
        source = _read_compressed_or_picture(job.source)
        encoded = isinstance(source, bytes)
        if encoded:
            read_info(source)
            if (args.quality, args.beta, args.allocation) != (None, None, None):
                raise UsageError("-q, --beta and --allocation are for images; this file is encoded already")
        if args.maps is not None:
            check(job, args.force)
        from .analysis.rates import layer_rates  # imports torch: only now, so that a bad input is told at once
        from .loading import codec_for, load_model

        codec = codec_for(source, args.device, args.model) if encoded else load_model(args.model, args.device)
        maps = []
        if args.maps is not None:
            stem = job.output.removesuffix(_SUM_MAP)
            maps = [Job(job.source, f"{stem}.layer-{number}.png") for number in range(1, codec.layers + 1)] + [job]
            for made in maps:
                check(made, args.force)
        data = source
        if not encoded:
            quality = 60 if args.quality is None else args.quality
            data = codec.encode(
                source, quality, offsets_for(codec.strides, args.beta, args.allocation), verify=False
            ).data
        rates, info = layer_rates(codec, data), read_info(data)
        drawn = _draw_maps(rates, info, maps, args.force) if maps else []
        if args.json:
            say(json.dumps({"file": job.source, **_rates_values(rates, info, codec.name), "maps": drawn}), sys.stdout)
        else:
            say(describe_rates(job.name, rates, info, codec.name), sys.stdout)
            for made in drawn:
                say(f"  {shown(made['file'])}: black 0, white {made['white']:.4g} bits per pixel", sys.stdout)

    use_memory_again()
    return for_each(jobs, work, (DeviceError,))


def _read_compressed_or_picture(source: str) -> bytes | Picture:
    """The bytes of an .hvci file; of any other, the picture in it."""
    once = source == STANDARD or is_special(source)  # what can be read only once is read to its end
    data = read_standard_input() if source == STANDARD else read_file(source, b"" if once else MAGIC)
    if data.startswith(MAGIC):
        return data
    from .image_reading import read_picture

    return read_picture(data if once else source)


def _draw_maps(rates: list[LayerRate], info: FileInfo, maps: list[Job], force: bool) -> list[dict]:
    """Write a PNG per job; returns the path and the scale of each."""
    from PIL import Image

    from .analysis.rates import heat_maps
    from .image_writing import image_bytes

    drawn = []
    for made, heat in zip(maps, heat_maps(rates, info.height, info.width), strict=True):
        write(made, image_bytes(Image.fromarray(heat.pixels)), force)
        drawn.append({"file": made.output, "white": heat.white})
    return drawn


def _rates_values(rates: list[LayerRate], info: FileInfo, model: str) -> dict:
    """What `rates --json` says of a file."""
    layers = []
    for rate in rates:
        layers.append({name: value for name, value in vars(rate).items() if name != "position_bits"})
        layers[-1]["beta"] = round(beta_of(rate.offset), 3)
    return {
        "width": info.width,
        "height": info.height,
        "quality": info.quality,
        "model": model,
        "file_bytes": info.file_bytes,
        "bpp": 8 * info.file_bytes / (info.width * info.height),
        "bits": sum(rate.bits for rate in rates),
        "estimated_bits": sum(rate.estimated_bits for rate in rates),
        "layers": layers,
    }


def describe_rates(name: str, rates: list[LayerRate], info: FileInfo, model: str) -> str:
    """What `rates` prints of a file."""

    def row(bits: int, bpp: float, share: float, cumulative: str, estimate: float) -> str:
        over = f"{100 * (bits / estimate - 1):+.2f} %" if estimate else "-"
        return f"{bits:>12,}  {bpp:8.4f}  {100 * share:5.1f} %  {cumulative:>10}  {estimate:>14,.1f}  {over:>8}"

    lines = [
        f"{shown(name)}: {info.width}x{info.height}, quality {info.quality}, model {model}, "
        f"{info.file_bytes:,} bytes, {sum(info.layer_bytes):,} of them layers",
        "  layer  stride  beta          bits       bpp    share  cumulative        estimate      over",
    ]
    for rate in rates:
        figures = row(rate.bits, rate.bpp, rate.share, f"{100 * rate.cumulative:.1f} %", rate.estimated_bits)
        lines.append(f"  {rate.layer:>5}  {rate.stride:>6}  {beta_of(rate.offset):4.2f}  {figures}")
    bits = sum(rate.bits for rate in rates)
    bpp, share = bits / (info.width * info.height), sum(rate.share for rate in rates)
    lines.append(f"  {'sum':>5}  {'':12}  {row(bits, bpp, share, '', sum(rate.estimated_bits for rate in rates))}")
    return "\n".join(lines)


def inspect_command(args: argparse.Namespace) -> int:
    jobs = jobs_for(Inputs([args.input], args.output), ".html")

    def work(job: Job, progress: Progress) -> Outcome:
        from .image_reading import read_picture

        check(job, args.force)
        if args.original is not None and same_file(args.original, job.output):
            raise UsageError("the output would overwrite the original; choose another with -o")
        data = read_compressed(job.source)
        info = read_info(data)
        original = None if args.original is None else read_picture(args.original, memory_limit=args.memory_limit)
        from .analysis.report import report  # imports torch: only now, so that a bad input is told at once
        from .loading import codec_for

        codec = codec_for(data, args.device, args.model)
        began = time.perf_counter()
        title = os.path.basename(job.name)
        page = report(codec, data, title, original, memory_limit=args.memory_limit, progress=progress).encode()
        write(job, page, args.force)
        seconds = time.perf_counter() - began
        sizes = {"bytes_before": len(data), "bytes_after": len(page)}
        return Outcome(job.source, job.output, width=info.width, height=info.height, seconds=seconds, **sizes)

    use_memory_again()
    return code_each(jobs, work, 1, Report(_report_stream(jobs), args.quiet, _columns), (DeviceError,))


def _model_names() -> dict[str, str]:
    """Fingerprint -> name of the installed models; a damaged one is not the concern of `info`."""
    from .model import find_models

    with contextlib.suppress(ModelError):
        return {model.fingerprint: model.name for model in find_models()}
    return {}


def describe(name: str, info: FileInfo, model: str | None) -> str:
    """What `info` prints of a file."""
    extras = {"alpha": info.alpha, "ICC profile": info.icc, "EXIF": info.exif, "XMP": info.xmp}
    kind = ("gray" if info.gray else "RGB") + (" with " if any(extras.values()) else "")
    kind += ", ".join(name for name, there in extras.items() if there)
    parts = [("header", info.header_bytes)]
    for number, (size, offset) in enumerate(zip(info.layer_bytes, info.offsets, strict=True), 1):
        parts.append((f"layer {number}" + (f", beta {beta_of(offset):.2f}" if offset else ""), size))
    parts += [(f"chunk {tag}", size) for tag, size in info.chunk_bytes.items()]
    rest = info.file_bytes - sum(size for _, size in parts)
    if rest:
        parts.append(("chunk headers", rest))
    width = max(len(label) for label, _ in parts)
    rows = [f"{label:{width}}  {size:>11,} bytes  {100 * size / info.file_bytes:5.1f} %" for label, size in parts]
    lines = [
        f"{shown(name)}: {info.width}x{info.height} {kind}, quality {info.quality}",
        f"  file     {info.file_bytes:,} bytes, {8 * info.file_bytes / (info.width * info.height):.4f} bpp, "
        f"format version {info.version}",
        f"  model    {info.fingerprint} ({model or 'not installed'})",
        f"  trellis  {1 << info.state_bits:,} states",
        f"  latents  {info.latent_hash}",
    ]
    return "\n".join(lines) + "\n" + textwrap.indent("\n".join(rows), "  ")


def models_command(args: argparse.Namespace) -> int:
    from .model import DEFAULT_MODEL, find_models

    models = find_models()
    if not models:
        raise ModelError("no model is installed; $HVCOMPRESS_MODELS may name a folder of model folders")
    width = max(len(model.name) for model in models)
    for model in models:
        values = {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "parameters": model.parameters,
            "description": model.description,
            "path": str(model.path),
            "default": model.name == DEFAULT_MODEL,
        }
        if args.json:
            say(json.dumps(values), sys.stdout)
        else:
            mark = "*" if values["default"] else " "
            columns = f"{model.fingerprint[:8]}  {model.parameters / 1e6:.1f} M parameters  {shown(model.description)}"
            say(f"{mark} {model.name:{width}}  {columns}", sys.stdout)
    return 0


def test_command(args: argparse.Namespace) -> int:
    import numpy as np

    from .loading import load_model
    from .metrics import psnr

    codec = load_model(args.model, args.device)
    say(f"ok  model {codec.name} ({codec.fingerprint[:8]}) passes its self-test on {codec.device}", sys.stdout)
    picture = _test_picture()
    for quality in (0, 30, 60, LEVELS - 1):
        encoded = codec.encode(picture, quality)
        decoded = codec.decode(encoded.data)
        if not np.array_equal(decoded.alpha, picture.alpha):
            raise HvcompressError(f"quality {quality}: the alpha plane came back changed")
        if not np.array_equal(decoded.pixels, encoded.picture.pixels):
            raise HvcompressError(f"quality {quality}: two decodings of the same bytes differ")
        db = psnr(picture.pixels, decoded.pixels)
        if db < 20:
            raise HvcompressError(f"quality {quality}: the picture came back with only {db:.2f} dB")
        say(f"ok  quality {quality:3}: {len(encoded.data):>6,} bytes, {db:.2f} dB, decoded as encoded", sys.stdout)
    return 0


def _test_picture() -> Picture:
    """A smooth picture of odd size with an alpha plane."""
    import numpy as np

    from .picture import Picture

    y, x = np.mgrid[0:93, 0:131]
    waves = [np.sin(x / 17 + phase) * np.cos(y / 23 - phase) for phase in (0.0, 0.7, 1.4)]
    pixels = np.rint(127.5 + 90 * np.stack(waves, axis=2)).astype(np.uint8)
    return Picture(pixels, alpha=(x + y).astype(np.uint8))
