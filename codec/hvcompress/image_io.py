"""Pictures in and out: everything between Pillow, image files and the plain 8-bit arrays that the codec works on."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError, features

from .container import MAGIC, MAX_PIXELS, check_size
from .errors import InputError, LimitError, OutputError, UsageError
from .files import open_file, reason
from .forking import prepare_for_fork
from .metadata import EXIF_PREFIX, clean_exif, clean_xmp, without_orientation
from .plan import check_memory, needed_memory

# Suffix -> Pillow's name of the format and how to save. Decoding adds no second loss, except to JPEG; AVIF has another
# colour space, which costs up to three levels (gray and alpha come back exactly). Speed 8 takes a quarter of the time
# of 6, the default, for 2 % more bytes.
FORMATS: dict[str, tuple[str, dict]] = {
    ".png": ("PNG", {}),
    ".ppm": ("PPM", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
    ".avif": ("AVIF", {"quality": 100, "speed": 8}),
}
_OPAQUE_FORMATS = ("PPM", "JPEG", "BMP")  # these cannot store transparency, or few readers honour it

# What a TIFF file's directory says about the picture, and not about how the file stores it: description, camera,
# resolution, software, time, author, copyright, and the directories of EXIF and GPS.
_DESCRIBING = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_DIRECTORIES = (0x8769, 0x8825)
_INTEROPERABILITY = 0xA005  # an offset, to a directory in the directory of EXIF
_ORIENTATION, _TIFF_XMP = 0x0112, 700
PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"  # what comes before a packet in a chunk iTXt
_JPEG_SEGMENT = 65533  # bytes of data

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")

_BAND = 1 << 18  # pixels that are converted at a time: a large picture is never in memory twice for that


@dataclass(frozen=True)
class Picture:
    """A picture as the codec sees it."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB; gray is replicated; a decoded picture may be uint16
    gray: bool = False  # came from a gray image; is returned as mode "L"
    alpha: np.ndarray | None = None  # (H, W) uint8, kept losslessly
    icc: bytes | None = None  # ICC profile
    exif: bytes | None = None  # from the TIFF header on (`metadata.clean_exif`); the pixels are upright already
    xmp: bytes | None = None  # XMP packet


def stripped(picture: Picture, metadata: bool, profile: bool) -> Picture:
    """Without EXIF and XMP, and without ICC profile: its colours are then taken for sRGB."""
    if metadata:
        picture = replace(picture, exif=None, xmp=None)
    return replace(picture, icc=None) if profile else picture


# --------------------------------------------------------------------------------------------------------------------
# In


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
    and orientation. HEIC takes the package pillow-heif.

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
            try:
                image = Image.open(file, formats=formats)
            except UnidentifiedImageError:
                if formats is not None or not _looks_like_heif(file):
                    raise
                image = _open_heif(file)
        try:
            if image.format == "EPS":
                raise InputError("PostScript is a program, not an image; it is not run")
            yield image
        finally:
            image.close()


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
    except (InputError, MemoryError):
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
            found = _describing(image.getexif())
            exif = found.tobytes() if len(found) else None
        return clean_exif(bytes(exif)) if exif else None
    except Exception:  # damaged
        return None


def _describing(exif: Image.Exif) -> Image.Exif:
    """What of a TIFF directory goes with the picture into another file."""
    found = Image.Exif()
    for tag in _DESCRIBING:
        if tag in exif:
            found[tag] = exif[tag]
    for tag in _DIRECTORIES:
        values = {key: value for key, value in exif.get_ifd(tag).items() if key != _INTEROPERABILITY}
        if values:
            found.get_ifd(tag).update(values)
            found[tag] = values
    return found


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


# --------------------------------------------------------------------------------------------------------------------
# Out


def samples(picture: Picture, rows: slice = slice(None)) -> np.ndarray:
    """Those rows as an array (H, W) of a gray picture or (H, W, 3), with one plane more where there is alpha.

    In the type of the pixels, to whose range alpha is widened: 16 bits of opaque are 65535.
    """
    planes = picture.pixels[rows, :, :1] if picture.gray else picture.pixels[rows]
    if picture.alpha is not None:  # else, of large pictures, no needless copy
        alpha = picture.alpha[rows, :, None]
        alpha = alpha if planes.dtype == np.uint8 else alpha.astype(np.uint16) * 257
        planes = np.concatenate((planes, alpha), axis=2)
    return np.ascontiguousarray(planes[..., 0] if planes.shape[2] == 1 else planes)


def to_pil(picture: Picture) -> Image.Image:
    """As a Pillow image of mode L, LA, RGB or RGBA.

    With its profile in `info["icc_profile"]`, EXIF data in `info["exif"]` and XMP in `info["xmp"]`, if there are any.
    """
    image = Image.fromarray(samples(picture))
    if picture.icc is not None:
        image.info["icc_profile"] = picture.icc
    if picture.exif is not None:
        image.info["exif"] = EXIF_PREFIX + picture.exif
    if picture.xmp is not None:
        image.info["xmp"] = picture.xmp
    return image


def check_suffix(suffix: str) -> str:
    """The suffix in lower case. Raises UsageError where we do not write such files, or this Pillow cannot."""
    if suffix.lower() not in FORMATS:
        raise UsageError(f"cannot write {suffix or 'a file without suffix'!r}; known are {' '.join(FORMATS)}")
    if suffix.lower() == ".avif" and not features.check_module("avif"):
        raise UsageError("cannot write '.avif' with a Pillow that was built without AVIF")
    return suffix.lower()


