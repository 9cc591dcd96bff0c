"""A second decoder: docs/format.md and docs/exactness.md in numpy, without torch and without any code of hvcompress.

python examples/second_decoder.py photo.hvci models/NAME photo.png

It reads like the documents, checks what a file says of itself, and gives the same pixels as `hvcompress decode`. It
leaves out previews, truncated files, metadata, and good manners with bad input.
"""

import hashlib
import io
import json
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

TYPES = {"I8": np.int8, "U8": np.uint8, "I16": "<i2", "I32": "<i4", "F16": "<f2", "F32": "<f4"}
SEGMENT = 65536  # positions of a layer's segment
MACHINES = {8: (166, 121), 10: (711, 265), 12: (3864, 1229), 14: (15704, 7559), 16: (35649, 26669)}  # b: q, p


# --------------------------------------------------------------------------------------------------------------------
# The file


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def cut(data: bytes, lengths: list[int]) -> list[bytes]:
    """Parts of so many bytes, and what remains."""
    ends = np.cumsum([0, *lengths])
    return [data[a:b] for a, b in zip(ends, [*ends[1:], len(data)], strict=True)]


def parse(data: bytes) -> SimpleNamespace:
    assert data[:4] == b"\x8fHV\x01", "not an .hvci file of version 1"
    assert zlib.crc32(data[8:]) == int.from_bytes(data[4:8], "little"), "the file is damaged or truncated"
    flags, quality, state_bits = data[8], data[17], data[18]
    count = flags >> 4
    width, at = varint(data, 19)
    height, at = varint(data, at)
    offsets, section = np.zeros(count, np.int8), 0
    if flags & 2:
        offsets, at = np.frombuffer(data[at : at + count], np.int8), at + count
    if flags & 4:
        section, at = varint(data, at)
    lengths = []
    for _ in range(count - 1):
        length, at = varint(data, at)
        lengths.append(length)
    chunks, rest = {}, data[len(data) - section :]
    while rest:
        size, begin = varint(rest, 4)
        chunks[rest[:4]], rest = rest[begin : begin + size], rest[begin + size :]
    return SimpleNamespace(
        gray=flags & 1,
        fingerprint=data[9:13],
        latent_hash=data[13:17],
        quality=quality,
        qualities=np.clip(quality - offsets.astype(int), 0, 100),
        state_bits=state_bits,
        size=(height, width),
        streams=cut(data[at : len(data) - section], lengths),
        chunks=chunks,
    )


# --------------------------------------------------------------------------------------------------------------------
# The model


def load(folder: Path) -> tuple[dict[str, np.ndarray], dict, bytes]:
    """Tensors by name, the network's sizes, and the fingerprint, computed from both."""
    data = (folder / "weights.safetensors").read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:begin]).items():
        if name.startswith(("topdown.", "synthesis.", "entropy.")):
            first, last = entry["data_offsets"]
            values = np.frombuffer(data[begin + first : begin + last], TYPES[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"])
    network = json.loads((folder / "config.json").read_text())["network"]
    sizes = {key: value for key, value in network.items() if key != "encoder_blocks"}
    digest = hashlib.sha256(b"dyadic-3" + json.dumps(sizes, sort_keys=True).encode())
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype.name} {'x'.join(map(str, values.shape))}".encode() + values.tobytes())
    return tensors, network, digest.digest()


# --------------------------------------------------------------------------------------------------------------------
# The network: activations are (channels, rows, columns) int64 multiples of 2^-10


def clamp(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -32768, 32767)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, (x + 4) >> 3)


