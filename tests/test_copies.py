"""Copies that are on their way while other work is done: nothing is read too early, nothing overwritten too soon."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from hvcompress import codec as codec_module
from hvcompress import pixels as pixels_module
from hvcompress import plan, segments
from hvcompress.kernels.copies import fetch, send
from hvcompress.segments import LatentHash


def test_on_a_cpu_nothing_is_copied():
    x = torch.arange(6)
    assert fetch(x)() is x
    assert send(x, torch.device("cpu")) is x


def test_the_hash_of_latents_is_that_of_each_layer_in_order():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(-9000, 9000, (1, 3, 2, 4), generator=generator, dtype=torch.int16) for _ in range(4)]
    latents = LatentHash(2)
    for number, z in enumerate(parts):
        latents.update(number % 2, z)
        if number == 2:
            latents.catch_up()
    layers = [b"".join(z.numpy().astype("<i4").tobytes() for z in parts[layer::2]) for layer in (0, 1)]
    expected = hashlib.sha256(b"".join(hashlib.sha256(layer).digest() for layer in layers)).digest()
    assert latents.digest() == expected == latents.digest()


@pytest.mark.parametrize("bands", [False, True])
def test_what_is_on_its_way_is_not_overwritten(tiny, monkeypatch, bands):
    """As if every copy were made at the last moment, later than any device would."""
    if bands:  # several, and several segments of a layer
        monkeypatch.setattr(plan, "SEGMENT", 7 * 24)
        monkeypatch.setattr(plan, "WHOLE", 128 * 192)
        monkeypatch.setattr(plan, "CHUNK", 16 * 192)
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (500, 180, 3), np.uint8)
    picture = codec_module.Picture(pixels)
    expected = tiny.encode(picture, 60)
    late = []

    def fetched_late(x: torch.Tensor):
        late.append(x.shape)
        return lambda: x.clone()

    for module in (codec_module, pixels_module, segments):
        monkeypatch.setattr(module, "fetch", fetched_late)
    made = tiny.encode(picture, 60)
    assert made.data == expected.data
    assert ((64, 180, 3) in late) == bands  # the last band is not
    assert np.array_equal(made.picture.pixels, expected.picture.pixels)


@pytest.mark.cuda
def test_copies_from_and_to_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    x = torch.randint(0, 1 << 15, (1 << 22,), dtype=torch.int16)
    on_device = send(x, device)
    expected = x.clone()
    x.zero_()  # at once: what was sent is what it was then
    coming = fetch(on_device)
    parts = (
        on_device.view(4, 1024, 1024),
        on_device.view(1, 4, 1024, 1024).contiguous(memory_format=torch.channels_last),
    )
    views = parts[0][:, :, :1000].permute(1, 2, 0), parts[0][1:2, 5:9], parts[1][:, :, 3:7]
    of_views = [(fetch(view), view.clone()) for view in views]
    on_device.zero_()  # is what the device is given to do next
    parts[1].zero_()
    assert torch.equal(coming(), expected)
    assert coming().is_pinned()
    for wait, view in of_views:
        assert torch.equal(wait(), view.cpu()) and wait().is_contiguous() and wait().is_pinned()
