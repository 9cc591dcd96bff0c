"""beta-VAE against beta-TCVAE on rendered sprites: does less total correlation go with more disentangled latents?

    python benchmarks/disentanglement.py DATA_FOLDER
    python benchmarks/disentanglement.py DATA_FOLDER --seeds 1 --epochs 1 --limit 4000 --out /tmp/pilot   # a pilot

The experiments of Chen et al. 2018, "Isolating sources of disentanglement in variational autoencoders", at a small
scale: 41,472 sprites (shape, scale, orientation, two positions) at 32 x 32, a perceptron of width 256, 10 latents.
First with all sprites equally likely, then with the two positions correlated, the likeliest pair 4 times as likely as
the least likely. Total correlation comes from the full-data estimator. The MIG is the authors', from sampled codes and
the factors that they use (not shape); beside it is the one from histograms of means, with all factors.

Results are runs.csv, verdicts.txt and tc_mig.png. Runs that runs.csv has already are not repeated: delete it, or name
another --out, to begin anew.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hvcompress.analysis.information import (  # noqa: E402
    decompose,
    gaussian_kl,
    histogram_information_gap,
    information_gap,
    minibatch_weighted,
    sample,
    total_correlation_penalty,
)
from probes import rank_correlation  # noqa: E402

DATA = "procsprites_3x6x9x16x16.npz"
SIDE = 32
PLACES = 16  # values of either position
FACTORS = ("shape", "scale", "orientation", "posX", "posY")
LATENTS = 10
WIDTH = 256
BATCH = 256
LEARNING_RATE = 1e-3
BETAS = (4.0, 8.0)
CORRELATED_BETA = 4.0
RATIO = 4.0  # of the likeliest pair of positions to the least likely
RATE_SAMPLES = 2048  # codes for the parts of the rate: a standard error of about 0.03 nats
GAP_SAMPLES = 1000  # codes for each entropy of the MIG: about 0.02 nats


@dataclass(frozen=True)
class Run:
    """One training. The loss is reconstruction + kl_beta KL + (tc_beta - 1) TC."""

    kl_beta: float
    tc_beta: float
    weighting: str
    seed: int
    epochs: int
    images: int

    @property
    def beta(self) -> float:
        return max(self.kl_beta, self.tc_beta)

    @property
    def label(self) -> str:
        if self.beta == 1.0:
            return "VAE"
        return f"{'beta-VAE' if self.kl_beta > 1 else 'beta-TCVAE'} {self.beta:g}"


@dataclass(frozen=True)
class Figures:
    """Of one run. Nats per image, expectations over p(n)."""

    reconstruction: float  # -log p(x|z)
    kl: float
    index_code_mi: float
    total_correlation: float
    dimension_wise_kl: float
    mig: float
    mig_histogram: float
    seconds: float

    @property
    def loss(self) -> float:
        """The negative ELBO."""
        return self.reconstruction + self.kl


@dataclass(frozen=True)
class Sprites:
    images: Tensor  # (N, SIDE * SIDE) uint8, 0..4
    factors: Tensor  # (N, 5) int64


# --------------------------------------------------------------------------------------------------------------------
# Data


def read_sprites(folder: Path, limit: int | None) -> Sprites:
    """The sprites of the folder, or `limit` of them, chosen at random but always the same."""
    with np.load(folder / DATA) as data:
        packed, factors = data["imgs_packed"], torch.from_numpy(data["factors"].astype(np.int64))
    if limit is not None:
        chosen = torch.randperm(len(factors), generator=torch.Generator().manual_seed(0))[:limit].sort().values
        packed, factors = packed[chosen.numpy()], factors[chosen]
    pixels = np.unpackbits(packed, axis=-1)  # (N, 64, 64)
    # Of each square of four pixels, how many are set: grey at edges, which the Bernoulli likelihood takes as well.
    squares = pixels.reshape(len(pixels), SIDE, 2, SIDE, 2).sum((2, 4), dtype=np.uint8)
    return Sprites(torch.from_numpy(squares).flatten(1), factors)


def _uniform(x: Tensor, y: Tensor) -> Tensor:
    return torch.ones_like(x)


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    """Near the diagonal is likely: positions go together."""
    return RATIO - (RATIO - 1) * (x - y).abs()


def _corner(x: Tensor, y: Tensor) -> Tensor:
    """Likely towards one corner: skewed, and slightly dependent."""
    return 1 + (RATIO - 1) * x * y


WEIGHTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "uniform": _uniform,
    "diagonal": _diagonal,
    "corner": _corner,
}
CORRELATED = ("diagonal", "corner")


def weights_of(sprites: Sprites, weighting: str) -> Tensor:
    """(N,) p(n)."""
    x, y = (sprites.factors[:, FACTORS.index(name)].float() / (PLACES - 1) for name in ("posX", "posY"))
    weight = WEIGHTINGS[weighting](x, y)
    return weight / weight.sum()


# --------------------------------------------------------------------------------------------------------------------
# One run


class Autoencoder(nn.Module):
    """q(z|x) and p(x|z), perceptrons with two hidden layers."""

    def __init__(self, mean_pixel: float):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(SIDE * SIDE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * LATENTS)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, SIDE * SIDE)
        )
        # Start at the mean picture's brightness; otherwise the first epoch goes into learning that sprites are small.
        nn.init.constant_(self.decoder[-1].bias, math.log(mean_pixel / (1 - mean_pixel)))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, SIDE * SIDE) in [0, 1] -> means and log-deviations, (B, K) each."""
        mean, log_std = self.encoder(x).chunk(2, 1)
        return mean, log_std

    def reconstruction(self, z: Tensor, x: Tensor) -> Tensor:
        """(B,) -log p(x|z)."""
        return F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)