def shuffle(x: np.ndarray, n: int) -> np.ndarray:
    c, h, w = x.shape
    return x.reshape(c // n**2, n, n, h, w).transpose(0, 3, 1, 4, 2).reshape(c // n**2, n * h, n * w)


class Network:
    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors = tensors

    def conv(self, name: str, x: np.ndarray) -> np.ndarray:
        """A convolution, rounded and clamped. Sums of products in float64, which holds them all exactly."""
        weight, bias, exponent = (self.tensors[f"{name}.{part}"] for part in ("weight", "bias", "exponent"))
        bits = 18 if weight.dtype == np.int16 else 12  # wide weights, or narrow ones
        k, (h, w) = weight.shape[2], x.shape[1:]
        around = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2))).astype(np.float64)
        total = np.zeros((len(weight), h * w))
        for row in range(k):
            for column in range(k):
                patch = around[:, row : row + h, column : column + w].reshape(len(x), h * w)
                total += weight[:, :, row, column].astype(np.float64) @ patch
        e, b = exponent.astype(np.int64)[:, None], bias.astype(np.int64)[:, None]
        sums = total.astype(np.int64) << e
        return clamp((sums + (b << bits - 12) + (1 << bits - 1)) >> bits).reshape(-1, h, w)

    def row(self, name: str, quality: int) -> np.ndarray:
        return self.tensors[f"{name}.table"][quality].astype(np.int64)[:, None, None]

    def blocks(self, name: str, x: np.ndarray, quality: int) -> np.ndarray:
        number = 0
        while f"{name}.{number}.reduce.weight" in self.tensors:
            block, number = f"{name}.{number}", number + 1
            a = leaky(self.conv(f"{block}.reduce", x))
            b = self.conv(f"{block}.spatial", a)
            gain, shift = self.row(f"{block}.gain", quality), self.row(f"{block}.shift", quality)
            d = leaky(clamp((b * gain + (shift << 10) + 512) >> 10))
            x = clamp(x + self.conv(f"{block}.expand", d))
        return x


# --------------------------------------------------------------------------------------------------------------------
# Symbols


class RangeDecoder:
    def __init__(self, data: bytes):
        self._words = np.frombuffer(data + bytes(-len(data) % 4 + 16), ">u4").tolist()
        self._at, self._w = 2, 2**64 - 1
        self._r = self._words[0] << 32 | self._words[1]

    def decode(self, begins: np.ndarray) -> int:
        """The number of a symbol. begins: where the intervals of all symbols begin, and, last, 2^24."""
        u = self._w >> 24
        v = self._r // u
        assert v < 1 << 24, "a layer's bytes are damaged"
        number = int(np.searchsorted(begins, v, side="right")) - 1
        self._r -= u * int(begins[number])
        self._w = u * int(begins[number + 1] - begins[number])
        if self._w < 1 << 32:
            assert self._at < len(self._words), "a layer's bytes are too few"
            self._r, self._w = self._r << 32 | self._words[self._at], self._w << 32
            self._at += 1
        return number


def begins_of(shares: np.ndarray) -> np.ndarray:
    """constriction's rule from probabilities to intervals of 2^24."""
    through = np.append(0.0, np.cumsum(shares))  # from left to right
    n = len(shares)
    return np.append((through[:-1] * (((1 << 24) - n) / through[-1])).astype(np.int64) + np.arange(n), 1 << 24)


class Tables:
    def __init__(self, reach: np.ndarray, frequencies: np.ndarray):
        sizes = 2 * reach.astype(int) + 2
        tables = cut(frequencies, [*sizes, *sizes[:-1]])
        self.parities, self.symbols, self.values = [], {}, {}
        for table, f in enumerate(tables):
            r = int(reach[table % 64])
            for parity in (0, 1):
                k = np.arange(-r, r + 1)
                odd = k % 2 == parity
                shares = np.append(f[:-1][odd], f[-1] / 2)  # of the symbols of that parity and, last, the escape
                self.symbols[128 * parity + table] = begins_of(shares / shares.sum())
                self.values[128 * parity + table] = [*k[odd].tolist(), None]
            share = shares.sum() / (1 << 24)  # of the odd ones, which came last
            self.parities.append(begins_of(np.array([1.0 - share, share])))


