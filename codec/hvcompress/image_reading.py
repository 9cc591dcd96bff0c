"""Image files, Pillow images and arrays -> pictures."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from .container import MAGIC, MAX_PIXELS, check_size
from .errors import InputError, LimitError
from .files import open_file, reason
from .forking import prepare_for_fork
from .metadata import clean_exif, clean_xmp
from .picture import Picture
from .plan import check_memory, needed_memory
from .tiff import describing

_ORIENTATION = 0x0112  # EXIF's tag
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_ICON = 2048  # pixels, of a side of what an .ico file may hold: 256, some have 1024; a bitmap's height counts twice
_BAND = 1 << 18  # pixels that are converted at a time: a large picture is never in memory twice for that


def read_picture(
    source: str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray,
    max_pixels: int = MAX_PIXELS,
    *,
    memory_limit: int | None = None,
) -> Picture:
    """Read a picture: a path, the bytes of an image file, a Pillow image, or a uint8 array.

    Arrays are (H, W) or (H, W, 1) gray, (H, W, 3) RGB or (H, W, 4) RGBA. Images may have any of Pillow's modes but
    F, LAB and true 32-bit integers. 16-bit gray is rounded to 8 bits; 16-bit colour arrives from Pillow cut to 8. The
    EXIF orientation is applied, CMYK goes through its profile, of several frames the first is taken. An ICC profile
    is kept if it describes the colours that are kept (RGB, or gray for gray); EXIF and XMP are kept without thumbnail
    and orientation. HEIC takes the package pillow-heif. PostScript, and macOS's
    icons, are refused.

    max_pixels may lower the format's limit. memory_limit: in bytes, for coding the picture; None is what the machine
    has to spare. While a file is read, Pillow's copy, of 4 bytes per pixel, is in memory beside ours, of 3 (4 with
    alpha), and only ours afterwards; of PPM there is just that. Decoders may need more of their own (WebP does).

    Raises InputError (missing, not an image, damaged, truncated, empty, wrong shape or type) and LimitError (too
    large; told from the declared size, before memory is taken for pixels). Messages start with the path, if any.
    """

    def check(width: int, height: int) -> None:
        _check_size(width, height, max_pixels, memory_limit)

    if isinstance(source, np.ndarray):
        return _from_array(source, check)
    if isinstance(source, Image.Image):
        check(*source.size)
        with _pillows_limit_lifted(), _pillow_errors(max_pixels):
            return _from_image(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        with opened(io.BytesIO(source), max_pixels) as image:
            return _from_file(image, max_pixels, check)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"cannot read a picture from {type(source).__name__}")
    path = os.fsdecode(source)
    try:
        with open_file(path) as file, opened(file, max_pixels) as image:
            return _from_file(image, max_pixels, check)
    except (InputError, LimitError) as error:
        raise type(error)(f"{path}: {error}") from error


_opening = threading.Lock()
prepare_for_fork()
_readers: list[int | None] = []  # for everyone who is reading, Pillow's limit as it was before the first began


@contextlib.contextmanager
def _pillows_limit_lifted() -> Iterator[None]:
    """Within it Pillow's own guard against large images is at our limit: it warns there, and refuses at twice as much.

    The setting is one of the whole process. Readers that overlap share it, and the last to end restores it.
    """
    with _opening:
        _readers.append(_readers[0] if _readers else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        yield
    finally:
        with _opening:
            before = _readers.pop()
            if not _readers:
                Image.MAX_IMAGE_PIXELS = before


def forget_readers() -> None:
    """In a forked process: threads that were reading are gone."""
    if _readers:
        Image.MAX_IMAGE_PIXELS = _readers[0]
        _readers.clear()


@contextlib.contextmanager
def opened(file: io.BufferedIOBase, max_pixels: int, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """The header of an image file, read by Pillow; pixels are not decoded yet. Afterwards they are gone from memory.

    formats: Pillow's names of those to try; None is all, and HEIC.
    """
    try:
        # Read ahead here: a file that is a directory, empty or ours deserves a better message than Pillow's.
        if not file.seekable():
            file = io.BytesIO(file.read())
        head = file.read(len(MAGIC))
    except OSError as error:
        raise InputError(reason(error)) from error
    if not head:
        raise InputError("the file is empty")
    if head == MAGIC:
        raise InputError("this is an .hvci file already")
    with _pillows_limit_lifted():
        # The lock keeps two threads from restoring each other's filters.
        with _opening, warnings.catch_warnings(), _pillow_errors(max_pixels):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            _check_icon(file)
            try:
                image = Image.open(file, formats=formats)
            except UnidentifiedImageError:
                if formats is not None or not _looks_like_heif(file):
                    raise
                image = _open_heif(file)
        try:
            if image.format == "EPS":
                raise InputError("PostScript is a program, not an image; it is not run")
            if image.format == "ICNS":  # Pillow decodes what it holds before it looks at the size of that
                raise InputError("an icon of macOS holds several images; take one of them")
            yield image
        finally:
            image.close()


def _check_icon(file: io.BufferedIOBase) -> None:
    """Pillow decodes an .ico file's largest image while it opens the file, whatever size that image declares."""
    file.seek(0)
    head = file.read(6)
    if head[:4] != b"\0\0\1\0":
        return
    entries = [file.read(16) for _ in range(int.from_bytes(head[4:6], "little"))]
    for entry in entries:
        file.seek(int.from_bytes(entry[12:16], "little"))
        start = file.read(24)
        is_png = start.startswith(b"\x89PNG")
        width, height = struct.unpack_from(">II" if is_png else "<ii", start.ljust(24, b"\0"), 16 if is_png else 4)
        if max(abs(width), abs(height)) > _ICON:
            raise LimitError(f"{abs(width)}x{abs(height)}: more than an icon has")


