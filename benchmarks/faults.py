"""What becomes of a file when coding it is cut short: some hundreds of faults in real processes, counted by outcome.

    python benchmarks/faults.py                      # on Linux or another POSIX system; a few minutes
    python benchmarks/faults.py --only steps --model NAME

Every fault meets a process of its own, forked from this one when the model is loaded, that runs the command line on a
small picture: it makes a new file, or replaces an old one with -f.

* kills: kill -9 at a random moment.
* steps: a signal right before or after each system call with which the file is written; both for a file that has no
  name at first (Linux) and for the temporary file that takes its place on other systems.
* disk: writing fails past a size (RLIMIT_FSIZE), for sizes from nothing to all but one byte of the file; and on a full
  tmpfs where this user may mount one.

Good outcomes: the old file (or none) or the complete new one, the new one if the command says that all went well, and
no other file beside it. After kill -9 a temporary file may be left where it could not be helped; those are counted.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from hvcompress import files  # noqa: E402

CALLS = ("open", "write", "fchmod", "chmod", "fsync", "link", "replace", "unlink", "close")  # of `os`
SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP")
OLD = b"what was there before"
PATIENCE = 300.0  # seconds, after which a process is said to hang
HUNG = "hung"
CLONE_NEWNS = 0x00020000  # sched.h of Linux: mounts of its own


@dataclass(frozen=True)
class Row:
    """One fault and its outcome."""

    kind: str  # kills, steps, disk
    way: str  # unnamed or named: the file that is written
    before: str  # none or old: the file that was there
    fault: str
    code: int | str  # exit code, -9 if killed, or HUNG
    after: str  # none, old, new or broken
    left: int  # other files
    said: str  # standard error

    def good(self) -> bool:
        """Killed or not, nothing is lost; and whoever could tidy up has done so and has told."""
        whole = self.after == "new" or self.after == self.before
        if self.code == -signal.SIGKILL:
            return whole
        one_line = self.said.count("\n") == 1 and self.said.startswith("hvcompress: ")
        told = self.after == "new" and self.said == "" if self.code == 0 else one_line and self.code != HUNG
        return whole and told and self.left == 0


def forked(work: Callable[[], int], kill_after: float | None = None) -> tuple[int | str, str]:
    """Run in a child process: its exit code (or minus the signal that ended it) and what it wrote on standard error."""
    with tempfile.TemporaryFile() as said:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code = 70
            try:
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), 1)
                os.dup2(said.fileno(), 2)
                for name in ("SIGTERM", "SIGHUP"):  # whoever started us may have them ignored
                    signal.signal(getattr(signal, name), signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))
                code = work()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        code = _awaited(child)
        said.seek(0)
        return code, said.read().decode(errors="replace")


def _awaited(child: int) -> int | str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HUNG


def watch_writing(hook: Callable[[int, str, bool], None]) -> None:
    """From now on, in this process, hook(number, name, after) is called before and after every call of CALLS that a
    file is written with.
    """
    write, counter = files.write_atomically, itertools.count()

    def wrapped(name: str) -> Callable:
        real = getattr(os, name)

        def call(*arguments, **options):
            number = next(counter)
            hook(number, name, False)
            try:
                return real(*arguments, **options)
            finally:  # a call that fails has been made as well
                hook(number, name, True)

        return call

    def watched(*arguments, **options) -> None:
        for name in CALLS:
            setattr(os, name, wrapped(name))
        write(*arguments, **options)

    files.write_atomically = watched


def without_unnamed_files() -> None:
    """From now on, in this process, as on a system that has none."""
    if hasattr(os, "O_TMPFILE"):
        del os.O_TMPFILE


class Bench:
    """Runs one command under faults. command: the arguments but the output; main: the command line."""

    def __init__(self, main: Callable[[list[str]], int], command: list[str], folder: Path):
        self._main, self._command, self._folder = main, command, folder
        self._numbers = itertools.count()
        code, new, left, said = self._run(folder, None)
        if code != 0 or new is None or left:
            raise SystemExit(f"faults.py: the command fails without any fault: {said}")
        self.new = new

    def _run(
        self,
        within: Path,
        old: bytes | None,
        prepare: Callable[[], None] | None = None,
        kill_after: float | None = None,
    ) -> tuple[int | str, bytes | None, int, str]:
        folder = within / f"out{next(self._numbers)}"
        folder.mkdir()
        path = folder / "file"
        if old is not None:
            path.write_bytes(old)

        def work() -> int:
            if prepare is not None:
                prepare()
            force = [] if old is None else ["-f"]
            return self._main([*self._command, "--quiet", *force, "-o", str(path)])

        code, said = forked(work, kill_after)
        said = said.replace(f"{folder}{os.sep}", "").replace(f"{self._folder}{os.sep}", "")  # the same in every run
        after = path.read_bytes() if path.exists() else None
        left = len([name for name in os.listdir(folder) if name != path.name])
        for name in os.listdir(folder):
            os.unlink(folder / name)
        folder.rmdir()
        return code, after, left, said

    def meet(
        self,
        kind: str,
        fault: str,
        before: str,
        prepare: Callable[[], None] | None = None,
        *,
        named: bool = False,
        kill_after: float | None = None,
        within: Path | None = None,
    ) -> Row:
        """One fault, which `prepare` sets up in the child."""

        def prepared() -> None:
            if named:
                without_unnamed_files()
            if prepare is not None:
                prepare()

        old = OLD if before == "old" else None
        code, found, left, said = self._run(within or self._folder, old, prepared, kill_after)
        after = {None: "none", OLD: "old", self.new: "new"}.get(found, "broken")
        return Row(kind, "named" if named else "unnamed", before, fault, code, after, left, said)

    def kills(self, count: int, seed: int = 1) -> Iterator[Row]:
        """kill -9 at moments spread over a little more than an undisturbed run takes."""
        generator, spans = random.Random(seed), []
        for _ in range(3):
            began = time.monotonic()
            self._run(self._folder, OLD)
            spans.append(time.monotonic() - began)
        for number in range(count):
            moment = generator.random() * 1.1 * sorted(spans)[1]
            before = ("old", "none")[number % 2]
            yield self.meet("kills", "SIGKILL at a random moment", before, kill_after=moment)

    def calls(self, before: str, named: bool) -> list[str]:
        """The system calls of one write, in their order."""
        with tempfile.NamedTemporaryFile("w+", dir=self._folder) as log:

            def note(number: int, name: str, after: bool) -> None:
                if not after:
                    log.write(name + "\n")
                    log.flush()

            row = self.meet("steps", "none", before, lambda: watch_writing(note), named=named)
            if row.code != 0 or not row.good():
                raise SystemExit(f"faults.py: the command fails without any fault: {row}")
            log.seek(0)
            calls = log.read().split()
            if not calls:
                raise SystemExit("faults.py: the command writes its file in another way than by files.write_atomically")
            return calls

    def steps(self, signals: tuple[str, ...] = SIGNALS) -> Iterator[Row]:
        """Each signal before and after each system call of the write."""
        for named, before in itertools.product((False, True), ("none", "old")):
            if not named and not hasattr(os, "O_TMPFILE"):
                continue
            for place, call in enumerate(self.calls(before, named)):
                for after, name in itertools.product((False, True), signals):

                    def hook(number: int, _: str, now_after: bool, at=(place, after), name=name) -> None:
                        if (number, now_after) == at:
                            os.kill(os.getpid(), getattr(signal, name))

                    fault = f"{name} {'after' if after else 'before'} call {place + 1}, {call}"
                    yield self.meet("steps", fault, before, lambda hook=hook: watch_writing(hook), named=named)

    def disk(self, sizes: int) -> Iterator[Row]:
        """No room from a size on: `sizes` of them."""
        import resource

        def limit(size: int) -> None:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            write = files.write_atomically

            def within_limit(*arguments, **options) -> None:  # not before: standard error is a file as well
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
                try:
                    write(*arguments, **options)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

            files.write_atomically = within_limit

        steps = sorted({int(size) for size in np.linspace(0, len(self.new) - 1, sizes)})
        for named, before, size in itertools.product((False, True), ("none", "old"), steps):
            yield self.meet("disk", f"no room past {size} bytes", before, lambda size=size: limit(size), named=named)
        with _small_disk(self._folder) as disk:
            if disk is not None:
                for named, before in itertools.product((False, True), ("none", "old")):
                    (disk / "filler").unlink(missing_ok=True)
                    yield self.meet("disk", "a full tmpfs", before, lambda: _fill_up(disk), named=named, within=disk)


def _fill_up(disk: Path) -> None:
    """Leave no room."""
    with (disk / "filler").open("ab", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(1024))
        except OSError:
            pass


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """A tmpfs of 64 KiB; None where this user may not mount one.

    From then on this process and its children have mounts of their own, which are gone with them however they end.
    """
    disk = folder / "disk"
    disk.mkdir()

    def succeeds(*command: object) -> bool:
        return subprocess.run(command, capture_output=True).returncode == 0

    mounted = (
        sys.platform == "linux"
        and ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
        and succeeds("mount", "--make-rprivate", "/")
        and succeeds("mount", "-t", "tmpfs", "-o", "size=64k", "none", disk)
    )
    try:
        yield disk if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)


def table(rows: list[Row]) -> str:
    """Counts by kind, way, file before, and outcome."""
    heads = ("faults", "written by a file", "file before", "ended by", "file after", "left files", "count")
    lines = [f"{heads[0]:8} {heads[1]:18} {heads[2]:12} {heads[3]:12} {heads[4]:11} {heads[5]:11} {heads[6]:>5}"]
    counts = Counter((row.kind, row.way, row.before, str(row.code), row.after, row.left) for row in rows)
    for (kind, way, before, code, after, left), count in sorted(counts.items()):
        ended = {"0": "all went well", "-9": "kill -9"}.get(code, f"exit {code}" if code != HUNG else HUNG)
        lines.append(f"{kind:8} {way:18} {before:12} {ended:12.12} {after:11} {left:<11} {count:5}")
    killed = [row for row in rows if row.code == -signal.SIGKILL]
    lines.append(
        f"{len(rows)} faults: {sum(row.good() for row in rows)} good, {sum(not row.good() for row in rows)} bad"
    )
    for way in ("unnamed", "named"):
        left = [row.left > 0 for row in killed if row.way == way]
        lines.append(f"kill -9 while a file is written {way}: {sum(left)} of {len(left)} left a temporary file")
    return "\n".join(lines)


def small_picture(path: Path) -> None:
    """Smooth with some noise, 48 x 64."""
    y, x = np.mgrid[0:48, 0:64]
    planes = np.stack([x * 3, y * 4, 90 + x + y], 2) + np.random.default_rng(1).integers(0, 20, (48, 64, 3))
    Image.fromarray(planes.astype(np.uint8)).save(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/faults.py", description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("kills", "steps", "disk"), nargs="+", default=["kills", "steps", "disk"])
    parser.add_argument("--kills", type=int, default=150, help="at random moments (150)")
    parser.add_argument("--sizes", type=int, default=20, help="of the disk that is full (20)")
    parser.add_argument("--model", help="name or folder (the default one)")
    parser.add_argument("--device", default="cpu", help="cpu (default): a process that uses CUDA cannot be forked")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "faults.json")
    options = parser.parse_args()
    import torch

    from hvcompress.cli import main as command_line
    from hvcompress.loading import load_model
    from measure import write_rows

    torch.set_num_threads(1)
    codec = load_model(options.model, options.device)  # and keep it: the children find it loaded
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hvcompress-faults-") as name:
        folder = Path(name)
        small_picture(folder / "picture.png")
        command = ["encode", str(folder / "picture.png"), "--device", options.device]
        command += ["--model", options.model] if options.model else []
        quick = Bench(command_line, [*command, "--no-verify"], folder)
        for kind in options.only:
            made = {
                "kills": lambda: Bench(command_line, command, folder).kills(options.kills),
                "steps": quick.steps,
                "disk": lambda: quick.disk(options.sizes),
            }[kind]()
            for row in made:
                rows.append(row)
                if not row.good():
                    print(f"BAD: {row}", file=sys.stderr, flush=True)
            print(f"{kind}: {len(rows)} faults so far", file=sys.stderr, flush=True)
    print(table(rows))
    facts = {"system": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    facts |= {"model": codec.name, "faults": len(rows), "bad": sum(not row.good() for row in rows)}
    counted = Counter(tuple(asdict(row).items()) for row in rows)
    write_rows(options.out, facts | {"rows": [dict(row) | {"count": count} for row, count in counted.items()]})
    return 1 if facts["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
