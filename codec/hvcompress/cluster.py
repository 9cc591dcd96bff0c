"""`encode` and `decode` of many files over the machines of a cluster, by Ray Data.

    python -m hvcompress.cluster [--address HOST:PORT] [--workers N] [--cpus N] encode DIR -r --output-dir OUT -q 40 -u

The rest of the line is a command line of hvcompress, and means what it means there. Every machine reads and writes the
files by the same names, so they lie on storage that all of them share. Without an address a cluster of this machine
alone is started for the time of the work.
Raises what the command line raises; exit codes are its as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict

from .cli import Task, make_parser
from .console import complain, stopped_in_good_order
from .errors import HvcompressError, UsageError
from .jobs import STANDARD, Job
from .memory import use_memory_again
from .model import find_model
from .reporting import tell_each
from .work import FAILED, Outcome

FILES_AT_A_TIME = 8  # handed to a worker; more would be lost with a machine, less would leave workers waiting


class ElsewhereError(HvcompressError):
    """What went wrong with a file on another machine, in the words and with the exit code that it has there."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.error)
        self.exit_code = outcome.exit_code


class Worker:
    """A process of the cluster. Its model is loaded by the first file and stays."""

    def __init__(self, work: Callable[[Job], Outcome], threads: int):
        import torch

        torch.set_num_threads(threads)
        use_memory_again()
        self._work = work

    def __call__(self, row: dict) -> dict:
        """A job as JSON -> its outcome as JSON: columns of tables have one type each, fields that may be None not."""
        job = Job(**json.loads(row["job"]))
        try:
            outcome = self._work(job)
        except Exception as error:
            outcome = Outcome(job.source, job.output, FAILED, error=str(error), exit_code=complain(error, job.name))
        return {"number": row["number"], "outcome": json.dumps(asdict(outcome))}


def outcomes(task: Task, workers: int | None, cpus: int, gpus: float) -> Iterator[tuple[Job, Future]]:
    """Each job with what came of it, as soon as it is known. Ray is running.

    workers: processes, None: as many as the cluster has room for; cpus, gpus: of each.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    room = ray.cluster_resources().get("CPU", 1) // cpus
    if gpus:
        room = min(room, ray.cluster_resources().get("GPU", 0) // gpus)
    if room < 1:
        raise UsageError(
            f"no machine of the cluster has {cpus} CPUs{f' and {gpus:g} GPUs' if gpus else ''} for a worker"
        )
    workers = min(int(room), len(task.jobs)) if workers is None else workers
    rows = [{"number": number, "job": json.dumps(asdict(job))} for number, job in enumerate(task.jobs)]
    coded = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // FILES_AT_A_TIME)).map(
        Worker,
        fn_constructor_args=(task.work, cpus),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=cpus,
        num_gpus=gpus or None,
    )
    for row in coded.iter_rows():
        outcome, done = Outcome(**json.loads(row["outcome"])), Future()
        if outcome.status == FAILED:
            done.set_exception(ElsewhereError(outcome))
        else:
            done.set_result(outcome)
        yield task.jobs[row["number"]], done


def run(arguments: list[str], address: str | None, workers: int | None, cpus: int) -> int:
    """Do what a command line asks for, on the cluster; returns the exit code. Raises HvcompressError."""
    args = make_parser().parse_args(arguments)
    if not hasattr(args, "task_of"):
        raise UsageError("only encode and decode run on a cluster")
    if any(name == STANDARD for name in (*args.input, args.output)):
        raise UsageError("standard input and output are of no use on a cluster")
    task = args.task_of(args)
    if args.task_of.__name__ == "encoding_of":
        find_model(args.model)  # that there is none should be told once, not for every file
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("this needs Ray Data: pip install 'hvcompress[ray]'") from error
    try:
        ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
    except ConnectionError as error:
        raise UsageError(f"no Ray cluster answers at {address}") from error
    try:
        gpus = 1.0 if args.device.startswith("cuda") else 0.0
        return tell_each(task.jobs, outcomes(task, workers, cpus, gpus), task.report, ())
    finally:
        ray.shutdown()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hvcompress.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--address", default=os.environ.get("RAY_ADDRESS"), help="of a Ray cluster (default: this machine)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: as many as there is room for)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="cores for each of them (default: 1)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of hvcompress: encode or decode, with its options")
    arguments = parser.parse_args(argv)
    try:
        with stopped_in_good_order():
            return run(arguments.command, arguments.address, arguments.workers, arguments.cpus)
    except BaseException as error:
        return complain(error)


if __name__ == "__main__":
    sys.exit(main())