def _looks_like_heif(file: io.BufferedIOBase) -> bool:
    file.seek(0)
    head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS


def _open_heif(file: io.BufferedIOBase) -> Image.Image:
    """HEIC by an optional package: Pillow itself has no decoder."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise InputError(
            "a HEIC or HEIF image; reading it takes the package pillow-heif: pip install pillow-heif"
        ) from error
    file.seek(0)
    return HeifImageFile(file)


@contextlib.contextmanager
def _pillow_errors(max_pixels: int) -> Iterator[None]:
    """Pillow's exceptions become ours. On damaged files its parsers raise nearly any kind."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(f"the image has more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise InputError("not an image, or of a kind that Pillow does not know") from error
    except (InputError, LimitError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"the image is damaged or truncated ({reason(error)})") from error


def _check_size(width: int, height: int, max_pixels: int, memory_limit: int | None) -> None:
    """Raises InputError, and LimitError where there is not the memory for such a picture."""
    if width == 0 or height == 0:
        raise InputError(f"{width}x{height}: the image has no pixels")
    check_size(width, height)
    if width * height > max_pixels:
        raise LimitError(f"{width}x{height}: more than {max_pixels} pixels")
    check_memory(width, height, needed_memory(width, height), memory_limit)


def _from_array(array: np.ndarray, check: Callable[[int, int], None]) -> Picture:
    if array.dtype != np.uint8:
        raise InputError(f"an array must be uint8, not {array.dtype}")
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        raise InputError(f"an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}")
    check(array.shape[1], array.shape[0])
    if array.ndim == 2 or array.shape[2] == 1:
        return Picture(np.repeat(array.reshape((*array.shape[:2], 1)), 3, axis=2), gray=True)
    return Picture(_plain(array[..., :3]), alpha=_plain(array[..., 3]) if array.shape[2] == 4 else None)


def _plain(array: np.ndarray) -> np.ndarray:
    """The array itself or a copy: contiguous and writable, as torch wants it."""
    return np.require(array, requirements=("C", "W"))


def _from_file(image: Image.Image, max_pixels: int, check: Callable[[int, int], None]) -> Picture:
    """The picture in a file that nobody else has open."""
    check(*image.size)
    with _pillow_errors(max_pixels):
        pixels = _stored_plainly(image)
        if pixels is not None:
            return Picture(pixels)
        return _from_image(image)


def _stored_plainly(image: Image.Image) -> np.ndarray | None:
    """Pixels that lie in the file as we need them, as in PPM: Pillow would make a copy of 4 bytes per pixel first."""
    whole = (0, 0, *image.size)
    if image.format != "PPM" or image.mode != "RGB" or len(image.tile) != 1:
        return None
    decoder, extents, offset, arguments = image.tile[0]
    if decoder != "raw" or tuple(extents) != whole or arguments not in ("RGB", ("RGB",), ("RGB", 0, 1)):
        return None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    image.fp.seek(offset)
    if image.fp.readinto(memoryview(pixels).cast("B")) < pixels.nbytes:
        raise InputError("the image is damaged or truncated (pixels are missing)")
    return pixels