def levels_of(data: bytes, index: np.ndarray, tables: Tables, state_bits: int) -> np.ndarray:
    """The levels of a segment, of the shape of its scale indices."""
    levels = np.zeros(index.shape, np.int64)
    coded = index[index > 0].tolist()
    if not coded:
        return levels
    q, p = MACHINES[state_bits]
    decoder, lanes = RangeDecoder(data), max(1, len(coded) // 1024)
    states, keys, odd_states = [0] * lanes, [], []
    for number, scale in enumerate(coded):
        state = states[number % lanes]
        table = scale + 64 * (state & 1)
        parity = decoder.decode(tables.parities[table])
        keys.append(128 * parity + table)
        odd_states.append(state & 1)
        states[number % lanes] = (state >> 1) ^ q * (state & 1) ^ p * parity
    order = sorted(range(len(keys)), key=keys.__getitem__)  # which is stable
    k = [0] * len(keys)
    for number in order:
        key = keys[number]
        k[number] = tables.values[key][decoder.decode(tables.symbols[key])]
    for number in order:
        if k[number] is None:
            k[number] = decoder.decode(np.arange(0, (1 << 24) + 1, 256)) - 32768
            assert k[number] % 2 == keys[number] // 128, "a layer's bytes are damaged"
    k = np.array(k)
    levels[index > 0] = 2 * k - np.sign(k) * np.array(odd_states)
    return levels


# --------------------------------------------------------------------------------------------------------------------
# From the file to the picture


def decode(data: bytes, folder: Path) -> np.ndarray:
    """(height, width, 1, 2, 3 or 4) uint8: gray or RGB, with alpha or without."""
    file = parse(data)
    tensors, sizes, fingerprint = load(folder)
    assert file.fingerprint == fingerprint[:4], "made with another model"
    network, tables = Network(tensors), Tables(tensors["entropy.reach"], tensors["entropy.frequencies"])
    height, width = (-(-side // 64) for side in file.size)  # of the extended picture, in 64 pixels
    h = np.broadcast_to(
        tensors["topdown.start"].astype(np.int64)[:, None, None], (len(tensors["topdown.start"]), height, width)
    )
    stride, digests = 64, b""
    for number, (latent, stream) in enumerate(zip(sizes["latents"], file.streams, strict=True)):
        layer, quality = f"topdown.layers.{number}", file.qualities[number]
        if latent["stride"] < stride:
            stride = latent["stride"]
            h = shuffle(network.conv(f"{layer}.up.mix", h), 2)
        h = network.blocks(f"{layer}.blocks", h, quality)
        mean, raw = np.split(network.conv(f"{layer}.prior", h), 2)
        index = np.clip((16 * raw + network.row(f"{layer}.scale_shift", quality) + 512) >> 10, 0, 63)
        rows = max(1, SEGMENT // h.shape[2])
        spans = [slice(top, top + rows) for top in range(0, h.shape[1], rows)]
        lengths, at = [], 0
        for _ in spans[1:]:
            length, at = varint(stream, at)
            lengths.append(length)
        levels = np.empty_like(mean)
        for span, segment in zip(spans, cut(stream[at:], lengths), strict=True):
            levels[:, span] = levels_of(segment, index[:, span], tables, file.state_bits)
        z = clamp((2 * mean + network.row(f"{layer}.step", quality) * levels + 1) >> 1)
        digests += hashlib.sha256(b"".join(z[:, span].astype("<i4").tobytes() for span in spans)).digest()
        h = clamp(h + network.conv(f"{layer}.project", z))
    assert hashlib.sha256(digests).digest()[:4] == file.latent_hash, "the latents are not those of the encoder"
    h = network.blocks("synthesis.stages.8", h, file.quality)
    h = shuffle(network.conv("synthesis.ups.4.mix", h), 2)
    h = network.blocks("synthesis.stages.4", h, file.quality)
    u = shuffle(network.conv("synthesis.out", h), 4)
    samples = (np.clip(u, -2048, 2048) * 255 + 2048 * 256) >> 12
    pixels = samples[:, : file.size[0], : file.size[1]].transpose(1, 2, 0)
    if file.gray:
        pixels = np.rint(pixels.mean(2, keepdims=True))
    if b"ALPH" in file.chunks:
        alpha = file.chunks[b"ALPH"]
        plane = alpha[0] if len(alpha) == 1 else np.asarray(Image.open(io.BytesIO(alpha)))
        pixels = np.dstack((pixels, np.broadcast_to(plane, file.size)))
    return pixels.astype(np.uint8)


if __name__ == "__main__":
    source, model, output = map(Path, sys.argv[1:])
    Image.fromarray(decode(source.read_bytes(), model).squeeze()).save(output)
