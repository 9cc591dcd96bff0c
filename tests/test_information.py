"""Information in latents: the decomposition of the rate, its estimators over batches, and the MIG, on known answers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hvcompress.analysis import information
from hvcompress.analysis.information import (
    Aggregate,
    decompose,
    full_data,
    gaussian_kl,
    histogram_information_gap,
    information_gap,
    minibatch_stratified,
    minibatch_weighted,
    sample,
    stratified_weights,
    total_correlation_penalty,
    uniform_stratified,
)

ESTIMATORS = [minibatch_weighted, minibatch_stratified]


def mixture(items: int, latents: int, deviation: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Posteriors whose means are a linear mix of independent normals: (N, K) twice, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(latents, latents, generator=generator, dtype=torch.float64)
    mean = torch.randn(items, latents, generator=generator, dtype=torch.float64) @ mix
    return mean, torch.full_like(mean, math.log(deviation))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strided_weights(batch: int, dataset_size: int) -> torch.Tensor:
    """The weights as the authors' code fills them, with stride M + 1."""
    others = batch - 1
    one_other = (dataset_size - others) / (dataset_size * others)
    weights = torch.full((batch, batch), 1 / others, dtype=torch.float64)
    weights.view(-1)[:: others + 1] = 1 / dataset_size
    weights.view(-1)[1 :: others + 1] = one_other
    weights[others - 1, 0] = one_other
    return weights


def with_weights(z: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor, weights: torch.Tensor) -> Aggregate:
    """The mixture by plain sums of densities, for an explicit matrix."""
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(z[:, None, :]).exp()  # (B, B, K)
    joint = (weights * density.prod(2)).sum(1).log()
    return Aggregate(joint, (weights[:, :, None] * density).sum(1).log())


# --------------------------------------------------------------------------------------------------------------------
# T1: the decomposition


@pytest.mark.parametrize("weighted", [False, True])
def test_the_three_parts_add_up_to_the_rate_and_are_those_of_quadrature(weighted):
    """Against the closed form of the KL, and against integrals on a grid, for six posteriors of two latents."""
    mean, log_std = mixture(6, 2, 0.4, seed=1)
    log_std = log_std + torch.linspace(-0.3, 0.3, 12, dtype=torch.float64).view(6, 2)
    weight = torch.tensor([1.0, 4.0, 2.0, 0.5, 3.0, 0.0]) if weighted else None
    # Samples at quantiles, scaled to variance 1: quadratic functions, such as log q(z|n) - log p(z), have no error.
    nodes = torch.special.ndtri((torch.arange(60, dtype=torch.float64) + 0.5) / 60)
    nodes /= nodes.square().mean().sqrt()
    noise = torch.cartesian_prod(nodes, nodes)  # (3600, 2)
    index = torch.arange(6).repeat_interleave(len(noise))
    z = mean[index] + log_std.exp()[index] * noise.repeat(6, 1)
    parts = decompose(z, mean, log_std, index, weight)
    assert abs(parts.error) < 1e-9
    p = torch.full((6,), 1 / 6, dtype=torch.float64) if weight is None else (weight / weight.sum()).double()
    normal = torch.distributions.Normal(mean, log_std.exp())
    assert parts.kl == pytest.approx(
        (p[:, None] * torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))).sum().item()
    )

    axis = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    cell = (axis[1] - axis[0]).item()
    marginal = (p[:, None, None] * normal.log_prob(axis[:, None, None]).exp().permute(1, 0, 2)).sum(0)  # (1201, 2)
    density = normal.log_prob(axis[:, None, None]).exp()  # (1201, 6, 2)
    joint = torch.einsum("n,an,bn->ab", p, density[:, :, 0], density[:, :, 1])
    ratio = joint.log() - marginal[:, :1].log() - marginal[:, 1].log()
    assert parts.total_correlation == pytest.approx((joint * ratio).nan_to_num(0.0).sum().item() * cell**2, abs=2e-3)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(axis)[:, None]
    dimension_wise = (torch.xlogy(marginal, marginal) - marginal * prior).sum().item() * cell
    assert parts.dimension_wise_kl == pytest.approx(dimension_wise, abs=2e-3)


