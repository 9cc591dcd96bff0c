"""`encode` and `decode` of many files over the machines of a cluster, by Ray Data.

    python -m hvcompress.cluster [--address HOST:PORT] [--workers N] [--cpus N] encode DIR -r --output-dir OUT -q 40 -u

The rest of the line is a command line of hvcompress, and means what it means there; -j is of no use here. Every
machine reads and writes the files by the same names, so they lie on storage that all of them share. Without an address
a cluster of this machine alone is started for the time of the work. Exit codes are those of the command line.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, replace

from .cli import parse
from .commands import Task, encoding_of
from .console import any_name_can_be_told, complain, debugging, stopped_in_good_order, told
from .errors import HvcompressError, UsageError
from .jobs import STANDARD, Job
from .memory import use_memory_again
from .model import find_model
from .reporting import tell_each
from .work import FAILED, Outcome

FILES_AT_A_TIME = 8  # handed to a worker; more would be lost with it, less would leave workers waiting
RETRIES = 2  # of what was lost with a worker: a picture that is too large for the memory would kill it every time


class ElsewhereError(HvcompressError):
    """What went wrong with a file on another machine, in the words and with the exit code that it has there."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.error)
        self.exit_code = outcome.exit_code


class Worker:
    """A process of the cluster. Its model is loaded by the first file and stays."""

    def __init__(self, work: Callable[..., Outcome], options: object, threads: int):
        """work: (options, job) -> Outcome."""
        import torch

        torch.set_num_threads(threads)
        use_memory_again()
        self._work, self._options = work, options

    def __call__(self, row: dict) -> dict:
        """A job as JSON -> its outcome as JSON: columns of tables have one type each, fields that may be None not."""
        job = Job(**json.loads(row["job"]))
        # An output that was not there when the work began is that of a worker which was lost after it had written it.
        options = replace(self._options, force=self._options.force or row["fresh"])
        try:
            outcome = self._work(options, job)
        except Exception as error:
            code = complain(error, job.name)
            outcome = Outcome(job.source, job.output, FAILED, error=told(error)[1], exit_code=code)
        return {"number": row["number"], "outcome": json.dumps(asdict(outcome))}


def outcomes(task: Task, workers: int | None, cpus: int, device: str) -> Iterator[tuple[Job, Future]]:
    """Each job with what came of it, as soon as it is known. Ray is running.

    workers: processes; None: as many as the cluster has room for. cpus: of each. device: cpu, or cuda for a GPU each.
    """
    import ray

    if not debugging():
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # what is lost for good is told below, file by file
    gpus = 1 if device == "cuda" else 0
    room = _room(cpus, gpus)
    if room < 1:
        raise UsageError(f"no machine of the cluster has {cpus} CPUs{' and a GPU' if gpus else ''} for a worker")
    workers = min(room, len(task.jobs)) if workers is None else workers
    options = _for_all_machines(task.options, device)
    rows = []
    for number, job in enumerate(task.jobs):  # the machines have other current folders
        there = replace(job, source=os.path.abspath(job.source), output=os.path.abspath(job.output))
        fresh = not os.path.lexists(there.output)
        rows.append({"number": number, "job": json.dumps(asdict(there)), "fresh": fresh})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray is renaming these options
        coded = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // FILES_AT_A_TIME)).map(
            Worker,
            fn_constructor_args=(task.work, options, cpus),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=cpus,
            num_gpus=gpus or None,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
    lost = dict(enumerate(task.jobs))
    for row in coded.iter_rows():
        yield _told(lost.pop(row["number"]), Outcome(**json.loads(row["outcome"])))
    for job in lost.values():
        error = "its worker was lost, perhaps for want of memory; -u does what is left"
        yield _told(job, Outcome(job.source, job.output, FAILED, error=error, exit_code=HvcompressError.exit_code))


def _told(job: Job, outcome: Outcome) -> tuple[Job, Future]:
    done: Future = Future()
    if outcome.status == FAILED:
        done.set_exception(ElsewhereError(outcome))
    else:
        done.set_result(replace(outcome, file=job.source, output=job.output))
    return job, done


def _room(cpus: int, gpus: int) -> int:
    """How many workers there is room for: each on one machine."""
    import ray

    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            room += int(min(has.get("CPU", 0) // cpus, has.get("GPU", 0) // gpus if gpus else float("inf")))
    return room


def _for_all_machines(options: object, device: str) -> object:
    """The options with a model folder by its whole path."""
    model = options.model
    return replace(options, device=device, model=os.path.abspath(model) if model and os.path.isdir(model) else model)


def run(arguments: list[str], address: str | None, workers: int | None, cpus: int) -> int:
    """Do what a command line asks for, on the cluster; returns the exit code. Raises HvcompressError."""
    args = parse(arguments)
    if not hasattr(args, "task_of"):
        raise UsageError("only encode and decode run on a cluster")
    if any(name == STANDARD for name in (*args.input, args.output)):
        raise UsageError("standard input and output are of no use on a cluster")
    if args.device not in ("auto", "cpu", "cuda"):
        raise UsageError("on a cluster --device is cpu or cuda; which GPU a worker gets is Ray's choice")
    task = args.task_of(args)
    if args.task_of is encoding_of:
        find_model(args.model)  # that there is none should be told once, not for every file
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("this needs Ray Data: pip install 'ray[data]>=2.40,<2.64'") from error
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except ConnectionError as error:
        raise UsageError(f"no Ray cluster answers at {address}") from error
    try:
        device = args.device
        if device == "auto":
            device = "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
        return tell_each(task.jobs, outcomes(task, workers, cpus, device), task.report, ())
    finally:
        ray.shutdown()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hvcompress.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    address = os.environ.get("RAY_ADDRESS")
    parser.add_argument("--address", default=address, help="of a Ray cluster (default: one of this machine alone)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="processes (default: as there is room for)")
    parser.add_argument("--cpus", type=_positive, default=1, metavar="N", help="cores for each of them (default: 1)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of hvcompress: encode or decode, with its options")
    arguments = parser.parse_args(argv)
    any_name_can_be_told()
    if not debugging():  # what Ray tells of itself is of no concern to a user
        warnings.simplefilter("ignore")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with stopped_in_good_order():
            return run(arguments.command, arguments.address, arguments.workers, arguments.cpus)
    except BaseException as error:
        return complain(error)


if __name__ == "__main__":
    sys.exit(main())
