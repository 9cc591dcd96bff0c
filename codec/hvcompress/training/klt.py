"""Start a network as a multi-scale Karhunen-Loeve transform codec.

Every residual block starts as the identity, so the network starts linear, and a linear codec has a known optimum: the
principal axes of the photographs. The stem and each downsampling keep the strongest axes; each upsampling and the
output are their transposes; the posterior of a layer takes the strongest axes of what the coarser layers have left
(encoder feature minus top-down feature), and its projection puts them back. So training starts from a working
transform codec, with every layer in use, instead of from noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..network import (
    DOWN_GAIN,
    MAX_STRIDE,
    PIXEL_SCALE,
    PIXEL_STRIDE,
    RAW_SCALE,
    HierarchicalVAE,
    log_step_start,
)
from ..scales import LOG_SCALE_STEP


def principal_axes(x: Tensor, count: int) -> Tensor:
    """(B, C, H, W) -> (count, C) orthonormal rows, strongest second moment first; rows beyond C are faint noise."""
    flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double()
    _, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))  # ascending
    axes = vectors.flip(1).T[:count].float()
    if count > len(axes):
        axes = torch.cat((axes, 0.02 * torch.randn(count - len(axes), x.shape[1])))
    return axes


def _set(weight: Tensor, matrix: Tensor) -> None:
    """Write a (C_out, C_in) matrix into the centre tap of a convolution weight, zero elsewhere."""
    weight.zero_()
    weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] = matrix


@torch.no_grad()
def start_as_klt(model: HierarchicalVAE, images: Tensor) -> None:
    """Set the linear parts of a fresh model from photographs (N, 3, H, W) in [0, 1], H and W multiples of 64."""
    widths = model.config.widths
    encoder, topdown, synthesis = model.encoder, model.topdown, model.synthesis

    x = F.pixel_unshuffle((images - 0.5) * PIXEL_SCALE, PIXEL_STRIDE)
    axes = principal_axes(x, widths[PIXEL_STRIDE])
    _set(encoder.stem.weight, axes)
    _set(synthesis.out.weight, axes.T)
    x = encoder.stem(x)
    features, inverse = {PIXEL_STRIDE: x}, {}
    stride = PIXEL_STRIDE
    while stride < MAX_STRIDE:
        stride *= 2
        down = encoder.downs[str(stride)]
        axes = principal_axes(F.pixel_unshuffle(x, 2), widths[stride])
        _set(down.mix.weight, DOWN_GAIN * axes)
        inverse[stride] = axes.T / DOWN_GAIN  # (4 C_{s/2}, C_s)
        features[stride] = x = down(x)
    for target, up in synthesis.ups.items():
        _set(up.mix.weight, inverse[2 * int(target)])

    h = torch.zeros_like(features[MAX_STRIDE])
    for latent, layer, posterior in zip(model.config.latents, topdown.layers, encoder.posteriors, strict=True):
        if layer.up is not None:
            _set(layer.up.mix.weight, inverse[2 * latent.stride])
            h = layer.up(h)
        width = widths[latent.stride]
        _set(posterior.merge.weight, torch.cat((-torch.eye(width), torch.eye(width)), 1))
        left = features[latent.stride] - h
        axes = principal_axes(left, latent.channels)
        _set(posterior.mean.weight, axes)
        _set(layer.project.weight, axes.T)
        z = posterior.mean(left)
        deviation = z.square().mean((0, 2, 3)).sqrt().clamp_min(1e-3)  # (c,)
        raw = (deviation.log() - log_step_start(latent.stride, 0.0)) / (LOG_SCALE_STEP * RAW_SCALE)
        layer.prior.bias[latent.channels :] = raw
        h = h + layer.project(z)
