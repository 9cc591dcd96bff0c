"""Rates per layer of a hierarchical VAE: the theorems hold, on cases with known answers; the study of them runs."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvcompress.analysis import two_layer
from hvcompress.analysis.bounds import (
    distortion_bound,
    entropy,
    fano_accuracy,
    fano_information,
    information_bound,
    reverse_water_filling,
)
from hvcompress.analysis.two_layer import Bernoulli, FixedGaussian, Gaussian, TwoLayerVAE

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import rate_space  # noqa: E402

# --------------------------------------------------------------------------------------------------------------------
# Fano's bound

UNIFORM = math.log(10)


def test_accuracies_that_information_allows_for_ten_classes():
    """The table of the bound, to its printed digits."""
    nats = [0, 0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.2, 2.303]
    table = [0.100, 0.257, 0.364, 0.495, 0.600, 0.689, 0.768, 0.837, 0.898, 0.951, 0.986, 1.0]
    assert np.round(fano_accuracy(nats, UNIFORM, 10), 3).tolist() == table


@pytest.mark.parametrize("prior", [[0.1] * 10, [0.5, 0.3, 0.2], [0.9, 0.1], [0.4] + [0.02] * 30])
def test_the_bound_increases_and_its_inverse_inverts(prior):
    classes, label_entropy = len(prior), entropy(prior)
    a = np.linspace(1 / classes, 1, 500)
    f = fano_information(a, label_entropy, classes)
    assert (np.diff(f) > 0).all()
    assert f[0] == pytest.approx(label_entropy - math.log(classes)) and f[-1] == pytest.approx(label_entropy)
    reached = f >= 0
    assert fano_accuracy(f[reached], label_entropy, classes) == pytest.approx(a[reached], abs=1e-9)
    nats = np.linspace(0, label_entropy, 100).reshape(4, 25)
    back = fano_information(fano_accuracy(nats, label_entropy, classes), label_entropy, classes)
    assert back.shape == nats.shape and back == pytest.approx(nats, abs=1e-6)
    assert fano_accuracy(label_entropy + 5, label_entropy, classes) == 1
    assert fano_accuracy(0.0, label_entropy, classes) >= max(prior)  # who knows nothing names the likeliest class


def accuracy_and_information(joint: np.ndarray) -> tuple[float, float]:
    """Of the best classifier of y given t, exactly. joint: (M, T), p(y, t)."""
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    logarithms = np.log(np.where(joint > 0, joint / independent, 1.0))
    return joint.max(0).sum(), (joint * logarithms).sum()


def test_no_classifier_beats_the_bound():
    """The best one on joint distributions that are known exactly, from hopeless to clear."""
    generator = np.random.Generator(np.random.PCG64(1))
    gaps = []
    for _ in range(300):
        classes, values = generator.integers(2, 12, 2)
        joint = generator.gamma(10 ** generator.uniform(-2, 1), 1, (classes, values)) + 1e-12
        joint /= joint.sum()
        accuracy, information = accuracy_and_information(joint)
        gaps.append(float(fano_accuracy(max(information, 0), entropy(joint.sum(1)), int(classes))) - accuracy)
    assert min(gaps) > -1e-9
    assert min(gaps) < 0.01  # so a smaller bound would be found out


@pytest.mark.parametrize("error", [0.0, 0.05, 0.4])
def test_errors_spread_evenly_reach_the_bound(error):
    joint = np.full((5, 5), error / 4)
    np.fill_diagonal(joint, 1 - error)
    accuracy, information = accuracy_and_information(joint / 5)
    assert accuracy == pytest.approx(1 - error)
    assert fano_accuracy(information, math.log(5), 5) == pytest.approx(accuracy, abs=1e-7)


def test_arguments_that_make_no_sense_are_refused():
    for call in (
        lambda: fano_information(0.05, UNIFORM, 10),
        lambda: fano_information(1.01, UNIFORM, 10),
        lambda: fano_information(0.5, 3.0, 10),
        lambda: fano_accuracy(-0.1, UNIFORM, 10),
        lambda: fano_accuracy(float("nan"), UNIFORM, 10),
        lambda: fano_accuracy(1.0, 0.0, 1),
        lambda: entropy([0.5, 0.6]),
        lambda: reverse_water_filling([1.0, 0.0], 1.0, 1.0),
    ):
        with pytest.raises(ValueError):
            call()


# --------------------------------------------------------------------------------------------------------------------
# Divergences, the chain rule, and which inference models have rates per layer


def normal(mean: float, std: float) -> Gaussian:
    return Gaussian(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[std]], dtype=torch.float64))


def test_divergence_and_density_are_those_of_torch():
    generator = torch.Generator().manual_seed(1)
    mean, other = torch.randn(2, 7, 3, generator=generator)
    std, width = torch.rand(2, 7, 3, generator=generator) + 0.1
    q, p = torch.distributions.Normal(mean, std), torch.distributions.Normal(other, width)
    ours = two_layer.kl_divergence(Gaussian(mean, std), Gaussian(other, width))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(q, p).sum(-1))
    torch.testing.assert_close(Gaussian(mean, std).log_density(other), q.log_prob(other).sum(-1))


@torch.no_grad()
def test_the_rates_add_up_to_that_of_all_latents():
    """E log q(z|x)/p(z), with log-ratios of samples, is the sum of the layers' divergences; none is negative."""
    torch.manual_seed(2)
    model = two_layer.image_vae(12, Bernoulli(), coarse=3, fine=5, width=16).double()
    generator = torch.Generator().manual_seed(3)
    x = torch.bernoulli(torch.full((40, 12), 0.5, dtype=torch.float64), generator=generator).repeat(1000, 1)
    outcome = two_layer.run(model, x, generator)
    assert (outcome.rates >= 0).all()
    h = model.features(x)
    posterior = model.q2(h).log_density(outcome.z2) + model.q1(h, outcome.z2).log_density(outcome.z1)
    prior2 = two_layer.standard_like(model.q2(h))
    prior = prior2.log_density(outcome.z2) + model.p1(outcome.z2).log_density(outcome.z1)
    # Other samples for the divergences, so that the two sides have nothing in common but their expectation.
    rates = two_layer.run(model, x, generator).rates.sum(-1)
    difference = posterior - prior - rates
    assert abs(difference.mean().item()) < 3 * difference.std().item() / math.sqrt(len(x))
    # All of this says nothing if a layer is idle, or if a missing layer would go unnoticed.
    assert (outcome.rates.mean(0) > 10 * difference.std() / math.sqrt(len(x))).all()


