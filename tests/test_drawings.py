"""Drawings to train on: functions of their seed, of the right kind, among the crops at the share asked for."""

import numpy as np
import pytest
from PIL import Image

from hvcompress.errors import UsageError
from hvcompress.training import drawings
from hvcompress.training.data import Crops

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def photograph():
    return np.random.default_rng(0).integers(100, 156, (200, 260, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def paths(photograph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        Image.fromarray(photograph + np.uint8(number)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("side", [64, 192, 384])
def test_a_drawing_is_a_function_of_its_seed(photograph, side):
    def draw(seed):
        return drawings.draw(np.random.default_rng(seed), side, photograph)

    seen = set()
    for seed in range(40):
        drawing = draw(seed)
        assert drawing.shape == (side, side, 3) and drawing.dtype == np.uint8
        np.testing.assert_array_equal(drawing, draw(seed))
        seen.add(drawing.tobytes())
    assert len(seen) > 35  # the smallest may be nothing but white


@pytest.mark.parametrize("painter", [painter for painter, _ in drawings.PAINTERS], ids=lambda painter: painter.__name__)
def test_a_painter_paints_panes_of_any_size(photograph, painter):
    """But for the one that leaves them empty."""
    theme = drawings.Theme((250, 250, 250), (0, 0, 0), (128, 128, 128), tuple((40 * i, 20, 90) for i in range(6)))
    painted = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        canvas = Image.new("RGB", tuple(rng.integers(8, 130, 2).tolist()), theme.paper)
        painter(canvas, rng, theme, photograph)
        painted += (np.asarray(canvas) != theme.paper).any()
    assert painted == 0 if painter is drawings._nothing else painted > 20


def written(smoothing):
    canvas = Image.new("RGB", (200, 40), (255, 255, 255))
    hand = drawings.Hand(drawings.fonts()[0], 20, smoothing, drawings.LATIN)
    drawings._write(canvas, [(4.0, 4.0, "illuminated", (0, 0, 0))], hand)
    return np.asarray(canvas).astype(int)


def test_letters_are_hard_grey_or_smoothed_by_thirds_of_a_pixel():
    assert set(np.unique(written("none"))) == {0, 255}
    grey = written("grey")
    assert len(np.unique(grey)) > 20 and (np.ptp(grey, axis=2) == 0).all()
    thirds = written("thirds")
    assert np.ptp(thirds, axis=2).max() > 40
    assert thirds.mean() == pytest.approx(grey.mean(), abs=8)  # as much ink
    assert abs(thirds.mean((0, 1)) - thirds.mean()).max() < 1  # and on the whole without a colour


def test_crops_are_drawn_at_the_share_asked_for(paths):
    def crops(share):
        return Crops(paths, 64, (1.0, 1.0), 5, share)

    def is_photograph(crop):
        return crop.min() >= 100 and crop.max() <= 160 and len(crop.unique()) > 40

    mixed = crops(0.3)
    batch = mixed.batch(7, 200)
    assert batch.equal(crops(0.3).batch(7, 200))
    assert 30 <= sum(not is_photograph(crop) for crop in batch) <= 90
    assert not any(is_photograph(crop) for crop in crops(1.0).batch(7, 40))
    assert all(is_photograph(crop) for crop in crops(0.0).batch(7, 40))


def test_without_fonts_there_is_one_clear_error(paths, monkeypatch):
    monkeypatch.setattr(drawings, "find_spec", lambda name: None)
    drawings.fonts.cache_clear()
    with pytest.raises(UsageError, match=r"hvcompress\[train\]"):
        Crops(paths, 64, (1.0, 1.0), 5, 0.1)
    assert Crops(paths, 64, (1.0, 1.0), 5).drawn_share == 0.0


def test_a_pane_without_a_pixel_is_left_out(photograph):
    canvas, rng = Image.new("RGB", (32, 32)), np.random.default_rng(3)
    for box in ((5, 0, 5, 32), (0, 7, 32, 7)):
        drawings._pane(canvas, box, rng, drawings._theme(rng), photograph)
    assert np.asarray(canvas).max() == 0
