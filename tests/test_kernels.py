"""Kernels give the very numbers of the plain expressions beside them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hvcompress.exact import ExactConv2d, freeze
from hvcompress.kernels import int8

needs_exact_bytes = pytest.mark.skipif(not int8.pays(), reason="this CPU has no exact and fast products of bytes")


def integers(shape, low, high):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (2, 17, 8, 6), (3, 80, 1, 7)])
def test_bytes_make_up_their_integers(shape):
    """The patches are the 3x3 neighbourhoods, whose bytes are worth 256 and 1, and 128 is added."""
    x = integers(shape, -(1 << 15), 1 << 15).to(torch.int16)
    high, low = int8._patches(x).long().chunk(2, 1)  # (9 C, B H W)
    expected = F.unfold(x.double(), 3, padding=1)  # (B, C 9, H W)
    batch, channels = shape[:2]
    expected = expected.view(batch, channels, 9, -1).permute(2, 1, 0, 3).reshape(9 * channels, -1)
    assert torch.equal((256 * high + low + 128).double(), expected)


def test_weights_are_split_or_refused():
    weight = integers((6, 5, 3, 3), int8.WEIGHT_MIN, int8.WEIGHT_MAX + 1)
    high, low = int8.split(weight, torch.zeros(6)).matrix.long().chunk(2)
    assert torch.equal((256 * high + low).view(6, 3, 3, 5).permute(0, 3, 1, 2), weight)
    for beyond in (int8.WEIGHT_MAX + 1, int8.WEIGHT_MIN - 1):
        weight[3, 1, 2, 0] = beyond
        assert int8.split(weight, torch.zeros(6)) is None


@needs_exact_bytes
@pytest.mark.parametrize(("batch", "channels", "outputs", "height", "width"), [(1, 80, 80, 17, 24), (3, 9, 4, 1, 2)])
def test_exact_convolution_by_bytes_is_that_by_float64(batch, channels, outputs, height, width):
    torch.manual_seed(channels)
    conv = ExactConv2d(channels, outputs, 3)
    torch.nn.init.uniform_(conv.weight, -7.9, 7.9)
    freeze(conv)
    assert conv.byte_weights is not None
    x = integers((batch, channels, height, width), -(1 << 15), 1 << 15).double() * 2.0**-10
    for layout in (torch.contiguous_format, torch.channels_last):
        by_bytes = conv(x.contiguous(memory_format=layout))
        conv.byte_weights, kept = None, conv.byte_weights
        assert torch.equal(by_bytes, conv(x))
        conv.byte_weights = kept


@needs_exact_bytes
def test_saturating_products_are_found_out(monkeypatch):
    """What a processor without VNNI may do: sums of two products stop at 16 bits."""

    def saturating(a, b):
        pairs = F.pad(a.long(), (0, a.shape[1] % 2)).view(len(a), -1, 2)[..., None] * F.pad(
            b.long(), (0, 0, 0, len(b) % 2)
        ).view(1, -1, 2, b.shape[1])
        return pairs.sum(2).clamp(-(1 << 15), (1 << 15) - 1).sum(1).int()

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not int8._exact()
