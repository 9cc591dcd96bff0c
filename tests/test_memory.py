"""The command line's allocator setting does what it is for."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
