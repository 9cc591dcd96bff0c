"""Information in latents with factorised Gaussian posteriors: total correlation, its estimators, and the MIG.

For a data set of N items, drawn with probability p(n) (1/N unless said), the aggregate posterior is the mixture
q(z) = sum_n p(n) q(z|n). With a factorised prior p(z), the rate falls into three parts:

    E_n KL(q(z|n) || p(z)) = I_q(z; n) + KL(q(z) || prod_j q(z_j)) + sum_j KL(q(z_j) || p(z_j))
                             index-code   total correlation, TC      dimension-wise KL
                             MI

beta-TCVAE adds (beta - 1) TC to the negative ELBO. The mutual information gap (MIG) says how far each factor of
variation is known to one latent only. Everything is in nats.

Source: Chen, Li, Grosse, Duvenaud 2018, "Isolating sources of disentanglement in variational autoencoders": the
decomposition is equation 2, minibatch weighted sampling equation 3, the loss equation 4, the MIG equation 6 with the
mutual information of equation 5; stratified sampling is in the appendix.

Shapes: S samples z, N posteriors, B items of a batch, K latents, F factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
CHUNK = 1 << 18  # values of (K, S, N) that a full-data estimate works on at a time


def log_density(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log q(z_ik | n) of every sample under every posterior: (S, K), (N, K), (N, K) -> (K, S, N)."""
    # Contiguous in N, over which sums will run: else the layout of what follows is that of the transposes.
    z, mean, log_std = z.t()[:, :, None], mean.t().contiguous()[:, None, :], log_std.t().contiguous()[:, None, :]
    standardised = (z - mean) * torch.exp(-log_std)  # (K, S, N)
    # -1/2 standardised^2 - log_std - 1/2 log 2 pi, in one pass: nearly all time is spent on arrays of this size.
    return torch.addcmul(-log_std - HALF_LOG_2PI, standardised, standardised, value=-0.5)


