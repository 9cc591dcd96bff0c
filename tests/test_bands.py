"""Pictures in bands and segments: the same latents as at once, no seams, any part of the rows alone."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from hvcompress import container, plan
from hvcompress.cli import main
from hvcompress.errors import FormatError, LimitError, MismatchError, UsageError
from hvcompress.image_reading import read_picture
from hvcompress.network import LatentLayer, dequantize, descend
from hvcompress.picture import Picture
from hvcompress.pixels import Features
from hvcompress.rows import Rows, through


@pytest.fixture(scope="module")
def tall(photo):
    """(395, 131, 3) uint8."""
    return np.concatenate([photo, photo[::-1], photo[:, ::-1], photo[::-1, ::-1], photo, photo[::-1]])[:395]


def set_bands(monkeypatch, pixels):
    monkeypatch.setattr(plan, "WHOLE", pixels)
    monkeypatch.setattr(plan, "CHUNK", pixels // 8)


@pytest.fixture
def small_segments(monkeypatch):
    """Segments of five to ten rows at 1/8, so that the tests' pictures have several."""
    monkeypatch.setattr(plan, "SEGMENT", 7 * 24)


@pytest.fixture
def small_bands(monkeypatch, small_segments):
    """And bands of one or two of those."""
    set_bands(monkeypatch, 128 * 192)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (50, 3), (7, 300), (1000, 129), (3, 70000)])
def test_segments_and_bands_partition_the_rows(height, width, monkeypatch):
    monkeypatch.setattr(plan, "SEGMENT", 1 << 12)
    set_bands(monkeypatch, 1 << 20)
    spans = plan.segments(height, width)
    for parts in (spans, plan.bands(height, width, 8)):
        assert [row for top, bottom in parts for row in range(top, bottom)] == list(range(height))
    assert {top for top, _ in plan.bands(height, width, 8)} <= {top for top, _ in spans}
    assert max((bottom - top) * width for top, bottom in spans) <= max(1 << 12, width)
    for first in range(0, height, 11):
        found = plan.bands(height, width, 8, (first, min(first + 5, height)))
        assert found[0][0] <= first and min(first + 5, height) <= found[-1][1]
        assert found[-1][1] - found[0][0] <= 5 + 2 * max(1, (1 << 12) // width)


@pytest.mark.parametrize("height", [257, 300, 321])
def test_segments_that_lie_in_the_padding_are_coded(tiny, tall, small_bands, monkeypatch, height):
    """They make no pixel, but are a part of what the encoder's hash is of."""
    monkeypatch.setattr(plan, "SEGMENT", 17)  # a row of a layer each
    encoded = tiny.encode(Picture(tall[:height]), 60)
    assert np.array_equal(tiny.decode(encoded.data).pixels, encoded.picture.pixels)


def test_a_picture_of_ordinary_size_is_one_segment():
    assert plan.segments(256, 256) == [(0, 256)] and len(plan.segments(257, 256)) == 2


def test_rows_are_kept_exactly():
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-(1 << 15), 1 << 15, (1, 3, 20, 4), generator=generator).float() * 2.0**-10
    rows = Rows(20, packed=True)
    for top, bottom in ((0, 7), (7, 8), (8, 20)):
        rows.add(top, x[:, :, top:bottom])
    assert torch.equal(rows.all(), x) and rows.take(6, 9).dtype == torch.float32
    rows.forget_above(8)
    assert torch.equal(rows.take(8, 20), x[:, :, 8:])
    with pytest.raises(ValueError, match="not all there"):
        rows.take(7, 9)


def test_rows_are_never_missing_unnoticed():
    rows = Rows(20)
    rows.add(3, torch.zeros(1, 1, 4, 2))  # it begins where it begins
    for first, last in ((0, 5), (5, 8)):
        with pytest.raises(ValueError, match="not all there"):
            rows.take(first, last)
    with pytest.raises(ValueError, match="row 8 was added where row 7 comes next"):
        rows.add(8, torch.zeros(1, 1, 1, 2))


