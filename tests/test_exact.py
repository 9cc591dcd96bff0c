"""The fixed-point grid: exact against integer arithmetic, and the same bits however it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hvcompress import network
from hvcompress.errors import ModelError
from hvcompress.exact import (
    ACTIVATION_BITS,
    BIAS_BITS,
    WEIGHT_BITS,
    ExactConv2d,
    QualityTable,
    Snap,
    freeze,
    from_integers,
    prove,
    round_half_up,
    to_integers,
)
from hvcompress.network import Block, leaky


def grid_values(*shape: int, limit: float = 32.0) -> torch.Tensor:
    """Random activations on the grid, range ends included."""
    steps = int(limit * 2**ACTIVATION_BITS)
    return torch.randint(-steps, steps + 1, shape).double() * 2.0**-ACTIVATION_BITS


def conv(in_channels: int, out_channels: int, kernel: int, spread: float = 0.5) -> ExactConv2d:
    layer = ExactConv2d(in_channels, out_channels, kernel)
    torch.nn.init.normal_(layer.weight, std=spread)
    return freeze(layer)


def integer_conv(layer: ExactConv2d, x: torch.Tensor) -> np.ndarray:
    """The same convolution in Python-exact int64, in units of 2^-22."""
    weight = (layer.weight * 2.0**WEIGHT_BITS).long().numpy()
    bias = (layer.bias * 2.0**BIAS_BITS).long().numpy()
    k = weight.shape[2]
    padded = np.pad((x * 2.0**ACTIVATION_BITS).long().numpy(), ((0, 0), (0, 0), (k // 2,) * 2, (k // 2,) * 2))
    height, width = x.shape[2:]
    total = np.zeros((x.shape[0], weight.shape[0], height, width), np.int64) + bias[None, :, None, None]
    for dy in range(k):
        for dx in range(k):
            window = padded[:, :, dy : dy + height, dx : dx + width]
            total += np.einsum("oc,bchw->bohw", weight[:, :, dy, dx], window)
    return total


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_is_integer_arithmetic(kernel):
    torch.manual_seed(0)
    layer, x = conv(24, 16, kernel), grid_values(2, 24, 9, 11)
    assert np.array_equal((layer(x) * 2.0**BIAS_BITS).long().numpy(), integer_conv(layer, x))
    snapped = (exact_snap()(layer(x)) * 2.0**ACTIVATION_BITS).long().numpy()
    shift = BIAS_BITS - ACTIVATION_BITS
    expected = np.clip((integer_conv(layer, x) + (1 << shift - 1)) >> shift, -(32 << 10), (32 << 10) - 1)
    assert np.array_equal(snapped, expected)


def exact_snap() -> Snap:
    snap = Snap()
    snap.exact = True
    return snap


def test_same_bits_in_every_order_layout_and_thread_count():
    torch.manual_seed(1)
    layer, x = conv(96, 64, 3), grid_values(3, 96, 16, 24)
    reference = layer(x)
    assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), reference)
    assert torch.equal(torch.cat([layer(x[i : i + 1]) for i in range(3)]), reference)
    assert torch.equal(F.conv2d(x, layer.weight, layer.bias, padding=1), reference)
    shuffled = torch.randperm(96)
    permuted = F.conv2d(x[:, shuffled], layer.weight[:, shuffled], layer.bias, padding=1)
    assert torch.equal(permuted, reference)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(layer(x), reference)
    finally:
        torch.set_num_threads(threads)


def test_banded_equals_whole():
    """A band of rows with one row of context gives the very rows of the whole: what tiling will rely on."""
    layer, x = conv(8, 8, 3), grid_values(1, 8, 12, 10)
    assert torch.equal(layer(x[:, :, 3:9])[:, :, 1:-1], layer(x)[:, :, 4:8])


def test_rounding_rule():
    assert round_half_up(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])).tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    snap = exact_snap()
    assert snap(torch.tensor([33.0, -33.0, 2.0**-11, -(2.0**-11)], dtype=torch.float64)).tolist() == [
        32.0 - 2.0**-10,
        -32.0,
        2.0**-10,
        0.0,
    ]


def test_frozen_block_stays_on_the_grid_and_near_the_trained_one():
    torch.manual_seed(2)
    snap = Snap()
    block = Block(32, 5, snap)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, quality = grid_values(2, 32, 8, 8, limit=2.0), torch.tensor([13, 88])
    trained = block(x.float(), quality)
    frozen = freeze(block)(x, quality)
    assert torch.equal(frozen * 2.0**ACTIVATION_BITS, (frozen * 2.0**ACTIVATION_BITS).round())
    assert (frozen - trained).abs().max() < 0.02


def test_leaky_relu_then_snap_is_exact():
    x = grid_values(1000)
    assert torch.equal(leaky(x), torch.where(x < 0, x * 0.125, x))


def test_tables_are_stored_as_integers():
    torch.manual_seed(3)
    table = QualityTable(4, 5, start=torch.randn(5, 4))
    integers = to_integers(table)
    assert integers["table"].dtype == torch.int32 and integers["table"].shape == (101, 4)
    trained = table(torch.tensor([0, 37, 100]))
    frozen = freeze(table)(torch.tensor([0, 37, 100]))
    assert frozen.shape == (3, 4, 1, 1) and (frozen - trained).abs().max() <= 2.0**-10


def test_weights_off_the_grid_are_refused():
    layer = ExactConv2d(2, 2)
    torch.nn.init.constant_(layer.weight, 9.0)  # int16 holds |w| < 8
    with pytest.raises(ModelError):
        to_integers(layer)


def test_missing_integers_are_refused():
    with pytest.raises(ModelError):
        from_integers(ExactConv2d(2, 2), {})


def test_proof_refuses_sums_beyond_float64():
    layer = conv(4, 2, 1)
    assert prove(layer) < 1e-6
    layer.weight.data[0, 0] = 2.0**30
    with pytest.raises(ModelError):
        prove(layer)


@pytest.mark.parametrize("rows", [1, 5, 8, 36])
def test_blocks_in_bands_are_the_whole(monkeypatch, rows):
    """A block worked through in bands of rows gives the bits of the whole, halo and borders included."""
    torch.manual_seed(0)
    block = network.Block(32, 9, Snap())
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    freeze(block)
    x, quality = block.snap(torch.randn(2, 32, 37, 50, dtype=torch.float64)), torch.tensor([3, 70])
    with torch.no_grad():
        monkeypatch.setattr(network, "BAND_BYTES", x.nbytes)
        whole = block(x, quality)
        monkeypatch.setattr(network, "BAND_BYTES", x.nbytes // 37 * rows)
        assert torch.equal(block(x, quality), whole)
