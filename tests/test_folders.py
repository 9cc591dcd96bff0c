"""Whole folders: mirrored, resumed, with a table and totals."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import fake_codec
import numpy as np
import pytest
from PIL import Image, ImageCms
from test_cli import save_photo

from hvcompress import console, jobs, reporting, work
from hvcompress.cli import main
from hvcompress.container import read_info
from hvcompress.errors import InputError, OutputError, UsageError
from hvcompress.jobs import Inputs, jobs_for
from hvcompress.work import Outcome

SRGB = ImageCms.createProfile("sRGB")
CONFIG = {"network": {"latents": [{"stride": stride} for stride in (64, 16, 8)]}}


@pytest.fixture
def codec(monkeypatch):
    made = fake_codec.module()
    monkeypatch.setitem(sys.modules, "hvcompress.loading", made)
    monkeypatch.setattr(
        work, "find_model", lambda name: SimpleNamespace(fingerprint=fake_codec.FINGERPRINT, config=CONFIG)
    )
    return made


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Photographs in a tree, and what is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "sub/b.JPG", "sub/deep/c.webp", "sub/b.png", ".hidden/d.png", "sub/.e.png"):
        path = Path("in", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_photo(path)
    Path("in/notes.txt").write_text("not an image")
    return tmp_path


MIRRORED = ["a.hvci", "sub/b.JPG.hvci", "sub/b.png.hvci", "sub/deep/c.hvci"]


def files_below(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def encode(*more) -> int:
    return main(["encode", "in", "-r", "--output-dir", "out", *more])


def test_a_folder_is_mirrored_and_comes_back(tree, codec, capsys):
    assert encode("-j", "2") == 0
    assert files_below("out") == MIRRORED
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].startswith(f"[1/4] {os.path.join('in', 'a.png')}")
    total = sum(Path("out", name).stat().st_size for name in MIRRORED)
    assert lines[-1].startswith("4 files: 4 done; ") and f" -> {total:,} bytes; " in lines[-1]
    assert main(["decode", "out", "-r", "--output-dir", "back", "--format", "ppm"]) == 0
    assert files_below("back") == [name.replace(".hvci", ".ppm") for name in MIRRORED]
    assert Image.open("back/sub/deep/c.ppm").size == (32, 24)


def test_without_a_place_results_lie_beside_the_inputs(tree, codec):
    assert main(["encode", "in", "-r", "--quiet"]) == 0
    assert {"a.hvci", "sub/b.JPG.hvci", "sub/deep/c.hvci"} <= set(files_below("in"))


def test_files_and_folders_together(tree, codec):
    save_photo("alone.odd.png")
    assert main(["encode", "in/sub", "alone.odd.png", "-r", "--output-dir", "out", "--quiet"]) == 0
    assert files_below("out") == ["alone.odd.hvci", "b.JPG.hvci", "b.png.hvci", "deep/c.hvci"]


def test_what_is_written_is_not_read_again(tree, codec):
    assert main(["decode", "in", "-r", "--output-dir", "in/out"]) == InputError.exit_code
    for _ in range(2):
        assert main(["encode", "in", "-r", "--output-dir", "in/out", "--quiet", "-f"]) == 0
    assert main(["decode", "in/out", "-r", "--output-dir", "in/out/png", "--quiet"]) == 0
    planned = jobs_for(Inputs(["in"], output_folder="in/out", recursive=True), ".hvci")
    assert len(planned) == 4


def test_an_interrupted_folder_is_resumed(tree, codec, capsys):
    assert encode("--quiet") == 0
    os.remove("out/sub/b.png.hvci")
    before = {name: Path("out", name).stat().st_mtime_ns for name in MIRRORED if Path("out", name).exists()}
    capsys.readouterr()
    assert encode("-u") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("up to date") for line in lines[:4]] == [True, True, False, True]
    assert lines[-1].startswith("4 files: 1 done, 3 up to date; ")
    assert files_below("out") == MIRRORED
    assert all(Path("out", name).stat().st_mtime_ns == then for name, then in before.items())


@pytest.mark.parametrize(
    "spoil", ["quality", "offsets", "model", "older", "damaged", "foreign"], ids=lambda spoil: f"made anew: {spoil}"
)
def test_an_output_that_is_not_as_asked_for_is_made_anew(spoil, tree, codec, monkeypatch, capsys):
    options = ["--quality", "40"]
    assert encode(*options, "--quiet") == 0
    out = Path("out/a.hvci")
    if spoil == "quality":
        options = ["--quality", "41"]
    elif spoil == "offsets":
        options += ["--beta", "1,2,1"]
    elif spoil == "model":
        monkeypatch.setattr(work, "find_model", lambda name: SimpleNamespace(fingerprint="00" * 32, config=CONFIG))
    elif spoil == "older":
        os.utime(out, ns=(0, 0))
    else:
        data = out.read_bytes()
        out.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if spoil == "damaged" else b"something else")
    then = out.read_bytes()
    assert encode(*options, "-u") == UsageError.exit_code  # nothing is overwritten without -f
    assert out.read_bytes() == then and "exists already" in capsys.readouterr().err
    others = 0 if spoil in ("quality", "offsets", "model") else 3
    assert encode(*options, "-u", "-f") == 0
    assert capsys.readouterr().out.count("up to date\n") == others
    assert read_info(out.read_bytes()).quality == int(options[1])


def test_what_should_be_stripped_is_not_up_to_date(tree, codec, capsys):
    exif = Image.Exif()
    exif[0x010F] = "camera"
    Image.new("RGB", (8, 8)).save("e.png", exif=exif, icc_profile=ImageCms.ImageCmsProfile(SRGB).tobytes())
    assert main(["encode", "e.png", "--quiet"]) == 0
    info = read_info(Path("e.hvci").read_bytes())
    assert info.exif and info.icc
    for option in ("--strip", "--strip-icc"):
        assert main(["encode", "e.png", "-u", option]) == UsageError.exit_code
        assert "not as asked for" in capsys.readouterr().err
        assert main(["encode", "e.png", "-u", "-f", option, "--quiet"]) == 0
    assert main(["encode", "e.png", "-u", "--strip-icc"]) == 0
    assert capsys.readouterr().out.endswith("up to date\n")


def test_sizes_and_allocations_that_are_asked_for(tree, codec, capsys):
    assert encode("--allocation", "detail", "--quiet") == 0
    for options, kept in ((["--allocation", "detail"], 4), (["--allocation", "hyperprior"], 0), ([], 0)):
        encode(*options, "-u")
        assert capsys.readouterr().out.count("up to date\n") == kept
    size = os.path.getsize("out/a.hvci")
    for options, kept in (
        (["--size", str(size)], True),
        (["--size", str(size), "--strict"], True),
        (["--size", str(size - 1), "--strict"], False),
        (["--size", str(2 * size)], False),
        (["--bpp", f"{8 * size / (24 * 32):.4f}"], True),
    ):
        main(["encode", "in/a.png", "--output-dir", "out", "-u", *options])
        assert capsys.readouterr().out.endswith("up to date\n") == kept
    assert encode("--psnr", "35", "-u") == UsageError.exit_code


def test_originals_are_not_overwritten_by_what_comes_of_them(tree, codec, capsys):
    """An original that is older than its compressed file is not for -u to replace."""
    assert main(["encode", "in", "-r", "--quiet"]) == 0
    before = {name: Path("in", name).read_bytes() for name in files_below("in")}
    assert main(["decode", "in", "-r", "-u"]) == UsageError.exit_code
    assert "a.png exists already" in capsys.readouterr().err
    assert all(Path("in", name).read_bytes() == data for name, data in before.items())


@pytest.mark.parametrize("options", [["--layers", "2"], ["--crop", "0,0,1,1"], ["--partial"]])
def test_previews_and_parts_cannot_be_told_from_whole_pictures(options, tree, codec, capsys):
    assert main(["decode", "in", "-r", "-u", *options]) == UsageError.exit_code
    assert "cannot tell" in capsys.readouterr().err


def test_up_to_date_decodings(tree, codec, capsys):
    assert encode("--quiet") == 0
    decode = ["decode", "out", "-r", "--output-dir", "back", "-u"]
    for option in (["--bit-depth", "16"], ["--strip"], ["--strip-icc"]):
        assert main([*decode, *option]) == UsageError.exit_code
    assert main([*decode, "--quiet"]) == 0
    os.utime("back/a.png", ns=(0, 0))
    assert main([*decode, "-f"]) == 0
    assert "4 files: 1 done, 3 up to date" in capsys.readouterr().out


def test_one_bad_file_does_not_stop_the_others_and_is_in_the_table(tree, codec, capsys):
    Path("in/bad.png").write_text("no image")
    for name in ("table.csv", "table.json"):
        assert encode("-j", "2", "-f", "--summary", name) == InputError.exit_code
    out, err = capsys.readouterr()
    assert files_below("out") == MIRRORED and "bad.png: not an image" in err
    assert "5 files: 4 done, 1 failed; " in out
    with open("table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    loaded = json.loads(Path("table.json").read_text())
    assert [row["file"] for row in rows] == [row["file"] for row in loaded] and len(rows) == 5
    for row in (rows, loaded):
        by_name = {os.path.basename(entry["file"]): entry for entry in row}
        assert by_name["bad.png"]["status"] == "failed" and "not an image" in by_name["bad.png"]["error"]
        assert int(by_name["bad.png"]["exit_code"]) == InputError.exit_code
        good = by_name["a.png"]
        size = os.path.getsize("out/a.hvci")
        assert (good["status"], int(good["width"]), int(good["bytes_after"])) == ("done", 32, size)
        assert float(good["bpp"]) == pytest.approx(8 * size / (24 * 32)) and int(good["quality"]) == 60
        assert float(good["psnr"]) > 20 and float(good["seconds"]) == 1.25


def test_the_table_is_written_after_an_interrupt_too(tree, codec, monkeypatch):
    real, calls = reporting._say_outcome, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(reporting, "_say_outcome", interrupted)
    assert encode("--summary", "table.json") == console.INTERRUPTED
    assert len(json.loads(Path("table.json").read_text())) == 2


def test_a_file_that_is_done_is_not_told_as_failed_too(tree, codec, monkeypatch, capsys):
    """Where nobody reads the lines any more: an error of the telling, after which nothing more is done."""
    outcomes = []
    monkeypatch.setattr(reporting, "_say_outcome", lambda *arguments: 1 // 0)
    monkeypatch.setattr(reporting, "_sum_up", lambda made, report: outcomes.extend(made))
    assert encode("--output-dir", "out") == 70
    assert outcomes and {outcome.status for outcome in outcomes} == {work.DONE}
    assert (
        len({outcome.file for outcome in outcomes}) == len(outcomes) and "ZeroDivisionError" in capsys.readouterr().err
    )


def test_work_whose_turn_has_not_come_is_in_the_table_too(tree, codec, monkeypatch):
    """The first file takes longer than the second, and the interrupt comes when the second is done."""
    second = threading.Event()

    def work(options, job, progress):
        if job.source.endswith("a.png"):
            assert second.wait(30)
            raise KeyboardInterrupt  # as the main thread would raise while it waits for this one
        second.set()
        return Outcome(job.source, job.output, width=1, height=1, bytes_before=1, bytes_after=1)

    monkeypatch.setattr("hvcompress.commands.encode_file", work)
    monkeypatch.setattr(reporting, "_say_outcome", lambda *arguments: None)
    assert encode("-j", "2", "--summary", "table.json") == console.INTERRUPTED
    done = [row["file"] for row in json.loads(Path("table.json").read_text())]
    assert os.path.join("in", "sub", "b.JPG") in done


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_in_is_refused_before_the_work(tree, codec, capsys):
    codec.load_model = lambda *a: pytest.fail("the model is not needed for that")
    os.mkdir("out", 0o500)
    assert main(["encode", "in/a.png", "-o", "out/a.hvci"]) == OutputError.exit_code
    assert "permission denied" in capsys.readouterr().err


def test_infinite_psnr_is_null_in_json(tree, codec):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("black.png")
    assert main(["encode", "black.png", "--summary", "t.json", "--quiet"]) == 0
    assert json.loads(Path("t.json").read_text())[0]["psnr"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["in"], InputError.exit_code, "in: is a directory; -r"),
        (["in", "-r", "--output-dir", "out", "-o", "x"], UsageError.exit_code, "not allowed with"),
        (["in", "-r", "-o", "nowhere"], UsageError.exit_code, "existing folder"),
        (["in", "-r", "--summary", "table.txt"], UsageError.exit_code, ".csv or .json"),
        (["in", "-r", "--summary", "nowhere/table.csv"], OutputError.exit_code, "no such folder"),
        (["empty", "-r"], InputError.exit_code, "no such files"),
        (["in", "-r", "--output-dir", "in/notes.txt"], 9, "cannot make the folder"),
        (["in", "in", "-r", "--output-dir", "out"], UsageError.exit_code, "would both be written"),
    ],
)
def test_refused(arguments, code, complaint, tree, codec, capsys):
    os.mkdir("empty")
    before = files_below(".")
    assert main(["encode", *arguments]) == code
    assert complaint in capsys.readouterr().err
    assert files_below(".") == before


def test_a_symbolic_link_to_a_folder_above_is_not_followed(tree, codec):
    os.symlink("..", "in/sub/up")
    assert encode("--quiet") == 0 and files_below("out") == MIRRORED


def test_inputs_in_a_folder_that_vanish_are_told(tree, codec, monkeypatch, capsys):
    real = jobs.jobs_for

    def plan_and_remove(*arguments):
        planned = real(*arguments)
        os.remove("in/a.png")
        return planned

    monkeypatch.setattr("hvcompress.commands.jobs_for", plan_and_remove)
    assert encode() == InputError.exit_code
    assert "3 done, 1 failed" in capsys.readouterr().out


def test_a_terminal_sees_how_far_it_is(tree, codec, monkeypatch):
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", buffering=1) as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        assert encode() == 0
    seen = ""
    with os.fdopen(leader, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO is a terminal's end
        while part := terminal.read(1 << 16):
            seen += part.decode()
    assert "files  [" in seen and "4/4" in seen and seen.rstrip().endswith("\x1b[K")
