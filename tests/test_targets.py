"""Encoding to a size, a rate or a PSNR."""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import fake_codec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import hvcompress
from hvcompress import container
from hvcompress.cli import _size, main
from hvcompress.errors import MismatchError, TargetError, UsageError
from hvcompress.metrics import psnr
from hvcompress.picture import Picture
from hvcompress.quality import LAMBDA_MAX, LAMBDA_MIN, LEVELS, MAX_OFFSET, lambda_of, layer_qualities, quality_of
from hvcompress.targets import TOLERANCE, Goal, Target, Trial, encode_to, rate_of, search

SHARES = (0.01, 0.02, 0.06, 0.03, 0.02, 0.27, 0.32, 0.27)  # of a photograph's layers


class Coder:
    """Stands in for the encoder: layers whose sizes follow from their qualities, and a curve of the quality index."""

    def __init__(self, curve, shares=SHARES, offsets=None, header=0.0, alone=1.2):
        """curve: value by quality. header: what offsets add. alone: how much more a layer grows when it is shifted."""
        self.curve, self.shares, self.header, self.alone = curve, shares, header, alone
        self.offsets = (0,) * len(shares) if offsets is None else offsets
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def value(self, quality: int, shifts: tuple[int, ...]) -> float:
        plain = layer_qualities(quality, self.offsets)
        there = layer_qualities(quality, [o - s for o, s in zip(self.offsets, shifts, strict=True)])
        moved = sum(share * (b - a) for share, a, b in zip(self.shares, plain, there, strict=True))
        step = self.curve[min(quality + 1, LEVELS - 1)] - self.curve[min(quality, LEVELS - 2)]
        return self.curve[quality] + self.alone * step * moved + self.header * any(shifts)

    def __call__(self, quality: int, shifts: tuple[int, ...]) -> Trial:
        assert (quality, shifts) not in self.asked, "the same setting twice"
        assert 0 <= quality < LEVELS and len(shifts) == len(self.shares)
        assert all(abs(o - s) <= MAX_OFFSET for o, s in zip(self.offsets, shifts, strict=True))
        self.asked.append((quality, shifts))
        growth = tuple(0.03 * share for share in self.shares)
        return Trial(quality, shifts, self.value(quality, shifts), growth, self.header)


def goal_of(target: float, side: int = 0) -> Goal:
    """side: -1 is a target never exceeded, 1 one never missed."""
    return Goal(target, highest=target if side < 0 else math.inf, lowest=target if side > 0 else -math.inf)


def line(slope: float, bend: float = 0.0) -> list[float]:
    return [8 + slope * q + bend * math.sin(q / 12) for q in range(LEVELS)]


# --------------------------------------------------------------------------------------------------------------------
# The search


@pytest.mark.parametrize("side", [-1, 0, 1])
@pytest.mark.parametrize(("slope", "bend"), [(0.03, 0), (0.03, 0.1), (0.02, 0), (0.05, 0.2)])
def test_a_smooth_curve_takes_few_trials(slope, bend, side):
    curve, counts = line(slope, bend), []
    for target in np.linspace(curve[0] + 0.02, curve[-1] - 0.02, 60):
        coder, goal = Coder(curve), goal_of(target, side)
        trials = search(coder, goal, coder.offsets, start=50)
        best = goal.best(trials)
        assert abs(best.value - target) <= TOLERANCE and (best.value - target) * side >= 0
        assert best is trials[-1]
        counts.append(len(trials))
    assert np.mean(counts) <= 5 and max(counts) <= 8


def test_a_smooth_search_shifts_the_finest_layers_by_one_step():
    coder, goal = Coder(line(0.03)), goal_of(8 + 0.03 * 40.5)
    best = goal.best(search(coder, goal, coder.offsets, start=45))
    assert best.quality in (40, 41) and not any(best.shifts[:4])
    assert set(best.shifts[4:]) <= ({0, 1} if best.quality == 40 else {0, -1})


