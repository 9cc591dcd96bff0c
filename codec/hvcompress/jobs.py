"""Inputs, and where their results go: single files, several into a folder, whole folders of them."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from . import files
from .console import read_standard_input, write_standard_output
from .container import MAGIC
from .errors import InputError, OutputError, UsageError

STANDARD = "-"  # as an input standard input, as an output standard output
# What is taken for an image in a folder; one that is named is read whatever its name.
IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .webp .tif .tiff .bmp .ppm .pgm .pnm .gif .avif .heic .heif .jp2 .tga".split()
)


@dataclass(frozen=True)
class Job:
    """One input and where its result goes."""

    source: str  # path or STANDARD
    output: str  # path or STANDARD
    makes_folder: bool = False  # of the output, if it is not there

    @property
    def name(self) -> str:
        return "standard input" if self.source == STANDARD else self.source


@dataclass(frozen=True)
class Inputs:
    """What a command was given.

    sources: files, and with `recursive` folders, which stand for all files in them with one of `suffixes`.
    output: a file, an existing folder, STANDARD, or None: beside each input.
    output_folder: instead of `output` a folder, made if need be, in which folders among the sources are mirrored.
    """

    sources: Sequence[str]
    output: str | None = None
    output_folder: str | None = None
    recursive: bool = False
    suffixes: Collection[str] = IMAGE_SUFFIXES


def jobs_for(inputs: Inputs, suffix: str) -> list[Job]:
    """Name every output, which ends in `suffix`.

    Of files in a folder whose outputs would have one name, as of a.png and a.jpg, each keeps its whole name: a.png.hvci
    and a.jpg.hvci. Raises UsageError where two inputs would still become the same file, InputError for a folder
    without images or one that cannot be read.
    """
    output, folder = inputs.output, inputs.output_folder
    if folder is None and output not in (None, STANDARD) and os.path.isdir(output):
        folder = output
    if output is not None and folder is None and (len(inputs.sources) > 1 or inputs.recursive):
        raise UsageError(f"with several inputs -o must be an existing folder, which {output!r} is not")
    if inputs.sources.count(STANDARD) > 1:
        raise UsageError("standard input can be read only once")
    found = list(_files_of(inputs))
    if output is not None and folder is None:
        names = [output] * len(found)
    else:
        names = [_name_of(source, below, folder, suffix) for source, below in found]
    often = Counter(map(_place, names))
    jobs, taken = [], {}
    for (source, below), name in zip(found, names, strict=True):
        if below is not None and often[_place(name)] > 1:
            name = name[: -len(suffix)] + os.path.splitext(source)[1] + suffix
        jobs.append(Job(source, name, makes_folder=inputs.output_folder is not None))
        if name == STANDARD or same_file(source, name):
            continue  # the latter is refused in its turn, and does not stop the others
        place = _place(name)
        if place in taken:
            raise UsageError(f"{taken[place]} and {source} would both be written to {name}")
        taken[place] = source
    return jobs


def _files_of(inputs: Inputs) -> Iterator[tuple[str, str | None]]:
    """Each input file, and its path below the folder that was named (None: it was named itself)."""
    for source in inputs.sources:
        if not inputs.recursive or source == STANDARD or not os.path.isdir(source):
            yield source, None
            continue
        paths = list(_below(source, inputs))
        if not paths:
            raise InputError(f"{source}: there are no such files in this folder: {' '.join(sorted(inputs.suffixes))}")
        yield from ((os.path.join(source, below), below) for below in paths)


def _below(root: str, inputs: Inputs) -> Iterator[str]:
    """Paths of files below a folder, sorted; hidden ones and what is in the output folder are passed over."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: {files.reason(error)}") from error

    ours = None if inputs.output_folder is None else os.path.realpath(inputs.output_folder)
    for folder, folders, names in os.walk(root, onerror=refuse):
        kept = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(name for name in kept if os.path.realpath(os.path.join(folder, name)) != ours)
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in inputs.suffixes:
                yield os.path.relpath(os.path.join(folder, name), root)


def _name_of(source: str, below: str | None, folder: str | None, suffix: str) -> str:
    if source == STANDARD:
        return STANDARD if folder is None else os.path.join(folder, "stdin" + suffix)
    if folder is None:
        return os.path.splitext(source)[0] + suffix
    return os.path.join(folder, os.path.splitext(below or os.path.basename(source))[0] + suffix)


def _place(name: str) -> str:
    """The same for all names of a file. (macOS keeps the case of a name, but as a rule does not go by it.)"""
    if name == STANDARD:
        return name
    place = os.path.normcase(os.path.realpath(name))
    return place.casefold() if sys.platform == "darwin" else place


def same_file(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False


def check(job: Job, force: bool, update: bool = False) -> None:
    """Refuse before the work what would be refused after it.

    force: an output may be overwritten. update: one that is as it should be would not have come here.
    """
    if job.source != STANDARD and os.path.isdir(job.source):
        raise InputError(f"{job.source}: is a directory; -r takes the files in it")
    if job.output == STANDARD:
        if sys.stdout is not None and sys.stdout.isatty() and not force:
            raise UsageError("not writing binary data to a terminal; use -o FILE, or -f to do it all the same")
        return
    if same_file(job.source, job.output):
        raise UsageError("the output would overwrite the input; choose another with -o")
    if os.path.isfile(job.output) and not force:
        why = ", older than its input or not as asked for" if update else ""
        raise UsageError(f"{job.output} exists already{why}; -f overwrites it")
    if job.makes_folder:
        folder = os.path.dirname(job.output) or "."
        try:
            os.makedirs(folder, exist_ok=True)
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot make the folder {folder}: {files.reason(error)}") from error
    files.check_place(job.output)


def read_compressed(source: str) -> bytes:
    """The bytes of an .hvci file, or only the first few where it is none, however large it may be."""
    return read_standard_input(MAGIC) if source == STANDARD else files.read_file(source, MAGIC)


def write(job: Job, data: bytes, force: bool) -> None:
    if job.output == STANDARD:
        write_standard_output(data)
    else:
        files.write_atomically(job.output, data, overwrite=force)
