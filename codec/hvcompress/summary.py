"""What came of many files: a table for programs, a line for people."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict

from .errors import UsageError
from .files import check_place, write_atomically
from .work import DONE, FAILED, UP_TO_DATE, Outcome


def check_summary(path: str | None) -> None:
    """Raises UsageError or OutputError where no table can be written under that name."""
    if path is None:
        return
    if os.path.splitext(path)[1].lower() not in (".csv", ".json"):
        raise UsageError(f"--summary must name a .csv or .json file, not {path!r}")
    check_place(path)


def write_summary(path: str, outcomes: Sequence[Outcome]) -> None:
    """A row per file, with the fields of `Outcome`; an existing file is replaced. Raises OutputError."""
    rows = [{name: _short(value) for name, value in asdict(outcome).items() if name != "note"} for outcome in outcomes]
    if os.path.splitext(path)[1].lower() == ".json":
        text = json.dumps([{k: None if v == math.inf else v for k, v in row.items()} for row in rows], indent=1) + "\n"
    else:
        table = io.StringIO()
        names = [name for name in asdict(Outcome("", "")) if name != "note"]
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = table.getvalue()
    write_atomically(path, text.encode("utf-8", "surrogateescape"), overwrite=True)


def _short(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value


def totals(outcomes: Sequence[Outcome]) -> str:
    """One line about all of them."""
    count = {status: sum(outcome.status == status for outcome in outcomes) for status in (DONE, UP_TO_DATE, FAILED)}
    parts = [f"{number} {status}" for status, number in count.items() if number or status == DONE]
    known = [outcome for outcome in outcomes if outcome.bytes_before and outcome.bytes_after]
    before, after = (sum(getattr(outcome, name) for outcome in known) for name in ("bytes_before", "bytes_after"))
    line = f"{len(outcomes)} file{'' if len(outcomes) == 1 else 's'}: {', '.join(parts)}"
    if known:
        line += f"; {before:,} -> {after:,} bytes"
    decibels = [outcome.psnr for outcome in outcomes if outcome.psnr is not None and math.isfinite(outcome.psnr)]
    if decibels:
        line += f"; {sum(decibels) / len(decibels):.2f} dB on average"
    return line