def image_bytes(image: Image.Image | Picture, suffix: str = ".png") -> bytes:
    """The image as a file of the kind that the suffix names: lossless, but for .jpg, and nearly for .avif.

    Profile, EXIF and XMP of the image's `info` go with it where the format holds them: not in .ppm and .bmp, and EXIF
    and XMP of more than 64 KiB not in .jpg. A picture goes into .ppm without a copy in Pillow.

    Raises UsageError for an unknown suffix and for transparency in a format that has none, OutputError where the
    format cannot hold the image (WebP is limited to 16383 pixels a side, JPEG to 65500).
    """
    suffix = check_suffix(suffix)
    name, options = FORMATS[suffix]
    if isinstance(image, Picture):
        if name == "PPM" and image.alpha is None:
            return _ppm_bytes(image)
        image = to_pil(image)
    if name in _OPAQUE_FORMATS and image.has_transparency_data:
        raise UsageError(f"{suffix} does not store transparency; .png, .webp, .tif and .avif do")
    icc = image.info.get("icc_profile")
    if name == "WEBP" and image.mode in ("L", "LA") or name == "AVIF" and image.mode == "LA":
        icc = None  # gray becomes RGB there, which the profile of a gray image does not describe
    if name == "AVIF" and image.mode != "L":
        options = options | {"subsampling": "4:4:4"}
    options = options | {"icc_profile": icc}
    exif, xmp = clean_exif(image.info.get("exif")), clean_xmp(image.info.get("xmp"))
    try:
        if exif is not None or xmp is not None:
            # Pillow parses EXIF data for some formats, and they may be damaged where it looks. Better without, then.
            with contextlib.suppress(Exception):
                return _saved_with_metadata(image, name, options, exif, xmp)
        return _saved(image, name, options)
    except (OSError, ValueError) as error:
        raise OutputError(f"the picture cannot be stored as {suffix}: {reason(error)}") from error


def _saved(image: Image.Image, name: str, options: dict) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def _saved_with_metadata(image: Image.Image, name: str, options: dict, exif: bytes | None, xmp: bytes | None) -> bytes:
    """exif, xmp: clean."""
    if name == "TIFF":
        return _tiff_with_metadata(image, options, exif, xmp)
    if name in ("PPM", "BMP"):
        return _saved(image, name, options)
    if name == "AVIF" and exif is not None:  # the format has an orientation of its own, and Pillow would write all anew
        exif = without_orientation(exif)
    if name == "JPEG" and exif is not None:
        exif = EXIF_PREFIX + exif
    if exif is not None and (name != "JPEG" or len(exif) <= _JPEG_SEGMENT):
        options = options | {"exif": exif}
    if xmp is not None and name == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add(b"iTXt", PNG_XMP + xmp)
        options = options | {"pnginfo": text}
    elif xmp is not None and (name != "JPEG" or len(xmp) <= _JPEG_SEGMENT - 29):  # less the name of the segment
        options = options | {"xmp": xmp}
    return _saved(image, name, options)


def _tiff_with_metadata(image: Image.Image, options: dict, exif: bytes | None, xmp: bytes | None) -> bytes:
    """EXIF data lie in a TIFF file's own directory, and in two more that it names."""
    tags = Image.Exif()
    if exif is not None:
        with contextlib.suppress(Exception):
            given = Image.Exif()
            given.load(exif)
            tags = _describing(given)
    directories = {tag: tags.pop(tag) for tag in _DIRECTORIES if tag in tags}
    if xmp is not None:
        tags[_TIFF_XMP] = xmp
    data = _saved(image, "TIFF", options | {"exif": tags})
    with contextlib.suppress(Exception):  # values that cannot be written
        return _with_directories(data, directories) if directories else data
    return data


def _with_directories(data: bytes, directories: dict[int, dict]) -> bytes:
    """A TIFF file with two more directories, which Pillow cannot write into a compressed one.

    Both are appended, and then the first directory once more, now with their entries.
    """
    order = "<" if data[:2] == b"II" else ">"
    made = TiffImagePlugin.ImageFileDirectory_v2(ifh=data[:8])
    for tag, values in directories.items():
        made[tag] = values
    data += b"\0" * (len(data) % 2)
    added = made.tobytes(len(data))
    added += b"\0" * (len(added) % 2)

    def entries(directory: bytes, offset: int) -> list[bytes]:
        count = struct.unpack_from(order + "H", directory, offset)[0]
        return [directory[e : e + 12] for e in range(offset + 2, offset + 2 + 12 * count, 12)]

    found = entries(data, struct.unpack_from(order + "I", data, 4)[0]) + entries(added, 0)
    found.sort(key=lambda entry: struct.unpack_from(order + "H", entry)[0])
    first = struct.pack(order + "H", len(found)) + b"".join(found) + bytes(4)
    return b"".join((data[:4], struct.pack(order + "I", len(data) + len(added)), data[8:], added, first))


def _ppm_bytes(picture: Picture) -> bytes:
    height, width = picture.pixels.shape[:2]
    values = picture.pixels[..., 0] if picture.gray else picture.pixels
    head = b"P%d\n%d %d\n255\n" % (5 if picture.gray else 6, width, height)
    return b"".join((head, np.ascontiguousarray(values).data))