def test_bottom_up_inference_has_no_rates_per_layer():
    """The same joint q(z|x), once factored bottom-up and once top-down, under the same prior: the total is one and
    the same, but the bottom-up term of z1 is negative for every image.

    q(z1|x) = N(x, 1), q(z2|z1) = N(z1, s^2), p(z2) = N(0, 1), p(z1|z2) = N(z2, s^2), with s = 0.1.
    """
    generator = torch.Generator().manual_seed(4)
    s2 = 0.01
    for x in (-1.5, 0.0, 0.3, 2.0):
        z1 = x + torch.randn(20000, 1, generator=generator, dtype=torch.float64)
        z2 = z1 + math.sqrt(s2) * torch.randn(z1.shape, generator=generator, dtype=torch.float64)
        p1 = Gaussian(z2, torch.full_like(z2, math.sqrt(s2)))
        up1 = (normal(x, 1).log_density(z1) - p1.log_density(z1)).mean()
        up2 = two_layer.kl_divergence(Gaussian(z1, torch.full_like(z1, math.sqrt(s2))), normal(0, 1)).mean()
        # The same joint: z2 ~ N(x, 1 + s^2), and z1 given z2 is the product of N(x, 1) and N(z2, s^2).
        down2 = two_layer.kl_divergence(normal(x, math.sqrt(1 + s2)), normal(0, 1)).mean()
        product = Gaussian((s2 * x + z2) / (1 + s2), torch.full_like(z2, math.sqrt(s2 / (1 + s2))))
        down1 = two_layer.kl_divergence(product, p1).mean()
        assert up1 < -2 and up2 > 2  # ln 0.1 = -2.3
        assert down1 >= 0 and down2 >= 0
        assert up1 + up2 == pytest.approx(0.5 * (s2 + x**2), abs=0.05)
        assert down1 + down2 == pytest.approx(0.5 * (s2 + x**2), abs=0.05)


