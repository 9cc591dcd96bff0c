from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import types
import zlib
from pathlib import Path

import fake_codec
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, features
from test_metadata import XMP_PACKET, exif_data

import hvcompress
from hvcompress import console, container, errors, model
from hvcompress.cli import main
from hvcompress.console import exit_codes
from hvcompress.container import MAGIC
from hvcompress.errors import HvcompressError, InputError, MismatchError, ModelError, UsageError
from hvcompress.image_writing import FORMATS
from hvcompress.jobs import Inputs, jobs_for
from hvcompress.metadata import EXIF_PREFIX

ROOT = Path(hvcompress.__file__).parents[1]
COMMANDS = ("encode", "decode", "info", "rates", "inspect", "models", "test")


@pytest.fixture
def codec(monkeypatch):
    """Stands in for hvcompress.loading; tests may replace its functions."""
    made = fake_codec.module()
    monkeypatch.setitem(sys.modules, "hvcompress.loading", made)
    return made


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_photo(path, height: int = 24, width: int = 32, mode: str = "RGB") -> np.ndarray:
    """Save a noisy gradient; returns its pixels."""
    planes = len(Image.new(mode, (1, 1)).getbands())
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None] + 7 * np.arange(planes)
    array = (ramp + np.random.default_rng(1).integers(0, 9, ramp.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(array.squeeze(2) if planes == 1 else array).save(path)
    return array


def hvci(path) -> bytes:
    picture = fake_codec.Picture(np.full((24, 32, 3), 90, np.uint8))
    data = fake_codec.FakeCodec().encode(picture).data
    Path(path).write_bytes(data)
    return data


def standard_input(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def one_line(captured) -> str:
    """The only line on standard error; nothing may be on standard output."""
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("hvcompress: ")
    assert "Traceback" not in captured.err
    return captured.err.rstrip("\n").removeprefix("hvcompress: ")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent)))}


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    """The command line with the fake codec in a process of its own; output is bytes."""
    command = [sys.executable, "-m", "fake_codec", *arguments]
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(command, stderr=subprocess.PIPE, env=environment(), **options)


# --------------------------------------------------------------------------------------------------------------------
# Help and arguments


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)], ids=["top", *COMMANDS])
def test_help_fits_one_screen_and_has_an_example(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*arguments, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 38 and max(map(len, lines)) <= 80
    assert any(line.startswith("example: hvcompress ") for line in lines)


def test_no_arguments_print_the_help_and_fail(capsys):
    assert main([]) == UsageError.exit_code
    assert "usage: hvcompress" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hvcompress {hvcompress.__version__}\n"


def test_exit_codes_are_those_of_the_classes_and_distinct(capsys):
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HvcompressError)]
    codes = [kind.exit_code for kind in classes]
    assert len(set(codes)) == len(codes)
    assert set(exit_codes()) == {0, *codes, 70, 129, 130, 143}
    main(["--help"])
    printed = capsys.readouterr().out
    for code, meaning in exit_codes().items():
        assert f"\n  {code:3}  {meaning}\n" in printed and 5 < len(meaning) < 76


