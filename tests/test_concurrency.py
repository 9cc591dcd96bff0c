"""Threads that share a codec, processes side by side, and processes that are forked from one that has coded."""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hvcompress
from hvcompress import batch, devices, forking, loading
from hvcompress.cli import main
from hvcompress.errors import DeviceError, FormatError, HvcompressError, HvcompressWarning, InputError
from hvcompress.image_reading import read_picture

TESTS = Path(__file__).resolve().parent
SOURCES = Path(hvcompress.__file__).parents[1]
PATH = os.pathsep.join(filter(None, (str(SOURCES), str(TESTS), os.environ.get("PYTHONPATH"))))  # of other processes
LIMIT = 600  # seconds, after which a process hangs; no result depends on it
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture
def three_threads():
    """torch has three threads, and must have them again at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        yield
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------------------------
# Threads


def outcome(work) -> object:
    """Something to compare: a digest of the result, or the error."""
    try:
        result = work()
    except HvcompressError as error:
        return type(error), str(error)
    arrays = result if isinstance(result, list) else [result]
    return [hashlib.sha256(item if isinstance(item, bytes) else item.tobytes()).hexdigest() for item in arrays]


def test_threads_that_do_different_things_at_once(tiny, photo):
    """Every kind of call, different sizes and qualities, errors in between: what each is alone."""
    sizes = [(75, 131), (20, 90), (64, 64), (1, 3)]
    pictures = [read_picture(photo[:height, :width].copy()) for height, width in sizes]
    files = [tiny.encode(picture, 30 + 20 * n).data for n, picture in enumerate(pictures)]
    work = []
    for n, (picture, data) in enumerate(zip(pictures, files, strict=True)):
        work += [
            lambda p=picture, n=n: tiny.encode(p, 90 - 20 * n).data,
            lambda p=picture, n=n: tiny.encode(p, 40, [0, 0, 5, -5, 0, n], verify=False).data,
            lambda d=data: tiny.decode(d).pixels,
            lambda d=data, n=n: tiny.decode(d, n + 1).pixels,
            lambda d=data, n=n: tiny.latents(d, 6 - n),
            lambda d=data: tiny.information(d),
            lambda d=data: tiny.decode(d[:-1]).pixels,
            lambda p=picture: tiny.encode(p, 101).data,
        ]
    work.append(lambda: tiny.encode(pictures[2], 50, effort=5).data)
    alone = [outcome(each) for each in work]
    assert {FormatError, hvcompress.UsageError} <= {found[0] for found in alone if isinstance(found, tuple)}
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, work)) == alone
        assert list(pool.map(outcome, work[::-1])) == alone[::-1]


def test_threads_that_load_a_model_at_once_share_one(tiny_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    load, loads = loading.load_parts, []
    monkeypatch.setattr(loading, "load_parts", lambda found: loads.append(None) or load(found))
    start = threading.Barrier(4)

    def work(_) -> object:
        start.wait(LIMIT)
        return hvcompress.load_model(folder, "cpu")

    with ThreadPoolExecutor(4) as pool:
        codecs = list(pool.map(work, range(4)))
    assert len(set(map(id, codecs))) == 1 == len(loads)


# --------------------------------------------------------------------------------------------------------------------
# torch's number of threads, a setting of the whole process


def test_threads_are_restored_after_an_error_that_is_kept(tiny_folder, photo, three_threads):
    """Its traceback holds on to everything that was going on."""
    for jobs in (2, 3):
        with pytest.raises(InputError) as kept:
            list(hvcompress.encode_batch([photo, b"no picture", photo], jobs=jobs, model=tiny_folder, device="cpu"))
        assert torch.get_num_threads() == 3 and kept.value.__traceback__ is not None
    with pytest.raises(FormatError) as kept:
        list(hvcompress.decode_batch([b"no file"], jobs=2, model=tiny_folder, device="cpu"))
    assert torch.get_num_threads() == 3


def test_threads_are_restored_after_errors_of_the_source_and_interrupts(three_threads, monkeypatch):
    def source():
        yield 1
        raise OSError("the list of names ends here")

    with pytest.raises(OSError, match="list of names"):
        list(batch.results(lambda number: number, source(), 2))
    assert torch.get_num_threads() == 3

    def interrupted(futures):
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(batch.results(lambda number: number, range(9), 2))


def test_threads_are_restored_when_nobody_takes_the_rest(three_threads):
    running = batch.results(lambda number: number, range(100), 3)
    assert next(running) == 0 and torch.get_num_threads() == 1
    del running
    gc.collect()
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_batches_that_overlap_share_and_restore(three_threads, first_to_end):
    torch.set_num_threads(8)
    running = [batch.in_order(lambda number: number, range(9), 2) for _ in range(2)]
    next(running[0])
    assert torch.get_num_threads() == 4
    next(running[1])
    assert torch.get_num_threads() == 2
    running.pop(first_to_end).close()
    assert torch.get_num_threads() == 8  # a number of this thread; those of the other batch keep theirs
    running.pop().close()
    assert torch.get_num_threads() == 8
    torch.set_num_threads(3)


def test_batches_of_several_threads_restore_their_own(three_threads):
    """torch's number of threads is one of each thread: who ends first must not leave the other's share behind."""
    torch.set_num_threads(8)
    counts = []

    def other(begun: threading.Event, ended: threading.Event) -> None:
        running = batch.in_order(lambda number: number, range(9), 2)
        next(running)
        begun.set()
        assert ended.wait(20)
        running.close()

    for _ in range(3):
        begun, ended = threading.Event(), threading.Event()
        thread = threading.Thread(target=other, args=(begun, ended))
        running = batch.in_order(lambda number: number, range(9), 2)
        next(running)
        thread.start()
        assert begun.wait(20)
        running.close()  # before the other's
        ended.set()
        thread.join()
        counts.append(torch.get_num_threads())
    assert counts == [8, 8, 8]
    torch.set_num_threads(3)


def test_threads_are_restored_by_a_command_that_fails(tiny_folder, photo, three_threads, tmp_path, capsys):
    names = [str(tmp_path / f"{number}.png") for number in range(4)]
    for name in names:
        Image.fromarray(photo[:20, :20]).save(name)
    Path(names[1]).write_bytes(b"no picture")
    assert main(["encode", "-j", "2", "--model", str(tiny_folder), "--device", "cpu", *names]) == 3
    assert torch.get_num_threads() == 3
    assert main(["encode", "-f", "-j", "3", "--model", "none", *names]) in (3, 6)  # an error that ends it


# --------------------------------------------------------------------------------------------------------------------
# Processes side by side


def code_in_a_process(folder: str, pixels: np.ndarray, foreign: bytes) -> tuple[bytes, str]:
    codec = hvcompress.load_model(folder, "cpu")
    return codec.encode(read_picture(pixels), 60).data, codec.latent_digest(foreign)


def test_spawned_processes(tiny, tiny_folder, photo):
    """They decode what this one has made, this one what they have made."""
    files = [tiny.encode(read_picture(photo), quality).data for quality in (20, 80)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = list(pool.map(code_in_a_process, [str(tiny_folder)] * 2, [photo] * 2, files))
    assert [digest for _, digest in made] == [tiny.latent_digest(data) for data in files]
    assert made[0][0] == made[1][0]
    assert tiny.decode(made[0][0]).pixels.shape == photo.shape


@pytest.mark.parametrize("force", [[], ["-f"]])
def test_processes_that_write_the_same_file_at_once(tmp_path, photo, force):
    """All have encoded before the first writes. One wins, or with -f the last; nothing is mixed or left over."""
    Image.fromarray(photo).save(tmp_path / "a.png")
    program = """
