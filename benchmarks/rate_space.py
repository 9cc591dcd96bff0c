"""What each layer's rate is good for: a grid of small two-layer VAEs, one per pair of betas.

    python benchmarks/rate_space.py DATA_FOLDER
    python benchmarks/rate_space.py DATA_FOLDER --grid 2 --epochs 1 --images 2000 --out PILOT    # in a minute

DATA_FOLDER holds mnist_convnetjs.npz and cifar10_png_4k_labelled.npz: arrays x, (N, H, W) or (N, H, W, C) uint8, and y.
Every model is trained with its own (beta_2, beta_1) and asked for PSNR, for the accuracy of classifiers on its latents,
and for the quality of its samples; docs/rate_space.md has the theory. A finished model is a row of DATASET.csv, and a
run that is started again goes on from there. Then come a verdict per check and the figures (if matplotlib is there).

Needs scikit-learn. All information is in nats.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "codec"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hvcompress.analysis import two_layer  # noqa: E402
from hvcompress.analysis.bounds import entropy, fano_accuracy  # noqa: E402
from hvcompress.analysis.two_layer import Bernoulli, FixedGaussian  # noqa: E402
from hvcompress.console import progress_line  # noqa: E402
from probes import accuracies, rank_correlation, standard_error  # noqa: E402

CLASSES = 10
SAMPLES = 5000  # images drawn from each model's prior, in 5 splits


@dataclass(frozen=True)
class Dataset:
    """A data set, and how long it is trained on unless the command says otherwise."""

    file: str
    binary: bool  # pixels are thresholded and modelled as Bernoulli, else Gaussian with sigma^2 = 1/2
    images: int
    epochs: int


DATASETS = {
    "mnist": Dataset("mnist_convnetjs.npz", binary=True, images=10000, epochs=10),
    "cifar": Dataset("cifar10_png_4k_labelled.npz", binary=False, images=2800, epochs=20),
}

# --------------------------------------------------------------------------------------------------------------------
# Data


@dataclass(frozen=True)
class Split:
    """Images in [0, 1] with their labels. `modelled` is what the VAE sees of `images`: thresholded, if binary."""

    images: Tensor  # (N, C, H, W)
    modelled: Tensor  # (N, C * H * W)
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class Data:
    train: Split  # the VAEs and the classifier that judges samples learn from these
    probe: Split  # the classifiers on latents learn from these, which no VAE has seen
    test: Split  # every figure is measured on these


def load(folder: Path, dataset: Dataset, images: int, seed: int) -> Data:
    """`images` to train on, a quarter as many (or what is left) for the probes and for the test each."""
    with np.load(folder / dataset.file) as arrays:
        x, y = arrays["x"], arrays["y"]
    x = x[..., None] if x.ndim == 3 else x  # (N, H, W, C)
    others = min(images // 4, (len(x) - images) // 2)
    if others < 1:
        raise ValueError(f"{dataset.file} has {len(x)} images, too few for {images} to train on")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(x))

    def take(first: int, count: int) -> Split:
        rows = order[first : first + count]
        pixels = torch.from_numpy(np.ascontiguousarray(x[rows].transpose(0, 3, 1, 2))).float() / 255
        modelled = (pixels > 0.5).float() if dataset.binary else pixels
        return Split(pixels, modelled.flatten(1), torch.from_numpy(y[rows].astype(np.int64)))

    return Data(take(0, images), take(images, others), take(images + others, others))


# --------------------------------------------------------------------------------------------------------------------
# Measures


def image_classifier(data: Data, seed: int, epochs: int = 5) -> tuple[nn.Module, float]:
    """A small convolutional classifier of images, for `inception_score`, and its accuracy on the test images.

    It learns from the images as they are, not thresholded: the means that a decoder draws have grey edges too.
    """
    torch.manual_seed(seed)
    _, channels, height, width = data.train.images.shape
    network = nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128), nn.ReLU(), nn.Linear(128, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train.labels)).split(100):
            loss = nn.functional.cross_entropy(network(data.train.images[rows]), data.train.labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        correct = network(data.test.images).argmax(-1) == data.test.labels
    return network, correct.float().mean().item()


def inception_score(log_p: Tensor, splits: int = 5) -> tuple[float, float]:
    """exp I(x; y) of images x and the classifier's y, within 1..M: mean over the splits, and its standard error.

    log_p: (N, M), log p(y|x) of every image. With a classifier of our own, so only comparable within a run.
    """
    scores = []
    for part in log_p.double().chunk(splits):
        marginal = part.exp().mean(0, keepdim=True)
        scores.append(math.exp((part.exp() * (part - marginal.log())).sum(-1).mean().item()))
    return float(np.mean(scores)), float(np.std(scores, ddof=1) / math.sqrt(splits))


@torch.no_grad()
def measure(model: two_layer.TwoLayerVAE, data: Data, judge: nn.Module, seed: int) -> dict[str, float]:
    """A row's figures. Rates, distortion and PSNR are those of sampled latents, as a codec's would be."""
    generator = torch.Generator().manual_seed(seed)
    x, labels = data.test.modelled, data.test.labels
    outcome = two_layer.run(model, x, generator)
    rate2, rate1 = outcome.rates.mean(0).tolist()
    distortion = outcome.distortion.mean().item()
    error = (outcome.reconstruction.clamp(0, 1) - x).square().mean().item()
    row = {"rate2": rate2, "rate1": rate1, "distortion": distortion}
    row |= {"above_floor": distortion - model.likelihood.floor(x.shape[1]), "psnr": -10 * math.log10(error)}

    posterior = model.q2(model.features(x))
    found = two_layer.information(posterior, labels, generator)
    row |= {"information_image": found.image, "information_label": found.label}
    row |= {"information_label_error": found.label_error}
    row |= {"tested": len(x), "label_entropy": entropy(labels.bincount(minlength=CLASSES).numpy() / len(x))}

    probe_z2, probe_z1 = two_layer.posterior_means(model, data.probe.modelled)
    test_z2, test_z1 = two_layer.posterior_means(model, x)
    for name, probe, test in (
        ("mean_z2", probe_z2, test_z2),
        ("mean_z1", probe_z1, test_z1),
        ("sample_z2", two_layer.run(model, data.probe.modelled, generator).z2, posterior.sample(generator)),
    ):
        arrays = (tensor.numpy() for tensor in (probe, data.probe.labels, test, labels))
        for kind, accuracy in accuracies(*arrays).items():
            row[f"accuracy_{name}_{kind}"] = accuracy

    drawn = two_layer.sample_prior(model, SAMPLES, generator).clamp(0, 1)
    log_p = torch.log_softmax(judge(drawn.view(-1, *data.test.images.shape[1:])), -1)
    row["inception"], row["inception_error"] = inception_score(log_p)
    return row


# --------------------------------------------------------------------------------------------------------------------
# The grid


def betas_of(grid: int) -> list[float]:
    """`grid` values from 0.1 to 10, evenly on a logarithmic scale."""
    return [round(float(beta), 6) for beta in np.logspace(-1, 1, grid)]


def read_rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: value if name == "dataset" else float(value) for name, value in row.items()}
                for row in csv.DictReader(file)]  # fmt: skip


def write_rows(path: Path, rows: list[dict]) -> None:
    """All rows, or the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".csv.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def fill(
    path: Path, data: Data, settings: dict, grid: list[float], binary: bool, tell: Callable[[int, int], None] | None
) -> list[dict]:
    """Train and measure what the CSV lacks of the grid; returns the grid's rows, beta_2 outermost.

    settings: what a row was made with, beside the betas; rows made with other settings stay in the file.
    """
    rows = read_rows(path)

    def of_grid() -> dict[tuple[float, float], dict]:
        same = (row for row in rows if all(row[name] == value for name, value in settings.items()))
        return {(row["beta2"], row["beta1"]): row for row in same}

    wanted = [(beta2, beta1) for beta2 in grid for beta1 in grid]
    missing = [pair for pair in wanted if pair not in of_grid()]
    epochs, seed = settings["epochs"], settings["seed"]
    if missing:
        judge, accuracy = image_classifier(data, seed)
        print(f"classifier that judges samples: {100 * accuracy:.1f} % right on the test images", flush=True)
    if tell and missing:
        tell(0, len(missing) * epochs)
    for number, betas in enumerate(missing):
        began = time.monotonic()
        torch.manual_seed(seed)  # the same start for every point, so that they differ in the betas alone
        likelihood = Bernoulli() if binary else FixedGaussian()
        model = two_layer.image_vae(data.train.modelled.shape[1], likelihood)

        def count(done: int, before: int = number * epochs) -> None:
            if tell:
                tell(before + done, len(missing) * epochs)

        two_layer.fit(model, data.train.modelled, betas, epochs=epochs, seed=seed, tell=count)
        trained = time.monotonic()
        figures = measure(model, data, judge, seed)
        seconds = {"train_s": trained - began, "measure_s": time.monotonic() - trained}
        row = settings | {"beta2": betas[0], "beta1": betas[1]} | figures | seconds
        rows.append({name: round(v, 6) if isinstance(v, float) else v for name, v in row.items()})
        write_rows(path, rows)
        if not tell:
            print(f"{number + 1}/{len(missing)}  {line_of(rows[-1])}", flush=True)
    found = of_grid()
    return [found[pair] for pair in wanted]


