"""Make the immutable model folder from a training run.

    python -m hvcompress.training.export RUN --name NAME --data DIR --out FOLDER

Moves the decoder to integers and proves it exact, fits the frequency tables to what the model produces on training
photographs, stores the encoder as float16, computes fingerprint and self-test, and measures on the
held-out photographs what the grid costs.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..codec import Codec, Segment
from ..effort import level_of
from ..entropy import LayerCoder, Tables, gaussian_tables
from ..errors import HvcompressError, InputError
from ..exact import freeze, prove, to_integers
from ..model import ARCHITECTURE, CONFIG, WEIGHTS, ModelFolder, assemble, encoder_hash_of, fingerprint_of
from ..network import Config, HierarchicalVAE, count_parameters
from ..quality import LEVELS, lambda_of
from . import data
from .card import card
from .trainer import Recipe, read_recipe, validate

FIT_CROPS = 200  # training crops whose symbols shape the frequency tables


def tensors_of(model: HierarchicalVAE, tables: Tables) -> dict[str, Tensor]:
    """Everything that weights.safetensors holds."""
    tensors = {f"encoder.{name}": value.half().contiguous() for name, value in model.encoder.state_dict().items()}
    for part in ("topdown", "synthesis"):
        tensors |= {f"{part}.{name}": value for name, value in to_integers(getattr(model, part)).items()}
    tensors["entropy.reach"] = torch.from_numpy(tables.reach)
    tensors["entropy.frequencies"] = torch.from_numpy(np.concatenate(tables.frequencies))
    return tensors


def fit_tables(codec: Codec, crops: data.Crops) -> Tables:
    """Frequency tables from the symbols that a codec produces on training photographs, over all qualities."""
    coder, state_bits = LayerCoder(gaussian_tables()), level_of(1).state_bits
    histogram: list[np.ndarray] | None = None

    def use(segment: Segment) -> None:
        nonlocal histogram
        counts = coder.count(segment.levels, segment.indices, state_bits)
        histogram = counts if histogram is None else [a + b for a, b in zip(histogram, counts, strict=True)]

    for number in range(FIT_CROPS):
        image = crops.batch(10_000_000 + number, 1)[0].permute(1, 2, 0).numpy()
        quality = number * (LEVELS - 1) // (FIT_CROPS - 1)
        codec.analyse(image, quality, (0,) * codec.layers, use, state_bits=state_bits)
    return gaussian_tables(histogram)


def grid_cost(model: HierarchicalVAE, images: Tensor, recipe: Recipe) -> list[dict[str, float]]:
    """Rate and PSNR per validation quality, trained in floating point and moved to the grid."""
    frozen = copy.deepcopy(model)
    freeze(frozen.topdown)
    freeze(frozen.synthesis)
    rows = []
    for before, after in zip(validate(model, images, recipe), validate(frozen, images, recipe), strict=True):
        lam = lambda_of(before["quality"])
        # A loss of quality is worth lambda * dD bits: count it as rate.
        cost = (after["bpp"] - before["bpp"] + lam * 255.0**2 * (after["mse"] - before["mse"])) / before["bpp"]
        rows.append({**before, "grid_bpp": after["bpp"], "grid_psnr": after["psnr"], "grid_cost": cost})
    return rows


def write_folder(out: Path, name: str, tensors: dict[str, Tensor], network: dict, facts: dict) -> ModelFolder:
    """Write weights.safetensors and config.json; `facts` are further entries of the latter."""
    parts = assemble(tensors, network)
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    draft = ModelFolder(name, out, fingerprint_of(arrays, network), facts["description"], 0, {})
    config = {
        "name": name,
        "description": draft.description,
        "fingerprint": draft.fingerprint,
        "encoder_sha256": encoder_hash_of(arrays),
        "self_test": Codec(draft, parts, torch.device("cpu")).self_test(),
        "parameters": count_parameters([parts.encoder, parts.topdown, parts.synthesis]),
        "exactness": {"largest_sum_share": max(prove(parts.topdown), prove(parts.synthesis))},
        "network": network,
        **facts,
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS)
    (out / WEIGHTS).chmod(0o644)  # safetensors makes it private
    (out / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return replace(draft, parameters=config["parameters"], config=config)


def network_of(config: Config) -> dict:
    """The network's sizes as config.json holds them: JSON makes strings of the strides."""
    return {"architecture": ARCHITECTURE, **json.loads(json.dumps(asdict(config)))}