def _from_image(image: Image.Image) -> Picture:
    """Raises InputError, and whatever Pillow raises."""
    image.load()
    if image.mode in ("F", "LAB"):
        raise InputError(f"images of mode {image.mode} are not supported")
    icc, key = image.info.get("icc_profile"), image.info.get("transparency")
    transparent = image.has_transparency_data
    gray = True
    if image.mode == "I" or image.mode.startswith("I;16"):
        transparent = isinstance(key, int)
        planes = partial(_planes_of_16_bits, key=key if transparent else None)
    elif image.mode in ("1", "L", "LA", "La"):
        planes = partial(_planes, mode="LA" if transparent else "L")
    else:
        gray = False
        convert = _cmyk_conversion(icc) if image.mode == "CMYK" else None
        planes = partial(_planes, mode="RGBA" if transparent else "RGB", convert=convert)
    pixels, alpha = _assembled(image, _orientation(image), planes, transparent)
    icc = _fitting(icc, b"GRAY" if gray else b"RGB ")
    return Picture(pixels, gray, alpha, icc, _exif_of(image), _xmp_of(image))


def _assembled(
    image: Image.Image,
    orientation: int,
    planes: Callable[[Image.Image], tuple[np.ndarray, np.ndarray | None]],
    transparent: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The upright picture, (H, W, 3) uint8, and its alpha plane, (H, W) uint8, if it is transparent.

    planes: of a band of rows as stored, colours (h, w, 3) or gray (h, w, 1), and alpha (h, w).
    """
    width, height = image.size
    shape = (width, height) if orientation >= 5 else (height, width)
    pixels, alpha = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8) if transparent else None
    stored, stored_alpha = _as_stored(pixels, orientation), _as_stored(alpha, orientation) if transparent else None
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        colours, opacity = planes(image.crop((0, top, width, bottom)))
        stored[top:bottom] = colours  # gray goes into all three
        if transparent:
            stored_alpha[top:bottom] = opacity
    return pixels, alpha


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The same values in the order in which a file with that EXIF orientation has them. A view."""
    if orientation >= 5:
        upright = upright.swapaxes(0, 1)
    if orientation in (3, 4, 6, 7):
        upright = upright[::-1]
    if orientation in (2, 3, 7, 8):
        upright = upright[:, ::-1]
    return upright


def _planes(
    band: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """mode: L, LA, RGB or RGBA. convert: does what there is to do before."""
    band = band if convert is None else convert(band)
    band = band if band.mode == mode else band.convert(mode)
    alpha = np.asarray(band.getchannel("A")) if mode.endswith("A") else None
    colours = np.asarray(band if alpha is None else band.convert(mode[:-1]))
    return colours.reshape(*colours.shape[:2], -1), alpha


def _planes_of_16_bits(band: Image.Image, key: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """key: the value that is transparent."""
    values = np.asarray(band)
    if values.min() < 0 or values.max() > 65535:
        raise InputError("images of more than 16 bits are not supported")
    # 65535 = 255 * 257, so this is rounding to the nearest.
    plane = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return plane[..., None], None if key is None else np.where(values == key, 0, 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """What EXIF says, else XMP; 1 is upright."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data is no reason to refuse a sound picture
        return 1
    return orientation if orientation in range(2, 9) else 1


def _exif_of(image: Image.Image) -> bytes | None:
    try:
        exif, text = image.info.get("exif"), image.info.get("Raw profile type exif")
        if exif is None and isinstance(text, str):  # ImageMagick's way in PNG
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        if exif is None and hasattr(image, "tag_v2"):  # TIFF
            found = describing(image.getexif())
            exif = found.tobytes() if len(found) else None
        return clean_exif(bytes(exif)) if exif else None
    except Exception:  # damaged
        return None


def _xmp_of(image: Image.Image) -> bytes | None:
    xmp = image.info.get("xmp")
    return clean_xmp(xmp) if isinstance(xmp, (bytes, str)) else None


def _cmyk_conversion(icc: bytes | None) -> Callable[[Image.Image], Image.Image] | None:
    """CMYK -> sRGB through the image's profile. None without a usable one; Pillow's plain formula has to do then."""
    if _fitting(icc, b"CMYK"):
        with contextlib.suppress(ImageCms.PyCMSError):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "CMYK", "RGB")
            return partial(ImageCms.applyTransform, transform=transform)
    return None


def _fitting(icc: bytes | None, space: bytes) -> bytes | None:
    """The profile, if it describes the colour space that we keep (bytes 16..19 of its header)."""
    return bytes(icc) if isinstance(icc, bytes) and len(icc) >= 128 and icc[16:20] == space else None
