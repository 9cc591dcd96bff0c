"""One HTML page about one file: the picture layer by layer, where its bits are, and how it compares with the original.

The page is complete in itself: images are data URIs, and it asks for nothing from anywhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from ..codec import Codec
from ..console import shown
from ..container import FileInfo, read_info
from ..errors import UsageError
from ..image_writing import to_pil
from ..metrics import psnr
from ..picture import Picture
from ..quality import beta_of
from .rates import LayerRate, heat_maps, layer_rates

LONG_SIDE, MAP_SIDE = 1024, 512  # of embedded pictures and maps, in pixels

# How they are embedded. Previews may have alpha; what is compared should lose no resolution of colours.
_PREVIEW = "WebP", {"quality": 93}
_COMPARED = "JPEG", {"quality": 95, "subsampling": "4:4:4"}
_MAP = "WebP", {"lossless": True}

# What JPEG and WebP may try to be as good as they can within a number of bytes.
_JPEG = [{"subsampling": s, "optimize": True, "progressive": True} for s in ("4:2:0", "4:4:4")]
_WEBP = [{"method": 6}]


@dataclass(frozen=True)
class Rival:
    """The best file of another format within a number of bytes."""

    name: str
    settings: str  # "quality 31, 4:2:0"
    size: int  # bytes
    fits: bool  # else even the smallest file of that format is larger
    pixels: np.ndarray  # (H, W, 3) uint8
    psnr: float  # dB, against the original


def report(
    codec: Codec,
    data: bytes,
    name: str,
    original: Picture | None = None,
    *,
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """The page, as text.

    codec: the model that the file was made with. data: the bytes of an .hvci file. name: what the page calls it.
    original: the picture that was encoded. memory_limit: as `Codec.decode` has it. progress: told how many of how many
    steps are done, from 0.
    Raises what `Codec.decode` raises, and UsageError where the original has another size.
    """
    info = read_info(data)
    if original is not None and original.pixels.shape[:2] != (info.height, info.width):
        height, width = original.pixels.shape[:2]
        raise UsageError(f"the original is {width}x{height}, the picture in the file {info.width}x{info.height}")
    steps = iter(range(codec.layers + 3))

    def tick() -> None:
        done = next(steps)
        if progress is not None:
            progress(done, codec.layers + 2)

    tick()
    rates = layer_rates(codec, data, memory_limit)
    previews, distances = [], []  # of the first 1, 2, ... layers
    for layers in range(1, codec.layers + 1):
        tick()
        decoded = codec.decode(data, layers, memory_limit=memory_limit)
        previews.append(_data_uri(_reduced(to_pil(decoded), LONG_SIDE), *_PREVIEW))
        distances.append(None if original is None else psnr(original.pixels, decoded.pixels))
    tick()
    title = shown(name)
    parts = [_layers(info, rates, previews, distances)]
    if original is not None:
        budget = info.header_bytes + sum(info.layer_bytes)  # the others get no alpha, profile or metadata either
        rivals = [best_within(original, budget, "JPEG", _JPEG), best_within(original, budget, "WebP", _WEBP)]
        ours = Rival("hvcompress", f"quality {info.quality}", budget, True, decoded.pixels, distances[-1])
        parts.append(_comparison(original, [ours, *filter(None, rivals)]))
    parts += [_rates(info, rates, distances), _maps(info, rates), _facts(info, codec)]
    tick()
    summary = f"{info.width} × {info.height}, quality {info.quality}, {_bytes(info.file_bytes)}, {_bpp(info)} bpp"
    return _PAGE.format(title=escape(title), summary=summary, style=_STYLE, script=_SCRIPT, body="\n".join(parts))


def best_within(original: Picture, budget: int, name: str, variants: Sequence[dict]) -> Rival | None:
    """The file of a format with the least squared error among those of at most `budget` bytes.

    name: Pillow's of the format. variants: options for saving, of which each is tried with the highest quality that
    fits. If none does, the smallest file. None where the format cannot hold the picture (WebP: 16383 pixels a side).
    """
    image = to_pil(Picture(original.pixels, original.gray))
    variants = variants[:1] if original.gray else variants  # they differ in colour only
    found: list[Rival] = []
    try:
        for options in variants:
            quality = _highest_quality(lambda q, o=options: len(_saved(image, name, q, o)) <= budget)
            saved = _saved(image, name, quality, options)
            with Image.open(io.BytesIO(saved), formats=[name.upper()]) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            settings = ", ".join([f"quality {quality}", *filter(None, [options.get("subsampling", "")])])
            error = psnr(original.pixels, pixels)
            found.append(Rival(name, settings, len(saved), len(saved) <= budget, pixels, error))
    except (OSError, ValueError, KeyError):
        return None
    return max(found, key=lambda rival: (rival.fits, rival.psnr if rival.fits else -rival.size))


def _highest_quality(fits: Callable[[int], bool]) -> int:
    """The highest quality from 1 to 100 that fits; 1 if none does."""
    low, high = 1, 101
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _saved(image: Image.Image, name: str, quality: int, options: dict) -> bytes:
    out = io.BytesIO()
    image.save(out, name.upper(), quality=quality, **options)
    return out.getvalue()


# --------------------------------------------------------------------------------------------------------------------
# Images


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """The image, made smaller where it is longer than that."""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _middle(pixels: np.ndarray, original: Picture) -> Image.Image:
    """The middle of a picture, at most LONG_SIDE x LONG_SIDE, not made smaller: else no artefact could be seen.

    original: says whether it is gray, and what its colours mean.
    """
    height, width = pixels.shape[:2]
    top, left = max(0, height - LONG_SIDE) // 2, max(0, width - LONG_SIDE) // 2
    return to_pil(Picture(pixels[top : top + LONG_SIDE, left : left + LONG_SIDE], original.gray, icc=original.icc))


def _data_uri(image: Image.Image, name: str, options: dict) -> str:
    """name: JPEG or WebP. options: of Pillow for that."""
    icc = image.info.get("icc_profile")
    if name == "WebP" and image.mode in ("L", "LA"):
        icc = None  # WebP makes RGB of gray
    out = io.BytesIO()
    image.save(out, name.upper(), icc_profile=icc, **options)
    return f"data:image/{name.lower()};base64," + base64.b64encode(out.getvalue()).decode("ascii")


# --------------------------------------------------------------------------------------------------------------------
# Parts of the page. Only the file's name is foreign text, and escaped; all else is numbers and our own words.


def _bytes(count: int) -> str:
    return f"{count:,} bytes"


def _bpp(info: FileInfo) -> str:
    return f"{8 * info.file_bytes / (info.width * info.height):.4f}"


def _db(value: float) -> str:
    return f"{value:.2f} dB" if value < float("inf") else "exact"


def _layers(info: FileInfo, rates: list[LayerRate], previews: list[str], distances: list[float | None]) -> str:
    images, so_far = [], info.header_bytes
    for rate, preview, distance in zip(rates, previews, distances, strict=True):
        so_far += rate.bits // 8
        share = 100 * so_far / info.file_bytes
        text = f"{rate.layer} of {len(rates)} layers: {_bytes(so_far)}, {share:.1f} % of the file"
        text += "" if distance is None else f", {_db(distance)}"
        hidden = "" if rate.layer == len(rates) else " hidden"
        images.append(f'<img src="{preview}" alt="The picture from {text}" data-text="{text}"{hidden}>')
    reduced = f"Made smaller to {LONG_SIDE} pixels. " if max(info.width, info.height) > LONG_SIDE else ""
    return _LAYERS.format(images="\n".join(images), count=len(rates), text=text, reduced=reduced)


def _comparison(original: Picture, files: list[Rival]) -> str:
    height, width = original.pixels.shape[:2]
    choices, images, rows = [], [], []
    for number, file in enumerate(files):
        checked, hidden = (" checked", "") if number == 0 else ("", " hidden")
        uri = _data_uri(_middle(file.pixels, original), *_COMPARED)
        images.append(f'<img class="over" src="{uri}" alt="The picture by {file.name}"{hidden}>')
        choices.append(f'<label><input type="radio" name="file" value="{number}"{checked}> {file.name}</label>')
        note = "" if file.fits else " (the smallest there is, and larger)"
        bpp = 8 * file.size / (width * height)
        cells = [f"{file.settings}{note}", f"{file.size:,}", f"{bpp:.4f}", _db(file.psnr)]
        rows.append(f'<tr><th scope="row">{file.name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    part = f"The middle {LONG_SIDE} pixels of each side. " if max(width, height) > LONG_SIDE else ""
    return _COMPARISON.format(
        choices="\n".join(choices),
        original=_data_uri(_middle(original.pixels, original), *_COMPARED),
        images="\n".join(images),
        rows="\n".join(rows),
        part=part,
    )


def _rates(info: FileInfo, rates: list[LayerRate], distances: list[float | None]) -> str:
    known = distances[0] is not None
    head = ["layer", "stride", "beta", "bytes", "bpp", "share", "so far", "estimate", "over"]
    rows = []
    for rate, distance in zip(rates, distances, strict=True):
        share = f'<span class="bar" style="width:{60 * rate.share:.1f}px"></span>{100 * rate.share:.1f} %'
        over = f"{100 * (rate.bits / rate.estimated_bits - 1):+.2f} %" if rate.estimated_bits else "-"
        cells = [str(rate.stride), f"{beta_of(rate.offset):.2f}", f"{rate.bits // 8:,}", f"{rate.bpp:.4f}", share]
        cells += [f"{100 * rate.cumulative:.1f} %", f"{rate.estimated_bits / 8:,.1f}", over]
        cells += [_db(distance)] if known else []
        rows.append(f'<tr><th scope="row">{rate.layer}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    total, estimate = sum(rate.bits for rate in rates), sum(rate.estimated_bits for rate in rates)
    cells = ["", "", f"{total // 8:,}", f"{total / (info.width * info.height):.4f}", "", "", f"{estimate / 8:,.1f}"]
    cells += [f"{100 * (total / estimate - 1):+.2f} %" if estimate else "-"] + ([""] if known else [])
    rows.append('<tr class="sum"><th scope="row">sum</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head += ["PSNR so far"] if known else []
    return _RATES.format(head="".join(f'<th scope="col">{text}</th>' for text in head), rows="\n".join(rows))


def _maps(info: FileInfo, rates: list[LayerRate]) -> str:
    figures = []
    for heat, rate in zip(heat_maps(rates, info.height, info.width), [*rates, None], strict=True):
        uri = _data_uri(_reduced(Image.fromarray(heat.pixels), MAP_SIDE), *_MAP)
        label = "All layers" if rate is None else f"Layer {rate.layer}, stride {rate.stride}"
        text = f"{label}: white is {heat.white:.3g} bits per pixel"
        figures.append(f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>')
    return _MAPS.format(figures="\n".join(figures))


def _facts(info: FileInfo, codec: Codec) -> str:
    kind = ("gray" if info.gray else "RGB") + (" with alpha" if info.alpha else "")
    facts = {
        "size": f"{info.width} × {info.height} pixels, {kind}",
        "file": f"{_bytes(info.file_bytes)}, {_bpp(info)} bits per pixel, format version {info.version}",
        "quality": str(info.quality),
        "quality offsets": " ".join(f"{offset:+d}" if offset else "0" for offset in info.offsets),
        "model": f"{escape(shown(codec.name))}, fingerprint {info.fingerprint}",
        "latents": f"hash {info.latent_hash}",
        "header": _bytes(info.header_bytes),
        **{f"chunk {tag}": _bytes(size) for tag, size in info.chunk_bytes.items()},
    }
    return _FACTS.format(facts="\n".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items()))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title} - hvcompress</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{summary}</p>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""

_LAYERS = """<section id="layers">
<h2>Layer by layer</h2>
<div class="stage">
{images}
</div>
<label class="slider">Layers <input type="range" id="count" min="1" max="{count}" value="{count}"></label>
<output for="count">{text}</output>
<p class="note">{reduced}Finer layers that are left out are as the coarser ones lead the model to expect.</p>
</section>"""

_COMPARISON = """<section id="comparison">
<h2>Beside the original</h2>
<div class="choice" role="radiogroup" aria-label="Compare the original with">
{choices}
</div>
<div class="stage split">
<img src="{original}" alt="The original">
{images}
<span class="tag left">original</span><span class="tag right"></span>
</div>
<label class="slider">Original <input type="range" id="split" min="0" max="100" value="50" \
aria-label="How much of the original is shown, in percent"></label>
<div class="wide" tabindex="0">
<table>
<thead><tr><th scope="col">file</th><th scope="col">settings</th><th scope="col">bytes</th><th scope="col">bpp</th>\
<th scope="col">PSNR</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<p class="note">{part}JPEG (both kinds of subsampling tried) and WebP (method 6) have the highest quality that needs \
no more bytes than the header and layers of this file; alpha, profile and metadata are left out of all. PSNR is that \
of the whole picture, over all three planes.</p>
</section>"""

_RATES = """<section id="rates">
<h2>What each layer takes</h2>
<div class="wide" tabindex="0">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
</section>"""

_MAPS = """<section id="maps">
<h2>Where the bits are</h2>
<div class="grid">
{figures}
</div>
<p class="note">Black is no bits; each map has a scale of its own.</p>
</section>"""

_FACTS = """<section id="facts">
<h2>Header</h2>
<dl>
{facts}
</dl>
</section>"""

_STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --text: #1d1d1f; --soft: #6b6b70; --line: #dcdcd8; --mark: #3a6ea5; }
@media (prefers-color-scheme: dark) {
  :root { --back: #17181a; --text: #e6e6e3; --soft: #9a9aa0; --line: #36373b; --mark: #7fb0e0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1072px; margin: 0 auto; padding: 24px; }
h1 { font-size: 1.5em; margin: 0; overflow-wrap: anywhere; }
h1 + p { margin: 0; color: var(--soft); }
h2 { font-size: 1.15em; margin: 2em 0 .6em; }
img { display: block; max-width: 100%; height: auto; }
img[hidden] { display: none; }
.stage { position: relative; width: fit-content; max-width: 100%; margin: 0 auto; user-select: none;
  background: repeating-conic-gradient(#bbb 0 25%, #eee 0 50%) 0 0 / 16px 16px; }
.stage img { min-width: 280px; }
.split .over { position: absolute; inset: 0; width: 100%; height: 100%; clip-path: inset(0 0 0 var(--split, 50%)); }
.split::after { content: ""; position: absolute; inset: 0 auto 0 var(--split, 50%); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; }
.tag { position: absolute; bottom: 8px; padding: 0 8px; border-radius: 4px; background: #000a; color: #fff;
  font-size: .8em; }
.left { left: 8px; }
.right { right: 8px; }
.slider { display: flex; gap: 12px; align-items: center; margin: 12px 0 4px; }
.slider input { flex: 1; accent-color: var(--mark); }
.choice { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-bottom: 10px; }
.choice input { accent-color: var(--mark); }
output { display: block; font-variant-numeric: tabular-nums; }
.note { color: var(--soft); font-size: .875em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: .875em; }
#comparison table { margin-top: 16px; }
#comparison th:first-child, #comparison td:nth-child(2), #comparison th:nth-child(2) { text-align: left; }
.sum > * { border-bottom: 0; }
.bar { display: inline-block; height: .6em; margin-right: 8px; background: var(--mark); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 16px; }
figure { margin: 0; }
figure img { width: 100%; image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: .875em; margin-top: 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
"""