def test_rows_are_made_once_and_as_few_as_are_asked_for():
    asked = []

    def make(first, last):
        asked.append((first, last))
        return torch.arange(first, last).reshape(1, 1, -1, 1).double()

    rows = Rows(100, make, 4)
    assert rows.take(10, 19).flatten().tolist() == list(range(10, 19))
    assert rows.take(18, 20).flatten().tolist() == [18, 19]
    assert asked == [(10, 14), (14, 18), (18, 19), (19, 20)]
    rows.forget_above(18)
    assert sum(band.values.numel() for band in rows._bands) == 2  # not the three bands that those rows came with
    assert rows.take(18, 21).flatten().tolist() == [18, 19, 20]


def test_a_chain_of_blocks_keeps_two_rows_of_each_map(tiny):
    blocks = tiny._encoder.stages["8"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, tiny._topdown.config.widths[8], 40, 6, generator=generator)
    quality = torch.tensor([50])
    with torch.inference_mode():
        whole = through(blocks, Rows.whole(x), quality, None).all()
        source = Rows(40, lambda first, last: x[:, :, first:last])
        chained = through(blocks, source, quality, 4)
        parts = []
        for first in range(5, 35, 5):
            parts.append(chained.take(first, first + 5))
            chained.forget_above(first + 5)
            kept = sum(band.values.shape[2] for band in source._bands)
            assert kept <= 4  # two are asked for again, and a few more may not be worth a copy
    assert (torch.cat(parts, 2) - whole[:, :, 5:35]).abs().max() < 1e-4