# --------------------------------------------------------------------------------------------------------------------
# Verdicts. Inequalities that are proved must hold; the other thresholds say what the paper leads one to expect.

STEPS_HELD = 5 / 6  # share of the steps between neighbours on the grid that must go the right way
RATE_MATCHED = 0.10  # two models have "the same" total rate if it differs by no more than this share
PSNR_RANK, ACCURACY_RANK = 0.9, 0.7  # least rank correlations
PAIRS_HELD = 0.75  # share of pairs at the same total rate in which more rate in z2 gives a higher accuracy
HULL_DB = 0.3  # how far equal betas may lie above the lower hull of distortion over rate


@dataclass(frozen=True)
class Check:
    name: str
    held: bool | None  # None: this run has too few points to tell
    text: str


def total(row: dict) -> float:
    return row["rate2"] + row["rate1"]


def is_diagonal(row: dict) -> bool:
    return row["beta2"] == row["beta1"]


def steps(rows: list[dict], moved: str, figure: Callable[[dict], float]) -> tuple[int, int]:
    """How many of the steps to the next larger beta `moved`, the other fixed, lower the figure; and of how many."""
    other = {"beta2": "beta1", "beta1": "beta2"}[moved]
    ordered = sorted(rows, key=lambda row: (row[other], row[moved]))
    pairs = [(a, b) for a, b in zip(ordered, ordered[1:], strict=False) if a[other] == b[other]]
    return sum(figure(b) < figure(a) for a, b in pairs), len(pairs)