def sample(mean: Tensor, log_std: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One z ~ q(z|n) for every n, with a gradient to both: (N, K), (N, K) -> (N, K)."""
    noise = torch.empty_like(mean, requires_grad=False).normal_(generator=generator)
    return mean + torch.exp(log_std) * noise


# --------------------------------------------------------------------------------------------------------------------
# The aggregate posterior


@dataclass(frozen=True)
class Aggregate:
    """Logarithms of the aggregate posterior and of its marginals, at S samples."""

    log_joint: Tensor  # (S,) log q(z)
    log_marginals: Tensor  # (S, K) log q(z_j)

    @property
    def log_ratio(self) -> Tensor:
        """(S,) log q(z) - sum_j log q(z_j), whose mean over z ~ q(z) is the total correlation."""
        return self.log_joint - self.log_marginals.sum(1)


def _mixture(z: Tensor, mean: Tensor, log_std: Tensor, log_weight: Tensor) -> Aggregate:
    """sum_n weight_n q(z|n), jointly and by latent. log_weight: (S, N), or (N,) for all samples."""
    density = log_density(z, mean, log_std)  # (K, S, N)
    joint = torch.logsumexp(log_weight + density.sum(0), 1)  # (S,)
    # The weight enters once in the joint and once in each marginal: not once per latent in the joint.
    marginals = torch.logsumexp(log_weight + density, 2)  # (K, S)
    return Aggregate(joint, marginals.t())


def full_data(z: Tensor, mean: Tensor, log_std: Tensor, weight: Tensor | None = None) -> Aggregate:
    """log q(z) and log q(z_j) under the mixture of all N posteriors.

    z: (S, K). mean, log_std: (N, K). weight: (N,) p(n), up to a factor; None is uniform.
    Works through the samples in chunks, so that memory stays bounded as long as no gradient is asked for.
    Raises ValueError where shapes do not fit, or weights are negative or all zero.
    """
    _check(z, mean, log_std)
    log_weight = torch.log(_probabilities(weight, mean))  # (N,)
    size = max(1, CHUNK // mean.numel())
    parts = [_mixture(part, mean, log_std, log_weight) for part in z.split(size)]
    return Aggregate(torch.cat([part.log_joint for part in parts]), torch.cat([part.log_marginals for part in parts]))


def minibatch_weighted(z: Tensor, mean: Tensor, log_std: Tensor, dataset_size: int) -> Aggregate:
    """Minibatch weighted sampling (MWS): log q(z_i) ~ log 1/(N B) sum_j q(z_i | n_j).

    z: (B, K), z_i drawn from posterior i of the batch. mean, log_std: (B, K). dataset_size: N.
    For gradients (equation 3). The value of its TC means nothing: log(N B) is subtracted once from log q(z) but K times
    from the sum of the log q(z_j), so that it is (K - 1) log N above that of the plain average over the batch.
    Raises ValueError where shapes do not fit or the batch is larger than the data set.
    """
    batch = _check_batch(z, mean, log_std, dataset_size)
    return _mixture(z, mean, log_std, mean.new_full((batch,), -math.log(dataset_size * batch)))


def stratified_weights(batch: int, dataset_size: int) -> Tensor:
    """The weights of minibatch stratified sampling: (B, B) float64, row i for z_i; rows sum to 1.

    With M = B - 1 others in the batch, an item's own posterior has weight 1/N, one other (N - M) / (N M), and the rest
    1/M each. Row i's "one other" is i + 1, modulo B.

    The authors' code, and what was copied from it, fills a flat view of the matrix with stride M + 1. A row has
    B = M + 1 entries, so that stride walks down column 0 and not along the diagonal, whose stride is B + 1: every z_i
    gives the weight 1/N to item 0, and 1/M to its own posterior. What comes out is nearly the plain average over the
    batch, in which z_i's own posterior counts N/M times too much.
    """
    if not 2 <= batch <= dataset_size:
        raise ValueError(f"a batch of {batch} out of {dataset_size}: it needs two items at least, and no more than all")
    others = batch - 1
    weights = torch.full((batch, batch), 1 / others, dtype=torch.float64)
    index = torch.arange(batch)
    weights[index, index] = 1 / dataset_size
    weights[index, (index + 1) % batch] = (dataset_size - others) / (dataset_size * others)
    return weights


def minibatch_stratified(z: Tensor, mean: Tensor, log_std: Tensor, dataset_size: int) -> Aggregate:
    """Minibatch stratified sampling (MSS): q(z_i) ~ sum_j W_ij q(z_i | n_j), with W from `stratified_weights`.

    z: (B, K), z_i drawn from posterior i of the batch. mean, log_std: (B, K). dataset_size: N.
    Unbiased for q(z) and q(z_j) where the batch is drawn uniformly and without replacement; their logarithms, and so
    the TC, are biased downwards where the batch is small. Raises ValueError as `minibatch_weighted`, and for B = 1.
    """
    batch = _check_batch(z, mean, log_std, dataset_size)
    weights = stratified_weights(batch, dataset_size)
    return _mixture(z, mean, log_std, torch.log(weights).to(mean))


def uniform_stratified(
    centre: Tensor, step: Tensor | float, dataset_size: int, generator: torch.Generator | None = None
) -> Aggregate:
    """`minibatch_stratified` for latents that are quantized, or have uniform noise in place of quantization.

    Their posteriors are boxes of width `step`. A sample lies in its own box and in hardly any other of the batch, and
    densities of boxes are flat or zero: the logarithms are constants or -inf, and the gradient vanishes. So each box is
    replaced by a Gaussian of the same mean and variance, step^2 / 12, and z is drawn from that.

    centre: (B, K), before quantization (the gradient flows through it). step: broadcasts to it, positive.
    Raises ValueError as `minibatch_stratified`.
    """
    step = torch.as_tensor(step, dtype=centre.dtype, device=centre.device)
    if not bool((step > 0).all()):
        raise ValueError("steps must be positive")
    log_std = torch.log(step / math.sqrt(12)).expand_as(centre)  # (B, K)
    return minibatch_stratified(sample(centre, log_std, generator), centre, log_std, dataset_size)


# --------------------------------------------------------------------------------------------------------------------
# The penalty


def total_correlation_penalty(aggregate: Aggregate, beta: float) -> Tensor:
    """(beta - 1) TC, the mean over the batch: what turns the negative ELBO into the loss of beta-TCVAE (equation 4).

    aggregate: of a batch, from `minibatch_weighted`, `minibatch_stratified` or `uniform_stratified`. Scalar, nats per
    item.
    """
    return (beta - 1.0) * aggregate.log_ratio.mean()


# --------------------------------------------------------------------------------------------------------------------
# The decomposition of the rate


@dataclass(frozen=True)
class Decomposition:
    """E_n KL(q(z|n) || N(0, 1)) and its three parts, in nats."""

    kl: float  # in closed form, over all N posteriors
    index_code_mi: float  # I_q(z; n), from samples like the next two
    total_correlation: float
    dimension_wise_kl: float

    @property
    def error(self) -> float:
        """The three parts' sum minus `kl`: the error of sampling, whose expectation is zero."""
        return self.index_code_mi + self.total_correlation + self.dimension_wise_kl - self.kl


def gaussian_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of each latent, in nats, same shape."""
    return 0.5 * (mean.square() + torch.exp(2 * log_std) - 1.0) - log_std


@torch.no_grad()
def decompose(
    z: Tensor, mean: Tensor, log_std: Tensor, index: Tensor | None = None, weight: Tensor | None = None
) -> Decomposition:
    """The parts of the rate under the prior N(0, 1), by the full-data estimator (equation 2).

    z: (S, K) sampled codes; z_i was drawn from the posterior index_i. mean, log_std: (N, K), all posteriors.
    index: (S,) int64, which takes all items equally often, even where p(n) is not uniform; None is 0 .. N-1 (S = N).
    weight: (N,) p(n), up to a factor; None is uniform.
    log q(z) and log q(z_j) are exact given z, so the only error is that of averaging over the samples.
    Raises ValueError where shapes do not fit, or weights are negative or all zero.
    """
    _check(z, mean, log_std)
    if index is None:
        if len(z) != len(mean):
            raise ValueError(f"{len(z)} samples of {len(mean)} posteriors need an index")
        index = torch.arange(len(z), device=z.device)
    if index.shape != z.shape[:1]:
        raise ValueError(f"index has shape {tuple(index.shape)}, z {tuple(z.shape)}")
    p = _probabilities(weight, mean)
    of_sample = _normalised(p[index])  # (S,)
    aggregate = full_data(z, mean, log_std, weight)
    standardised = (z - mean[index]) * torch.exp(-log_std[index])
    log_posterior = (-0.5 * standardised.square() - log_std[index] - HALF_LOG_2PI).sum(1)  # (S,) log q(z|n)
    log_prior = -0.5 * z.square() - HALF_LOG_2PI  # (S, K)

    def average(values: Tensor) -> float:
        return torch.dot(of_sample.double(), values.double()).item()

    return Decomposition(
        kl=torch.dot(p.double(), gaussian_kl(mean, log_std).sum(1).double()).item(),
        index_code_mi=average(log_posterior - aggregate.log_joint),
        total_correlation=average(aggregate.log_ratio),
        dimension_wise_kl=average((aggregate.log_marginals - log_prior).sum(1)),
    )


# --------------------------------------------------------------------------------------------------------------------
# The mutual information gap


@dataclass(frozen=True)
class InformationGap:
    """What each latent says about each factor, and the gap between the best latent and the second best."""

    information: Tensor  # (K, F) I(z_j; v_k), nats
    entropy: Tensor  # (F,) H(v_k), nats, positive

    @property
    def gaps(self) -> Tensor:
        """(F,) normalised by the factor's entropy."""
        best = self.information.topk(2, 0).values  # (2, F)
        return (best[0] - best[1]) / self.entropy

    @property
    def score(self) -> float:
        """The MIG, in 0..1: the mean over the factors."""
        return self.gaps.mean().item()


@torch.no_grad()
def information_gap(
    z: Tensor,
    mean: Tensor,
    log_std: Tensor,
    factors: Tensor,
    weight: Tensor | None = None,
    *,
    samples: int = 10_000,
    generator: torch.Generator | None = None,
) -> InformationGap:
    """The MIG as its authors estimate it, from mixtures of posteriors. Uses sampled codes, not means.

    I(z_j; v_k) = H(z_j) - sum_v p(v_k = v) H(z_j | v_k = v), at least 0 (equations 5 and 6). Each entropy is that
    of the mixture of all posteriors with that value, averaged over at most `samples` of their codes.

    z: (N, K), z_n ~ q(z|n). mean, log_std: (N, K). factors: (N, F) integers. weight: (N,) p(n), up to a factor.
    generator: for the choice of codes where there are more than `samples`. Factors that are constant do not count.
    Raises ValueError where shapes do not fit, K is 1, no factor varies, or weights are negative or all zero.
    """
    _check(z, mean, log_std)
    p = _probabilities(weight, mean)
    columns = _varying(z, factors, p)

    def entropy(members: Tensor) -> Tensor:
        """(K,) of the codes of some items, under their own mixture."""
        chosen = members
        if len(members) > samples:
            order = torch.randperm(len(members), generator=generator, device=generator.device if generator else None)
            chosen = members[order[:samples].to(members.device)]
        # A value whose every chosen item has probability zero has no entropy, and no part in the mean either.
        if not bool(p[chosen].any()):
            return torch.zeros_like(z[0])
        log_marginals = full_data(z[chosen], mean[members], log_std[members], p[members]).log_marginals
        return -(_normalised(p[chosen])[:, None] * log_marginals).sum(0)

    everything = entropy(torch.arange(len(z), device=z.device))
    information, entropies = [], []
    for column in columns:
        conditional, shares = torch.zeros_like(everything), []
        for value in column.unique():
            members = (column == value).nonzero()[:, 0]
            shares.append(p[members].sum())
            conditional += shares[-1] * entropy(members)
        information.append((everything - conditional).clamp_min(0.0))
        entropies.append(_entropy(torch.stack(shares)))
    return InformationGap(torch.stack(information, 1), torch.stack(entropies))


@torch.no_grad()
def histogram_information_gap(
    codes: Tensor, factors: Tensor, weight: Tensor | None = None, *, bins: int = 20
) -> InformationGap:
    """The MIG from histograms: each latent in `bins` bins of equal width between its extremes. Meant for means.

    codes: (N, K), the means of the posteriors by custom; sampled codes give lower figures. factors: (N, F) integers.
    weight: (N,) p(n), up to a factor; None is uniform. Factors that are constant do not count.
    Raises ValueError as `information_gap`.
    Source: the metric of Locatello et al. 2019, "Challenging common assumptions in the unsupervised learning of
    disentangled representations" (disentanglement_lib).
    """
    if codes.ndim != 2:
        raise ValueError(f"codes must be (N, K), not {tuple(codes.shape)}")
    p = _probabilities(weight, codes).double()
    columns = _varying(codes, factors, p)
    low, high = codes.amin(0), codes.amax(0)
    width = torch.where(high > low, high - low, torch.ones_like(low)) / bins
    symbols = ((codes - low) / width).floor().long().clamp(0, bins - 1)  # (N, K)
    information, entropies = [], []
    for column in columns:
        values, value = column.unique(return_inverse=True)
        joint = torch.stack(
            [
                torch.bincount(symbol * len(values) + value, p, bins * len(values)).view(bins, len(values))
                for symbol in symbols.unbind(1)
            ]
        )  # (K, bins, values)
        of_value = joint[0].sum(0)
        marginal = torch.stack([_entropy(rows) for rows in joint.sum(2)])  # (K,)
        together = torch.stack([_entropy(table.flatten()) for table in joint])  # (K,)
        information.append((marginal + _entropy(of_value) - together).clamp_min(0.0))
        entropies.append(_entropy(of_value))
    return InformationGap(torch.stack(information, 1), torch.stack(entropies))


def _varying(codes: Tensor, factors: Tensor, p: Tensor) -> list[Tensor]:
    """The columns (N,) of the factors that take more than one value with positive probability."""
    if factors.ndim != 2 or len(factors) != len(codes):
        raise ValueError(f"factors must be ({len(codes)}, F), not {tuple(factors.shape)}")
    if codes.shape[1] < 2:
        raise ValueError("a gap needs two latents at least")
    columns = [column for column in factors.unbind(1) if len(column[p > 0].unique()) > 1]
    if not columns:
        raise ValueError("no factor varies")
    return columns


def _entropy(p: Tensor) -> Tensor:
    """Scalar, nats. p: probabilities, with 0 log 0 = 0."""
    return -torch.xlogy(p, p).sum()


# --------------------------------------------------------------------------------------------------------------------
# Weights and shapes


def _normalised(weight: Tensor) -> Tensor:
    return weight / weight.sum()


def _probabilities(weight: Tensor | None, like: Tensor) -> Tensor:
    """(N,) p(n), in the type of `like`, which is (N, K)."""
    if weight is None:
        return like.new_full(like.shape[:1], 1 / len(like))
    if weight.shape != like.shape[:1]:
        raise ValueError(f"weights must be ({len(like)},), not {tuple(weight.shape)}")
    if not (bool((weight >= 0).all()) and 0 < weight.sum().item() < math.inf):
        raise ValueError("weights must be at least 0, finite, and not all 0")
    return _normalised(weight.double()).to(like)


def _check(z: Tensor, mean: Tensor, log_std: Tensor) -> None:
    if z.ndim != 2 or mean.ndim != 2 or mean.shape != log_std.shape or z.shape[1] != mean.shape[1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (z, mean, log_std))
        raise ValueError(f"z (S, K), mean (N, K) and log_std (N, K) do not fit together: {shapes}")
    if not (z.numel() and mean.numel()):
        raise ValueError("there must be a sample, a posterior and a latent at least")


def _check_batch(z: Tensor, mean: Tensor, log_std: Tensor, dataset_size: int) -> int:
    _check(z, mean, log_std)
    if z.shape != mean.shape:
        raise ValueError(f"one sample per posterior of the batch is needed: {tuple(z.shape)}, {tuple(mean.shape)}")
    if len(z) > dataset_size:
        raise ValueError(f"a batch of {len(z)} out of {dataset_size}")
    return len(z)
