"""Pictures in and out: everything between Pillow, files and the plain 8-bit arrays that the codec works on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from .container import MAGIC, MAX_PIXELS, check_size
from .errors import InputError, LimitError, OutputError, UsageError
from .plan import check_memory

# Suffix -> Pillow's name of the format and how to save. Decoding adds no second loss, except to JPEG.
FORMATS: dict[str, tuple[str, dict]] = {
    ".png": ("PNG", {}),
    ".ppm": ("PPM", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": "4:4:4"}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
}
_OPAQUE_FORMATS = ("PPM", "JPEG", "BMP")  # these cannot store transparency, or few readers honour it

# EXIF orientation -> what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Picture:
    """A picture as the codec sees it."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB; gray is replicated
    gray: bool = False  # came from a gray image; is returned as mode "L"
    alpha: np.ndarray | None = None  # (H, W) uint8, kept losslessly
    icc: bytes | None = None  # ICC profile


# --------------------------------------------------------------------------------------------------------------------
# In


def read_picture(
    source: str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Read a picture: a path, the bytes of an image file, a Pillow image, or a uint8 array.

    Arrays are (H, W) or (H, W, 1) gray, (H, W, 3) RGB or (H, W, 4) RGBA. Images may have any of Pillow's modes but
    F, LAB and true 32-bit integers. 16-bit gray is rounded to 8 bits; 16-bit colour arrives from Pillow cut to 8. The
    EXIF orientation is applied, CMYK goes through its profile, of several frames the first is taken. An ICC profile
    is kept if it describes the colours that are kept (RGB, or gray for gray). max_pixels may lower the format's limit.

    Raises InputError (missing, not an image, damaged, truncated, empty, wrong shape or type) and LimitError (too
    large; told from the declared size, before memory is taken for pixels). Messages start with the path, if any.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return _from_image(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        with opened(io.BytesIO(source), max_pixels) as image:
            return _from_image(image, max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(f"cannot read a picture from {type(source).__name__}")
    path = os.fsdecode(source)
    try:
        with _open(path) as file, opened(file, max_pixels) as image:
            return _from_image(image, max_pixels)
    except (InputError, LimitError) as error:
        raise type(error)(f"{path}: {error}") from error


def read_file(path: str, magic: bytes) -> bytes:
    """All of a file that starts with `magic`, only its first bytes of any other, however large it is.

    Raises InputError where it cannot be read.
    """
    try:
        with _open(path) as file:
            head = file.read(len(magic))
            return head + file.read() if head == magic else head
    except (InputError, OSError) as error:
        raise InputError(f"{path}: {_reason(error)}") from error


def _open(path: str) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(_reason(error)) from error


_opening = threading.Lock()


@contextlib.contextmanager
def opened(file: io.BufferedIOBase, max_pixels: int) -> Iterator[Image.Image]:
    """The header of an image file, read by Pillow; pixels are not decoded yet."""
    try:
        # Read ahead here: a file that is a directory, empty or ours deserves a better message than Pillow's.
        if not file.seekable():
            file = io.BytesIO(file.read())
        head = file.read(len(MAGIC))
    except OSError as error:
        raise InputError(_reason(error)) from error
    if not head:
        raise InputError("the file is empty")
    if head == MAGIC:
        raise InputError("this is an .hvci file already")
    with _opening, warnings.catch_warnings():
        # Pillow's own guard, which also looks at images inside images, is put at our limit: it refuses at twice its
        # setting, and warns before. The lock keeps two threads from restoring each other's setting.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (max_pixels + 1) // 2
        try:
            with _pillow_errors(max_pixels):
                image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        if image.format == "EPS":
            raise InputError("PostScript is a program, not an image; it is not run")
        yield image


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
        raise InputError(f"the image is damaged or truncated ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


def _check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises InputError, and LimitError where there is not the memory for such a picture."""
    if width == 0 or height == 0:
        raise InputError(f"{width}x{height}: the image has no pixels")
    check_size(width, height)
    if width * height > max_pixels:
        raise LimitError(f"{width}x{height}: more than {max_pixels} pixels")
    check_memory(width, height)


def _from_array(array: np.ndarray, max_pixels: int) -> Picture:
    if array.dtype != np.uint8:
        raise InputError(f"an array must be uint8, not {array.dtype}")
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        raise InputError(f"an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}")
    _check_size(array.shape[1], array.shape[0], max_pixels)
    if array.ndim == 2 or array.shape[2] == 1:
        return _gray(array.reshape(array.shape[:2]))
    return Picture(_plain(array[..., :3]), alpha=_plain(array[..., 3]) if array.shape[2] == 4 else None)


def _gray(plane: np.ndarray, alpha: np.ndarray | None = None, icc: bytes | None = None) -> Picture:
    """plane: (H, W) uint8."""
    return Picture(np.repeat(plane[..., None], 3, axis=2), True, alpha, icc)


def _plain(array: np.ndarray) -> np.ndarray:
    """The array itself or a copy: contiguous and writable, as torch wants it."""
    return np.require(array, requirements=("C", "W"))


def _from_image(image: Image.Image, max_pixels: int) -> Picture:
    _check_size(*image.size, max_pixels)
    with _pillow_errors(max_pixels):
        image.load()
    if image.mode in ("F", "LAB"):
        raise InputError(f"images of mode {image.mode} are not supported")
    icc = image.info.get("icc_profile")
    transparent = image.has_transparency_data
    with _pillow_errors(max_pixels):
        image = _upright(image)
        if image.mode == "I" or image.mode.startswith("I;16"):
            values = np.asarray(image)
            if values.min() < 0 or values.max() > 65535:
                raise InputError("images of more than 16 bits are not supported")
            key = image.info.get("transparency")
            alpha = np.where(values == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
            # 65535 = 255 * 257, so this is rounding to the nearest.
            return _gray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8), alpha, _fitting(icc, b"GRAY"))
        if image.mode in ("1", "L", "LA", "La"):
            if not transparent:
                return _gray(np.asarray(image.convert("L")), None, _fitting(icc, b"GRAY"))
            planes = np.asarray(image.convert("LA"))
            return _gray(planes[..., 0], _plain(planes[..., 1]), _fitting(icc, b"GRAY"))
        if image.mode == "CMYK":
            image = _from_cmyk(image, icc)
        planes = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    alpha = _plain(planes[..., 3]) if transparent else None
    return Picture(_plain(planes[..., :3]), False, alpha, _fitting(icc, b"RGB "))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged EXIF data is no reason to refuse a sound picture
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _from_cmyk(image: Image.Image, icc: bytes | None) -> Image.Image:
    """CMYK -> sRGB through the image's profile; without a usable one by Pillow's plain formula."""
    if _fitting(icc, b"CMYK"):
        with contextlib.suppress(ImageCms.PyCMSError):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


def _fitting(icc: bytes | None, space: bytes) -> bytes | None:
    """The profile, if it describes the colour space that we keep (bytes 16..19 of its header)."""
    return bytes(icc) if isinstance(icc, bytes) and len(icc) >= 128 and icc[16:20] == space else None


# --------------------------------------------------------------------------------------------------------------------
# Out


def to_pil(picture: Picture) -> Image.Image:
    """As a Pillow image of mode L, LA, RGB or RGBA, with its profile in `info["icc_profile"]`."""
    planes = [picture.pixels[..., :1] if picture.gray else picture.pixels]
    if picture.alpha is not None:
        planes.append(picture.alpha[..., None])
    stacked = np.concatenate(planes, axis=2) if len(planes) > 1 else planes[0]  # large pictures: no needless copy
    image = Image.fromarray(np.ascontiguousarray(stacked[..., 0] if stacked.shape[2] == 1 else stacked))
    if picture.icc is not None:
        image.info["icc_profile"] = picture.icc
    return image


def check_suffix(suffix: str) -> str:
    """The suffix in lower case. Raises UsageError where we do not write such files."""
    if suffix.lower() not in FORMATS:
        raise UsageError(f"cannot write {suffix or 'a file without suffix'!r}; known are {' '.join(FORMATS)}")
    return suffix.lower()


def image_bytes(image: Image.Image, suffix: str = ".png") -> bytes:
    """The image as a file of the kind that the suffix names: lossless, but for .jpg.

    Raises UsageError for an unknown suffix and for transparency in a format that has none, OutputError where the
    format cannot hold the image (WebP is limited to 16383 pixels a side, JPEG to 65500).
    """
    suffix = check_suffix(suffix)
    name, options = FORMATS[suffix]
    if name in _OPAQUE_FORMATS and image.has_transparency_data:
        raise UsageError(f"{suffix} does not store transparency; .png, .webp and .tif do")
    icc = image.info.get("icc_profile")
    if name == "WEBP" and image.mode in ("L", "LA"):
        icc = None  # WebP turns gray into RGB, which the profile of a gray image does not describe
    out = io.BytesIO()
    try:
        image.save(out, name, icc_profile=icc, **options)
    except (OSError, ValueError) as error:
        raise OutputError(f"the picture cannot be stored as {suffix}: {_reason(error)}") from error
    return out.getvalue()


def write_atomically(path: str | os.PathLike, data: bytes, *, overwrite: bool) -> None:
    """Write a file so that at any moment there is the old one (or none) or the complete new one under its name.

    The bytes go to the disk in a file without a name, or where there are no such files under a temporary name in the
    same folder, and get their name in one step, which is then written to the disk as well. A symbolic link is followed;
    pipes and devices (/dev/null) are written to as they are.
    Raises UsageError (there is such a file and overwrite is False) and OutputError (no folder, no permission, disk
    full); then the old file is untouched and the temporary one gone. Only where the disk fails in the very last step
    the new file is there already.
    """
    shown = os.fsdecode(path)
    try:
        path = os.path.realpath(shown)
        if _is_special(path):
            with open(path, "wb") as file:
                file.write(data)
            return
        if os.path.lexists(path) and not overwrite:
            raise FileExistsError
        if not _write_unnamed(path, data, overwrite):
            _write_named(path, data, overwrite)
        _sync_folder(os.path.dirname(path))
    except FileExistsError as error:
        raise UsageError(f"{shown} exists already") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {shown}: {_reason(error)}") from error


def _write_unnamed(path: str, data: bytes, overwrite: bool) -> bool:
    """Write by a file that has no name before it is complete: the system removes it even if this process is killed.

    Returns False, with nothing done, where the file system or the system (all but Linux) has no such files. To replace
    a file takes a temporary name all the same, but only from one system call to the next.
    """
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        descriptor = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:
        return False  # if something is wrong with the folder, the other way will say so
    try:
        if (mode := _mode_of(path)) is not None:
            os.fchmod(descriptor, mode)
        _fill(descriptor, data)
        try:
            _name(descriptor, path)
            return True
        except FileExistsError:
            if not overwrite:
                raise
        except OSError:
            return False  # no /proc, or no hard links
        temporary = _temporary_name(path)
        try:
            _name(descriptor, temporary)
            os.replace(temporary, path)
        finally:
            _remove(temporary)
        return True
    finally:
        os.close(descriptor)


def _name(descriptor: int, path: str) -> None:
    """Give a name to a file that has none. Raises FileExistsError."""
    # A folder's descriptor, though the path is absolute, makes Python take linkat, which can follow the link in /proc.
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)


def _write_named(path: str, data: bytes, overwrite: bool) -> None:
    """Write by a temporary file, which a killed process leaves behind."""
    temporary = _temporary_name(path)
    try:
        # Not `tempfile`: its files are private, ours get the permissions that the umask leaves, as usual.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
        try:
            if (mode := _mode_of(path)) is not None:
                os.chmod(temporary, mode)
            _fill(descriptor, data)
        finally:
            os.close(descriptor)
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_to_new(temporary, path)
    finally:
        _remove(temporary)


def _temporary_name(path: str) -> str:
    """A short random name of its own: the final one may be as long as names can be."""
    return os.path.join(os.path.dirname(path), f".hvcompress-{secrets.token_hex(8)}.tmp")


def _remove(path: str) -> None:
    """Remove a file that may be there, even if an interrupt comes right now."""
    try:
        os.unlink(path)
    except OSError:
        pass
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _mode_of(path: str) -> int | None:
    """Permissions; None where there is no such file."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        return None


def _fill(descriptor: int, data: bytes) -> None:
    """Write the bytes, to the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def _sync_folder(folder: str) -> None:
    """Have the names in a folder on the disk, where that can be asked for."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows; or a folder that one may write to but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def _is_special(path: str) -> bool:
    """A pipe, a device or a socket; a folder is not."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _rename_to_new(temporary: str, path: str) -> None:
    """Rename, but never over an existing file, not even one that appeared just now. Raises FileExistsError."""
    try:
        os.link(temporary, path)  # the caller removes the temporary name
        return
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        pass  # a file system without hard links: take the name first, then rename over our own empty file
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        os.replace(temporary, path)
    except BaseException:
        _remove(path)
        raise
