"""Training by several processes: two of them, on the CPU, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from test_training import folder, recipe, weights  # noqa: F401

import hvcompress
from hvcompress.training.ranks import Ranks

ROOT = Path(hvcompress.__file__).parents[1]
TIMEOUT = 300  # seconds: processes that do not find each other wait for ever

# Each process takes a step with its own batch. The first then does what one process with both batches would do.
STEP = """
import copy, sys
from pathlib import Path
import torch
from hvcompress.training import data, objective
from hvcompress.precision import autocast
from hvcompress.training.ranks import joined
from hvcompress.training.trainer import draw, read_recipe, start, train_step

recipe = read_recipe(Path(sys.argv[1]))
paths = sorted(Path(sys.argv[2]).iterdir())
crops = data.Crops(paths, recipe.patch, (1.0, 1.0), recipe.seed)
device = torch.device("cpu")
with joined(device) as (ranks, device):
    torch.manual_seed(0)
    run = start(recipe, crops, device)
    with torch.no_grad():
        for weight in run.model.parameters():
            weight.add_(0.01 * ranks.rank)
    ranks.share(run.model.parameters())
    alone = copy.deepcopy(run.model)
    images = [data.to_unit(crops.batch(number, 2), device) for number in range(2)]
    noises = [torch.Generator().manual_seed(number) for number in range(2)]
    train_step(run, recipe, images[ranks.rank], noises[ranks.rank], 6, ranks)
    assert ranks.any(ranks.rank == 1, device) and not ranks.any(False, device) and ranks.sum(3, device) == 6
    if ranks.leads:
        noises = [torch.Generator().manual_seed(number) for number in range(2)]
        exponent = recipe.weight_exponent
        for number in range(2):
            quality, offsets = draw(recipe, 2, len(recipe.model.latents), number)
            with autocast(device):
                outcome = objective.evaluate(
                    alone, images[number], quality, offsets, noise=noises[number], weight_exponent=exponent
                )
            (outcome.loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(alone.parameters(), recipe.clip)
        for (name, one), two in zip(alone.named_parameters(), run.model.parameters(), strict=True):
            if one.grad is not None:
                assert torch.allclose(one.grad, two.grad, rtol=1e-3, atol=1e-6), name
    weights = torch.cat([w.detach().flatten() for w in run.model.parameters()])
    gathered = [torch.empty_like(weights) for _ in range(2)]
    torch.distributed.all_gather(gathered, weights)
    assert torch.equal(*gathered)
    if ranks.leads:
        print("good")
"""


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT)


def test_gradients_are_averaged_and_weights_stay_equal(recipe, folder, tmp_path):  # noqa: F811
    script = tmp_path / "step.py"
    script.write_text(STEP)
    done = torchrun(str(script), str(recipe), str(folder))
    assert done.returncode == 0 and done.stdout == "good\n", done.stderr


def test_two_processes_train_resume_and_anneal(recipe, folder, tmp_path):  # noqa: F811
    def run(out: str, *more: str) -> subprocess.CompletedProcess:
        paths = [str(recipe), "--data", str(folder), "--out", str(tmp_path / out)]
        done = torchrun("-m", "hvcompress.training", *paths, *more)
        assert done.returncode == 0, done.stderr
        return done

    assert run("straight", "--steps", "6").stdout.count("4 photographs; from step 0") == 1
    run("broken", "--steps", "2")
    run("broken", "--steps", "6")
    left, right = weights(tmp_path / "straight"), weights(tmp_path / "broken")
    assert all(torch.equal(left[name], right[name]) for name in left)
    run("straight", "--anneal", "2")
    assert (tmp_path / "straight" / "anneal-6-2" / "finished").exists()


def test_alone_nothing_changes():
    ranks = Ranks()
    assert ranks.leads and [ranks.number(step) for step in range(3)] == [0, 1, 2]
    assert ranks.sum(5, torch.device("cpu")) == 5 and ranks.any(True, torch.device("cpu"))
    numbers = [Ranks(rank, 3).number(step) for step in range(4) for rank in range(3)]
    assert numbers == list(range(12))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals as Linux has them")
def test_one_process_that_is_asked_to_stop_stops_both(recipe, folder, tmp_path):  # noqa: F811
    """SIGTERM to torchrun reaches both, one sooner than the other; the checkpoint is that of a whole step."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "hvcompress.training", str(recipe), "--data", str(folder), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:
        too_late = threading.Timer(TIMEOUT, child.terminate)
        too_late.start()
        for line in child.stdout:
            if line.startswith("step 4:"):
                break
        too_late.cancel()
        child.terminate()
        rest = child.communicate(timeout=120)[0]
    assert "interrupted; saved at step" in rest
    step = int(rest.split("saved at step ")[1].split()[0])
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == step >= 4
