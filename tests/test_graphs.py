"""The recorded way down, with a recorder that needs no GPU, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hvcompress import loading
from hvcompress.errors import FormatError
from hvcompress.image_reading import read_picture
from hvcompress.kernels import graphs
from hvcompress.kernels.graphs import RecordedWalks


def tensors(tree: object) -> list[Tensor]:
    """Those with memory of their own; oneDNN's packed weights have none that one could see."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.layout == torch.strided]


class Operations(TorchDispatchMode):
    """Notes what is computed, to compute it again from and into the same memory: what a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self._noted: list[tuple[Callable, tuple, dict, list[Tensor]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
        own = [x for x in tensors(result) if x.untyped_storage().data_ptr() not in given]
        if own or function._schema.is_mutable:  # else it is a view
            self._noted.append((function, args, kwargs or {}, own))
        return result

    def replay(self) -> None:
        for function, args, kwargs, own in self._noted:
            again = tensors(function(*args, **kwargs))
            for target, value in zip(own, again, strict=bool(own)):
                target.copy_(value)


def recorder(device: torch.device) -> graphs.Record:
    def record(work):
        operations = Operations()
        with operations:
            result = work()
        return result, operations.replay

    return record


@pytest.fixture
def recording(tiny, monkeypatch) -> RecordedWalks:
    """The tiny codec with recorded walks; how many were recorded is counted."""
    with torch.inference_mode():
        walks = RecordedWalks(tiny._topdown, tiny.device, recorder)
    monkeypatch.setattr(tiny, "_recorded", walks)
    monkeypatch.setattr(tiny, "record_graphs", True)
    made = []

    class Counted(graphs.RecordedWalk):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(graphs, "RecordedWalk", Counted)
    walks.made = made
    return walks


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_files_and_pictures_are_the_same(tiny, recording, monkeypatch):
    pictures = [read_picture(noise(70, 130, seed)) for seed in range(4)]
    qualities = (10, 60, 95, 30)
    monkeypatch.setattr(tiny, "_recorded", None)
    expected = [tiny.encode(picture, quality) for picture, quality in zip(pictures, qualities, strict=True)]
    monkeypatch.setattr(tiny, "_recorded", recording)
    for _ in range(2):
        for picture, quality, plain in zip(pictures, qualities, expected, strict=True):
            encoded = tiny.encode(picture, quality)  # and decodes it
            assert encoded.data == plain.data
            assert np.array_equal(encoded.picture.pixels, plain.picture.pixels)
            assert tiny.latent_digest(plain.data) == tiny.latent_digest(encoded.data)
    assert recording.works and len(recording.made) == 1
    offsets = tuple(range(tiny.layers))
    with_betas = tiny.encode(pictures[0], 50, offsets).data
    preview, part = tiny.decode(with_betas, layers=2), tiny.decode(with_betas, crop=(3, 5, 20, 60))
    monkeypatch.setattr(tiny, "_recorded", None)
    assert tiny.encode(pictures[0], 50, offsets).data == with_betas
    assert np.array_equal(preview.pixels, tiny.decode(with_betas, layers=2).pixels)
    assert np.array_equal(part.pixels, tiny.decode(with_betas, crop=(3, 5, 20, 60)).pixels)


def test_a_size_is_recorded_when_it_comes_often(tiny, recording):
    files = {size: tiny.encode(read_picture(noise(*size)), 50, verify=False).data for size in ((64, 64), (30, 100))}
    assert not recording.made
    tiny.decode(files[64, 64])
    assert not recording.made
    tiny.decode(files[64, 64])
    assert [walk.size for walk in recording.made] == [(64, 64)]
    for size in ((64, 64), (30, 100), (30, 100), (30, 100), (64, 64)):
        tiny.decode(files[size])
    assert [walk.size for walk in recording.made] == [(64, 64), (64, 128)]


def test_only_who_asks_for_it_records(tiny, recording, monkeypatch):
    monkeypatch.setattr(tiny, "record_graphs", False)
    for _ in range(graphs.PATIENCE + 2):
        tiny.encode(read_picture(noise(64, 64)), 50)
    assert not recording.made


def test_threads_have_recordings_of_their_own(tiny, recording):
    picture = read_picture(noise(64, 64))
    files = [tiny.encode(picture, quality, verify=False).data for quality in range(0, 100, 7)]
    expected = [tiny.decode(data).pixels for data in files]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(tiny.decode, files), expected, strict=True):
                assert np.array_equal(found.pixels, wanted)
    assert recording.works and 1 <= len(recording.made) <= 4
    assert sum(map(len, recording._idle.values())) == len(recording.made)


def test_a_damaged_file_leaves_the_recording_in_order(tiny, recording, monkeypatch):
    good = tiny.encode(read_picture(noise(64, 64)), 60, verify=False).data
    expected = tiny.decode(good).pixels
    tiny.decode(good)
    assert len(recording.made) == 1

    def refuse(*arguments):
        raise FormatError("a layer's bytes are damaged")

    with monkeypatch.context() as patch:
        patch.setattr(tiny._coder, "decode", refuse)
        for _ in range(3):
            with pytest.raises(FormatError):
                tiny.decode(good)
    assert np.array_equal(tiny.decode(good).pixels, expected)
    assert len(recording.made) == 1


def test_memory_is_bounded(tiny, recording, monkeypatch):
    monkeypatch.setattr(graphs, "PATIENCE", 0)
    monkeypatch.setattr(graphs, "KEPT", 5 * 64 * 64)
    monkeypatch.setattr(graphs, "LARGEST", 4 * 64 * 64)
    files = {size: tiny.encode(read_picture(noise(*size)), 50, verify=False).data for size in ((64, 64), (128, 128))}
    sizes = [walk.size for walk in recording.made]
    assert sizes == [(64, 64), (128, 128)] and recording._pixels == 5 * 64 * 64
    wide = tiny.encode(read_picture(noise(64, 192)), 50, verify=False).data  # needs the room of another
    assert recording.made[-1].size == (64, 192) and recording._pixels <= 5 * 64 * 64
    tall = tiny.encode(read_picture(noise(64 * 5, 64)), 50, verify=False).data  # too large
    assert len(recording.made) == 3
    for data in (*files.values(), wide, tall):
        assert tiny.decode(data).pixels.size
        assert recording._pixels <= 5 * 64 * 64
    assert recording._pixels == sum(len(idle) * h * w for (h, w), idle in recording._idle.items())


@pytest.mark.parametrize("what", ["refuses", "errs"])
def test_a_device_that_does_not_record_goes_on_as_ever(tiny, recording, what, monkeypatch):
    def failing(device):
        if what == "refuses":
            raise RuntimeError("operation not permitted when stream is capturing")

        def record(work):
            result = work()
            return result, lambda: None  # the device does nothing

        return record

    monkeypatch.setattr(recording, "_recorder", failing)
    picture = read_picture(noise(64, 64))
    data = tiny.encode(picture, 60, verify=False).data
    for _ in range(4):
        assert np.array_equal(tiny.decode(data).pixels, tiny.encode(picture, 60).picture.pixels)
    assert not recording.works and not recording._idle


@pytest.mark.cuda
def test_graphs_on_cuda(tiny, tiny_folder):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_gpu = loading.load_model(tiny_folder, "cuda")
    on_gpu.record_graphs = True
    files = [tiny.encode(read_picture(noise(130, 200, seed)), 10 + 20 * seed, verify=False).data for seed in range(5)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(4):
            for data, found in zip(files, pool.map(on_gpu.decode, files), strict=True):
                assert np.array_equal(found.pixels, tiny.decode(data).pixels)
    assert on_gpu._recorded.works and on_gpu._recorded._idle


@pytest.mark.cuda
def test_a_recording_that_fails_leaves_the_device_in_order():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda:0")
    x, before = torch.ones(1000, device=device), torch.cuda.current_stream(device)
    with pytest.raises(RuntimeError):
        graphs.cuda_recorder(device)(lambda: x.sum().item())  # waits for the device, which cannot be recorded
    assert torch.cuda.current_stream(device) == before
    assert (torch.ones(1 << 22, device=device) + 1).sum().item() == 1 << 23
    assert torch.rand(9, device=device).max() > 0  # which it refuses while it records
    torch.cuda.empty_cache()
    result, replay = graphs.cuda_recorder(device)(lambda: x + 1)
    x.fill_(5)
    replay()
    assert result.sum().item() == 6000
