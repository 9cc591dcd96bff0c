"""Finding the test pictures, and making sure that they are the Kodak set and not something like it."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUMS = Path(__file__).resolve().parent / "published" / "kodak_sha256.txt"
SUFFIXES = {".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp"}
WHERE = f"""\
The Kodak set is 24 PNG files, kodim01.png to kodim24.png (768x512 or 512x768, 15 MB in all), from
    http://r0k.us/graphics/kodak/
Put them into one folder and give that folder. Each file is checked against its SHA-256 in
benchmarks/published/{SUMS.name}, so that figures of different people are about the same pixels.
Another folder of pictures is measured with --any-images; its figures are then not Kodak figures."""


class NotKodakError(Exception):
    """The folder is not the Kodak set; the message says what is wrong and where to get it."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def expected_sums() -> dict[str, str]:
    """File name -> SHA-256."""
    lines = SUMS.read_text(encoding="utf-8").split("\n")
    return {name: digest for digest, name in (line.split() for line in lines if line)}


def find_images(folder: Path | None, any_images: bool = False) -> dict[Path, str]:
    """The pictures to measure and their SHA-256, in the order of their names. Raises NotKodakError."""
    if folder is None:
        raise NotKodakError(f"which folder holds the pictures?\n{WHERE}")
    if not folder.is_dir():
        raise NotKodakError(f"{folder} is not a folder.\n{WHERE}")
    if any_images:
        found = {path: sha256(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
        if not found:
            raise NotKodakError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}).\n{WHERE}")
        return found
    sums = expected_sums()
    missing = [name for name in sums if not (folder / name).is_file()]
    if missing:
        raise NotKodakError(f"{folder} is not the Kodak set: {_some(missing)} missing.\n{WHERE}")
    found = {folder / name: sha256(folder / name) for name in sorted(sums)}
    wrong = [path.name for path, digest in found.items() if digest != sums[path.name]]
    if wrong:
        raise NotKodakError(f"{folder} is not the Kodak set as published: SHA-256 of {_some(wrong)} differs.\n{WHERE}")
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
