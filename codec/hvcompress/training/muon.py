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
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).contiguous()
    for _ in range(steps):  # x <- a x + (b xx' + c (xx')^2) x
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def as_matrix(weight: Tensor) -> Tensor:
    """(C_out, C_in, k, k) -> (C_out, k * k * C_in): a view where memory is channels last. The order of columns is
    nothing to an orthogonalisation."""
    return weight.permute(0, 2, 3, 1).flatten(1)


class Muon(torch.optim.Optimizer):
    """For 4-D convolution weights, taken as matrices of C_out rows."""

    def __init__(
        self, weights: list[Tensor], lr: float, momentum: float = 0.95, precision: torch.dtype = torch.float32
    ):
        super().__init__(weights, {"lr": lr, "momentum": momentum})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if "momentum" not in self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
                by_shape.setdefault((len(weight), weight[0].numel()), []).append(weight)
            for shape, weights in by_shape.items():
                # One copy from memory to memory per weight: on a CPU these cost more than the products.
                stacked = torch.empty(len(weights), *shape, dtype=self.precision, device=weights[0].device)
                for row, weight in zip(stacked, weights, strict=True):
                    average = self.state[weight]["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                    row.copy_(as_matrix(weight.grad.lerp(average, group["momentum"])))  # Nesterov
                updates = orthogonalise(stacked).to(weights[0].dtype)
                size = 0.2 * max(shape) ** 0.5
                for weight, update in zip(weights, updates, strict=True):
                    rows, columns, *kernel = weight.shape
                    update = update.reshape(rows, *kernel, columns).permute(0, 3, 1, 2)
                    weight.add_(update, alpha=-group["lr"] * size)