import os, sys, time
import fake_codec
sys.modules["hvcompress.loading"] = fake_codec.module()
from hvcompress import cli, files
write = files.write_atomically
def together(*arguments, **options):
    open(f"ready-{os.getpid()}", "w").close()
    while sum(name.startswith("ready-") for name in os.listdir()) < 4:
        time.sleep(0.001)
    write(*arguments, **options)
files.write_atomically = together
sys.exit(cli.main())
"""
    (tmp_path / "out").mkdir()
    environment = {**os.environ, "PYTHONPATH": PATH}
    started = []
    for quality in ("0", "30", "60", "90"):
        command = [sys.executable, "-c", program, "encode", *force, "-q", quality, "a.png", "-o", "out/a.hvci"]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=LIMIT)[1] for process in started]
    codes = [process.returncode for process in started]
    info = hvcompress.read_info((tmp_path / "out" / "a.hvci").read_bytes())  # checks the checksum
    assert os.listdir(tmp_path / "out") == ["a.hvci"]
    if force:
        assert codes == [0] * 4 and said == [""] * 4 and info.quality in (0, 30, 60, 90)
    else:
        assert sorted(codes) == [0, 2, 2, 2] and info.quality == (0, 30, 60, 90)[codes.index(0)]
        assert sorted(said) == ["", *["hvcompress: a.png: out/a.hvci exists already\n"] * 3]


# --------------------------------------------------------------------------------------------------------------------
# Fork

FORKED = """
import hashlib, json, os, signal, sys, threading, time
import numpy as np, torch
import hvcompress
from hvcompress import loading
from hvcompress.image_reading import read_picture
LIMIT = float(sys.argv[2])

