"""The study of what a file's first layers say about its picture, with a tiny model on made-up pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import recognition  # noqa: E402
from recognition import Setting  # noqa: E402


def row(bound: float, accuracy: float) -> dict:
    made = {"what": "layers 1 to 1", "quality": 20, "allocation": "balanced", "bits": 1.0}
    return made | {"bound": bound, "logistic": accuracy, "svm": 0.1}


def test_the_verdict_allows_for_chance_and_nothing_else():
    assert recognition.verdict([row(0.3, 0.29), row(1.0, 0.9)], 400).startswith("held")
    assert recognition.verdict([row(0.3, 0.33)], 400).startswith("held")  # within two standard errors
    assert recognition.verdict([row(1.0, 0.9), row(0.3, 0.36)], 400).startswith("DID NOT HOLD")
    assert "below 1 in 1 of 2" in recognition.verdict([row(0.3, 0.29), row(1.0, 0.9)], 400)


def test_settings():
    assert Setting.parse("20") == Setting(20, "balanced") and Setting.parse("0:detail") == Setting(0, "detail")
    for text in ("101", "-1", "20:most", "much"):
        with pytest.raises(ValueError, match=text):
            Setting.parse(text)


def test_the_study_reads_labels_from_symbols(tiny_folder, tmp_path, capsys):
    """Two kinds of picture, dark and light: all layers together tell them apart, and rows are what they should be."""
    pytest.importorskip("sklearn")
    generator = np.random.Generator(np.random.PCG64(1))
    y = np.arange(60) % 2
    x = np.clip(generator.normal(70 + 110 * y[:, None, None, None], 20, (60, 32, 32, 3)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / recognition.DATA, x=x, y=y)
    out = tmp_path / "result.json"
    command = [str(tmp_path), "--images", "60", "--settings", "90", "10:hyperprior", "--device", "cpu"]
    recognition.main([*command, "--model", str(tiny_folder), "--out", str(out)])
    said = capsys.readouterr().out
    record = json.loads(out.read_text())
    rows = record["rows"]
    assert record["images"] == 60 and record["verdict"] in said
    assert [r["what"] for r in rows[1:8]] == [*(f"layers 1 to {k}" for k in range(1, 7)), "decoded pixels"]
    assert len(rows) == 1 + 2 * 7 and rows[8]["allocation"] == "hyperprior" and rows[0]["svm"] == 1.0
    # Layers of 4, 4, 8, 8, 4, 4 channels at 1/64, 1/32, 1/16, 1/16, 1/8, 1/8 of 32 pixels.
    assert [r["dimensions"] for r in rows[1:7]] == [4, 8, 40, 72, 136, 200]
    bits = [r["bits"] for r in rows[1:7]]
    assert bits == sorted(bits) and bits[0] > 0 and rows[7]["bits"] == bits[-1] > rows[14]["bits"]
    assert rows[6]["svm"] >= 0.9
    assert all(0.5 <= r["bound"] <= 1 for r in rows)
