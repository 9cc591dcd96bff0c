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
    EXPONENT_MAX,
    TABLE_BITS,
    WEIGHT_BITS,
    WEIGHT_MAX,
    WIDE_BITS,
    ExactConv2d,
    QualityTable,
    Snap,
    add,
    freeze,
    from_integers,
    leaky,
    left_blank,
    prove,
    round_half_up,
    scale_and_shift,
    to_integers,
    to_units,
    to_values,
    train_as_stored,
)
from hvcompress.network import Block, Prior, dequantize, samples_of


def units(*shape: int, limit: float = 32.0) -> torch.Tensor:
    """Random activations in units, range ends included."""
    steps = int(limit * 2**ACTIVATION_BITS)
    return torch.randint(-steps, steps + 1, shape).clamp_(-(1 << 15), (1 << 15) - 1).to(torch.int16)


def conv(in_channels: int, out_channels: int, kernel: int, spread: float = 0.5) -> ExactConv2d:
    layer = ExactConv2d(in_channels, out_channels, kernel)
    torch.nn.init.normal_(layer.weight, std=spread)
    return freeze(layer)


def sums_of_products(layer: ExactConv2d, x: torch.Tensor) -> np.ndarray:
    """The same convolution of real weights in Python-exact int64, in units of 2^-22, without the bias."""
    weight = (layer.weight.double() * 2.0**WEIGHT_BITS).long().numpy()
    k = weight.shape[2]
    padded = np.pad(x.long().numpy(), ((0, 0), (0, 0), (k // 2,) * 2, (k // 2,) * 2))
    height, width = x.shape[2:]
    total = np.zeros((x.shape[0], weight.shape[0], height, width), np.int64)
    for dy in range(k):
        for dx in range(k):
            window = padded[:, :, dy : dy + height, dx : dx + width]
            total += np.einsum("oc,bchw->bohw", weight[:, :, dy, dx], window)
    return total


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("spread", [0.002, 0.5, 1.5])  # exponents from 0 to 8
def test_convolution_is_integer_arithmetic(kernel, spread):
    torch.manual_seed(0)
    trained = ExactConv2d(24, 16, kernel)
    torch.nn.init.normal_(trained.weight, std=spread)
    torch.nn.init.normal_(trained.bias, std=3.0)
    integers, x = to_integers(trained), units(2, 24, 9, 11)
    layer = from_integers(trained, integers)
    bias = integers["bias"].long().numpy()[None, :, None, None]
    shift = BIAS_BITS - ACTIVATION_BITS
    expected = (sums_of_products(layer, x) + bias + (1 << shift - 1)) >> shift
    made = layer(x)
    assert made.dtype == torch.int32 and np.array_equal(made.numpy(), expected)
    snapped = Snap()(made)
    assert snapped.dtype == torch.int16
    assert np.array_equal(snapped.numpy(), np.clip(expected, -(32 << 10), (32 << 10) - 1))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("spread", [0.01, 0.3, 1.5])
def test_wide_convolution_is_integer_arithmetic(kernel, spread):
    torch.manual_seed(7)
    trained = ExactConv2d(24, 16, kernel, wide=True)
    torch.nn.init.normal_(trained.weight, std=spread)
    torch.nn.init.normal_(trained.bias, std=3.0)
    before, integers, x = trained.weight.detach().clone(), to_integers(trained), units(2, 24, 9, 11)
    assert integers["weight"].dtype == torch.int16
    layer = from_integers(trained, integers)
    precision = before.abs().flatten(1).amax(1) / 8000
    assert ((layer.weight - before).abs().flatten(1).amax(1) <= precision + 2.0**-WIDE_BITS).all()
    weight = integers["weight"].double() * 2.0 ** integers["exponent"].double()[:, None, None, None]
    sums = F.conv2d(x.double(), weight, padding=kernel // 2)  # of 2^-28, below 2^53
    bias = integers["bias"].double()[:, None, None] * 2.0 ** (WIDE_BITS - WEIGHT_BITS)
    expected = torch.floor((sums + bias) * 2.0**-WIDE_BITS + 0.5)
    made = layer(x)
    assert made.dtype == torch.int32 and torch.equal(made.double(), expected)


def test_wide_weights_are_not_rounded_in_training():
    layer, x = ExactConv2d(5, 4, wide=True), torch.randn(1, 5, 3, 3)
    before = layer(x)
    train_as_stored(layer)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("white", [255, 65535])
def test_samples_are_rounded_half_up_and_clamped(white):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).repeat(48).view(1, 48, 256, 256)
    samples = samples_of(every, white)
    assert samples.shape == (1, 3, 1024, 1024) and samples.min() == 0 and samples.max() == white
    expected = np.floor((every.double().numpy() / 4096 + 0.5) * white + 0.5).clip(0, white)
    assert np.array_equal(F.pixel_unshuffle(samples, 4).numpy(), expected)
    assert samples_of(torch.zeros(1, 48, 1, 1, dtype=torch.int16), white)[0, 0, 0, 0] == (white + 1) // 2


def test_weights_are_rounded_to_eight_bits_of_the_largest_of_their_channel():
    torch.manual_seed(4)
    trained = ExactConv2d(48, 40, 3)
    torch.nn.init.normal_(trained.weight)
    trained.weight.data *= torch.logspace(-4, 0, 40)[:, None, None, None]
    trained.weight.data[0] = 0.0
    before, integers = trained.weight.detach().clone(), to_integers(trained)
    assert integers["weight"].dtype == torch.int8 and integers["exponent"].dtype == torch.uint8
    largest = before.abs().flatten(1).amax(1)
    precision = torch.maximum(largest / 63.5, torch.tensor(2.0**-WEIGHT_BITS))
    after = from_integers(trained, integers).weight
    assert ((after - before).abs().flatten(1).amax(1) <= 0.5 * precision).all()
    assert len(integers["exponent"].unique()) > 5 and integers["weight"].abs().max() <= WEIGHT_MAX


def test_training_sees_the_weights_that_will_be_stored():
    torch.manual_seed(5)
    layer, x = ExactConv2d(9, 7, 3), torch.randn(2, 9, 6, 5)
    plain = layer(x)
    train_as_stored(layer)
    seen = layer(x)
    seen.square().sum().backward()
    gradient = layer.weight.grad
    assert not torch.equal(seen, plain) and torch.allclose(seen, plain, atol=0.05)
    frozen = freeze(layer)  # whose float weights are the stored ones
    frozen.as_stored = False
    frozen.weight.requires_grad_(True)
    expected = frozen(x)
    assert torch.allclose(seen, expected, atol=1e-5)
    expected.square().sum().backward()
    assert torch.allclose(gradient, frozen.weight.grad, atol=1e-4)


def test_same_bits_in_every_order_layout_and_thread_count():
    torch.manual_seed(1)
    layer, x = conv(96, 64, 3), units(3, 96, 16, 24)
    reference = layer(x)
    assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), reference)
    assert torch.equal(torch.cat([layer(x[i : i + 1]) for i in range(3)]), reference)
    shuffled = torch.randperm(96)
    permuted = ExactConv2d(96, 64, 3)
    bias = (layer.bias * 2.0**BIAS_BITS).to(torch.int32)
    permuted.set_integers(layer.mantissa[:, shuffled], exponents_of(layer), bias)
    assert torch.equal(permuted(x[:, shuffled]), reference)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(layer(x), reference)
    finally:
        torch.set_num_threads(threads)


def exponents_of(layer: ExactConv2d) -> torch.Tensor:
    """The exponents of a frozen layer."""
    return (WEIGHT_BITS - layer.down.flatten()).to(torch.uint8)


def test_banded_equals_whole():
    """A band of rows with one row of context gives the very rows of the whole: what tiling will rely on."""
    layer, x = conv(8, 8, 3), units(1, 8, 12, 10)
    assert torch.equal(layer(x[:, :, 3:9])[:, :, 1:-1], layer(x)[:, :, 4:8])


def test_rounding_rule():
    assert round_half_up(torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])).tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    values = torch.tensor([33.0, -33.0, 2.0**-11, -(2.0**-11)])
    assert to_units(values).tolist() == [(1 << 15) - 1, -(1 << 15), 1, 0]
    assert Snap()(torch.tensor([40000, -40000, 7], dtype=torch.int32)).tolist() == [(1 << 15) - 1, -(1 << 15), 7]


