from __future__ import annotations

import math

import numpy as np
import pytest

from hvcompress.metrics import psnr


def picture(seed: int, height: int = 17, width: int = 23) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_equal_pictures_give_infinity():
    assert psnr(picture(1), picture(1).copy()) == math.inf


def test_a_difference_of_one_everywhere_is_48_13_db():
    a = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(a, a + 1) == pytest.approx(20 * math.log10(255), abs=1e-12)


def test_it_is_the_textbook_formula_and_symmetric():
    a, b = picture(1), picture(2)
    expected = 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))
    assert psnr(a, b) == pytest.approx(expected, abs=1e-12)
    assert psnr(a, b) == psnr(b, a)


def test_extremes_do_not_wrap_around():
    black = np.zeros((2, 65535, 3), np.uint8)
    assert psnr(black, black + 255) == 0.0


@pytest.mark.parametrize(
    "other",
    [picture(1, 17, 22), picture(1).astype(np.float32), picture(1)[..., 0], picture(1)[..., :2]],
    ids=["size", "dtype", "gray", "planes"],
)
def test_what_cannot_be_compared_is_refused(other):
    with pytest.raises(ValueError, match="expected|different"):
        psnr(picture(1), other)


def test_empty_pictures_are_refused():
    with pytest.raises(ValueError, match="expected"):
        psnr(picture(1)[:0], picture(1)[:0])