@pytest.fixture(scope="module")
def large():
    """T1's mixture: N = 4096, K = 4, deviation 0.3. Mean, log-deviation, z, full-data decomposition."""
    mean, log_std = mixture(4096, 4, 0.3, seed=342)  # of a scale and a TC like the published numbers
    mean, log_std = mean.float(), log_std.float()
    z = sample(mean, log_std, seeded(1))
    return mean, log_std, z, decompose(z, mean, log_std)


def test_the_parts_of_sampled_codes_add_up_within_the_error_of_sampling(large):
    mean, log_std, z, parts = large
    difference = torch.distributions.Normal(mean, log_std.exp()).log_prob(z).sum(1)
    difference -= torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    # What remains of the samples' own log q(z|n) - log p(z) is rounding; the closed form is a standard error away.
    total = parts.index_code_mi + parts.total_correlation + parts.dimension_wise_kl
    assert total == pytest.approx(difference.double().mean().item(), abs=1e-3)
    assert 0 < abs(parts.error) < 4 * difference.std().item() / math.sqrt(len(z))
    assert min(parts.index_code_mi, parts.total_correlation, parts.dimension_wise_kl) > 0.5
    assert parts.index_code_mi <= math.log(4096)


def test_twins_share_everything():
    """Two latents that both say which of 50 items it is: MI = TC = log 50, because H(z) = H(z_j) + h(noise)."""
    place = 20.0 * torch.arange(50, dtype=torch.float64)
    mean = torch.stack([place, place], 1)
    parts = decompose(sample(mean, torch.zeros_like(mean), seeded(0)), mean, torch.zeros_like(mean))
    assert parts.index_code_mi == pytest.approx(math.log(50), abs=1e-9)
    assert parts.total_correlation == pytest.approx(math.log(50), abs=1e-9)


def test_a_product_of_codes_has_no_total_correlation():
    """A grid of means: q(z) is a product exactly, and the estimate is zero sample by sample."""
    axis = torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64)
    mean = torch.cartesian_prod(axis, axis, axis)
    z = sample(mean, torch.full_like(mean, -1.0), seeded(0))
    assert full_data(z, mean, torch.full_like(mean, -1.0)).log_ratio.abs().max() < 1e-12


def test_one_latent_has_no_total_correlation():
    mean, log_std = mixture(40, 1, 0.3)
    z = sample(mean, log_std, seeded(0))
    assert decompose(z, mean, log_std).total_correlation == pytest.approx(0.0, abs=1e-12)
    for estimator in ESTIMATORS:
        assert estimator(z, mean, log_std, 1000).log_ratio.abs().max() < 1e-12


def test_a_weight_is_as_good_as_a_copy():
    """p(n) in ratios 1 : 2 : 3 is the uniform one over a data set with two and three copies."""
    mean, log_std = mixture(30, 3, 0.5)
    weight = torch.arange(30) % 3 + 1
    z = sample(mean, log_std, seeded(4))
    copies = torch.arange(30).repeat_interleave(weight)
    weighted = decompose(z, mean, log_std, weight=weight.double())
    copied = decompose(z[copies], mean[copies], log_std[copies])
    for name in ("kl", "index_code_mi", "total_correlation", "dimension_wise_kl"):
        assert getattr(weighted, name) == pytest.approx(getattr(copied, name), abs=1e-9)
    uniform = decompose(z, mean, log_std)
    assert abs(weighted.total_correlation - uniform.total_correlation) > 1e-3


def test_chunks_change_nothing(monkeypatch):
    mean, log_std = mixture(50, 3, 0.5)
    z = sample(mean, log_std, seeded(5))[:37]
    whole = full_data(z, mean, log_std)
    monkeypatch.setattr(information, "CHUNK", 700)
    parts = full_data(z, mean, log_std)
    torch.testing.assert_close(parts.log_joint, whole.log_joint)
    torch.testing.assert_close(parts.log_marginals, whole.log_marginals)


