"""Named allocations, and the rates of layers: numbers, maps, and the command."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import sys
import threading

import numpy as np
import pytest
from PIL import Image

import hvcompress
from hvcompress import container
from hvcompress.allocation import ALLOCATIONS, REACH, allocation_offsets
from hvcompress.analysis.rates import LayerRate, cubehelix, heat_maps, layer_rates
from hvcompress.cli import main
from hvcompress.entropy import TOTAL, LayerCoder, gaussian_tables, path_of
from hvcompress.errors import MismatchError, UsageError
from hvcompress.machine import machine_of
from hvcompress.picture import Picture
from hvcompress.quality import beta_of
from hvcompress.scales import SCALE_LEVELS

STRIDES = (64, 32, 16, 16, 16, 8, 8, 8)  # of the shipped model
KEYS = "file width height quality model file_bytes bpp bits estimated_bits layers maps".split()
LAYER_KEYS = "layer stride offset beta bits bpp share cumulative estimated_bits".split()


@pytest.fixture
def here(tmp_path, monkeypatch, photo):
    """A current folder with photo.png and an empty folder maps."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo).save("photo.png")
    os.mkdir("maps")
    return tmp_path


@pytest.fixture
def rates(tiny_folder, here):
    """Runs the command with the tiny model, in the folder."""
    return lambda *arguments: main(["rates", "--model", str(tiny_folder), "--device", "cpu", *arguments])


@pytest.fixture(scope="session")
def coded(tiny, photo):
    """Allocation -> the photo with the tiny model."""
    return {
        name: tiny.encode(Picture(photo), 70, allocation_offsets(name, tiny.strides), verify=False).data
        for name in ALLOCATIONS
    }


def one_line(captured) -> str:
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("hvcompress: ")
    return captured.err.rstrip("\n").removeprefix("hvcompress: ")


# --------------------------------------------------------------------------------------------------------------------
# Allocations


def test_offsets_of_the_allocations():
    assert allocation_offsets("hyperprior", STRIDES) == (-14, -5, 5, 5, 5, 14, 14, 14)
    assert allocation_offsets("detail", STRIDES) == (14, 5, -5, -5, -5, -14, -14, -14)
    assert allocation_offsets("balanced", STRIDES) == (0,) * 8
    assert allocation_offsets("hyperprior", (64, 4)) == (-REACH, REACH)
    assert allocation_offsets("detail", (32, 16, 8)) == (REACH, 0, -REACH)
    assert allocation_offsets("detail", (16, 16)) == (0, 0)
    assert 0.4 < beta_of(-REACH) < 0.5 and 2 < beta_of(REACH) < 2.5
    with pytest.raises(UsageError, match="one of hyperprior, balanced, detail, not 'even'"):
        allocation_offsets("even", STRIDES)


def test_allocations_move_the_shares(tiny, coded):
    strides = tiny.strides
    assert strides == (64, 32, 16, 16, 8, 8)
    coarse, fine = {}, {}
    for name, data in coded.items():
        measured = layer_rates(tiny, data)
        coarse[name] = sum(rate.share for rate in measured if rate.stride > 16)
        fine[name] = sum(rate.share for rate in measured if rate.stride < 16)
    # Weak margins: of random weights, only the quantization steps know of the betas.
    assert coarse["hyperprior"] > 1.05 * coarse["balanced"] and coarse["balanced"] > 1.05 * coarse["detail"]
    assert fine["hyperprior"] < 0.99 * fine["balanced"] and fine["balanced"] < 0.99 * fine["detail"]


def test_allocations_in_the_library(tiny_folder, tiny, photo, coded):
    options = {"quality": 70, "model": tiny_folder, "device": "cpu", "verify": False}
    assert hvcompress.encode(photo, allocation="detail", **options) == coded["detail"]
    assert hvcompress.read_info(coded["detail"]).offsets == allocation_offsets("detail", tiny.strides)
    plain = hvcompress.encode(photo, **options)
    assert hvcompress.encode(photo, allocation="balanced", **options) == plain == coded["balanced"]
    assert next(hvcompress.encode_batch([photo], allocation="hyperprior", **options)) == coded["hyperprior"]
    with pytest.raises(UsageError, match="beta and allocation"):
        hvcompress.encode(photo, beta=[1] * 6, allocation="balanced", **options)
    with pytest.raises(UsageError, match="not 'even'"):
        hvcompress.encode(photo, allocation="even", **options)


