"""The benchmark harness: its arithmetic, its cited data, its cache, and how it refuses. Without Kodak, in seconds."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import classical  # noqa: E402
import complexity  # noqa: E402
import fuzz  # noqa: E402
import kodak  # noqa: E402
import kodak_set  # noqa: E402
import large  # noqa: E402
import learned  # noqa: E402
import looks  # noqa: E402
import measure  # noqa: E402
import pictures  # noqa: E402
import rd  # noqa: E402
import rd_plot  # noqa: E402
import report  # noqa: E402
import screens  # noqa: E402
import speed  # noqa: E402

RATES = (0.1, 0.2, 0.4, 0.8, 1.6)
CURVE = rd.Curve("a", "A", RATES, (27.0, 29.5, 32.5, 35.8, 39.5), (0.90, 0.94, 0.97, 0.985, 0.993))


def scaled(factor: float, db: float = 0.0) -> rd.Curve:
    """CURVE at `factor` times the rate, raised by `db`."""
    return dataclasses.replace(
        CURVE, key="b", label="B", bpp=tuple(factor * r for r in RATES), psnr=tuple(p + db for p in CURVE.psnr)
    )


@pytest.fixture
def photo(tmp_path) -> Path:
    """A folder with one small smooth picture."""
    y, x = np.mgrid[0:48, 0:64]
    pixels = np.stack([x * 4, y * 5, 128 + 100 * np.sin(x / 7) * np.cos(y / 5)], 2).astype(np.uint8)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "one.png")
    return folder


# --------------------------------------------------------------------------------------------------------------------
# Arithmetic


def test_bd_rate_of_a_curve_against_itself_is_zero():
    pytest.importorskip("bjontegaard")
    assert rd.bd_rate(CURVE, CURVE) == pytest.approx(0, abs=1e-9)
    assert rd.bd_rate(CURVE, CURVE, "msssim") == pytest.approx(0, abs=1e-9)


def test_half_the_rate_is_minus_fifty_percent_in_all_and_in_a_band():
    pytest.importorskip("bjontegaard")
    assert rd.bd_rate(CURVE, scaled(0.5)) == pytest.approx(-50, abs=1e-6)
    assert rd.bd_rate(scaled(0.5), CURVE) == pytest.approx(100, abs=1e-6)
    assert rd.bd_rate_in_band(CURVE, scaled(0.5), 30, 33) == pytest.approx(-50, abs=1e-6)


def test_no_bd_rate_without_common_psnr_or_outside_the_band():
    pytest.importorskip("bjontegaard")
    assert rd.bd_rate(CURVE, scaled(1, db=12)) is None
    assert rd.bd_rate_in_band(CURVE, CURVE, 38, 41) is None
    assert rd.bd_rate(CURVE, dataclasses.replace(CURVE, msssim=()), "msssim") is None
    assert rd.bd_rate(CURVE, CURVE, "vmaf") is None


def test_each_measure_of_distortion_has_its_bd_rates():
    pytest.importorskip("bjontegaard")
    rows = {
        key: [
            {"point": f"quality {q}", "image": "a", "bytes": 1000, "bpp": factor * rate, "psnr": 20.0 + 4 * i,
             "msssim": 1 - 0.2 * 0.5**i, "vmaf": 60.0 + 9 * i, "psnr_hvs": 25.0 + 5 * i}
            for i, (q, rate) in enumerate(zip((10, 30, 50, 70), RATES, strict=False))
        ]
        for key, factor in ((measure.OURS, 0.5), ("webp", 1.0))
    }  # fmt: skip
    del rows["webp"][0]["psnr_hvs"]  # measured before there was such a column
    curves = [rd.mean_curve(key, key, of) for key, of in rows.items()]
    assert curves[0].vmaf == (60.0, 69.0, 78.0, 87.0) and curves[1].psnr_hvs == ()
    summary = report.summarise(curves, [], rows)
    for name in ("msssim", "vmaf"):
        assert summary[f"bd_rate_{name}"][measure.OURS] == {"webp": pytest.approx(-50)}
    assert summary["bd_rate_psnr_hvs"][measure.OURS] == {}
    text = report.as_text(summary, curves, "title")
    assert "BD-rate over VMAF (NEG), %" in text and "BD-rate over PSNR-HVS" not in text
    assert re.search(r"^quality 30 .* 69\.00 +30\.00 ", text, re.MULTILINE)


def test_looks_are_those_of_known_pictures(photo, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    if looks.ffmpeg() is None:
        pytest.skip("no libvmaf in this ffmpeg")
    image = Image.open(photo / "one.png").resize((192, 144), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    same = looks.looks(pixels, pixels)
    assert same["vmaf"] == pytest.approx(97.42, abs=0.03) and same["psnr_hvs"] == looks.BEST_PSNR_HVS
    rough = pixels.astype(int) + np.random.default_rng(0).integers(-20, 21, pixels.shape)
    noisy = looks.looks(pixels, rough.clip(0, 255).astype(np.uint8))
    assert noisy["vmaf"] < 95 and 20 < noisy["psnr_hvs"] < 50
    blue = pixels.copy()
    blue[..., 2] ^= 8  # hardly luma
    assert looks.looks(pixels, blue)["vmaf"] > noisy["vmaf"]
    assert looks.looks(pixels[:63], pixels[:63]) == {"vmaf": None, "psnr_hvs": None}
    monkeypatch.setattr(looks, "ffmpeg", lambda: None)
    assert looks.looks(pixels, pixels) == {"vmaf": None, "psnr_hvs": None}


def test_equal_rate_finds_the_worst_place_and_what_is_missing():
    pytest.importorskip("scipy")
    better = rd.compare_at_equal_rate(scaled(1, db=0.5), CURVE, 0.15, 1.5)
    assert better.always_better and better.worst_db == pytest.approx(0.5, abs=1e-6) and better.worst_percent < 0
    assert better.uncovered == ()
    crossing = dataclasses.replace(CURVE, psnr=(28.0, 30.5, 33.0, 35.5, 38.5))
    worse = rd.compare_at_equal_rate(crossing, CURVE, 0.15, 1.5)
    assert not worse.always_better and worse.worst_db_at > 1.4 and worse.worst_percent > 0
    wide = rd.compare_at_equal_rate(CURVE, scaled(2), 0.05, 4)
    assert (wide.low, wide.high) == (0.2, 1.6) and len(wide.uncovered) == 4
    assert rd.compare_at_equal_rate(CURVE, CURVE, 5, 6) is None


def test_a_curve_that_ends_early_is_not_better_at_every_rate():
    pytest.importorskip("scipy")
    short = dataclasses.replace(scaled(0.5), bpp=(0.1, 0.2, 0.4), psnr=(29.5, 32.5, 35.8))
    margin = rd.compare_at_equal_rate(short, CURVE, 0.15, 1.5)
    assert margin.worst_db > 0 and not margin.always_better
    ends_early = dataclasses.replace(CURVE, bpp=RATES[:3], psnr=CURVE.psnr[:3])
    assert rd.compare_at_equal_rate(scaled(1, db=1), ends_early, 0.15, 1.5).always_better


def test_interpolation_leaves_out_points_that_a_smaller_file_beats():
    rate, quality = rd.rising((0.1, 0.2, 0.3, 0.3, 0.4), (30, 32, 31.9, 33, 33))
    assert list(rate) == [0.1, 0.2, 0.3] and list(quality) == [30, 32, 33]


def test_a_single_point_is_no_curve():
    pytest.importorskip("scipy")
    point = rd.Curve("x", "X", (0.5, 0.6), (30.0, 29.0), ())  # the second is beaten by the first
    assert np.isnan(rd.bpp_at(point, 30.0)) and np.isnan(rd.psnr_at(point, np.array([0.5, 0.6]))).all()


def test_a_curve_is_the_mean_over_images_and_needs_them_all():
    rows = [
        {"point": f"q {q}", "image": name, "bpp": q + i, "psnr": 30 + q + i, "msssim": 0.9}
        for q in (2, 1)
        for i, name in enumerate("ab")
    ]
    curve = rd.mean_curve("x", "X", rows)
    assert curve.bpp == (1.5, 2.5) and curve.psnr == (31.5, 32.5)
    with pytest.raises(ValueError, match="every image"):
        rd.mean_curve("x", "X", rows[:-1])


def test_exact_reconstructions_are_points_of_a_curve():
    """Flat pictures under --any-images: infinite PSNR, MS-SSIM of 1."""
    pytest.importorskip("bjontegaard")
    rows = [
        {"point": f"quality {q}", "image": "a", "bytes": 100, "bpp": 0.1 * q, "psnr": psnr, "msssim": msssim}
        for q, psnr, msssim in ((1, 30.0, 0.9), (2, 35.0, 0.95), (3, 40.0, 0.99), (4, float("inf"), 1.0))
    ]
    exact = rd.mean_curve(measure.OURS, measure.OURS, rows)
    assert exact.psnr == (30.0, 35.0, 40.0, rd.BEST_PSNR) and exact.msssim[:3] == (0.9, 0.95, 0.99)
    assert rd.bd_rate(exact, dataclasses.replace(exact, bpp=(0.05, 0.1, 0.15, 0.2))) == pytest.approx(-50, abs=1e-6)
    summary = report.summarise([exact], [], {measure.OURS: rows})
    text = report.as_text(summary, [exact], "title")
    assert re.search(r"^quality 4 .* 100\.000 +1\.00000 +73\.01 ", text, re.MULTILINE)


# --------------------------------------------------------------------------------------------------------------------
# Cited data and pictures


def test_published_curves_load_and_have_sources():
    curves = rd.published_curves()
    assert len({curve.key for curve in curves}) == len(curves) >= 15
    for curve in curves:
        assert curve.source and len(curve.bpp) == len(curve.psnr) >= 4, curve.key
        assert len(curve.msssim) in (0, len(curve.bpp)), curve.key
        assert list(curve.bpp) == sorted(curve.bpp) and 20 < min(curve.psnr) < max(curve.psnr) < 50, curve.key


def test_what_is_drawn_and_compared_exists():
    published = {curve.key for curve in rd.published_curves()}
    measured = {measure.OURS, *classical.CLASSICAL_KEYS, *learned.ARCHITECTURES}
    assert len(measured) == 1 + len(classical.CLASSICAL) + len(learned.LEARNED) and not published & measured
    assert set(rd_plot.PUBLISHED_STYLE) <= published and set(rd_plot.MEASURED_STYLE) <= measured
    assert set(report.ANCHORS) <= published | set(classical.CLASSICAL_KEYS)


def test_the_network_of_a_learned_codec_goes_by_compressais_name(monkeypatch):
    asked = []
    monkeypatch.setattr(learned, "encode", lambda image, quality, name: asked.append((name, quality)))
    monkeypatch.setattr(learned, "decode", lambda data, name: asked.append(name))
    codec = learned.other("compressai-mbt2018-mean")
    codec.encode(None, 3)
    codec.decode(b"")
    assert asked == [("mbt2018-mean", 3), "mbt2018-mean"]


def test_the_sums_name_the_24_pictures():
    sums = kodak_set.expected_sums()
    assert sorted(sums) == [f"kodim{i:02d}.png" for i in range(1, 25)]
    assert all(len(digest) == 64 for digest in sums.values())


def test_a_whole_report_with_our_codec():
    pytest.importorskip("bjontegaard")
    rows = [
        {"point": "quality 5", "image": "a", "bytes": 1010, "bpp": 0.1, "psnr": 30.0, "msssim": 0.9,
         "estimated_bits": 8000.0, "encode_network_s": 0.5, "encode_coder_s": 0.1,
         "decode_network_s": 0.3, "decode_coder_s": 0.1}
    ]  # fmt: skip
    longer = scaled(0.4)
    ours = rd.Curve(measure.OURS, measure.OURS, (*longer.bpp, 2.0), (*longer.psnr, 44.0))
    webp = dataclasses.replace(CURVE, key="webp", label="WebP")
    summary = report.summarise([ours, webp], rd.published_curves(), {measure.OURS: rows})
    assert summary["bd_rate_psnr"][measure.OURS]["webp"] == pytest.approx(-60, abs=1)
    assert summary["equal_rate"]["webp"]["always_better"]
    text = report.as_text(summary, [ours, webp], "title")
    assert "WebP at every rate from 0.15 to 1.5 bpp: YES" in text and "+1.00 %" in text and "31-34 dB" in text
    alone = report.as_text(report.summarise([ours], [], {measure.OURS: rows}), [ours], "title")
    assert "quality 5" in alone and "BD-rate" not in alone


def rows_of(points: dict[str, tuple[float, float]]) -> list[dict]:
    """Setting -> bpp and mean PSNR, of two pictures."""
    return [
        {"point": point, "image": image, "bytes": 1000, "bpp": bpp, "psnr": psnr + more, "msssim": 0.9}
        for point, (bpp, psnr) in points.items()
        for image, more in (("a", -1.0), ("b", 1.0))
    ]


def test_the_report_says_which_jpeg_has_our_psnr():
    pytest.importorskip("bjontegaard")
    jpeg = {f"quality {q}": (0.01 * q, 20 + q / 5) for q in (10, 20, 40, 80)}  # of 22, 24, 28 and 36 dB
    ours = {"quality 0": (0.05, 21.9), "quality 30": (0.1, 24.0), "quality 60": (0.2, 30.25), "quality 99": (0.9, 36.1)}
    rows = {measure.OURS: rows_of(ours), report.JPEG: rows_of(jpeg)}
    curves = [rd.mean_curve(key, key, of) for key, of in rows.items()]
    summary = report.summarise(curves, [], rows)
    lines = summary["jpeg_of_equal_psnr"]
    assert [line["point"] for line in lines] == [*ours]
    assert [line["jpeg_quality"] for line in lines] == [None, 20, 51, None]
    assert [lines[1]["jpeg_bpp"], lines[0]["jpeg_bpp"]] == [pytest.approx(0.2), None]
    assert lines[2]["jpeg_bpp"] == pytest.approx(rd.bpp_at(curves[1], 30.25)) and 0.4 < lines[2]["jpeg_bpp"] < 0.8
    text = report.as_text(summary, curves, "title")
    assert re.search(r"^quality 30 +24\.000 +0\.1000 +20 +0\.2000$", text, re.MULTILINE)
    assert re.search(r"^quality 99 +36\.100 +0\.9000 +- +-$", text, re.MULTILINE)


def test_a_learned_codec_beside_the_published_curve_of_the_same_network(tmp_path):
    """All that follows from a measurement, where CompressAI's weights are at hand."""
    pytest.importorskip("bjontegaard")
    pytest.importorskip("matplotlib")
    codec = learned.other("compressai-mbt2018-mean")
    points = {f"quality {q}": (0.1 * q, 26 + 2.0 * q) for q in range(1, 7)}
    record = {"codec": codec.key, "label": codec.label, "rows": rows_of(points)}
    kodak.write_results([record], tmp_path, "name", 1, published=True)
    summary = measure.read_rows(tmp_path / "summary.json")
    labels = [summary["labels"][key] for key in (codec.key, "mbt2018-mean")]
    assert labels == [codec.label, "Mean-scale hyperprior (2018)"]
    assert summary["bd_rate_psnr"][codec.key] != summary["bd_rate_psnr"]["mbt2018-mean"]
    told = (tmp_path / "report.txt").read_text()
    assert all(re.search("^" + re.escape(label) + "  ", told, re.MULTILINE) for label in labels)
    assert Image.open(tmp_path / "rd.png").width > 1000


