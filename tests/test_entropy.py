"""The range coder: round trips, cost, escapes, and bytes that never change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from hvcompress.entropy import (
    SYMBOL_LIMIT,
    TABLES,
    TOTAL,
    LayerCoder,
    Tables,
    _shortest,
    gaussian_tables,
    path_of,
    reach_of,
)
from hvcompress.errors import FormatError
from hvcompress.machine import machine_of
from hvcompress.scales import SCALE_LEVELS, scale
from hvcompress.symbols import lanes_of

CODER = LayerCoder(gaussian_tables())


def sample(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Levels whose symbols follow the scales of random indices."""
    generator = np.random.Generator(np.random.PCG64(seed))
    indices = generator.integers(0, SCALE_LEVELS, shape).astype(np.uint8)
    deviations = np.array([scale(k) for k in range(SCALE_LEVELS)])[indices]
    return path_of(np.rint(generator.standard_normal(shape) * deviations).astype(np.int16), indices), indices


def test_tables_are_integers_that_sum_to_the_coders_precision():
    assert len(CODER.tables.frequencies) == TABLES
    for table, frequencies in enumerate(CODER.tables.frequencies):
        assert frequencies.min() >= 1 and frequencies.sum() == TOTAL
        assert len(frequencies) == 2 * reach_of(table % SCALE_LEVELS) + 2


