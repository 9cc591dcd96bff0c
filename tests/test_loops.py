"""The compiled loops: the same symbols, bytes, refusals and paths as without them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_entropy import sample

import hvcompress
from hvcompress import forking, search, viterbi
from hvcompress.entropy import SYMBOL_LIMIT, LayerCoder, gaussian_tables, path_of
from hvcompress.errors import FormatError
from hvcompress.machine import PARITY_CHECKS, machine_of
from hvcompress.scales import SCALE_LEVELS

pytest.importorskip("numba")
NEVER = 1 << 62
PLAIN, COMPILED = LayerCoder(gaussian_tables(), patience=NEVER), LayerCoder(gaussian_tables(), patience=0)


def outcome(coder: LayerCoder, data: bytes, indices: np.ndarray) -> bytes | str:
    try:
        return coder.decode(data, indices).tobytes()
    except FormatError as error:
        return str(error)


def test_they_are_used():
    assert COMPILED.compile() and COMPILED.compile() and COMPILED._loops is not None
    assert PLAIN._loops is None


SHAPES = [(0, 1, 1), (1, 1, 1), (3, 1, 1), (32, 1, 1), (48, 2, 7), (200, 2, 3), (1, 40, 33), (24, 64, 96), (4, 0, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state_bits", PARITY_CHECKS)
def test_same_bytes_and_same_symbols(shape, state_bits):
    levels, indices = sample(shape, seed=state_bits)
    indices[indices < 20] = 0  # some are not coded
    levels[indices == 0] = 0
    symbols = np.sign(levels) * ((np.abs(levels) + 1) >> 1) * np.where(indices % 7 == 0, 4, 1).astype(np.int16)
    levels = path_of(symbols, indices, state_bits)
    data = PLAIN.encode(levels, indices, state_bits)
    assert COMPILED.encode(levels, indices, state_bits) == data
    assert COMPILED.bits(levels, indices, state_bits) == PLAIN.bits(levels, indices, state_bits)
    for coder in (PLAIN, COMPILED):
        assert np.array_equal(coder.decode(data, indices, state_bits), levels)


def test_the_largest_symbols():
    symbols = np.array([0, SYMBOL_LIMIT, -SYMBOL_LIMIT, 5, 3, -3, 1000, -1001], np.int16)[:, None, None]
    indices = np.array([1, 1, 63, 3, 1, 2, 63, 63], np.uint8)[:, None, None]
    levels = path_of(symbols, indices)
    assert np.array_equal(COMPILED.decode(PLAIN.encode(levels, indices), indices), levels)


def test_other_tables():
    """Of every table with counts that no Gaussian has."""
    generator = np.random.Generator(np.random.PCG64(8))
    seen = [generator.integers(0, 1 << 20, len(row)) ** 2 for row in PLAIN.tables.frequencies]
    tables = gaussian_tables(seen, confidence=1.0)
    plain, compiled = LayerCoder(tables, patience=NEVER), LayerCoder(tables, patience=0)
    indices = np.tile(np.arange(SCALE_LEVELS, dtype=np.uint8), (60, 40, 1))
    symbols = generator.integers(-9, 10, indices.shape).astype(np.int16)
    levels = path_of(symbols, indices)
    data = plain.encode(levels, indices)
    assert compiled.encode(levels, indices) == data and compiled._loops is not None
    assert np.array_equal(compiled.decode(data, indices), levels)


def test_damaged_bytes_have_the_same_end():
    """Whatever the bytes: the same levels, or the same error."""
    generator = np.random.Generator(np.random.PCG64(9))
    levels, indices = sample((10, 20, 9), seed=3)
    whole = PLAIN.encode(levels, indices)
    ends = []
    for trial in range(300):
        data = bytearray(whole if trial % 3 else generator.bytes(int(generator.integers(0, 200))))
        for _ in range(trial % 3):
            data[generator.integers(0, len(data))] ^= int(generator.integers(1, 256))
        if trial % 2:
            data = data[: generator.integers(0, len(data) + 1)]
        ends.append(outcome(PLAIN, bytes(data), indices))
        assert outcome(COMPILED, bytes(data), indices) == ends[-1]
    refused = sum(isinstance(end, str) for end in ends)
    assert 100 < refused < 300


def test_little_is_not_worth_their_loading():
    levels, indices = sample((4, 10, 10))
    count = int((indices > 0).sum())
    coder = LayerCoder(gaussian_tables(), patience=2 * count + 1)
    data = coder.encode(levels, indices)
    coder.decode(data, indices)
    assert coder._loops is None
    coder.decode(data, indices)
    assert coder._loops is not None


@pytest.mark.parametrize("method", ["decode", "quantizers"])
def test_loops_that_err_are_not_used(method, monkeypatch):
    from hvcompress.kernels.loops import Loops

    right = getattr(Loops, method)

    def wrong(*arguments):
        found = right(*arguments)
        symbols = found[0] if method == "decode" else found
        symbols[-1] += 1
        return found

    monkeypatch.setattr(Loops, method, wrong)
    levels, indices = sample((4, 10, 10))
    coder = LayerCoder(gaussian_tables())
    assert not coder.compile()
    assert np.array_equal(coder.decode(coder.encode(levels, indices), indices), levels)


def test_without_numba():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np, torch\n"
        "from hvcompress import search, viterbi\n"
        "from hvcompress.entropy import LayerCoder, gaussian_tables\n"
        "from hvcompress.machine import machine_of\n"
        "coder = LayerCoder(gaussian_tables(), patience=0)\n"
        "levels, indices = np.zeros((4, 5, 6), np.int16), np.full((4, 5, 6), 9, np.uint8)\n"
        "assert not coder.decode(coder.encode(levels, indices), indices).any()\n"
        "assert coder._loops is None\n"
        "search._searched = search.PATIENCE\n"
        "assert viterbi.integer_search(machine_of(8), torch.rand(9, 4, 3)).shape == (9, 3)\n"
        "assert search._compiled(machine_of(8), 1) is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(hvcompress.__file__).parents[1])


def test_threads_that_come_at_once_get_the_same():
    """One of them compiles; the others do not wait for it, and use what they have."""
    levels, indices = sample((16, 20, 30))
    data = PLAIN.encode(levels, indices)
    coder, start = LayerCoder(gaussian_tables(), patience=0), threading.Barrier(6)

    def work(_: int) -> bool:
        start.wait()
        return all(np.array_equal(coder.decode(data, indices), levels) for _ in range(5))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert coder._loops is not None


@pytest.fixture
def searched():
    """What was searched in this process so far; put back at the end."""
    before = search._searched
    yield before
    search._searched = before


@pytest.mark.parametrize("state_bits", PARITY_CHECKS)
@pytest.mark.parametrize("length, lanes", [(1, 1), (5, 2), (6, 3), (7, 1), (15, 2), (16, 1), (18, 3), (100, 33)])
def test_the_search_finds_the_same_paths(state_bits, length, lanes, searched):
    """Also of costs that are the same for several branches, and of the largest."""
    machine, generator = machine_of(state_bits), torch.Generator().manual_seed(length)
    for costs in (
        10 * torch.rand(length, 4, lanes, generator=generator),
        torch.randint(0, 3, (length, 4, lanes), generator=generator).float(),
        1e6 * torch.rand(length, 4, lanes, generator=generator),
        torch.zeros(length, 4, lanes),
    ):
        search._searched = -(1 << 62)
        plain = viterbi.integer_search(machine, costs)
        search._searched = search.PATIENCE
        assert torch.equal(viterbi.integer_search(machine, costs), plain)
    assert search._compiled(machine, 1) is not None


def test_the_search_is_compiled_when_much_was_searched(searched):
    machine = machine_of(8)
    search._searched = search.PATIENCE - machine.states
    assert search._compiled(machine, 1) is None and search._compiled(machine, 1) is not None
    search._searched = 0
    assert search._compiled(machine, search.PATIENCE) is not None  # at once, for a search that is long itself


def test_a_search_that_errs_is_not_used(monkeypatch):
    from hvcompress.kernels import loops

    monkeypatch.setattr(loops, "search", lambda machine, costs: np.zeros((len(costs), costs.shape[-1]), np.int64))
    assert search._try_compiling(machine_of(10)) is None


def test_nothing_is_compiled_in_a_forked_process(searched, monkeypatch):
    """Only what is there already is used: numba's locks may be held for ever."""
    search._searched = search.PATIENCE
    assert search._compiled(machine_of(8), 1) is not None
    monkeypatch.setattr(search, "_compiled_searches", {machine_of(8): search._compiled(machine_of(8), 1)})
    monkeypatch.setattr(forking, "_forked", True)
    assert search._compiled(machine_of(8), 1) is not None and search._compiled(machine_of(10), 1) is None
    assert COMPILED.compile() and not LayerCoder(gaussian_tables()).compile()


def test_where_nothing_may_be_written_loops_are_compiled_anew(tmp_path):
    """As in a container: neither beside the package nor in a home."""
    package = tmp_path / "hvcompress"
    shutil.copytree(Path(hvcompress.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import numba.core.caching as caching\n"
        "caching._CacheLocator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError())\n"
        "from hvcompress.entropy import LayerCoder, gaussian_tables\n"
        "assert LayerCoder(gaussian_tables()).compile()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert not list(package.rglob("*.nbi"))
