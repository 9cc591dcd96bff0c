"""The examples in docstrings are true, and what the documents name is there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import hvcompress
from hvcompress.cli import make_parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    path for folder in (".", "docs", "benchmarks", "examples", "models/*") for path in ROOT.glob(f"{folder}/*.md")
]
COMMAND = re.compile(r"^    (?:bin/)?hvcompress (\w+) ([^#|]*)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][a-z-]*")


def test_package_docstring():
    results = doctest.testmod(hvcompress)
    assert results.attempted >= 5 and results.failed == 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if not (path.parent / (target.split("#")[0] or path.name)).exists()]
    assert not missing
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}
    assert {target[1:] for target in targets if target.startswith("#")} <= headings


def test_commands_in_documents_have_such_options():
    commands = next(action.choices for action in make_parser()._actions if isinstance(action.choices, dict))
    known = {
        name: {option for a in command._actions for option in a.option_strings} for name, command in commands.items()
    }
    found = [match for path in DOCUMENTS for match in COMMAND.findall(path.read_text(encoding="utf-8"))]
    assert {name for name, _ in found} == set(commands)
    for name, arguments in found:
        assert set(OPTION.findall(arguments)) <= known[name], (name, arguments)


def test_options_that_usage_names_are_there():
    commands = next(action.choices for action in make_parser()._actions if isinstance(action.choices, dict))
    known = {option for command in commands.values() for a in command._actions for option in a.option_strings}
    elsewhere = {"--address", "--help", "--efforts", "--qualities", "--limit"}  # of other programs, in their commands
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    named = {option for code in re.findall(r"`([^`]*)`", text) for option in OPTION.findall(code)}
    assert named - elsewhere - {"-c", "-e"} <= known and len(named & known) > 20