def test_help_names_all_formats(capsys):
    main(["decode", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert all(name.lstrip(".") in printed for name in FORMATS if name not in (".jpeg", ".tiff"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode"], "INPUT"),
        (["explode", "a"], "invalid choice"),
        (["encode", "a", "--quali", "3"], "unrecognized arguments: --quali 3 (see hvcompress encode --help)"),
        (["encode", "a", "-q"], "expected one argument"),
        (["encode", "a", "-q", "101"], "0 to 100"),
        (["encode", "a", "-q", "-1"], "0 to 100"),
        (["encode", "a", "-q", "60.5"], "0 to 100"),
        (["encode", "a", "-q", "high"], "0 to 100"),
        (["encode", "a", "-q", "١"], "0 to 100"),
        (["encode", "a", "--beta", "1,x"], "--beta: must be numbers"),
        (["encode", "a", "--beta", ""], "--beta: must be numbers"),
        (["encode", "a", "--beta", "1,,1"], "--beta: must be numbers"),
        (["encode", "a", "--beta", "0"], "--beta: beta must be a positive number"),
        (["encode", "a", "--beta", "nan"], "--beta: beta must be a positive number"),
        (["encode", "a", "--beta", "1,1e9"], "out of range"),
        (["encode", "a", "b", "-o", "c.hvci"], "must be an existing folder"),
        (["encode", "a", "b", "-o", "-"], "must be an existing folder"),
        (["encode", "-", "-"], "only once"),
        (["encode", "x/a.png", "x/a.jpg"], "x/a.png and x/a.jpg would both be written to x/a.hvci"),
        (["encode", "a.png", "./a.png"], "would both be written"),
        (["decode", "a.hvci", "--format", "gif"], "cannot write '.gif'"),
        (["info"], "FILE"),
    ],
)
def test_argument_errors(arguments, message, here, codec, capsys):
    assert main(arguments) == UsageError.exit_code == 2
    assert message in one_line(capsys.readouterr())
    assert os.listdir(here) == []


def test_light_commands_import_neither_torch_nor_more_than_they_need(here):
    save_photo("a.png")
    hvci("a.hvci")
    Path("text.hvci").write_text("neither image nor ours")
    program = f"""
import contextlib, io, sys
from hvcompress.cli import main
def silently(*arguments):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main(list(arguments))
assert silently("--version") == 0
for command in ("", *{COMMANDS}):
    assert silently(*command.split(), "--help") == 0
assert silently("encode", "a.png", "-q", "101") == 2
assert not {{"torch", "numpy", "PIL"}} & set(sys.modules), "help and argument errors"
assert silently("info", "a.hvci") == 0
assert silently("models") in (0, 6)
assert silently("encode", "none.png", "text.hvci", "-o", ".") == 3
assert silently("decode", "text.hvci", "none.hvci") == 4
assert silently("encode", "a.png", "-o", "a.hvci") == 2
assert "torch" not in sys.modules, "info, models and bad files"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------------------------------
# Encode and decode


def test_round_trip_beside_the_input(here, codec, capsys):
    save_photo("photo.png")
    assert main(["encode", "photo.png"]) == 0
    line = capsys.readouterr().out
    sizes = os.path.getsize("photo.png"), os.path.getsize("photo.hvci")
    bpp = 8 * sizes[1] / (24 * 32)
    pattern = rf"photo\.png  32x24  {sizes[0]:,} -> {sizes[1]:,} bytes  {bpp:.3f} bpp  \d\d\.\d\d dB  1\.25 s\n"
    assert re.fullmatch(pattern, line), line
    os.unlink("photo.png")
    assert main(["decode", "photo.hvci"]) == 0
    assert re.fullmatch(r"photo\.hvci  32x24  [\d,]+ -> [\d,]+ bytes  \d\.\d\d s\n", capsys.readouterr().out)
    assert Image.open("photo.png").size == (32, 24)


def test_quality_defaults_to_60_and_is_passed_on(here, codec):
    save_photo("a.png")
    main(["encode", "a.png"])
    main(["encode", "a.png", "-q", "7", "-o", "b.hvci", "--beta", "2,1,0.5"])
    assert hvcompress.read_info(Path("a.hvci").read_bytes()).quality == 60
    info = hvcompress.read_info(Path("b.hvci").read_bytes())
    assert info.quality == 7 and info.offsets[0] > 0 == info.offsets[1] > info.offsets[2]


def test_wrong_number_of_betas(here, codec, capsys):
    save_photo("a.png")
    assert main(["encode", "a.png", "--beta", "1,1"]) == 2
    assert "3 layers, but 2 betas" in one_line(capsys.readouterr())
    assert os.listdir(here) == ["a.png"]


def test_without_verification_there_is_no_psnr(here, codec, capsys):
    save_photo("a.png")
    assert main(["encode", "a.png", "--no-verify"]) == 0
    assert "bpp  -  1.25 s\n" in capsys.readouterr().out


def test_quiet(here, codec, capsys):
    save_photo("a.png")
    assert main(["encode", "a.png", "--quiet"]) == 0
    assert main(["decode", "a.hvci", "-o", "b.png", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["encode", "none.png", "--quiet"]) == 3
    assert "none.png" in one_line(capsys.readouterr())


def test_several_files_are_counted_and_aligned(here, codec, capsys):
    os.mkdir("out")
    for number in range(11):
        save_photo(f"{'n' * number}_{number}.png", height=1 + 9 * number, width=5)
    names = [name for name in os.listdir(here) if name != "out"]
    assert main(["encode", *names, "-o", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 == len(os.listdir("out"))
    assert lines[0].startswith("[ 1/11] ") and lines[-1].startswith("[11/11] ")
    assert len({len(line) for line in lines}) == 1 and len({line.index(" -> ") for line in lines}) == 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_gray_and_alpha_survive(mode, here, codec):
    array = save_photo("a.png", mode=mode)
    assert main(["encode", "a.png", "-q", "100"]) == 0
    assert main(["decode", "a.hvci", "-o", "b.png"]) == 0
    back = Image.open("b.png")
    assert back.mode == mode
    assert np.array_equal(np.asarray(back).reshape(array.shape), array)


def test_one_pixel(here, codec):
    save_photo("a.png", 1, 1)
    assert main(["encode", "a.png"]) == 0
    assert main(["decode", "a.hvci", "-f"]) == 0
    assert Image.open("a.png").size == (1, 1)


@pytest.mark.parametrize("name", ["png", "PPM", ".jpg", "webp", "tif", "bmp", "avif"])
def test_formats(name, here, codec):
    if name == "avif" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    hvci("a.hvci")
    assert main(["decode", "a.hvci", "--format", name]) == 0
    suffix = "." + name.lower().lstrip(".")
    assert Image.open("a" + suffix).format == FORMATS[suffix][0]
    assert main(["decode", "a.hvci", "-o", "B" + suffix.upper()]) == 0
    assert Image.open("B" + suffix.upper()).format == FORMATS[suffix][0]


def save_with_everything(path) -> None:
    """With a profile, EXIF (turned) and XMP."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(np.full((24, 32, 3), 90, np.uint8))
    image.save(path, icc_profile=profile, exif=EXIF_PREFIX + exif_data(), xmp=XMP_PACKET)


def metadata_of(path) -> set[str]:
    with Image.open(path) as image:
        image.load()
        assert image.size == (24, 32) and image.getexif().get(0x0112, 1) == 1
        return {"icc_profile", "exif", "xmp"} & image.info.keys()


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ([], {"icc_profile", "exif", "xmp"}),
        (["--strip"], {"icc_profile"}),
        (["--strip-icc"], {"exif", "xmp"}),
        (["--strip-icc", "--strip"], set()),
    ],
)
def test_metadata_are_kept_unless_stripped(options, left, here, codec, capsys):
    save_with_everything("a.webp")
    assert main(["encode", *options, "a.webp"]) == 0
    assert main(["decode", "a.hvci"]) == 0
    assert metadata_of("a.png") == left
    assert main(["encode", "a.webp", "-f"]) == 0
    assert main(["decode", *options, "a.hvci", "-f", "-o", "b.jpg"]) == 0
    assert metadata_of("b.jpg") == left
    capsys.readouterr()
    assert main(["info", "a.hvci"]) == 0
    text = capsys.readouterr().out
    assert "a.hvci: 24x32 RGB with ICC profile, EXIF, XMP, quality 60\n" in text
    assert {"chunk ICCP", "chunk exif", "chunk xmpd"} <= set(re.findall(r"chunk \w{4}", text))