def lower_hull(rates: list[float], distortions: list[float]) -> np.ndarray:
    """Corners (H, 2) of the lower convex hull of (rate, distortion), never rising: a decoder may ignore bits."""
    points = sorted({*zip(rates, distortions, strict=True), (max(rates), min(distortions))})
    hull: list[tuple[float, float]] = []
    for x, y in points:
        if hull and hull[-1][0] == x:
            continue  # the lower of the two came first
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                break
            hull.pop()
        hull.append((x, y))
    return np.array(hull)


def above_hull(rows: list[dict]) -> list[float]:
    """Of the equal-beta points: distortion above the lower hull of all points at the same rate, in dB.

    The distortion is that of sampled latents, less its floor. For Gaussian pixels it is the squared error, so
    these are dB of PSNR; for binary ones, dB of the log-likelihood.
    """
    hull = lower_hull([total(row) for row in rows], [row["above_floor"] for row in rows])
    return [
        10 * math.log10(row["above_floor"] / np.interp(total(row), hull[:, 0], hull[:, 1]))
        for row in rows
        if is_diagonal(row)
    ]


def check_rates(rows: list[dict]) -> list[Check]:
    """T4: each beta governs its own layer's rate, and PSNR follows the total."""
    checks = []
    for name, moved, figure in (
        ("R(z2) falls in beta_2", "beta2", lambda row: row["rate2"]),
        ("R(z1|z2) falls in beta_1", "beta1", lambda row: row["rate1"]),
        ("the share of R(z2) falls in beta_2", "beta2", lambda row: row["rate2"] / total(row)),
    ):
        good, of = steps(rows, moved, figure)
        checks.append(Check(f"T4 {name}", good >= STEPS_HELD * of, f"{good} of {of} steps (needs {STEPS_HELD:.0%})"))
    rank = rank_correlation([row["psnr"] for row in rows], [total(row) for row in rows])
    checks.append(
        Check("T4 PSNR follows the total rate", rank >= PSNR_RANK, f"rank correlation {rank:.3f} (needs {PSNR_RANK})")
    )
    return checks


