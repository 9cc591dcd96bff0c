"""The page about a file: complete, harmless, and right in what it says."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hvcompress
from hvcompress.analysis import report as report_module
from hvcompress.analysis.rates import layer_rates
from hvcompress.analysis.report import Rival, best_within, report
from hvcompress.cli import main
from hvcompress.container import read_info
from hvcompress.errors import FormatError, InputError, OutputError, UsageError
from hvcompress.image_writing import to_pil
from hvcompress.metrics import psnr
from hvcompress.picture import Picture

VOID = {"meta", "img", "input"}
HOSTILE = "\"'><script>alert(1)</script>&amp;<img src=x onerror=alert(1)>{title}\n\x1b[31m\udcff.hvci"


class Page(HTMLParser):
    """Elements, in their order, of a page in which every element is closed."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # innermost element, text
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def image_of(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    assert kind == f"data:image/{image.format.lower()}" and image.format in ("JPEG", "WEBP")
    return image


@pytest.fixture(scope="module")
def encoded(tiny, photo) -> bytes:
    return tiny.encode(Picture(photo), 60, verify=False).data


@pytest.fixture(scope="module")
def original(photo) -> Picture:
    return Picture(photo)


@pytest.fixture(scope="module")
def page(tiny, encoded, original) -> str:
    return report(tiny, encoded, "photo.hvci", original)


# --------------------------------------------------------------------------------------------------------------------
# The page


def test_every_image_is_inside_and_decodes(page):
    images = Page(page).all("img")
    assert len(images) == 6 + (1 + 3) + (6 + 1)  # previews; original, ours, JPEG, WebP; maps
    for image in images:
        assert image["alt"] and image_of(image["src"]).size == (131, 75)


def test_nothing_is_asked_from_elsewhere(page):
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "a", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert tag == "img" or not {"src", "href"} & attributes.keys()
    text = re.sub(r"data:image/(jpeg|webp);base64,[A-Za-z0-9+/=]+", "", page)
    assert "//" not in text.replace("</", "") and "url(" not in text and "@import" not in text
    (policy,) = [meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert parsed.all("html")[0]["lang"] == "en" and text.startswith("<!DOCTYPE html>")
    assert "prefers-color-scheme: dark" in text


def test_controls_are_those_of_the_keyboard_and_have_names(page):
    parsed = Page(page)
    inputs = parsed.all("input")
    count, split = (control for control in inputs if control["type"] == "range")
    assert (count["min"], count["max"], count["value"]) == ("1", "6", "6") and split["aria-label"]
    radios = [control for control in inputs if control["type"] == "radio"]
    assert [radio["value"] for radio in radios] == ["0", "1", "2"] and ["checked" in radio for radio in radios][0]
    assert len(inputs) == 5 and len(parsed.all("label")) == 5
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for name in re.findall(r'getElementById\("(\w+)"\)', page):
        assert name in identifiers


def test_previews_are_those_of_the_layers(tiny, encoded, original, page):
    stages = [image for image in Page(page).all("img") if "data-text" in image]
    assert ["hidden" in image for image in stages] == [True] * 5 + [False]
    header, sizes = read_info(encoded).header_bytes, read_info(encoded).layer_bytes
    for layers, image in enumerate(stages, 1):
        assert image["data-text"].startswith(f"{layers} of 6 layers: {header + sum(sizes[:layers]):,} bytes, ")
        if layers in (1, 6):
            decoded = tiny.decode(encoded, layers)
            assert image["src"] == report_module._data_uri(to_pil(decoded), "WebP", {"quality": 93})
            assert image["data-text"].endswith(f", {psnr(original.pixels, decoded.pixels):.2f} dB")


def test_tables_say_what_the_file_has(tiny, encoded, page):
    words = Page(page).words("td")
    rates = layer_rates(tiny, encoded)
    for rate in rates:
        for text in (f"{rate.bits // 8:,}", f"{rate.bpp:.4f}", f"{100 * rate.share:.1f} %"):
            assert text in words
    assert f"{sum(rate.bits for rate in rates) // 8:,}" in words
    facts = dict(zip(Page(page).words("dt"), Page(page).words("dd"), strict=True))
    info = read_info(encoded)
    assert facts["quality"] == "60" and facts["model"] == f"tiny, fingerprint {info.fingerprint}"
    assert facts["file"].startswith(f"{info.file_bytes:,} bytes, ") and facts["latents"].endswith(info.latent_hash)


def test_without_an_original_there_is_no_comparison(tiny, encoded):
    parsed = Page(report(tiny, encoded, "photo.hvci"))
    assert len(parsed.all("img")) == 6 + 7 and len(parsed.all("table")) == 1
    assert [attributes["id"] for attributes in parsed.all("section")] == ["layers", "rates", "maps", "facts"]
    assert not [text for _, text in parsed.texts if "PSNR" in text]


def test_hostile_names_are_escaped(tiny, encoded):
    text = report(tiny, encoded, HOSTILE)
    text.encode()  # no lone surrogate
    parsed = Page(text)
    assert len(parsed.all("script")) == 1 and len(parsed.all("img")) == 13 and not parsed.all("alert")
    (heading,), (title,) = parsed.words("h1"), parsed.words("title")
    assert heading == HOSTILE.replace("\n", "\\n").replace("\x1b", "\\x1b").replace("\udcff", "\\udcff")
    assert title == heading + " - hvcompress"


def test_alpha_gray_and_a_profile(tiny, photo):
    alpha = np.tile(np.arange(photo.shape[1], dtype=np.uint8), (photo.shape[0], 1))
    gray = Picture(np.repeat(photo[..., :1], 3, 2), True, alpha, exif=None)
    data = tiny.encode(gray, 50, verify=False).data
    text = report(tiny, data, "a", gray)
    images = [image_of(image["src"]) for image in Page(text).all("img")]
    assert {image.mode for image in images[:6]} == {"RGBA"}  # WebP has no gray
    assert {image.mode for image in images[6:10]} == {"L"} and {image.mode for image in images[10:]} == {"RGB"}
    facts = dict(zip(Page(text).words("dt"), Page(text).words("dd"), strict=True))
    info = read_info(data)
    assert facts["size"] == "131 × 75 pixels, gray with alpha" and "chunk ALPH" in facts
    assert f"{info.header_bytes + sum(info.layer_bytes):,}" in Page(text).words("td")  # the budget: without alpha


def test_large_pictures_are_embedded_small(tiny, photo, monkeypatch):
    monkeypatch.setattr(report_module, "LONG_SIDE", 50)
    monkeypatch.setattr(report_module, "MAP_SIDE", 30)
    data = tiny.encode(Picture(photo), 20, verify=False).data
    text = report(tiny, data, "a", Picture(photo))
    sizes = [image_of(image["src"]).size for image in Page(text).all("img")]
    assert sizes == [(50, 29)] * 6 + [(50, 50)] * 4 + [(30, 17)] * 7
    assert "Made smaller to 50 pixels." in text and "The middle 50 pixels of each side." in text
    middle = np.asarray(image_of(Page(text).all("img")[6]["src"]).convert("RGB"))
    assert psnr(middle, np.ascontiguousarray(photo[12:62, 40:90])) > 25


def test_progress_reaches_its_end(tiny, encoded):
    told = []
    report(tiny, encoded, "a", progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(9)]


# --------------------------------------------------------------------------------------------------------------------
# The others


@pytest.mark.parametrize("name", ["JPEG", "WebP"])
@pytest.mark.parametrize("budget", [1200, 2000])
def test_the_best_that_fits(original, name, budget):
    variants = {"JPEG": report_module._JPEG, "WebP": report_module._WEBP}[name]
    found = best_within(original, budget, name, variants)
    assert found.fits and found.size <= budget and found.psnr == psnr(original.pixels, found.pixels)
    assert found.size > 0.8 * budget
    quality = int(re.match(r"quality (\d+)", found.settings)[1])
    file = io.BytesIO()
    options = next(v for v in variants if v.get("subsampling", "") in found.settings)
    Image.fromarray(original.pixels).save(file, name.upper(), quality=quality + 1, **options)
    assert len(file.getvalue()) > budget
    more = best_within(original, 2 * budget, name, variants)
    assert more.psnr > found.psnr


def test_full_colour_is_chosen_where_it_pays():
    """Fine red and blue stripes: half the colour's resolution loses them."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2, 0] = pixels[:, 1::2, 2] = 255
    found = best_within(Picture(pixels), 100_000, "JPEG", report_module._JPEG)
    assert found.settings == "quality 100, 4:4:4"


def test_where_nothing_fits_the_smallest_is_shown(original):
    found = best_within(original, 100, "JPEG", report_module._JPEG)
    assert not found.fits and found.size > 100 and found.settings.startswith("quality 1, ")
    text = report_module._comparison(original, [found])
    assert "the smallest there is, and larger" in text


def test_pictures_that_a_format_cannot_hold():
    wide = Picture(np.zeros((1, 16400, 3), np.uint8))
    assert best_within(wide, 1000, "WebP", report_module._WEBP) is None


def test_identical_pixels_have_no_number_of_decibels(original):
    exact = Rival("hvcompress", "quality 100", 10, True, original.pixels, float("inf"))
    assert "<td>exact</td>" in report_module._comparison(original, [exact])


# --------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def here(tmp_path, monkeypatch, encoded, photo):
    """A current folder with photo.hvci and photo.png."""
    monkeypatch.chdir(tmp_path)
    Path("photo.hvci").write_bytes(encoded)
    Image.fromarray(photo).save("photo.png")
    return tmp_path


@pytest.fixture
def inspect(tiny_folder):
    return lambda *arguments: main(["inspect", "--model", str(tiny_folder), "--device", "cpu", *arguments])


def one_line(captured) -> str:
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("hvcompress: ")
    return captured.err.rstrip("\n").removeprefix("hvcompress: ")


def test_the_page_is_written_beside_the_file(here, inspect, page, capsys):
    assert inspect("photo.hvci", "--original", "photo.png") == 0
    assert re.fullmatch(r"photo\.hvci  131x75  [\d,]+ -> [\d,]+ bytes  \d+\.\d\d s\n", capsys.readouterr().out)
    assert Path("photo.html").read_text(encoding="utf-8") == page
    assert inspect("photo.hvci") == UsageError.exit_code
    assert one_line(capsys.readouterr()) == "photo.hvci: photo.html exists already; -f overwrites it"
    assert Path("photo.html").read_text(encoding="utf-8") == page
    assert inspect("photo.hvci", "-f", "--quiet") == 0
    assert (
        capsys.readouterr() == ("", "") and len(Page(Path("photo.html").read_text(encoding="utf-8")).all("img")) == 13
    )


def test_standard_streams(here, inspect, encoded, capsysbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encoded)))
    assert inspect("-") == 0
    captured = capsysbinary.readouterr()
    assert Page(captured.out.decode()).words("h1") == ["standard input"]
    assert captured.err.startswith(b"standard input  131x75")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes only there")
def test_a_hostile_file_name(here, inspect, encoded):
    name = HOSTILE.replace("/", "")  # which cannot be in a name
    Path(name).write_bytes(encoded)
    assert inspect(name, "-o", "a.html", "--quiet") == 0
    parsed = Page(Path("a.html").read_text(encoding="utf-8"))
    assert len(parsed.all("script")) == 1 and parsed.words("h1")[0].startswith("\"'><script>alert(1)<script>&amp;<img")


def test_errors(here, inspect, encoded, capsys):
    Image.new("RGB", (130, 75)).save("other.png")
    Path("cut.hvci").write_bytes(encoded[:-1])
    before = sorted(os.listdir(here))
    for arguments, code, message in (
        (["none.hvci"], InputError, "none.hvci: no such file"),
        (["photo.png"], FormatError, "photo.png: not an .hvci file"),
        (["cut.hvci"], FormatError, "damaged or truncated"),
        (["photo.hvci", "--original", "none.png"], InputError, "none.png: no such file"),
        (["photo.hvci", "--original", "photo.hvci"], InputError, "this is an .hvci file already"),
        (
            ["photo.hvci", "--original", "other.png"],
            UsageError,
            "the original is 130x75, the picture in the file 131x75",
        ),
        (["photo.hvci", "--original", "photo.png", "-o", "photo.png", "-f"], UsageError, "overwrite the original"),
        (["photo.hvci", "-o", "photo.hvci", "-f"], UsageError, "overwrite the input"),
        (["photo.hvci", "-o", "none/a.html"], OutputError, "no such folder"),
        (["photo.hvci", "photo.hvci"], UsageError, "unrecognized arguments"),
    ):
        assert inspect(*arguments) == code.exit_code, arguments
        assert message in one_line(capsys.readouterr())
    assert sorted(os.listdir(here)) == before


def test_too_little_memory(here, inspect, capsys):
    assert inspect("photo.hvci", "--memory-limit", "1k") == 7
    assert "GiB of memory" in one_line(capsys.readouterr()) and not Path("photo.html").exists()


def test_no_heavy_import_before_it_is_needed(here):
    program = """
import contextlib, io, sys
from hvcompress.cli import main
with contextlib.redirect_stderr(io.StringIO()):
    assert main(["inspect", "photo.png"]) == 4
    assert main(["inspect", "photo.hvci", "--original", "none.png"]) == 3
assert "torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(hvcompress.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