def test_a_memory_limit_is_looked_at_before_the_pixels(here, codec, capsys, monkeypatch):
    save_photo("a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    codec.load_model = lambda *a: pytest.fail("too late")
    assert main(["encode", "a.png", "--memory-limit", "1k"]) == 7
    assert "memory" in one_line(capsys.readouterr()) and os.listdir() == ["a.png"]


def test_an_unknown_output_suffix_is_told_before_work(here, codec, capsys):
    hvci("a.hvci")
    codec.codec_for = lambda *a: pytest.fail("too late")
    assert main(["decode", "a.hvci", "-o", "a.xyz"]) == 2
    assert "'.xyz'" in one_line(capsys.readouterr())


def test_transparency_and_jpeg(here, codec, capsys):
    save_photo("a.png", mode="RGBA")
    assert main(["encode", "a.png", "--quiet"]) == 0
    assert main(["decode", "a.hvci", "--format", "jpg"]) == 2
    assert "a.hvci: .jpg does not store transparency" in one_line(capsys.readouterr())
    assert not os.path.exists("a.jpg")


@pytest.mark.parametrize("name", ["with space", "ünï çödé 画像", "-dash", "%s {0}", "a.b.c", "x" * 240])
def test_odd_names(name, here, codec, capsys):
    save_photo(name + ".png")
    assert main(["encode", "--", name + ".png"]) == 0
    assert main(["decode", "-f", "--", name + ".hvci"]) == 0
    assert sorted(os.listdir(here)) == sorted([name + ".png", name + ".hvci"])
    assert capsys.readouterr().out.count(name) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_are_no_text_or_would_move_the_cursor(here):
    name = os.fsdecode(b"bad\xff\n\x1b[2J.png")
    save_photo(name)
    done = run("encode", name, "none\n.png")
    assert done.returncode == 3
    assert done.stdout.count(b"\n") == 1 and rb"bad\udcff\n\x1b[2J.png" in done.stdout
    assert done.stderr == b"hvcompress: none\\n.png: no such file or directory\n"
    done = run("info", "--json", name.replace("png", "hvci"))
    assert json.loads(done.stdout)["file"] == name.replace("png", "hvci")


def test_output_folders(here, codec):
    os.makedirs("in/deep")
    os.mkdir("out")
    save_photo("in/a.png")
    save_photo("in/deep/b.png")
    assert main(["encode", "in/a.png", "-o", "out"]) == 0
    assert main(["encode", "in/deep/b.png", "in/a.png", "-o", "out/", "-f"]) == 0
    assert sorted(os.listdir("out")) == ["a.hvci", "b.hvci"]
    assert main(["encode", "in/a.png", "in/deep/b.png"]) == 0
    assert os.path.exists("in/a.hvci") and os.path.exists("in/deep/b.hvci")


# --------------------------------------------------------------------------------------------------------------------
# Standard input and output


def test_pipes_carry_data_on_stdout_and_words_on_stderr(here, codec, monkeypatch, capsysbinary):
    save_photo("a.png")
    standard_input(monkeypatch, Path("a.png").read_bytes())
    assert main(["encode", "-"]) == 0
    out, err = capsysbinary.readouterr()
    assert main(["encode", "a.png"]) == 0
    assert out == Path("a.hvci").read_bytes()
    assert err.startswith(b"standard input  32x24  ") and err.count(b"\n") == 1
    capsysbinary.readouterr()
    standard_input(monkeypatch, out)
    assert main(["decode", "-", "--quiet"]) == 0
    out, err = capsysbinary.readouterr()
    assert Image.open(io.BytesIO(out)).format == "PNG" and err == b""
    assert sorted(os.listdir(here)) == ["a.hvci", "a.png"]


def test_mixed_pipes_and_files(here, codec, monkeypatch, capsysbinary):
    save_photo("a.png")
    data = Path("a.png").read_bytes()
    standard_input(monkeypatch, data)
    assert main(["encode", "-", "-o", "b.hvci"]) == 0
    assert main(["encode", "a.png", "-o", "-"]) == 0
    assert capsysbinary.readouterr().out.endswith(Path("b.hvci").read_bytes())
    standard_input(monkeypatch, Path("b.hvci").read_bytes())
    assert main(["decode", "-", "--format", "ppm", "-o", "-"]) == 0
    assert capsysbinary.readouterr().out.startswith(b"P6\n32 24\n255\n")
    os.mkdir("out")
    standard_input(monkeypatch, data)
    assert main(["encode", "-", "a.png", "-o", "out"]) == 0
    assert sorted(os.listdir("out")) == ["a.hvci", "stdin.hvci"]
    standard_input(monkeypatch, Path("b.hvci").read_bytes())
    assert main(["info", "-"]) == 0


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_bad_standard_input(data, here, codec, monkeypatch, capsys):
    for command, code in (("encode", 3), ("decode", 4), ("info", 4)):
        standard_input(monkeypatch, data)
        assert main([command, "-"]) == code
        assert one_line(capsys.readouterr()).startswith("standard input: ")


def test_a_terminal_gets_no_binary_data(here, codec, monkeypatch, capsysbinary):
    save_photo("a.png")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["encode", "a.png", "-o", "-"]) == 2
    out, err = capsysbinary.readouterr()
    assert out == b"" and b"terminal" in err
    assert main(["encode", "a.png", "-o", "-", "-f"]) == 0