def check_bounds(rows: list[dict]) -> list[Check]:
    """T5: Fano's bounds on the accuracy of classifiers of z2, and what its rate buys.

    The bounds are about samples of z2. Its means are what the paper classifies, and nothing limits what they tell: that
    line is an observation, not a test.
    """
    checks = []
    for what, name in (("sample", "T5 {} for samples of z2 (proved)"), ("mean", "T5 {} for means of z2 (not proved)")):
        for label, column in (("acc <= f^-1(R(z2))", "rate2"), ("acc <= f^-1(I(y;z2))", "information_label")):
            worst, where = -math.inf, rows[0]
            for row in rows:
                information = max(row[column], 0.0)  # an estimate may fall below
                bound = float(fano_accuracy(information, row["label_entropy"], CLASSES))
                for kind in ("logistic", "svm"):
                    accuracy = row[f"accuracy_{what}_z2_{kind}"]
                    excess = accuracy - bound - 2 * standard_error(accuracy, row["tested"])
                    if excess > worst:
                        worst, where = excess, row
            text = f"closest: accuracy - bound - 2 SE = {worst:+.3f} at {betas_text(where)}"
            checks.append(Check(name.format(label), worst <= 0, text))
    for what in ("sample", "mean"):
        column = f"accuracy_{what}_z2_svm"
        rank = rank_correlation([row[column] for row in rows], [row["rate2"] for row in rows])
        name = f"T5 accuracy on {what}s follows R(z2)"
        checks.append(Check(name, rank >= ACCURACY_RANK, f"rank correlation {rank:.3f} (needs {ACCURACY_RANK})"))
        good, of = matched_pairs(rows, column)
        name = f"T5 at the same total rate, more of it in z2 is more accurate on {what}s"
        text = f"{good} of {of} pairs (needs {PAIRS_HELD:.0%})"
        checks.append(Check(name, good >= PAIRS_HELD * of if of else None, text))
    return checks


def matched_pairs(rows: list[dict], column: str) -> tuple[int, int]:
    """In how many pairs with the same total rate the one with more of it in z2 has the higher figure; and of how many.

    Pairs that also split the rate alike say nothing and do not count.
    """
    good = of = 0
    for i, a in enumerate(rows):
        for b in rows[:i]:
            near = RATE_MATCHED * max(total(a), total(b))
            if abs(total(a) - total(b)) <= near < abs(a["rate2"] - b["rate2"]):
                more, less = (a, b) if a["rate2"] > b["rate2"] else (b, a)
                good += more[column] > less[column]
                of += 1
    return good, of


def check_single_beta(rows: list[dict]) -> list[Check]:
    """T6: one beta for both layers is not best for everything."""
    checks = []
    for what in ("sample", "mean"):
        accurate = f"accuracy_{what}_z2_svm"
        best = {}
        for name, column in (("PSNR", "psnr"), (f"accuracy on {what}s", accurate), ("images drawn", "inception")):
            best[name] = max(rows, key=lambda row: row[column])  # noqa: B023 - called at once
        text = ", ".join(f"{name} at {betas_text(row)}" for name, row in best.items())
        name = f"T6 the best points are not all of equal betas, accuracy on {what}s"
        checks.append(Check(name, not all(map(is_diagonal, best.values())), text))

        top = max((row for row in rows if not is_diagonal(row)), key=lambda row: row[accurate])  # noqa: B023
        diagonal = sorted((row for row in rows if is_diagonal(row)), key=total)
        curve = [row[accurate] for row in diagonal]
        equal = float(np.interp(total(top), [total(row) for row in diagonal], curve))
        margin = top[accurate] - equal
        error = math.hypot(*(standard_error(accuracy, top["tested"]) for accuracy in (top[accurate], equal)))
        text = f"{top[accurate]:.3f} at {betas_text(top)} against {equal:.3f}: {margin:+.3f}, 2 SE {2 * error:.3f}"
        name = f"T6 the best accuracy on {what}s with unequal betas beats equal betas at its total rate"
        checks.append(Check(name, margin > 2 * error, text))
    return checks


