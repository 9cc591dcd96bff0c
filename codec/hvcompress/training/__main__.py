"""`python -m hvcompress.training RECIPE --data DIR --out DIR`: see `trainer`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..batch import wait_briefly

wait_briefly()  # before torch is imported

from ..devices import pick_device  # noqa: E402
from ..errors import HvcompressError, OutputError  # noqa: E402
from .trainer import train  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hvcompress.training", description="Train a model from a recipe.")
    parser.add_argument("recipe", type=Path, help="TOML file: the network's sizes and the training settings")
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, searched recursively")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; resumed from where it stands")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--steps", type=int, help="stop the trunk at this step (default: only when interrupted)")
    parser.add_argument("--anneal", type=int, metavar="N", help="branch off and take the learning rate to 0 in N steps")
    arguments = parser.parse_args()
    try:
        train(
            arguments.recipe,
            arguments.data,
            arguments.out,
            device=pick_device(arguments.device),
            steps=arguments.steps,
            anneal=arguments.anneal,
        )
    except (HvcompressError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        print(f"hvcompress.training: {error}", file=sys.stderr)
        return getattr(error, "exit_code", OutputError.exit_code)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