def pixels_of(sprites: Sprites, chosen: Tensor) -> Tensor:
    """(B, SIDE * SIDE) in [0, 1]."""
    return sprites.images[chosen].float() / 4


def train(run: Run, sprites: Sprites, p: Tensor, report: Callable[[str], None]) -> Autoencoder:
    """Minimise the run's loss. Batches are drawn from p(n)."""
    torch.manual_seed(run.seed)  # the initial weights
    generator = torch.Generator().manual_seed(run.seed)  # order and noise
    count = len(p)
    model = Autoencoder(sprites.images.float().mean().item() / 4)
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    uniform = bool((p == p[0]).all())
    for epoch in range(run.epochs):
        order = torch.randperm(count, generator=generator)
        if not uniform:
            order = torch.multinomial(p, count, replacement=True, generator=generator)
        total = 0.0
        for chosen in order.split(BATCH):
            x = pixels_of(sprites, chosen)
            mean, log_std = model.posterior(x)
            z = sample(mean, log_std, generator)
            loss = model.reconstruction(z, x).mean() + run.kl_beta * gaussian_kl(mean, log_std).sum(1).mean()
            if run.tc_beta != 1.0:
                # MWS, the paper's choice: it holds for batches drawn from any p(n), and only its gradient is used.
                aggregate = minibatch_weighted(z, mean, log_std, count)
                penalty = total_correlation_penalty(aggregate, run.tc_beta)
                loss = loss + penalty
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            # Without the penalty, whose value means nothing.
            total += (loss - penalty if run.tc_beta != 1.0 else loss).item() * len(chosen)
        report(f"epoch {epoch + 1}/{run.epochs}, loss without TC {total / count:.2f}")
    return model


@torch.no_grad()
def evaluate(model: Autoencoder, sprites: Sprites, p: Tensor, seed: int) -> dict[str, float]:
    """All of `Figures` except the time, over the whole data set."""
    generator = torch.Generator().manual_seed(1000 + seed)
    means, log_stds, codes, errors = [], [], [], []
    for chosen in torch.arange(len(p)).split(2048):
        x = pixels_of(sprites, chosen)
        mean, log_std = model.posterior(x)
        z = sample(mean, log_std, generator)
        for values, value in zip(
            (means, log_stds, codes, errors), (mean, log_std, z, model.reconstruction(z, x)), strict=True
        ):
            values.append(value)
    mean, log_std, z, error = torch.cat(means), torch.cat(log_stds), torch.cat(codes), torch.cat(errors)
    index = torch.randperm(len(p), generator=generator)[:RATE_SAMPLES]
    rate = decompose(z[index], mean, log_std, index, p)
    used = sprites.factors[:, [i for i, name in enumerate(FACTORS) if name != "shape"]]
    gap = information_gap(z, mean, log_std, used, p, samples=GAP_SAMPLES, generator=generator)
    return {
        "reconstruction": (p * error).sum().item(),
        "kl": rate.kl,
        "index_code_mi": rate.index_code_mi,
        "total_correlation": rate.total_correlation,
        "dimension_wise_kl": rate.dimension_wise_kl,
        "mig": gap.score,
        "mig_histogram": histogram_information_gap(mean, sprites.factors, p).score,
    }


# --------------------------------------------------------------------------------------------------------------------
# All runs