@pytest.mark.parametrize("side", [-1, 0, 1])
@pytest.mark.parametrize("plateau", [1, 3, 10, 50])
def test_where_only_steps_exist_it_is_the_nearest_of_them(plateau, side):
    """A layer's shift changes nothing, and the value only with every few qualities."""
    curve = [1 + 0.05 * plateau * (q // plateau) for q in range(LEVELS)]
    for target in np.linspace(curve[0], curve[-1], 19):
        coder, goal = Coder(curve, alone=0.0), goal_of(target, side)
        best = goal.best(search(coder, goal, coder.offsets, start=30))
        allowed = [value for value in curve if (value - target) * side >= 0]
        wanted = min(abs(value - target) for value in allowed)
        assert abs(best.value - target) <= max(wanted, TOLERANCE) + 1e-12 and (best.value - target) * side >= 0
        assert len(coder.asked) <= 20


@pytest.mark.parametrize("start", [0, 50, 100])
def test_a_target_out_of_range_is_searched_for_at_the_end(start):
    for target, end in ((7.5, 0), (11.5, 100)):
        coder = Coder(line(0.03))
        trials = search(coder, goal_of(target), coder.offsets, start)
        assert any(trial.quality == end for trial in trials) and len(trials) <= 7
        assert not any(any(trial.shifts) for trial in trials)


def test_the_ends_themselves_can_be_reached():
    curve = line(0.03)
    for side, (end, value) in itertools.product((-1, 0, 1), ((0, curve[0]), (100, curve[-1]))):
        coder, goal = Coder(curve), goal_of(value, side)
        assert goal.met(goal.best(search(coder, goal, coder.offsets, 50))), (side, end)


def test_offsets_take_bytes_which_the_search_foresees():
    """Of a small file the list of offsets is several quality steps, yet a setting with it is found if it is nearer."""
    coder, goal = Coder(line(0.03), header=0.05), goal_of(8 + 0.03 * 40.5, -1)
    trials = search(coder, goal, coder.offsets, start=40)
    assert goal.best(trials).value >= 8 + 0.03 * 40 and len(trials) <= 8


@pytest.mark.parametrize("offset", [MAX_OFFSET, -MAX_OFFSET])
def test_offsets_stay_within_what_a_file_can_say(offset):
    for target in np.linspace(8.5, 10.5, 30):
        coder, goal = Coder(line(0.03), offsets=(offset,) * 8), goal_of(target)
        best = goal.best(search(coder, goal, coder.offsets, start=50))  # Coder looks at the offsets
        assert abs(best.value - target) <= 0.015 + 1e-9


def test_known_trials_are_not_made_again():
    coder = Coder(line(0.03))
    known = search(coder, goal_of(9.1), coder.offsets, 50)
    count = len(coder.asked)
    assert search(coder, goal_of(9.1), coder.offsets, 50, known) == known and len(coder.asked) == count
    assert goal_of(9.2).met(search(coder, goal_of(9.2), coder.offsets, 50, known)[-1])


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.floats(0, 0.1), min_size=LEVELS, max_size=LEVELS),
    noise=st.lists(st.floats(-0.05, 0.05), min_size=LEVELS, max_size=LEVELS),
    place=st.floats(-0.1, 1.1),
    side=st.sampled_from((-1, 0, 1)),
    start=st.integers(0, 100),
    offsets=st.lists(st.integers(-MAX_OFFSET, MAX_OFFSET), min_size=1, max_size=8),
)
def test_whatever_the_curve_is_the_search_ends_with_what_is_allowed(steps, noise, place, side, start, offsets):
    """Plateaus, jumps, and values that go down where the quality goes up, as those of pictures of a few pixels."""
    curve = [float(a + b) for a, b in zip(itertools.accumulate(steps), noise, strict=True)]
    target = curve[0] + place * (curve[-1] - curve[0])
    coder, goal = Coder(curve, (1 / len(offsets),) * len(offsets), tuple(offsets)), goal_of(target, side)
    trials = search(coder, goal, offsets, start)
    assert 1 <= len(trials) <= 20
    best = goal.best(trials)
    if best is None:  # only where the target lies beyond an end: those were tried
        assert (0 if side < 0 else 100) in (trial.quality for trial in trials)
    else:
        assert (best.value - target) * side >= 0
        allowed = [trial for trial in trials if (trial.value - target) * side >= 0]
        assert abs(best.value - target) == min(abs(trial.value - target) for trial in allowed)
    if not any(trial.value <= target for trial in trials):
        assert any(trial.quality == 0 for trial in trials) or goal.met(best)
    if not any(trial.value >= target for trial in trials):
        assert any(trial.quality == 100 for trial in trials) or goal.met(best)


# --------------------------------------------------------------------------------------------------------------------
# What is asked for