def in_child(work):
    "What it returns, or what went wrong; a child that hangs is ended."
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    end = time.monotonic() + LIMIT
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "it hangs"
        time.sleep(0.01)
    return json.loads(os.read(reading, 1 << 16))

def digest(data):
    return hashlib.sha256(data).hexdigest()
"""


def in_process(program: str, *arguments: str) -> dict:
    # Two threads, even where there is one core: it is the second one that a child has lost.
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", FORKED + program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3 * LIMIT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def forked(tiny_folder) -> dict:
    program = """
codec = hvcompress.load_model(sys.argv[1], "cpu")
assert torch.get_num_threads() == 2
pixels = np.random.default_rng(4).integers(0, 256, (256, 320, 3), np.uint8)
picture, small = read_picture(pixels), read_picture(pixels[:64, :64].copy())
data = codec.encode(picture, 50).data
options = {"model": sys.argv[1], "device": "cpu"}
work = {
    "encode": lambda: digest(codec.encode(picture, 50).data),
    "decode": lambda: digest(codec.decode(data).pixels.tobytes()),
    "effort": lambda: digest(codec.encode(small, 50, effort=5).data),
    "batch": lambda: [digest(made) for made in hvcompress.encode_batch([pixels] * 3, 50, jobs=2, **options)],
}
torch.set_num_threads(1)  # as in the child: two threads may add in another order, and the encoder is not exact
answers = {"here": {name: each() for name, each in work.items()}}
torch.set_num_threads(2)
for each in work.values():
    each()
torch.ones(1 << 22).add(1).sum(), torch.mm(torch.ones(700, 700), torch.ones(700, 700))  # both threads were at work
answers["plain torch"] = in_child(lambda: float(torch.ones(1 << 22).add(1).sum()))
answers["threads"] = in_child(torch.get_num_threads)
answers["there"] = {name: in_child(each) for name, each in work.items()}

held, done = threading.Event(), threading.Event()
def hold():
    "Another thread is loading a model, and another one reads a picture."
    with loading._loading, hvcompress.image_reading._opening:
        held.set()
        done.wait(LIMIT)
threading.Thread(target=hold).start()
held.wait(LIMIT)
from hvcompress.image_writing import image_bytes, to_pil
png = image_bytes(to_pil(picture))
answers["locks"] = in_child(lambda: [hvcompress.load_model(**dict(name_or_path=sys.argv[1], device="cpu")) is codec,
                                     digest(codec.encode(read_picture(png), 50).data)])