_SCRIPT = """
const count = document.getElementById("count");
const layers = [...document.querySelectorAll("#layers img")];
function showLayers() {
  layers.forEach((image, number) => { image.hidden = number !== count.value - 1; });
  document.querySelector("#layers output").textContent = layers[count.value - 1].dataset.text;
}
count.addEventListener("input", showLayers);
showLayers();

const split = document.getElementById("split");
if (split) {
  const stage = document.querySelector(".split");
  const over = [...stage.querySelectorAll(".over")];
  const choices = [...document.querySelectorAll("[name=file]")];
  function showSplit() {
    const chosen = choices.findIndex(choice => choice.checked);
    over.forEach((image, number) => { image.hidden = number !== chosen; });
    stage.style.setProperty("--split", split.value + "%");
    stage.querySelector(".right").textContent = choices[chosen].parentElement.textContent.trim();
  }
  function follow(event) {
    if (event.type === "pointerdown" || event.buttons) {
      const box = stage.getBoundingClientRect();
      split.value = 100 * (event.clientX - box.left) / box.width;
      showSplit();
    }
  }
  split.addEventListener("input", showSplit);
  choices.forEach(choice => choice.addEventListener("change", showSplit));
  stage.addEventListener("pointerdown", follow);
  stage.addEventListener("pointermove", follow);
  showSplit();
}
"""