def test_effort_is_passed_on_and_its_progress_shown(codec, here, monkeypatch, capsys):
    save_photo("a.png")
    assert main(["encode", "--effort", "4", "a.png"]) == 0
    captured = capsys.readouterr()
    assert "4.25 s" in captured.out and captured.err == ""  # the made-up seconds of fitting; nobody looks
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["encode", "-f", "--effort", "4", "a.png"]) == 0
    captured = capsys.readouterr()
    assert "a.png  [==========          ] 1/2" in captured.err and captured.err.endswith("\r\x1b[K")
    assert main(["encode", "-f", "--quiet", "--effort", "4", "a.png"]) == 0
    assert capsys.readouterr().err == ""


def test_a_preview_from_the_first_layers(codec, here, capsys):
    save_photo("a.png")
    assert main(["encode", "-q", "100", "a.png"]) == 0
    assert main(["decode", "--layers", "3", "a.hvci", "-o", "all.png"]) == 0
    assert main(["decode", "--layers=1", "a.hvci", "-o", "first.png"]) == 0
    assert np.array_equal(np.asarray(Image.open("all.png")), np.asarray(Image.open("a.png")))
    assert not np.asarray(Image.open("first.png")).any()
    capsys.readouterr()
    for layers, said in (("4", "from 1 to 3"), ("0", "--layers"), ("-1", "--layers"), ("x", "--layers")):
        assert main(["decode", f"--layers={layers}", "a.hvci", "-o", "none.png"]) == UsageError.exit_code
        captured = capsys.readouterr()
        assert said in captured.err and captured.err.count("\n") == 1 and not os.path.exists("none.png")


@pytest.mark.parametrize("effort", ["0", "10", "x", "2.5", "-1"])
def test_effort_out_of_range(codec, here, effort, capsys):
    save_photo("a.png")
    assert main(["encode", f"--effort={effort}", "a.png"]) == UsageError.exit_code
    assert "must be a whole number from 1 to 9" in one_line(capsys.readouterr())
    assert not Path("a.hvci").exists()


def test_a_pipeline_of_two_processes(here):
    save_photo("a.png")
    encoded = run("encode", "-", "-q", "100", stdin=open("a.png", "rb"))
    decoded = run("decode", "-", input=encoded.stdout)
    assert (encoded.returncode, decoded.returncode) == (0, 0)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(decoded.stdout))), np.asarray(Image.open("a.png")))


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")
@pytest.mark.parametrize("arguments", [["info", "a.hvci"], ["encode", "a.png", "-o", "-"], ["--help"]])
def test_a_reader_that_went_away(arguments, here):
    save_photo("a.png")
    hvci("a.hvci")
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*arguments, stdout=writing)
    os.close(writing)
    if arguments != ["--help"]:
        assert done.returncode == 9 and done.stderr.count(b"\n") == 1
        assert done.stderr.endswith(b": standard output: nobody reads it any more\n")
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_standard_output(here):
    hvci("a.hvci")
    with open("/dev/full", "wb") as full:
        done = run("decode", "a.hvci", "-o", "-", stdout=full)
    assert done.returncode == 9
    assert done.stderr == b"hvcompress: a.hvci: standard output: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors by a shell")
def test_closed_standard_streams(here):
    save_photo("a.png")
    script = 'exec "$0" -m fake_codec "$@" <&- >&- 2>&-'
    for arguments, code in (
        (["encode", "a.png"], 0),
        (["info", "a.hvci"], 0),
        (["decode", "a.hvci", "-o", "-"], 9),
        (["encode", "-"], 3),
        (["encode", "none.png", "-o", "b.hvci"], 3),
    ):
        done = subprocess.run(["sh", "-c", script, sys.executable, *arguments], env=environment())
        assert done.returncode == code, arguments
    assert sorted(os.listdir(here)) == ["a.hvci", "a.png"]