def test_the_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    rd_plot.draw([dataclasses.replace(CURVE, key="webp")], rd.published_curves(), tmp_path / "rd.png", "title")
    assert Image.open(tmp_path / "rd.png").width > 1000


def test_the_jpeg_beside_ours_is_not_smaller(photo):
    image = Image.open(photo / "one.png")
    sizes = [len(classical.jpeg420(image, q)) for q in range(1, 96)]
    wanted = sizes[49] - 1
    quality, data = pictures.jpeg_at_least(image, wanted)
    assert len(data) == min(size for size in sizes if size >= wanted) == sizes[quality - 1]
    assert pictures.jpeg_at_least(image, 10**9)[0] == 95
    panel = pictures.Shown("a", "b", np.asarray(image))
    assert pictures.side_by_side([panel] * 3, (8, 8, 32, 24)).width == 3 * 32 + 2 * pictures.GAP + 2 * pictures.MARGIN


# --------------------------------------------------------------------------------------------------------------------
# Refusing, and remembering


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["photos"]])
def test_without_kodak_it_says_where_to_get_it(photo, arguments):
    command = [sys.executable, str(BENCHMARKS / "kodak.py"), *arguments]
    done = subprocess.run(command, cwd=photo.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert "http://r0k.us/graphics/kodak/" in done.stderr and "SHA-256" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_bytes_under_the_right_names_are_refused(tmp_path):
    for name in kodak_set.expected_sums():
        (tmp_path / name).write_bytes(b"not this")
    with pytest.raises(kodak_set.NotKodakError, match="kodim01.png, kodim02.png, kodim03.png and 21 more"):
        kodak_set.find_images(tmp_path)
    assert len(kodak_set.find_images(tmp_path, any_images=True)) == 24


def test_the_key_changes_with_everything_that_matters():
    codec = learned.other("webp")
    changed = [
        (dataclasses.replace(codec, settings="method 4"), 50, "f" * 64),
        (dataclasses.replace(codec, library=lambda: "another version"), 50, "f" * 64),
        (dataclasses.replace(codec, key="webp2"), 50, "f" * 64),
        (codec, 51, "f" * 64),
        (codec, 50, "e" * 64),
    ]
    keys = {measure.cache_key(*parts) for parts in [(codec, 50, "f" * 64), *changed]}
    assert len(keys) == 6
    assert measure.cache_key(codec, 50, "f" * 64) == measure.cache_key(codec, 50.0, "f" * 64)


def test_a_second_run_reuses_what_the_first_measured(photo, tmp_path):
    images = kodak_set.find_images(photo, any_images=True)
    codec = dataclasses.replace(learned.other("jpeg420"), points=(20, 60))
    first, reused = measure.run_classical(codec, images, tmp_path, 1, fresh=False)
    assert reused == 0 and [row["point"] for row in first["rows"]] == ["quality 20", "quality 60"]
    assert first["rows"][0]["bytes"] == len(classical.jpeg420(Image.open(photo / "one.png"), 20))
    again, reused = measure.run_classical(codec, images, tmp_path, 1, fresh=False)
    assert reused == 2 and again == first
    more, reused = measure.run_classical(dataclasses.replace(codec, points=(20, 90)), images, tmp_path, 1, fresh=False)
    assert reused == 1 and len(more["rows"]) == 2
    _, reused = measure.run_classical(codec, images, tmp_path, 1, fresh=True)
    assert reused == 0


def test_another_codec_goes_on_where_it_was_interrupted(photo, tmp_path, monkeypatch):
    for name, colour in (("two", "red"), ("three", "blue")):
        Image.new("RGB", (16, 16), colour).save(photo / f"{name}.png")
    images = kodak_set.find_images(photo, any_images=True)
    assert [path.stem for path in images] == ["one", "three", "two"]
    codec = dataclasses.replace(learned.other("jpeg420"), points=(20, 60))
    seen, real = [], measure.measure_classical

    def measured(job, key):
        seen.append(job[0].stem)
        if job[0].stem == interrupted_at:
            raise KeyboardInterrupt
        return real(job, key)

    monkeypatch.setattr(measure, "measure_classical", measured)
    interrupted_at = "two"
    with pytest.raises(KeyboardInterrupt):
        measure.run_classical(codec, images, tmp_path, 1, fresh=False)
    kept = measure.read_rows(tmp_path / "jpeg420.json")
    interrupted_at = ""
    record, reused = measure.run_classical(codec, images, tmp_path, 1, fresh=False)
    assert seen == ["one", "three", "two", "two"] and reused == len(kept["rows"]) == 4
    assert record["rows"][:4] == kept["rows"] and len(record["rows"]) == 6
    assert measure.read_rows(tmp_path / "jpeg420.json") == record


def test_a_measurement_of_ours_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    images = {tmp_path / f"{name}.png": name * 64 for name in "abc"}
    seen = []

    def measured(path, picked):
        seen.append(path.stem)
        if path.stem == interrupted_at:
            raise KeyboardInterrupt
        return [{"image": path.name, "point": f"quality {quality}"} for quality in picked.qualities]

    codec = SimpleNamespace(name="fake", fingerprint="f" * 64, device="cpu")
    monkeypatch.setattr(measure, "load_ours", lambda picked: codec)
    monkeypatch.setattr(measure, "measure_ours", measured)
    picked = measure.Picked(None, "cpu", 1, (20, 60), effort=9)
    interrupted_at = "b"
    with pytest.raises(KeyboardInterrupt):
        measure.run_ours(images, tmp_path, picked, 1)
    assert not (tmp_path / "hvcompress.json").exists()
    interrupted_at = "c"
    with pytest.raises(KeyboardInterrupt):  # other files are wanted: nothing of it can be used
        measure.run_ours(images, tmp_path, dataclasses.replace(picked, effort=8), 1)
    interrupted_at = ""
    record, reused = measure.run_ours(images, tmp_path, dataclasses.replace(picked, effort=8), 1)
    assert seen == [*"ab", *"abc", "c"] and reused == 4
    assert [row["image"][0] for row in record["rows"]] == [*"aabbcc"]
    assert [path.name for path in tmp_path.iterdir()] == ["hvcompress.json"]
    assert measure.read_rows(tmp_path / "hvcompress.json") == record
    for change, again in (("program", "abc"), ("fresh", "abc"), ("", "c")):
        interrupted_at, seen = "c", []
        with pytest.raises(KeyboardInterrupt):
            measure.run_ours(images, tmp_path, picked, 1, fresh=True)
        interrupted_at, seen = "", []
        with monkeypatch.context() as patch:
            if change == "program":
                patch.setattr(measure, "program", lambda: "another")
            measure.run_ours(images, tmp_path, picked, 1, fresh=change == "fresh")
        assert seen == [*again]


def test_screens_are_laid_on_white_and_all_there(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        screens.main([str(tmp_path)])
    assert "lacks aptitude.png" in capsys.readouterr().err
    for name in screens.NAMES:
        Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / f"{name}.png")
    half = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    half.paste((10, 20, 30, 255), (0, 0, 4, 8))
    half.save(tmp_path / "firefox.png")
    measured = {}

    def instead_of_kodak(arguments):
        measured.update({path.stem: np.asarray(Image.open(path)) for path in Path(arguments[0]).iterdir()})
        return 0

    monkeypatch.setattr(kodak, "main", instead_of_kodak)
    assert screens.main([str(tmp_path)]) == 0
    assert sorted(measured) == sorted(screens.NAMES)
    assert (measured["gnome"] == (10, 20, 30)).all()
    assert (measured["firefox"][:, :4] == (10, 20, 30)).all() and (measured["firefox"][:, 4:] == 255).all()


@pytest.mark.parametrize("key", classical.CLASSICAL_KEYS)
def test_every_codec_gives_back_the_picture(photo, key):
    codec = learned.other(key)
    if key == "jpegxl":
        pytest.importorskip("imagecodecs")
    image = measure.read_rgb(photo / "one.png")
    best = min(codec.points) if codec.point_name in ("ratio", "distance") else max(codec.points)
    worst = max(codec.points) if codec.point_name in ("ratio", "distance") else min(codec.points)
    good, bad = codec.encode(image, best), codec.encode(image, worst)
    decoded = codec.decode(good)
    assert len(bad) < len(good) and decoded.shape == (48, 64, 3) and decoded.dtype == np.uint8
    assert measure.psnr(np.asarray(image), decoded) > 28


def test_what_effort_saves_counts_along_the_codecs_own_curve():
    gain = pytest.importorskip("effort")
    low, high = (1000, 30.0), (4000, 34.0)
    assert gain.saved(low, high, (2000, 32.0)) == pytest.approx(0.0)  # a mere shift along the curve
    assert gain.saved(low, high, (1800, 32.0)) == pytest.approx(0.1)
    assert gain.saved(low, high, (2000, 31.0)) == pytest.approx(1 - 2**0.5)
    rows = [
        {"effort": 3, "quality": 50, "saved": value, "time_ratio": ratio}
        for value, ratio in ((0.01, 9.0), (0.03, 11.0))
    ]
    assert re.search(r"^ +3 +65536 +0 +1 +2\.00 % +10$", gain.table(rows, [3], [50]), re.MULTILINE)


def test_complexity_counts_every_multiplication():
    """A network of linear maps alone, counted by hand."""
    network = pytest.importorskip("hvcompress.network")
    strides = (4, 8, 16, 32, 64)
    none = dict.fromkeys(strides, 0)
    config = network.Config(
        widths=dict.fromkeys(strides, 16),
        encoder_blocks=none,
        latents=tuple(network.Latent(stride, 4, 0) for stride in (64, 32, 16, 8)),
        synthesis_blocks=none,
        knots=2,
    )
    macs = complexity.macs_per_pixel(network.HierarchicalVAE(config))
    assert macs["encoder"] == 48 * 16 / 4**2 + sum(64 * 16 / stride**2 for stride in strides[1:])
    priors_and_projections = sum(3 * 4 * 16 / stride**2 for stride in strides[1:])  # a prior has mean and scale
    assert macs["topdown"] == priors_and_projections + sum(16 * 64 / stride**2 for stride in (64, 32, 16))
    assert macs["synthesis"] == 16 * 64 / 8**2 + 9 * 16 * 48 / 4**2


def test_speed_measures_stages_and_throughput(photo, tiny_folder):
    paths = (photo / "one.png",)
    image = speed.picture(paths, 150, 70)
    assert image.size == (150, 70)
    left, right = image.crop((0, 0, 64, 48)), image.crop((64, 0, 128, 48))
    assert left == measure.read_rgb(photo / "one.png") and right == ImageOps.mirror(left)
    results = []
    for codec in (speed.OURS, "WebP, method 4", "JPEG"):
        (row,) = speed.measure(speed.Task(codec, 150, 70, paths, 1, "cpu", str(tiny_folder)))
        assert row["bytes"] > 100 and row["encode"] > 0 < row["decode"]
        results.append({"codec": codec, "width": 150, "height": 70} | speed.medians([row, row]))
    ours = results[0]
    assert ours["encode network"] + ours["encode coder"] <= ours["encode"]
    assert ours["decode network"] + ours["decode coder"] <= ours["decode"]
    assert len(speed.table(results).splitlines()) == 2 + 3
    rows = speed.batch(speed.Task(speed.OURS, 64, 64, paths, 1, "cpu", str(tiny_folder)))
    assert [row["jobs"] for row in rows] == [1, max(2, speed.cores())]


def test_processes_of_other_codecs_do_without_torch(photo):
    program = """
import pathlib, sys
import speed
(row,) = speed.measure(speed.Task("JPEG", 150, 70, (pathlib.Path(sys.argv[1]),), 1, "cpu", None))
print("torch" in sys.modules, row["peak_mib"] > 1)
"""
    path = os.pathsep.join((str(BENCHMARKS), str(BENCHMARKS.parent / "codec")))
    command = [sys.executable, "-c", program, str(photo / "one.png")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.stdout == "False True\n", done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="ru_maxrss begins at the parent's peak")
def test_peak_memory_is_that_of_the_command_alone():
    ballast = np.ones(50_000_000)  # 381 MiB
    seconds, gib = large.run(["models"])
    assert ballast.nbytes > 0.3 * 2**30 and seconds > 0 and 0.001 < gib < 0.2


def test_a_command_that_fails_is_no_measurement(tmp_path, capfd):
    with pytest.raises(SystemExit, match="decode failed with exit code"):
        large.run(["decode", str(tmp_path / "none.hvci")])
    assert "none.hvci" in capfd.readouterr().err


def test_large_keeps_the_rows_of_other_sides_and_models():
    old = [{"side": 2000}, {"side": 5000, "fingerprint": "aa"}, {"side": 2000, "fingerprint": "aa", "psnr": 1}]
    new = {"side": 2000, "fingerprint": "aa", "psnr": 2}
    assert large.merged(old, new) == [{"side": 2000}, new, {"side": 5000, "fingerprint": "aa"}]
    committed = measure.read_rows(BENCHMARKS / "results" / "large.json")
    added = large.merged(committed, new)
    assert len(added) == len(committed) + 1 and [row["side"] for row in added] == sorted(row["side"] for row in added)


def test_interrupted_fuzzing_leaves_the_kept_result_alone(tmp_path, monkeypatch, capsys):
    def interrupted(job):
        report = fuzz.Report(3, {"none": {"container": 2}})
        report.found(2, "what was found", b"x")
        report.write(job.folder)
        return True, "interrupted"

    monkeypatch.setattr(fuzz, "run_job", interrupted)
    out = tmp_path / "fuzz.json"
    out.write_text("{}")
    arguments = ["--parser", "9", "--decoder", "9", "--findings", str(tmp_path / "findings"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *arguments])
    assert fuzz.main() == 130 and out.read_text() == "{}"
    said = capsys.readouterr().out
    assert "parser: 3 inputs" in said and "FOUND, input 2: what was found" in said and "decoder" not in said
    assert (tmp_path / "findings" / "parser" / "parser-2.hvci").read_bytes() == b"x"
