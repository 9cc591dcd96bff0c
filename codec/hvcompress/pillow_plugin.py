"""Pillow reads and writes .hvci files once this module is imported.

>>> import hvcompress.pillow_plugin
>>> from PIL import Image
>>> Image.open("photo.hvci").size  # doctest: +SKIP
(768, 512)
>>> Image.open("photo.jpg").save("small.hvci", quality=40)  # doctest: +SKIP

`Image.open` reads the header and the chunks behind the pixels: size, mode and `info` are known (`quality`, and if the
file has them `icc_profile`, `exif`, `xmp`), and neither torch nor a model is needed. Pixels are decoded when something
asks for them, and checked as by `hvcompress.decode`. With `ImageFile.LOAD_TRUNCATED_IMAGES` a file that is cut off
gives a preview from the layers that are whole, without alpha.

`Image.save` takes quality (0..100, default 60), bpp, size, psnr, lmbda, strict, beta, allocation, effort, verify,
model, device and memory_limit as `hvcompress.encode` does, and icc_profile, exif and xmp, which replace what `info` has
of them; None or b"" leaves them out. Pixels are stored upright: an EXIF orientation is applied and then reset. Of
several frames the current one is saved. As with every format, Pillow empties an existing file before it is written.

Errors are those of Pillow: UnidentifiedImageError for what is no .hvci file, else OSError, and ValueError for an
option that makes no sense. The one that hvcompress raised is the `__cause__` of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from PIL import Image, ImageFile

from .container import ALPHA, MAGIC, parse, read_ends
from .errors import HvcompressError, UsageError
from .metadata import EXIF_PREFIX, unpack_icc, unpack_metadata

FORMAT, SUFFIX, MIME = "HVCI", ".hvci", "image/x-hvci"

# What `Image.save` passes on to `hvcompress.encode`.
_OPTIONS = "quality bpp size psnr lmbda strict beta allocation effort verify model device memory_limit".split()


class HvciImageFile(ImageFile.ImageFile):
    """An .hvci file that is open; its pixels are decoded by `load`."""

    format = FORMAT
    format_description = "hvcompress image"

    def _open(self) -> None:
        with _pillow_errors():
            header, chunks = read_ends(self.fp)
            profile = unpack_icc(chunks)
        self._size = header.width, header.height
        self._mode = ("L" if header.gray else "RGB") + ("A" if ALPHA in chunks else "")
        exif, xmp = unpack_metadata(chunks)
        found = {
            "quality": header.quality,
            "icc_profile": profile,
            "exif": EXIF_PREFIX + exif if exif else None,
            "xmp": xmp,
        }
        self.info.update((name, value) for name, value in found.items() if value is not None)
        self.tile = [(FORMAT.lower(), (0, 0, *self.size), 0, None)]  # there is something to load

    def load(self) -> Any:
        """The pixels. Raises OSError where the file is damaged, truncated or needs a model that is not there."""
        if self.tile:
            if self.fp is None:
                raise ValueError("the file was closed before its pixels were decoded")
            from . import decode

            self.fp.seek(0)
            data = self.fp.read()
            with _pillow_errors():
                image = decode(data, partial=ImageFile.LOAD_TRUNCATED_IMAGES)
            if image.size != self.size:
                raise OSError("the file has changed since it was opened")
            self._mode = image.mode  # a file that is cut off may have lost its alpha plane
            self.im, self.readonly, self.tile = image.im, image.readonly, []
            if self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return super().load()

    def load_seek(self, pos: int) -> None:
        """That there is one tells `ImageFile.Parser` to wait for the whole file."""

    def verify(self) -> None:
        """Compare the file with its checksum, without decoding it, and close it. Raises OSError."""
        if self.fp is None:
            raise ValueError("the file is closed already")
        try:
            self.fp.seek(0)
            with _pillow_errors():
                parse(self.fp.read())
        finally:
            super().verify()


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """What `Image.save` calls, with its options in `image.encoderinfo`."""
    from . import encode

    given = image.encoderinfo
    options = {name: given[name] for name in _OPTIONS if name in given}
    with _pillow_errors(), _metadata(image, given) as image:
        data = encode(image, **options)
    file.write(data)


@contextmanager
def _metadata(image: Image.Image, given: dict[str, Any]) -> Iterator[Image.Image]:
    """The image with the profile and the metadata that were given instead of its own."""
    new = {name: given[name] or b"" for name in ("icc_profile", "exif", "xmp") if name in given}
    if isinstance(new.get("exif"), Image.Exif):
        new["exif"] = new["exif"].tobytes()
    if isinstance(new.get("xmp"), str):
        new["xmp"] = new["xmp"].encode()
    if "xmp" in new:
        new["XML:com.adobe.xmp"] = None  # where Pillow before 11 has that of a PNG
    if "exif" in new:
        image = image.copy()  # the original remembers the orientation in its own EXIF data
    before = image.info
    image.info = before | new
    try:
        yield image
    finally:
        image.info = before


@contextmanager
def _pillow_errors() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise ValueError(str(error)) from error
    except HvcompressError as error:
        raise OSError(str(error)) from error


Image.register_open(FORMAT, HvciImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, SUFFIX)
Image.register_mime(FORMAT, MIME)
