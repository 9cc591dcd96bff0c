"""Pictures that no camera took, to train on beside photographs: windows, text, tables, plots, icons.

Drawn by Pillow with the fonts that come with matplotlib, so there is nothing to fetch and nobody's rights to ask for. A
drawing is a function of the random generator that it is handed, given the versions of the two. What matters is that
edges, flat colours and letters look as programs draw them: hard, antialiased, or smoothed by the thirds of a pixel.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import UsageError

Box = tuple[int, int, int, int]  # left, top, right, bottom
Colour = tuple[int, int, int]

SMALLEST_PANE = 48  # pixels on a side
SUPERSAMPLING = 3  # of letters and shapes that are smoothed; also the parts of a pixel on a screen

# Letters about as often as they are in English, then what else is written.
LATIN = "eeeeeeeetttttaaaaaoooooiiiinnnnssssrrrhhhddlllucmmfwwgypbvkxqjz"
SCRIPTS = (
    "оооеееааиинннттссррввллккммддппууяыьгзбчйхжшюцщэф",
    "ααοοιιεεττνσσηρρπκμλυωδγχθφβξζψ",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "".join(map(chr, range(0x4DC0, 0x4E00))),  # hexagrams: as dense as Chinese, which these fonts lack
    "".join(map(chr, range(0x1401, 0x1480))),  # Canadian syllabics
    "".join(map(chr, range(0x2200, 0x2280))),  # mathematics
    "".join(map(chr, range(0x2580, 0x25C0))),  # blocks and shapes
)
MARKS = (",", ".", ";", ":", "!", "?", ")", "%", "...", " -", " =", "()", "[0]", "/", "_", "{", "}")


@dataclass(frozen=True)
class Theme:
    """Colours that belong together."""

    paper: Colour
    ink: Colour
    line: Colour
    accents: tuple[Colour, ...]


def draw(rng: np.random.Generator, side: int, photograph: np.ndarray) -> np.ndarray:
    """A drawing (side, side, 3) uint8. photograph: (H, W, 3) uint8, which may appear in it, as it might on a page."""
    theme = _theme(rng)
    canvas = Image.new("RGB", (side, side), theme.paper)
    for box in _panes(rng, (0, 0, side, side)):
        _pane(canvas, box, rng, theme, photograph)
    return np.asarray(canvas)


# --------------------------------------------------------------------------------------------------------------------
# Colours and panes


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    red, green, blue = (round(255 * part) for part in rgb)
    return red, green, blue


def _between(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + share * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _theme(rng: np.random.Generator) -> Theme:
    accents = tuple(_colour(rng, (0.2, 1.0), (0.3, 1.0)) for _ in range(6))
    light = (255, 255, 255) if rng.random() < 0.5 else _colour(rng, (0.0, 0.08), (0.85, 1.0))
    dark = (0, 0, 0) if rng.random() < 0.4 else _colour(rng, (0.0, 0.5), (0.0, 0.35))
    kind = rng.random()
    if kind < 0.65:
        paper, ink = light, dark
    elif kind < 0.9:
        paper, ink = dark, light
    else:
        paper, ink = _colour(rng, (0.1, 1.0), (0.2, 1.0)), light if rng.random() < 0.5 else dark
    return Theme(paper, ink, _between(paper, ink, rng.uniform(0.1, 0.6)), accents)


def _panes(rng: np.random.Generator, box: Box) -> list[Box]:
    """The box cut into panes, in twos."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if max(width, height) < 2 * SMALLEST_PANE or rng.random() < 0.25 * (384 / max(width, height)) ** 2:
        return [box]
    share = rng.uniform(0.2, 0.8)
    if rng.random() < width / (width + height):
        cut = left + round(width * share)
        return _panes(rng, (left, top, cut, bottom)) + _panes(rng, (cut, top, right, bottom))
    cut = top + round(height * share)
    return _panes(rng, (left, top, right, cut)) + _panes(rng, (left, cut, right, bottom))