def plan(seeds: int, epochs: int, images: int) -> list[Run]:
    """Seed by seed, so that a study that is cut short has something of everything."""
    runs = []
    for seed in range(seeds):
        runs.append(Run(1.0, 1.0, "uniform", seed, epochs, images))
        for beta in BETAS:
            runs += [Run(beta, 1.0, "uniform", seed, epochs, images), Run(1.0, beta, "uniform", seed, epochs, images)]
        for weighting in CORRELATED:
            runs.append(Run(CORRELATED_BETA, 1.0, weighting, seed, epochs, images))
            runs.append(Run(1.0, CORRELATED_BETA, weighting, seed, epochs, images))
    return runs


def read_runs(path: Path) -> dict[Run, Figures]:
    """What the CSV has. Raises ValueError where its columns are not ours."""
    if not path.is_file():
        return {}
    done = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                run = Run(
                    kl_beta=float(row["kl_beta"]),
                    tc_beta=float(row["tc_beta"]),
                    weighting=row["weighting"],
                    seed=int(row["seed"]),
                    epochs=int(row["epochs"]),
                    images=int(row["images"]),
                )
                done[run] = Figures(**{name: float(row[name]) for name in Figures.__dataclass_fields__})
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is not a list of runs of this program") from error
    return done


def write_runs(path: Path, done: dict[Run, Figures]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".csv.part")
    with whole.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*Run.__dataclass_fields__, *Figures.__dataclass_fields__], lineterminator="\n")
        writer.writeheader()
        for run, figures in done.items():
            writer.writerow(asdict(run) | {name: f"{value:.6g}" for name, value in asdict(figures).items()})
    whole.replace(path)


def perform(runs: list[Run], sprites: Sprites, done: dict[Run, Figures], path: Path) -> dict[Run, Figures]:
    """The runs' figures. Those that `done` lacks are trained, added to it, and written to the CSV as they finish."""
    missing = [run for run in runs if run not in done]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them done before", file=sys.stderr)
    began = time.monotonic()
    for number, run in enumerate(missing, 1):
        head = f"{number}/{len(missing)} {run.label}, {run.weighting}, seed {run.seed}"
        started = time.monotonic()
        p = weights_of(sprites, run.weighting)
        model = train(
            run, sprites, p, lambda line, head=head: print(f"{head}: {line}", end="\r", file=sys.stderr, flush=True)
        )
        figures = evaluate(model, sprites, p, run.seed)
        done[run] = Figures(**figures, seconds=time.monotonic() - started)
        write_runs(path, done)
        left = (time.monotonic() - began) / number * (len(missing) - number) / 60
        print(
            f"{head}: TC {done[run].total_correlation:.2f}, MIG {done[run].mig:.3f}, -ELBO {done[run].loss:.1f}, "
            f"{done[run].seconds:.0f} s; {left:.0f} min left    ",
            file=sys.stderr,
            flush=True,
        )
    return {run: done[run] for run in runs}


# --------------------------------------------------------------------------------------------------------------------
# What they say


@dataclass(frozen=True)
class Verdict:
    claim: str
    holds: bool
    numbers: str

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}  {self.claim}\n       {self.numbers}"


def verdicts(done: dict[Run, Figures]) -> list[Verdict]:
    """Five claims, on means over seeds."""

    def mean(name: str, kl_beta: float, tc_beta: float, weighting: str = "uniform") -> float:
        wanted = (kl_beta, tc_beta, weighting)
        values = [
            getattr(figures, name)
            for run, figures in done.items()
            if (run.kl_beta, run.tc_beta, run.weighting) == wanted
        ]
        return float(np.mean(values))

    falling = [mean("total_correlation", 1.0, beta) for beta in (1.0, *BETAS)]
    found = [
        Verdict(
            "beta-TCVAE: total correlation falls as beta rises",
            all(b < a for a, b in zip(falling, falling[1:], strict=False)),
            "  ".join(f"beta {beta:g}: {tc:.3f}" for beta, tc in zip((1.0, *BETAS), falling, strict=True)),
        )
    ]
    pairs = [
        (beta, name, mean(attribute, 1.0, beta), mean(attribute, beta, 1.0))
        for beta in BETAS
        for name, attribute in (("-ELBO", "loss"), ("reconstruction", "reconstruction"))
    ]
    found.append(
        Verdict(
            "at equal beta, beta-TCVAE has the better ELBO and the better reconstruction",
            all(ours < theirs for _, _, ours, theirs in pairs),
            "  ".join(f"beta {beta:g} {name}: {ours:.1f} to {theirs:.1f}" for beta, name, ours, theirs in pairs),
        )
    )
    plain = mean("mig", 1.0, 1.0)
    best_tc, best_vae = max(mean("mig", 1.0, b) for b in BETAS), max(mean("mig", b, 1.0) for b in BETAS)
    found.append(
        Verdict(
            "MIG: the best beta-TCVAE is no worse than the VAE, and than the best beta-VAE less 0.02",
            best_tc >= plain and best_tc >= best_vae - 0.02,
            f"beta-TCVAE {best_tc:.3f}  VAE {plain:.3f}  beta-VAE {best_vae:.3f}",
        )
    )
    uniform = [figures for run, figures in done.items() if run.weighting == "uniform"]
    rho = rank_correlation([f.total_correlation for f in uniform], [f.mig for f in uniform])
    found.append(
        Verdict(
            "total correlation and MIG are negatively related over the runs",
            rho < 0,
            f"Spearman {rho:.2f} over {len(uniform)} runs",
        )
    )
    gaps = [
        (name, mean("mig", 1.0, CORRELATED_BETA, name), mean("mig", CORRELATED_BETA, 1.0, name)) for name in CORRELATED
    ]
    found.append(
        Verdict(
            f"with correlated positions, beta-TCVAE has the higher MIG (beta {CORRELATED_BETA:g})",
            all(ours > theirs for _, ours, theirs in gaps),
            "  ".join(f"{name}: {ours:.3f} to {theirs:.3f}" for name, ours, theirs in gaps),
        )
    )
    return found


