"""hvcompress: a lossy neural image codec with hierarchical latents.

>>> import hvcompress, numpy
>>> image = numpy.zeros((48, 64, 3), numpy.uint8)
>>> data = hvcompress.encode(image, quality=50)
>>> hvcompress.decode(data).size
(64, 48)
>>> info = hvcompress.read_info(data)
>>> info.width, info.height, info.quality
(64, 48, 50)

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from .container import FileInfo, read_info
from .errors import (
    DeviceError,
    FormatError,
    HvcompressError,
    InputError,
    LimitError,
    MismatchError,
    ModelError,
    OutputError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    import os

    import numpy as np
    import PIL.Image

    from .codec import Codec

__version__ = "0.1.0"

__all__ = [
    "DeviceError",
    "FileInfo",
    "FormatError",
    "HvcompressError",
    "InputError",
    "LimitError",
    "MismatchError",
    "ModelError",
    "OutputError",
    "UnsupportedError",
    "UsageError",
    "decode",
    "decode_batch",
    "encode",
    "encode_batch",
    "latents",
    "load_model",
    "read_info",
]


def encode(
    image: str | os.PathLike | bytes | PIL.Image.Image | np.ndarray,
    quality: int = 60,
    *,
    beta: Sequence[float] | None = None,
    allocation: str | None = None,
    effort: int = 1,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    verify: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """Compress an image to the bytes of an .hvci file.

    image: a path, the bytes of an image file, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3), (H, W, 4).
    quality: 0 (smallest) to 100 (best).
    beta: rate weight per layer, coarse to fine; above 1 gives a layer fewer bits. None weighs all alike.
    allocation: betas by name instead, for any model: "hyperprior" (more bits for the coarse layers), "balanced" (all
        alike) or "detail" (more for the fine ones).
    effort: 1 (a fraction of a second per picture) to 9 (about a minute). Above 1 the encoder is first fitted to the
        picture; files get better for their size, and decode as fast.
    model: name or folder of a model; None is the one that ships with the package.
    device: "auto", "cpu", "cuda" or "cuda:N".
    verify: decode the result and compare it with what was meant (costs about one decoding). Done in any case above
        effort 1.
    progress: above effort 1, called with the steps of fitting done, from 0, and how many there are.

    Raises subclasses of HvcompressError: InputError, LimitError, UsageError, ModelError, DeviceError, MismatchError.
    """
    from .allocation import allocation_offsets
    from .codec import load_model as load
    from .image_io import read_picture
    from .quality import offset_of

    if beta is not None and allocation is not None:
        raise UsageError("beta and allocation both set the betas; give one of them")
    picture = read_picture(image)
    offsets = None if beta is None else [offset_of(value) for value in beta]
    codec = load(model, device)
    if allocation is not None:
        offsets = allocation_offsets(allocation, codec.strides)
    return codec.encode(picture, quality, offsets, effort=effort, verify=verify, progress=progress).data


def decode(
    data: bytes,
    *,
    layers: int | None = None,
    crop: Sequence[int] | None = None,
    model: str | os.PathLike | None = None,
    device: str = "auto",
) -> PIL.Image.Image:
    """Decompress the bytes of an .hvci file to a PIL image of mode L, LA, RGB or RGBA.

    layers: how many to decode, from the coarsest, for a preview; None is all. With fewer the latents are not checked.
    crop: left, top, width and height of a part. Of a large picture little more than its rows is decoded, and the
        latents are not checked.

    Raises subclasses of HvcompressError: FormatError, UnsupportedError, LimitError, ModelError, DeviceError,
    MismatchError, UsageError.
    """
    from .codec import codec_for
    from .image_io import to_pil

    data = bytes(data)
    return to_pil(codec_for(data, device, model).decode(data, layers, crop))


def encode_batch(
    images: Iterable[str | os.PathLike | bytes | PIL.Image.Image | np.ndarray],
    quality: int = 60,
    *,
    jobs: int | None = None,
    beta: Sequence[float] | None = None,
    allocation: str | None = None,
    effort: int = 1,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    verify: bool = True,
) -> Iterator[bytes]:
    """`encode` of many images, several at a time; yields the bytes of each in the order of the images.

    images: taken as they are needed, a few ahead. jobs: how many at a time; None is one per core. While the iterator
    is running torch's number of threads, a setting of the whole process, is shared out between them.

    Raises what `encode` raises, when it is the turn of the image concerned.
    """
    from functools import partial

    from .batch import check_jobs, results

    options = {"quality": quality, "beta": beta, "allocation": allocation, "effort": effort, "verify": verify}
    options |= {"model": model, "device": device}
    return results(partial(encode, **options), images, check_jobs(jobs))


def decode_batch(
    files: Iterable[bytes], *, jobs: int | None = None, model: str | os.PathLike | None = None, device: str = "auto"
) -> Iterator[PIL.Image.Image]:
    """`decode` of many files, several at a time, in order; otherwise as `encode_batch`."""
    from functools import partial

    from .batch import check_jobs, results

    work = partial(decode, model=model, device=device)
    return results(work, files, check_jobs(jobs))


def latents(
    data: bytes, layers: int | None = None, *, model: str | os.PathLike | None = None, device: str = "auto"
) -> list[np.ndarray]:
    """What an .hvci file says before any pixel is computed: its latents, coarse to fine, (c, h, w) float32 each.

    Features for recognition, search or grouping of pictures. layers: how many of the layers, from the coarsest; the
    others are not read. h and w are the picture's sides divided by the layer's stride and rounded up.

    Raises UsageError where there is no such layer, and otherwise as `decode`.
    """
    from .codec import codec_for

    data = bytes(data)
    return codec_for(data, device, model).latents(data, layers)


def load_model(name_or_path: str | os.PathLike | None = None, device: str = "auto") -> Codec:
    """Load a model and keep it; its `encode` and `decode` work on pictures without any look-up."""
    from .codec import load_model as load

    return load(name_or_path, device)
