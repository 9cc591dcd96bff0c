"""Effort: an encoder fitted to one picture, with a tiny random model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hvcompress
from hvcompress import codec as codec_module
from hvcompress import effort
from hvcompress.codec import lagrangian
from hvcompress.errors import UsageError
from hvcompress.exact import relaxed
from hvcompress.image_io import read_picture
from hvcompress.network import dequantize, descend

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
    assert told == [(step, 64) for step in range(1, 65)]
    assert fitted.seconds["fit"] > 0 and set(fitted.seconds) == set(plain.seconds)
    assert tiny.encode(picture, 50).data == plain.data  # the model itself is as it was


def test_the_lagrangian_is_that_of_the_file(tiny, picture):
    offsets = [0, 0, 0, 0, 12, -12]
    encoded = tiny.encode(picture, 50, offsets)
    height, width = picture.pixels.shape[:2]
    sizes = hvcompress.read_info(encoded.data).layer_bytes
    ratio = (0.25 / 0.001) ** (12 / 100)  # of the lambdas of two qualities that lie 12 apart
    rate = 8 * (sum(sizes[:4]) + ratio * sizes[4] + sizes[5] / ratio) / (height * width)
    mse = np.mean((picture.pixels.astype(float) - encoded.picture.pixels) ** 2)
    assert lagrangian(picture, encoded) == pytest.approx(rate + np.sqrt(0.001 * 0.25) * mse)


def test_effort_is_never_worse(tiny, picture, monkeypatch):
    """Whatever comes of the fitting, the file of effort 1 is there to fall back on."""

    def ruined(parts, image, quality, offsets, steps, progress):
        encoder = effort.deepcopy(parts.encoder)
        with torch.no_grad():
            encoder.stem.weight.mul_(-3.0)
        return encoder

    monkeypatch.setattr(codec_module, "fit_encoder", ruined)
    assert tiny.encode(picture, 50, effort=2).data == tiny.encode(picture, 50).data


def test_effort_repeats_itself_and_respects_betas(tiny, picture):
    offsets = [0, 0, 0, 0, 10, 10]
    first = tiny.encode(picture, 50, offsets, effort=3)
    with torch.inference_mode():  # a caller's habit must not matter
        second = tiny.encode(picture, 50, offsets, effort=3, verify=False)
    assert first.data == second.data
    assert hvcompress.read_info(first.data).offsets == tuple(offsets)
    assert lagrangian(picture, first) < lagrangian(picture, tiny.encode(picture, 50, offsets))


def test_steps_double_with_every_level():
    assert [effort.steps_of(level) for level in range(1, 10)] == [0, 8, 16, 32, 64, 128, 256, 512, 1024]
    for wrong in (0, 10, 2.5, "3", None, True):
        with pytest.raises(UsageError, match="effort must be a whole number from 1 to 9"):
            effort.steps_of(wrong)


def test_windows_of_a_large_picture():
    image = torch.arange(1024 * 2048, dtype=torch.float32).reshape(1, 1, 1024, 2048)
    generator = np.random.Generator(np.random.PCG64(0))
    corners = set()
    for _ in range(300):
        window = effort._window(image, generator)
        assert window.shape[-2:] == effort.WINDOW
        top, left = divmod(int(window[0, 0, 0, 0]), 2048)
        assert top % 64 == 0 and left % 64 == 0
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(0, 1024 - 512 + 1, 64))
    assert {left for _, left in corners} == set(range(0, 2048 - 768 + 1, 64))
    assert effort._window(image[:, :, :64, :128], generator).shape[-2:] == (64, 128)


def test_the_relaxed_path_has_the_values_of_the_exact_one(tiny):
    exact, soft = tiny._topdown, relaxed(tiny._topdown)
    seen = {}

    def choose_with(snap, dtype, name):
        draw = torch.Generator().manual_seed(3)

        def choose(prior):
            seen.setdefault(name, []).append((prior.mean.double(), prior.scale_index.double(), prior.step.double()))
            symbols = torch.randint(-2, 3, prior.mean.shape, generator=draw).to(dtype)
            return dequantize(prior, symbols, snap)

        return choose

    levels = torch.full((1, LAYERS), 50)
    h = descend(exact.walk(levels, 64, 64), choose_with(exact.snap, torch.float64, "exact"))
    start = torch.zeros((), requires_grad=True)
    choose = choose_with(soft.snap, torch.float32, "soft")
    out = descend(soft.walk(levels, 64, 64), lambda prior: choose(prior) + start)
    assert torch.allclose(h, out.double(), atol=0.05)
    for (mean, index, step), (soft_mean, soft_index, soft_step) in zip(seen["exact"], seen["soft"], strict=True):
        assert torch.allclose(mean, soft_mean, atol=0.05) and torch.allclose(step, soft_step)
        assert torch.allclose(index, soft_index.clamp(0, 63), atol=1.5)
    assert torch.autograd.grad(out.sum(), start)[0] != 0
    assert exact.snap.exact and not any(p.requires_grad for p in soft.parameters())
