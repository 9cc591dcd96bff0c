"""Which rows are coded together, and which are computed together.

A layer is coded in segments of rows, each a range-coded stream of its own (`docs/format.md`): so memory stays bounded
whatever the size of the picture, and some rows can be decoded without those below or above them. That costs some two
bytes per segment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .container import pack_varint, unpack_varint
from .errors import FormatError, LimitError
from .memory import available

MAX_STRIDE = 64  # of the coarsest layer; sides are extended to multiples of it
SEGMENT = 1 << 16  # positions of a layer in a segment, about; the format's
WHOLE = 1 << 23  # pictures of up to so many pixels are computed at once
CHUNK = 1 << 19  # of larger ones so many pixels are computed at a time, about
KEPT = 1 << 26  # of pictures of more pixels the encoder's largest feature is made twice, rather than kept

# Memory by measurement (benchmarks/large.py), beyond what the program itself takes: for a pixel that is computed with
# all others, and for all chunks together and a pixel of a picture in chunks.
BYTES_WHOLE, BYTES_CHUNKS, BYTES_KEPT = 140, 1_300_000_000, 9

Span = tuple[int, int]  # first row, and the one after the last
Step = tuple[int, int, int]  # a layer (0 is the coarsest), and such rows of it


def padded(size: int) -> int:
    """A side of the picture that the network sees."""
    return -(-size // MAX_STRIDE) * MAX_STRIDE


def segments(height: int, width: int) -> list[Span]:
    """The segments of a layer of so many positions."""
    rows = max(1, SEGMENT // width)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def chunk(height: int, width: int) -> int | None:
    """How many rows of a feature map of a picture to compute at a time, whatever their stride; None: all of them."""
    return None if height * width <= WHOLE else max(4, CHUNK // width)


def bands(height: int, width: int, stride: int, need: Span | None = None) -> list[Span]:
    """The segments of a layer that contain the rows `need` (None: all), as one band of a picture that is computed at
    once, else one by one.
    """
    first, last = need or (0, height)
    found = [span for span in segments(height, width) if span[1] > first and span[0] < last]
    at_once = chunk(stride * height, stride * width) is None
    return [(found[0][0], found[-1][1])] if at_once else found


def interleave(bands: Sequence[Sequence[Span]], before: Callable[[int, int, int], Span]) -> list[Step]:
    """All bands of all layers, each after those it depends on, and these no sooner than they are needed.

    So all layers move down the picture together, and what lies above can be forgotten. before(layer, top, bottom):
    the rows of the layer before that such rows depend on.
    """
    steps: list[Step] = []
    waiting = [list(spans) for spans in bands]

    def advance(layer: int, row: int) -> None:
        """Have the rows above `row` of a layer."""
        while waiting[layer] and waiting[layer][0][0] < row:
            top, bottom = waiting[layer].pop(0)
            if layer > 0:
                advance(layer - 1, before(layer, top, bottom)[1])
            steps.append((layer, top, bottom))

    advance(len(bands) - 1, bands[-1][-1][1])
    return steps


def join(streams: list[bytes]) -> bytes:
    """The segments of a layer as one: the lengths of all but the last, then the segments."""
    return b"".join((*(pack_varint(len(stream)) for stream in streams[:-1]), *streams))


def split(data: bytes, count: int) -> list[bytes]:
    """Inverse of `join`. Raises FormatError."""
    position, lengths = 0, []
    for _ in range(count - 1):
        length, position = unpack_varint(data, position)
        lengths.append(length)
    if sum(lengths) > len(data) - position:
        raise FormatError("the lengths of a layer's segments contradict its size")
    parts = []
    for length in lengths:
        parts.append(data[position : position + length])
        position += length
    return [*parts, data[position:]]


def needed_memory(width: int, height: int, *, rows: int | None = None, bits: int = 8, has_alpha: bool = False) -> int:
    """Bytes that coding a picture takes, about, beyond what the program takes itself.

    rows: so many of it alone (None: all). bits: per sample of what is decoded. has_alpha: there is a plane to unpack.
    """
    pixels = padded(width) * padded(height)
    share = 1.0 if rows is None else rows / height
    whole = chunk(padded(height), padded(width)) is None
    needed = BYTES_WHOLE * pixels if whole else BYTES_CHUNKS + int(BYTES_KEPT * pixels * share)
    needed += (bits // 8 - 1) * int(6 * pixels * share)
    return needed + 2 * width * height * has_alpha  # as a PNG it comes as a whole


_holding = threading.Condition()
_held: dict[int, int] = {}  # thread -> bytes that it holds for the picture that it is coding


def check_memory(width: int, height: int, needed: int, limit: int | None = None) -> None:
    """Raises LimitError where a picture needs more bytes than the limit (None: than there is, or others hold)."""
    if limit is None and (free := available()) is not None:
        limit = free + sum(held for thread, held in list(_held.items()) if thread != threading.get_ident())
    if limit is not None and needed > limit:
        sizes = f"{needed / 2**30:.1f} GiB of memory, and {limit / 2**30:.1f} are there"
        raise LimitError(f"{width}x{height}: coding it takes about {sizes}")


@contextmanager
def memory_for(width: int, height: int, needed: int, limit: int | None = None) -> Iterator[None]:
    """Hold so much memory for a picture, so that those coded side by side do not count on the same.

    One for which there is room, but not beside the others, waits for them. Raises LimitError as `check_memory` does.
    """
    thread = threading.get_ident()
    if thread in _held:  # an encoder decodes what it has made
        yield
        return
    with _holding:
        while True:
            check_memory(width, height, needed, limit)
            free = available()
            if limit is not None or free is None or not _held or sum(_held.values()) + needed <= free:
                break
            _holding.wait()
        _held[thread] = needed
    try:
        yield
    finally:
        with _holding:
            del _held[thread]
            _holding.notify_all()


def forget_holders() -> None:
    """In a process that was forked: the threads that held memory are not there."""
    global _holding
    _holding = threading.Condition()
    _held.clear()
