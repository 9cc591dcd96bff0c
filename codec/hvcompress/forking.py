"""What a forked process does first, so that it can code and never waits for what it has lost."""

from __future__ import annotations

import os
import sys
import threading
from functools import lru_cache

# Those of the whole process.
_LOCKS = {
    "batch": ["_sharing"],
    "image_reading": ["_opening"],
    "kernels.graphs": ["_recording"],
    "loading": ["_loading"],
}


_forked = False


def is_forked() -> bool:
    """Whether this process was forked from one that had imported this package."""
    return _forked


@lru_cache
def prepare_for_fork() -> None:
    """Called before the first of the locks can be taken. (Processes started by spawn need nothing of this.)"""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_repair)


def _repair() -> None:
    global _forked
    _forked = True
    # Of the parent's threads only the one that forked lives on. GNU's OpenMP does not know, and its next use of two
    # threads would wait for ever for one that is gone; with one thread it has nothing to wait for.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    for name, locks in _LOCKS.items():
        module = sys.modules.get(f"{__package__}.{name}")
        if module is not None:
            for lock in locks:  # another thread may have held it, and can never release it here
                setattr(module, lock, threading.Lock())
    batch = sys.modules.get(f"{__package__}.batch")
    if batch is not None:
        batch._sharers.clear()  # their threads are gone as well
    plan = sys.modules.get(f"{__package__}.plan")
    if plan is not None:
        plan.forget_holders()
    image_reading = sys.modules.get(f"{__package__}.image_reading")
    if image_reading is not None:
        image_reading.forget_readers()