def test_allocations_on_the_command_line(here, tiny_folder, capsys):
    settings = ["--model", str(tiny_folder), "--device", "cpu", "--no-verify", "--quiet"]
    assert main(["encode", "photo.png", "--allocation", "hyperprior", *settings]) == 0
    assert hvcompress.read_info((here / "photo.hvci").read_bytes()).offsets == (-14, -5, 5, 5, 14, 14)
    assert main(["info", "photo.hvci"]) == 0
    assert re.search(r"layer 1, beta 0\.46 .*layer 6, beta 2\.17 ", capsys.readouterr().out, re.S)
    for command in ("encode", "rates"):
        assert main([command, "photo.png", "--allocation", "detail", "--beta", "1,1"]) == 2
        assert "not allowed with argument" in one_line(capsys.readouterr())
        assert main([command, "photo.png", "--allocation", "even"]) == 2
        assert "invalid choice: 'even'" in one_line(capsys.readouterr())


# --------------------------------------------------------------------------------------------------------------------
# Bits


def test_bits_symbol_by_symbol():
    """Against the definition, walked by hand: one lane, in the order of the layer, without what is not coded."""
    tables = gaussian_tables()
    coder, generator = LayerCoder(tables), np.random.default_rng(3)
    indices = generator.integers(0, 40, (3, 4, 5)).astype(np.uint8)
    symbols = generator.integers(-3, 4, indices.shape).astype(np.int16)
    symbols[1, 2, 3], indices[1, 2, 3] = 5000, 7  # escapes
    expected, state = np.empty(indices.shape), 0
    for c, y, x in np.ndindex(symbols.shape):
        k, index = int(symbols[c, y, x]), int(indices[c, y, x])
        if index == 0:  # nothing is coded
            expected[c, y, x] = 0.0
            continue
        frequencies, reach = tables.frequencies[SCALE_LEVELS * (state & 1) + index], int(tables.reach[index])
        inside = abs(k) <= reach
        # Half of the escape's frequency belongs to either parity, and 16 bits follow.
        probability = frequencies[k + reach] / TOTAL if inside else frequencies[-1] / TOTAL / 2 / 2**16
        expected[c, y, x] = -np.log2(probability)
        state = machine_of(8).following[state, k & 1]
    found = coder.symbol_bits(path_of(symbols, indices), indices)
    assert found.shape == (3, 4, 5) and np.allclose(found, expected, rtol=1e-9)
    assert found[1, 2, 3] > 30


