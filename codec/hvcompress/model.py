"""Model folders: where they are, what they hold, and loading them. Only `load_parts` and what it calls need torch.

A model folder is immutable: weights.safetensors, config.json, recipe.toml, CARD.md. Its fingerprint is a SHA-256 over
everything that a decoder's output depends on, so a file names the very numbers it was made with, not a label.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FormatError, MismatchError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from .container import Header
    from .entropy import Tables
    from .network import Encoder, Synthesis, TopDown

DEFAULT_MODEL = "photo-14"
ARCHITECTURE = 6  # counted up when a network of the same sizes, or a level, comes to mean something else
PROFILE = "dyadic-3"  # the rules of the arithmetic (`exact.py`); both are part of a model's fingerprint
WEIGHTS, CONFIG = "weights.safetensors", "config.json"
DECODER_PARTS, ENCODER_PARTS = ("topdown.", "synthesis.", "entropy."), ("encoder.",)


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk, as its config.json describes it."""

    name: str
    path: Path
    fingerprint: str  # 64 hex digits
    description: str
    parameters: int
    config: dict


@dataclass
class Parts:
    """A loaded model."""

    encoder: Encoder
    topdown: TopDown
    synthesis: Synthesis
    tables: Tables


def read_folder(path: Path) -> ModelFolder:
    """Read config.json of a model folder. Raises ModelError."""
    try:
        values = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        for needed in ("network", "self_test", "encoder_sha256"):
            values[needed]
        return ModelFolder(
            values["name"], path, values["fingerprint"], values["description"], values["parameters"], values
        )
    except OSError as error:
        raise ModelError(f"no model in {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path / CONFIG} is damaged") from error


def _shelves() -> list[Path]:
    """Folders of model folders, in the order of preference."""
    here = Path(__file__).resolve().parent
    shelves = [here / "models", here.parent.parent / "models"]
    if os.environ.get("HVCOMPRESS_MODELS"):
        shelves.insert(0, Path(os.environ["HVCOMPRESS_MODELS"]))
    return shelves


def find_models() -> list[ModelFolder]:
    """Every model that can be found by name; the first of a name wins. Damaged folders are passed over."""
    found: dict[str, ModelFolder] = {}
    for shelf in _shelves():
        configs: list[Path] = []
        with contextlib.suppress(OSError):  # a shelf that one may not look at is as good as none
            configs = sorted(shelf.glob(f"*/{CONFIG}"))
        for config in configs:
            with contextlib.suppress(ModelError):
                folder = read_folder(config.parent)
                found.setdefault(folder.name, folder)
    return list(found.values())


def find_model(name: str | os.PathLike | None = None) -> ModelFolder:
    """By name, or the folder of that path; None is the default model. Raises ModelError where there is none."""
    wanted = DEFAULT_MODEL if name is None else os.fspath(name)
    models = find_models()
    for folder in models:
        if folder.name == wanted:
            return folder
    # A path; or a folder of that name on a shelf, which was passed over because it is damaged: say so.
    for path in (Path(wanted), *(shelf / wanted for shelf in _shelves())):
        if os.path.isfile(path / CONFIG):  # False where it cannot be looked at
            return read_folder(path)
    known = ", ".join(folder.name for folder in models) or "none"
    raise ModelError(f"unknown model {wanted!r} (installed: {known})")


def find_fingerprint(fingerprint: bytes) -> ModelFolder:
    """The model whose fingerprint starts with the given bytes. Raises ModelError where it is not installed."""
    for folder in find_models():
        if folder.fingerprint.startswith(fingerprint.hex()):
            return folder
    raise ModelError(
        f"the file was made with a model that is not installed, fingerprint {fingerprint.hex()} "
        "($HVCOMPRESS_MODELS may name the folder that its folder is in)"
    )


def folder_for(header: Header, model: str | os.PathLike | None = None) -> ModelFolder:
    """The model that a file's fingerprint names, or the given one. Raises ModelError."""
    return find_model(model) if model is not None else find_fingerprint(header.fingerprint)


def check_made_with(header: Header, fingerprint: str, layers: int) -> None:
    """Raises ModelError or FormatError where the model of that fingerprint, of so many layers, cannot decode a file."""
    if not fingerprint.startswith(header.fingerprint.hex()):
        raise ModelError(f"the file was made with another model (fingerprint {header.fingerprint.hex()})")
    if len(header.offsets) != layers:
        raise FormatError(f"the file has {len(header.offsets)} layers, its model {layers}")


def check_latents(header: Header, digest: bytes) -> None:
    """digest: of the latents that a decoder arrived at. Raises MismatchError where they are not the encoder's."""
    if digest[:4] != header.latent_hash:
        raise MismatchError(
            "the decoded latents are not those of the encoder: this device or its software computes differently"
        )


def fingerprint_of(arrays: dict[str, np.ndarray], network: dict) -> str:
    """SHA-256 over the decoder's numbers: (name, dtype, shape, little-endian bytes), the layout, and the arithmetic."""
    decoder = {key: value for key, value in network.items() if key != "encoder_blocks"}
    digest = hashlib.sha256(PROFILE.encode())
    digest.update(json.dumps(decoder, sort_keys=True).encode())
    return _with_arrays(digest, arrays, DECODER_PARTS)


