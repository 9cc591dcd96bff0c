"""Many jobs, one after another or side by side, and what is told of them: lines, errors, a table, an exit code."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TextIO

from .batch import in_order
from .console import ProgressLine, complain, progress_line, say, shown, told
from .jobs import Job
from .summary import totals, write_summary
from .work import FAILED, UP_TO_DATE, Outcome, Progress

Errors = tuple[type[Exception], ...]


def for_each(jobs: Sequence[Job], work: Callable[[Job], None], fatal: Errors = ()) -> int:
    """Do the work of every job; a bad input does not stop the others, an error in `fatal` does.

    Returns the exit code: that of the first error.
    """
    first_code = 0
    for job in jobs:
        try:
            work(job)
        except fatal as error:
            code = complain(error)
            return first_code or code
        except Exception as error:
            code = complain(error, job.name)
            first_code = first_code or code
    return first_code


@dataclass(frozen=True)
class Report:
    """How what comes of files is told."""

    stream: TextIO
    quiet: bool
    columns: Callable[[Outcome], list[str]]  # of a file's line, after its name
    summary: str | None = None  # file for a table
    overall: bool = False  # tell also how far the work is, and in the end a line about all files


def code_each(
    jobs: Sequence[Job],
    work: Callable[[Job, Progress], Outcome],
    at_a_time: int,
    report: Report,
    fatal: Errors,
) -> int:
    """Do the work of every job, some at a time; one line each, in their order. Otherwise as `for_each`."""
    stopped = threading.Event()
    at_a_time = min(at_a_time, len(jobs))

    made: dict[Job, Outcome] = {}  # also by work whose turn to be told has not come
    outcomes: list[Outcome] = []

    def watched(job: Job) -> Outcome:
        with progress_line(shown(job.name), quiet=report.quiet or at_a_time > 1) as progress:
            made[job] = work(job, until(stopped, progress))
            return made[job]

    try:
        with contextlib.closing(in_order(watched, jobs, at_a_time, stopped)) as finished:
            return _tell(jobs, zip(jobs, finished, strict=True), report, fatal, outcomes)
    finally:  # after an interrupt as well
        told = {(outcome.file, outcome.output) for outcome in outcomes}
        untold = [outcome for outcome in made.values() if (outcome.file, outcome.output) not in told]
        _sum_up(outcomes + untold, report)


def tell_each(jobs: Sequence[Job], finished: Iterator[tuple[Job, Future]], report: Report, fatal: Errors) -> int:
    """Tell what becomes of each job as soon as that is known; returns the exit code, as `for_each`.

    finished: each job and what came of its work, an Outcome or an exception, in any order.
    """
    outcomes: list[Outcome] = []
    try:
        return _tell(jobs, finished, report, fatal, outcomes)
    finally:
        _sum_up(outcomes, report)


def _sum_up(outcomes: Sequence[Outcome], report: Report) -> None:
    if report.overall and not report.quiet:
        say(totals(outcomes), report.stream)
    if report.summary is not None:
        write_summary(report.summary, outcomes)


def until(stopped: threading.Event, progress: Progress | None) -> Progress:
    """Progress that gives up when nobody waits for the result: else an interrupt would last as long as the effort."""

    def step(done: int, total: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        if progress is not None:
            progress(done, total)

    return step


def _tell(
    jobs: Sequence[Job],
    finished: Iterator[tuple[Job, Future]],
    report: Report,
    fatal: Errors,
    outcomes: list[Outcome],
) -> int:
    """`tell_each`, which also appends to `outcomes`."""
    first_code = 0
    width = max(len(shown(job.name)) for job in jobs) if len(jobs) > 1 else 0
    with progress_line("files", quiet=report.quiet or not report.overall) as overall:
        if overall is not None:
            overall(0, len(jobs))
        for number, (job, done) in enumerate(finished, 1):
            counter = f"[{number:{len(str(len(jobs)))}}/{len(jobs)}] " if len(jobs) > 1 else ""
            error = done.exception()
            if error is None:
                outcomes.append(done.result())
                try:
                    _clear(overall)
                    _say_outcome(outcomes[-1], job, f"{counter}{shown(job.name):{width}}", report)
                except Exception as problem:  # of telling, not of the file
                    error = problem
            elif isinstance(error, Exception):
                outcome = Outcome(job.source, job.output, FAILED, error=told(error)[1], exit_code=told(error)[0])
                outcomes.append(outcome)
            else:
                raise error
            if error is not None:
                _clear(overall)
                stops = isinstance(error, fatal)
                code = complain(error, "" if stops else job.name)
                first_code = first_code or code
                if stops:
                    return first_code
            if overall is not None:
                overall(number, len(jobs))
    return first_code


def _clear(overall: ProgressLine | None) -> None:
    if overall is not None:
        overall.clear()


def _say_outcome(outcome: Outcome, job: Job, head: str, report: Report) -> None:
    if report.quiet:
        return
    if outcome.note is not None:
        say(f"hvcompress: {shown(job.name)}: {outcome.note}", sys.stderr)
    columns = [UP_TO_DATE] if outcome.status == UP_TO_DATE else report.columns(outcome)
    if head == shown(job.name):  # alone: nothing needs to be below anything
        columns = [" ".join(column.split()) for column in columns]
    say("  ".join([head, *columns]), report.stream)
