"""Codecs of CompressAI as baselines: where it is installed, and pretrained where their weights are on this machine.

CompressAI downloads weights from the internet; here nothing is downloaded. What torch.hub has in its folder is used,
and what it does not have is left out of rate-distortion. Speed needs no trained weights: but without them there is next
to nothing to code, so the range coder's part is then flattered.
"""

from __future__ import annotations

import importlib.util
import os
import struct
from functools import lru_cache

import numpy as np
from PIL import Image

from classical import CLASSICAL, Classical

QUALITIES = tuple(range(1, 9))
PREFIX = "compressai-"  # before CompressAI's own names, of which some are keys of published curves
ARCHITECTURES = {
    PREFIX + "bmshj2018-hyperprior": "hyperprior (Ballé et al. 2018)",
    PREFIX + "mbt2018-mean": "mean and scale hyperprior (Minnen et al. 2018)",
    PREFIX + "mbt2018": "joint autoregressive (Minnen et al. 2018)",
    PREFIX + "cheng2020-anchor": "Cheng et al. 2020, anchor",
}


def installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("compressai", "hvcompress"))


def _make_importable() -> None:
    """CompressAI, also beside a torchvision that was built for another torch."""
    import hvcompress.compressai_model  # noqa: F401


def has_weights(key: str) -> bool:
    """Whether torch.hub has the weights of all qualities that a codec is measured at."""
    if not installed():
        return False
    _make_importable()
    import torch
    from compressai.zoo.image import model_urls

    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    urls = model_urls[key.removeprefix(PREFIX)]["mse"]
    return all(os.path.isfile(os.path.join(folder, os.path.basename(urls[q]))) for q in QUALITIES if q in urls)


@lru_cache(8)  # all qualities of a codec
def network(name: str, quality: int, pretrained: bool):
    """A codec of CompressAI on the CPU, ready to code."""
    _make_importable()
    import torch
    from compressai.zoo import image_models

    torch.manual_seed(0)
    model = image_models[name](quality, metric="mse", pretrained=pretrained).eval()
    model.update(force=True)
    return model


def encode(image: Image.Image, quality: float, name: str, pretrained: bool = True) -> bytes:
    """All strings as one file: sides, quality, the latent's shape, and the length of each string but the last."""
    import torch
    from compressai.ops import compute_padding

    x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
    padding, _ = compute_padding(x.shape[2], x.shape[3], min_div=64)
    model = network(name, int(quality), pretrained)
    with torch.inference_mode():
        coded = model.compress(torch.nn.functional.pad(x, padding))
    strings = [of_layer[0] for of_layer in coded["strings"]]
    head = struct.pack("<HHBHHB", *x.shape[2:], int(quality), *coded["shape"], len(strings))
    return b"".join((head, *(struct.pack("<I", len(s)) for s in strings[:-1]), *strings))


def decode(data: bytes, name: str, pretrained: bool = True) -> np.ndarray:
    """(H, W, 3) uint8. Inverse of `encode`."""
    import torch
    from compressai.ops import compute_padding

    height, width, quality, *shape, count = struct.unpack_from("<HHBHHB", data)
    at = struct.calcsize("<HHBHHB")
    lengths = struct.unpack_from(f"<{count - 1}I", data, at)
    at += 4 * (count - 1)
    strings = []
    for length in (*lengths, len(data) - at - sum(lengths)):
        strings.append([data[at : at + length]])
        at += length
    with torch.inference_mode():
        x = network(name, quality, pretrained).decompress(strings, shape)["x_hat"]
    _, unpadding = compute_padding(height, width, min_div=64)
    pixels = torch.nn.functional.pad(x, unpadding)[0].permute(1, 2, 0)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _version() -> str:
    import compressai

    return f"compressai {compressai.__version__}, weights from torch.hub"


def _codec(key: str, label: str) -> Classical:
    name = key.removeprefix(PREFIX)

    def encode_at(image: Image.Image, quality: float) -> bytes:
        return encode(image, quality, name)

    def decode_again(data: bytes) -> np.ndarray:
        return decode(data, name)

    settings = "trained for MSE, strings and 10 bytes of header"
    points = QUALITIES if name != "cheng2020-anchor" else QUALITIES[:6]
    return Classical(key, f"CompressAI {label}", settings, "quality", points, encode_at, decode_again, _version)


LEARNED = tuple(_codec(key, label) for key, label in ARCHITECTURES.items())


def other(key: str) -> Classical:
    """Any codec but ours."""
    return next(codec for codec in (*CLASSICAL, *LEARNED) if codec.key == key)
