"""Coding that is cut short: by signals, kill -9, full disks, files and folders that vanish. Nothing is ever lost.

In processes of their own, on the true file system, through the whole command line. `benchmarks/faults.py`, which also
counts outcomes at length, injects a signal at each system call of a write.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import fake_codec
import numpy as np
import pytest
from PIL import Image

import hvcompress
from hvcompress.container import read_info
from hvcompress.errors import OutputError
from hvcompress.files import write_atomically

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="faults are injected into forked processes")

TESTS = Path(__file__).resolve().parent
BENCHMARKS = TESTS.parent / "benchmarks"
SOURCES = Path(hvcompress.__file__).parents[1]
LIMIT = 600  # seconds, after which a process hangs; no result depends on it
ENDINGS = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
SAID = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}

FAKE = """
import os, signal, sys
import fake_codec
sys.modules["hvcompress.loading"] = fake_codec.module()
from fake_codec import FakeCodec
import hvcompress.cli, hvcompress.files as files, hvcompress.image_reading as image_reading
"""


def python(program: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """A program in a process of its own; output is text."""
    path = os.pathsep.join(map(str, (SOURCES, TESTS, BENCHMARKS)))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": LIMIT} | options
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", program, *arguments], env=environment, **options)


def command(patch: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """The command line with the fake codec, after `patch`."""
    return python(FAKE + patch + "\nsys.exit(hvcompress.cli.main())", *arguments, **options)


def noise(path: Path, height: int = 24, width: int = 32) -> np.ndarray:
    """Save a picture that no format makes small; returns its pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def compressed(path: Path, pixels: np.ndarray) -> bytes:
    data = fake_codec.FakeCodec().encode(fake_codec.Picture(pixels), 100).data
    path.write_bytes(data)
    return data


