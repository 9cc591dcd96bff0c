"""Memory of the machine and of the process. How it is managed is a matter for programs: the library leaves it alone."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST_THRESHOLD = 32 << 20  # that glibc takes
_INT_MAX = 2**31 - 1
CONTAINER = Path("/sys/fs/cgroup")


def use_memory_again() -> bool:
    """Make fresh memory cheaper. Before torch is imported. Returns whether glibc took it.

    By default each large block goes back to the kernel when it is freed, and each new one is paid for with a page fault
    per 4 KiB: a fifth of the time that decoding a large picture takes. So blocks of up to 32 MiB are kept for the next
    use, and larger ones come in huge pages where the kernel has them. (To keep those as well saves some more time, but
    costs a third more memory.)
    """
    import ctypes

    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, another system
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, _INT_MAX))
    return False


def collect_rarely() -> None:
    """Start and end a program sooner. Importing torch makes half a million objects, none of which is garbage.

    Python looks at them again and again while they are made, and twice more at the end: a third of a second.
    """
    gc.set_threshold(100_000)  # objects made between two looks; 700 or 2,000 by default
    atexit.register(gc.freeze)


def give_back() -> None:
    """Return free memory to the system, as `use_memory_again` keeps it from being; after a large picture was read."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def available() -> int | None:
    """Bytes that this process may still take without driving others out, or None where that cannot be told.

    Where a system tells only how much memory it has, and not what is free, that is all of it (macOS).
    """
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/meminfo", encoding="ascii") as file:
            found += [int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError, KeyError):  # of a container, in the second version of control groups
        limit, used = (_number(CONTAINER / f"memory.{name}") for name in ("max", "current"))
        found.append(max(0, limit - used + _cached_files()))
    if not found:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))  # ValueError: "max", no limit


def _cached_files() -> int:
    """What counts as used by a container, but is given back when it is needed: copies of files on disk."""
    lines = (CONTAINER / "memory.stat").read_text(encoding="ascii").splitlines()
    values = dict(line.split() for line in lines)
    return int(values["active_file"]) + int(values["inactive_file"])