SHAPES = [(1, 1, 1), (3, 1, 1), (32, 1, 1), (16, 3, 5), (48, 2, 7), (200, 2, 3), (1, 40, 33), (24, 64, 96), (4, 0, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip(shape):
    levels, indices = sample(shape)
    assert np.array_equal(CODER.decode(CODER.encode(levels, indices), indices), levels)


def test_size_is_the_information_content():
    levels, indices = sample((24, 40, 60))
    assert 8 * len(CODER.encode(levels, indices)) == pytest.approx(CODER.bits(levels, indices), rel=2e-3)


def test_escapes():
    symbols = np.array([0, SYMBOL_LIMIT, -SYMBOL_LIMIT, 5, 3, -3, 1000, -1001], np.int16)[:, None, None]
    indices = np.array([1, 1, 63, 3, 1, 2, 63, 63], np.uint8)[:, None, None]
    levels = path_of(symbols, indices)
    coded = CODER.encode(levels, indices)
    assert np.array_equal(CODER.decode(coded, indices), levels)
    assert abs(8 * len(coded) - CODER.bits(levels, indices)) < 64


def test_certain_symbols_cost_nothing():
    zeros, certain = np.zeros((10, 100, 100), np.int16), np.zeros((10, 100, 100), np.uint8)
    assert CODER.encode(zeros, certain) == b"" and CODER.bits(zeros, certain) == 0.0
    assert np.array_equal(CODER.decode(b"", certain), zeros)
    assert len(CODER.encode(zeros, certain + 1)) <= 16


def test_lanes_are_long_and_take_turns():
    """Of all that is coded, so that the state of a lane knows nothing of what is not."""
    assert [lanes_of(count) for count in (0, 1, 1024, 2047, 2048, 5000)] == [
        (0, 1), (1, 1), (1024, 1), (2047, 1), (1024, 2), (1250, 4)
    ]  # fmt: skip
    generator = np.random.Generator(np.random.PCG64(6))
    symbols = generator.integers(-3, 4, (20, 16, 16)).astype(np.int16)
    indices = generator.integers(0, 2, symbols.shape).astype(np.uint8) * 30
    levels = path_of(symbols, indices)
    assert not levels[indices == 0].any()
    coded = symbols[indices > 0]
    states = [0] * lanes_of(len(coded))[1]
    assert len(states) == 2
    for number, (symbol, level) in enumerate(zip(coded.tolist(), levels[indices > 0].tolist(), strict=True)):
        lane = number % len(states)
        assert level == 2 * symbol - np.sign(symbol) * (states[lane] & 1)
        states[lane] = int(machine_of(8).following[states[lane], symbol & 1])


def test_what_is_no_path_is_refused():
    levels, indices = sample((16, 4, 4))
    for wrong in (1, -1):  # at the start of a lane levels are even
        levels[0, 0, 0], indices[0, 0, 0] = wrong, 5
        with pytest.raises(ValueError, match="not a path"):
            CODER.encode(levels, indices)
    levels, indices = np.zeros((2, 3, 4, 4), np.int16)[0], np.zeros((3, 4, 4), np.uint8)
    levels[1, 1, 1] = 2  # where nothing is coded
    with pytest.raises(ValueError, match="not a path"):
        CODER.encode(levels, indices)


def test_what_decode_refuses_encode_does_not_write():
    indices = np.ones((2, 1, 1), np.uint8)
    for symbol in (SYMBOL_LIMIT + 1, -SYMBOL_LIMIT - 1):
        with pytest.raises(ValueError, match="out of range"):
            CODER.encode(path_of(np.array([1, symbol], np.int16)[:, None, None], indices), indices)


@pytest.mark.parametrize("raw", [1000 + (1 << 15), 16384 + (1 << 15), 0])
def test_an_escape_of_the_wrong_parity_or_size_is_refused(raw):
    """A stream of one odd symbol, written by hand: the right escape decodes, the others do not."""
    import constriction

    def stream(value: int) -> bytes:
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(np.array([1], np.int32), CODER._parity, CODER._odd[1:2])
        odd_in_reach = reach_of(1)  # of -2..2: two odd symbols, then the escape
        encoder.encode(np.array([odd_in_reach], np.int32), CODER._models[TABLES + 1])
        encoder.encode(np.array([value], np.int32), CODER._raw)
        return encoder.get_compressed().astype(">u4").tobytes()

    indices = np.ones((1, 1, 1), np.uint8)
    assert CODER.decode(stream(1001 + (1 << 15)), indices).item() == 2002
    with pytest.raises(FormatError):
        CODER.decode(stream(raw), indices)


def test_learned_tables_fit_what_was_seen():
    zeros, twenty = np.zeros((10, 10, 10), np.int16), np.full((10, 10, 10), 20, np.uint8)
    counts = CODER.count(zeros, twenty)
    assert [int(c.sum()) for c in counts] == [1000 * (table == 20) for table in range(TABLES)]
    coder = LayerCoder(gaussian_tables([1000 * c for c in counts]))
    assert coder.bits(zeros, twenty) < 0.05 * CODER.bits(zeros, twenty)


def test_symbols_are_counted_by_table():
    levels, indices = sample((32, 20, 30))
    counts = CODER.count(levels, indices)
    by_index = np.bincount(indices[indices > 0], minlength=SCALE_LEVELS)
    assert [int(counts[i].sum() + counts[i + SCALE_LEVELS].sum()) for i in range(SCALE_LEVELS)] == by_index.tolist()
    shares = [c / max(1, c.sum()) for c in counts]
    coder = LayerCoder(gaussian_tables([1e9 * share for share in shares]))
    ideal = -sum((c[c > 0] * np.log2(share[c > 0])).sum() for c, share in zip(counts, shares, strict=True))
    assert coder.bits(levels, indices) == pytest.approx(ideal, rel=0.1)  # tables are made symmetric
    assert coder.bits(levels, indices) < CODER.bits(levels, indices)


def test_no_shorter_stream_says_the_same():
    """Streams of all lengths, also ones whose last interval spans a carry: what is written is the shortest."""
    generator = np.random.Generator(np.random.PCG64(3))
    lengths, information = 0, 0.0
    for trial in range(300):
        levels, indices = sample((1, 1, int(generator.integers(0, 60))), seed=trial)
        coded = CODER.encode(levels, indices)
        assert np.array_equal(CODER.decode(coded, indices), levels)
        assert coded[-1:] != b"\0"
        if coded:
            shorter = coded[:-1]
            after = (int.from_bytes(shorter, "big") + 1).to_bytes(len(shorter) + 1, "big")[1:]
            for other in (shorter, after):
                try:
                    assert not np.array_equal(CODER.decode(other, indices), levels)
                except FormatError:
                    pass
        lengths, information = lengths + 8 * len(coded), information + CODER.bits(levels, indices)
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
    _, indices = sample((10, 5, 6))
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
    for table in range(TABLES):  # integers only, so that no libm has a say
        reach = reach_of(table % SCALE_LEVELS)
        row = np.full(2 * reach + 2, 1 + table, np.int32)
        row[reach] += TOTAL - row.sum()
        frequencies.append(row)
    coder = LayerCoder(Tables(np.array([reach_of(k) for k in range(SCALE_LEVELS)], np.int32), tuple(frequencies)))
    generator = np.random.Generator(np.random.PCG64(7))
    symbols, indices = (
        generator.integers(-9, 10, (24, 11, 13)).astype(np.int16),
        generator.integers(0, 64, (24, 11, 13)).astype(np.uint8),
    )
    levels = path_of(symbols, indices)
    coded = coder.encode(levels, indices)
    assert np.array_equal(coder.decode(coded, indices), levels)
    assert hashlib.sha256(coded).hexdigest() == "7ce860ba78d5a03cf6b44eba4d99a6b5e5a1e7168026a554bbdbd776f5b2f187"