def test_exactly_one_rate():
    assert rate_of() == 60 and rate_of(7) == 7 and rate_of(0) == 0
    assert rate_of(bpp=0.5, strict=True) == Target(bpp=0.5, strict=True)
    assert rate_of(size=100) == Target(size=100) and rate_of(psnr=35) == Target(psnr=35)
    assert rate_of(lmbda=lambda_of(33)) == 33
    for two in itertools.combinations(("quality", "bpp", "size", "psnr", "lmbda"), 2):
        with pytest.raises(UsageError, match="exclude each other"):
            rate_of(**dict.fromkeys(two, 0.1))
    for other in ({}, {"quality": 3}, {"lmbda": 0.1}):
        with pytest.raises(UsageError, match="strict is for a target"):
            rate_of(**other, strict=True)
    for wrong in ({}, {"bpp": 1, "size": 3}):
        with pytest.raises(UsageError, match="exactly one"):
            Target(**wrong)


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True, "1", [1]])
def test_numbers_that_make_no_sense(wrong):
    for name in ("bpp", "psnr", "size", "lmbda"):
        with pytest.raises(UsageError, match=f"{name.replace('lmbda', 'lambda')} must be"):
            rate_of(**{name: wrong})
    with pytest.raises(UsageError, match="whole number of bytes"):
        rate_of(size=1000.5)


def test_numbers_of_any_kind_and_size():
    target = Target(size=np.int16(5000))
    assert target == Target(size=5000) and type(target.size) is int
    assert Target(bpp=np.float16(0.5)) == Target(bpp=0.5) and type(Target(psnr=np.float32(30)).psnr) is float
    for huge in ({"bpp": 1e308}, {"psnr": 1e308}, {"size": 10**400}, {"bpp": 10**400}, {"psnr": np.float16(np.inf)}):
        with pytest.raises(UsageError, match="must be"):
            Target(**huge)


def test_lambda_is_the_nearest_quality():
    assert [quality_of(lambda_of(q)) for q in range(LEVELS)] == list(range(LEVELS))
    assert quality_of(lambda_of(40.4)) == 40 and quality_of(lambda_of(40.6)) == 41
    assert (quality_of(LAMBDA_MIN), quality_of(LAMBDA_MAX)) == (0, 100)
    for wrong in (0.00099, 0.251, math.nan, 0):
        with pytest.raises(UsageError, match="0.001 to 0.25"):
            quality_of(wrong)


@pytest.mark.parametrize(
    ("text", "size"),
    [("40000", 40000), ("40k", 40000), ("40kB", 40000), ("40K", 40000), ("1.5M", 1500000), ("2G", 2 * 10**9), ("1B", 1)]
    + [("0.1k", 100), ("1.001k", 1001), ("2.3M", 2300000), ("4.035k", 4035)],
)
def test_sizes(text, size):
    assert _size(text) == size


# --------------------------------------------------------------------------------------------------------------------
# Files


