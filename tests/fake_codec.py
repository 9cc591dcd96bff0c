"""A codec without a network, so that the command line is tested apart from torch and from any model.

Its files are true .hvci files to `container`; the second of three streams holds the pixels, coarsely quantized.
"""

from __future__ import annotations

import sys
import types
import zlib

import numpy as np

from hvcompress import container
from hvcompress.alpha import pack_alpha, unpack_alpha
from hvcompress.errors import DeviceError, ModelError, UsageError
from hvcompress.metadata import pack_icc, pack_metadata, unpack_icc, unpack_metadata
from hvcompress.picture import Picture

FINGERPRINT = "c0ffee00" * 8


class FakeCodec:
    name, fingerprint, device, layers = "fake", FINGERPRINT, "cpu", 3
    strides = (64, 16, 8)

    def encode(self, picture, quality=60, offsets=None, *, effort=1, verify=True, memory_limit=None, progress=None):
        if progress is not None and effort > 1:
            progress(0, 2)
            progress(1, 2)
        if offsets is not None and len(offsets) != self.layers:
            raise UsageError(f"the model has {self.layers} layers, but {len(offsets)} betas were given")
        height, width = picture.pixels.shape[:2]
        step = 1 + (100 - quality) // 10
        stream = zlib.compress((picture.pixels // step).tobytes())
        chunks = {} if picture.alpha is None else {container.ALPHA: pack_alpha(picture.alpha)}
        chunks |= pack_icc(picture.icc) | pack_metadata(picture.exif, picture.xmp)
        offsets = (0,) * self.layers if offsets is None else tuple(offsets)
        header = container.Header(
            width, height, picture.gray, quality, offsets, bytes.fromhex(FINGERPRINT)[:4], b"hash"
        )
        data = container.pack(container.Container(header, (b"", stream, b"end"), chunks))
        seconds = {"fit": effort - 1.0, "network": 0.25, "coder": 0.5, "verify_network": 0.25, "verify_coder": 0.25}
        return types.SimpleNamespace(data=data, picture=self.decode(data) if verify else None, seconds=seconds)

    def decode(self, data, layers=None, crop=None, *, partial=False, bits=8, memory_limit=None, progress=None):
        if layers is not None and layers > self.layers:
            raise UsageError(f"layers must be a whole number from 1 to {self.layers}, not {layers}")
        parsed = (container.parse_prefix if partial else container.parse)(data)
        layers = min(layers or self.layers, len(parsed.streams))
        header = parsed.header
        shape = header.height, header.width, 3
        step = 1 + (100 - header.quality) // 10
        pixels = np.zeros(shape, np.uint8)
        if layers >= 2:  # the pixels are in the second
            pixels = np.frombuffer(zlib.decompress(parsed.streams[1]), np.uint8).reshape(shape) * np.uint8(step)
        alpha = parsed.chunks.get(container.ALPHA)
        alpha = None if alpha is None else unpack_alpha(alpha, header.width, header.height)
        return Picture(pixels, header.gray, alpha, unpack_icc(parsed.chunks), *unpack_metadata(parsed.chunks))


def load_model(name=None, device="auto"):
    if name not in (None, "fake"):
        raise ModelError(f"unknown model {name!r} (installed: fake)")
    if device.startswith("cuda"):
        raise DeviceError(f"there is no device {device}")
    return FakeCodec()


def codec_for(data, device="auto", model=None, *, partial=False):
    if (container.parse_prefix if partial else container.parse)(data).header.fingerprint.hex() != FINGERPRINT[:8]:
        raise ModelError("the file was made with a model that is not installed")
    return load_model(model, device)


def module() -> types.ModuleType:
    """What stands in for `hvcompress.loading` in `sys.modules`."""
    made = types.ModuleType("hvcompress.loading")
    made.load_model, made.codec_for = load_model, codec_for
    return made


if __name__ == "__main__":  # the command line with this codec, for tests that need a process of its own
    sys.modules["hvcompress.loading"] = module()
    from hvcompress.cli import main

    sys.exit(main())
