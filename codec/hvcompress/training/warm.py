"""Start a network from an exported model: to train it further, or as the shallower part of a deeper one.

The grid's integers become floating-point weights again, the tables of the quality index curves through knots. Blocks
that the model lacks keep their start as the identity, so a deeper network begins where the model stands.
"""

from __future__ import annotations

import re

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UsageError
from ..exact import ACTIVATION_BITS, BIAS_BITS, TABLE_BITS, WEIGHT_BITS, ExactConv2d, QualityTable
from ..model import WEIGHTS, ModelFolder
from ..network import ARCHITECTURE, HierarchicalVAE, Step
from ..quality import interpolation

BLOCK = re.compile(r"\.(blocks|stages\.\d+)\.\d+\.")  # in the name of a residual block's parameter


def knots_through(table: Tensor, knots: int) -> Tensor:
    """(LEVELS, C) values per quality index -> (knots, C) whose interpolation is nearest to them."""
    hats = torch.tensor(interpolation(knots), dtype=torch.float64)
    return torch.linalg.lstsq(hats, table.double()).solution.float()


def thawed(topdown: nn.Module, integers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point state of a top-down path from its stored grid values (`exact.to_integers`)."""
    bits = {"weight": WEIGHT_BITS, "bias": BIAS_BITS, "table": TABLE_BITS}
    state = {}
    for name, part in topdown.named_modules():
        if isinstance(part, ExactConv2d):
            kinds = ("weight", "bias")
        elif isinstance(part, QualityTable):
            kinds = ("table",)
        else:
            continue
        for kind in kinds:
            if f"{name}.{kind}" not in integers:
                continue
            values = integers[f"{name}.{kind}"].double() * 2.0 ** -bits[kind]
            if kind == "table":
                values = torch.log(values) if isinstance(part, Step) else values
                state[f"{name}.knots"] = knots_through(values, len(part.knots))
            else:
                state[f"{name}.{kind}"] = values.float()
    state["start"] = integers["start"].float() * 2.0**-ACTIVATION_BITS
    return state


def start_from_model(model: HierarchicalVAE, folder: ModelFolder) -> None:
    """Set a fresh network's parameters from a model folder's, in place.

    Raises UsageError where the model is of another width, has other layers, or is deeper than the network.
    """
    if folder.config["network"].get("architecture") != ARCHITECTURE:
        raise UsageError(f"model {folder.name} is for another architecture of the network")
    tensors = load_file(folder.path / WEIGHTS)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    state = {f"topdown.{name}": value for name, value in thawed(model.topdown, part("topdown.")).items()}
    for prefix in ("encoder.", "synthesis."):
        state |= {prefix + name: value.float() for name, value in part(prefix).items()}
    own = model.state_dict()
    strange = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    strange += [name for name in own if name not in state and not BLOCK.search(name)]
    if strange:
        raise UsageError(f"model {folder.name} does not fit the recipe's network: {strange[0]}")
    model.load_state_dict(state, strict=False)
