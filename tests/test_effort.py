"""Effort: longer searches, and an encoder fitted to one picture, with a tiny random model."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
import torch

import hvcompress
from hvcompress import effort
from hvcompress.effort import lagrangian
from hvcompress.errors import UsageError
from hvcompress.exact import relaxed, to_values
from hvcompress.image_reading import read_picture
from hvcompress.model import Parts
from hvcompress.network import dequantize, descend
from hvcompress.pixels import to_tensor
from hvcompress.training.objective import evaluate
from hvcompress.trellis import quantize

LAYERS = 6  # of the tiny model


@pytest.fixture(scope="module")
def picture(photo):
    return read_picture(photo)


def test_effort_helps_and_decodes(tiny, picture):
    plain = tiny.encode(picture, 50)
    told = []
    fitted = tiny.encode(picture, 50, effort=5, progress=lambda done, total: told.append((done, total)))
    assert lagrangian(picture, fitted) < 0.99 * lagrangian(picture, plain)
    assert np.array_equal(tiny.decode(fitted.data).pixels, fitted.picture.pixels)
    assert told == [(step, 66) for step in range(67)]  # of fitting, and two encodings
    assert fitted.seconds["fit"] > 0 and set(fitted.seconds) == set(plain.seconds)
    assert tiny.encode(picture, 50).data == plain.data  # the model itself is as it was


def test_a_longer_search_needs_no_fitting(tiny, picture):
    """Below effort 4 there is nothing but more states, which the file names."""
    for level, state_bits in ((1, 12), (2, 14), (3, 16)):
        encoded = tiny.encode(picture, 50, effort=level, verify=False)
        assert hvcompress.read_info(encoded.data).state_bits == state_bits
        assert encoded.seconds["fit"] == 0 and encoded.picture is None
        tiny.decode(encoded.data)  # compares the latents
        bits = sum(tiny.estimated_bits(encoded.data))
        assert bits == pytest.approx(8 * sum(hvcompress.read_info(encoded.data).layer_bytes), rel=0.01)


def test_the_lagrangian_is_that_of_the_file(tiny, picture):
    offsets = [0, 0, 0, 0, 12, -12]
    encoded = tiny.encode(picture, 50, offsets)
    height, width = picture.pixels.shape[:2]
    sizes = hvcompress.read_info(encoded.data).layer_bytes
    ratio = (0.25 / 0.001) ** (12 / 100)  # of the lambdas of two qualities that lie 12 apart
    rate = 8 * (sum(sizes[:4]) + ratio * sizes[4] + sizes[5] / ratio) / (height * width)
    mse = np.mean((picture.pixels.astype(float) - encoded.picture.pixels) ** 2)
    assert lagrangian(picture, encoded) == pytest.approx(rate + np.sqrt(0.001 * 0.25) * mse)
    lowest = tiny.encode(picture, 0, [0] * 5 + [12])  # there is no quality below 0: the last layer's beta is 1
    mse = np.mean((picture.pixels.astype(float) - lowest.picture.pixels) ** 2)
    rate = 8 * sum(hvcompress.read_info(lowest.data).layer_bytes) / (height * width)
    assert lagrangian(picture, lowest) == pytest.approx(rate + 0.001 * mse)


def test_effort_is_never_worse(tiny, picture, monkeypatch):
    """Whatever comes of the fitting, the file of the model's own encoder is there to fall back on."""

    def ruined(parts, pixels, quality, offsets, level, tell):
        encoder = effort.deepcopy(parts.encoder)
        with torch.no_grad():
            encoder.stem.weight.mul_(-3.0)
        yield from [encoder] * level.files

    with monkeypatch.context() as patch:
        patch.setattr(effort, "fitted_encoders", ruined)
        assert tiny.encode(picture, 50, effort=5).data == tiny.encode(picture, 50, effort=3).data
    monkeypatch.setattr(effort, "LEARNING_RATE", float("inf"))
    assert tiny.encode(picture, 50, effort=5).data == tiny.encode(picture, 50, effort=3).data


@pytest.mark.parametrize("first", range(4))
def test_the_best_of_several_files_is_taken(tiny, picture, monkeypatch, first):
    encoders = []
    for factor in (0.9, 0.8, 0.7, 0.6):
        encoder = effort.deepcopy(tiny._encoder)
        with torch.no_grad():
            for parameter in encoder.posteriors.parameters():
                parameter.mul_(factor)
        encoders.append(encoder)
    bits = effort.level_of(7).state_bits
    files = [
        tiny._encode_with(encoder, picture, 50, (0,) * LAYERS, bits, True) for encoder in (tiny._encoder, *encoders)
    ]
    best = min(files, key=lambda made: lagrangian(picture, made))
    assert best is not files[0] and effort.level_of(7).files == 4
    in_turns = encoders[first:] + encoders[:first]
    monkeypatch.setattr(effort, "fitted_encoders", lambda *_: in_turns)
    chosen = tiny.encode(picture, 50, effort=7)
    assert chosen.data == best.data and np.array_equal(chosen.picture.pixels, best.picture.pixels)


