"""Train a model from a recipe; resumable to the step.

    python -m hvcompress.training RECIPE --data DIR --out DIR            the trunk: constant learning rate, for ever
    python -m hvcompress.training RECIPE --data DIR --out DIR --anneal N  a branch of N steps down to zero, to ship
    torchrun --nproc-per-node N -m hvcompress.training ...                either on N GPUs, or on several machines

The schedule is warm-up, stable, decay: the trunk may go on over many sittings, and whenever weights are to be shipped
a short annealing branch starts from its latest checkpoint. So no training time is thrown away.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError, UsageError
from ..exact import train_as_stored
from ..files import reason
from ..model import find_model
from ..network import MAX_STRIDE, Config, HierarchicalVAE, count_parameters
from ..precision import autocast, fast_precision
from ..quality import LEVELS
from . import data, objective
from .average import follow
from .klt import start_as_klt
from .muon import Muon
from .ranks import ALONE, Ranks, joined
from .warm import start_from_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run but the data itself."""

    model: Config
    start: str = ""  # name or folder of a model to continue from; empty: the principal axes of photographs
    seed: int = 1
    batch: int = 8
    patch: int = 256  # pixels on each side
    anneal_batch: int = 4  # the annealing branch sees fewer, larger patches: whole pictures have few borders
    anneal_patch: int = 384
    downscale: tuple[float, float] = (0.6, 1.0)  # range of the factor by which photographs are shrunk
    drawn_share: float = 0.0  # of the crops: screens, text and plots, drawn instead of photographed
    held_out: int = 40  # photographs kept for validation
    muon_lr: float = 1.2e-3
    adam_lr: float = 1e-3
    warmup: int = 200
    clip: float = 1.0  # gradient norm
    ema: float = 0.999
    weight_exponent: float = 0.45
    offset_share: float = 0.25  # share of the images that train with per-layer offsets
    offset_range: int = 14  # in quality steps; 14 is a beta of about 2
    beta_tc: dict[int, float] = field(default_factory=dict)  # layer (1 is the coarsest) -> weight of total correlation
    validate_every: int = 1000
    checkpoint_seconds: float = 240.0


def read_recipe(path: Path) -> Recipe:
    """From TOML. Raises InputError where the file cannot be read, UsageError where it makes no sense.

    An unknown name makes none, so that a misspelt setting is never silently ignored.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from error
    except ValueError as error:  # TOML's own kind of error, or text that is not UTF-8
        raise UsageError(f"{path}: not TOML: {error}") from error
    tables = {name: values.get(name, {}) for name in ("model", "training")}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {name} must be a table")
    if not tables["model"]:
        raise UsageError(f"{path}: there is no [model]")
    training = tables["training"]
    known = {field.name for field in fields(Recipe)} - {"model"}
    unknown = (set(values) - set(tables)) | (set(training) - known)
    if unknown:
        raise UsageError(f"{path}: unknown settings: {', '.join(sorted(unknown))}")
    try:
        if "downscale" in training:
            training["downscale"] = tuple(training["downscale"])
        if "beta_tc" in training:
            training["beta_tc"] = {int(layer): float(beta) for layer, beta in training["beta_tc"].items()}
        recipe = Recipe(model=Config.from_dict(tables["model"]), **training)
    except KeyError as error:
        raise UsageError(f"{path}: [model] lacks {error}") from error
    except (AttributeError, TypeError, ValueError) as error:  # a value of the wrong kind
        raise UsageError(f"{path}: {reason(error)}") from error
    for name in ("batch", "patch", "anneal_batch", "anneal_patch", "held_out", "warmup", "validate_every"):
        value = getattr(recipe, name)
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{path}: {name} must be a whole number above 0, which {value!r} is not")
    for name in ("patch", "anneal_patch"):
        if getattr(recipe, name) % MAX_STRIDE:
            raise UsageError(f"{path}: {name} must be a multiple of {MAX_STRIDE}")
    if not isinstance(recipe.drawn_share, (int, float)) or not 0 <= recipe.drawn_share <= 1:
        raise UsageError(f"{path}: drawn_share must be a number between 0 and 1, which {recipe.drawn_share!r} is not")
    for layer, beta in recipe.beta_tc.items():
        if not 1 <= layer <= len(recipe.model.latents) or not beta >= 0:
            raise UsageError(f"{path}: beta_tc has a weight for layer {layer} of {beta:g}")
    return recipe


def learning_rate(step: int, warmup: int, decay_start: int | None, decay_steps: int) -> float:
    """Factor on the learning rates: linear up, constant, and in an annealing branch linear down to zero."""
    factor = min(1.0, (step + 1) / warmup)
    if decay_start is not None:
        factor *= max(0.0, 1.0 - (step - decay_start) / decay_steps)
    return factor


@dataclass
class Run:
    """The state that a checkpoint holds."""

    model: HierarchicalVAE
    average: HierarchicalVAE  # EMA of the weights
    muon: Muon
    adam: torch.optim.Adam
    step: int = 0
    seconds: float = 0.0  # spent training, over all sittings
    decay_start: int | None = None
    decay_steps: int = 0

    def save(self, path: Path) -> None:
        """Atomically."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "decay_start": self.decay_start,
            "decay_steps": self.decay_steps,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.decay_start, self.decay_steps = state["decay_start"], state["decay_steps"]