# --------------------------------------------------------------------------------------------------------------------
# Errors


def huge_png() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(99)), b"IEND"]
    packed = (struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def bad_inputs(folder: Path) -> dict[str, tuple[int, str]]:
    """Makes the files; name -> exit code and what the message says."""
    save_photo(folder / "whole.png")
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:-300])
    (folder / "huge.png").write_bytes(huge_png())
    (folder / "folder.png").mkdir()
    Image.new("F", (3, 3)).save(folder / "float.tif")
    os.unlink(folder / "whole.png")
    return {
        "none.png": (3, "no such file"),
        "text.png": (3, "not an image"),
        "empty.png": (3, "empty"),
        "truncated.png": (3, "truncated"),
        "huge.png": (7, "pixels"),
        "folder.png": (3, "is a directory"),
        "float.tif": (3, "mode F"),
    }


def test_bad_inputs_of_encode(here, codec, capsys):
    codec.load_model = lambda *a: pytest.fail("the model is not needed for that")
    cases = bad_inputs(here)
    before = sorted(os.listdir(here))
    for name, (code, message) in cases.items():
        assert main(["encode", name]) == code
        line = one_line(capsys.readouterr())
        assert line.startswith(name + ": ") and message in line and line.count(name) == 1
    assert sorted(os.listdir(here)) == before


