"""Muon: momentum, orthogonalised, for the convolution weights; Adam for everything else.

torch.optim.Muon takes 2-D weights only and orthogonalises in bfloat16, which a CPU without AMX emulates at a tenth of
the speed of float32; ours reshapes convolution weights, stacks equal shapes into one batched product, and uses the
precision that the device is fast at. Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; the scale of
the update follows Liu et al. 2025 (arXiv 2502.16982), which makes its size that of an Adam step.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton-Schulz coefficients (Jordan et al. 2024)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly: singular values end near 1. (N, rows, columns) -> the same."""
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For 4-D convolution weights, taken as (C_out, C_in * k * k) matrices."""

    def __init__(
        self, weights: list[Tensor], lr: float, momentum: float = 0.95, precision: torch.dtype = torch.float32
    ):
        super().__init__(weights, {"lr": lr, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                average = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                nesterov = weight.grad.lerp(average, group["momentum"]).flatten(1)  # (C_out, C_in*k*k)
                by_shape.setdefault(nesterov.shape, []).append((weight, nesterov))
            for shape, members in by_shape.items():
                stacked = torch.stack([update for _, update in members]).to(self.precision)
                updates = orthogonalise(stacked).to(members[0][0].dtype)
                size = 0.2 * max(shape) ** 0.5
                for (weight, _), update in zip(members, updates, strict=True):
                    weight.add_(update.view_as(weight), alpha=-group["lr"] * size)
