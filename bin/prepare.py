"""Make .venv in the checkout and install the package into it. Called by bin/prepare.sh; standard library only.

    prepare.py ROOT package|test STAMP

Everything is said on standard error. Whatever can go wrong ends in one line and exit code 69 (130 when interrupted).

A .venv that somebody made by hand is used as it is when the package runs in it, else the package is installed into it;
it is never removed. One that was made here is removed and made again when its installation was cut short.

Which torch: on Linux the ordinary package index has the CUDA build, several GB. Where there is no NVIDIA GPU the small
CPU build is taken from PyTorch's own index, if that answers. HVCOMPRESS_TORCH_INDEX=URL names another index, for
example one for ROCm; HVCOMPRESS_TORCH_INDEX=none leaves the choice to pip's configuration.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 3
FAILED, INTERRUPTED = 69, 130  # EX_UNAVAILABLE of sysexits.h; 128 + SIGINT

# Imported by the package, by its tests. A virtual environment that has them all needs no installation.
MODULES = {"package": ["torch", "numpy", "PIL", "constriction", "safetensors"], "test": ["pytest", "hypothesis"]}


class SetupError(Exception):
    """The set-up cannot go on; the message is one line for a person."""


class Unreachable(SetupError):
    """No package index answers."""


class DiskFull(SetupError):
    """No room: a half-made .venv is removed, so that it does not keep the disk full."""


def say(text: str) -> None:
    print(f"hvcompress: {text}", file=sys.stderr, flush=True)


def main(root: Path, extra: str, stamp: str) -> None:
    """Bring ROOT/.venv up to date and write the stamp that lets the launchers skip all this."""
    with open(__file__, "r+b") as lock:  # the lock is on this very file: nothing to leave behind, nothing to go stale
        wait_for(lock.fileno())
        venv = root / ".venv"
        stamps = [venv / ".stamp-package"] + ([venv / ".stamp-test"] if extra == "test" else [])
        if stamps[-1].is_file() and stamps[-1].read_text().rstrip("\n") == stamp and runs(venv, "pass"):
            return  # another start has done it while we waited
        began = time.monotonic()
        made, unfinished = venv / ".made-by-bin", venv / ".unfinished"
        if venv.is_dir() and (unfinished.exists() or (made.exists() and not runs(venv, "pass"))):
            say("the last set-up was cut short or its Python is gone: making .venv again")
            remove(venv)
        if not venv.exists() or not any(venv.iterdir()):
            version = ".".join(map(str, sys.version_info[:3]))
            say(f"first use: making .venv with Python {version} (once; some minutes, more than 1 GB of disk)")
            venv.mkdir(exist_ok=True)
            made.touch()
            unfinished.touch()
            try:
                make_venv(venv, lock.fileno())
            except SetupError:
                remove(venv)
                raise
        elif not runs(venv, "import sys; sys.exit(sys.version_info < (3, 10))"):
            raise SetupError(f"{venv} is not a working virtual environment with Python 3.10 or newer: remove it")
        if made.exists() or not works_already(venv, root, extra):
            if made.exists():
                unfinished.touch()
            try:
                install(venv, root, extra, lock.fileno())
            except DiskFull:
                if unfinished.exists():
                    remove(venv)
                raise
            except Unreachable as error:
                if unfinished.exists() or not works_already(venv, root, extra):
                    raise
                say(f"the requirements have changed, but {error}; going on with what is installed")
                return
            say(f"set-up done in {time.monotonic() - began:.0f} s")
        for path in stamps:
            path.write_text(stamp + "\n")
        unfinished.unlink(missing_ok=True)


def wait_for(lock: int) -> None:
    """Take the lock. It belongs to the open file, so it goes with its last holder, however that ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another set-up of this checkout is under way: waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks: set up without one


