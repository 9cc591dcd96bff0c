"""What the command line sets of allocator and garbage collector does what it is for."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from hvcompress import memory
from hvcompress.analysis.rates import layer_rates
from hvcompress.errors import LimitError
from hvcompress.image_reading import read_picture

PROGRAM = """
import resource, sys
from hvcompress.memory import use_memory_again
if sys.argv[1] == "keep" and not use_memory_again():
    sys.exit(9)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = b"x" * (24 << 20); del block
before = faults()
for _ in range(10):
    block = b"x" * (24 << 20); del block
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_used_again():
    def faults(choice: str) -> int:
        run = subprocess.run([sys.executable, "-c", PROGRAM, choice], capture_output=True, text=True)
        if run.returncode == 9:
            pytest.skip("another C library")
        return int(run.stdout)

    assert 10 * faults("keep") < faults("leave")


def test_files_in_the_cache_of_a_container_are_free_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4500\n")
    (tmp_path / "memory.stat").write_text("anon 1500\nfile 3000\nactive_file 1000\ninactive_file 1900\n")
    assert memory.available() == 500 + 2900
    (tmp_path / "memory.max").write_text("max\n")  # no limit
    assert memory.available() != 500 + 2900


@pytest.mark.parametrize(("given", "set_to"), [({}, "10000"), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_a_program_has_threads_wait_briefly_and_a_library_leaves_that_alone(given, set_to):
    program = f"""
import os, sys
import hvcompress.cli, hvcompress.batch
assert "GOMP_SPINCOUNT" not in os.environ
hvcompress.cli.main(["--version"])
assert "GOMP_SPINCOUNT" not in os.environ
sys.argv = ["hvcompress", "--version"]
hvcompress.cli.main()
assert os.environ.get("GOMP_SPINCOUNT") == {set_to!r} and "torch" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment | given, stdout=subprocess.DEVNULL)


def test_a_program_looks_for_garbage_rarely_and_a_library_leaves_that_alone():
    program = """
import gc
import hvcompress.loading, hvcompress.cli
before = gc.get_threshold()
assert before[0] < 10_000 and gc.get_freeze_count() == 0
import sys
sys.argv = ["hvcompress", "--version"]
assert hvcompress.cli.main() == 0 and gc.get_threshold()[0] >= 50_000
assert hvcompress.cli.main(["--version"]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_looking_into_a_file_is_refused_where_its_memory_is_not_there(tiny, photo):
    data = tiny.encode(read_picture(photo), 40).data
    looks = (tiny.decode, tiny.latents, tiny.information, tiny.position_bits, partial(layer_rates, tiny))
    for look in looks:
        look(data, memory_limit=1 << 40)
        with pytest.raises(LimitError, match="GiB of memory"):
            look(data, memory_limit=1 << 20)
    for position, symbols in zip(tiny.position_bits(data), tiny.information(data), strict=True):
        assert np.allclose(position, symbols.sum(0), rtol=1e-12)
