"""Exponential moving averages of weights: they end nearer to the optimum than weights that still move."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, in place; both of the same architecture."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)
