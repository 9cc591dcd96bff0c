"""A hierarchical VAE of two layers, small enough to train dozens of, to see what each layer's rate is good for.

    model       p(x, z) = p(z2) p(z1|z2) p(x|z1),    p(z2) = N(0, I)
    inference   q(z|x)  = q(z2|x) q(z1|z2, x)                        "generalised top-down": z2 first, as when decoding
    loss        L_beta  = D + beta_2 R(z2) + beta_1 R(z1|z2)

    D = E[-log p(x|z1)],    R(z2) = E KL[q(z2|x) || p(z2)],    R(z1|z2) = E KL[q(z1|z2,x) || p(z1|z2)]

Xiao & Bamler, "Trading Information between Latents in Hierarchical Variational Autoencoders", ICLR 2023. Both betas 1
is the negative ELBO, both equal a beta-VAE. z2 is the coarsest layer and comes first wherever layers are listed. (The
codec counts in coding order: its layer 1 is this z2.) All rates are in nats.

Shapes: B images of d values in [0, 1], flattened; K2 and K1 latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --------------------------------------------------------------------------------------------------------------------
# Distributions


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians; the last dimension is that of one latent vector."""

    mean: Tensor  # (B, K)
    std: Tensor  # (B, K)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """(B, K), differentiable in mean and std."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.std * noise

    def log_density(self, z: Tensor) -> Tensor:
        """(B, K) -> (B,)."""
        error = (z - self.mean) / self.std
        return -(0.5 * error.square() + self.std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


def standard_like(g: Gaussian) -> Gaussian:
    """N(0, I) in the shape of g."""
    return Gaussian(torch.zeros_like(g.mean), torch.ones_like(g.std))


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL[q || p], (B,)."""
    ratio = (q.std / p.std).square()
    shift = ((q.mean - p.mean) / p.std).square()
    return 0.5 * (ratio + shift - 1.0 - ratio.log()).sum(-1)


@dataclass(frozen=True)
class Bernoulli:
    """p(x|z1) for binary pixels; the decoder gives logits."""

    def distortion(self, x: Tensor, output: Tensor) -> Tensor:
        """-log p(x|z1), (B, d), (B, d) -> (B,)."""
        return F.binary_cross_entropy_with_logits(output, x, reduction="none").sum(-1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    def floor(self, dimensions: int) -> float:
        """Distortion of a perfect reconstruction."""
        return 0.0


@dataclass(frozen=True)
class FixedGaussian:
    """p(x|z1) = N(output, sigma^2 I). With sigma^2 = 1/2 the distortion is the squared error, up to a constant."""

    sigma: float = math.sqrt(0.5)

    def distortion(self, x: Tensor, output: Tensor) -> Tensor:
        """-log p(x|z1), (B, d), (B, d) -> (B,)."""
        return (x - output).square().sum(-1) / (2 * self.sigma**2) + self.floor(x.shape[-1])

    def mean(self, output: Tensor) -> Tensor:
        return output

    def floor(self, dimensions: int) -> float:
        """Distortion of a perfect reconstruction."""
        return 0.5 * dimensions * math.log(2 * math.pi * self.sigma**2)


# --------------------------------------------------------------------------------------------------------------------
# The model


class ToGaussian(nn.Module):
    """A Gaussian whose mean and standard deviation a network computes from the concatenated inputs."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.network = nn.Sequential(*layers)  # (B, sum of inputs) -> (B, 2 K)

    def forward(self, *inputs: Tensor) -> Gaussian:
        mean, raw = self.network(torch.cat(inputs, -1)).chunk(2, -1)
        return Gaussian(mean, F.softplus(raw + 0.5) + 1e-4)  # about 1 to start from; never so small that KL explodes


class TwoLayerVAE(nn.Module):
    """The networks of the two-layer model; linear ones make it the linear-Gaussian VAE, whose optimum is known."""

    def __init__(
        self,
        features: nn.Module,  # x (B, d) -> (B, C), what both posteriors see of the image
        q2: nn.Module,  # features -> q(z2|x)
        q1: nn.Module,  # features, z2 -> q(z1|z2,x)
        p1: nn.Module,  # z2 -> p(z1|z2)
        decoder: nn.Module,  # z1 (B, K1) -> (B, d), the parameters of p(x|z1)
        likelihood: Bernoulli | FixedGaussian,
        coarse: int,  # K2
    ):
        super().__init__()
        self.features, self.q2, self.q1, self.p1, self.decoder = features, q2, q1, p1, decoder
        self.likelihood = likelihood
        self.coarse = coarse


def image_vae(
    dimensions: int, likelihood: Bernoulli | FixedGaussian, coarse: int = 16, fine: int = 64, width: int = 512
) -> TwoLayerVAE:
    """With small perceptrons, for images of `dimensions` values: 784 for MNIST, 3072 for CIFAR-10."""

    def perceptron(inputs: int, hidden: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)

    return TwoLayerVAE(
        features=nn.Sequential(nn.Linear(dimensions, width), nn.ReLU()),
        q2=ToGaussian(*perceptron(width, width // 2, 2 * coarse)),
        q1=ToGaussian(*perceptron(width + coarse, width // 2, 2 * fine)),
        p1=ToGaussian(*perceptron(coarse, width // 2, 2 * fine)),
        decoder=nn.Sequential(*perceptron(fine, width, dimensions)),
        likelihood=likelihood,
        coarse=coarse,
    )


@dataclass(frozen=True)
class Pass:
    """What one pass over B images gives, with one sample of the latents per image."""

    z2: Tensor  # (B, K2) sampled from q(z2|x)
    z1: Tensor  # (B, K1) sampled from q(z1|z2,x)
    rates: Tensor  # (B, 2) R(z2), R(z1|z2), nats; the divergences are exact given z2, so never negative
    distortion: Tensor  # (B,) -log p(x|z1), nats
    reconstruction: Tensor  # (B, d) mean of p(x|z1)


def run(model: TwoLayerVAE, x: Tensor, generator: torch.Generator | None = None) -> Pass:
    """Infer, in the order in which a decoder learns the latents, and reconstruct. x: (B, d) in [0, 1]."""
    h = model.features(x)
    posterior2 = model.q2(h)
    z2 = posterior2.sample(generator)
    posterior1, prior1 = model.q1(h, z2), model.p1(z2)
    z1 = posterior1.sample(generator)
    rates = torch.stack((kl_divergence(posterior2, standard_like(posterior2)), kl_divergence(posterior1, prior1)), -1)
    output = model.decoder(z1)
    return Pass(z2, z1, rates, model.likelihood.distortion(x, output), model.likelihood.mean(output))


def objective(outcome: Pass, betas: tuple[float, float]) -> Tensor:
    """L_beta, mean over images. betas: beta_2, beta_1."""
    return (outcome.distortion + (outcome.rates * outcome.rates.new_tensor(betas)).sum(-1)).mean()


def fit(
    model: TwoLayerVAE,
    images: Tensor,
    betas: tuple[float, float],
    *,
    epochs: int,
    seed: int,
    batch: int = 100,
    rate: float = 1e-3,
    tell: Callable[[int], None] = lambda epochs_done: None,
) -> None:
    """Minimize L_beta by Adam, the learning rate falling to zero as a half cosine. images: (N, d) in [0, 1].

    The outcome depends on the model's start, the arguments and the arithmetic of the machine alone.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * math.ceil(len(images) / batch))
    for epoch in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            loss = objective(run(model, images[rows], generator), betas)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        tell(epoch + 1)


# --------------------------------------------------------------------------------------------------------------------
# What a trained model is asked


@torch.no_grad()
def posterior_means(model: TwoLayerVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, d) -> the mean of q(z2|x), (B, K2), and that of q(z1|z2,x) at this z2, (B, K1).

    A mean has no noise, so the rates do not bound what it tells of the image; they bound what a sample tells.
    """
    h = model.features(x)
    z2 = model.q2(h).mean
    return z2, model.q1(h, z2).mean


@torch.no_grad()
def sample_prior(model: TwoLayerVAE, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` images drawn layer by layer from the prior; the mean of p(x|z1), (count, d)."""
    weight = next(model.decoder.parameters())
    z2 = torch.randn(count, model.coarse, generator=generator, dtype=weight.dtype)
    return model.likelihood.mean(model.decoder(model.p1(z2).sample(generator)))


@dataclass(frozen=True)
class Information:
    """Estimates over a set of images, in nats, each with its standard error from the sampling of z."""

    image: float  # I_q(x; z)
    image_error: float
    label: float  # I_q(y; z)
    label_error: float


@torch.no_grad()
def information(posterior: Gaussian, labels: Tensor, generator: torch.Generator | None = None) -> Information:
    """Monte-Carlo estimate of what a sample z ~ q(z|x) tells of its image and of the label.

        I_q(x; z) = E log q(z|x) / q(z),    I_q(y; z) = E log q(z|y) / q(z)

    q(z) is the mixture over all images given, and q(z|y) over those of one label, one sample per image. This
    holds for the images taken as the whole population: it is at most ln N, and at most the entropy of their labels, and
    exceeds the value for a larger population as soon as images can be told apart.

    posterior: of N images, (N, K). labels: (N,) integers.
    """
    posterior = Gaussian(posterior.mean.double(), posterior.std.double())  # the square is expanded below: it cancels
    z = posterior.sample(generator)
    precision = posterior.std.square().reciprocal()  # (N, K)
    constant = (0.5 * posterior.mean.square() * precision + posterior.std.log() + 0.5 * math.log(2 * math.pi)).sum(
        -1
    )  # (N,)
    linear = (posterior.mean * precision).T  # (K, N)
    classes, label = labels.unique(return_inverse=True)
    members = F.one_hot(label, len(classes)).double()  # (N, M)
    of_image, of_label = [], []
    for rows in torch.arange(len(z)).split(500):
        log_q = z[rows] @ linear - 0.5 * z[rows].square() @ precision.T - constant  # (rows, N): log q(z_j | x_n)
        most = log_q.amax(-1, keepdim=True)
        density = torch.exp(log_q - most)  # relative to the largest
        log_aggregate = density.mean(-1).log()
        same = members.sum(0)[label[rows]]  # (rows,) images of the same label
        log_class = ((density * members[:, label[rows]].T).sum(-1) / same).log()
        own = log_q[torch.arange(len(rows)), rows] - most[:, 0]
        of_image.append(own - log_aggregate)
        of_label.append(log_class - log_aggregate)
    image, about = torch.cat(of_image), torch.cat(of_label)
    root = math.sqrt(len(z))
    return Information(image.mean().item(), image.std().item() / root, about.mean().item(), about.std().item() / root)
