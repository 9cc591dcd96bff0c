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

from .container import FileInfo, file_bytes, read_info
from .errors import (
    DeviceError,
    FormatError,
    HvcompressError,
    HvcompressWarning,
    InputError,
    LimitError,
    MismatchError,
    ModelError,
    OutputError,
    TargetError,
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
    "HvcompressWarning",
    "InputError",
    "LimitError",
    "MismatchError",
    "ModelError",
    "OutputError",
    "TargetError",
    "UnsupportedError",
    "UsageError",
    "decode",
    "decode_array",
    "decode_batch",
    "encode",
    "encode_batch",
    "latents",
    "load_model",
    "read_info",
]


def encode(
    image: str | os.PathLike | bytes | PIL.Image.Image | np.ndarray,
    quality: int | None = None,
    *,
    bpp: float | None = None,
    size: int | None = None,
    psnr: float | None = None,
    lmbda: float | None = None,
    strict: bool = False,
    beta: Sequence[float] | None = None,
    allocation: str | None = None,
    effort: int = 1,
    strip: bool = False,
    strip_icc: bool = False,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    verify: bool = True,
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """Compress an image to the bytes of an .hvci file.

    image: a path, the bytes of an image file, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3), (H, W, 4).
    quality: 0 (smallest) to 100 (best); 60 if neither it nor one of the following is given.
    bpp, size, psnr: instead of a quality: bits per pixel or bytes of the whole file, or the dB of the decoded RGB
        picture, found within 1 % (for a PSNR of the squared error) by 3 to 6 encodings. Of small pictures the nearest
        that was found; TargetError where the picture cannot have it.
    lmbda: instead of a quality, 0.001 to 0.25: the one that minimises about bits per pixel + lmbda * MSE, the squared
        error on the 0..255 scale.
    strict: never more than bpp or size, never less than psnr.
    beta: rate weight per layer, coarse to fine, each 0.11 to 9; above 1 gives a layer fewer bits. None is 1.
    allocation: betas by name instead, for any model: "hyperprior" (more bits for the coarse layers), "balanced" (all
        alike) or "detail" (more for the fine ones).
    effort: 1 (a fraction of a second per picture) to 9 (many minutes, and more for large pictures). Files get better
        for their size, and decode as fast. Above 1 the symbols are searched for longer, from 4 on the encoder is also
        fitted to the picture, from 6 on the best of several files is taken.
    strip: leave out EXIF and XMP. strip_icc: leave out the profile, so that colours are taken for sRGB.
    model: name or folder of a model; None is the one that ships with the package.
    device: "auto", "cpu", "cuda" or "cuda:N".
    verify: decode the result and compare it with what was meant (costs about one decoding). Done in any case from
        effort 4 on.
    memory_limit: in bytes; a picture that needs more is refused. None is what the machine has to spare.
    progress: called with the steps done, from 0, and how many there are: from effort 4 on steps of fitting and
        encodings, in a search encodings (about how many there will be), else bands of rows of a large picture.

    Raises subclasses of HvcompressError: InputError, LimitError, UsageError, TargetError, ModelError, DeviceError,
    MismatchError.
    """
    from .allocation import allocation_offsets
    from .image_reading import read_picture
    from .loading import load_model as load
    from .picture import stripped
    from .quality import offsets_of
    from .targets import Target, encode_to, rate_of

    rate = rate_of(quality, bpp, size, psnr, lmbda, strict)
    if beta is not None and allocation is not None:
        raise UsageError("beta and allocation both set the betas; give one of them")
    offsets = None if beta is None else offsets_of(beta)
    picture = stripped(read_picture(image, memory_limit=memory_limit), strip, strip_icc)
    codec = load(model, device)
    if allocation is not None:
        offsets = allocation_offsets(allocation, codec.strides)
    options = {"effort": effort, "verify": verify, "memory_limit": memory_limit, "progress": progress}
    if isinstance(rate, Target):
        return encode_to(codec, picture, rate, offsets, **options).data
    return codec.encode(picture, rate, offsets, **options).data


def decode(
    data: bytes,
    *,
    layers: int | None = None,
    crop: Sequence[int] | None = None,
    partial: bool = False,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PIL.Image.Image:
    """Decompress the bytes of an .hvci file to a PIL image of mode L, LA, RGB or RGBA.

    layers: how many to decode, from the coarsest, for a preview; None is all. With fewer the latents are not checked.
    crop: left, top, width and height of a part. Of a large picture little more than its rows is decoded, and the
        latents are not checked.
    partial: take a file that is cut off at its end as well, for the layers that are whole (`layers` at most): never the
        finest, nor alpha and profile, which come last. Damage is then not noticed. Of a complete file nothing changes.
    model, device, memory_limit: as `encode` has them; None is the model that the file names.
    progress: of a large picture, called with the bands of rows done, from 0, and how many there are.

    Raises subclasses of HvcompressError: FormatError, UnsupportedError, LimitError, ModelError, DeviceError,
    MismatchError, UsageError.
    """
    from .image_writing import to_pil
    from .loading import codec_for

    data = file_bytes(data)
    options = {"partial": partial, "memory_limit": memory_limit, "progress": progress}
    return to_pil(codec_for(data, device, model, partial=partial).decode(data, layers, crop, **options))


def decode_array(
    data: bytes,
    *,
    bits: int = 8,
    layers: int | None = None,
    crop: Sequence[int] | None = None,
    partial: bool = False,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """`decode` to an array: (H, W) of a gray picture, (H, W, 3) of any other, one plane more where there is alpha.

    bits: 8 for uint8, or 16 for uint16, in which smooth parts have no steps; 65535 is then white, and opaque.
    Metadata are in what `decode` returns.
    """
    from .loading import codec_for
    from .picture import samples

    data = file_bytes(data)
    options = {"partial": partial, "bits": bits, "memory_limit": memory_limit, "progress": progress}
    return samples(codec_for(data, device, model, partial=partial).decode(data, layers, crop, **options))


def encode_batch(
    images: Iterable[str | os.PathLike | bytes | PIL.Image.Image | np.ndarray],
    quality: int | None = None,
    *,
    jobs: int | None = None,
    bpp: float | None = None,
    size: int | None = None,
    psnr: float | None = None,
    lmbda: float | None = None,
    strict: bool = False,
    beta: Sequence[float] | None = None,
    allocation: str | None = None,
    effort: int = 1,
    strip: bool = False,
    strip_icc: bool = False,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    verify: bool = True,
    memory_limit: int | None = None,
) -> Iterator[bytes]:
    """`encode` of many images, several at a time; yields the bytes of each in the order of the images.

    A target of bpp, size or psnr is that of each image, as is the memory limit.

    images: taken as they are needed, a few ahead. jobs: how many at a time; None is one per core. While the iterator
    is running torch's number of threads, a setting of the whole process, is shared out between them.

    Raises what `encode` raises, when it is the turn of the image concerned.
    """
    import functools

    from .batch import check_jobs, results

    options = {"quality": quality, "bpp": bpp, "size": size, "psnr": psnr, "lmbda": lmbda, "strict": strict}
    options |= {"beta": beta, "allocation": allocation, "effort": effort, "strip": strip, "strip_icc": strip_icc}
    options |= {"model": model, "device": device, "verify": verify, "memory_limit": memory_limit}
    return results(functools.partial(encode, **options), _several(images), check_jobs(jobs))


def decode_batch(
    files: Iterable[bytes],
    *,
    jobs: int | None = None,
    layers: int | None = None,
    crop: Sequence[int] | None = None,
    partial: bool = False,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    memory_limit: int | None = None,
) -> Iterator[PIL.Image.Image]:
    """`decode` of many files, several at a time, in order; otherwise as `encode_batch`."""
    import functools

    from .batch import check_jobs, results

    options = {"layers": layers, "crop": crop, "partial": partial}
    options |= {"model": model, "device": device, "memory_limit": memory_limit}
    return results(functools.partial(decode, **options), _several(files), check_jobs(jobs))


def _several(items: Iterable) -> Iterable:
    """Raises UsageError for a single path or file, which Python would take for many letters or numbers."""
    if isinstance(items, (str, bytes, bytearray, memoryview)):
        raise UsageError("a batch is a list of images or files, not a single one")
    return items


def latents(
    data: bytes,
    layers: int | None = None,
    *,
    model: str | os.PathLike | None = None,
    device: str = "auto",
    memory_limit: int | None = None,
) -> list[np.ndarray]:
    """What an .hvci file says before any pixel is computed: its latents, coarse to fine, (c, h, w) float32 each.

    Features for recognition, search or grouping of pictures. layers: how many of the layers, from the coarsest; the
    others are not read. h and w are the picture's sides divided by the layer's stride and rounded up.

    Raises UsageError where there is no such layer, and otherwise as `decode`.
    """
    from .loading import codec_for

    data = file_bytes(data)
    return codec_for(data, device, model).latents(data, layers, memory_limit=memory_limit)


def load_model(name_or_path: str | os.PathLike | None = None, device: str = "auto") -> Codec:
    """Load a model and keep it; its `encode` and `decode` work on pictures without any look-up."""
    from .loading import load_model as load

    return load(name_or_path, device)