def fresh(recipe: Recipe, initialise: Callable[[HierarchicalVAE], None], device: torch.device) -> Run:
    """A run before its first step: weights from the recipe's seed, then changed in place by `initialise`."""
    torch.manual_seed(recipe.seed)
    model = HierarchicalVAE(recipe.model)
    initialise(model)
    average = HierarchicalVAE(recipe.model)
    average.load_state_dict(model.state_dict())
    model.to(device, memory_format=torch.channels_last)
    average.to(device, memory_format=torch.channels_last).requires_grad_(False)
    weights = [p for p in model.parameters() if p.dim() == 4]
    others = [p for p in model.parameters() if p.dim() != 4]
    return Run(
        model,
        average,
        Muon(weights, recipe.muon_lr, precision=fast_precision(device)),
        torch.optim.Adam(others, recipe.adam_lr, betas=(0.9, 0.99)),
    )


def start(recipe: Recipe, crops: data.Crops, device: torch.device) -> Run:
    """A new run: from the model that the recipe names, or from the principal axes of photographs."""
    if recipe.start:
        return fresh(recipe, partial(start_from_model, folder=find_model(recipe.start)), device)
    photographs = data.to_unit(crops.batch(0, 64), torch.device("cpu"))
    return fresh(recipe, partial(start_as_klt, images=photographs), device)


def resumed(recipe: Recipe, checkpoint: Path, device: torch.device) -> Run:
    """A run as it was when it was saved."""
    run = fresh(recipe, lambda model: None, device)
    run.load(checkpoint)
    return run


def draw(recipe: Recipe, batch: int, layers: int, number: int) -> tuple[Tensor, Tensor]:
    """Qualities (B,) and offsets (B, L) of the batch of that number, a function of it, the seed and the size alone."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
    # Stratified: every batch covers the whole quality range evenly.
    places = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    quality = (places * LEVELS).long().clamp(0, LEVELS - 1)
    r = recipe.offset_range
    offsets = torch.randint(-r, r + 1, (batch, layers), generator=generator)
    plain = torch.rand(batch, 1, generator=generator) >= recipe.offset_share
    return quality, offsets.masked_fill(plain, 0)


def train_step(
    run: Run, recipe: Recipe, image: Tensor, noise: torch.Generator, images: int = 0, ranks: Ranks = ALONE
) -> tuple[objective.Outcome, bool]:
    """One optimizer step on a batch (B, 3, H, W) out of so many images, or on those of all processes.

    Also returns whether the weights were changed: they stay where the gradient is not finite.
    """
    device = image.device
    layers = len(recipe.model.latents)
    quality, offsets = (t.to(device) for t in draw(recipe, len(image), layers, ranks.number(run.step)))
    factor = learning_rate(run.step, recipe.warmup, run.decay_start, run.decay_steps)
    run.muon.param_groups[0]["lr"] = recipe.muon_lr * factor
    run.adam.param_groups[0]["lr"] = recipe.adam_lr * factor
    with autocast(device):
        outcome = objective.evaluate(
            run.model,
            image,
            quality,
            offsets,
            noise=noise,
            weight_exponent=recipe.weight_exponent,
            beta_tc=recipe.beta_tc,
            images=images,
        )
    run.muon.zero_grad()
    run.adam.zero_grad()
    outcome.loss.backward()
    ranks.average_gradients(run.model)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip)
    finite = bool(torch.isfinite(norm))
    if finite:
        run.muon.step()
        run.adam.step()
    decay = min(recipe.ema, (run.step + 1) / (run.step + 10))
    follow(run.average, run.model, decay)
    run.step += 1
    return outcome, finite


VALIDATION_QUALITIES = (5, 20, 35, 50, 65, 80, 95)


@torch.no_grad()
def validate(model: HierarchicalVAE, images: Tensor, recipe: Recipe, batch: int = 8) -> list[dict[str, float]]:
    """Rate and PSNR of quantized latents on held-out photographs (N, 3, P, P), for a few qualities."""
    layers = len(recipe.model.latents)
    rows = []
    for level in VALIDATION_QUALITIES:
        rates, errors = [], []
        for chunk in images.split(batch):
            n = len(chunk)
            quality = torch.full((n,), level, device=images.device)
            offsets = torch.zeros(n, layers, dtype=torch.long, device=images.device)
            chunk = chunk.contiguous(memory_format=torch.channels_last)
            outcome = objective.evaluate(
                model, chunk, quality, offsets, noise=None, weight_exponent=recipe.weight_exponent
            )
            rates.append(outcome.rates)
            errors.append(outcome.mse)
        rate, mse = torch.cat(rates).mean(0), torch.cat(errors)  # (L,), (N,)
        row = {"quality": level, "bpp": rate.sum().item(), "psnr": (-10 * torch.log10(mse)).mean().item()}
        row["mse"] = mse.mean().item()
        row |= {f"bpp_{layer + 1}": value for layer, value in enumerate(rate.tolist())}
        rows.append(row)
    return rows


def append_csv(path: Path, row: dict) -> None:
    """Append a row; the first writes the header."""
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def drop_later_rows(path: Path, step: int) -> None:
    """Drop the rows of steps after `step`: a run that goes on from an older checkpoint makes them again."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        rows = list(csv.reader(file))  # none where a kill came before the first was written
    kept = rows[:1] + [row for row in rows[1:] if row and row[0].isdigit() and int(row[0]) <= step]
    if len(kept) < len(rows):
        part = path.with_suffix(".part")
        with open(part, "w", newline="") as file:
            csv.writer(file).writerows(kept)
        os.replace(part, path)