# --------------------------------------------------------------------------------------------------------------------
# T1: batches


def mean_over_batches(estimator, large, batch: int) -> float:
    """The TC of `estimator` over disjoint batches, of 4096 samples at least."""
    mean, log_std, _, _ = large
    values = []
    for seed in range(2 if batch >= 1024 else 1):
        order = torch.randperm(len(mean), generator=seeded(seed))
        z = sample(mean, log_std, seeded(100 + seed))
        for chosen in order.split(batch):
            values.append(estimator(z[chosen], mean[chosen], log_std[chosen]).log_ratio.mean())
    return torch.stack(values).mean().item()


def plain(z, mean, log_std):
    """The average over the batch, as if it were the data set."""
    return full_data(z, mean, log_std)


def test_stratified_sampling_comes_near_the_full_data_and_the_strided_matrix_does_not(large):
    """The published numbers' pattern: correct within 0.1 at B = 1024; strided about as far off as the plain average."""
    exact = large[3].total_correlation
    size = len(large[0])
    correct = mean_over_batches(lambda *batch: minibatch_stratified(*batch, size), large, 1024)
    assert abs(correct - exact) < 0.1
    weights = strided_weights(256, size)

    def strided(z, mean, log_std):
        return with_weights(z.double(), mean.double(), log_std.double(), weights)

    of_plain, of_strided = mean_over_batches(plain, large, 256), mean_over_batches(strided, large, 256)
    assert of_strided == pytest.approx(of_plain, abs=0.03)
    assert of_strided > exact + 0.3
    assert mean_over_batches(lambda *batch: minibatch_stratified(*batch, size), large, 256) < exact


def test_weighted_sampling_is_the_plain_average_and_a_constant(large):
    """(K - 1) log N = 24.95 nats above it: right for gradients, meaningless as a value."""
    mean, log_std, z, parts = large
    chosen = slice(0, 256)
    weighted = minibatch_weighted(z[chosen], mean[chosen], log_std[chosen], 4096).log_ratio.mean()
    of_plain = plain(z[chosen], mean[chosen], log_std[chosen]).log_ratio.mean()
    assert (weighted - of_plain).item() == pytest.approx(3 * math.log(4096), abs=1e-4)
    assert weighted.item() > 10 * parts.total_correlation


@pytest.mark.parametrize("batch", [2, 3, 4, 5])
def test_stratified_sampling_is_unbiased(batch):
    """Exactly, over every ordered batch out of five items in which a given one comes second."""
    mean, log_std = mixture(5, 2, 0.6)
    z = sample(mean, log_std, seeded(6))
    wanted = full_data(z[3:4], mean, log_std)
    batches = [list(b) for b in itertools.permutations(range(5), batch) if b[1] == 3]

    def average(estimate) -> Aggregate:
        found = [estimate(z[b], mean[b], log_std[b]) for b in batches]
        joint = torch.stack([aggregate.log_joint[1] for aggregate in found]).exp().mean()
        return Aggregate(joint, torch.stack([aggregate.log_marginals[1] for aggregate in found]).exp().mean(0))

    ours = average(lambda *b: minibatch_stratified(*b, 5))
    torch.testing.assert_close(ours.log_joint, wanted.log_joint[0].exp())
    torch.testing.assert_close(ours.log_marginals, wanted.log_marginals[0].exp())
    if 2 < batch < 5:
        strided = average(lambda *b: with_weights(*b, strided_weights(batch, 5)))
        assert (strided.log_joint - wanted.log_joint[0].exp()).abs() > 0.01 * wanted.log_joint[0].exp()


