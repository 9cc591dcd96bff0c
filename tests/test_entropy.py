"""The range coder: round trips, cost, escapes, and bytes that never change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from hvcompress.entropy import SYMBOL_LIMIT, TOTAL, LayerCoder, Tables, _shortest, gaussian_tables, reach_of
from hvcompress.errors import FormatError
from hvcompress.scales import SCALE_LEVELS, scale

CODER = LayerCoder(gaussian_tables())


def sample(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols that follow their tables."""
    generator = np.random.Generator(np.random.PCG64(seed))
    indices = generator.integers(0, SCALE_LEVELS, count).astype(np.uint8)
    deviations = np.array([scale(k) for k in range(SCALE_LEVELS)])[indices]
    return np.rint(generator.standard_normal(count) * deviations).astype(np.int16), indices


def test_tables_are_integers_that_sum_to_the_coders_precision():
    for k, table in enumerate(CODER.tables.frequencies):
        assert table.min() >= 1 and table.sum() == TOTAL and len(table) == 2 * reach_of(k) + 2


@pytest.mark.parametrize("count", [0, 1, 2, 1000, 50000])
def test_round_trip(count):
    symbols, indices = sample(count)
    assert np.array_equal(CODER.decode(CODER.encode(symbols, indices), indices), symbols)


def test_size_is_the_information_content():
    symbols, indices = sample(50000)
    assert 8 * len(CODER.encode(symbols, indices)) == pytest.approx(CODER.bits(symbols, indices), rel=2e-3)


def test_escapes():
    symbols = np.array([0, SYMBOL_LIMIT, -SYMBOL_LIMIT, 5, 3, -3, 1000], np.int16)
    indices = np.array([0, 0, 63, 3, 0, 1, 63], np.uint8)
    coded = CODER.encode(symbols, indices)
    assert np.array_equal(CODER.decode(coded, indices), symbols)
    assert abs(8 * len(coded) - CODER.bits(symbols, indices)) < 64


def test_certain_symbols_cost_nothing():
    assert len(CODER.encode(np.zeros(100000, np.int16), np.zeros(100000, np.uint8))) <= 4


def test_learned_tables_fit_what_was_seen():
    histogram = [np.zeros(2 * reach_of(k) + 2) for k in range(SCALE_LEVELS)]
    histogram[20][reach_of(20)] = 1e6  # only zeros
    coder = LayerCoder(gaussian_tables(histogram))
    zeros, twenty = np.zeros(1000, np.int16), np.full(1000, 20, np.uint8)
    assert coder.bits(zeros, twenty) < 0.05 * CODER.bits(zeros, twenty)


def test_no_shorter_stream_says_the_same():
    """Streams of all lengths, also ones whose last interval spans a carry: what is written is the shortest."""
    generator = np.random.Generator(np.random.PCG64(3))
    lengths, information = 0, 0.0
    for trial in range(300):
        symbols, indices = sample(int(generator.integers(0, 60)), seed=trial)
        coded = CODER.encode(symbols, indices)
        assert np.array_equal(CODER.decode(coded, indices), symbols)
        assert coded[-1:] != b"\0"
        if coded:
            shorter = coded[:-1]
            after = (int.from_bytes(shorter, "big") + 1).to_bytes(len(shorter) + 1, "big")[1:]
            for other in (shorter, after):
                try:
                    assert not np.array_equal(CODER.decode(other, indices), symbols)
                except FormatError:
                    pass
        lengths, information = lengths + 8 * len(coded), information + CODER.bits(symbols, indices)
    assert 0 < lengths - information < 300 * 8  # on average under a byte more than the information


def test_the_shortest_number_of_an_interval():
    """Any number of the interval will do; the fewest bytes, and of those the smallest, are written."""
    generator = np.random.Generator(np.random.PCG64(4))
    for _ in range(2000):
        width = 1 + int(generator.integers(0, 1 << 62)) >> int(generator.integers(0, 30))
        lower = int(generator.integers(0, 1 << 62))
        first = (7 << 64) + lower
        sealed = (first + width - 1).to_bytes(12, "big")
        written = _shortest(sealed, 1, lower, width)
        value = int.from_bytes(written.ljust(12, b"\0"), "big")
        assert first <= value < first + width
        unit = 1 << 8 * (12 - len(written))
        assert value - unit < first  # the smallest of its length
        assert -(-first // (unit << 8)) * (unit << 8) >= first + width  # nothing shorter
    # The words before grew by a carry when the encoder chose its point: the interval begins before the carry.
    assert _shortest(bytes.fromhex("0000000800000000"), 1, 2**64 - 5, 2**33) == b"\0\0\0\x08"
    assert _shortest(b"", 0, 0, 2**64 - 1) == b""


def test_random_bytes_never_crash():
    generator = np.random.Generator(np.random.PCG64(1))
    _, indices = sample(300)
    refused = 0
    for _ in range(300):
        data = generator.bytes(generator.integers(0, 200))
        try:
            assert CODER.decode(data, indices).shape == indices.shape
        except FormatError:
            refused += 1
    assert refused < 300


def test_bytes_never_change():
    """The coder's output is part of the format: a library update that changes it must fail here."""
    frequencies = []
    for k in range(SCALE_LEVELS):  # integers only, so that no libm has a say
        reach = reach_of(k)
        table = np.full(2 * reach + 2, 1 + k, np.int32)
        table[reach] += TOTAL - table.sum()
        frequencies.append(table)
    coder = LayerCoder(Tables(np.array([reach_of(k) for k in range(SCALE_LEVELS)], np.int32), tuple(frequencies)))
    generator = np.random.Generator(np.random.PCG64(7))
    symbols, indices = (
        generator.integers(-9, 10, 3000).astype(np.int16),
        generator.integers(0, 64, 3000).astype(np.uint8),
    )
    coded = coder.encode(symbols, indices)
    assert np.array_equal(coder.decode(coded, indices), symbols)
    assert hashlib.sha256(coded).hexdigest() == "f819ad87e0a6e1c0c68810a5eba7b6de95fbe271d97a5c63d288a16df004d79f"