def check_compression(rows: list[dict]) -> list[Check]:
    """T7: for distortion against total rate, equal betas are best."""
    heights = above_hull(rows)
    text = "dB above the hull: " + ", ".join(f"{height:.2f}" for height in heights) + f" (at most {HULL_DB})"
    return [Check("T7 equal betas lie on the lower hull of distortion over total rate", max(heights) <= HULL_DB, text)]


def verdict(rows: list[dict]) -> list[Check]:
    return [*check_rates(rows), *check_bounds(rows), *check_single_beta(rows), *check_compression(rows)]


# --------------------------------------------------------------------------------------------------------------------
# Showing


def betas_text(row: dict) -> str:
    return f"({row['beta2']:g}, {row['beta1']:g})"


HEAD = "beta_2  beta_1   R(z2)  R(z1|z2)   PSNR   acc z2  sampled  acc z1   I(y;z2)     IS"


def line_of(row: dict) -> str:
    return (
        f"{row['beta2']:6.3g}  {row['beta1']:6.3g}  {row['rate2']:6.2f}  {row['rate1']:8.2f}  {row['psnr']:5.2f}"
        f"  {row['accuracy_mean_z2_svm']:7.3f}  {row['accuracy_sample_z2_svm']:7.3f}"
        f"  {row['accuracy_mean_z1_svm']:6.3f}  {row['information_label']:8.3f}  {row['inception']:5.2f}"
    )


METRICS = (
    ("psnr", "PSNR, dB"),
    ("accuracy_mean_z2_svm", "accuracy on z2 (RBF-SVM, means)"),
    ("accuracy_sample_z2_svm", "accuracy on z2 (RBF-SVM, samples)"),
    ("accuracy_mean_z1_svm", "accuracy on z1 (RBF-SVM, means)"),
    ("inception", "inception score (own classifier)"),
)
RATES = (
    ("R(z2), nats", lambda row: row["rate2"]),
    ("R(z1|z2), nats", lambda row: row["rate1"]),
    ("total rate, nats", total),
)