def test_bad_inputs_of_decode_and_info(here, codec, capsys):
    codec.codec_for = lambda *a: pytest.fail("the model is not needed for that")
    good = hvci("good.hvci")
    newer = bytearray(good)
    newer[3] = 99
    flipped = bytearray(good)
    flipped[-5] ^= 4
    cases = {
        "none.hvci": (None, 3, "no such file"),
        "empty.hvci": (b"", 4, "not an .hvci file"),
        "text.hvci": (b"some text that is long enough", 4, "not an .hvci file"),
        "short.hvci": (good[:12], 4, "truncated"),
        "half.hvci": (good[: len(good) // 2], 4, "truncated"),
        "flipped.hvci": (bytes(flipped), 4, "damaged"),
        "newer.hvci": (bytes(newer), 5, "version"),
    }
    os.mkdir("folder.hvci")
    for name, (data, code, message) in {**cases, "folder.hvci": (None, 3, "is a directory")}.items():
        if data is not None:
            Path(name).write_bytes(data)
        for command in ("decode", "info"):
            assert main([command, name]) == code
            line = one_line(capsys.readouterr())
            assert line.startswith(name + ": ") and message in line and line.count(name) == 1
    assert not [name for name in os.listdir(here) if name.endswith(".png")]


def test_every_truncation_of_a_file_is_one_clear_line(here, codec, capsys):
    good = hvci("good.hvci")
    for length in range(len(good)):
        Path("cut.hvci").write_bytes(good[:length])
        assert main(["decode", "cut.hvci"]) == 4
        assert one_line(capsys.readouterr()).startswith("cut.hvci: ")
    assert sorted(os.listdir(here)) == ["cut.hvci", "good.hvci"]


def test_a_bad_input_does_not_stop_the_others_and_the_first_error_decides(here, codec, capsys):
    save_photo("a.png")
    save_photo("c.png")
    Path("huge.png").write_bytes(huge_png())
    assert main(["encode", "a.png", "huge.png", "none.png", "c.png"]) == 7
    out, err = capsys.readouterr()
    assert [line[:12] for line in out.splitlines()] == ["[1/4] a.png ", "[4/4] c.png "]
    assert [line.split(": ")[1] for line in err.splitlines()] == ["huge.png", "none.png"]
    assert os.path.exists("a.hvci") and os.path.exists("c.hvci")
    assert main(["info", "none", "a.hvci", "huge.png"]) == 3
    assert "a.hvci: 32x24 RGB" in capsys.readouterr().out


def test_existing_output_needs_force(here, codec, capsys):
    save_photo("a.png")
    Path("a.hvci").write_bytes(b"old")
    codec.load_model = lambda *a: pytest.fail("told too late")
    assert main(["encode", "a.png"]) == 2
    assert one_line(capsys.readouterr()) == "a.png: a.hvci exists already; -f overwrites it"
    assert Path("a.hvci").read_bytes() == b"old"
    codec.load_model = fake_codec.load_model
    assert main(["encode", "a.png", "-f"]) == 0
    assert container.read_info(Path("a.hvci").read_bytes()).width == 32


@pytest.mark.parametrize("force", [[], ["-f"]])
def test_input_and_output_must_differ(force, here, codec, capsys):
    data = hvci("a.hvci")
    os.link("a.hvci", "linked.hvci")
    for arguments in (
        ["decode", "a.hvci", "-o", "a.hvci"],
        ["decode", "a.hvci", "-o", str(here / "a.hvci")],
        ["decode", "a.hvci", "-o", "linked.hvci"],
        ["encode", "a.hvci"],
    ):
        assert main([*arguments, *force]) == 2
        assert "overwrite the input" in one_line(capsys.readouterr())
    assert Path("a.hvci").read_bytes() == data


def test_a_whole_folder_may_be_named_again(here, codec, capsys):
    """`encode *` after a first run: the photo is done again with -f, its result is refused as an input."""
    save_photo("a.png")
    assert main(["encode", "a.png"]) == 0
    assert main(["encode", "-f", "a.hvci", "a.png"]) == 2
    out, err = capsys.readouterr()
    assert "[2/2] a.png" in out and "a.hvci: the output would overwrite the input" in err


def test_outputs_that_cannot_be_written(here, codec, capsys, monkeypatch):
    save_photo("a.png")
    codec.load_model = lambda *a: pytest.fail("told too late")
    assert main(["encode", "a.png", "-o", "none/a.hvci"]) == 9
    assert "no such folder" in one_line(capsys.readouterr())
    codec.load_model = fake_codec.load_model
    real = os.open

    def refuse(path, flags, *rest, **options):
        if flags & (os.O_CREAT | getattr(os, "O_TMPFILE", 0) & ~getattr(os, "O_DIRECTORY", 0)):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert main(["encode", "a.png"]) == 9
    assert one_line(capsys.readouterr()) == "a.png: cannot write a.hvci: permission denied"


def test_a_disk_that_is_full_leaves_the_old_file(here, codec, capsys, monkeypatch):
    save_photo("a.png")
    Path("a.hvci").write_bytes(b"old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["encode", "a.png", "-f"]) == 9
    assert "no space left" in one_line(capsys.readouterr())
    assert Path("a.hvci").read_bytes() == b"old" and sorted(os.listdir(here)) == ["a.hvci", "a.png"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model", "none"], 6, "unknown model 'none' (installed: fake)"),
        (["--device", "cuda:7"], 10, "there is no device cuda:7"),
    ],
)
def test_an_unknown_model_or_device_is_told_once(options, code, message, here, codec, capsys):
    save_photo("a.png")
    save_photo("b.png")
    assert main(["encode", "a.png", "b.png", *options]) == code
    assert one_line(capsys.readouterr()) == message
    assert sorted(os.listdir(here)) == ["a.png", "b.png"]
    assert main(["test", *options]) == code
    assert one_line(capsys.readouterr()) == message


def test_a_file_of_another_model_is_its_own_problem(here, codec, capsys):
    data = bytearray(hvci("b.hvci"))
    data[9] ^= 1
    data[4:8] = zlib.crc32(data[8:]).to_bytes(4, "little")
    Path("a.hvci").write_bytes(data)
    assert main(["decode", "a.hvci", "b.hvci", "--quiet"]) == 6
    assert one_line(capsys.readouterr()).startswith("a.hvci: the file was made with a model that is not installed")
    assert os.path.exists("b.png") and not os.path.exists("a.png")


@pytest.mark.parametrize(
    ("problem", "code", "message"),
    [
        (MismatchError("the decoded latents are not those of the encoder"), 8, "a.png: the decoded latents are not"),
        (RuntimeError("first line\nsecond line"), 70, "a.png: unexpected RuntimeError: first line (HVCOMPRESS_DEBUG=1"),
        (ValueError(), 70, "a.png: unexpected ValueError"),
        (MemoryError(), 7, "a.png: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 7, "a.png: not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 3 GiB"), 7, "a.png: not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["mismatch", "unexpected", "no message", "memory", "torch memory", "cuda memory", "ctrl-c"],
)
def test_trouble_inside_the_codec(problem, code, message, here, codec, capsys, monkeypatch):
    save_photo("a.png")

    def fail(*arguments, **options):
        raise problem

    monkeypatch.setattr(fake_codec.FakeCodec, "encode", fail)
    assert main(["encode", "a.png"]) == code
    assert one_line(capsys.readouterr()).startswith(message)
    assert os.listdir(here) == ["a.png"]


def test_a_true_interrupt_stops_everything_and_leaves_nothing(here, codec, capsys, monkeypatch):
    save_photo("a.png")
    save_photo("b.png")
    monkeypatch.setattr(os, "fsync", lambda descriptor: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have it ignored
    try:
        assert main(["encode", "a.png", "b.png"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert one_line(capsys.readouterr()) == "interrupted"
    assert sorted(os.listdir(here)) == ["a.png", "b.png"]


def test_a_traceback_is_there_for_those_who_ask(here, codec, capsys, monkeypatch):
    save_photo("a.png")
    monkeypatch.setenv("HVCOMPRESS_DEBUG", "1")
    monkeypatch.setattr(fake_codec.FakeCodec, "encode", lambda *a, **k: 1 // 0)
    assert main(["encode", "a.png"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_trouble_outside_any_file(capsys, monkeypatch):
    from hvcompress import model

    monkeypatch.setattr(model, "find_models", lambda: 1 // 0)
    assert main(["models"]) == 70
    assert one_line(capsys.readouterr()).startswith("unexpected ZeroDivisionError: ")


# --------------------------------------------------------------------------------------------------------------------
# Info, models, test

DOCUMENTED = """file version width height gray alpha icc exif xmp quality state_bits offsets fingerprint header_bytes
layer_bytes chunk_bytes file_bytes latent_hash betas model bpp""".split()


def test_info_as_json(here, codec, capsys):
    save_photo("a b.png", mode="LA")
    main(["encode", "a b.png", "-q", "33", "--beta", "1,2,1", "--quiet"])
    assert main(["info", "--json", "a b.hvci", "a b.hvci"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = json.loads(lines[0])
    assert lines[0] == lines[1] and len(lines) == 2
    assert list(values) == DOCUMENTED
    size = os.path.getsize("a b.hvci")
    assert values["file"] == "a b.hvci" and values["file_bytes"] == size and values["bpp"] == 8 * size / 768
    assert (values["width"], values["height"], values["gray"], values["alpha"]) == (32, 24, True, True)
    assert values["quality"] == 33 and values["offsets"][::2] == [0, 0] and values["betas"][1] == pytest.approx(2, 0.05)
    assert values["fingerprint"] == fake_codec.FINGERPRINT[:8] and values["model"] is None
    assert len(values["layer_bytes"]) == 3 and list(values["chunk_bytes"]) == ["ALPH"]


def test_the_keys_are_documented_in_the_help(capsys):
    main(["info", "--help"])
    words = re.findall(r"\w+", capsys.readouterr().out)
    assert set(DOCUMENTED) <= set(words)
    main(["models", "--help"])
    words = re.findall(r"\w+", capsys.readouterr().out)
    assert {"name", "fingerprint", "parameters", "description", "path", "default"} <= set(words)


def test_info_for_people_accounts_for_every_byte(here, codec, capsys):
    save_photo("a.png", mode="RGBA")
    main(["encode", "a.png", "--beta", "1,2,1", "--quiet"])
    assert main(["info", "a.hvci"]) == 0
    text = capsys.readouterr().out
    assert "a.hvci: 32x24 RGB with alpha, quality 60\n" in text
    assert fake_codec.FINGERPRINT[:8] in text and "not installed" in text
    rows = re.findall(r"^  (.+?)\s+([\d,]+) bytes\s+([\d.]+) %$", text, re.M)
    labels = [label for label, _, _ in rows]
    assert labels[:2] == ["header", "layer 1"] and re.fullmatch(r"layer 2, beta (1\.9|2\.0)\d", labels[2])
    assert labels[3:] == ["layer 3", "chunk ALPH", "chunk headers"]
    assert sum(int(size.replace(",", "")) for _, size, _ in rows) == os.path.getsize("a.hvci")
    assert sum(float(share) for _, _, share in rows) == pytest.approx(100, abs=0.5)


def model_folder(shelf: Path, name: str) -> None:
    values = {"name": name, "fingerprint": fake_codec.FINGERPRINT, "description": "for tests", "parameters": 12345678}
    values |= {"network": {}, "self_test": "", "encoder_sha256": ""}
    (shelf / name).mkdir(parents=True)
    (shelf / name / "config.json").write_text(json.dumps(values))


def test_models_are_listed(here, capsys, monkeypatch):
    monkeypatch.setenv("HVCOMPRESS_MODELS", str(here / "shelf"))
    model_folder(here / "shelf", "some-model")
    assert main(["models"]) == 0
    assert re.search(r"^  some-model\s+c0ffee00  12\.3 M parameters  for tests$", capsys.readouterr().out, re.M)
    assert main(["models", "--json"]) == 0
    values = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {
        "name": "some-model",
        "fingerprint": fake_codec.FINGERPRINT,
        "parameters": 12345678,
        "description": "for tests",
        "path": str(here / "shelf" / "some-model"),
        "default": False,
    } in values
    hvci("a.hvci")
    assert main(["info", "a.hvci"]) == 0
    assert "c0ffee00 (some-model)" in capsys.readouterr().out


def test_info_does_not_mind_a_damaged_model(here, capsys, monkeypatch):
    monkeypatch.setenv("HVCOMPRESS_MODELS", str(here / "shelf"))
    model_folder(here / "shelf", "broken")
    (here / "shelf" / "broken" / "config.json").write_text("{")
    hvci("a.hvci")
    assert main(["info", "a.hvci"]) == 0
    assert "not installed" in capsys.readouterr().out
    assert main(["models"]) == 0
    assert "broken" not in capsys.readouterr().out
    save_photo("b.png")
    assert main(["encode", "b.png", "--model", "broken"]) == 6
    assert "damaged" in one_line(capsys.readouterr())


def test_no_model_at_all(capsys, monkeypatch):
    from hvcompress import model

    monkeypatch.setattr(model, "find_models", list)
    assert main(["models"]) == 6
    assert "HVCOMPRESS_MODELS" in one_line(capsys.readouterr())


def test_the_test_command(codec, capsys, monkeypatch):
    assert main(["test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(line.startswith("ok  ") for line in lines)
    decode = fake_codec.FakeCodec.decode
    calls = []

    def unsteady(self, data):
        picture = decode(self, data)
        calls.append(picture.pixels.__iadd__(len(calls)))
        return picture

    monkeypatch.setattr(fake_codec.FakeCodec, "decode", unsteady)
    assert main(["test"]) == 1
    assert "two decodings of the same bytes differ" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------------
# Planning


def test_plan(here):
    os.mkdir("out")

    def outputs(sources, output=None, suffix=".hvci"):
        return [job.output for job in jobs_for(Inputs(sources, output), suffix)]

    assert outputs(["a.png", "b/c.jpg", "d", ".e"]) == ["a.hvci", "b/c.hvci", "d.hvci", ".e.hvci"]
    assert outputs(["a.png"], "b.x") == ["b.x"]
    assert outputs(["b/a.png"], "out") == [os.path.join("out", "a.hvci")]
    assert outputs(["-"]) == ["-"] and outputs(["-"], "x") == ["x"] and outputs(["a.png"], "-") == ["-"]
    assert outputs(["-"], "out") == [os.path.join("out", "stdin.hvci")]
    assert outputs(["a.hvci"], None, ".png") == ["a.png"]
    with pytest.raises(UsageError, match=r"a\.png and a\.png would both"):
        outputs(["a.png"] * 2)


def test_short_names_are_named_too(here, codec, capsys):
    """`n` is also how "not an image" starts."""
    Path("n").write_text("no image")
    assert main(["encode", "n"]) == 3
    assert one_line(capsys.readouterr()).startswith("n: not an image")


# --------------------------------------------------------------------------------------------------------------------
# With the true codec


def test_end_to_end(here, tiny_folder, monkeypatch, capsys):
    monkeypatch.setenv("HVCOMPRESS_MODELS", str(tiny_folder.parent))
    array = save_photo("a.png", 70, 45, "RGBA")
    assert main(["encode", "a.png", "--model", "tiny", "--device", "cpu", "--beta", "1,1,1,2,1,1"]) == 0
    assert main(["info", "a.hvci"]) == 0
    assert main(["decode", "a.hvci", "-o", "b.png", "--device", "cpu"]) == 0  # the model is found by its fingerprint
    out, err = capsys.readouterr()
    assert err == "" and " dB  " in out and "(tiny)" in out and "layer 4, beta 2.0" in out
    assert np.array_equal(np.asarray(Image.open("b.png"))[..., 3], array[..., 3])


def test_run_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "hvcompress", "encode", "-q", "x"], capture_output=True, env=environment()
    )
    assert done.returncode == 2 and done.stderr.startswith(b"hvcompress: argument -q/--quality: must be a whole number")


def test_errors_of_the_true_codec(here, tiny_folder, capsys):
    save_photo("a.png")
    for options, code, message in (
        (["--beta", "1,1"], 2, "a.png: the model has 6 layers, but 2 betas were given"),
        (["--model", "none"], 6, "unknown model 'none'"),
        (["--model", str(here)], 6, "unknown model"),
        (["--device", "abacus"], 2, "a.png: unknown device 'abacus'"),
        (["--device", "cuda:99"], 10, "there is no device cuda:99"),
    ):
        assert main(["encode", "a.png", "--model", str(tiny_folder), *options]) == code
        assert one_line(capsys.readouterr()).startswith(message)
    assert os.listdir(here) == ["a.png"]
    assert main(["encode", "a.png", "--model", str(tiny_folder), "--device", "cpu", "--quiet"]) == 0
    assert main(["decode", "a.hvci", "-o", "b.png"]) == 6  # the tiny model is not among the installed ones
    assert one_line(capsys.readouterr()).startswith("a.hvci: the file was made with a model that is not installed")
    assert main(["decode", "a.hvci", "-o", "b.png", "--model", str(tiny_folder), "--device", "cpu"]) == 0


def test_the_shipped_model(here, capsys):
    from hvcompress.model import DEFAULT_MODEL, find_models

    if DEFAULT_MODEL not in [model.name for model in find_models()]:
        pytest.skip(f"model {DEFAULT_MODEL} is not here")
    save_photo("a.png", 70, 45, "RGB")
    assert main(["encode", "a.png"]) == 0
    assert float(re.search(r"([\d.]+) dB", capsys.readouterr().out)[1]) > 25
    assert main(["info", "a.hvci"]) == 0
    assert f"({DEFAULT_MODEL})" in capsys.readouterr().out
    assert main(["decode", "a.hvci", "-o", "b.png"]) == 0
    assert main(["test"]) == 0


def test_standard_input_is_read_whole_or_not_at_all(monkeypatch):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(reading, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stream))
        with pytest.raises(InputError, match="O_NONBLOCK"):
            console.read_standard_input()
        os.set_blocking(reading, True)
        os.write(writing, MAGIC[:2] + b"something else")  # and more may follow for ever
        assert console.read_standard_input(MAGIC) == MAGIC[:2] + b"s"
        os.write(writing, MAGIC + b"rest")
        stream.read(len(b"omething else"))
        os.close(writing)
        assert console.read_standard_input(MAGIC) == MAGIC + b"rest"


@pytest.mark.parametrize("shelf", ["x" * 300, "no/such"])
def test_a_shelf_that_cannot_be_looked_at_is_passed_over(shelf, monkeypatch):
    expected = {folder.name for folder in model.find_models()}
    monkeypatch.setenv("HVCOMPRESS_MODELS", shelf)
    assert {folder.name for folder in model.find_models()} <= expected
    with pytest.raises(ModelError, match="unknown model"):
        model.find_model("y" * 300)
