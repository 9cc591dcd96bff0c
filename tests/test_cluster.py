"""Many files by Ray Data, in its local mode. Skipped where Ray is not installed (extra `ray`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hvcompress
from hvcompress import cluster
from hvcompress.cli import make_parser
from hvcompress.errors import InputError, ModelError, UsageError
from hvcompress.jobs import Job
from hvcompress.work import FAILED

ROOT = Path(hvcompress.__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    command = [sys.executable, "-m", "hvcompress.cluster", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture
def pictures(tmp_path, photo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        path = Path("in", f"{number % 3}", f"{number:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(photo, number, 1)).save(path)
    Path("in/bad.png").write_text("no image")
    return tmp_path


def test_the_same_files_as_on_one_machine(pictures, tiny_folder):
    pytest.importorskip("ray")
    common = ["encode", "in", "-r", "-q", "30", "--model", str(tiny_folder), "--device", "cpu"]
    command = [*common, "--output-dir", "out", "--summary", "table.json"]
    done = run("--workers", "2", *command)
    assert done.returncode == InputError.exit_code, done.stderr
    assert "bad.png: not an image" in done.stderr and "Traceback" not in done.stderr
    assert "21 files: 20 done, 1 failed; " in done.stdout
    from hvcompress.cli import main

    assert main([*common, "--output-dir", "here", "--quiet"]) == InputError.exit_code
    for path in sorted(Path("here").rglob("*.hvci")):
        assert path.read_bytes() == Path("out", path.relative_to("here")).read_bytes()
    rows = json.loads(Path("table.json").read_text())
    assert len(rows) == 21 and len({row["file"] for row in rows}) == 21
    os.remove("out/0/00.hvci")
    os.remove("in/bad.png")
    again = run(*command, "-u")
    assert again.returncode == 0 and "20 files: 1 done, 19 up to date" in again.stdout


def test_a_worker_tells_what_went_wrong(tmp_path, tiny_folder, capsys):
    """Without Ray: what its processes run."""
    args = make_parser().parse_args(["encode", str(tmp_path / "none.png"), "--model", str(tiny_folder)])
    task = args.task_of(args)
    worker = cluster.Worker(task.work, task.options, torch.get_num_threads())
    job = Job(str(tmp_path / "none.png"), str(tmp_path / "none.hvci"))
    told = json.loads(worker({"number": 7, "job": json.dumps(vars(job)), "fresh": True})["outcome"])
    assert (told["status"], told["exit_code"]) == (FAILED, InputError.exit_code) and "no such file" in told["error"]


def test_what_a_lost_worker_has_written_is_no_obstacle(tmp_path, tiny_folder, photo):
    source, output = tmp_path / "a.png", tmp_path / "a.hvci"
    Image.fromarray(photo).save(source)
    args = make_parser().parse_args(["encode", str(source), "--model", str(tiny_folder), "--device", "cpu"])
    task = args.task_of(args)
    worker = cluster.Worker(task.work, task.options, torch.get_num_threads())

    def status(fresh: bool) -> str:
        row = {"number": 0, "job": json.dumps(vars(task.jobs[0])), "fresh": fresh}
        return json.loads(worker(row)["outcome"])["status"]

    assert [status(True), status(True), status(False)] == ["done", "done", FAILED] and output.exists()


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (["info", "x.hvci"], UsageError, "only encode and decode"),
        (["encode", "-"], UsageError, "standard input"),
        (["encode", "x.png", "--device", "cuda:1"], UsageError, "Ray's choice"),
        (["encode", "x.png", "--model", "none"], ModelError, "unknown model"),
        (["encode", "x.png", "-q", "200"], UsageError, "from 0 to 100"),
    ],
)
def test_refused(arguments, error, complaint, capsys):
    assert cluster.main(arguments) == error.exit_code
    assert complaint in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cluster.main(["encode", "x.png"]) == UsageError.exit_code
    assert "pip install 'ray[data]" in capsys.readouterr().err