def _pane(canvas: Image.Image, box: Box, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    if box[0] >= box[2] or box[1] >= box[3]:  # cut from one that was a pixel or two wide
        return
    pen = ImageDraw.Draw(canvas)
    ground = theme.paper
    if rng.random() < 0.5:
        ground = _between(theme.paper, theme.ink if rng.random() < 0.6 else theme.accents[0], rng.uniform(0.02, 0.25))
    pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), ground, theme.line if rng.random() < 0.4 else None)
    margin = int(rng.integers(0, 12))
    inner = (box[0] + margin, box[1] + margin, box[2] - margin, box[3] - margin)
    if min(inner[2] - inner[0], inner[3] - inner[1]) < 8:
        return
    painters, shares = zip(*PAINTERS, strict=True)
    paint = painters[rng.choice(len(painters), p=np.array(shares) / sum(shares))]
    pane = canvas.crop(inner)  # a canvas of its own, so that nothing is painted over its edges
    paint(pane, rng, replace(theme, paper=ground), photograph)
    canvas.paste(pane, inner)


# --------------------------------------------------------------------------------------------------------------------
# Letters


@lru_cache(maxsize=1)
def fonts() -> list[Path]:
    """Files of matplotlib's. Raises UsageError where it is not installed, or without them."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise UsageError("drawings need the fonts of matplotlib: pip install 'hvcompress[train]'")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    sans = ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans"]
    mono = ["DejaVuSansMono", "DejaVuSansMono-Bold"]
    serif = ["DejaVuSerif", "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10"]
    paths = [folder / f"{name}.ttf" for name in sans + mono + serif]
    missing = [font.name for font in paths if not font.exists()]
    if missing:
        raise UsageError(f"this matplotlib lacks the font {missing[0]}")
    return paths


@lru_cache(maxsize=1024)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


Smoothing = Literal["none", "grey", "thirds"]  # of edges: by shades of the whole pixel, or of its red, green and blue


@dataclass(frozen=True)
class Hand:
    """How something is written."""

    path: Path
    size: int  # pixels
    smoothing: Smoothing
    alphabet: str


def _hand(rng: np.random.Generator, smallest: int = 9, largest: int = 40) -> Hand:
    paths = fonts()
    path, alphabet = paths[rng.integers(len(paths))], LATIN
    if rng.random() < 0.2:
        path, alphabet = paths[0], SCRIPTS[rng.integers(len(SCRIPTS))]
    # Most of what is written is small.
    size = int(smallest * (max(largest, smallest) / smallest) ** (rng.random() ** 2.2))
    smoothing = str(rng.choice(["grey", "thirds", "none"], p=[0.6, 0.3, 0.1]))
    return Hand(path, size, smoothing, alphabet)


def _word(rng: np.random.Generator, alphabet: str) -> str:
    kind = rng.random()
    if kind < 0.1:
        return str(rng.integers(10 ** rng.integers(1, 7)))
    letters = rng.integers(len(alphabet), size=min(12, 1 + rng.poisson(3.6)))
    word = "".join(alphabet[letter] for letter in letters)
    if kind < 0.25:
        word = word.upper() if kind < 0.13 else word.capitalize()
    return word + str(rng.choice(MARKS)) if kind > 0.88 else word


def _words(rng: np.random.Generator, alphabet: str, count: int) -> str:
    return " ".join(_word(rng, alphabet) for _ in range(count))


def _write(canvas: Image.Image, pieces: list[tuple[float, float, str, Colour]], hand: Hand) -> None:
    """Pieces of text, each with its place (left, top) and its colour; what does not fit is cut off."""
    width, height = canvas.size
    fine = SUPERSAMPLING if hand.smoothing == "thirds" else 1
    font = _font(hand.path, hand.size * fine)
    for colour in dict.fromkeys(piece[3] for piece in pieces):
        mask = Image.new("L", (width * fine, height * fine))
        pen = ImageDraw.Draw(mask)
        pen.fontmode = "1" if hand.smoothing == "none" else "L"
        for left, top, text, own in pieces:
            if own == colour:
                pen.text((left * fine, top * fine), text, 255, font)
        if fine == 1:
            canvas.paste(colour, None, mask)
        else:
            _blend_thirds(canvas, mask, colour)


def _blend_thirds(canvas: Image.Image, mask: Image.Image, colour: Colour) -> None:
    """Paint the colour through a mask that is three times finer, red, green and blue a third of a pixel apart."""
    thirds = np.asarray(mask.resize((mask.width, canvas.height), Image.Resampling.BOX), np.float32) / 255  # (h, 3 w)
    padded = np.pad(thirds, ((0, 0), (1, 1)))
    softened = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3  # or edges would be coloured
    cover = softened.reshape(len(softened), -1, 3)
    under = np.asarray(canvas, np.float32)
    canvas.paste(Image.fromarray(np.round(under + cover * (np.float32(colour) - under)).astype(np.uint8)))


# --------------------------------------------------------------------------------------------------------------------
# What fills a pane


def _text(canvas: Image.Image, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    """A paragraph, or lines of a program."""
    hand = _hand(rng)
    program, coloured = rng.random() < 0.35, rng.random() < 0.4
    leading = hand.size * rng.uniform(1.1, 1.7)
    ink = theme.ink if rng.random() < 0.7 else _between(theme.ink, theme.paper, rng.uniform(0, 0.6))
    space = hand.size * 0.3
    pieces = []
    for row in range(int(canvas.height / leading) + 1):
        left = hand.size * 1.8 * int(rng.integers(4)) if program else 0.0
        right = canvas.width * (rng.random() if program or rng.random() < 0.2 else 1)
        if not coloured:
            count = max(1, round((right - left) / (hand.size * 3.2)))
            pieces.append((left, row * leading, _words(rng, hand.alphabet, count), ink))
            continue
        while left < right:
            word = _word(rng, hand.alphabet)
            colour = ink if rng.random() < 0.6 else theme.accents[rng.integers(len(theme.accents))]
            pieces.append((left, row * leading, word, colour))
            left += _font(hand.path, hand.size).getlength(word) + space
    _write(canvas, pieces, hand)


def _table(canvas: Image.Image, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    hand = _hand(rng, 9, 18)
    pen = ImageDraw.Draw(canvas)
    row_height = int(hand.size * rng.uniform(1.4, 2.2))
    column_width = int(hand.size * rng.uniform(4, 12))
    striped, ruled, framed = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.4
    stripe = _between(theme.paper, theme.ink, 0.07)
    icons = rng.random() < 0.4
    pieces = []
    for row, top in enumerate(range(0, canvas.height - row_height + 1, row_height)):
        if striped and row % 2 or row == 0 and rng.random() < 0.5:
            ground = stripe if row else _between(theme.paper, theme.accents[0], 0.7)
            pen.rectangle((0, top, canvas.width - 1, top + row_height - 1), ground)
        if ruled:
            pen.line((0, top, canvas.width - 1, top), theme.line)
        for left in range(0, canvas.width, column_width):
            indent = 3
            if icons and left == 0:
                _icon(canvas, (left + 2, top + 1, left + row_height, top + row_height - 1), rng, theme)
                indent += row_height
            text = _words(rng, hand.alphabet, int(rng.integers(1, 3)))
            pieces.append((left + indent, top + (row_height - hand.size) / 2 - 1, text, theme.ink))
    if framed:
        for left in range(0, canvas.width, column_width):
            pen.line((left, 0, left, canvas.height - 1), theme.line)
    _write(canvas, pieces, hand)


@contextmanager
def _enlarged(canvas: Image.Image, box: Box) -> Iterator[Image.Image]:
    """The box three times as large; what is drawn there appears on the canvas smoothed."""
    width, height = box[2] - box[0], box[3] - box[1]
    fine = canvas.crop(box).resize((width * SUPERSAMPLING, height * SUPERSAMPLING), Image.Resampling.NEAREST)
    yield fine
    canvas.paste(fine.resize((width, height), Image.Resampling.BOX), box)


def _icon(canvas: Image.Image, box: Box, rng: np.random.Generator, theme: Theme) -> None:
    """A few shapes on top of each other, smoothed."""
    if min(box[2] - box[0], box[3] - box[1]) < 4:
        return
    with _enlarged(canvas, box) as fine:
        pen = ImageDraw.Draw(fine)
        for _ in range(rng.integers(1, 6)):
            _shape(pen, fine.size, rng, theme)


def _shape(pen: ImageDraw.ImageDraw, size: tuple[int, int], rng: np.random.Generator, theme: Theme) -> None:
    width, height = size
    colours = (theme.ink, theme.line, *theme.accents)
    colour = colours[rng.integers(len(colours))]
    x, y = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
    corners = (float(x[0]), float(y[0]), float(x[1]), float(y[1]))
    outline, thickness = (theme.ink if rng.random() < 0.4 else None), int(rng.integers(1, 7))
    kind = rng.integers(5)
    if kind == 0:
        pen.rectangle(corners, colour, outline, thickness)
    elif kind == 1:
        pen.ellipse(corners, colour, outline, thickness)
    elif kind == 2:
        radius = int(min(x[1] - x[0], y[1] - y[0]) * rng.uniform(0.1, 0.5))
        pen.rounded_rectangle(tuple(map(int, corners)), radius, colour, outline)
    elif kind == 3:
        points = rng.uniform(0, 1, (rng.integers(3, 7), 2)) * size
        pen.polygon([(float(px), float(py)) for px, py in points], colour, outline)
    else:
        points = rng.uniform(0, 1, (rng.integers(2, 6), 2)) * size
        pen.line([(float(px), float(py)) for px, py in points], colour, thickness, "curve")


def _shapes(canvas: Image.Image, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    """A flat illustration."""
    for _ in range(rng.integers(1, 3)):
        _icon(canvas, (0, 0, *canvas.size), rng, theme)


def _controls(canvas: Image.Image, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    """Buttons, fields, boxes to tick, and their labels."""
    hand = _hand(rng, 9, 18)
    pen = ImageDraw.Draw(canvas)
    height = int(hand.size * rng.uniform(1.6, 2.6))
    radius, gap = int(rng.integers(0, height // 2)), int(rng.integers(2, 14))
    pieces = []
    for top in range(0, canvas.height - height, height + gap):
        left = 0
        while left < canvas.width - 2 * height:
            width = min(int(hand.size * rng.uniform(2, 12)), canvas.width - 1 - left)
            kind = rng.random()
            ground = theme.accents[0] if rng.random() < 0.3 else _between(theme.paper, theme.ink, rng.uniform(0, 0.15))
            indent = 6
            if kind < 0.45:
                pen.rounded_rectangle((left, top, left + width, top + height - 1), radius, ground, theme.line)
            elif kind < 0.6:
                edge = height - 4
                pen.rectangle((left, top + 2, left + edge, top + 2 + edge), ground, theme.ink)
                if rng.random() < 0.5:
                    tick = ((left + 3, top + height // 2), (left + edge // 2, top + height - 6), (left + edge, top + 4))
                    pen.line(tick, theme.ink, 2)
                indent = height + 4
            elif kind < 0.75:
                _icon(canvas, (left, top, left + height, top + height), rng, theme)
                indent = height + 4
            text = _words(rng, hand.alphabet, int(rng.integers(1, 4)))
            pieces.append((left + indent, top + (height - hand.size) / 2 - 1, text, theme.ink))
            left += width + gap
    _write(canvas, pieces, hand)


def _plot(canvas: Image.Image, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    """Axes, a grid, and curves, points or bars."""
    with _enlarged(canvas, (0, 0, *canvas.size)) as fine:
        _axes(fine, rng, theme)
    hand = _hand(rng, 9, 14)
    places = rng.uniform(0, 1, (rng.integers(2, 10), 2)) * canvas.size
    pieces = [(float(px), float(py), _words(rng, hand.alphabet, 1), theme.ink) for px, py in places]
    _write(canvas, pieces, hand)


def _axes(fine: Image.Image, rng: np.random.Generator, theme: Theme) -> None:
    """A plot without its letters, on an enlarged canvas."""
    pen, size, thin = ImageDraw.Draw(fine), fine.size, SUPERSAMPLING
    if rng.random() < 0.6:
        for share in np.linspace(0, 1, rng.integers(3, 9)):
            pen.line((0, share * size[1], size[0], share * size[1]), theme.line, thin)
            pen.line((share * size[0], 0, share * size[0], size[1]), theme.line, thin)
    kind, count = rng.integers(3), int(rng.integers(5, 60))
    x = (np.arange(count) + 0.5) / count * size[0]
    for number in range(rng.integers(1, 5)):
        colour = theme.accents[number % len(theme.accents)]
        y = np.clip(0.5 + np.cumsum(rng.normal(0, 0.5 / count**0.5, count)), 0.02, 0.98) * size[1]
        points = [(float(px), float(py)) for px, py in zip(x, y, strict=True)]
        if kind == 0:
            pen.line(points, colour, int(thin * rng.uniform(1, 3)))
        elif kind == 1:
            r = float(thin * rng.uniform(1, 4))
            for px, py in points:
                pen.ellipse((px - r, py - r, px + r, py + r), colour)
        elif number == 0:
            for px, py in points:
                pen.rectangle((px, py, px + size[0] / count * 0.7, size[1]), colour)
    pen.line((0, 0, 0, size[1], size[0], size[1]), theme.ink, 2 * thin)


def _pattern(canvas: Image.Image, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    """Hatching, chequers or dots, to the pixel."""
    y, x = np.mgrid[0 : canvas.height, 0 : canvas.width]
    period = int(rng.integers(2, 12))
    kind = rng.integers(4)
    if kind == 0:
        on = (x // (period // 2) + y // (period // 2)) % 2 == 0
    elif kind == 1:
        on = (x + int(rng.integers(-2, 3)) * y) % period < max(1, period // 3)
    elif kind == 2:
        on = (x % period == 0) | (y % period == 0)
    else:
        on = (x % period == 0) & (y % period == 0)
    colour = theme.line if rng.random() < 0.6 else theme.accents[1]
    canvas.paste(colour, None, Image.fromarray(on.astype(np.uint8) * 255))


def _gradient(canvas: Image.Image, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    y, x = np.mgrid[0 : canvas.height, 0 : canvas.width]
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, 2 * np.pi)])
    along = x * np.cos(angle) + y * np.sin(angle)
    share = ((along - along.min()) / max(1.0, np.ptp(along)))[..., None]
    start, end = (np.float64(theme.accents[i] if rng.random() < 0.6 else theme.paper) for i in (2, 3))
    canvas.paste(Image.fromarray(np.round(start + share * (end - start)).astype(np.uint8)))


def _photograph(canvas: Image.Image, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    """Filling the pane, at half its size at most."""
    width, height = canvas.size
    rows, columns = photograph.shape[:2]
    scale = min(rng.uniform(1.0, 2.0), columns / width, rows / height)
    if scale < 1:  # the photograph is smaller than the pane
        return
    left = int(rng.integers(columns - int(width * scale) + 1))
    top = int(rng.integers(rows - int(height * scale) + 1))
    region = (left, top, left + int(width * scale), top + int(height * scale))
    picture = Image.fromarray(photograph).resize((width, height), Image.Resampling.LANCZOS, region)
    canvas.paste(picture)
    if rng.random() < 0.3:
        place = (0, max(0, height - 40), width, height)
        caption = canvas.crop(place)
        _text(caption, rng, theme, photograph)
        canvas.paste(caption, place)


def _nothing(canvas: Image.Image, rng: np.random.Generator, theme: Theme, photograph: np.ndarray) -> None:
    """Left empty, as much of a screen is."""


Painter = Callable[[Image.Image, np.random.Generator, Theme, np.ndarray], None]
PAINTERS: tuple[tuple[Painter, float], ...] = (  # with how often each is used
    (_text, 0.30),
    (_table, 0.14),
    (_controls, 0.12),
    (_plot, 0.08),
    (_shapes, 0.10),
    (_pattern, 0.03),
    (_gradient, 0.05),
    (_photograph, 0.10),
    (_nothing, 0.08),
)
