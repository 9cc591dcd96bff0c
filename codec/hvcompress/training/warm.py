"""Start a network from an exported model: to train it further, or as the shallower part of a deeper one.

The grid's integers become floating-point weights again, the tables of the quality index curves through knots. Blocks
that the model lacks keep their start as the identity, so a deeper network begins where the model stands.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..exact import ACTIVATION_BITS, BIAS_BITS, TABLE_BITS, ExactConv2d, QualityTable, weight_scale
from ..model import ModelFolder, part_of, read_tensors
from ..network import HierarchicalVAE, Step
from ..quality import interpolation

BLOCK = re.compile(r"\.(blocks|stages\.\d+)\.\d+\.")  # in the name of a residual block's parameter


def knots_through(table: Tensor, knots: int) -> Tensor:
    """(LEVELS, C) values per quality index -> (knots, C) whose interpolation is nearest to them."""
    hats = torch.tensor(interpolation(knots), dtype=torch.float64)
    return torch.linalg.lstsq(hats, table.double()).solution.float()


def thawed(path: nn.Module, integers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point state of an exact path from its stored integers (`exact.to_integers`)."""

    def values(name: str, bits: int) -> Tensor:
        return integers[name].double() * 2.0**-bits

    state = {"start": values("start", ACTIVATION_BITS).float()} if "start" in integers else {}
    for name, part in path.named_modules():
        if isinstance(part, ExactConv2d) and f"{name}.weight" in integers:
            scale = weight_scale(integers[f"{name}.exponent"], part.bits)
            state[f"{name}.weight"] = integers[f"{name}.weight"] * scale
            state[f"{name}.bias"] = values(f"{name}.bias", BIAS_BITS).float()
        elif isinstance(part, QualityTable) and f"{name}.table" in integers:
            curve = values(f"{name}.table", TABLE_BITS)
            state[f"{name}.knots"] = knots_through(curve.log() if isinstance(part, Step) else curve, len(part.knots))
    return state


def start_from_model(model: HierarchicalVAE, folder: ModelFolder) -> None:
    """Set a fresh network's parameters from a model folder's, in place.

    Raises ModelError where the folder is damaged or for another architecture, UsageError where the model is of another
    width, has other layers, or is deeper than the network.
    """
    tensors = read_tensors(folder)
    state = {name: value.float() for name, value in tensors.items() if name.startswith("encoder.")}
    strange = []
    for prefix, path in (("topdown.", model.topdown), ("synthesis.", model.synthesis)):
        integers = part_of(tensors, prefix)
        values = thawed(path, integers)
        state |= {prefix + name: value for name, value in values.items()}
        trained = {name: name.replace(".table", ".knots").replace(".exponent", ".weight") for name in integers}
        strange += [name for name in integers if trained[name] not in values]
    own = model.state_dict()
    strange += [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    strange += [name for name in own if name not in state and not BLOCK.search(name)]
    if strange:
        raise UsageError(f"model {folder.name} does not fit the recipe's network: {strange[0]}")
    model.load_state_dict(state, strict=False)
