"""The training objective: rate per layer, each with its beta, and distortion.

    loss = mean over images of  lambda^-w * ( sum_l beta_l R_l + lambda * 255^2 * MSE )

R_l is the rate of layer l in bits per pixel, estimated with uniform noise in place of quantization; the reconstruction
and everything downstream of a latent see it quantized as it will be (`trellis.py`), with a straight-through gradient
("mixed" quantization, Minnen & Singh 2020). Means and steps learn from the noisy rate, whose noise comes in pairs
+u, -u so that its gradient varies less; scales learn from the symbols that they code, or, where
nothing is coded, from what rounding would have given. There the noisy rate counts as well, in training. The factor
lambda^-w keeps high qualities from drowning the low ones.
beta_l is not a separate input: layer l runs at its own quality index q_l, and lambda / beta_l is the lambda of q_l,
so beta_l = lambda(q) / lambda(q_l); see `quality.py`.

A layer may also pay for the total correlation of its channels, TC_l in bits per pixel (beta-TCVAE, Chen et al. 2018,
equation 4): sum_l (beta_tc_l - 1) TC_l joins the rates. The channels of one position are one code there, and the
positions of all training images the data set. Only for the coarsest layer, whose prior knows nothing, is TC_l a part
of R_l. Where the posteriors are quantized it has no gradient, so Gaussians stand in (`information.uniform_stratified`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..analysis.information import uniform_stratified
from ..exact import to_values
from ..model import Parts
from ..network import HierarchicalVAE, Prior, dequantize, descend
from ..quality import LAMBDA_MAX, LAMBDA_MIN, LEVELS
from ..rate import bits
from ..symbols import is_coded
from ..trellis import level_bits, quantize

TC_POSITIONS = 1024  # of a batch, at most, that a total correlation is estimated from: its cost is quadratic


@dataclass(frozen=True)
class Outcome:
    """Of one forward pass. B images, L layers."""

    loss: Tensor  # scalar
    rates: Tensor  # (B, L) bits per pixel of each layer
    mse: Tensor  # (B,) mean squared error of pixels in [0, 1]


def lambdas(quality: Tensor) -> Tensor:
    """`quality.lambda_of` for a tensor."""
    return LAMBDA_MIN * torch.exp(math.log(LAMBDA_MAX / LAMBDA_MIN) / (LEVELS - 1) * quality.float())


def total_correlation(mean: Tensor, step: Tensor, images: int, generator: torch.Generator | None = None) -> Tensor:
    """Total correlation of a layer's channels, in bits summed over the positions of each image: (B,).

    The expectation over the batch counts; a single image's value may be negative. mean: (B, c, H/s, W/s), before
    quantization. step: (B, c, 1, 1). images: how many the training set holds. generator: for samples of the posterior.
    """
    batch, channels, height, width = mean.shape
    positions = height * width
    stride = math.ceil(math.sqrt(batch * positions / TC_POSITIONS))
    taken = mean[:, :, ::stride, ::stride]
    codes = taken.permute(0, 2, 3, 1).reshape(-1, channels)  # (B * h * w, c)
    steps = step.expand_as(taken).permute(0, 2, 3, 1).reshape(-1, channels)
    aggregate = uniform_stratified(codes, steps, max(images, batch) * positions, generator)
    return aggregate.log_ratio.view(batch, -1).mean(1) * positions / math.log(2)


def evaluate(
    model: HierarchicalVAE | Parts,
    image: Tensor,
    quality: Tensor,
    offsets: Tensor,
    *,
    noise: torch.Generator | None,
    weight_exponent: float,
    size: tuple[int, int] | None = None,
    beta_tc: Mapping[int, float] | None = None,
    images: int = 0,
) -> Outcome:
    """One pass over a batch. The same function trains, validates, and fits an encoder to a picture (`effort.py`).

    image: (B, 3, H, W) in [0, 1]. quality: (B,) int64. offsets: (B, L) int64.
    noise: generator for the rate's noise; None takes the rate of the symbols alone (validation).
    size: height and width of the images where the rest, right and below, is padding.
    beta_tc: weights of total correlation by layer, 1 the coarsest; the others' are 1, which is no penalty. images: how
    many the training set holds, for its estimate.
    """
    height, width = size or image.shape[-2:]
    pixels = height * width
    qualities = (quality[:, None] - offsets).clamp(0, LEVELS - 1)  # (B, L)
    features = model.encoder(image, quality)
    rates: list[Tensor] = []
    penalty = torch.zeros(len(image), device=image.device)  # (B,) bits per pixel

    def choose(prior: Prior) -> Tensor:
        nonlocal penalty
        layer = prior.layer
        encoded = features[model.topdown.config.latents[layer].stride]
        feature = to_values(prior.feature, encoded.dtype)
        mean = model.encoder.posteriors[layer](feature, encoded, qualities[:, layer])
        expected, step = to_values(prior.mean), to_values(prior.step)
        residual = (mean.float() - expected) / step  # (B, c, H/s, W/s), in steps
        levels, shifted = quantize(residual, prior.scale_index)
        coded = is_coded(prior.scale_index)
        # A scale that leaves nothing to code learns from what rounding would have coded, or it could never grow again.
        rate = level_bits(torch.where(coded, levels, 2 * residual.detach().round()), shifted, prior.scale_index)
        if noise is None:
            rate = rate * coded
        else:
            u = torch.rand(residual.shape, generator=noise, device=residual.device) - 0.5
            index = prior.scale_index.detach()
            towards_mean = 0.5 * (bits(residual + u, index) + bits(residual - u, index))
            rate = towards_mean + rate - rate.detach()  # the value of the one, the gradients of both
        rates.append(rate.sum((1, 2, 3)) / pixels)
        if beta_tc and layer + 1 in beta_tc:
            correlation = total_correlation(mean.float(), step, images, noise)
            penalty = penalty + (beta_tc[layer + 1] - 1.0) * correlation / pixels
        if not prior.mean.is_floating_point():
            return dequantize(prior, levels, model.topdown.snap)
        straight_through = residual + (0.5 * levels - residual).detach()
        return model.topdown.snap(expected + step * straight_through)

    h = descend(model.topdown.walk(qualities, *image.shape[-2:]), choose).all()
    output = model.synthesis(h.to(image.dtype) if h.is_floating_point() else h, quality).float()
    mse = (output - image)[:, :, :height, :width].square().mean((1, 2, 3))  # (B,)
    rate = torch.stack(rates, 1)  # (B, L)
    lam = lambdas(quality)
    beta = lam[:, None] / lambdas(qualities)
    cost = (beta * rate).sum(1) + penalty + lam * 255.0**2 * mse
    return Outcome((cost * lam.pow(-weight_exponent)).mean(), rate.detach(), mse.detach())
