"""Write the completions and the man page in this folder, from the command line's own parser.

pip install shtab argparse-manpage && python contrib/make.py
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

import shtab  # noqa: E402
from argparse_manpage.manpage import Manpage  # noqa: E402

from hvcompress import __version__  # noqa: E402
from hvcompress.cli import make_parser  # noqa: E402

FILES = {"input", "output", "original", "summary", "model"}  # arguments that name a file
FOLDERS = {"output_dir", "maps"}


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By the names of the commands."""
    return next(action.choices for action in parser._actions if isinstance(action.choices, dict))


def completion(shell: str) -> str:
    parser = make_parser()
    for command in subparsers(parser).values():
        for action in command._actions:
            if action.dest in FILES:
                action.complete = shtab.FILE
            elif action.dest in FOLDERS:
                action.complete = shtab.DIRECTORY
    return shtab.complete(parser, shell)


def man_page() -> str:
    parser = make_parser()
    parser.man_short_description = "learned lossy image codec"
    data = {"project_name": "hvcompress", "version": __version__, "prog": "hvcompress", "manual_section": "1"}
    data["manual_title"] = "User Commands"
    # Without the day on which it was made: the same program has the same page.
    page = re.sub(r'"\d{4}\\?-\d\d\\?-\d\d" ', '"" ', str(Manpage(parser, _data=data)), count=1)
    return page.rstrip("\n") + "\n" + notes(parser)


def notes(parser: argparse.ArgumentParser) -> str:
    """What follows the options in a command's help, line by line: the keys of its JSON, and an example."""
    lines = [".SH", "NOTES AND EXAMPLES"]
    for name, command in subparsers(parser).items():
        lines += [".SS", rf"\fBhvcompress {name}\fR", ".nf"]
        # A full stop or a quote at the start of a line, and a backslash anywhere, would be orders to the formatter.
        lines += [r"\&" + line.replace("\\", r"\e").replace("-", r"\-") for line in command.epilog.splitlines()]
        lines += [".fi"]
    return "\n".join(lines)


def main() -> None:
    for name, text in (
        ("hvcompress.bash", completion("bash")),
        ("_hvcompress", completion("zsh")),
        ("hvcompress.1", man_page()),
    ):
        (HERE / name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