def remove(venv: Path) -> None:
    """Remove a .venv that was made here. The marks go last: if this is cut short, the next start takes it up again."""
    for path in venv.glob(".stamp-*"):  # first, so that no launcher starts in what is going away
        path.unlink()
    for path in sorted(venv.iterdir(), key=lambda path: path.name in (".made-by-bin", ".unfinished")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    venv.rmdir()


def python_of(venv: Path) -> str:
    return str(venv / "bin" / "python")


def runs(venv: Path, code: str) -> bool:
    """Whether the virtual environment's Python starts and gets through CODE.

    Without its pyvenv.cfg, bin/python is the Python behind it, and pip would install there: that must count as no.
    """
    if not (venv / "pyvenv.cfg").is_file():
        return False
    command = [python_of(venv), "-I", "-c", f"import sys; assert sys.prefix != sys.base_prefix\n{code}"]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return done.returncode == 0


def works_already(venv: Path, root: Path, extra: str) -> bool:
    """Whether a virtual environment made by hand has this checkout installed and all that it imports."""
    modules = MODULES["package"] + (MODULES["test"] if extra == "test" else [])
    code = (
        "import sys, importlib.util as u, pathlib\n"
        f"assert all(map(u.find_spec, {modules!r}))\n"
        f"assert pathlib.Path({str(root)!r}) in pathlib.Path(u.find_spec('hvcompress').origin).resolve().parents\n"
        "assert pathlib.Path(sys.prefix, 'bin', 'hvcompress').is_file()\n"
    )
    return runs(venv, code)


def make_venv(venv: Path, lock: int) -> None:
    # _base_executable: this may itself run in the .venv that is about to be replaced.
    base = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([base, "-I", "-m", "venv", str(venv)], capture_output=True, text=True, pass_fds=[lock])
    if done.returncode:
        raise_for(done.stdout + done.stderr, f"{base} -m venv failed")


def install(venv: Path, root: Path, extra: str, lock: int) -> None:
    """Install the checkout, editable, at the pinned versions. pip speaks for itself on standard error."""
    if not runs(venv, "import pip"):  # uv makes environments without it
        subprocess.run([python_of(venv), "-I", "-m", "ensurepip"], stdout=sys.stderr, check=True, pass_fds=[lock])
    if pip_version(venv) < (21, 3):  # that of Python 3.10.0 to 3.10.2: too old for an editable pyproject.toml
        pip(venv, root, ["--upgrade", "pip"], lock)
    index = torch_index(venv, root)
    wanted = ["-e", ".[test]" if extra == "test" else ".[fast]"]
    say(f"installing the packages of constraints.txt{f', torch from {index}' if index else ''}")
    pip(venv, root, ["-c", "constraints.txt", *(["--extra-index-url", index] if index else []), *wanted], lock)


def pip_version(venv: Path) -> tuple[int, ...]:
    command = [python_of(venv), "-I", "-c", "import pip; print(pip.__version__)"]
    text = subprocess.run(command, capture_output=True, text=True).stdout
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def pip(venv: Path, root: Path, arguments: list[str], lock: int) -> None:
    """pip install ARGUMENTS; raise SetupError with the cause that its log tells."""
    log = venv / "pip.log"
    log.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key not in ("PIP_TARGET", "PIP_PREFIX")}
    environment |= {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_REQUIRE_VIRTUALENV": "1"}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    command = [python_of(venv), "-I", "-m", "pip", "install", "--log", str(log), *arguments]
    # pass_fds: should this process be killed, pip goes on, and so does the lock.
    done = subprocess.run(command, cwd=root, env=environment, stdout=sys.stderr, pass_fds=[lock])
    if done.returncode == 0:
        log.unlink(missing_ok=True)
        return
    text = log.read_text(errors="replace") if log.exists() else ""
    if "Installing collected packages" not in text:
        (venv / ".unfinished").unlink(missing_ok=True)  # nothing was touched: the next start can go on from here
    raise_for(text, f"pip failed; its log is {log}")


def raise_for(text: str, otherwise: str) -> None:
    """Raise SetupError for the best known cause in TEXT, the output of venv or pip."""
    if "No space left on device" in text or "Disk quota exceeded" in text:
        raise DiskFull("the disk is full: the set-up needs more than 1 GB, with CUDA 8 GB, here and some in TMPDIR")
    if "Permission denied" in text or "Read-only file system" in text:
        raise SetupError(f"no permission to write: {otherwise}")
    # Only failures to connect count: pip also logs "connection" when all is well.
    unreachable = r"NewConnectionError|NameResolutionError|Connect\w*Timeout|ReadTimeout|ProxyError|SSLError"
    if re.search(unreachable + r"|Network is unreachable|Max retries exceeded", text):
        raise Unreachable(f"the package index cannot be reached (network, proxy or certificate): {otherwise}")
    missing = re.search(r"No matching distribution found for (\S+)", text)
    if missing:
        version = ".".join(map(str, sys.version_info[:2]))
        raise SetupError(
            f"pip offers no {missing[1]} for Python {version} on this machine; another Python can be named in "
            f"HVCOMPRESS_PYTHON: {otherwise}"
        )
    raise SetupError(otherwise)


def torch_index(venv: Path, root: Path) -> str | None:
    """The index to take torch from besides those that pip knows, or None."""
    wish = os.environ.get("HVCOMPRESS_TORCH_INDEX")
    if wish is not None:
        return None if wish in ("", "none") else wish
    pin = re.search(r"^torch==([^\s;]+)", (root / "constraints.txt").read_text(), re.MULTILINE)
    there = pin and any(venv.glob(f"lib/python*/site-packages/torch-{pin[1]}*.dist-info"))
    if there or sys.platform != "linux" or os.environ.get("PIP_NO_INDEX"):
        return None
    if has_nvidia_gpu():
        say("NVIDIA GPU found: taking the CUDA build of torch, several GB (HVCOMPRESS_TORCH_INDEX chooses another)")
        return None
    if answers(CPU_INDEX + "/torch/"):
        return CPU_INDEX
    say(f"{CPU_INDEX} does not answer: taking torch as pip's own configuration has it")
    return None


def has_nvidia_gpu() -> bool:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return Path("/proc/driver/nvidia/version").exists()
    return done.returncode == 0 and "GPU " in done.stdout


def answers(url: str) -> bool:
    """Whether URL answers within PROBE_SECONDS. In a process of its own, which an alarm ends: a name server that
    is silent holds up getaddrinfo for much longer than any timeout of a socket."""
    code = (
        f"import signal, urllib.request as u; signal.alarm({PROBE_SECONDS})\n"
        f"u.urlopen(u.Request({url!r}, method='HEAD')).close()"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    except KeyboardInterrupt:
        say("interrupted; the next start begins the set-up again")
        sys.exit(INTERRUPTED)
    except SetupError as error:
        say(f"set-up failed: {error}")
        sys.exit(FAILED)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"set-up failed: {error}")
        sys.exit(FAILED)
