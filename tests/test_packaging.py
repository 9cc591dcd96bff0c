"""The launchers, the metadata and the wheel say the same thing and hold what they promise."""

from __future__ import annotations

import http.server
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from unittest import mock

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

import hvcompress

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = ["bin/hvcompress", "bin/test", ".ci/run"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
LIGHT = ["torch", "numpy", "PIL", "constriction", "safetensors"]


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **options)


def pins(python: str) -> dict[str, Requirement]:
    """Constraints in force for a Python version, by name. A name that is pinned twice fails."""
    environment = default_environment() | {"python_version": python}
    found: dict[str, Requirement] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line and ((pin := Requirement(line)).marker is None or pin.marker.evaluate(environment)):
            assert pin.name not in found, f"{pin.name} is pinned twice for Python {python}"
            found[pin.name] = pin
    return found


# Versions and constraints


def test_version_is_the_same_everywhere():
    assert hvcompress.__version__ == PROJECT["version"]
    assert importlib.metadata.version("hvcompress") == PROJECT["version"]
    assert re.search(rf"^## \[{re.escape(PROJECT['version'])}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_bounds(python):
    pinned = pins(python)
    wanted = list(PROJECT["dependencies"])
    for extra in ("test", "bench", "train", "study"):
        wanted += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (pin,) = pinned[requirement.name].specifier
            assert pin.operator == "==" and requirement.specifier.contains(pin.version), requirement


def test_whatever_is_installed_for_the_package_is_pinned():
    """Follows the requirements of what is installed, so a new dependency of a dependency is noticed."""
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    seen, waiting = set(), [Requirement(line) for line in PROJECT["dependencies"]]
    waiting += [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        in_force = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        # torch's CUDA build pins these itself, exactly
        if name in seen or not in_force or name.startswith(("nvidia-", "cuda-", "triton", "pytorch-triton")):
            continue
        seen.add(name)
        assert name in pinned, f"{name} is installed but not in constraints.txt"
        waiting += map(Requirement, importlib.metadata.requires(name) or [])


def test_pins_have_no_local_build_suffix():
    assert not [pin for python in PYTHONS for pin in pins(python).values() if "+" in str(pin.specifier)]


# Launchers


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_shell(script):
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_bytes().startswith(b"#!/bin/sh\n")


@pytest.mark.parametrize("script", [*SCRIPTS, "bin/prepare.sh"])
@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_scripts_are_valid_in(shell, script):
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    done = run(shell, "-n", ROOT / script)
    assert done.returncode == 0, done.stderr


def make_checkout(folder: Path) -> Path:
    """A checkout whose .venv is a stand-in: the launcher starts a program that prints its arguments."""
    shutil.copytree(ROOT / "bin", folder / "bin")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (programs / "hvcompress").write_text("import sys; print(sys.path[0], *sys.argv[1:], sep='|')")
    stamp = run("cksum", "pyproject.toml", "constraints.txt", cwd=folder).stdout
    (folder / ".venv" / ".stamp-package").write_text(f"{folder.resolve()}\n{stamp}")
    return folder


def test_launcher_starts_at_once_through_links_spaces_and_from_anywhere(tmp_path):
    checkout = make_checkout(tmp_path / "a check out")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "torch.py").write_text("raise SystemExit('imported from the current directory')")
    absolute, relative = elsewhere / "absolute link", elsewhere / "relative link"
    absolute.symlink_to(checkout / "bin" / "hvcompress")
    relative.symlink_to(Path("absolute link"))
    expected = f"{checkout.resolve() / '.venv' / 'bin'}|a b|*|\n"
    for command in (checkout / "bin/hvcompress", absolute, relative, "./relative link"):
        done = run(command, "a b", "*", "", cwd=elsewhere)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.parametrize("change", ["pyproject.toml", "constraints.txt"])
def test_launcher_sets_up_again_when_the_requirements_change(tmp_path, change):
    checkout = make_checkout(tmp_path)
    (checkout / change).open("a").write("\n# changed\n")
    (checkout / "bin" / "prepare.py").write_text("import sys; print('set up'); sys.exit(sys.stdin.read() != '')")
    done = run(checkout / "bin/hvcompress", "x", input="not for the set-up")
    assert done.returncode == 0
    assert done.stderr == "set up\n" and done.stdout.endswith("|x\n")


@pytest.mark.parametrize(
    ("python", "complaint"),
    [
        ("exit 1", "is not a 64-bit Python 3.10 or newer"),
        ("exit 4", "cannot make virtual environments"),
    ],
)
def test_launcher_refuses_an_unsuitable_python_in_one_line(tmp_path, python, complaint):
    checkout = make_checkout(tmp_path)
    (checkout / ".venv" / ".stamp-package").unlink()
    fake = tmp_path / "fake python"
    fake.write_text(f"#!/bin/sh\n{python}\n")
    fake.chmod(0o755)
    done = run(checkout / "bin/hvcompress", env=os.environ | {"HVCOMPRESS_PYTHON": str(fake)})
    assert done.returncode == 69 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and complaint in done.stderr


def test_launcher_takes_a_virtual_environment_that_it_could_not_make(tmp_path):
    """One made by hand with virtualenv or uv, where the machine's Python has no ensurepip."""
    checkout = make_checkout(tmp_path)
    (checkout / ".venv" / ".stamp-package").unlink()
    (checkout / ".venv" / "pyvenv.cfg").touch()
    (checkout / "bin" / "prepare.py").write_text("")
    fake = tmp_path / "python without ensurepip"
    fake.write_text(f"""#!/bin/sh
case $* in *ensurepip*) exec {sys.executable} -I -c "import sys; sys.modules['ensurepip'] = None
$3" $4 ;; esac
""")
    fake.chmod(0o755)
    environment = os.environ | {"HVCOMPRESS_PYTHON": str(fake)}
    done = run(checkout / "bin/hvcompress", "x", env=environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("|x\n")
    (checkout / ".venv" / "pyvenv.cfg").unlink()
    done = run(checkout / "bin/hvcompress", "x", env=environment)
    assert done.returncode == 69 and "cannot make virtual environments" in done.stderr


@pytest.mark.parametrize("python", ["missing", "there"])
def test_launcher_leaves_alone_what_is_not_a_virtual_environment(tmp_path, python):
    """Without pyvenv.cfg, .venv/bin/python is the machine's Python: nothing may be installed with it."""
    checkout = make_checkout(tmp_path)
    (checkout / ".venv" / ".stamp-package").unlink()
    (checkout / ".venv" / "notes.txt").write_text("mine")
    if python == "missing":
        (checkout / ".venv" / "bin" / "python").unlink()
    done = run(checkout / "bin/hvcompress", env=os.environ | {"HVCOMPRESS_PYTHON": sys.executable})
    assert done.returncode == 69 and "remove it" in done.stderr and done.stderr.count("\n") == 1
    assert (checkout / ".venv" / "notes.txt").read_text() == "mine"


# What bin/prepare.py decides


@pytest.fixture
def prepare(monkeypatch):
    monkeypatch.delenv("HVCOMPRESS_TORCH_INDEX", raising=False)
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "bin" / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server():
    class Quiet(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if self.path == "/cpu/torch/" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_torch_comes_from_the_cpu_index_where_that_answers(prepare, server, monkeypatch, tmp_path):
    for key in [key for key in os.environ if key.lower().endswith("_proxy")]:
        monkeypatch.delenv(key)
    monkeypatch.setattr(prepare, "has_nvidia_gpu", lambda: False)
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    monkeypatch.setattr(prepare, "CPU_INDEX", f"{server}/cpu")
    assert prepare.torch_index(tmp_path / ".venv", tmp_path) == f"{server}/cpu"
    monkeypatch.setattr(prepare, "CPU_INDEX", f"{server}/nothing")
    assert prepare.torch_index(tmp_path / ".venv", tmp_path) is None


def test_silent_index_is_given_up_soon(prepare):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        began = time.monotonic()
        assert not prepare.answers(f"http://127.0.0.1:{silent.getsockname()[1]}/torch/")
        assert time.monotonic() - began < prepare.PROBE_SECONDS + 5


def test_torch_index_follows_the_machine_and_the_wish(prepare, monkeypatch, tmp_path):
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    venv = tmp_path / ".venv"
    monkeypatch.setattr(prepare, "answers", lambda url: True)
    monkeypatch.setattr(prepare, "has_nvidia_gpu", lambda: True)
    assert prepare.torch_index(venv, tmp_path) is None
    monkeypatch.setattr(prepare, "has_nvidia_gpu", lambda: False)
    assert prepare.torch_index(venv, tmp_path) == prepare.CPU_INDEX
    monkeypatch.setenv("HVCOMPRESS_TORCH_INDEX", "https://example.org/rocm")
    assert prepare.torch_index(venv, tmp_path) == "https://example.org/rocm"
    monkeypatch.setenv("HVCOMPRESS_TORCH_INDEX", "none")
    assert prepare.torch_index(venv, tmp_path) is None
    monkeypatch.delenv("HVCOMPRESS_TORCH_INDEX")
    torch = next(pin for pin in pins("3.11").values() if pin.name == "torch")
    version = str(torch.specifier).removeprefix("==")
    (venv / "lib" / "python3.11" / "site-packages" / f"torch-{version}+cu130.dist-info").mkdir(parents=True)
    assert prepare.torch_index(venv, tmp_path) is None


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError(...)\nERROR: No matching distribution found for torch==2.13.0", "cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0 (from hvcompress)", "offers no torch==2.13.0"),
        ("[Errno 13] Permission denied: '/x'", "no permission"),
        ("Traceback ...", "pip failed"),
    ],
)
def test_failures_are_told_apart(prepare, log, cause):
    with pytest.raises(prepare.SetupError, match=cause) as caught:
        prepare.raise_for(log, "pip failed")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("made_here", [True, False])
def test_changed_requirements_without_a_network(prepare, monkeypatch, tmp_path, capsys, works, made_here):
    """What works goes on working; the next start with a network installs what is wanted now."""
    venv = tmp_path / ".venv"
    venv.mkdir()
    (venv / "pyvenv.cfg").touch()
    (venv / ".stamp-package").write_text("old\n")
    if made_here:
        (venv / ".made-by-bin").touch()

    def install(venv: Path, *_: object) -> None:
        (venv / ".unfinished").unlink(missing_ok=True)  # as pip() does where nothing was touched
        raise prepare.Unreachable("the package index cannot be reached")

    monkeypatch.setattr(prepare, "runs", lambda venv, code: True)
    monkeypatch.setattr(prepare, "install", install)
    answers = iter([False, works] if not made_here else [works])  # at first it lacks something, or has not been asked
    monkeypatch.setattr(prepare, "works_already", lambda *_: next(answers))
    if works:
        prepare.main(tmp_path, "package", "new")
        assert "going on with what is installed" in capsys.readouterr().err
    else:
        with pytest.raises(prepare.SetupError):
            prepare.main(tmp_path, "package", "new")
    assert (venv / ".stamp-package").read_text() == "old\n"


def test_removal_cut_short_leaves_the_marks(prepare, monkeypatch, tmp_path):
    venv = tmp_path / ".venv"
    for name in ("bin", "lib"):
        (venv / name).mkdir(parents=True)
    for name in (".made-by-bin", ".unfinished", ".stamp-test", "pyvenv.cfg"):
        (venv / name).touch()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare.shutil, "rmtree", mock.Mock(side_effect=[None, KeyboardInterrupt]))
        prepare.remove(venv)
    assert (venv / ".unfinished").exists() and not (venv / ".stamp-test").exists()
    prepare.remove(venv)
    assert not venv.exists()