def test_the_exact_path_has_no_seams(tiny, monkeypatch):
    """Latents and last feature from bands are those from the whole picture, bit for bit."""
    monkeypatch.setattr(plan, "SEGMENT", 60)
    set_bands(monkeypatch, 130 * 64)
    height, width = 384, 192
    torch.manual_seed(0)
    config = tiny._topdown.config
    levels = [torch.randint(-6, 7, (1, la.channels, height // la.stride, width // la.stride)) for la in config.latents]
    qualities = torch.tensor([[90, 80, 70, 60, 50, 40]])

    def latents(steps):
        seen: list[list[torch.Tensor]] = [[] for _ in levels]

        def choose(prior):
            bottom = prior.top + prior.mean.shape[2]
            z = dequantize(prior, levels[prior.layer][:, :, prior.top : bottom], tiny._topdown.snap)
            seen[prior.layer].append(torch.cat((prior.scale_index, z)))
            return z

        chunk = None if steps is None else 4
        last = descend(tiny._topdown.walk(qualities, height, width, steps, chunk=chunk), choose)
        return [torch.cat(parts, 2) for parts in seen] + [last.all()]

    steps = tiny._steps(height, width)
    assert [[layer for layer, _, _ in steps].count(index) for index in range(6)] == [1, 2, 5, 5, 24, 24]
    assert steps != sorted(steps)  # not one layer after another
    assert all(map(torch.equal, latents(steps), latents(None)))


def test_steps_follow_what_they_depend_on_and_are_not_sooner_than_needed():
    bands = [[(0, 4)], [(0, 3), (3, 8)], [(0, 6), (6, 9), (9, 16)]]
    steps = plan.interleave(bands, lambda layer, top, bottom: (max(0, top // 2 - 1), min(8, bottom // 2 + 1)))
    assert steps == [(0, 0, 4), (1, 0, 3), (1, 3, 8), (2, 0, 6), (2, 6, 9), (2, 9, 16)]
    steps = plan.interleave(bands, lambda layer, top, bottom: (top // 2, -(-bottom // 2)))
    assert steps == [(0, 0, 4), (1, 0, 3), (2, 0, 6), (1, 3, 8), (2, 6, 9), (2, 9, 16)]


@pytest.mark.parametrize("twice", [False, True])
def test_features_of_the_encoder_in_bands(tiny, tall, small_bands, monkeypatch, twice):
    """twice: of a very large picture those at the finest stride are made again."""
    monkeypatch.setattr(plan, "KEPT", 1 if twice else 1 << 26)
    level = torch.tensor([60])
    banded = Features(tiny._encoder, tall, level, 8)
    set_bands(monkeypatch, 1 << 24)
    whole = Features(tiny._encoder, tall, level, 8)
    with torch.inference_mode():
        for stride in (8, 16, 32, 64):
            height = 448 // stride
            for first, last in ((0, height), (height // 3, height // 2 + 1), (height - 1, height)):
                a, b = (features.take(stride, first, last) for features in (banded, whole))
                assert a.shape == b.shape and (a - b).abs().max() < 2.0**-8  # kept in multiples of 2^-10
        banded = Features(tiny._encoder, tall, level, 8)
        for first, last in ((0, 9), (0, 20), (11, 20), (15, 40), (38, 56)):  # as the layers ask for them
            banded.forget_above(8, first)
            a, b = (features.take(8, first, last) for features in (banded, whole))
            assert a.shape == b.shape and (a - b).abs().max() < 2.0**-8


@pytest.mark.parametrize("gray", [False, True])
def test_files_decode_alike_in_bands_and_at_once(tiny, tall, small_segments, monkeypatch, gray):
    picture = read_picture(tall[:, :, 1] if gray else tall)
    at_once = tiny.encode(picture, 70)
    parsed = container.parse(at_once.data)
    set_bands(monkeypatch, 128 * 192)
    in_bands = tiny.encode(picture, 70)  # verified: decoded in bands
    again = tiny.decode(at_once.data)
    assert np.array_equal(again.pixels, at_once.picture.pixels)
    first = [z.copy() for z in tiny.latents(at_once.data)]
    bits = tiny.information(at_once.data)
    monkeypatch.undo()
    monkeypatch.setattr(plan, "SEGMENT", 7 * 24)
    assert np.array_equal(tiny.decode(in_bands.data).pixels, in_bands.picture.pixels)
    assert all(map(np.array_equal, tiny.latents(at_once.data), first))
    assert all(map(np.array_equal, tiny.information(at_once.data), bits))
    assert abs(len(in_bands.data) - len(at_once.data)) < 0.01 * len(at_once.data)
    assert len(plan.split(parsed.streams[-1], 7)) == 7


def test_previews_in_bands(tiny, tall, small_bands):
    data = tiny.encode(read_picture(tall), 70).data
    assert tiny.decode(data, 3).pixels.shape == tall.shape
    assert len(tiny.latents(data, 3)) == 3


def test_segments_join_and_split():
    parts = [b"abc", b"", b"x" * 300, b"tail"]
    assert plan.split(plan.join(parts), 4) == parts
    assert plan.join([b"alone"]) == b"alone" and plan.split(b"alone", 1) == [b"alone"]
    for damaged in (b"", b"\xff", b"\x05\x00\x00abc"):
        with pytest.raises(FormatError):
            plan.split(damaged, 4)


def test_damaged_segments_are_format_errors_or_mismatches(tiny, tall, small_bands):
    data = tiny.encode(read_picture(tall), 70, verify=False).data
    parsed = container.parse(data)
    for stream in (b"", b"\xff\xff", parsed.streams[-1][:20], b"\x7f" + parsed.streams[-1][1:]):
        broken = container.Container(parsed.header, (*parsed.streams[:-1], stream))
        with pytest.raises((FormatError, MismatchError)):
            tiny.decode(container.pack(broken))


@pytest.mark.parametrize(
    "crop", [(0, 0, 131, 395), (10, 0, 1, 1), (0, 394, 131, 1), (7, 150, 100, 31), (3, 7, 128, 380)]
)
def test_a_part_is_that_part_of_the_whole(tiny, tall, small_bands, crop):
    alpha = np.arange(tall.shape[0] * tall.shape[1]).reshape(tall.shape[:2]).astype(np.uint8)
    data = tiny.encode(Picture(tall, alpha=alpha), 70).data
    whole, part = tiny.decode(data), tiny.decode(data, crop=crop)
    left, top, width, height = crop
    there = np.s_[top : top + height, left : left + width]
    assert np.array_equal(part.pixels, whole.pixels[there])
    assert np.array_equal(part.alpha, alpha[there])


def test_a_part_does_not_need_far_away_segments(tiny, tall, small_bands):
    """The first rows are decoded though the last segments are destroyed."""
    data = tiny.encode(read_picture(tall), 70).data
    parsed = container.parse(data)
    streams = []
    for stride, stream in zip(tiny.strides, parsed.streams, strict=True):
        parts = plan.split(stream, len(plan.segments(448 // stride, 192 // stride)))
        streams.append(plan.join([*parts[:-1], b"\xff" * 9] if len(parts) > 2 else parts))
    broken = container.pack(container.Container(parsed.header, tuple(streams)))
    with pytest.raises((FormatError, MismatchError)):
        tiny.decode(broken)
    part = tiny.decode(broken, crop=(0, 0, 131, 40))
    assert np.array_equal(part.pixels, tiny.decode(data).pixels[:40])


@pytest.mark.parametrize(
    "crop", [(0, 0, 132, 1), (-1, 0, 5, 5), (0, 0, 0, 5), (0, 390, 5, 6), (1, 2, 3), (0, 0, 1.5, 1)]
)
def test_a_part_must_be_inside(tiny, tall, crop):
    data = tiny.encode(read_picture(tall), 10, verify=False).data
    with pytest.raises(UsageError, match="crop"):
        tiny.decode(data, crop=crop)


def test_the_command_decodes_a_part(tiny, tiny_folder, tall, tmp_path, capsys):
    coded, out = tmp_path / "tall.hvci", tmp_path / "part.png"
    coded.write_bytes(tiny.encode(read_picture(tall), 70).data)
    common = ["decode", str(coded), "-o", str(out), "--model", str(tiny_folder), "--device", "cpu"]
    assert main([*common, "--crop", "20,100,50,60"]) == 0
    assert Image.open(out).size == (50, 60)
    for crop, complaint in (("20,100,50,600", "not inside"), ("20,100,50", "four whole numbers"), ("a", "four")):
        assert main([*common, "-f", "--crop", crop]) == UsageError.exit_code
        assert complaint in capsys.readouterr().err


def test_a_memory_limit_is_kept_to_before_the_work(tiny, tiny_folder, tall, tmp_path, capsys):
    source, coded, back = (tmp_path / name for name in ("tall.png", "tall.hvci", "back.png"))
    Image.fromarray(tall).save(source)
    common = ["--model", str(tiny_folder), "--device", "cpu", "--memory-limit"]
    assert main(["encode", str(source), *common, "1M"]) == LimitError.exit_code
    assert "GiB of memory" in capsys.readouterr().err and not coded.exists()
    assert main(["encode", str(source), *common, "1.5G"]) == 0
    assert main(["decode", str(coded), "-o", str(back), *common, "1000k"]) == LimitError.exit_code
    assert not back.exists()
    assert main(["decode", str(coded), "-o", str(back), *common, "2GB"]) == 0
    assert main(["decode", str(coded), *common, "much"]) == UsageError.exit_code


def test_a_tiny_file_cannot_ask_for_huge_memory(tiny, tall, monkeypatch):
    """It is refused for what it declares, whatever it holds."""
    parsed = container.parse(tiny.encode(read_picture(tall), 0, verify=False).data)
    header = dataclasses.replace(parsed.header, width=32768, height=32768)
    huge = container.pack(container.Container(header, parsed.streams))
    monkeypatch.setattr(plan, "available", lambda: 8 << 30)
    with pytest.raises(LimitError, match="8.0 are there"):
        tiny.decode(huge)


def test_more_memory_is_needed_for_more_pixels():
    need = plan.needed_memory
    for width, height in [(64, 64), (4000, 3000), (20000, 20000)]:
        assert need(width, height) > 100 * width * height // 16
    assert need(20000, 20000) <= 6_000_000_000 < need(20000, 20000, bits=16)
    for width, height in ((1, 65535), (65535, 1)):  # the network sees 64 columns or rows
        assert need(width, height) > 100 * 64 * 65536
    assert 1 << 30 < need(20000, 20000, rows=1) <= need(20000, 20000, rows=1000) <= 3 << 30  # one needs others
    alpha = need(20000, 20000, rows=1, has_alpha=True) - need(20000, 20000, rows=1)
    assert alpha == 2 * 20000**2  # which is unpacked as a whole


def test_pictures_side_by_side_do_not_count_on_the_same_memory(monkeypatch):
    """Of ten that need 3 units each, where there are 10, never more than three are coded at a time, and all are."""
    monkeypatch.setattr(plan, "available", lambda: 10)
    now, most, lock = 0, 0, threading.Lock()

    def code(number: int) -> None:
        nonlocal now, most
        with plan.memory_for(8, 8, 3):
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.02)
            with plan.memory_for(8, 8, 3):  # as an encoder decodes what it has made: it holds the memory already
                time.sleep(0.01)
            with lock:
                now -= 1

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(code, range(10)))
    assert most == 3 and not plan._held
    with pytest.raises(LimitError), plan.memory_for(8, 8, 11):
        pass
    with pytest.raises(LimitError), plan.memory_for(8, 8, 3, limit=2):
        pass
    assert not plan._held


def test_a_picture_is_not_refused_for_what_others_hold(monkeypatch):
    """While it is read, others may have taken nearly all memory: they will give it back."""
    free = [10]
    monkeypatch.setattr(plan, "available", lambda: free[0])
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with plan.memory_for(8, 8, 8):
            free[0] = 2
            held.set()
            release.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    plan.check_memory(8, 8, 9)
    with pytest.raises(LimitError):
        plan.check_memory(8, 8, 11)
    release.set()
    other.join()
    with pytest.raises(LimitError):
        plan.check_memory(8, 8, 9)


def test_progress_of_pictures_in_bands(tiny, tall, small_bands):
    told: list[tuple[int, int]] = []
    data = tiny.encode(read_picture(tall), 50, progress=lambda *step: told.append(step)).data
    total = told[0][1]
    assert (
        told[:1] == [(0, total)]
        and told[-1] == (total, total)
        and [done for done, _ in told] == sorted(done for done, _ in told)
    )
    told.clear()
    tiny.decode(data, progress=lambda *step: told.append(step))
    assert told == [(done, total // 2) for done in range(total // 2 + 1)]


def test_no_progress_is_told_of_a_picture_that_is_coded_at_once(tiny, photo):
    told: list[tuple[int, int]] = []
    tiny.encode(read_picture(photo), 50, progress=lambda *step: told.append(step))
    assert not told


def test_a_tiny_file_that_declares_a_large_picture_is_found_out_early(tiny, tall, monkeypatch):
    """Its first layer lacks bytes, so that no further one is computed."""
    parsed = container.parse(tiny.encode(read_picture(tall), 50, verify=False).data)
    header = dataclasses.replace(parsed.header, width=2048, height=2048)
    visited = []
    look = LatentLayer.look

    def looked(layer, *arguments):
        visited.append(layer.index)
        return look(layer, *arguments)

    monkeypatch.setattr(LatentLayer, "look", looked)
    for streams in ((b"",) * tiny.layers, parsed.streams):
        with pytest.raises(FormatError, match="too few|damaged"):
            tiny.decode(container.pack(container.Container(header, streams)))
    assert visited == [0, 0]