def draw(rows: list[dict], folder: Path, name: str) -> list[Path]:
    """Every measure against the rates, and on the plane of the two rates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    tilt = [math.log10(row["beta2"] / row["beta1"]) for row in rows]
    diagonal = sorted((row for row in rows if is_diagonal(row)), key=total)

    figure, axes = plt.subplots(len(METRICS), len(RATES), figsize=(13, 16), layout="constrained", sharey="row")
    for line, (column, label) in zip(axes, METRICS, strict=True):
        for ax, (rate_label, rate) in zip(line, RATES, strict=True):
            values = [row[column] for row in rows]
            dots = ax.scatter([rate(row) for row in rows], values, c=tilt, cmap="coolwarm", s=28, zorder=3)
            ax.plot(
                [rate(row) for row in diagonal], [row[column] for row in diagonal], "o--", color="black",
                markerfacecolor="none", markersize=8, linewidth=0.8, zorder=2, label="equal betas",
            )  # fmt: skip
            of_z2 = "z2" in column and rate_label.startswith("R(z2)")
            if of_z2 or ("z1" in column and rate_label.startswith("total")):
                nats = np.linspace(0, max(rate(row) for row in rows), 400)
                bound = fano_accuracy(nats, rows[0]["label_entropy"], CLASSES)
                ax.plot(nats, bound, color="tab:red", linewidth=1.2, label="Fano bound of the rate")
            if of_z2:
                nats = [max(row["information_label"], 0.0) for row in rows]
                bound = fano_accuracy(nats, rows[0]["label_entropy"], CLASSES)
                ax.scatter(
                    [rate(row) for row in rows], bound, marker="_", color="tab:green", s=60,
                    label="Fano bound of the estimated I(y;z2)",
                )  # fmt: skip
            ax.set(xlabel=rate_label, ylabel=label if ax is line[0] else "")
            ax.set_xscale("symlog", linthresh=1.0)
            ax.grid(color="#e4e4e4", linewidth=0.6)
            if ax is line[0]:
                ax.legend(frameon=False, fontsize=7)
    figure.colorbar(dots, ax=axes, label="log10(beta_2 / beta_1)", shrink=0.3)
    against_rates = folder / f"{name}_against_rates.png"
    figure.savefig(against_rates, dpi=100)
    plt.close(figure)

    shown = [*METRICS[:3], METRICS[4]]
    figure, axes = plt.subplots(1, len(shown), figsize=(18, 4.2), layout="constrained")
    for ax, (column, label) in zip(axes, shown, strict=True):
        x, y = [row["rate2"] for row in rows], [row["rate1"] for row in rows]
        dots = ax.scatter(x, y, c=[row[column] for row in rows], cmap="viridis", s=70, zorder=3)
        ax.plot(
            [row["rate2"] for row in diagonal], [row["rate1"] for row in diagonal], "o--", color="tab:red",
            markerfacecolor="none", markersize=12, linewidth=0.8, zorder=2, label="equal betas",
        )  # fmt: skip
        best = max(rows, key=lambda row: row[column])
        ax.plot(best["rate2"], best["rate1"], "*", color="white", markeredgecolor="black", markersize=10, zorder=4)
        ax.set(xlabel="R(z2), nats", ylabel="R(z1|z2), nats", title=label + " (star: best)")
        ax.set_xscale("symlog", linthresh=1.0)
        ax.set_yscale("symlog", linthresh=1.0)
        ax.legend(frameon=False, fontsize=7)
        figure.colorbar(dots, ax=ax)
    plane = folder / f"{name}_plane.png"
    figure.savefig(plane, dpi=100)
    plt.close(figure)
    return [against_rates, plane]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/rate_space.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DATA_FOLDER")
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="mnist")
    parser.add_argument("--grid", type=int, default=5, help="values of each beta, from 0.1 to 10 (5)")
    parser.add_argument("--epochs", type=int, help="of each model (mnist 10, cifar 20)")
    parser.add_argument("--images", type=int, help="to train on (mnist 10000, cifar 2800)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rate_space")
    options = parser.parse_args(arguments)
    dataset = DATASETS[options.dataset]
    epochs = dataset.epochs if options.epochs is None else options.epochs
    images = dataset.images if options.images is None else options.images
    if options.grid < 2 or epochs < 1 or images < 1:
        parser.error("--grid must be at least 2, --epochs and --images at least 1")
    try:
        import sklearn  # noqa: F401 - said now, not after the first model has been trained
    except ImportError:
        parser.error("this needs scikit-learn: pip install scikit-learn")
    try:
        data = load(options.folder, dataset, images, options.seed)
    except (OSError, KeyError, ValueError) as error:
        parser.error(f"{options.folder / dataset.file}: {error}")

    path = options.out / f"{options.dataset}.csv"
    settings = {"dataset": options.dataset, "images": images, "epochs": epochs, "seed": options.seed}
    with progress_line("rate space", quiet=False) as tell:
        rows = fill(path, data, settings, betas_of(options.grid), dataset.binary, tell)

    checks = verdict(rows)
    mark = {True: "held", False: "DID NOT HOLD", None: "cannot tell"}
    lines = [f"{name} {value}" for name, value in settings.items()]
    report = ["  ".join(lines), HEAD, *map(line_of, rows), ""]
    report += [f"{mark[check.held]:>12}  {check.name}: {check.text}" for check in checks]
    print("\n".join(report))
    path.with_suffix(".txt").write_text("\n".join(report) + "\n", encoding="utf-8")
    try:
        written = draw(rows, options.out, options.dataset)
    except ImportError:
        print("no figures: matplotlib is missing (pip install matplotlib)")
    else:
        print("figures: " + ", ".join(file.name for file in written))


if __name__ == "__main__":
    main()
