"""Kernels give the very numbers of the plain expressions beside them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from hvcompress.exact import ExactConv2d, freeze
from hvcompress.kernels import int8

BITS = {8: (8, 7), 7: (7,), None: ()}[int8.digits()]  # digits with which products of bytes are exact here
needs_exact_bytes = pytest.mark.skipif(not BITS, reason="this CPU has no exact and fast products of bytes")
SHAPES = [(1, 80, 80, 3, 17, 24), (3, 9, 4, 3, 1, 2), (1, 256, 7, 1, 5, 6), (2, 3, 5, 1, 1, 1), (1, 40, 33, 3, 2, 1)]


def integers(shape, low, high):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def case(batch, channels, outputs, kernel, height, width):
    mantissa = integers((outputs, channels, kernel, kernel), -127, 128).to(torch.int8)
    return integers((batch, channels, height, width), -(1 << 15), 1 << 15).to(torch.int16), mantissa


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_sums_are_the_convolution(shape):
    x, mantissa = case(*shape)
    expected = F.conv2d(x.double(), mantissa.double(), padding=mantissa.shape[2] // 2)  # below 2^53
    assert torch.equal(int8.plain_sums(x, mantissa), expected.to(torch.int32))
    with torch.autocast("cpu", torch.bfloat16):  # which would round them
        assert torch.equal(int8.plain_sums(x, mantissa), expected.to(torch.int32))


@needs_exact_bytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_by_bytes_are_the_plain_ones(shape, bits):
    x, mantissa = case(*shape)
    drawn = integers((len(mantissa),), -(1 << 20), 1 << 20).to(torch.int32)
    for offset in (None, drawn, torch.full_like(drawn, -(1 << 20) - 1), torch.full_like(drawn, (1 << 20) - 1)):
        weights = int8.pack(mantissa, bits, offset)
        expected = int8.plain_sums(x, mantissa) + (0 if offset is None else offset[:, None, None])
        for layout in (torch.contiguous_format, torch.channels_last):
            assert torch.equal(int8.sums(x.contiguous(memory_format=layout), weights), expected)
    weights = int8.pack(mantissa, bits)
    wide = integers((*x.shape[:3], 3 * x.shape[3]), -99, 99).to(torch.int16)
    part = wide[..., ::3]  # not dense in memory
    assert torch.equal(int8.sums(part, weights), int8.plain_sums(part, mantissa))


@needs_exact_bytes
def test_exact_convolution_takes_bytes_and_does_without():
    torch.manual_seed(3)
    conv = freeze(ExactConv2d(12, 20, 3))
    x = integers((2, 12, 9, 5), -(1 << 15), 1 << 15).to(torch.int16)
    assert conv.byte_weights is not None
    by_bytes, conv.byte_weights = conv(x), None
    assert torch.equal(conv(x), by_bytes)


@needs_exact_bytes
def test_saturating_products_are_found_out(monkeypatch):
    """What a processor without VNNI does: sums of two products stop at 16 bits. Digits of 7 bits do not get there."""
    weights_of, pack = {}, int8.pack

    def noted(mantissa, bits, offset=None):
        weights = pack(mantissa, bits, offset)
        weights_of[id(weights.packed)] = weights, mantissa.int()
        return weights

    def saturating(digit, zero, added, weights):
        mantissa = weights_of[id(weights.packed)][1]
        patches = (
            F.unfold(F.pad(digit.to(torch.uint8).float() - zero, (weights.padding,) * 4), mantissa.shape[2]) + zero
        )
        columns = mantissa.permute(0, 2, 3, 1).flatten(1)  # neighbours are channels
        taps = mantissa[0, 0].numel()
        patches = patches.int().unflatten(1, (-1, taps)).transpose(1, 2).flatten(1, 2)
        products = columns[None, :, :, None] * patches[:, None]  # (B, O, taps C, H W)
        pairs = products.unflatten(2, (-1, 2)).sum(3).clamp(-(1 << 15), (1 << 15) - 1)
        sums = pairs.sum(2) - zero * columns.sum(1)[None, :, None]
        sums = sums if added is None else sums + added.int()[:, None]
        return sums.view(len(digit), -1, *digit.shape[2:]).int()

    monkeypatch.setattr(int8, "pack", noted)
    monkeypatch.setattr(int8, "_products", saturating)
    assert not int8._exact(8) and int8._exact(7)


@pytest.mark.parametrize(("isa", "expected"), [("AVX2", (7, None)), ("SSE41", (7, None)), ("DEFAULT", (8, 7, None))])
def test_every_instruction_set_gets_digits_or_none(isa, expected):
    program = "from hvcompress.kernels import int8; print(int8.digits())"
    command, environment = [sys.executable, "-c", program], os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    answer = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    assert answer.strip() in map(str, expected)


def test_without_the_library_the_plain_way_is_taken(monkeypatch):
    def missing(mantissa, bits, offset=None):
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv_prepack'")

    monkeypatch.setattr(int8, "pack", missing)
    assert int8.digits.__wrapped__() is None


TILES = """
import torch
from hvcompress.exact import ExactConv2d, Snap, freeze, to_units, use_tiles
from hvcompress.kernels import convolve
from hvcompress.network import Block

assert convolve.works(torch.device(DEVICE))
torch.manual_seed(0)


def given(frozen):
    tiles = frozen.to(DEVICE)
    use_tiles(tiles, torch.device(DEVICE))
    return tiles