def test_units_are_values():
    x = units(1000)
    assert torch.equal(to_units(to_values(x)), x) and torch.equal(to_units(to_values(x, torch.float64)), x)


def test_frozen_block_is_near_the_trained_one():
    torch.manual_seed(2)
    block = Block(32, 5, Snap())
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, quality = units(2, 32, 8, 8, limit=2.0), torch.tensor([13, 88])
    trained = block(to_values(x), quality)
    frozen = freeze(block)(x, quality)
    assert frozen.dtype == torch.int16
    assert (to_values(frozen) - trained).abs().max() < 0.02


def rounded(values: np.ndarray) -> np.ndarray:
    return np.floor(values + 0.5).astype(np.int64)


def test_operations_on_units_are_those_on_values_rounded_half_up():
    torch.manual_seed(6)
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    expected = np.where(every.numpy() < 0, rounded(every.numpy() / 8), every.numpy())
    assert np.array_equal(leaky(every).numpy(), expected)
    other = every[torch.randperm(len(every))]
    assert np.array_equal(add(every.int(), other).numpy(), every.numpy().astype(np.int64) + other.numpy())
    limits = (32 << 10, 128 << 10)
    gain, shift = (torch.randint(-limit, limit + 1, (1, 4, 1, 1), dtype=torch.int32) for limit in limits)
    gain[0, :2, 0, 0], shift[0, :2, 0, 0] = (torch.tensor([limit, -limit]) for limit in limits)
    x = every.view(1, 4, 128, 128)
    expected = rounded(x.double().numpy() * gain.double().numpy() / 1024 + shift.double().numpy())
    assert np.array_equal(scale_and_shift(x.int(), gain, shift).numpy(), expected)


