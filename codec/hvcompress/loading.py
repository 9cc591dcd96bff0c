"""Models that are loaded: each once per device, checked, and kept for the next call."""

from __future__ import annotations

import os
import threading
import warnings

import torch

from . import container
from .codec import Codec
from .devices import pick_device
from .errors import DeviceError, HvcompressWarning
from .model import ModelFolder, find_model, folder_for, load_parts

_loaded: dict[tuple[str, str], Codec | DeviceError] = {}  # by model and device; an error is not tried again
_loading = threading.Lock()


def load_folder(folder: ModelFolder, device: str = "auto") -> Codec:
    """Load a model from its folder, once per device. "auto" falls back to the CPU where the GPU is of no use.

    Raises ModelError, DeviceError.
    """
    try:
        return _load_on(folder, pick_device(device))
    except DeviceError as error:
        if device != "auto":
            raise
        warnings.warn(f"{error}; using the CPU", HvcompressWarning, stacklevel=3)
        return _load_on(folder, torch.device("cpu"))


def _load_on(folder: ModelFolder, picked: torch.device) -> Codec:
    key = (str(folder.path.resolve()) + folder.fingerprint, str(picked))
    with _loading, torch.inference_mode(False):  # it is kept, and may be trained from later
        if key not in _loaded:
            parts = load_parts(folder)
            try:
                codec = Codec(folder, parts, picked)
                answer = codec.self_test()
            except Exception as error:  # no kernel for this GPU, driver too old, out of its memory; or one of Triton's
                if picked.type == "cpu" and not isinstance(error, RuntimeError):
                    raise
                first_line = (str(error).splitlines() or [type(error).__name__])[0]
                refusal = DeviceError(f"{picked} cannot run model {folder.name}: {first_line}")
                if not isinstance(error, torch.cuda.OutOfMemoryError):  # of which there may be enough another time
                    _loaded[key] = refusal
                raise refusal from error
            if answer != folder.config["self_test"]:
                text = f"{picked} does not pass the self-test of model {folder.name}: nothing can be coded"
                _loaded[key] = DeviceError(text)
            else:
                _loaded[key] = codec
        found = _loaded[key]
        if isinstance(found, DeviceError):
            raise DeviceError(str(found))
        return found


def load_model(name_or_path: str | os.PathLike | None = None, device: str = "auto") -> Codec:
    """Load a model by name or folder (None: the default one), check it, and keep it for the next call."""
    return load_folder(find_model(name_or_path), device)


def codec_for(
    data: bytes, device: str = "auto", model: str | os.PathLike | None = None, *, partial: bool = False
) -> Codec:
    """The codec that a file needs: the model that its fingerprint names, or the given one.

    partial: the file may be cut off at its end.
    """
    header = (container.parse_prefix if partial else container.parse)(data).header
    return load_folder(folder_for(header, model), device)
