"""Many pictures at a time: reading, network, range coder and writing of several overlap."""

from __future__ import annotations

import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from typing import Any

from .errors import UsageError
from .quality import is_whole


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_briefly() -> None:
    """Have threads of torch and numpy give up their cores soon while they wait for each other.

    Called before either is imported.

    After every parallel loop GNU's OpenMP has them spin, for milliseconds if need be. Beside other busy programs the
    one that is waited for has no core then: with both of two cores taken, decoding took 14 to 60 s instead of 2.2, with
    this 7, and on an idle machine as long as ever. It is a setting of the process, so the library leaves it alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:  # a wish of the user's
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # numpy's products are of small matrices (`portable.py`): two threads gain a tenth, and beside other programs lose
    # ten times as much. (On ARM torch may have the same library, and needs its threads.)
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def check_jobs(jobs: int | None) -> int:
    """The number of pictures at a time; None is one per core. Raises UsageError."""
    if jobs is None:
        return cores()
    if not is_whole(jobs) or jobs < 1:
        raise UsageError(f"jobs must be a whole number from 1, not {jobs!r}")
    return int(jobs)


def in_order(
    work: Callable[[Any], Any], items: Iterable, jobs: int, stopped: threading.Event | None = None
) -> Iterator[Future]:
    """Finished futures of `work(item)`, in the order of the items, of which no more than 2 * jobs are taken ahead.

    While it runs with more than one job, torch's threads, a setting of the whole process, are shared out between them:
    pictures side by side keep cores busier than many threads on one. Closing the iterator drops what has not begun and
    waits for what has; `stopped` is then set, so that long work may look at it and give up.
    """
    if jobs == 1:
        for item in items:
            yield _done(work, item)
        return
    pending: deque[Future] = deque()
    failures: list[Exception] = []  # of the items themselves: told when what came before them is done
    with _shared_threads(jobs), ThreadPoolExecutor(jobs, "hvcompress") as pool:
        try:
            for item in _until_failure(items, failures):
                pending.append(pool.submit(work, item))
                if len(pending) == 2 * jobs:
                    yield _awaited(pending)
            while pending:
                yield _awaited(pending)
            if failures:
                raise failures.pop()
        finally:
            if stopped is not None:
                stopped.set()
            for future in pending:
                future.cancel()


def results(work: Callable[[Any], Any], items: Iterable, jobs: int) -> Iterator[Any]:
    """What `work(item)` returns, as `in_order` has it. Everything is put back before an error reaches the caller."""
    with closing(in_order(work, items, jobs)) as finished:
        for done in finished:
            yield done.result()


def _until_failure(items: Iterable, failures: list[Exception]) -> Iterator[Any]:
    try:
        yield from items
    except Exception as error:
        failures.append(error)


def _done(work: Callable[[Any], Any], item: Any) -> Future:
    future: Future = Future()
    try:
        future.set_result(work(item))
    except Exception as error:
        future.set_exception(error)
    try:
        return future
    finally:
        del future  # which an error, by its traceback, would refer to: a cycle, and all of it kept for a while


def _awaited(pending: deque[Future]) -> Future:
    wait(list(pending)[:1])
    return pending.popleft()


_sharing = threading.Lock()
_sharers: list[int] = []  # the jobs of every batch that is running
_threads_before = 1  # torch's threads when the first of them began


@contextmanager
def _shared_threads(jobs: int) -> Iterator[None]:
    """Batches that overlap share as well. torch has a number for every thread, and each batch restores its own's."""
    import torch

    global _threads_before
    with _sharing:
        if not _sharers:
            _threads_before = torch.get_num_threads()
        _sharers.append(jobs)
        torch.set_num_threads(max(1, _threads_before // sum(_sharers)))
    try:
        yield
    finally:
        with _sharing:
            if jobs in _sharers:  # or this is a forked process, which has one thread (`forking.py`)
                _sharers.remove(jobs)
                torch.set_num_threads(_threads_before)  # of this thread: no other can do that for it