def told(done: subprocess.CompletedProcess) -> str:
    """The only line on standard error."""
    assert done.stderr.startswith("hvcompress: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.rstrip("\n").removeprefix("hvcompress: ")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def has_unnamed_files(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except (AttributeError, OSError):
        return False
    return os.path.exists("/proc/self/fd")


# --------------------------------------------------------------------------------------------------------------------
# Signals and kill -9 at each system call of a write; disks that fill up


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> list[dict]:
    """Every step fault and every disk fault, with the fake codec."""
    folder = tmp_path_factory.mktemp("faults")
    program = """
import dataclasses, json, pathlib
import faults
folder = pathlib.Path(sys.argv[1])
faults.small_picture(folder / "picture.png")
bench = faults.Bench(hvcompress.cli.main, ["encode", str(folder / "picture.png")], folder)
rows = [*bench.steps(), *bench.disk(6)]
ways = [(way, before) for way in ("unnamed", "named") for before in ("none", "old")]
calls = {f"{way} {before}": bench.calls(before, way == "named") for way, before in ways}
print(json.dumps([calls, [dataclasses.asdict(row) | {"good": row.good()} for row in rows]]))
"""
    done = python(FAKE + program, str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_fault_loses_anything(faults):
    _, rows = faults
    assert [row for row in rows if not row["good"]] == []
    assert len(rows) > 200 and {row["after"] for row in rows} == {"none", "old", "new"}


def test_every_call_of_a_write_was_met_by_every_signal(faults):
    calls, rows = faults
    ways = ("unnamed", "named") if hasattr(os, "O_TMPFILE") else ("named",)
    for way in ways:
        for before in ("none", "old"):
            names = calls[f"{way} {before}"]
            assert {"open", "write", "fsync", "close"} <= set(names) and {"link", "replace"} & set(names)
            met = [row for row in rows if (row["kind"], row["way"], row["before"]) == ("steps", way, before)]
            assert len(met) == len(ENDINGS) * 2 * len(names)


@pytest.mark.parametrize("name", ENDINGS)
def test_exit_codes_and_lines_of_signals(faults, name):
    rows = [row for row in faults[1] if row["fault"].startswith(name + " ")]
    assert rows and {row["code"] for row in rows} == {ENDINGS[name]}
    assert {row["said"] for row in rows} == {f"hvcompress: {SAID[name]}\n" if name in SAID else ""}


def test_what_kill_9_leaves_behind(faults, tmp_path):
    """Nothing; but a file that is replaced needs a second name for the time between two system calls."""
    if not has_unnamed_files(tmp_path):
        pytest.skip("this file system has no unnamed files")
    killed = [row for row in faults[1] if row["code"] == -signal.SIGKILL and row["way"] == "unnamed"]
    left = {row["fault"] for row in killed if row["left"]}
    assert all(row["before"] == "old" for row in killed if row["left"])
    assert left == {"SIGKILL after call 6, link", "SIGKILL before call 7, replace"}
    named = [row for row in faults[1] if row["code"] == -signal.SIGKILL and row["way"] == "named"]
    assert any(row["left"] for row in named), "else the test above shows nothing"


def test_full_disks_are_told(faults):
    rows = [row for row in faults[1] if row["kind"] == "disk"]
    assert rows and {row["code"] for row in rows} == {OutputError.exit_code}
    assert all("file too large" in row["said"] or "no space left" in row["said"] for row in rows)
    assert all(row["after"] == row["before"] and row["left"] == 0 for row in rows)


def test_the_small_disk_is_mounted_for_its_process_alone(tmp_path):
    program = """
import os, pathlib, signal, sys
import faults
with faults._small_disk(pathlib.Path(sys.argv[1])) as disk:
    print(disk is not None and os.path.ismount(disk), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = python(program, str(tmp_path))
    assert done.returncode == -signal.SIGKILL, done.stderr
    if done.stdout == "False\n":
        pytest.skip("this user may not mount anything")
    assert not os.path.ismount(tmp_path / "disk")


def in_own_mounts(*setup: str) -> list[str]:
    """A command that runs another one where these mounts are in force, and nowhere else; skips where it may not."""
    script = " && ".join([*setup, 'exec "$@"'])
    for options in (["--mount"], ["--mount", "--map-root-user"]):
        wrapper = ["unshare", *options, "sh", "-c", script, "sh"]
        if shutil.which("unshare") and not subprocess.run([*wrapper, "true"], capture_output=True).returncode:
            return wrapper
    pytest.skip("this user may not mount anything")


LIST_AFTERWARDS = """
code = hvcompress.cli.main()
print(sorted((name, os.path.getsize("disk/" + name)) for name in os.listdir("disk")))
sys.exit(code)
"""


def in_mounts(wrapper: list[str], *arguments: str) -> subprocess.CompletedProcess:
    """The command line within them; then the names and sizes in `disk`."""
    path = os.pathsep.join((str(SOURCES), str(TESTS)))
    program = [*wrapper, sys.executable, "-c", FAKE + LIST_AFTERWARDS, *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=LIMIT)


def test_a_disk_that_fills_up_in_the_middle_of_a_picture(here):
    compressed(here / "a.hvci", noise(here / "a.png", 100, 200))
    (here / "disk").mkdir()
    wrapper = in_own_mounts("mount -t tmpfs -o size=32k none disk", "printf old > disk/b.ppm")
    done = in_mounts(wrapper, "decode", "-f", "a.hvci", "-o", "disk/b.ppm")
    assert done.returncode == 9 and told(done) == "a.hvci: cannot write disk/b.ppm: no space left on device"
    assert done.stdout == "[('b.ppm', 3)]\n"


def test_a_read_only_disk(here):
    compressed(here / "a.hvci", noise(here / "a.png"))
    (here / "disk").mkdir()
    wrapper = in_own_mounts("mount -t tmpfs none disk", "printf old > disk/b.png", "mount -o remount,ro disk")
    for name in ("b.png", "c.png"):
        done = in_mounts(wrapper, "decode", "-f", "a.hvci", "-o", f"disk/{name}")
        assert done.returncode == 9 and told(done) == f"a.hvci: cannot write disk/{name}: read-only file system"
        assert done.stdout == "[('b.png', 3)]\n"


def test_a_folder_that_may_not_be_written_to():
    """As another user, where this one is root, whom permissions do not bind."""
    folder = Path(tempfile.mkdtemp())  # tmp_path is for its owner alone
    try:
        compressed(folder / "a.hvci", noise(folder / "a.png"))
        (folder / "out").mkdir()
        (folder / "out" / "b.png").write_bytes(b"old")
        os.chmod(folder / "out", 0o555)
        os.chmod(folder, 0o755)
        become = """
from PIL import Image
import hvcompress.metrics
Image.init()  # what is imported late must be there already: the other user may not see Python's own files
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
"""
        for name in ("b.png", "c.png"):
            output = str(folder / "out" / name)
            done = command(become, "decode", "-f", str(folder / "a.hvci"), "-o", output)
            assert done.returncode == 9
            assert told(done) == f"{folder / 'a.hvci'}: cannot write {output}: permission denied"
        assert os.listdir(folder / "out") == ["b.png"] and (folder / "out" / "b.png").read_bytes() == b"old"
    finally:
        os.chmod(folder / "out", 0o755)
        shutil.rmtree(folder)


# --------------------------------------------------------------------------------------------------------------------
# What the write does


def test_no_half_written_file_ever_has_a_name(tmp_path, monkeypatch):
    if not has_unnamed_files(tmp_path):
        pytest.skip("this file system has no unnamed files")
    seen, real = [], {name: getattr(os, name) for name in ("write", "fsync", "link", "replace")}

    def watched(name: str):
        def call(*arguments, **options):
            seen.append((name, sorted(os.listdir(tmp_path))))
            return real[name](*arguments, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, watched(name))
    write_atomically(tmp_path / "a", b"new", overwrite=False)
    assert [name for name, _ in seen] == ["write", "fsync", "link", "fsync"]
    assert [names for _, names in seen] == [[], [], [], ["a"]]
    seen.clear()
    write_atomically(tmp_path / "a", b"newer", overwrite=True)
    assert [name for name, _ in seen] == ["write", "fsync", "link", "link", "replace", "fsync"]
    assert [len(names) for _, names in seen] == [1, 1, 1, 1, 2, 1]


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_bytes_are_on_the_disk_before_their_name_and_then_the_name(tmp_path, monkeypatch, overwrite, unnamed):
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    path, fsync, synced = tmp_path / "a", os.fsync, []
    if overwrite:
        path.write_bytes(b"old")

    def watched(descriptor: int) -> None:
        status = os.fstat(descriptor)
        named = path.read_bytes() if path.exists() else None
        folder = stat.S_ISDIR(status.st_mode)
        synced.append(
            ("folder", os.path.samestat(status, os.stat(tmp_path)), named) if folder else (status.st_size, named)
        )
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomically(path, b"new", overwrite=overwrite)
    assert synced == [(3, b"old" if overwrite else None), ("folder", True, b"new")]


def test_a_disk_that_fails_with_the_name_is_told_and_one_that_cannot_promise_is_not(tmp_path, monkeypatch):
    fsync = os.fsync

    def fails(number: int):
        def call(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        return call

    monkeypatch.setattr(os, "fsync", fails(errno.EINVAL))
    write_atomically(tmp_path / "a", b"x", overwrite=False)
    monkeypatch.setattr(os, "fsync", fails(errno.EIO))
    with pytest.raises(OutputError, match="nput/output error"):
        write_atomically(tmp_path / "b", b"y", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"x" and (tmp_path / "b").read_bytes() == b"y"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("missing", ["unnamed files", "links from /proc"])
def test_file_systems_without_unnamed_files(tmp_path, monkeypatch, missing, overwrite):
    path, opened, link = tmp_path / "a", os.open, os.link
    if overwrite:
        path.write_bytes(b"old")
        path.chmod(0o640)

    def no_unnamed(name, flags, *rest, **options):
        if flags & getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return opened(name, flags, *rest, **options)

    def no_proc(source, *rest, **options):
        if source.startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        link(source, *rest, **options)

    monkeypatch.setattr(os, *(("open", no_unnamed) if missing == "unnamed files" else ("link", no_proc)))
    write_atomically(path, b"new", overwrite=overwrite)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]
    assert not overwrite or stat.S_IMODE(path.stat().st_mode) == 0o640


# --------------------------------------------------------------------------------------------------------------------
# Inputs and folders that vanish, readers that go away


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".jpg"])
def test_a_picture_that_shrinks_while_it_is_read(here, suffix):
    """Between its header and its pixels; formats that could be mapped into memory would end in SIGBUS."""
    noise(here / ("a" + suffix), 300, 400)
    patch = f"""
check = image_reading._check_size
def shrink(*arguments):
    os.truncate("a{suffix}", 20_000)
    return check(*arguments)
image_reading._check_size = shrink
"""
    done = command(patch, "encode", "a" + suffix)
    assert done.returncode == 3 and told(done).startswith(f"a{suffix}: the image is damaged or truncated")
    assert os.listdir(here) == ["a" + suffix]


def test_a_file_that_shrinks_while_it_is_read(here):
    compressed(here / "a.hvci", noise(here / "a.png", 300, 400))
    patch = """
opened = files.open_file
def shrink(path):
    file = opened(path)
    os.truncate("a.hvci", 20_000)
    return file
files.open_file = shrink
"""
    done = command(patch, "decode", "a.hvci", "-o", "b.png")
    assert done.returncode == 4 and told(done).startswith("a.hvci: the file is damaged or truncated")
    assert sorted(os.listdir(here)) == ["a.hvci", "a.png"]


@pytest.mark.parametrize(("place", "code"), [("open_file", 3), ("_check_size", 0)])
def test_a_picture_that_vanishes(here, place, code):
    """Before it is opened it is missing; afterwards it is there for whoever has opened it."""
    noise(here / "a.png")
    size = os.path.getsize("a.png")
    patch = f"""
real = image_reading.{place}
def vanish(*arguments):
    os.unlink("a.png")
    return real(*arguments)
image_reading.{place} = vanish
"""
    done = command(patch, "encode", "a.png")
    assert done.returncode == code, done.stderr
    if code:
        assert told(done) == "a.png: no such file or directory" and os.listdir(here) == []
    else:
        assert f"{size:,} -> " in done.stdout and os.listdir(here) == ["a.hvci"]


@pytest.mark.parametrize("moment", ["FakeCodec.encode", "os.fsync"])
def test_an_output_folder_that_vanishes(here, moment):
    noise(here / "a.png")
    (here / "out").mkdir()
    patch = f"""
import shutil
real = {moment}
def vanish(*arguments, **options):
    shutil.rmtree("out")
    return real(*arguments, **options)
{moment} = vanish
"""
    done = command(patch, "encode", "a.png", "-o", "out/a.hvci")
    assert done.returncode == 9 and told(done) == "a.png: cannot write out/a.hvci: no such file or directory"
    assert os.listdir(here) == ["a.png"]


def test_a_named_pipe_whose_reader_goes_away(here):
    compressed(here / "a.hvci", noise(here / "a.png", 300, 400))
    os.mkfifo("pipe.ppm")
    reader = subprocess.Popen([sys.executable, "-c", "print(open('pipe.ppm', 'rb', 0).read(2))"])
    done = command("", "decode", "a.hvci", "-o", "pipe.ppm")
    assert reader.wait(LIMIT) == 0
    assert done.returncode == 9 and told(done) == "a.hvci: cannot write pipe.ppm: broken pipe"
    assert sorted(os.listdir(here)) == ["a.hvci", "a.png", "pipe.ppm"] and stat.S_ISFIFO(os.stat("pipe.ppm").st_mode)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_had_enough(here, monkeypatch, unbuffered):
    """`decode | head`: more than a pipe holds is still to come when it is closed."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    compressed(here / "a.hvci", noise(here / "a.png", 300, 400))
    reading, writing = os.pipe()
    reader = subprocess.Popen([sys.executable, "-c", "import os; os.read(0, 10)"], stdin=reading)
    os.close(reading)
    done = command("", "decode", "a.hvci", "-o", "-", "--format", "ppm", stdout=writing)
    os.close(writing)
    assert reader.wait(LIMIT) == 0
    assert done.returncode == 9 and told(done) == "a.hvci: standard output: nobody reads it any more"


# --------------------------------------------------------------------------------------------------------------------
# Signals while the true codec computes

SIGNALLED = """
import json, os, pathlib, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import torch
torch.set_num_threads(1)
import faults, hvcompress.loading
from hvcompress import cli, effort, reporting
from hvcompress.entropy import LayerCoder
model, folder = sys.argv[1], pathlib.Path(sys.argv[2])
os.chdir(folder)
codec = hvcompress.loading.load_model(model, "cpu")
ALWAYS = ["--model", model, "--device", "cpu"]

def at(call, owner, name, number):
    "The signal right before that call of owner.name. Other threads then wait until the main thread has met it."
    real, calls = getattr(owner, name), []
    shutdown, noticed = ThreadPoolExecutor.shutdown, threading.Event()
    def notice(*arguments, **options):
        noticed.set()
        shutdown(*arguments, **options)
    def met(*arguments, **options):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        if len(calls) >= call and threading.current_thread() is not threading.main_thread():
            noticed.wait(60)
        return real(*arguments, **options)
    ThreadPoolExecutor.shutdown = notice
    setattr(owner, name, met)

def while_fitting(number):
    "The signal within the third step of a fit; then its progress is told on and on until somebody stops it."
    real, first = reporting.until, [number]
    def until(stopped, progress):
        told = real(stopped, progress)
        def step(done, total):
            told(done, total)
            if done == 2:
                if first:
                    os.kill(os.getpid(), first.pop())
                for _ in range(3000):
                    told(done, total)
                    time.sleep(0.01)
                open("never-stopped", "w").close()
        return step
    reporting.until = until

def run(prepare, *arguments):
    def work():
        prepare()
        return cli.main([*arguments, *ALWAYS])
    code, said = faults.forked(work)
    return {"code": code, "said": said, "files": {p.name: p.read_bytes().hex() for p in pathlib.Path().glob("*")}}

def reset():
    for path in pathlib.Path().glob("*"):
        if path.suffix != ".png" or path.name == "new.png":
            path.unlink()
    pathlib.Path("new.png").write_bytes(b"old")
    pathlib.Path("1.hvci").write_bytes(b"old")
    pathlib.Path("whole.hvci").write_bytes(whole)

pictures = sorted(map(str, pathlib.Path().glob("*.png")))
from hvcompress.image_reading import read_picture
whole = codec.encode(read_picture("1.png"), 60).data
results = {}
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    number = getattr(signal, name)
    for title, prepare, arguments in (
        ("encode", lambda: at(3, LayerCoder, "encode", number), ["encode", "-f", "1.png"]),
        ("verify", lambda: at(3, LayerCoder, "decode", number), ["encode", "-f", "1.png"]),
        ("decode", lambda: at(3, LayerCoder, "decode", number), ["decode", "-f", "whole.hvci", "-o", "new.png"]),
        ("effort", lambda: while_fitting(number), ["encode", "-f", "--effort", "9", "1.png"]),
        ("batch", lambda: at(15, LayerCoder, "encode", number), ["encode", "-f", "-j", "2", *pictures]),
        ("batch effort", lambda: while_fitting(number), ["encode", "-f", "-j", "2", "--effort", "9", *pictures[1:]]),
    ):
        reset()
        results[f"{name} {title}"] = run(prepare, *arguments)
reset()
results["undisturbed"] = run(lambda: None, "encode", "-f", "-j", "3", *pictures)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def signalled(tiny_folder, tmp_path_factory) -> dict[str, dict]:
    """Commands that met a signal while they computed: exit code, standard error, and the files that there are then."""
    folder = tmp_path_factory.mktemp("signalled")
    for number in range(1, 7):
        noise(folder / f"{number}.png", 20 + number, 30)
    (folder / "0.png").write_bytes(b"no picture")
    done = python(SIGNALLED, str(tiny_folder), str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


UNTOUCHED = {"0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "6.png", "new.png", "1.hvci", "whole.hvci"}
OLD = b"old".hex()


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("title", ["encode", "verify", "decode", "effort", "batch effort"])
def test_a_signal_while_it_computes(signalled, name, title):
    ending = signalled[f"{name} {title}"]
    assert (ending["code"], ending["said"]) == (ENDINGS[name], f"hvcompress: {SAID[name]}\n")
    assert set(ending["files"]) == UNTOUCHED
    assert ending["files"]["1.hvci"] == ending["files"]["new.png"] == OLD


@pytest.mark.parametrize("name", SAID)
def test_a_signal_in_the_middle_of_a_batch_with_a_bad_file(signalled, name):
    """What was begun may end; every file is whole, and what had not begun is not there."""
    ending, whole = signalled[f"{name} batch"], signalled["undisturbed"]["files"]
    lines = ending["said"].splitlines()
    assert ending["code"] == ENDINGS[name] and lines[-1] == f"hvcompress: {SAID[name]}"
    assert len(lines) == 1 or (len(lines) == 2 and "0.png: not an image" in lines[0])
    files = ending["files"]
    assert UNTOUCHED <= set(files) <= set(whole) and "6.hvci" not in files
    made = [file for file, data in files.items() if data == whole[file] and file not in ("new.png", "whole.hvci")]
    assert any(file.endswith(".hvci") for file in made)
    assert all(data == whole[file] or (file, data) == ("1.hvci", OLD) for file, data in files.items())


def test_the_same_batch_undisturbed(signalled):
    ending = signalled["undisturbed"]
    assert ending["code"] == 3 and ending["said"].count("\n") == 1 and "0.png: not an image" in ending["said"]
    files = {name: bytes.fromhex(data) for name, data in ending["files"].items()}
    assert set(files) == UNTOUCHED | {f"{number}.hvci" for number in range(1, 7)}
    assert files["1.hvci"] == files["whole.hvci"]
    for number in range(1, 7):
        assert read_info(files[f"{number}.hvci"]).height == 20 + number


def test_kill_9_at_random_moments_of_a_true_encode(tiny_folder, tmp_path):
    """The benchmark, in small."""
    command = [sys.executable, str(BENCHMARKS / "faults.py"), "--model", str(tiny_folder), "--only", "kills"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    out = tmp_path / "faults.json"
    done = subprocess.run(
        [*command, "--kills", "16", "--out", str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(out.read_text())
    assert (values["faults"], values["bad"]) == (16, 0) and sum(row["count"] for row in values["rows"]) == 16
    assert "16 faults: 16 good, 0 bad" in done.stdout


def test_who_ignores_a_signal_stays_alone_with_it(here):
    """`nohup`: whoever starts this program may have SIGHUP ignored, and then it is."""
    noise(here / "a.png")
    patch = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
real = os.fsync
def hang_up(descriptor):
    os.kill(os.getpid(), signal.SIGHUP)
    real(descriptor)
os.fsync = hang_up
"""
    done = command(patch, "encode", "a.png")
    assert (done.returncode, done.stderr) == (0, "") and (here / "a.hvci").exists()


def test_a_library_user_keeps_his_signal_handlers(here, monkeypatch):
    from hvcompress.cli import main

    inside = []

    def look(*arguments, **options):
        inside.append(signal.getsignal(signal.SIGTERM))
        raise ValueError

    made = fake_codec.module()
    monkeypatch.setitem(sys.modules, "hvcompress.loading", made)
    made.load_model = look
    noise(here / "a.png")

    def theirs(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(["encode", "a.png"]) == 70 and inside.pop() != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        signal.signal(signal.SIGTERM, theirs)
        assert main(["encode", "a.png"]) == 70 and inside.pop() is theirs is signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