def test_encoders_come_from_the_end_of_training(tiny, picture, monkeypatch):
    parts = Parts(tiny._encoder, tiny._topdown, tiny._synthesis, tiny._tables)
    copies, weights, came = [], [], []

    def copied(module):
        copies.append(deepcopy(module))
        return copies[-1]

    monkeypatch.setattr(effort, "deepcopy", copied)
    level = effort.Level(8, steps=20, files=4)
    for encoder in effort.fitted_encoders(
        parts,
        picture.pixels[:64, :64],
        50,
        (0,) * LAYERS,
        level,
        tell=lambda: weights.append(copies[0].stem.weight.detach().clone()),
    ):
        came.append((len(weights), encoder, encoder.stem.weight.detach().clone()))
    raw, average = copies
    assert [(step, encoder) for step, encoder, _ in came] == [(17, raw), (18, average), (19, raw), (20, average)]
    assert torch.equal(came[0][2], weights[16]) and torch.equal(came[2][2], weights[18])
    mean = tiny._encoder.stem.weight
    for step, weight in enumerate(weights, 1):
        mean = torch.lerp(mean, weight, 1 - min(0.75, step / (step + 2)))  # TAIL of 20 steps are 4
    assert torch.allclose(came[3][2], mean, atol=1e-7) and not torch.allclose(came[3][2], weights[-1], atol=1e-7)
    assert not any(weight.requires_grad for weight in tiny._encoder.parameters())


def test_several_files_are_made_while_training_goes_on(tiny, picture, monkeypatch):
    monkeypatch.setitem(effort.LEVELS, 6, effort.Level(10, steps=20, files=4))
    told = []
    made = tiny.encode(picture, 50, effort=6, progress=lambda done, total: told.append((done, total)))
    assert told == [(step, 25) for step in range(26)]
    assert np.array_equal(tiny.decode(made.data).pixels, made.picture.pixels)
    with torch.inference_mode():
        assert tiny.encode(picture, 50, effort=6).data == made.data
    with torch.autocast("cpu", torch.bfloat16):  # a caller's habits must not matter
        assert tiny.encode(picture, 50, effort=6).data == made.data


def test_a_step_sees_a_window_of_the_padded_picture(tiny, picture, monkeypatch):
    monkeypatch.setattr(effort, "WINDOW", 64)
    parts = Parts(tiny._encoder, tiny._topdown, tiny._synthesis, tiny._tables)
    whole, seen = to_tensor(picture.pixels, torch.device("cpu")), set()
    assert picture.pixels.shape == (75, 131, 3) and whole.shape == (1, 3, 128, 192)

    def watched(student, window, *args, size, **options):
        places = [
            (top, left)
            for top in (0, 64)
            for left in (0, 64, 128)
            if torch.equal(window, whole[..., top : top + 64, left : left + 64])
        ]
        assert len(places) == 1 and size == (11 if places[0][0] else 64, 3 if places[0][1] == 128 else 64)
        seen.update(places)
        return evaluate(student, window, *args, size=size, **options)

    monkeypatch.setattr(effort, "evaluate", watched)
    list(effort.fitted_encoders(parts, picture.pixels, 50, (0,) * LAYERS, effort.Level(8, steps=40, files=1)))
    assert len(seen) == 6


def test_a_model_loaded_in_inference_mode_can_be_fitted(tiny_folder, tmp_path, picture):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    with torch.inference_mode():
        codec = hvcompress.load_model(tmp_path / "copy", device="cpu")
    assert codec.encode(picture, 50, effort=5).seconds["fit"] > 0


def test_padding_does_not_count(tiny, photo):
    """A picture of 65 x 65 is coded as one of 128 x 128: three quarters of that are of no concern."""
    image = torch.zeros(1, 3, 128, 128)
    image[..., :65, :65] = torch.from_numpy(photo[:65, :65] / 255.0).permute(2, 0, 1)
    quality, offsets = torch.tensor([50]), torch.zeros(1, LAYERS, dtype=torch.long)
    soft = Parts(tiny._encoder, relaxed(tiny._topdown), relaxed(tiny._synthesis), tiny._tables)

    def outcome(size):
        return evaluate(soft, image, quality, offsets, noise=None, weight_exponent=0.0, size=size)

    with torch.no_grad():
        whole, part = outcome(None), outcome((65, 65))
        output = descend_with(soft, image, quality)
    assert torch.allclose(part.rates, whole.rates * 128**2 / 65**2)
    assert torch.allclose(part.mse, (output - image)[..., :65, :65].square().mean(), rtol=1e-4)
    assert not torch.allclose(part.mse, whole.mse, rtol=1e-2)