def test_information_is_at_most_the_rate():
    """On a mixture of a line, where a quadrature gives the information: the estimate is right, and what the rate
    exceeds it by is the mismatch KL[q(z) || p(z)].
    """
    means = torch.tensor([-2.0, -1.8, -0.5, 0.1, 0.9, 3.0], dtype=torch.float64)[:, None]
    stds = torch.tensor([0.3, 0.5, 0.2, 1.0, 0.4, 0.25], dtype=torch.float64)[:, None]
    labels = torch.tensor([0, 0, 1, 1, 0, 2])
    rate = two_layer.kl_divergence(Gaussian(means, stds), normal(0, 1)).mean().item()
    z = torch.linspace(-9, 10, 20001, dtype=torch.float64)
    q = torch.exp(-0.5 * ((z - means) / stds) ** 2) / (stds * math.sqrt(2 * math.pi))  # (6, points)
    p = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)

    def divergence(a: Tensor, b: Tensor) -> float:
        return torch.trapezoid(torch.where(a > 1e-300, a * (a.clamp_min(1e-300) / b).log(), 0.0), z).item()

    aggregate = q.mean(0)
    image = np.mean([divergence(one, aggregate) for one in q])
    label = sum((labels == y).double().mean().item() * divergence(q[labels == y].mean(0), aggregate) for y in range(3))
    assert rate == pytest.approx(image + divergence(aggregate, p), abs=1e-6)
    assert rate > image > label

    copies = 1000  # of every image: leaves the mixture and the information as they are, and gives more samples
    posterior = Gaussian(means.repeat(copies, 1)[:2000], stds.repeat(copies, 1)[:2000])
    weights = np.bincount(np.arange(2000) % 6) / 2000  # nearly, but not quite, even
    assert weights == pytest.approx(1 / 6, abs=1e-3)
    found = two_layer.information(posterior, labels.repeat(copies)[:2000], torch.Generator().manual_seed(5))
    assert abs(found.image - image) < 3 * found.image_error + 1e-3 and found.image_error < 0.03
    assert abs(found.label - label) < 3 * found.label_error + 1e-3 and found.label_error < 0.03


def test_information_saturates_where_images_can_be_told_apart():
    """Then it is the entropy of the images and that of the labels given."""
    labels = torch.tensor([0] * 30 + [3] * 10)
    means = 5.0 * torch.arange(40.0)[:, None].expand(40, 2)
    found = two_layer.information(Gaussian(means, torch.full((40, 2), 0.01)), labels)
    assert found.image == pytest.approx(math.log(40))
    assert found.label == pytest.approx(entropy([0.75, 0.25]), rel=1e-6)
    idle = two_layer.information(Gaussian(torch.zeros(40, 2), torch.ones(40, 2)), labels)
    assert abs(idle.image) < 1e-9 and abs(idle.label) < 1e-9


# --------------------------------------------------------------------------------------------------------------------
# The linear-Gaussian VAE, whose optimum is known

VARIANCES = (8.0, 4.0, 1.5, 0.2)
SIGMA2 = 1.0


def test_water_filling_minimizes_the_loss():
    """Against a search over the distortion of each component."""
    for beta in (0.1, 0.5, 3.0):
        distortions, rates = reverse_water_filling(VARIANCES, beta, SIGMA2)
        for variance, distortion, rate in zip(VARIANCES, distortions, rates, strict=True):
            d = np.linspace(1e-3, 1, 20000) * variance
            best = (d / (2 * SIGMA2) + beta * 0.5 * np.log(variance / d)).min()
            assert distortion / (2 * SIGMA2) + beta * rate == pytest.approx(best, abs=1e-5)


def test_distortion_and_rate_sum_to_no_less_than_the_entropy():
    """With equality at beta 1, where the VAE's model can be the data's own distribution."""
    variances = np.array([8.0, 4.0, 1.5])  # all above SIGMA2: the model's variances can match
    data_entropy = 0.5 * np.log(2 * math.pi * math.e * variances).sum()
    for beta in (0.25, 1.0, 3.0):
        error, rates = reverse_water_filling(variances, beta, SIGMA2)
        distortion = error.sum() / (2 * SIGMA2) + FixedGaussian(math.sqrt(SIGMA2)).floor(3)
        gap = distortion - distortion_bound(data_entropy, rates)
        assert gap == pytest.approx(0, abs=1e-12) if beta == 1 else gap > 0.1
    assert information_bound([[1.0, 2.5], [0.0, 3.0]]).tolist() == [[1.0, 3.5], [0.0, 3.0]]


