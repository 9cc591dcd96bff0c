"""Trellis-coded quantization: its search is optimal, its paths are those of the coder, and it is worth it."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hvcompress import search, trellis, viterbi
from hvcompress.container import STATE_BITS
from hvcompress.entropy import path_of
from hvcompress.machine import PARITY_CHECKS, machine_of, shift_register
from hvcompress.network import scale_of
from hvcompress.scales import LOG_SCALE_STEP, SCALE_MIN
from hvcompress.trellis import WEIGHT, level_bits, quantize, symbols_of


def index_of(deviation: float) -> float:
    return (math.log(deviation) - math.log(SCALE_MIN)) / LOG_SCALE_STEP


def test_the_format_knows_the_machines_that_there_are():
    assert tuple(PARITY_CHECKS) == STATE_BITS
    text = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    for state_bits, (quantizers, parities) in PARITY_CHECKS.items():
        assert f"\n| {state_bits} | {quantizers >> 1} | {parities >> 1} |\n" in text


@pytest.mark.parametrize("state_bits", STATE_BITS)
def test_every_state_is_entered_from_two_by_different_symbols(state_bits):
    """What the searches assume: of the same quantizer, from one by an even symbol, from the other by an odd one."""
    code = machine_of(state_bits)
    state, came = np.arange(code.states), np.split(code.came, 2)
    assert code.states == 1 << state_bits
    for parity in (0, 1):
        assert np.array_equal(code.following[came[parity], parity], state)
        assert np.array_equal(came[parity] & 1, state >= code.states // 2)
    assert np.array_equal(came[0][code.twins], came[1])


@pytest.mark.parametrize("state_bits", STATE_BITS)
def test_a_shift_register_without_feedback_is_the_same_machine(state_bits):
    state, parity_for_zero = shift_register(state_bits)
    following, register = machine_of(state_bits).following, np.arange(1 << state_bits)
    assert np.array_equal(np.sort(state), register) and state[0] == 0
    for bit in (0, 1):
        after = register >> 1 | bit << state_bits - 1
        assert np.array_equal(following[state, parity_for_zero ^ bit], state[after])
    # What the compiled search assumes of registers that lead to the same ones.
    assert np.array_equal(state[::2] & 1, state[1::2] & 1)
    assert np.array_equal(parity_for_zero[::2], 1 - parity_for_zero[1::2])


@pytest.mark.parametrize("state_bits", STATE_BITS)
def test_as_many_steps_as_state_bits_lead_anywhere(state_bits):
    """Without that, totals could differ by more than 16 bits hold."""
    reached = np.zeros(1, np.int64)
    for _ in range(state_bits):
        reached = np.unique(machine_of(state_bits).following[reached])
    assert len(reached) == 1 << state_bits
    assert search.MAX_BITS == max(STATE_BITS)
    assert (search.MAX_BITS + search.REBASE) * search.COST_LIMIT < 1 << 15


@pytest.mark.parametrize("state_bits", STATE_BITS)
def test_no_machine_is_a_smaller_one_in_disguise(state_bits):
    """The parity checks of a code have no common factor: Euclid's algorithm on polynomials over two elements."""
    first, second = PARITY_CHECKS[state_bits]
    while second:
        while first.bit_length() >= second.bit_length():
            first ^= second << (first.bit_length() - second.bit_length())
        first, second = second, first
    assert first == 1


