"""Peak memory of a process, read in the process itself."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def peak_mib() -> float:
    """Most memory that was resident since this program began, in MiB; nan where the system does not tell.

    Linux counts ru_maxrss from the peak of the process that started this one, so it is asked only where there is no
    VmHWM.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