@pytest.mark.parametrize("shape", [(32, 1, 1), (16, 3, 5), (200, 2, 3), (3, 40, 33), (4, 0, 7)])
def test_symbol_bits_sum_to_bits(shape):
    """Lanes that are not full, and several of them."""
    coder, generator = LayerCoder(gaussian_tables()), np.random.default_rng(4)
    indices = generator.integers(0, SCALE_LEVELS, shape).astype(np.uint8)
    levels = path_of(generator.integers(-2, 3, shape).astype(np.int16), indices)
    found = coder.symbol_bits(levels, indices)
    assert found.shape == shape and np.array_equal(found > 0, indices > 0)
    assert found.sum() == pytest.approx(coder.bits(levels, indices), rel=1e-12)


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_rates_of_a_file(tiny, photo, coded, name):
    data = coded[name]
    info, measured = hvcompress.read_info(data), layer_rates(tiny, data)
    height, width = photo.shape[:2]
    assert [rate.layer for rate in measured] == [1, 2, 3, 4, 5, 6]
    assert tuple(rate.offset for rate in measured) == info.offsets
    assert tuple(rate.bits for rate in measured) == tuple(8 * size for size in info.layer_bytes)
    assert [rate.estimated_bits for rate in measured] == pytest.approx(tiny.estimated_bits(data))
    for rate in measured:
        assert rate.position_bits.shape == (128 // rate.stride, 192 // rate.stride)  # 75 x 131, padded
        assert rate.position_bits.sum() == pytest.approx(rate.estimated_bits)
        assert rate.bpp == rate.bits / (height * width)
    shares = [rate.share for rate in measured]
    assert np.allclose(np.cumsum(shares), [rate.cumulative for rate in measured]) and sum(shares) == pytest.approx(1)
    payload = 8 * sum(info.layer_bytes)
    assert abs(sum(rate.estimated_bits for rate in measured) - payload) < 0.01 * payload + 16 * len(measured)


def test_rates_of_latents_that_went_wrong(tiny, coded):
    parsed = container.parse(coded["balanced"])
    other = dataclasses.replace(parsed, header=dataclasses.replace(parsed.header, latent_hash=b"else"))
    with pytest.raises(MismatchError, match="decoded latents are not"):
        layer_rates(tiny, container.pack(other))


# --------------------------------------------------------------------------------------------------------------------
# Maps


def layer(number: int, stride: int, position_bits: np.ndarray) -> LayerRate:
    return LayerRate(number, stride, 0, 0, 0.0, 0.0, 0.0, float(position_bits.sum()), position_bits)


def test_maps_show_where_the_bits_are():
    coarse, fine = np.zeros((2, 2)), np.zeros((4, 4))
    coarse[0, 1] = 256.0  # one bit per pixel of its 16 x 16
    coarse[1, 0] = 9999.0  # below the picture's last row: padding
    fine[1, 2], fine[0, 0] = 128.0, 64.0  # 2 and 1 bits per pixel of their 8 x 8
    first, second, total = heat_maps([layer(1, 16, coarse), layer(2, 8, fine)], 13, 30)
    assert (first.label, second.label, total.label) == ("layer-1", "layer-2", "sum")
    assert (first.white, second.white, total.white) == (1.0, 2.0, 3.0)
    for heat in (first, second, total):
        assert heat.pixels.shape == (13, 30, 3) and heat.pixels.dtype == np.uint8
    white = (first.pixels == 255).all(2)
    assert white[:, 16:].all() and not white[:, :16].any()
    assert (first.pixels[:, :16] == 0).all()
    assert (second.pixels[8:, 16:24] == 255).all() and (second.pixels == 255).all(2).sum() == 5 * 8
    colours = cubehelix()
    assert (second.pixels[:8, :8] == colours[128]).all()
    assert (total.pixels[8:, 16:24] == 255).all() and (total.pixels[:8, 16:] == colours[85]).all()


def test_a_map_without_bits_is_black():
    (heat, _) = heat_maps([layer(1, 8, np.zeros((2, 2)))], 16, 16)
    assert heat.white == 0.0 and not heat.pixels.any()


def test_colours_are_ordered_by_brightness():
    colours = cubehelix().astype(float)
    assert colours[0].tolist() == [0, 0, 0] and colours[-1].tolist() == [255, 255, 255]
    brightness = colours @ [0.30, 0.59, 0.11]
    assert (np.diff(brightness) > 0).all() and np.abs(brightness - np.arange(256)).max() < 3


# --------------------------------------------------------------------------------------------------------------------
# The command


def test_rates_for_people(rates, here, coded, capsys):
    (here / "a.hvci").write_bytes(coded["detail"])
    assert rates("a.hvci") == 0
    lines = capsys.readouterr().out.splitlines()
    info = hvcompress.read_info(coded["detail"])
    assert lines[0] == (
        f"a.hvci: 131x75, quality 70, model tiny, {info.file_bytes:,} bytes, {sum(info.layer_bytes):,} of them layers"
    )
    rows = [line.split() for line in lines[2:]]
    assert len(rows) == 7 and [row[:3] for row in rows[:2]] == [["1", "64", "2.17"], ["2", "32", "1.32"]]
    assert [int(row[3].replace(",", "")) for row in rows[:-1]] == [8 * size for size in info.layer_bytes]
    assert rows[-2][7:9] == ["100.0", "%"] and rows[-1][:2] == ["sum", f"{8 * sum(info.layer_bytes):,}"]
    assert len({len(line) for line in lines[1:]}) == 1  # columns are aligned


def test_rates_of_an_image_are_those_of_its_file(rates, here, tiny_folder, capsys):
    settings = ["-q", "33", "--allocation", "hyperprior"]
    encode = ["encode", "photo.png", "--model", str(tiny_folder), "--device", "cpu", "--no-verify", "--quiet"]
    assert main([*encode, *settings]) == 0
    assert rates("--json", "photo.hvci") == 0
    assert rates("--json", "photo.png", *settings) == 0
    of_file, of_image = map(json.loads, capsys.readouterr().out.splitlines())
    assert of_file.pop("file") == "photo.hvci" and of_image.pop("file") == "photo.png"
    assert of_file == of_image and of_file["quality"] == 33
    assert os.listdir("maps") == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX pipes")
def test_rates_from_a_named_pipe(rates, here, coded, capsys):
    """As shells make them of `<(command)`: what was read to see what it is cannot be read again."""
    os.mkfifo("pipe")
    for data, code in (
        (coded["balanced"], 0),
        ((here / "photo.png").read_bytes(), 0),
        (b"no image", 3),
        (coded["balanced"][:-1], 4),
    ):
        writer = threading.Thread(target=(here / "pipe").write_bytes, args=(data,))
        writer.start()
        assert rates("pipe") == code
        writer.join()
        captured = capsys.readouterr()
        assert captured.out.startswith("pipe: 131x75") if code == 0 else one_line(captured).startswith("pipe: ")


def test_rates_as_json(rates, capsys, monkeypatch, coded):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(coded["hyperprior"])))
    assert rates("--json", "-") == 0
    values = json.loads(capsys.readouterr().out)
    info = hvcompress.read_info(coded["hyperprior"])
    assert set(values) == set(KEYS) and values["maps"] == [] and values["file"] == "-"
    assert values["bits"] == 8 * sum(info.layer_bytes) and values["bpp"] == 8 * info.file_bytes / (131 * 75)
    assert all(set(made) == set(LAYER_KEYS) for made in values["layers"])
    assert [made["beta"] for made in values["layers"]][::5] == [0.462, 2.166]
    main(["rates", "--help"])
    assert set(KEYS + LAYER_KEYS) <= set(re.findall(r"\w+", capsys.readouterr().out))