# The package


@pytest.mark.parametrize("arguments", [["-c", "import hvcompress"], ["-c", "import hvcompress.cli"]])
def test_import_is_light(arguments):
    code = f"{arguments[1]}; import sys; print([m for m in {LIGHT!r} if m in sys.modules])"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stdout
    if arguments[1] == "import hvcompress":
        assert done.stdout == "[]\n"


@pytest.mark.parametrize("start", [["-m", "hvcompress"], [Path(sys.executable).parent / "hvcompress"]])
def test_version_option(start):
    done = run(sys.executable, *start, "--version")
    assert done.returncode == 0, done.stderr
    assert PROJECT["version"] in done.stdout


def test_package_is_typed():
    assert (ROOT / "codec" / "hvcompress" / "py.typed").is_file()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_package_and_every_model(wheel):
    names = set(wheel.namelist())
    assert {"hvcompress/__init__.py", "hvcompress/cli.py", "hvcompress/py.typed"} <= names
    models = [path for path in (ROOT / "models").rglob("*") if path.is_file()]
    assert any(path.name == "weights.safetensors" for path in models), "no model in models/"
    for path in models:
        assert f"hvcompress/{path.relative_to(ROOT).as_posix()}" in names


def test_wheel_holds_nothing_else(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"hvcompress", *(f"hvcompress-{PROJECT['version']}.{kind}" for kind in ("dist-info", "data"))}
    assert not [name for name in wheel.namelist() if "__pycache__" in name or name.startswith("hvcompress/tests")]