def plot_validation(path: Path, rows: list[dict[str, float]], step: int) -> None:
    """RD picture of the validation photographs. Does nothing where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4.5))
    axes.plot([row["bpp"] for row in rows], [row["psnr"] for row in rows], "o-")
    axes.set(xlabel="bits per pixel (estimated)", ylabel="PSNR [dB]", title=f"held-out photographs, step {step}")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def folder_of(out: Path, anneal: int | None) -> Path:
    """Where the run is kept: the trunk in `out`; a branch in a folder of its own, an unfinished one or a new one."""
    if anneal is None:
        return out
    branches = [path.parent for path in out.glob(f"anneal-*-{anneal}/checkpoint.pt")]
    unfinished = [branch for branch in branches if not (branch / "finished").exists()]
    if unfinished:
        return max(unfinished, key=lambda branch: int(branch.name.split("-")[1]))
    trunk = out / "checkpoint.pt"
    if not trunk.exists():
        raise InputError(f"{trunk} is not there: train the trunk before annealing it")
    step = torch.load(trunk, map_location="cpu", weights_only=True, mmap=True)["step"]
    branch = out / f"anneal-{step}-{anneal}"
    if (branch / "finished").exists():
        raise UsageError(
            f"{branch} is finished already; train the trunk further, or anneal for another number of steps"
        )
    return branch


def check_recipe(recipe: Recipe, path: Path, out: Path, where: Path) -> None:
    """Raises UsageError unless the run in `where`, a branch of the trunk in `out` or that itself, may use the recipe.

    A run goes on with the recipe that it was started with. A new branch may have other settings than its trunk, say
    learning rates, but not another network, nor other photographs held out: the trunk may have trained on those.
    """
    kept, trunk = where / "recipe.toml", out / "recipe.toml"
    if kept.exists():
        if read_recipe(kept) != recipe:
            raise UsageError(f"{path} differs from {kept}, with which this run was started")
    elif trunk.exists():
        wanted = read_recipe(trunk)
        if (wanted.model, wanted.held_out) != (recipe.model, recipe.held_out):
            raise UsageError(f"{path}: [model] and held_out of a branch must be those of its trunk, {trunk}")


def prepare(recipe: Recipe, crops: data.Crops, out: Path, where: Path, device: torch.device, anneal: int | None) -> Run:
    """The run in `where`, resumed or started; a new branch starts from the trunk in `out`."""
    if (where / "checkpoint.pt").exists():
        return resumed(recipe, where / "checkpoint.pt", device)
    if anneal is None:
        return start(recipe, crops, device)
    run = resumed(recipe, out / "checkpoint.pt", device)
    run.decay_start, run.decay_steps = run.step, anneal
    return run


class Reporter:
    """What is told and kept of a run: a line and a row now and then, validation, checkpoints."""

    def __init__(self, recipe: Recipe, where: Path, validation: Tensor):
        """validation: held-out photographs (N, 3, P, P) in [0, 1]."""
        self._recipe, self._where, self._validation = recipe, where, validation
        self._live = sys.stderr.isatty()
        self._mean: dict[str, float] = {}
        self._saved = time.monotonic()

    def after_step(self, run: Run, outcome: objective.Outcome, stepped: bool, at_end: bool) -> None:
        """stepped: whether the step changed the weights."""
        now = {"loss": outcome.loss.item(), "bpp": outcome.rates.sum(1).mean().item()}
        now["psnr"] = (-10 * torch.log10(outcome.mse)).mean().item()
        now |= {f"bpp_{i + 1}": value for i, value in enumerate(outcome.rates.mean(0).tolist())}
        if math.isfinite(now["loss"]):
            self._mean = {key: value + 0.99 * (self._mean.get(key, value) - value) for key, value in now.items()}
        if not stepped:
            print(f"step {run.step}: the gradient is not finite; the step was skipped", flush=True)
        mean, live = self._mean, self._live
        if mean and (live or run.step % 100 == 0):
            line = f"step {run.step}  loss {mean['loss']:.3f}  {mean['bpp']:.3f} bpp  {mean['psnr']:.2f} dB"
            line += f"  {run.seconds / 3600:.2f} h"
            print(f"\r{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
        if mean and run.step % 50 == 0:
            append_csv(self._where / "log.csv", {"step": run.step, "seconds": round(run.seconds, 1), **mean})
        if run.step % self._recipe.validate_every == 0 or at_end:
            self._validate(run)
        if time.monotonic() - self._saved > self._recipe.checkpoint_seconds:
            run.save(self._where / "checkpoint.pt")
            self._saved = time.monotonic()

    def _validate(self, run: Run) -> None:
        rows = validate(run.average, self._validation, self._recipe)
        for row in rows:
            append_csv(self._where / "validation.csv", {"step": run.step, **row})
        plot_validation(self._where / "validation.png", rows, run.step)
        print(f"\nstep {run.step}: " + "  ".join(f"{r['bpp']:.3f}/{r['psnr']:.2f}" for r in rows), flush=True)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and a polite kill set, so that a step is never left half done."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def train(
    recipe_path: Path, folder: Path, out: Path, *, device: torch.device, steps: int | None, anneal: int | None
) -> Path:
    """Train until `steps` (None: until interrupted), or to the end of an annealing branch. Returns the run's folder."""
    if anneal is not None and anneal < 1:
        raise UsageError(f"a branch of {anneal} steps makes no sense")
    recipe = read_recipe(recipe_path)
    training, held_out = data.split(data.find_images(folder), recipe.held_out)
    if not training:
        raise InputError(f"no images for training in {folder}")
    batch, patch = (recipe.batch, recipe.patch) if anneal is None else (recipe.anneal_batch, recipe.anneal_patch)
    with joined(device) as (ranks, device):
        if len(training) < ranks.count:
            raise InputError(f"{len(training)} images for training are too few for {ranks.count} processes")
        where = folder_of(out, anneal)
        check_recipe(recipe, recipe_path, out, where)
        where.mkdir(parents=True, exist_ok=True)
        own = training[ranks.rank :: ranks.count]
        crops = data.Crops(own, patch, recipe.downscale, recipe.seed, recipe.drawn_share)
        run = prepare(recipe, crops, out, where, device, anneal)
        if ranks.sum(run.step, device) != ranks.count * run.step:
            raise InputError(f"{where}: not all processes see the same checkpoint; it must lie on shared storage")
        ranks.share([*run.model.parameters(), *run.average.parameters()])  # from here on no process is behind
        if run.decay_start is not None:  # what is to be shipped learns to live with stored weights
            for model in (run.model, run.average):
                train_as_stored(model.topdown)
                train_as_stored(model.synthesis)
        end = run.decay_start + run.decay_steps if run.decay_start is not None else steps
        images, reporter = ranks.sum(len(crops.images), device), None
        if ranks.leads:
            if not (where / "recipe.toml").exists():
                shutil.copyfile(recipe_path, where / "recipe.toml")
            for name in ("log.csv", "validation.csv"):
                drop_later_rows(where / name, run.step)
            reporter = Reporter(recipe, where, data.centre_crops(held_out, recipe.patch).to(device))
            million = count_parameters([run.model]) / 1e6
            print(f"{million:.2f} M parameters; {images} photographs; from step {run.step} in {where}", flush=True)
        noise = torch.Generator(device)
        numbered = crops.batches(ranks.number(run.step), batch, ranks.count)
        with stop_requests() as stop, closing(numbered) as batches:
            stopped = False
            while (end is None or run.step < end) and not stopped:
                began = time.monotonic()
                noise.manual_seed(recipe.seed * 7_000_003 + ranks.number(run.step))
                outcome, stepped = train_step(run, recipe, data.to_unit(next(batches), device), noise, images, ranks)
                run.seconds += time.monotonic() - began
                if reporter is not None:
                    reporter.after_step(run, outcome, stepped, at_end=run.step == end)
                stopped = ranks.any(stop.is_set(), device)
            if ranks.leads:
                run.save(where / "checkpoint.pt")
            if stopped:
                if ranks.leads:
                    print(f"\ninterrupted; saved at step {run.step}", flush=True)
                raise KeyboardInterrupt
        if anneal is not None and ranks.leads:
            (where / "finished").touch()
    return where
