"""Copies that are on their way while other work is done: nothing is read too early, nothing overwritten too soon."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from hvcompress import codec as codec_module
from hvcompress import pixels as pixels_module
from hvcompress.codec import LatentHash
from hvcompress.kernels.copies import fetch, send


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


@pytest.mark.parametrize("size", [(96, 128), (1200, 64)])
def test_what_is_on_its_way_is_not_overwritten(tiny, monkeypatch, size):
    """As if every copy were made at the last moment, later than any device would."""
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (*size, 3), np.uint8)
    picture = codec_module.Picture(pixels)
    expected = tiny.encode(picture, 60)
    late = []

    def fetched_late(x: torch.Tensor):
        late.append(x)
        return lambda: x.clone()

    for module in (codec_module, pixels_module):
        monkeypatch.setattr(module, "fetch", fetched_late)
    made = tiny.encode(picture, 60)
    assert late and made.data == expected.data
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
    on_device.zero_()  # is what the device is given to do next
    assert torch.equal(coming(), expected)
    assert coming().is_pinned()
