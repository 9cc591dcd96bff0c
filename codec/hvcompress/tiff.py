"""What of a TIFF file's directories goes with a picture, and how directories come into a file."""

from __future__ import annotations

import struct

from PIL import Image, TiffImagePlugin

# What a TIFF file's directory says about the picture, and not about how the file stores it: description, camera,
# resolution, software, time, author, copyright, and the directories of EXIF and GPS.
_DESCRIBING = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
DIRECTORIES = (0x8769, 0x8825)
_INTEROPERABILITY = 0xA005  # an offset, to a directory in the directory of EXIF


def describing(exif: Image.Exif) -> Image.Exif:
    """What of a TIFF directory goes with the picture into another file."""
    found = Image.Exif()
    for tag in _DESCRIBING:
        if tag in exif:
            found[tag] = exif[tag]
    for tag in DIRECTORIES:
        values = {key: value for key, value in exif.get_ifd(tag).items() if key != _INTEROPERABILITY}
        if values:
            found.get_ifd(tag).update(values)
            found[tag] = values
    return found


def with_directories(data: bytes, directories: dict[int, dict]) -> bytes:
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
