"""The training objective: rate per layer, each with its beta, and distortion.

    loss = mean over images of  lambda^-w * ( sum_l beta_l R_l + lambda * 255^2 * MSE )

R_l is the rate of layer l in bits per pixel, estimated with uniform noise in place of rounding; the reconstruction
and everything downstream of a latent see it hard-rounded, with a straight-through gradient ("mixed" quantization,
Minnen & Singh 2020). Only means learn from the noisy rate, whose noise comes in pairs +u, -u so that its gradient
varies less; scales learn from the hard-rounded symbols that they code. The factor lambda^-w keeps high qualities
from drowning the low ones.
beta_l is not a separate input: layer l runs at its own quality index q_l, and lambda / beta_l is the lambda of q_l,
so beta_l = lambda(q) / lambda(q_l); see `quality.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import Parts
from ..network import HierarchicalVAE, Prior, descend, scale_of
from ..quality import LAMBDA_MAX, LAMBDA_MIN, LEVELS
from ..scales import SCALE_LEVELS

MIN_PROBABILITY = 2.0**-24  # what the range coder gives at least; below it a symbol is escaped


@dataclass(frozen=True)
class Outcome:
    """Of one forward pass. B images, L layers."""

    loss: Tensor  # scalar
    rates: Tensor  # (B, L) bits per pixel of each layer
    mse: Tensor  # (B,) mean squared error of pixels in [0, 1]


class _Bound(torch.autograd.Function):
    """Clamp whose gradient is cut only where it would push further outside."""

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        blocked = ((x < low) & (grad > 0)) | ((x > high) & (grad < 0))  # descent would leave the range further
        return grad.masked_fill(blocked, 0.0), None, None


def bits(residual: Tensor, scale_index: Tensor) -> Tensor:
    """Information, in bits, of a residual in units of steps under a zero-mean Gaussian integrated over one step.

    residual, scale_index: same shape; scale_index may lie outside the table and is bounded here.
    """
    scale = scale_of(_Bound.apply(scale_index.float(), 0.0, SCALE_LEVELS - 1.0))
    # Both arguments negative side up: the tails keep their precision.
    distance = residual.float().abs()
    root = math.sqrt(0.5)
    upper = torch.erfc((distance - 0.5) / scale * root)
    lower = torch.erfc((distance + 0.5) / scale * root)
    probability = 0.5 * (upper - lower)
    return -torch.log2(_Bound.apply(probability, MIN_PROBABILITY, 1.0))


def straight_through(x: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity."""
    return x + (torch.floor(x + 0.5) - x).detach()


def lambdas(quality: Tensor) -> Tensor:
    """`quality.lambda_of` for a tensor."""
    return LAMBDA_MIN * torch.exp(math.log(LAMBDA_MAX / LAMBDA_MIN) / (LEVELS - 1) * quality.float())


def evaluate(
    model: HierarchicalVAE | Parts,
    image: Tensor,
    quality: Tensor,
    offsets: Tensor,
    *,
    noise: torch.Generator | None,
    weight_exponent: float,
    size: tuple[int, int] | None = None,
) -> Outcome:
    """One pass over a batch. The same function trains, validates, and fits an encoder to a picture (`effort.py`).

    image: (B, 3, H, W) in [0, 1]. quality: (B,) int64. offsets: (B, L) int64.
    noise: generator for the rate's noise; None takes the rate of the hard-rounded symbols (validation).
    size: height and width of the images where the rest, right and below, is padding.
    """
    height, width = size or image.shape[-2:]
    pixels = height * width
    qualities = (quality[:, None] - offsets).clamp(0, LEVELS - 1)  # (B, L)
    features = model.encoder(image, quality)
    rates: list[Tensor] = []

    def choose(prior: Prior) -> Tensor:
        layer = prior.layer
        encoded = features[model.topdown.config.latents[layer].stride]
        mean = model.encoder.posteriors[layer](prior.feature.to(encoded.dtype), encoded, qualities[:, layer])
        step = prior.step.float()
        residual = (mean.float() - prior.mean.float()) / step  # (B, c, H/s, W/s), in steps
        symbols = straight_through(residual)
        if noise is None:
            rate = bits(symbols, prior.scale_index)
        else:
            u = torch.rand(residual.shape, generator=noise, device=residual.device) - 0.5
            index = prior.scale_index.detach()
            towards_mean = 0.5 * (bits(residual + u, index) + bits(residual - u, index))
            towards_scale = bits(symbols.detach(), prior.scale_index)
            rate = towards_mean + towards_scale - towards_scale.detach()
        rates.append(rate.sum((1, 2, 3)) / pixels)
        return model.topdown.snap(prior.mean.float() + step * symbols)

    h = descend(model.topdown.walk(qualities, *image.shape[-2:]), choose)
    output = model.synthesis(h.to(image.dtype), quality).float()
    mse = (output - image)[:, :, :height, :width].square().mean((1, 2, 3))  # (B,)
    rate = torch.stack(rates, 1)  # (B, L)
    lam = lambdas(quality)
    beta = lam[:, None] / lambdas(qualities)
    cost = (beta * rate).sum(1) + lam * 255.0**2 * mse
    return Outcome((cost * lam.pow(-weight_exponent)).mean(), rate.detach(), mse.detach())