class ToLinearGaussian(nn.Module):
    """A mean linear in the inputs, and a standard deviation of its own."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.mean = nn.Linear(inputs, outputs)
        self.log_std = nn.Parameter(torch.zeros(outputs))

    def forward(self, *inputs: Tensor) -> Gaussian:
        mean = self.mean(torch.cat(inputs, -1))
        return Gaussian(mean, self.log_std.exp().expand_as(mean))


@pytest.fixture(scope="module")
def linear():
    """(beta_2, beta_1) -> distortions in the data's basis (4,) and rates (2,) of the fitted linear VAE; z2 has room for
    two components, z1 for all.

    The loss of a linear model is quadratic in the data and the noises of both layers together. So 20 points with the
    right second moments, +-sqrt(10) along each of these 10 directions, stand for all: the expectation is exact.
    """
    directions = math.sqrt(10) * torch.eye(10, dtype=torch.float64)
    x, noise2, noise1 = torch.cat((directions, -directions)).split((4, 2, 4), -1)
    generator = torch.Generator().manual_seed(6)
    basis, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    x = (x * torch.tensor(VARIANCES, dtype=torch.float64).sqrt()) @ basis.T  # its covariance is that of the data
    noises = {2: noise2, 4: noise1}  # by the number of latents

    @functools.cache
    def fitted(betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        q2, q1, p1 = ToLinearGaussian(4, 2), ToLinearGaussian(6, 4), ToLinearGaussian(2, 4)
        likelihood = FixedGaussian(math.sqrt(SIGMA2))
        model = TwoLayerVAE(nn.Identity(), q2, q1, p1, nn.Linear(4, 4), likelihood, coarse=2).double()
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=500, history_size=30, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = two_layer.objective(two_layer.run(model, x), betas)
            loss.backward()
            return loss

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Gaussian, "sample", lambda self, _: self.mean + self.std * noises[self.mean.shape[-1]])
            optimizer.step(closure)
            with torch.no_grad():
                outcome = two_layer.run(model, x)
        return ((x - outcome.reconstruction) @ basis).square().mean(0).detach(), outcome.rates.mean(0)

    return fitted


def test_a_linear_vae_finds_the_known_distortions_and_rate(linear):
    """With equal betas only the total rate is determined: the layers may share it as they like."""
    error, rates = linear((0.5, 0.5))
    known_error, known_rates = reverse_water_filling(VARIANCES, 0.5, SIGMA2)
    assert error.numpy() == pytest.approx(known_error, rel=0.02)
    assert rates.sum().item() == pytest.approx(known_rates.sum(), rel=0.02)


@pytest.mark.parametrize("betas", [(0.25, 1.0), (0.5, 1.0)])
def test_a_cheaper_layer_takes_the_components_it_has_room_for(linear, betas):
    """beta_2 < beta_1: z2 codes the two largest variances at its own water level, z1 the others at its own. A component
    in z2 costs the least that it can, and the larger the variance, the more is saved by moving it there.
    """
    error, rates = linear(betas)
    error2, rates2 = reverse_water_filling(VARIANCES[:2], betas[0], SIGMA2)
    error1, rates1 = reverse_water_filling(VARIANCES[2:], betas[1], SIGMA2)
    assert error.numpy() == pytest.approx(np.concatenate((error2, error1)), rel=0.02)
    assert rates.numpy() == pytest.approx(np.array([rates2.sum(), rates1.sum()]), rel=0.02, abs=0.005)


def test_raising_a_beta_never_raises_its_rate(linear):
    """(beta_l - beta_l') (R_l - R_l') <= 0 between minimizers whose betas differ in one layer."""
    cheap, dear, equal = linear((0.25, 1.0)), linear((0.5, 1.0)), linear((0.5, 0.5))
    assert cheap[1][0] > dear[1][0] + 0.3  # beta_2 from 0.25 to 0.5; the known answer falls by ln 2
    assert equal[1][1] > dear[1][1] + 0.1  # beta_1 from 0.5 to 1


# --------------------------------------------------------------------------------------------------------------------
# The study


def point(beta2: float, beta1: float, **figures: float) -> dict:
    """A row of the study as the paper leads one to expect it, with no accuracy above a bound."""
    rate2, rate1 = 3 - 2 * math.log10(beta2), 30 - 20 * math.log10(beta1)
    row = {"beta2": beta2, "beta1": beta1, "rate2": rate2, "rate1": rate1, "psnr": rate2 + rate1}
    row |= {"above_floor": 100 * math.exp(-(rate2 + rate1) / 30), "tested": 1000.0, "label_entropy": UNIFORM}
    row |= {"information_label": min(rate2 / 2, 2.0), "inception": 5 - math.log10(beta1 / 10) ** 2}
    for kind in ("logistic", "svm"):
        row |= {f"accuracy_{what}_z2_{kind}": 0.3 + 0.1 * rate2 for what in ("mean", "sample")}
    return row | figures


def test_verdicts_tell_what_holds_from_what_does_not():
    pytest.importorskip("scipy")
    betas = (0.1, 1.0, 10.0)
    rows = [point(beta2, beta1) for beta2 in betas for beta1 in betas]

    def failed(rows: list[dict]) -> set[str]:
        return {check.name.split()[0] for check in rate_space.verdict(rows) if check.held is False}

    held = {check.name: check.held for check in rate_space.verdict(rows)}
    assert all(value is not False for name, value in held.items() if name.startswith(("T4", "T5", "T7"))), held
    assert "T4" in failed([row | {"rate2": 10 - row["rate2"]} for row in rows])
    assert "T4" in failed([row | {"psnr": -row["psnr"]} for row in rows])
    knowing = [row | {"rate2": 0.1, "accuracy_sample_z2_svm": 0.5} if row["beta2"] == 10 else row for row in rows]
    assert "T5" in failed(knowing)  # 0.1 nats allow 0.257
    # The best of everything with equal betas
    assert "T6" in failed([row | {"inception": row["psnr"], "accuracy_mean_z2_svm": row["psnr"] / 100} for row in rows])
    worse = [row | {"above_floor": 1.2 * row["above_floor"]} if rate_space.is_diagonal(row) else row for row in rows]
    assert "T7" in failed(worse)


def test_the_hull_is_convex_and_never_rises():
    hull = rate_space.lower_hull([1, 2, 3, 4, 5, 2], [8.0, 6.5, 4, 1.5, 3, 7])
    assert hull.tolist() == [[1, 8], [4, 1.5], [5, 1.5]]


def test_a_classifier_without_a_clue_scores_one_and_a_perfect_one_the_number_of_classes():
    assert rate_space.inception_score(torch.full((50, 10), 0.1).log())[0] == pytest.approx(1)
    certain = torch.full((50, 10), -1e4)
    certain[torch.arange(50), torch.arange(50) % 10] = 0.0
    assert rate_space.inception_score(certain)[0] == pytest.approx(10)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function that runs the study of a dataset on 200 made-up images, and returns its table."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(rate_space, "SAMPLES", 50)

    def run(dataset: str) -> Path:
        generator = np.random.Generator(np.random.PCG64(9))
        shape = (28, 28) if dataset == "mnist" else (32, 32, 3)
        y = np.arange(200) % 10
        x = np.clip(generator.normal(0, 60, (200, *shape)) + 25 * y.reshape(-1, *[1] * len(shape)), 0, 255)
        np.savez(tmp_path / rate_space.DATASETS[dataset].file, x=x.astype(np.uint8), y=y.astype(np.uint8))
        command = [str(tmp_path), "--dataset", dataset, "--grid", "2", "--epochs", "1", "--images", "100"]
        rate_space.main([*command, "--out", str(tmp_path / "out")])
        return tmp_path / "out" / f"{dataset}.csv"

    return run


def test_the_study_runs_and_draws(study, capsys):
    pytest.importorskip("matplotlib")
    table = study("cifar")
    assert len(rate_space.read_rows(table)) == 4
    assert capsys.readouterr().out.count("T6") == 4
    for picture in ("cifar_against_rates.png", "cifar_plane.png"):
        assert (table.parent / picture).read_bytes().startswith(b"\x89PNG")


def test_the_study_goes_on_where_it_stopped(study, monkeypatch, capsys):
    def without_matplotlib(*arguments):
        raise ImportError

    monkeypatch.setattr(rate_space, "draw", without_matplotlib)
    table = study("mnist")
    assert "no figures" in capsys.readouterr().out
    rows = rate_space.read_rows(table)
    assert [(row["beta2"], row["beta1"]) for row in rows] == [(0.1, 0.1), (0.1, 10.0), (10.0, 0.1), (10.0, 10.0)]

    # One row lost: it alone is made again, with the same figures. Nothing lost: nothing is trained.
    rate_space.write_rows(table, rows[:2] + rows[3:])
    study("mnist")
    times = {"train_s": 0, "measure_s": 0}
    again = rate_space.read_rows(table)
    assert [row | times for row in again] == [row | times for row in (*rows[:2], rows[3], rows[2])]
    monkeypatch.setattr(two_layer, "fit", lambda *arguments, **options: pytest.fail("trained again"))
    study("mnist")