done.set()

running = hvcompress.encode_batch([pixels] * 4, 50, jobs=2, **options)
next(running)
answers["from a batch"] = in_child(work["batch"])
answers["rest"] = [digest(made) for made in running]
answers["threads here"] = torch.get_num_threads()
print(json.dumps(answers))
"""
    return in_process(program, str(tiny_folder), str(LIMIT // 4))


@needs_fork
@pytest.mark.parametrize("what", ["encode", "decode", "effort", "batch"])
def test_a_forked_child_codes_as_its_parent(forked, what):
    assert forked["there"][what] == forked["here"][what]


@needs_fork
def test_a_forked_child_has_one_thread_and_torch_works(forked):
    assert forked["threads"] == 1 and forked["plain torch"] == 2.0 * (1 << 22)
    assert forked["threads here"] == 2


@needs_fork
def test_a_child_that_is_forked_while_locks_are_held_or_a_batch_runs(forked):
    assert forked["locks"] == [True, forked["here"]["encode"]]
    assert forked["from a batch"] == forked["here"]["batch"]
    assert forked["rest"] == [forked["here"]["encode"]] * 3


def test_the_locks_that_a_child_gets_anew_are_all_there_are():
    found = {}
    for path in (SOURCES / "hvcompress").rglob("*.py"):
        names = [line.split()[0] for line in path.read_text().splitlines() if "= threading.Lock()" in line[:60]]
        name = ".".join(path.relative_to(SOURCES / "hvcompress").with_suffix("").parts)
        if names and name != "forking":
            found[name] = names
    assert {name: sorted(locks) for name, locks in forking._LOCKS.items()} == {n: sorted(v) for n, v in found.items()}


# --------------------------------------------------------------------------------------------------------------------
# Fork and CUDA


def test_a_fork_after_cuda_is_told(tiny_folder, tmp_path, photo, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("auto", "cuda", "cuda:0"):
        with pytest.raises(DeviceError, match="forked.*spawn"):
            devices.pick_device(device)
    assert devices.pick_device("cpu").type == "cpu"
    with pytest.warns(HvcompressWarning, match="forked.*using the CPU"):
        assert hvcompress.load_model(tiny_folder).device.type == "cpu"
    Image.fromarray(photo).save(tmp_path / "a.png")
    assert main(["encode", str(tmp_path / "a.png"), "--model", str(tiny_folder), "--device", "cuda"]) == 10
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "forked" in captured.err and os.listdir(tmp_path) == ["a.png"]


def test_a_codec_on_cuda_that_was_inherited_by_a_fork_says_so(tiny, photo, monkeypatch):
    data = tiny.encode(read_picture(photo), 50, verify=False).data
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert tiny.decode(data).pixels.shape == photo.shape  # of no concern to a codec on the CPU
    monkeypatch.setattr(tiny, "device", torch.device("cuda:0"))
    for use in (lambda: tiny.encode(read_picture(photo)), lambda: tiny.decode(data), lambda: tiny.latents(data)):
        with pytest.raises(DeviceError, match="forked.*spawn"):
            use()


@needs_fork
@pytest.mark.cuda
def test_a_true_fork_after_cuda(tiny_folder):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    program = """
hvcompress.load_model(sys.argv[1], "cuda")
picture = read_picture(np.zeros((64, 64, 3), np.uint8))
print(json.dumps({
    "cuda": in_child(lambda: str(hvcompress.load_model(sys.argv[1], "cuda").device)),
    "cpu": in_child(lambda: len(hvcompress.load_model(sys.argv[1], "cpu").encode(picture, 50).data)),
}))
"""
    answers = in_process(program, str(tiny_folder), str(LIMIT // 4))
    assert answers["cuda"].startswith("DeviceError: CUDA was in use when this process was forked")
    assert answers["cpu"] > 0
