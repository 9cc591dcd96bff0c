"""The command line: its arguments, and how a run of it ends. What the commands do is in `commands.py`.

Nothing here imports torch, numpy or Pillow, so that help and argument errors answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Callable
from decimal import Decimal

from . import __version__
from .allocation import ALLOCATIONS
from .batch import cores, wait_briefly
from .commands import (
    code_command,
    decoding_of,
    encoding_of,
    info_command,
    inspect_command,
    models_command,
    rates_command,
    test_command,
)
from .console import (
    any_name_can_be_told,
    complain,
    debugging,
    exit_codes,
    flush_standard_output,
    say_warning,
    shown,
    stopped_in_good_order,
)
from .errors import HvcompressWarning, OutputError, UsageError
from .memory import collect_rarely
from .quality import LEVELS, offset_of, quality_of


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code. Never raises, never prints a traceback unless HVCOMPRESS_DEBUG is set."""
    any_name_can_be_told()
    if not debugging():
        # What libraries have to remark on a picture is either an error, then we say it, or of no concern to a user.
        warnings.simplefilter("ignore")
        logging.getLogger("PIL").setLevel(logging.CRITICAL)
        warnings.filterwarnings("always", category=HvcompressWarning)
        warnings.showwarning = say_warning
    if argv is None:  # this process is ours
        collect_rarely()
        wait_briefly()
    try:
        arguments = sys.argv[1:] if argv is None else argv
        args = parse(arguments or ["--help"])
        args.ends_with_it = argv is None
        with stopped_in_good_order():
            code = args.run(args)
            flush_standard_output()
        return code if arguments else UsageError.exit_code
    except SystemExit as done:  # argparse, after --help and --version
        with contextlib.suppress(OutputError):
            flush_standard_output()
        return (done.code or 0) if arguments else UsageError.exit_code
    except BaseException as error:
        return complain(error)


# --------------------------------------------------------------------------------------------------------------------
# Arguments


class _Parser(argparse.ArgumentParser):
    """Errors are one line, like all our errors, and an abbreviated option never changes its meaning."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str):
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Raises UsageError. What a command does not know is told with that command's name, not with the program's."""
    args, unknown = make_parser().parse_known_args(arguments)
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(map(shown, unknown))} (see {args.prog} --help)")
    return args