def table(done: dict[Run, Figures]) -> str:
    """Means over seeds."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for run, figures in done.items():
        groups.setdefault((run.weighting, run.label), []).append(figures)
    lines = [f"{'':22}  -ELBO  recon     KL     MI     TC     DW    MIG  MIG (histogram)"]
    for (weighting, label), found in groups.items():
        names = ("loss", "reconstruction", "kl", "index_code_mi", "total_correlation", "dimension_wise_kl")
        rates = "  ".join(f"{np.mean([getattr(f, name) for f in found]):5.1f}" for name in names[:2])
        parts = "  ".join(f"{np.mean([getattr(f, name) for f in found]):5.2f}" for name in names[2:])
        gap, histogram = np.mean([f.mig for f in found]), np.mean([f.mig_histogram for f in found])
        lines.append(f"{weighting:9} {label:12}  {rates}  {parts}  {gap:5.3f}  {histogram:5.3f}")
    return "\n".join(lines)


def draw(done: dict[Run, Figures], path: Path) -> None:
    """Total correlation against MIG, a mark per run. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"VAE": "#7f7f7f", "beta-VAE": "#1f5fb4", "beta-TCVAE": "#d62728"}
    marks = {"uniform": "o", "diagonal": "D", "corner": "^"}
    figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
    groups: dict[tuple[str, str], list[Figures]] = {}
    for run, figures in done.items():
        groups.setdefault((run.weighting, run.label), []).append(figures)
    for (weighting, label), found in groups.items():
        family, _, beta = label.partition(" ")
        ax.scatter(
            [f.total_correlation for f in found], [f.mig for f in found], color=colours[family],
            marker=marks[weighting], s=24 + 8 * float(beta or 1), alpha=0.85, label=f"{label}, {weighting}",
        )  # fmt: skip
    ax.set(xlabel="total correlation, nats (full data)", ylabel="MIG (sampled codes)")
    ax.grid(color="#e4e4e4", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/disentanglement.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DATA_FOLDER", help=f"it holds {DATA}")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind (2)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the sprites (20)")
    parser.add_argument("--limit", type=int, help="sprites to take, chosen at random (all)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "disentanglement", metavar="DIR")
    options = parser.parse_args()
    if options.seeds < 1 or options.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")
    if options.limit is not None and options.limit < 2 * BATCH:
        parser.error(f"--limit must be at least {2 * BATCH}")
    if not (options.folder / DATA).is_file():
        parser.error(f"no {DATA} in {options.folder}")
    table_of_runs = options.out / "runs.csv"
    try:
        known = read_runs(table_of_runs)
    except ValueError as error:
        parser.error(str(error))
    sprites = read_sprites(options.folder, options.limit)
    runs = plan(options.seeds, options.epochs, len(sprites.factors))
    done = perform(runs, sprites, known, table_of_runs)
    text = (
        f"{len(sprites.factors)} sprites, {options.epochs} epochs, {options.seeds} seeds; nats per image\n"
        f"{table(done)}\n\n" + "\n".join(str(verdict) for verdict in verdicts(done)) + "\n"
    )
    (options.out / "verdicts.txt").write_text(text, encoding="utf-8")
    print(text, end="")
    try:
        draw(done, options.out / "tc_mig.png")
    except ImportError:
        print("no figure: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
