"""What the command line shares with the terminal: standard streams, lines of text, errors, exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import TextIO

from . import errors
from .errors import HvcompressError, InputError, LimitError, OutputError

UNEXPECTED = 70  # as in sysexits.h (EX_SOFTWARE)
HUNG_UP, INTERRUPTED, TERMINATED = 129, 130, 143  # 128 + SIGHUP, SIGINT, SIGTERM, as a shell reports their victims
_OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)  # torch's words


def exit_codes() -> dict[int, str]:
    """Exit code -> meaning: the first clause of each error class's docstring, so that help cannot drift from code."""
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HvcompressError)
    ]
    meanings = {0: "Success", UNEXPECTED: "A fault in this program", INTERRUPTED: "Interrupted (Ctrl-C)"}
    meanings |= {HUNG_UP: "The terminal was closed (SIGHUP)", TERMINATED: "Asked to stop (SIGTERM)"}
    for kind in classes:
        meanings[kind.exit_code] = re.split(r" \(|[;:.](?:\s|$)", " ".join(kind.__doc__.split()))[0]
    return dict(sorted(meanings.items()))


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP; ends a command as Ctrl-C does, so that nothing half-made stays behind."""

    def __init__(self, number: int):
        self.exit_code, self.text = 128 + number, "terminated" if number == signal.SIGTERM else "hung up"


@contextlib.contextmanager
def stopped_in_good_order() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise Stopped, unless whoever started this process had them ignored (nohup)."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # others may not
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def debugging() -> bool:
    return bool(os.environ.get("HVCOMPRESS_DEBUG"))


def shown(name: str) -> str:
    """A name on one line, without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def any_name_can_be_told() -> None:
    """Have standard output and error write what their encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # None, or replaced by something simpler
            stream.reconfigure(errors="backslashreplace")


def say(line: str, stream: TextIO | None) -> None:
    """Print a line; nowhere if the stream was closed from outside (None, which `print` would take for stdout)."""
    if stream is not None:
        with contextlib.suppress(OSError) if stream is sys.stderr else _output_errors():
            print(line, file=stream, flush=True)


def say_warning(message: Warning | str, *where: object, **more: object) -> None:
    """In place of `warnings.showwarning`: one line, without the place in the program that it comes from."""
    say(f"hvcompress: {shown(str(message))}", sys.stderr)


class ProgressLine:
    """A line on a terminal's standard error that is told how many of how many steps are done, from 0."""

    def __init__(self, label: str):
        self._label, self._began = label, 0.0

    def __call__(self, done: int, total: int) -> None:
        if done == 0:
            self._began = time.monotonic()
        bar = "=" * (20 * done // total)
        left = f"{(time.monotonic() - self._began) / done * (total - done):.0f} s left" if done else ""
        self._put(f"{self._label}  [{bar:20}] {done}/{total}  {left}")

    def clear(self) -> None:
        """Take it back, until there is more to tell."""
        if self._began:
            self._put("")

    def _put(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress_line(name: str, *, quiet: bool) -> Iterator[ProgressLine | None]:
    """A line that vanishes at the end. Yields None where nobody looks."""
    watched = False
    with contextlib.suppress(AttributeError, OSError, ValueError):  # standard error is gone, or closed
        watched = sys.stderr.isatty()
    if quiet or not watched:
        yield None
        return
    room = max(shutil.get_terminal_size().columns - 48, 8)  # for the name: a line that wraps cannot be taken back
    line = ProgressLine(name if len(name) <= room else "..." + name[3 - room :])
    try:
        yield line
    finally:
        line.clear()


def told(error: BaseException) -> tuple[int, str]:
    """Exit code of an error, and what to say of it in one line."""
    if isinstance(error, HvcompressError):
        return error.exit_code, str(error)
    if isinstance(error, Stopped):
        return error.exit_code, error.text
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return LimitError.exit_code, "not enough memory for this picture"
    lines = str(error).strip().splitlines() or [""]
    return UNEXPECTED, f"unexpected {type(error).__name__}: {lines[0]} (HVCOMPRESS_DEBUG=1 shows more)"


def complain(error: BaseException, name: str = "") -> int:
    """Say on standard error, in one line, what went wrong with the file of that name; returns the exit code."""
    code, text = told(error)
    if name and not text.startswith(name + ": "):
        text = f"{name}: {text}"
    if debugging():
        say("".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip(), sys.stderr)
    say(f"hvcompress: {shown(text)}", sys.stderr)
    return code


def read_standard_input(magic: bytes = b"") -> bytes:
    """All of it, if it starts with `magic`, else the first bytes alone. Raises InputError."""
    if sys.stdin is None:
        raise InputError("standard input is closed")
    try:
        head = _read_fully(len(magic)) if magic else b""
        return head + _read_fully() if head == magic else head
    except OSError as error:
        raise InputError(f"standard input: {error.strerror}") from error


def _read_fully(size: int = -1) -> bytes:
    """Up to so many bytes of standard input (-1: all). Raises OSError, also where it does not wait for more to come."""
    stream, waits = sys.stdin.buffer, True
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # Windows; not a file
        waits = os.get_blocking(stream.fileno())
    if not waits:
        raise BlockingIOError(errno.EAGAIN, "it is set not to wait for data (O_NONBLOCK)")
    return stream.read(size)


def write_standard_output(data: bytes) -> None:
    """Raises OutputError."""
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    rest = memoryview(data)
    with _output_errors():
        while rest:  # with PYTHONUNBUFFERED there is no buffer, and a call may write only a part and say no more
            written = sys.stdout.buffer.write(rest)
            if written is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            rest = rest[written:]
        sys.stdout.buffer.flush()


def flush_standard_output() -> None:
    """Raises OutputError."""
    if sys.stdout is not None:
        with _output_errors():
            sys.stdout.flush()


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    """A reader that went away or a full disk behind standard output is an OutputError, and is told once."""
    try:
        yield
    except OSError as error:
        # Python would try once more to flush while it exits, and complain in its own words.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        gone = isinstance(error, BrokenPipeError)
        raise OutputError(f"standard output: {'nobody reads it any more' if gone else error.strerror}") from error