def make_parser() -> argparse.ArgumentParser:
    lines = ["example: hvcompress encode photo.png && hvcompress decode photo.hvci -o out.png"]
    lines += ["exit codes (of several files that fail, the first decides):"]
    lines += [f"  {code:3}  {meaning}" for code, meaning in exit_codes().items()]
    lines += ["", "environment: HVCOMPRESS_MODELS (more models), HVCOMPRESS_DEBUG=1 (tracebacks)"]
    parser = _Parser(
        prog="hvcompress",
        description="A learned lossy image codec. Its .hvci files decode alike on every machine.",
        epilog="\n".join(lines),
    )
    parser.add_argument("-V", "--version", action="version", version=f"hvcompress {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str, epilog: str) -> _Parser:
        description = summary[0].upper() + summary[1:] + "."
        made = commands.add_parser(name, help=summary, description=description, epilog=epilog)
        made.set_defaults(run=run, prog=made.prog, ends_with_it=False)  # whether this process ends with the command
        return made

    def quality_argument(made: argparse._ActionsContainer) -> None:
        summary = "0..100, 100 is not lossless (default: 60)"
        made.add_argument("-q", "--quality", type=_quality, metavar="Q", help=summary)

    def beta_arguments(made: _Parser) -> None:
        betas = made.add_mutually_exclusive_group()
        betas.add_argument(
            "--beta",
            type=_betas,
            metavar="B1,B2,...",
            help="rate weight per layer, coarse to fine; > 1: fewer bits",
        )
        betas.add_argument(
            "--allocation",
            choices=ALLOCATIONS,
            metavar="NAME",
            help="betas by name: hyperprior (coarse layers get more bits), balanced or detail (fine ones get more)",
        )

    def output_arguments(made: _Parser, kind: str) -> None:
        places = made.add_mutually_exclusive_group()
        places.add_argument("-o", "--output", metavar="OUT", help="file, folder, or - (default: beside the input)")
        places.add_argument("--output-dir", metavar="DIR", help="folder, made if need be; mirrors folders of inputs")
        made.add_argument("-r", "--recursive", action="store_true", help=f"of folders take all {kind} in them")
        made.add_argument(
            "-u",
            "--update",
            action="store_true",
            help="skip outputs that are up to date",
        )
        made.add_argument("--summary", metavar="FILE", help="write or replace a table of all files, .csv or .json")

    encode = command(
        "encode",
        code_command,
        "compress images to .hvci",
        "example: hvcompress encode -q 40 -o small *.jpg    (small is an existing folder)\n"
        "         curl -s URL | hvcompress encode - | ssh host 'cat > photo.hvci'",
    )
    encode.set_defaults(task_of=encoding_of)
    encode.usage = "%(prog)s [options] INPUT..."  # all of them would fill the screen
    encode.add_argument("input", nargs="+", metavar="INPUT", help="any image that Pillow reads; - is standard input")
    output_arguments(encode, "images")
    rate = encode.add_mutually_exclusive_group()
    quality_argument(rate)
    rate.add_argument("--bpp", type=_positive, metavar="X", help="instead of -q: bits per pixel, found within 1 %%")
    rate.add_argument("--size", type=_size, metavar="SIZE", help="instead: bytes, as 40000, 40k or 1.5M (k is 1000)")
    rate.add_argument("--psnr", type=_positive, metavar="DB", help="instead: PSNR of the RGB picture")
    rate.add_argument(
        "--lambda",
        type=_lambda,
        dest="lmbda",
        metavar="X",
        help="instead: makes bpp + X * MSE smallest, 0.001 to 0.25",
    )
    encode.add_argument("--strict", action="store_true", help="never exceed --bpp or --size, never fall below --psnr")
    beta_arguments(encode)
    encode.add_argument(
        "--effort", type=_effort, default=1, metavar="1..9", help="spend time on a smaller file (default: 1)"
    )
    encode.add_argument(
        "--no-verify",
        action="store_true",
        help="do not decode the result to check it (up to effort 3)",
    )

    decode = command(
        "decode",
        code_command,
        "decompress .hvci files to images",
        "example: hvcompress decode photo.hvci -o photo.png\n"
        "         hvcompress decode --format ppm - < photo.hvci | display -",
    )
    decode.set_defaults(task_of=decoding_of)
    decode.usage = encode.usage
    decode.add_argument("input", nargs="+", metavar="INPUT", help=".hvci file; - is standard input")
    output_arguments(decode, ".hvci files")
    decode.add_argument("--format", metavar="NAME", help="png, ppm, jpg, webp, tif, bmp, avif (default: OUT's, or png)")
    decode.add_argument(
        "--bit-depth", type=_bits, default=8, metavar="8|16", help="per sample; 16 for png and ppm only"
    )
    decode.add_argument(
        "--crop",
        type=_crop,
        metavar="X,Y,W,H",
        help="a part: left, top, width, height; saves time if the picture is large",
    )
    decode.add_argument("--layers", type=_layers, metavar="K", help="a preview, from the K coarsest layers alone")
    decode.add_argument("--partial", action="store_true", help="decode what is whole of a truncated file, unchecked")

    rates = command(
        "rates",
        rates_command,
        "say how many bits each layer takes, and draw where",
        "An image is first encoded, in memory; -q, --beta and --allocation are for that.\n"
        "`estimate` is the information under the model's tables, `over` what the stream\n"
        "takes beyond it. With --json one object per line and input, with the keys\n"
        "  file, width, height, quality, model, file_bytes, bpp (of the whole file),\n"
        "  bits and estimated_bits (of all layers), layers (of each, coarse to fine:\n"
        "  layer, stride, offset, beta, bits, bpp, share, cumulative, estimated_bits),\n"
        "  maps (of each: file, white in bits per pixel; black is 0).\n\n"
        "example: hvcompress rates photo.png -q 40 --allocation detail --maps .",
    )
    rates.add_argument("input", nargs="+", metavar="INPUT", help=".hvci file or image; - is standard input")
    quality_argument(rates)
    beta_arguments(rates)
    rates.add_argument("--maps", metavar="DIR", help="draw INPUT.layer-N.png and INPUT.sum.png in this existing folder")
    rates.add_argument("-f", "--force", action="store_true", help="overwrite existing maps")
    rates.add_argument("--json", action="store_true", help="one JSON object per line: see below")

    inspect = command(
        "inspect",
        inspect_command,
        "draw up an HTML page about an .hvci file",
        "The page shows the picture from 1, 2, ... layers, the rate of each layer, and\n"
        "where its bits are; with --original also both pictures beside each other, PSNR,\n"
        "and the best JPEG and WebP of as many bytes. It is one file, without links.\n\n"
        "example: hvcompress inspect photo.hvci --original photo.png && open photo.html",
    )
    inspect.add_argument("input", metavar="FILE", help=".hvci file; - is standard input")
    inspect.add_argument("-o", "--output", metavar="OUT", help="file, folder, or - (default: beside FILE, as .html)")
    inspect.add_argument("--original", metavar="IMAGE", help="the image that FILE was made from")

    for made in (encode, decode, inspect):
        made.add_argument(
            "--memory-limit",
            type=_bytes,
            metavar="SIZE",
            help="refuse a picture that needs more, as 500M or 6G, k being 1024 (default: what is free)",
        )
        made.add_argument("-f", "--force", action="store_true", help="overwrite existing files")
        made.add_argument("--quiet", action="store_true", help="print nothing but errors")
    for made in (encode, decode):
        made.add_argument("--strip", action="store_true", help="leave out EXIF and XMP")
        made.add_argument("--strip-icc", action="store_true", help="leave out the profile: colours are taken for sRGB")
        made.add_argument(
            "-j", "--jobs", type=_jobs, default=1, metavar="N", help="files at a time; 0 is one per core (default: 1)"
        )

    info = command(
        "info",
        info_command,
        "say what is in .hvci files, without decoding them",
        "With --json one object per line and file, with the keys\n"
        "  file, version, width, height, gray, alpha, icc, exif, xmp (if they are there),\n"
        "  quality, state_bits (of the trellis), offsets, fingerprint, header_bytes,\n"
        "  layer_bytes, chunk_bytes, file_bytes, latent_hash,\n"
        "  betas (per layer), model (name if installed, or null), bpp (bits per pixel).\n"
        "Layers are listed coarse to fine. Keys may be added, never renamed. A file that\n"
        "is damaged or truncated is an error.\n\n"
        "example: hvcompress info --json *.hvci | jq .bpp",
    )
    info.add_argument("input", nargs="+", metavar="FILE", help=".hvci file; - is standard input")

    models = command("models", models_command, "list the installed models", "example: hvcompress models --json")
    for made, contents in ((info, "see below"), (models, "name, fingerprint, parameters, description, path, default")):
        made.add_argument("--json", action="store_true", help=f"one JSON object per line: {contents}")

    test = command(
        "test",
        test_command,
        "check that a model computes on this machine what it must",
        "example: hvcompress test --device cuda",
    )
    shipped, named = "the one shipped", "the one the file names"
    models_of = [(encode, shipped), (decode, named), (rates, f"{named}, or shipped"), (inspect, named), (test, shipped)]
    for made, default in models_of:
        made.add_argument("--model", metavar="NAME|DIR", help=f"name or folder (default: {default})")
        made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    return parser


def _quality(text: str) -> int:
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or int(text) >= LEVELS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {LEVELS - 1}, not {text!r}")
    return int(text)


def _positive(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}", text, re.ASCII) or not float(text):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return float(text)


def _lambda(text: str) -> float:
    value = _positive(text)
    try:
        quality_of(value)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


def _size(text: str) -> int:
    """Bytes, in units of 1000, as file sizes mostly are; those of memory (`_bytes`) are of 1024."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)([KMG]?)B?", text.upper(), re.ASCII)
    size = found and int(Decimal(found[1]) * 1000 ** " KMG".index(found[2] or " "))
    if not size:
        raise argparse.ArgumentTypeError(f"must be a size as in 40000, 40k or 1.5M, not {text!r}")
    return size


def _bits(text: str) -> int:
    if text not in ("8", "16"):
        raise argparse.ArgumentTypeError(f"must be 8 or 16, not {text!r}")
    return int(text)


def _effort(text: str) -> int:
    if not re.fullmatch("[1-9]", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 9, not {text!r}")
    return int(text)


def _layers(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,2}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def _crop(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,5}(,\d{1,5}){3}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be four whole numbers separated by commas, not {text!r}")
    return tuple(map(int, text.split(",")))


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([KMGT]?)I?B?", text.upper(), re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"must be a size as in 6G or 500M, not {text!r}")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def _jobs(text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(text) or cores()


def _betas(text: str) -> tuple[int, ...]:
    """Comma-separated betas -> quality offsets."""
    try:
        return tuple(offset_of(float(part)) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers separated by commas, not {text!r}") from None
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