def test_maps_of_several_inputs(rates, here, tiny, coded, monkeypatch, capsys):
    (here / "a.hvci").write_bytes(coded["balanced"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((here / "photo.png").read_bytes())))
    assert rates("--maps", "maps", "--json", "a.hvci", "-", "-q", "5") == 2  # a.hvci has its quality
    captured = capsys.readouterr()
    assert captured.err.startswith("hvcompress: a.hvci: -q, --beta and --allocation are for images")
    labels = ["layer-1", "layer-2", "layer-3", "layer-4", "layer-5", "layer-6", "sum"]
    assert sorted(os.listdir("maps")) == [f"stdin.{label}.png" for label in labels]
    assert rates("--maps", "maps", "a.hvci") == 0
    out = capsys.readouterr().out
    heats = list(heat_maps(layer_rates(tiny, coded["balanced"]), 75, 131))
    assert [heat.label for heat in heats] == labels
    for heat in heats:
        path = os.path.join("maps", f"a.{heat.label}.png")
        assert np.array_equal(np.asarray(Image.open(path)), heat.pixels)
        assert f"  {path}: black 0, white {heat.white:.4g} bits per pixel\n" in out


def test_maps_are_not_overwritten(rates, here, coded, capsys):
    (here / "a.hvci").write_bytes(coded["balanced"])
    there = here / "maps" / "a.layer-3.png"
    there.write_text("mine")
    assert rates("--maps", "maps", "a.hvci") == 2
    path = os.path.join("maps", "a.layer-3.png")
    assert one_line(capsys.readouterr()) == f"a.hvci: {path} exists already; -f overwrites it"
    assert os.listdir("maps") == ["a.layer-3.png"] and there.read_text() == "mine"
    assert rates("--maps", "maps", "-f", "a.hvci") == 0
    assert Image.open(there).size == (131, 75) and len(os.listdir("maps")) == 7


def test_bad_input_is_told_before_torch_is_imported(here, coded, capsys, monkeypatch):
    for module in ("hvcompress.loading", "hvcompress.analysis.rates"):
        monkeypatch.setitem(sys.modules, module, None)  # an import would fail, with exit code 70
    (here / "a.hvci").write_bytes(coded["balanced"])
    (here / "cut.hvci").write_bytes(coded["balanced"][:-1])
    (here / "text.png").write_text("no image")
    (here / "maps" / "a.sum.png").write_text("mine")
    for arguments, code, message in (
        (["none.png"], 3, "none.png: no such file"),
        (["text.png"], 3, "text.png: not an image"),
        (["cut.hvci"], 4, "cut.hvci: the file is damaged or truncated"),
        (["a.hvci", "--beta", "1,1,1,1,1,1"], 2, "a.hvci: -q, --beta and --allocation are for images"),
        (["a.hvci", "--maps", "none"], 2, "--maps must name an existing folder, which 'none' is not"),
        (["a.hvci", "--maps", "-"], 2, "--maps must name an existing folder, which '-' is not"),
        (["a.hvci", "--maps", "maps"], 2, "a.hvci: " + os.path.join("maps", "a.sum.png") + " exists already"),
        (["a.hvci", "x/a.png", "--maps", "maps"], 2, "a.hvci and x/a.png would both be written to"),
        (["photo.png", "-q", "101"], 2, "argument -q/--quality: must be a whole number from 0 to 100"),
    ):
        assert main(["rates", *arguments]) == code
        assert one_line(capsys.readouterr()).startswith(message)


def test_one_bad_input_does_not_stop_the_others(rates, here, coded, capsys):
    (here / "a.hvci").write_bytes(coded["balanced"])
    assert rates("none.hvci", "a.hvci") == 3
    captured = capsys.readouterr()
    assert captured.out.startswith("a.hvci: 131x75") and captured.err.startswith("hvcompress: none.hvci: ")


def test_the_help_fits_one_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["rates", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 36 and max(map(len, lines)) <= 80
    assert any(line.startswith("example: hvcompress ") for line in lines)