def cost(residual: torch.Tensor, levels: torch.Tensor, shifted: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return (WEIGHT * (residual - levels / 2) ** 2 + level_bits(levels, shifted, index)).sum()


@pytest.mark.parametrize("deviation, state_bits", [(0.3, 8), (1.0, 8), (1.0, 10), (3.0, 14)])
def test_the_search_finds_the_best_of_all_paths(deviation, state_bits):
    """Against every sequence of symbols near the residual, for one short lane."""
    following = machine_of(state_bits).following
    generator = torch.Generator().manual_seed(1)
    residual = deviation * torch.randn(1, 4, 1, 1, generator=generator)
    index = torch.full_like(residual, index_of(deviation))
    levels, shifted = quantize(residual, index, state_bits)
    found = cost(residual, levels, shifted, index)
    choices = [sorted({0, *range(math.floor(r) - 1, math.floor(r) + 4)}) for r in residual.flatten().tolist()]
    best = math.inf
    for symbols in itertools.product(*choices):
        state, values, moved = 0, [], []
        for k in symbols:
            values.append(2 * k - (k > 0) * (state & 1) + (k < 0) * (state & 1))
            moved.append(bool(state & 1))
            state = int(following[state, k & 1])
        path = torch.tensor(values, dtype=torch.float32).view(residual.shape)
        best = min(best, cost(residual, path, torch.tensor(moved).view(residual.shape), index).item())
    assert found.item() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(
    "shape", [(2, 32, 4, 6), (1, 48, 3, 5), (3, 16, 1, 1), (1, 1, 30, 40), (2, 200, 2, 2), (2, 33, 11, 13)]
)
def test_levels_are_paths_of_the_coder(shape):
    generator = torch.Generator().manual_seed(2)
    residual = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    index = 30.0 * (torch.rand(shape, generator=generator) < 0.7)
    levels, shifted = quantize(residual, index)
    assert levels.dtype == residual.dtype and levels.shape == shifted.shape == residual.shape
    assert is_path(levels.flatten(0, 1), index.flatten(0, 1))  # the lanes are those of the whole batch
    assert ((levels / 2 - residual).abs() * (index > 0)).max() < 1.2
    assert not levels[index == 0].any() and not shifted[index == 0].any()
    assert not any(x.any() for x in quantize(residual, torch.zeros(shape)))


def is_path(levels: torch.Tensor, index: torch.Tensor) -> bool:
    """Of levels (c, h, w)."""
    symbols = symbols_of(levels).numpy().astype(np.int16)
    return np.array_equal(path_of(symbols, index.numpy().astype(np.uint8)), levels.numpy().astype(np.int16))


def test_many_lanes_are_searched_as_few(monkeypatch):
    """In chunks or all at once."""
    generator = torch.Generator().manual_seed(3)
    residual = torch.randn(3, 24, 40, 36, generator=generator)
    index = 60 * torch.rand(residual.shape, generator=generator)
    levels, shifted = quantize(residual, index)
    monkeypatch.setattr(trellis, "CHUNK", 37)
    monkeypatch.setattr(search, "LANES", 7)
    assert all(map(torch.equal, quantize(residual, index), (levels, shifted)))


@pytest.mark.parametrize("deviation", [0.5, 1.0, 6.0])
def test_less_error_at_the_same_rate(deviation):
    """Against rounding: at least 1.15 dB, rates being the entropies of the symbols, given the quantizer."""
    generator = torch.Generator().manual_seed(4)
    residual = deviation * torch.randn(1, 32, 48, 64, generator=generator)
    levels, shifted = quantize(residual, torch.full_like(residual, index_of(deviation)))

    def entropy(symbols: torch.Tensor) -> float:
        share = symbols.unique(return_counts=True)[1] / symbols.numel()
        return -(share * share.log2()).sum().item()

    def decibels(error: torch.Tensor) -> float:
        return 10 * math.log10(error.square().mean().item())

    symbols = symbols_of(levels)
    coded = sum(entropy(symbols[where]) * where.float().mean().item() for where in (shifted, ~shifted))
    rounded = torch.round(residual)
    gain = decibels(residual - rounded) - decibels(residual - levels / 2)
    assert gain - 20 * math.log10(2) * (coded - entropy(rounded)) > 1.15
    # The rate that the network is trained with is near that.
    assert level_bits(levels, shifted, torch.full_like(residual, index_of(deviation))).mean().item() == pytest.approx(
        coded, rel=0.06
    )


@pytest.mark.parametrize("quantizer", [0, 1])
def test_bits_of_levels_are_a_probability(quantizer):
    k = torch.arange(-400.0, 401.0)
    levels = 2 * k - torch.sign(k) * quantizer
    for index in (0.0, 20.0, 40.0, 55.5):
        bits = level_bits(levels, torch.full_like(k, quantizer, dtype=torch.bool), torch.full_like(k, index))
        assert torch.exp2(-bits).sum().item() == pytest.approx(1.0, abs=1e-3)


def test_huge_residuals_stay_within_the_format():
    residual = torch.tensor([1e9, -1e9, 0.0, 40000.0, math.inf, -math.inf, math.nan, 0.0]).view(1, 8, 1, 1)
    index = torch.ones_like(residual)
    levels, _ = quantize(residual, index)
    assert trellis.SYMBOL_LIMIT - 3 < symbols_of(levels).abs().max() <= trellis.SYMBOL_LIMIT
    assert is_path(levels[0], index[0])


def test_a_residual_of_zero_may_steer_the_state():
    """Its level need not be zero; then it must count as odd like any other."""
    generator = torch.Generator().manual_seed(5)
    residual = 8 * torch.randn(1, 16, 32, 32, generator=generator)
    residual[torch.rand(residual.shape, generator=generator) < 0.5] = 0.0
    index = torch.full_like(residual, index_of(6.0))
    levels, _ = quantize(residual, index)
    assert (levels[residual == 0] != 0).any()
    assert is_path(levels[0], index[0])


@pytest.mark.parametrize("state_bits, lanes", [(8, 1), (8, 3), (8, 200), (10, 18), (12, 3), (14, 2), (16, 2)])
def test_the_search_in_integers_is_as_good_as_the_plain_one(state_bits, lanes):
    """Scales and residuals of all sizes; no branch costs more than the integers hold."""
    generator = torch.Generator().manual_seed(6)
    index = 63 * torch.rand(512, lanes, generator=generator)
    size = (torch.randn(512, lanes, generator=generator) * scale_of(index)).abs()
    costs = trellis._branches(size, index)[1]
    assert (costs - costs.amin(1, keepdim=True)).max() < search.COST_LIMIT * search.COST_UNIT

    def total(branches: torch.Tensor) -> float:
        return costs.gather(1, branches[:, None]).sum().item()

    code = machine_of(state_bits)
    assert total(viterbi.integer_search(code, costs)) <= 1.0001 * total(viterbi.plain_search(code, costs))


def test_more_states_find_cheaper_paths():
    """Each machine by more than the noise of 65,000 symbols."""
    generator = torch.Generator().manual_seed(7)
    residual = 0.6 * torch.randn(1, 16, 64, 64, generator=generator)
    index = torch.full_like(residual, index_of(0.6))
    costs = [cost(residual, *quantize(residual, index, bits), index).item() / residual.numel() for bits in (8, 10, 12)]
    assert costs[1] < costs[0] - 0.006 and costs[2] < costs[1] - 0.003


def test_the_kernel_of_triton_finds_the_same_paths():
    """On the CPU, in Triton's interpreter, in a process of its own: it has to be switched on before the import."""
    pytest.importorskip("triton")
    program = """
import torch
from hvcompress import viterbi
from hvcompress.kernels.viterbi import search
from hvcompress.machine import machine_of
torch.manual_seed(0)
for length, count, state_bits in ((1, 1, 8), (7, 3, 8), (40, 5, 10), (20, 2, 12)):
    costs = torch.rand(length, 4, count).square() * 9
    assert torch.equal(search(machine_of(state_bits), costs), viterbi.plain_search(machine_of(state_bits), costs))
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.cuda
def test_the_search_on_cuda_is_the_plain_one():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    language = pytest.importorskip("triton.language")
    if not hasattr(language, "gather"):
        pytest.skip("this Triton has no gather: the search runs on the CPU")
    torch.manual_seed(0)
    costs = (torch.rand(128, 4, 3001) * 9).cuda()
    for state_bits in (8, viterbi.KERNEL_BITS):
        search = viterbi.search_on(costs.device, state_bits)
        assert isinstance(search, partial), "Triton is missing"
        assert torch.equal(search(costs), viterbi.plain_search(machine_of(state_bits), costs))
    larger = viterbi.search_on(costs.device, 14)(costs[..., :5])
    assert torch.equal(larger.cpu(), viterbi.integer_search(machine_of(14), costs[..., :5].cpu()))