def test_wheel_brings_completions_and_man_page(wheel):
    places = {
        "share/bash-completion/completions/hvcompress": "hvcompress.bash",
        "share/zsh/site-functions/_hvcompress": "_hvcompress",
        "share/man/man1/hvcompress.1": "hvcompress.1",
    }
    data = f"hvcompress-{PROJECT['version']}.data/data/"
    found = {name.removeprefix(data): wheel.read(name) for name in wheel.namelist() if name.startswith(data)}
    assert found == {place: (ROOT / "contrib" / name).read_bytes() for place, name in places.items()}


def test_completions_and_man_page_know_every_option():
    """That is, contrib/make.py was run after the last change of the command line."""
    from hvcompress.cli import make_parser

    commands = next(action.choices for action in make_parser()._actions if isinstance(action.choices, dict))
    options = {option for made in commands.values() for action in made._actions for option in action.option_strings}
    assert len(commands) >= 7 and len(options) >= 30
    texts = {name: (ROOT / "contrib" / name).read_text() for name in ("hvcompress.bash", "_hvcompress", "hvcompress.1")}
    texts["hvcompress.1"] = re.sub(r"\\f[BIR]", "", texts["hvcompress.1"]).replace("\\", "")
    for name, text in texts.items():
        words = set(re.findall(r"[\w-]+", text))
        missing = ({*commands} | options - {"-h", "--help"}) - words
        assert not missing, (name, missing)
        known = {word for word in words if word.startswith("--") and len(word) > 3}
        assert not known - options - {"--version", "--print-completion"}, name
    for made in commands.values():
        for action in made._actions:
            if action.option_strings and action.dest != "help":
                assert action.help % {"prog": ""} in texts["hvcompress.1"], action.dest