def descend_with(parts, image, quality):
    """What the model makes of an image, its latents quantized."""
    features = parts.encoder(image, quality)
    levels = quality[:, None].expand(1, LAYERS)

    def choose(prior):
        stride = parts.topdown.config.latents[prior.layer].stride
        mean = parts.encoder.posteriors[prior.layer](prior.feature, features[stride], quality)
        chosen, _ = quantize((mean - prior.mean) / prior.step, prior.scale_index)
        return dequantize(prior, chosen, parts.topdown.snap)

    return parts.synthesis(descend(parts.topdown.walk(levels, *image.shape[-2:]), choose).all(), quality)


def test_effort_repeats_itself_and_respects_betas(tiny, picture):
    offsets = [0, 0, 0, 0, 10, 10]
    first = tiny.encode(picture, 50, offsets, effort=5)
    with torch.inference_mode():  # a caller's habit must not matter
        second = tiny.encode(picture, 50, offsets, effort=5, verify=False)
    assert first.data == second.data
    assert hvcompress.read_info(first.data).offsets == tuple(offsets)
    assert lagrangian(picture, first) < lagrangian(picture, tiny.encode(picture, 50, offsets, effort=3))


def test_a_level_is_more_work_than_the_one_before():
    levels = [effort.level_of(number) for number in range(1, 10)]
    assert levels[0] == effort.Level(12, steps=0)
    for less, more in itertools.pairwise(levels):
        assert less != more
        assert less.state_bits <= more.state_bits and less.steps <= more.steps and less.files <= more.files
        assert more.files <= effort.TAIL * more.steps  # or two of them would be the same
    for wrong in (0, 10, 2.5, 3.0, "3", None, True):
        with pytest.raises(UsageError, match="effort must be a whole number from 1 to 9"):
            effort.level_of(wrong)


def test_windows_of_a_large_picture():
    generator = np.random.Generator(np.random.PCG64(0))
    windows = Counter(effort._window(512, 768, generator) for _ in range(20_000))
    assert set(windows) == {(top, left, 256, 256) for top in range(0, 257, 64) for left in range(0, 513, 64)}
    seen = np.zeros((8, 12))
    for (top, left, _, _), times in windows.items():
        seen[top // 64 : top // 64 + 4, left // 64 : left // 64 + 4] += times
    assert seen.max() < 4 * seen.min()  # in the corners; of windows drawn from within it would be 16 times
    assert effort._window(256, 192, generator) == (0, 0, 256, 192)  # all of a small picture
    assert effort._window(64, 6400, generator)[2:] == (64, 256)


def test_the_relaxed_path_has_the_values_of_the_exact_one(tiny):
    exact, soft = tiny._topdown, relaxed(tiny._topdown)
    seen = {}

    def choose_with(snap, dtype, name):
        draw = torch.Generator().manual_seed(3)

        def choose(prior):
            told = to_values(prior.mean), prior.scale_index.float(), to_values(prior.step)
            seen.setdefault(name, []).append(told)
            chosen = torch.randint(-4, 5, prior.mean.shape, generator=draw).to(dtype)
            return dequantize(prior, chosen, snap)

        return choose

    levels = torch.full((1, LAYERS), 50)
    h = to_values(descend(exact.walk(levels, 64, 64), choose_with(exact.snap, torch.int16, "exact")).all())
    start = torch.zeros((), requires_grad=True)
    choose = choose_with(soft.snap, torch.float32, "soft")
    out = descend(soft.walk(levels, 64, 64), lambda prior: choose(prior) + start).all()
    assert torch.allclose(h, out, atol=0.05)
    for (mean, index, step), (soft_mean, soft_index, soft_step) in zip(seen["exact"], seen["soft"], strict=True):
        assert torch.allclose(mean, soft_mean, atol=0.05) and torch.allclose(step, soft_step)
        assert torch.allclose(index, soft_index.clamp(0, 63), atol=1.5)
    assert torch.autograd.grad(out.sum(), start)[0] != 0
    assert exact.start.dtype == torch.int16 and not any(p.requires_grad for p in soft.parameters())