class SizedCodec:
    """True .hvci files with layers of a photograph's sizes, full of zeros, at the speed of a test.

    Their decoded picture has an error that depends on the quality of all layers. With effort files are as `fitted`
    qualities better.
    """

    name, layers = "sized", len(SHARES)

    def __init__(self, picture: Picture, fitted: int = 0):
        self.picture, self.fitted = picture, fitted
        self.encoded: list[tuple] = []
        self.decoded = 0

    def encode(
        self, picture, quality, offsets=None, *, effort=1, verify=True, memory_limit=None, progress=None, noted=True
    ):
        if noted:
            self.encoded.append((quality, offsets, effort))
        if offsets is not None and len(offsets) != self.layers:
            raise UsageError(f"the model has {self.layers} layers, but {len(offsets)} betas were given")
        assert memory_limit == 1 << 40
        offsets = (0,) * self.layers if offsets is None else tuple(offsets)
        levels = layer_qualities(quality, [o - self.fitted * (effort > 1) for o in offsets])
        area = picture.pixels.shape[0] * picture.pixels.shape[1]
        sizes = [round(area / 90 * s * math.exp(0.033 * q)) for s, q in zip(SHARES, levels, strict=True)]
        chunks = {b"ICCP": picture.icc} if picture.icc else {}
        header = container.Header(
            *picture.pixels.shape[1::-1], picture.gray, quality, offsets, b"\0" * 4, bytes(levels)[-4:]
        )
        data = container.pack(container.Container(header, tuple(map(bytes, sizes)), chunks))
        decoded = self._decoded(data) if verify else None
        return types.SimpleNamespace(data=data, picture=decoded, seconds={"network": 1.0, "coder": 0.5})

    def decode(self, data, *, memory_limit=None, progress=None):
        self.decoded += 1
        return self._decoded(data)

    def _decoded(self, data: bytes) -> Picture:
        rate = sum(hvcompress.read_info(data).layer_bytes) / self.picture.pixels.size + 1e-3
        noise = np.random.default_rng(0).normal(0, 1.5 / rate**0.6, self.picture.pixels.shape)
        return replace(self.picture, pixels=np.rint(self.picture.pixels + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def picture():
    """Gray, with a profile, which counts."""
    return Picture(np.full((200, 300, 3), 128, np.uint8), icc=b"\0" * 16 + b"RGB " + b"\0" * 180)


@pytest.fixture
def codec(picture):
    return SizedCodec(picture)


def reach(codec, target: Target, offsets=None, **options):
    return encode_to(codec, codec.picture, target, offsets, memory_limit=1 << 40, **options)


def plain(codec, quality: int, offsets=None, **options):
    return codec.encode(codec.picture, quality, offsets, memory_limit=1 << 40, noted=False, **options)


def size_between(codec, quality: int, offsets=None) -> int:
    """Half a step above a quality."""
    return round(np.mean([len(plain(codec, q, offsets, verify=False).data) for q in (quality, quality + 1)]))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("quality", [0, 33, 60, 99])
def test_a_size_is_that_of_the_whole_file(codec, quality, strict):
    size = size_between(codec, quality)
    for target in (Target(size=size, strict=strict), Target(bpp=8 * size / 60000, strict=strict)):
        codec.encoded.clear()
        reached = reach(codec, target)
        assert abs(len(reached.data) - size) <= 0.01 * size and (len(reached.data) <= size or not strict)
        assert reached.encodings == len(codec.encoded) == len(set(codec.encoded)) <= 7
        assert reached.picture.icc == codec.picture.icc
        assert reached.seconds["network"] == reached.encodings
    assert codec.decoded == 2  # only what is handed out


@pytest.mark.parametrize("strict", [False, True])
def test_a_psnr_is_that_of_the_decoded_picture(codec, strict):
    pixels = codec.picture.pixels
    wanted = float(np.mean([psnr(pixels, plain(codec, q).picture.pixels) for q in (40, 41)]))
    reached = reach(codec, Target(psnr=wanted, strict=strict), verify=False)
    decibels = psnr(pixels, codec.decode(reached.data).pixels)
    assert abs(decibels - wanted) <= 0.044 and (decibels >= wanted or not strict)
    assert np.array_equal(reached.picture.pixels, codec.decode(reached.data).pixels)


def test_given_betas_are_the_ones_that_are_shifted(codec):
    offsets = (5, 5, 0, 0, 0, 0, -7, 7)
    size = size_between(codec, 55, offsets)
    reached = reach(codec, Target(size=size, strict=True), offsets, verify=False)
    assert 0.99 * size <= len(reached.data) <= size and reached.picture is None and codec.decoded == 0
    differences = np.subtract(hvcompress.read_info(reached.data).offsets, offsets)
    assert np.abs(differences).max() == 1 and not differences[:4].any()
    assert codec.encoded[0][1] == offsets


def test_out_of_range_is_an_error_that_tells_the_range(codec):
    least, most = (len(plain(codec, q, verify=False).data) for q in (0, 100))
    for size in (1, round(0.95 * least), round(1.05 * most)):
        with pytest.raises(TargetError) as caught:
            reach(codec, Target(size=size))
        said = f"{size:,} bytes cannot be reached: with model sized this picture can have {least:,} to {most:,} bytes"
        assert str(caught.value) == said
    with pytest.raises(TargetError):
        reach(codec, Target(size=least - 1, strict=True))
    assert len(reach(codec, Target(size=least - 1)).data) == least  # within 1 %
    assert len(reach(codec, Target(size=most + 1, strict=True)).data) <= most
    with pytest.raises(TargetError, match=r"99 dB .* with these betas this picture can have \d+\.\d\d to \d+\.\d\d dB"):
        reach(codec, Target(psnr=99), (3,) * 8)
    with pytest.raises(TargetError, match=r"^50 bpp .* can have [\d.]+ to [\d.]+ bpp$"):
        reach(codec, Target(bpp=50))
    assert len(codec.encoded) < 60
    with pytest.raises(UsageError, match="8 layers, but 2"):
        reach(codec, Target(bpp=1), (0, 0))


def test_a_tiny_picture_gets_the_nearest():
    codec = SizedCodec(Picture(np.full((4, 5, 3), 77, np.uint8)))
    sizes = sorted({len(plain(codec, q, verify=False).data) for q in range(LEVELS)})
    assert sizes[-1] - sizes[0] < 20  # some of one byte, of more than one per cent
    for size in range(sizes[0], sizes[-1] + 1):
        near, strict = (reach(codec, Target(size=size, strict=strict)).data for strict in (False, True))
        assert len(strict) == max(s for s in sizes if s <= size)
        assert abs(len(near) - size) == min(abs(s - size) for s in sizes)


@pytest.mark.parametrize("fitted", [-6, -1, 0, 1, 6])
@pytest.mark.parametrize("strict", [False, True])
def test_effort_keeps_to_the_target(picture, fitted, strict):
    """However much larger or smaller the files are than those at effort 1 that were searched with."""
    codec = SizedCodec(picture, fitted)
    size = size_between(codec, 50)
    reached = reach(codec, Target(size=size, strict=strict), effort=5)
    assert abs(len(reached.data) - size) <= 0.01 * size and (len(reached.data) <= size or not strict)
    assert len(set(codec.encoded)) == len(codec.encoded) == reached.encodings
    efforts = [effort for *_, effort in codec.encoded]
    assert 1 <= efforts.count(5) <= (2 if fitted else 1) and efforts[0] == 1
    decibels = psnr(picture.pixels, plain(codec, 50).picture.pixels)
    reached = reach(codec, Target(psnr=decibels, strict=strict), effort=5)
    found = psnr(picture.pixels, reached.picture.pixels)
    assert abs(found - decibels) <= 0.044 and (found >= decibels or not strict)


def test_effort_that_never_meets_the_target_leaves_what_does(picture):
    """Effort whose files come out larger at random: with strict the plain file is the one that is left."""
    codec = SizedCodec(picture, 25)
    size = len(plain(codec, 3, verify=False).data)
    reached = reach(codec, Target(size=size, strict=True), effort=5)
    assert len(reached.data) == size and [effort for *_, effort in codec.encoded].count(5) <= 3
    with pytest.raises(UsageError, match="effort must be"):
        reach(codec, Target(size=size), effort=10)


def test_a_result_that_does_not_decode_is_not_handed_out(codec, monkeypatch):
    def decode(data, **options):
        raise MismatchError("other latents")

    monkeypatch.setattr(codec, "decode", decode)
    with pytest.raises(MismatchError, match="verification failed"):
        reach(codec, Target(size=3000))
    assert reach(codec, Target(size=3000), verify=False).data


def test_progress_begins_at_none_and_never_goes_back(codec):
    told = []
    reach(codec, Target(size=size_between(codec, 20)), progress=lambda *step: told.append(step))
    assert [done for done, _ in told] == list(range(len(codec.encoded)))
    assert all(done < total for done, total in told) and told[0] == (0, 5)


def test_bands_of_large_pictures_are_steps_of_the_progress(codec, monkeypatch):
    told = []
    encode, target = codec.encode, Target(size=size_between(codec, 20))

    def in_bands(*arguments, progress, **options):
        for band in range(4):
            progress(band, 3)
        return encode(*arguments, **options)

    monkeypatch.setattr(codec, "encode", in_bands)
    reach(codec, target, progress=lambda done, total: told.append(done / total), verify=False)
    assert told == sorted(told) and told[0] == 0 and told[-1] <= 1


# The tiny model: random weights, whose layers disturb each other more than trained ones do.


def test_files_of_a_real_model(tiny_folder, photo):
    image, options = photo[:64, :64], {"model": tiny_folder, "device": "cpu"}
    least, most = (len(hvcompress.encode(image, q, **options)) for q in (0, 100))
    size = (least + most) // 2
    data, again = hvcompress.encode_batch([image, image], size=size, strict=True, jobs=2, **options)
    assert 0.98 * size <= len(data) <= size and again == data

    with pytest.raises(TargetError):
        hvcompress.encode(image, size=10, **options)


def test_a_psnr_of_the_model_that_ships(photo):
    """Of random weights the PSNR need not grow with the quality."""
    image = photo[:64, :64]

    def reached(**setting) -> float:
        data = hvcompress.encode(image, device="cpu", **setting)
        return psnr(image, np.asarray(hvcompress.decode(data, device="cpu")))

    decibels = (reached(quality=0) + reached(quality=100)) / 2
    assert decibels <= reached(psnr=decibels, strict=True) <= decibels + 0.1


def test_the_library_passes_rates_on(tiny_folder, photo):
    options = {"model": tiny_folder, "device": "cpu", "verify": False}

    def quality_with(**rate) -> int:
        return hvcompress.read_info(hvcompress.encode(photo[:8, :8], **rate, **options)).quality

    assert quality_with(lmbda=0.01) == quality_of(0.01) and quality_with() == 60
    with pytest.raises(UsageError, match="quality and bpp exclude each other"):
        quality_with(quality=60, bpp=1.0)


# --------------------------------------------------------------------------------------------------------------------
# The command line, with a codec that has ten sizes


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hvcompress.loading", fake_codec.module())
    monkeypatch.chdir(tmp_path)
    ramp = np.add.outer(np.arange(48) * 3, np.arange(64) * 2)[..., None] + np.array([0, 7, 14])
    array = (ramp + np.random.default_rng(1).integers(0, 9, ramp.shape)).clip(0, 255).astype(np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(array).save(name)
    return tmp_path


def sizes_of(name: str) -> list[int]:
    picture = Picture(np.asarray(Image.open(name)))
    return [len(fake_codec.FakeCodec().encode(picture, quality, verify=False).data) for quality in range(LEVELS)]


def test_encode_reports_what_it_reached(here, capsys):
    sizes = sizes_of("a.png")
    assert main(["encode", "a.png", "--size", f"{sizes[45]}B"]) == 0
    line = capsys.readouterr().out
    pattern = rf"a\.png  64x48  [\d,]+ -> {sizes[45]:,} bytes  [\d.]+ bpp  [\d.]+ dB  [\d.]+ s  quality 4\d\n"
    assert re.fullmatch(pattern, line), line
    assert os.path.getsize("a.hvci") == sizes[45]
    assert main(["encode", "a.png", "-f", "--lambda", "0.01"]) == 0
    assert capsys.readouterr().out.endswith(f" s  quality {quality_of(0.01)}\n")


def test_several_files_at_a_time(here, capsys):
    Image.open("a.png").crop((0, 0, 32, 48)).save("b.png")
    sizes = {name: sizes_of(f"{name}.png") for name in "ab"}
    bpp = 8 * sizes["a"][70] / (64 * 48)
    assert main(["encode", "a.png", "b.png", "--bpp", f"{bpp:.9f}", "--strict", "-j", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for name, area in (("a", 64 * 48), ("b", 32 * 48)):
        limit = round(bpp, 9) * area / 8
        assert os.path.getsize(f"{name}.hvci") == max(size for size in sizes[name] if size <= limit)


def test_out_of_range_on_the_command_line(here, capsys):
    sizes = sizes_of("a.png")
    Path("b.png").unlink()
    assert main(["encode", "a.png", "--size", "20"]) == TargetError.exit_code == 11
    said = capsys.readouterr().err
    possible = f"{min(sizes):,} to {max(sizes):,} bytes"
    assert said == (
        f"hvcompress: a.png: 20 bytes cannot be reached: with model fake this picture can have {possible}\n"
    )
    assert os.listdir() == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-q", "60", "--bpp", "1"], "not allowed with argument"),
        (["--size", "4k", "--psnr", "30"], "not allowed with argument"),
        (["--lambda", "0.1", "-q", "60"], "not allowed with argument"),
        (["--strict"], "strict is for a target"),
        (["-q", "7", "--strict"], "strict is for a target"),
        (["--bpp", "0"], "--bpp: must be a positive number"),
        (["--bpp", "-1"], "--bpp"),
        (["--psnr", "inf"], "--psnr: must be a positive number"),
        (["--psnr", "1e9"], "--psnr: must be a positive number"),
        (["--size", "0"], "--size: must be a size"),
        (["--size", "0.5"], "--size: must be a size"),
        (["--size", "40KiB"], "--size: must be a size"),
        (["--size", "k"], "--size: must be a size"),
        (["--lambda", "1"], "--lambda: lambda must be a number from 0.001 to 0.25"),
        (["--lambda", "x"], "--lambda: must be a positive number"),
    ],
)
def test_argument_errors(arguments, message, here, capsys):
    assert main(["encode", "a.png", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(os.listdir()) == ["a.png", "b.png"]