@pytest.mark.parametrize(("batch", "size"), [(2, 2), (2, 9), (5, 5), (64, 4096)])
def test_the_weights_of_stratified_sampling(batch, size):
    weights = stratified_weights(batch, size)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(batch, dtype=torch.float64))
    torch.testing.assert_close(weights.diagonal(), torch.full((batch,), 1 / size, dtype=torch.float64))


def test_the_strided_matrix_is_another():
    """It has 1/N in column 0 where we have it on the diagonal, where it has 1/M."""
    ours, strided = stratified_weights(8, 100), strided_weights(8, 100)
    assert not torch.allclose(ours, strided)
    assert (strided.diagonal()[2:] == 1 / 7).all() and (ours.diagonal() == 1 / 100).all()
    assert (strided[[0, 1, 2, 3, 4, 5, 7], 0] == 1 / 100).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimates_over_batches_are_those_of_plain_sums(estimator):
    mean, log_std = mixture(6, 3, 0.7)
    z = sample(mean, log_std, seeded(7))
    weights = stratified_weights(6, 50)
    if estimator is minibatch_weighted:
        weights = torch.full((6, 6), 1 / 300, dtype=torch.float64)
    wanted, found = with_weights(z, mean, log_std, weights), estimator(z, mean, log_std, 50)
    torch.testing.assert_close(found.log_joint, wanted.log_joint)
    torch.testing.assert_close(found.log_marginals, wanted.log_marginals)


# --------------------------------------------------------------------------------------------------------------------
# The penalty