COMPLETE = """
source "$1"; shift
COMP_WORDS=(hvcompress "$@"); COMP_CWORD=$#; COMP_LINE="hvcompress $*"; COMP_POINT=${#COMP_LINE}
_shtab_hvcompress hvcompress "${@: -1}" "${@: -2:1}" && printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [(["enc"], "encode"), (["encode", "--me"], "--memory-limit"), (["decode", "--allocation"], None),
     (["encode", "--allocation", "hyp"], "hyperprior"), (["encode", "pho"], "photo.png")],
)  # fmt: skip
def test_bash_completes(words, offered, tmp_path):
    (tmp_path / "photo.png").touch()
    script = tmp_path / "complete.sh"
    script.write_text(COMPLETE)
    done = run("bash", script, ROOT / "contrib" / "hvcompress.bash", *words, cwd=tmp_path)
    assert done.stdout.split() == ([] if offered is None else [offered]), done.stderr


def test_wheel_is_the_same_when_it_is_built_again(wheel, tmp_path):
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert next(tmp_path.glob("*.whl")).read_bytes() == Path(wheel.filename).read_bytes()


def test_wheel_metadata(wheel):
    folder = f"hvcompress-{PROJECT['version']}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "License-Expression: MIT" in metadata and f"{folder}/licenses/LICENSE" in wheel.namelist()
    assert wheel.read(f"{folder}/entry_points.txt").decode().split() == [
        "[console_scripts]", "hvcompress", "=", "hvcompress.cli:main"]  # fmt: skip
