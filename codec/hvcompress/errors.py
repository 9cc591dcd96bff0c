"""One tree of exceptions. Each class has the exit code that the command line returns for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class HvcompressError(Exception):
    """A check failed; the base of all errors that we foresaw, each with one line for a person as its message."""

    exit_code = 1


class UsageError(HvcompressError):
    """An argument makes no sense, or the output exists (and there is no -f)."""

    exit_code = 2


class InputError(HvcompressError):
    """The input cannot be read or is not an image that Pillow knows."""

    exit_code = 3


class FormatError(HvcompressError):
    """Not an .hvci file, or a damaged, truncated or self-contradictory one."""

    exit_code = 4


class UnsupportedError(FormatError):
    """A well-formed .hvci file that needs a newer version of this program."""

    exit_code = 5


class ModelError(HvcompressError):
    """The model is missing, damaged, or not the one that the file was made with."""

    exit_code = 6


class LimitError(HvcompressError):
    """The picture needs more than the limits, or the free memory, allow; checked before memory is taken."""

    exit_code = 7


class MismatchError(HvcompressError):
    """Decoded latents differ from those the encoder had: this device does not compute what the format requires."""

    exit_code = 8


class OutputError(HvcompressError):
    """The output cannot be written (no permission, disk full, broken pipe)."""

    exit_code = 9


class DeviceError(HvcompressError):
    """The requested device is not there or does not pass the model's self-test."""

    exit_code = 10


class TargetError(HvcompressError):
    """The target cannot be reached: no quality gives this picture such a size, rate or PSNR."""

    exit_code = 11


class HvcompressWarning(RuntimeWarning):
    """Something was done that was not asked for (a GPU not used, metadata left out), and why."""


@contextmanager
def verification() -> Iterator[None]:
    """Within it what has just been encoded is decoded: that it cannot be is a MismatchError."""
    try:
        yield
    except (FormatError, MismatchError) as error:
        raise MismatchError("verification failed: the result does not decode to what was encoded") from error