def export(run: Path, name: str, folder: Path, out: Path, notes: str = "") -> ModelFolder:
    """Write the model folder `out` from the EMA weights of the checkpoint in `run`; `notes` end its CARD.md.

    A branch may be unfinished, and the trunk itself may be exported too: the CARD says which steps were made.
    Raises InputError where the folder exists already: a model is immutable.
    """
    if out.exists():
        raise InputError(f"{out} exists already; a model folder is never changed")
    recipe = read_recipe(run / "recipe.toml")
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = HierarchicalVAE(recipe.model)
    model.load_state_dict(state["average"])
    model.eval().requires_grad_(False)
    training, held_out = data.split(data.find_images(folder), recipe.held_out)
    if not training:
        raise InputError(f"no images for training in {folder}")
    trunk, one_recipe, annealing = recipe, True, 0  # what made the steps before the branch, if this is one
    if state["decay_start"] is not None:
        annealing = state["step"] - state["decay_start"]
        path = run.resolve().parent / "recipe.toml"
        trunk = read_recipe(path) if path.exists() else recipe
        one_recipe = path.exists() and trunk == recipe
    network = network_of(recipe.model)

    draft = ModelFolder(name, out, "0" * 64, "", 0, {})
    codec = Codec(draft, assemble(tensors_of(model, gaussian_tables()), network), torch.device("cpu"))
    crops = data.Crops(training[::4], recipe.patch, recipe.downscale, recipe.seed)
    tensors = tensors_of(model, fit_tables(codec, crops))
    rows = grid_cost(model, data.centre_crops(held_out, recipe.patch), recipe)
    facts = {
        "description": f"photographs{' and drawings' if recipe.drawn_share else ''}, {state['step']} steps",
        "trained": {
            "continued_from": trunk.start,
            "steps": state["step"],
            "of_these_annealing": annealing,
            "annealing_planned": state["decay_steps"],
            "one_recipe": one_recipe,
            "batch": trunk.batch,
            "patch": trunk.patch,
            "anneal_batch": recipe.anneal_batch,
            "anneal_patch": recipe.anneal_patch,
            "photographs": len(data.large_enough(training, trunk.patch)),
            "anneal_photographs": len(data.large_enough(training, recipe.anneal_patch)),
            "hours": round(state["seconds"] / 3600, 2),
            "drawn_share": recipe.drawn_share,
            "date": str(date.today()),
        },
        "held_out_pictures": len(held_out),
        "held_out": [{key: round(value, 5) for key, value in row.items()} for row in rows],
    }
    written = write_folder(out, name, tensors, network, facts)
    shutil.copyfile(run / "recipe.toml", out / "recipe.toml")
    (out / "CARD.md").write_text(card(written.config, notes), encoding="utf-8")
    for row in rows:
        print(
            f"quality {row['quality']:3d}: {row['bpp']:.3f} bpp {row['psnr']:.2f} dB; on the grid "
            f"{row['grid_bpp']:.3f} bpp {row['grid_psnr']:.2f} dB, cost {100 * row['grid_cost']:+.2f} % of the rate"
        )
    share = written.config["exactness"]["largest_sum_share"]
    print(f"{out}: fingerprint {written.fingerprint[:16]}, largest sum {share:.2f} of what is exact")
    return written


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hvcompress.training.export", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder with checkpoint.pt and recipe.toml")
    parser.add_argument("--name", required=True, help="name of the model")
    parser.add_argument("--data", type=Path, required=True, help="the folder of photographs that it was trained on")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--notes", type=Path, help="Markdown to end the CARD with: data sources, limits")
    arguments = parser.parse_args()
    try:
        notes = arguments.notes.read_text(encoding="utf-8") if arguments.notes else ""
        export(arguments.run, arguments.name, arguments.data, arguments.out, notes)
    except (HvcompressError, OSError) as error:
        print(f"hvcompress export: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
