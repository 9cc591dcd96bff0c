"""The study of what moving bits between layers costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import allocation  # noqa: E402


def rows_of(setting: str, factor: float, images: str = "abc", spread: float = 0.0) -> list[dict]:
    """Rates of a setting that needs `factor` times the bits of equal betas, more or less `spread` by picture."""
    rows = []
    for number, image in enumerate(images):
        share = factor * (1 + spread * (number - (len(images) - 1) / 2))
        for quality in range(4):
            bits = 1000 * 2**quality * share
            figures = {"bpp": bits / 1e4, "psnr": 30.0 + 3 * quality, "bits": [0.25 * bits, 0.75 * bits]}
            figures["preview"] = 25.0 + np.log2(bits)
            rows.append(
                {"image": image, "setting": setting, "point": f"{setting} {quality}", "quality": quality} | figures
            )
    return rows


def results_of(factor: float, **kinds: object) -> list[dict]:
    rows = rows_of(allocation.EQUAL, 1.0) + rows_of("other", factor, **kinds)
    return allocation.compare(rows, {allocation.EQUAL: (0, 0), "other": (4, -4)})


def test_what_a_setting_costs_is_what_it_was_made_to_cost():
    pytest.importorskip("bjontegaard")
    equal, other = results_of(1.1)
    assert equal["bd_rate"] == equal["bd_rate_error"] == 0.0 and equal["moved"] == [0.0, 0.0]
    assert other["bd_rate"] == pytest.approx(10, abs=0.01) and other["bd_rate_error"] == pytest.approx(0, abs=0.01)
    assert (other["best"], other["worst"]) == pytest.approx((10, 10), abs=0.01)
    assert other["shares"] == [25.0, 75.0]
    assert equal["preview"] == 0.0 and other["preview"] == pytest.approx(0, abs=0.02)  # a larger file, that much better
    assert results_of(1.0, spread=0.1)[1]["bd_rate_error"] == pytest.approx(10 / 3**0.5, rel=0.01)


def test_the_verdict_falls_only_where_the_gain_is_more_than_chance():
    pytest.importorskip("bjontegaard")
    assert "hull: yes" in allocation.verdict(results_of(1.02))
    assert "hull: yes" in allocation.verdict(results_of(0.998))  # within the tolerance
    assert "hull: yes" in allocation.verdict(results_of(0.98, spread=0.2))  # chance
    assert "hull: no" in allocation.verdict(results_of(0.98)) and "by other" in allocation.verdict(results_of(0.98))


def test_the_command_measures_real_files(tiny_folder, photo, tmp_path, capsys, monkeypatch):
    pytest.importorskip("bjontegaard")
    for name, rows in (("a", slice(0, 64)), ("b", slice(5, 75))):
        Image.fromarray(photo[rows]).save(tmp_path / f"{name}.png")
    out = tmp_path / "out.json"
    command = [str(tmp_path), "--model", str(tiny_folder), "--device", "cpu", "--qualities", "20", "80"]
    monkeypatch.setattr(sys, "argv", ["allocation.py", *command, "--offsets", "-10", "--out", str(out)])
    allocation.main()
    record = json.loads(out.read_text())
    names = ["balanced", "detail", "hyperprior", *(f"layer {layer}, beta 0.58" for layer in range(1, 7))]
    assert sorted(r["setting"] for r in record["settings"]) == sorted(names)
    assert len(record["rows"]) == 2 * 9 * 2 and record["strides"] == [64, 32, 16, 16, 8, 8]
    assert all((row["preview"] is None) == (row["setting"] not in names[:3]) for row in record["rows"])
    assert sum(record["settings"][0]["shares"]) == pytest.approx(100, abs=0.05)
    said = capsys.readouterr().out
    assert record["verdict"] in said and all(name in said for name in names)