def test_dequantization_rounds_half_up_and_stays_in_range():
    mean, step = units(1, 6, 20, 20), torch.tensor([2, 3, 501, 4096, 20001, 1 << 15], dtype=torch.int32)
    levels = torch.randint(-40, 41, mean.shape, dtype=torch.int16)
    levels[:, :, 0] = torch.tensor([32767, -32768] * 10, dtype=torch.int16)
    prior = Prior(0, 0, mean, 0, 0, mean, mean, step.view(1, 6, 1, 1))
    z = dequantize(prior, levels, Snap())
    expected = rounded(mean.double().numpy() + step.view(6, 1, 1).double().numpy() * levels.double().numpy() / 2)
    assert z.dtype == torch.int16 and np.array_equal(z.numpy(), expected.clip(-(1 << 15), (1 << 15) - 1))


def test_tables_are_stored_as_integers():
    torch.manual_seed(3)
    table = QualityTable(4, 5, start=torch.randn(5, 4))
    integers = to_integers(table)
    assert integers["table"].dtype == torch.int32 and integers["table"].shape == (101, 4)
    trained = table(torch.tensor([0, 37, 100]))
    frozen = freeze(table)(torch.tensor([0, 37, 100])) * 2.0**-TABLE_BITS
    assert frozen.shape == (3, 4, 1, 1) and (frozen - trained).abs().max() <= 2.0**-10


def test_what_does_not_fit_is_refused():
    layer = ExactConv2d(2, 2)
    torch.nn.init.constant_(layer.weight, 9.0)  # the largest exponent holds |w| < 8
    with pytest.raises(ModelError, match="fixed-point grid"):
        to_integers(layer)
    with pytest.raises(ModelError, match="fixed-point grid"):
        to_integers(QualityTable(3, 2, start=33.0, limit=32.0))


def test_a_start_that_is_no_number_is_refused():
    module = torch.nn.Module()
    module.start = torch.nn.Parameter(torch.tensor([0.5, -40.0, 40.0]))
    assert to_integers(module)["start"].tolist() == [512, -32768, 32767]
    assert freeze(module).start.tolist() == [512, -32768, 32767]
    module.start = torch.nn.Parameter(torch.tensor([float("nan")]))
    with pytest.raises(ModelError, match="fixed-point grid"):
        to_integers(module)


def test_missing_and_senseless_integers_are_refused():
    with pytest.raises(ModelError, match="has no weight"):
        from_integers(ExactConv2d(2, 2), {})
    for name, value in (("weight", -128), ("exponent", EXPONENT_MAX + 1), ("bias", (1 << 31) - 1)):
        integers = to_integers(ExactConv2d(2, 2))
        integers[name].flatten()[0] = value
        with pytest.raises(ModelError, match="out of range"):
            from_integers(ExactConv2d(2, 2), integers)
    integers = to_integers(QualityTable(2, 2, limit=32.0))
    integers["table"][7, 1] = (32 << 10) + 1
    with pytest.raises(ModelError, match="out of range"):
        from_integers(QualityTable(2, 2, limit=32.0), integers)


def test_proof_refuses_sums_that_may_round():
    layer = conv(4, 2, 1)
    assert prove(layer) < 0.01
    layer = ExactConv2d(1024, 2)
    torch.nn.init.constant_(layer.weight, 0.031)  # mantissas of 127
    with pytest.raises(ModelError, match="exactly"):
        prove(freeze(layer))
    layer = conv(4, 2, 1)
    layer.offset[0] = (1 << 31) - 1
    with pytest.raises(ModelError, match="exactly"):
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
    x, quality = to_units(torch.randn(2, 32, 37, 50)), torch.tensor([3, 70])
    with torch.no_grad():
        monkeypatch.setattr(network, "BAND", x.numel())
        whole = block(x, quality)
        monkeypatch.setattr(network, "BAND", x.numel() // 37 * rows)
        assert torch.equal(block(x, quality), whole)


def test_what_is_loaded_is_left_blank_and_draws_no_random_numbers(tiny_folder):
    from hvcompress.model import load_parts, read_folder

    torch.manual_seed(8)
    before = torch.get_rng_state()
    load_parts(read_folder(tiny_folder))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), left_blank():
        raise KeyError
    drawn = ExactConv2d(4, 4)
    assert 0 < drawn.weight.std() < 1 and not torch.equal(torch.get_rng_state(), before)