def encoder_hash_of(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over the encoder's numbers, which no file depends on: so that damage to them does not go unnoticed."""
    return _with_arrays(hashlib.sha256(), arrays, ENCODER_PARTS)


def _with_arrays(digest: hashlib._Hash, arrays: dict[str, np.ndarray], prefixes: tuple[str, ...]) -> str:
    for name in sorted(arrays):
        if name.startswith(prefixes):
            values = arrays[name]
            digest.update(f"{name} {values.dtype.name} {'x'.join(map(str, values.shape))}".encode())
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def split_tables(reach: np.ndarray, flat: np.ndarray) -> Tables:
    """(SCALE_LEVELS,) int32 reaches and (n,) int32 frequencies of all tables, one after another -> Tables."""
    import numpy as np

    from .entropy import TABLES, TOTAL, Tables
    from .scales import SCALE_LEVELS

    sizes = np.tile(2 * reach.astype(np.int64) + 2, TABLES // SCALE_LEVELS)
    if reach.shape != (SCALE_LEVELS,) or reach.min() < 1 or flat.shape != (sizes.sum(),):
        raise ModelError("the model's frequency tables have the wrong size")
    frequencies = tuple(np.split(flat, np.cumsum(sizes)[:-1]))
    if any(table.min() < 1 or int(table.sum()) != TOTAL for table in frequencies):
        raise ModelError("the model's frequency tables are damaged")
    return Tables(reach, frequencies)


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def assemble(tensors: dict[str, Tensor], network: dict) -> Parts:
    """Networks on the CPU, the decoder frozen and proved, from stored tensors. Raises ModelError."""
    from .exact import from_integers, left_blank, prove
    from .network import Config, Encoder, Synthesis, TopDown

    try:
        config = Config.from_dict(network)
        tables = split_tables(tensors["entropy.reach"].numpy(), tensors["entropy.frequencies"].numpy())
        with left_blank():  # torch.device("meta") would do as much, but imports torch._dynamo, which takes a second
            encoder, topdown, synthesis = Encoder(config), TopDown(config), Synthesis(config)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelError("the model lacks parts or its sizes make no sense") from error
    try:
        encoder.float().load_state_dict(part_of(tensors, "encoder."))
    except RuntimeError as error:
        raise ModelError(f"the model's weights do not fit its {CONFIG}") from error
    encoder.eval().requires_grad_(False)
    for module, prefix in ((topdown, "topdown."), (synthesis, "synthesis.")):
        from_integers(module, part_of(tensors, prefix))
        prove(module)
    return Parts(encoder, topdown, synthesis, tables)


def read_tensors(folder: ModelFolder) -> dict[str, Tensor]:
    """A model's stored tensors, checked to be those that its config.json names. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_architecture(folder)
    try:
        tensors = load_file(folder.path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder.path / WEIGHTS} cannot be read") from error
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    _check_fingerprint(folder, arrays)
    _check_encoder(folder, arrays)
    return tensors


def read_decoder(folder: ModelFolder) -> dict[str, np.ndarray]:
    """The stored arrays of a model's decoder, without torch, checked as `read_tensors` does. Raises ModelError."""
    _check_architecture(folder)
    arrays = _read_arrays(folder, DECODER_PARTS)
    _check_fingerprint(folder, arrays)
    return arrays


def read_encoder(folder: ModelFolder) -> dict[str, np.ndarray]:
    """The stored arrays of a model's encoder, without torch, checked as `read_tensors` does. Raises ModelError."""
    _check_architecture(folder)
    arrays = _read_arrays(folder, ENCODER_PARTS)
    _check_encoder(folder, arrays)
    return arrays


def _read_arrays(folder: ModelFolder, parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder.path / WEIGHTS, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(parts)}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder.path / WEIGHTS} cannot be read") from error


def _check_architecture(folder: ModelFolder) -> None:
    made_for = folder.config["network"].get("architecture", 1)
    if made_for != ARCHITECTURE:
        raise ModelError(f"the model is for architecture {made_for} of the network, this version runs {ARCHITECTURE}")


def _check_fingerprint(folder: ModelFolder, arrays: dict[str, np.ndarray]) -> None:
    if fingerprint_of(arrays, folder.config["network"]) != folder.fingerprint:
        raise ModelError(f"model {folder.name} is damaged: its fingerprint is not the one in {CONFIG}")


def _check_encoder(folder: ModelFolder, arrays: dict[str, np.ndarray]) -> None:
    if encoder_hash_of(arrays) != folder.config["encoder_sha256"]:
        raise ModelError(f"model {folder.name} is damaged: its encoder is not the one that {CONFIG} names")


def load_parts(folder: ModelFolder) -> Parts:
    """Read and check a model. Raises ModelError."""
    return assemble(read_tensors(folder), folder.config["network"])
