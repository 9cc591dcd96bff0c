"""A picture's file: what the layers say, and what goes with them as it is."""

from __future__ import annotations

from . import container
from .alpha import pack_alpha
from .container import Container, Header
from .metadata import pack_icc, pack_metadata
from .picture import Picture


def pack_picture(
    picture: Picture,
    quality: int,
    offsets: tuple[int, ...],
    fingerprint: str,
    digest: bytes,
    state_bits: int,
    streams: tuple[bytes, ...],
) -> bytes:
    """The bytes of a file.

    fingerprint: of the model, in hex. digest: SHA-256 of the latents. streams: of the layers, coarse to fine.
    """
    height, width = picture.pixels.shape[:2]
    chunks = pack_icc(picture.icc)
    if picture.alpha is not None:
        chunks[container.ALPHA] = pack_alpha(picture.alpha)
    chunks |= pack_metadata(picture.exif, picture.xmp)
    made_with = bytes.fromhex(fingerprint)[:4]
    header = Header(width, height, picture.gray, quality, offsets, made_with, digest[:4], state_bits)
    return container.pack(Container(header, streams, chunks))