for number, (batch, channels, outputs, kernel, height, width) in enumerate(SHAPES):
    conv = ExactConv2d(channels, outputs, kernel, wide=number % 2 == 1)
    torch.nn.init.normal_(conv.weight)
    torch.nn.init.normal_(conv.bias)
    freeze(conv)
    x = torch.randint(-(1 << 15), 1 << 15, (batch, channels, height, width), dtype=torch.int16)
    expected = conv(x)
    assert torch.equal(given(conv)(x.to(DEVICE)).cpu(), expected)

block = Block(40, 5, Snap())
for parameter in block.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
freeze(block)
x, quality = to_units(4 * torch.randn(2, 40, 9, 7)), torch.tensor([13, 88])
parts = (0, None), (0, 3), (4, 6), (5, 9)
expected = [block(x, quality, *part) for part in parts]
on_device = given(block)
for part, wanted in zip(parts, expected):
    made = on_device(x.to(DEVICE), quality.to(DEVICE), *part)
    assert made.dtype == torch.int16 and torch.equal(made.cpu(), wanted), part
"""


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("unfolded", [1, 5000, 1 << 24])
def test_plain_sums_in_bands_are_those_of_the_whole(kernel, unfolded, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-(1 << 15), 1 << 15, (2, 7, 11, 9), generator=generator).to(torch.int16)
    mantissa = torch.randint(-127, 128, (5, 7, kernel, kernel), generator=generator).to(torch.int8)
    monkeypatch.setattr(int8, "UNFOLDED", unfolded)
    expected = F.conv2d(x.double(), mantissa.double(), padding=kernel // 2)
    assert torch.equal(int8.plain_sums(x, mantissa), expected.to(torch.int32))


def run_tiles(device, **environment):
    program = f"DEVICE, SHAPES = {device!r}, {SHAPES[1:]!r}\n{TILES}"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | environment)


def test_tiles_of_triton_are_the_plain_way():
    """On the CPU, in Triton's interpreter, in a process of its own: it has to be switched on before the import."""
    pytest.importorskip("triton")
    run_tiles("cpu", TRITON_INTERPRET="1")


@pytest.mark.cuda
def test_tiles_on_cuda_are_the_plain_way():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run_tiles("cuda")


WHOLE = """
import sys
import torch
from hvcompress.loading import load_model
from hvcompress.exact import use_tiles
from hvcompress.network import dequantize, descend
from hvcompress.rows import Rows


def everything(codec):
    seen = []

    def choose(prior):
        draw = torch.Generator().manual_seed(prior.layer)
        levels = torch.randint(-9, 10, prior.mean.shape, generator=draw)
        seen.extend((prior.mean, prior.scale_index, prior.step))
        seen.append(dequantize(prior, levels, codec._topdown.snap))
        return seen[-1]

    with torch.inference_mode():
        qualities = torch.tensor([[20] * codec.layers, [90] * codec.layers])
        h = descend(codec._topdown.walk(qualities, 64, 64), choose).all()
        return [*seen, h, codec._synthesis.patches(Rows.whole(h), qualities[:, 0]).all()]


codec = load_model(sys.argv[1], "cpu")
expected = everything(codec)
for path in (codec._topdown, codec._synthesis):
    use_tiles(path, torch.device("cpu"))
assert codec._topdown.layers[0].prior.tile_weights is not None
assert all(map(torch.equal, everything(codec), expected))
"""


def test_a_whole_model_in_tiles_is_the_plain_one(tiny_folder):
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", WHOLE, str(tiny_folder)], check=True, env=environment)


COMPILING = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from hvcompress.kernels import convolve, viterbi


def compiled(kernel, signature, constants, capability, multiples=()):
    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else signature.get(name, "i32") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    known = {(names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    return compile(ASTSource(kernel, types, places, known), GPUTarget("cuda", capability, 32)).asm


tiles = {"POSITIONS": convolve.POSITIONS, "OUTPUTS": convolve.OUTPUTS, "INPUTS": convolve.INPUTS, "TABLE_BITS": 10}
pointers = {"x": "*i16", "weights": "*i8", "residual": "*i16", "out": "*i16"}
pointers |= dict.fromkeys(("constant", "down", "gain", "shift"), "*i32")
uses = [
    (1, {"SCALE": False, "LEAKY": True, "ADD": False, "SNAP": True}, "*i16"),
    (3, {"SCALE": True, "LEAKY": True, "ADD": False, "SNAP": True}, "*i16"),
    (1, {"SCALE": False, "LEAKY": False, "ADD": True, "SNAP": True}, "*i16"),
    (1, {"SCALE": False, "LEAKY": False, "ADD": False, "SNAP": False}, "*i32"),
]
for capability, product in ((80, "mma.sync"), (90, "wgmma")):
    for kernel, flags, out in uses:
        for multiples in ([], list(pointers), [*pointers, "inputs", "outputs"]):  # of 16, as most are: other code
            signature, constants = pointers | {"out": out}, tiles | flags | {"KERNEL": kernel}
            made = compiled(convolve._convolve, signature, constants, capability, multiples)
            assert product in made["ptx"] and "s8" in made["ptx"] and made["cubin"]
    columns = {"costs": "*fp32", "came": "*i32", "ways": "*u8", "branches": "*u8"}
    for states in (256, 4096):
        assert compiled(viterbi._viterbi, columns, {"STATES": states}, capability)["cubin"]
"""


def test_kernels_compile_for_tensor_cores(tmp_path):
    """For Ampere and Hopper, without such a device: Triton brings its own assembler."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILING], check=True, env=environment)