def directions(estimate, repeats: int, batch: int | None) -> torch.Tensor:
    """Mean gradient of the TC to the matrix that makes means of independent sources, and to the log-deviations."""
    source = torch.randn(600, 3, generator=seeded(8), dtype=torch.float64)
    matrix = torch.tensor([[1.0, 0.6, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    level = torch.full((3,), -0.7, dtype=torch.float64, requires_grad=True)
    generator, total = seeded(9), torch.zeros(12, dtype=torch.float64)
    for _ in range(repeats):
        chosen = torch.randperm(600, generator=generator)[:batch]
        mean = source[chosen] @ matrix
        log_std = level.expand_as(mean)
        aggregate = estimate(sample(mean, log_std, generator), mean, log_std)
        gradients = torch.autograd.grad(total_correlation_penalty(aggregate, 2.0), (matrix, level))
        total += torch.cat([gradient.flatten() for gradient in gradients])
    return total / repeats


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_over_batches_point_as_those_of_the_full_data(estimator):
    wanted = directions(full_data, 10, None)
    found = directions(lambda *batch: estimator(*batch, 600), 60, 128)
    cosine = torch.cosine_similarity(wanted, found, 0).item()
    assert wanted.norm() > 0.1
    assert cosine > 0.9


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_following_the_penalty_makes_latents_independent(estimator):
    """From mixed latents to less total correlation of the full data, with the deviations held."""
    source = torch.randn(512, 2, generator=seeded(10))
    matrix = torch.tensor([[1.0, 0.8], [0.0, 0.6]], requires_grad=True)
    log_std = torch.full((512, 2), -1.2)
    generator = seeded(11)

    def exact() -> float:
        mean = (source @ matrix).detach()
        return decompose(sample(mean, log_std, seeded(12)), mean, log_std).total_correlation

    before = exact()
    optimiser = torch.optim.Adam([matrix], lr=0.03)
    for _ in range(60):
        mean = source[torch.randperm(512, generator=generator)[:128]] @ matrix
        z = sample(mean, log_std[:128], generator)
        optimiser.zero_grad()
        total_correlation_penalty(estimator(z, mean, log_std[:128], 512), 5.0).backward()
        optimiser.step()
    assert exact() < 0.5 * before


def test_the_penalty_is_the_excess_over_beta_one():
    mean, log_std = mixture(16, 3, 0.5)
    aggregate = minibatch_stratified(sample(mean, log_std, seeded(0)), mean, log_std, 100)
    assert total_correlation_penalty(aggregate, 1.0).item() == 0.0
    assert total_correlation_penalty(aggregate, 4.0).item() == pytest.approx(3 * aggregate.log_ratio.mean().item())


def test_boxes_have_no_gradient_and_their_surrogate_has():
    """The trap of quantized latents: TC of the mixture of boxes is a constant, though the latents are alike."""
    source = torch.randn(64, 1, generator=seeded(13)).expand(64, 2)
    scale = torch.ones(2, requires_grad=True)
    step = 0.01
    centre = 30 * source * scale
    z = centre + step * (torch.rand(64, 2, generator=seeded(14)) - 0.5)
    inside = torch.sigmoid(1e5 * (0.5 * step - (z[:, None] - centre[None]).abs()))  # boxes with steep sides
    boxes = Aggregate(inside.prod(2).mean(1).log(), inside.mean(1).log())
    (flat,) = torch.autograd.grad(boxes.log_ratio.mean(), scale)
    assert flat.abs().max() < 1e-6

    found = total_correlation_penalty(uniform_stratified(source * scale, 0.5, 1000, seeded(15)), 3.0)
    (gradient,) = torch.autograd.grad(found, scale)
    assert gradient.abs().min() > 1e-2
    # It is the penalty of Gaussians with the variance of a box.
    log_std = torch.full((64, 2), math.log(0.5 / math.sqrt(12)))
    wanted = minibatch_stratified(sample(source, log_std, seeded(15)), source, log_std, 1000)
    assert found.item() == pytest.approx(total_correlation_penalty(wanted, 3.0).item(), rel=1e-5)
    noise = 0.5 * (torch.rand(100_000, generator=seeded(16)) - 0.5)
    assert noise.std().item() == pytest.approx(log_std[0, 0].exp().item(), rel=0.01)


def test_steps_may_differ_by_latent():
    centre = torch.randn(8, 2, generator=seeded(17))
    steps = torch.tensor([0.5, 2.0])
    found = uniform_stratified(centre, steps, 100, seeded(18))
    assert not torch.equal(found.log_ratio, uniform_stratified(centre, 0.5, 100, seeded(18)).log_ratio)
    with pytest.raises(ValueError, match="positive"):
        uniform_stratified(centre, torch.tensor([0.5, 0.0]), 100)


# --------------------------------------------------------------------------------------------------------------------
# T10: the MIG


@pytest.fixture(scope="module")
def code():
    """Three factors of 4, 6 and 6 values, 6 items each; latents in the order of the factors, and one that is noise."""
    factors = torch.cartesian_prod(torch.arange(4), torch.arange(6), torch.arange(6)).repeat(6, 1)
    noise = torch.randn(len(factors), 1, generator=seeded(19))
    mean = torch.cat([factors - factors.double().mean(0).float(), 0.01 * noise], 1)
    log_std = torch.tensor([-3.0, -3.0, -3.0, 0.0]).expand_as(mean)
    return factors, mean, log_std, sample(mean, log_std, seeded(20))


def rotated(codes: torch.Tensor) -> torch.Tensor:
    """The second and the third latent by 45 degrees."""
    a, b = codes[:, 1], codes[:, 2]
    return torch.stack([codes[:, 0], (a + b) / math.sqrt(2), (a - b) / math.sqrt(2), codes[:, 3]], 1)


def test_a_perfect_code_has_a_gap_of_one(code):
    factors, mean, log_std, z = code
    gap = information_gap(z, mean, log_std, factors)
    assert 0.95 < gap.score <= 1.0
    assert gap.information.argmax(0).tolist() == [0, 1, 2]
    torch.testing.assert_close(gap.entropy, torch.tensor([4.0, 6.0, 6.0]).log())
    assert gap.information.amax(0).tolist() == pytest.approx(gap.entropy.tolist(), abs=0.02)
    assert 0.95 < histogram_information_gap(mean, factors).score <= 1.0


def test_a_rotated_code_has_a_smaller_one(code):
    factors, mean, log_std, z = code
    straight = information_gap(z, mean, log_std, factors).score
    turned = information_gap(rotated(z), rotated(mean), log_std, factors)
    assert turned.score < straight - 0.3
    assert turned.gaps[0] > 0.95 and turned.gaps[1:].max() < 0.1
    of_means = histogram_information_gap(mean, factors).score
    assert histogram_information_gap(rotated(mean), factors).score < of_means - 0.3


def test_the_order_of_latents_does_not_matter(code):
    factors, mean, log_std, z = code
    order = [2, 0, 3, 1]
    settings = {"samples": 300}
    found = information_gap(
        z[:, order], mean[:, order], log_std[:, order], factors, generator=seeded(1), **settings
    ).score
    assert found == pytest.approx(information_gap(z, mean, log_std, factors, generator=seeded(1), **settings).score)
    assert histogram_information_gap(mean[:, order], factors).score == pytest.approx(
        histogram_information_gap(mean, factors).score
    )


def test_fewer_samples_estimate_the_same(code):
    factors, mean, log_std, z = code
    turned = rotated(z), rotated(mean), log_std + 2.5, factors
    few = information_gap(*turned, samples=100, generator=seeded(2))
    torch.testing.assert_close(few.information, information_gap(*turned).information, atol=0.1, rtol=0)


def test_codes_that_say_nothing_have_no_gap():
    factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(100, 1)
    mean = torch.zeros(len(factors), 3)
    gap = information_gap(sample(mean, mean, seeded(3)), mean, mean, factors)
    assert gap.score == pytest.approx(0.0, abs=1e-5)
    assert histogram_information_gap(torch.randn(len(factors), 3, generator=seeded(4)), factors).score < 0.03


def test_a_noisy_latent_has_the_information_of_a_channel():
    """One bit through Gaussian noise: I(z; v) at deviation 1 and levels -1, 1 is 0.3371 nats (integrated here)."""
    factors = torch.arange(2).repeat(1500)[:, None]
    mean = torch.cat([2.0 * factors - 1, torch.zeros(3000, 1)], 1)
    gap = information_gap(sample(mean, torch.zeros_like(mean), seeded(5)), mean, torch.zeros_like(mean), factors)
    y = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 1.0)
    density = normal.log_prob(y).exp().mean(0)
    wanted = -torch.trapezoid(torch.xlogy(density, density), y).item() - 0.5 * math.log(2 * math.pi * math.e)
    assert wanted == pytest.approx(0.3371, abs=1e-3)
    assert gap.information[0, 0].item() == pytest.approx(wanted, abs=0.03)
    assert gap.information[1, 0].item() == pytest.approx(0.0, abs=1e-5)


def test_the_histogram_is_that_of_counting():
    """Against sums over explicit counts; the largest value belongs to the last bin."""
    codes = torch.tensor([[0.0, 5.0], [0.1, 5.0], [0.9, 5.0], [1.0, 5.0], [1.0, 5.0], [0.0, 5.0]])
    factors = torch.tensor([[0, 7], [0, 7], [1, 7], [1, 7], [0, 7], [1, 7]])
    gap = histogram_information_gap(codes, factors, bins=2)
    counts = {(0, 0): 2, (0, 1): 1, (1, 0): 1, (1, 1): 2}
    wanted = sum(c / 6 * math.log(c / 6 / 0.25) for c in counts.values())
    assert gap.information.shape == (2, 1)  # the constant factor is left out
    assert gap.information[:, 0].tolist() == pytest.approx([wanted, 0.0])
    assert gap.score == pytest.approx(wanted / math.log(2))


def test_weights_of_the_gap_are_as_good_as_copies(code):
    factors, mean, log_std, z = code
    mean, z, log_std = rotated(mean)[:144], rotated(z)[:144], log_std[:144] + 2.0
    factors = factors[:144]
    weight = 1 + factors[:, 1] // 2 + factors[:, 2] // 3
    copies = torch.arange(144).repeat_interleave(weight)
    weighted = information_gap(z, mean, log_std, factors, weight)
    copied = information_gap(z[copies], mean[copies], log_std[copies], factors[copies])
    torch.testing.assert_close(weighted.information, copied.information, atol=1e-4, rtol=0)
    torch.testing.assert_close(weighted.entropy, copied.entropy)
    by_weight = histogram_information_gap(mean, factors, weight)
    torch.testing.assert_close(
        by_weight.information, histogram_information_gap(mean[copies], factors[copies]).information
    )
    assert abs(weighted.score - information_gap(z, mean, log_std, factors).score) > 1e-3


# --------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize("function", [full_data, lambda *a: minibatch_weighted(*a, 9), decompose])
def test_shapes_that_do_not_fit(function):
    a = torch.zeros
    for z, mean, log_std in (
        (a(4, 3), a(4, 2), a(4, 2)),
        (a(4, 2), a(4, 2), a(4, 1)),
        (a(4, 2), a(3, 2), a(4, 2)),
        (a(4), a(4, 2), a(4, 2)),
        (a(4, 0), a(4, 0), a(4, 0)),
        (a(0, 2), a(0, 2), a(0, 2)),
    ):
        with pytest.raises(ValueError):
            function(z, mean, log_std)


def test_batches_that_do_not_fit():
    z = torch.zeros(4, 2)
    for estimator in ESTIMATORS:
        with pytest.raises(ValueError, match="out of 3"):
            estimator(z, z, z, 3)
        with pytest.raises(ValueError, match="one sample per posterior"):
            estimator(z[:3], z, z, 9)
    with pytest.raises(ValueError, match="two items"):
        minibatch_stratified(z[:1], z[:1], z[:1], 9)
    assert minibatch_weighted(z[:1], z[:1], z[:1], 9).log_joint.shape == (1,)


def test_an_index_is_needed_where_samples_are_fewer():
    mean = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="index"):
        decompose(mean[:2], mean, mean)
    with pytest.raises(ValueError, match="index"):
        decompose(mean[:2], mean, mean, torch.tensor([0, 1, 2]))
    assert decompose(mean[:2], mean, mean, torch.tensor([0, 3])).kl == pytest.approx(0.0)


@pytest.mark.parametrize(
    "weight", [torch.ones(3), torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.zeros(4), torch.tensor([1.0, math.nan, 1, 1])]
)
def test_weights_that_are_none(weight):
    z = torch.randn(4, 2, generator=seeded(0))
    for function in (
        lambda: full_data(z, z, z, weight),
        lambda: decompose(z, z, z, weight=weight),
        lambda: information_gap(z, z, z, torch.arange(4)[:, None], weight),
        lambda: histogram_information_gap(z, torch.arange(4)[:, None], weight),
    ):
        with pytest.raises(ValueError, match="weights"):
            function()


def test_gaps_that_are_none():
    z = torch.randn(4, 2, generator=seeded(0))
    factors = torch.arange(4)[:, None]
    for codes, of_factors, message in (
        (z[:, :1], factors, "two latents"),
        (z, torch.zeros_like(factors), "no factor"),
        (z, factors[:3], "factors must be"),
        (z, factors[:, 0], "factors must be"),
    ):
        with pytest.raises(ValueError, match=message):
            information_gap(codes, codes, codes, of_factors)
        with pytest.raises(ValueError, match=message):
            histogram_information_gap(codes, of_factors)
    with pytest.raises(ValueError, match="codes must be"):
        histogram_information_gap(z[:, 0], factors)


def test_the_divergence_from_the_prior():
    """KL of a single Gaussian, and that of the prior itself."""
    assert gaussian_kl(torch.tensor(0.0), torch.tensor(0.0)).item() == 0.0
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.7, 0.2), torch.distributions.Normal(0.0, 1.0)
    )
    assert gaussian_kl(torch.tensor(0.7), torch.tensor(0.2).log()).item() == pytest.approx(wanted.item(), rel=1e-6)
