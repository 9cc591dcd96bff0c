"""Image -> bytes -> image with a tiny random model: sizes, planes, offsets, damage, and bit-exactness."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import load_file, save_file

import hvcompress
from hvcompress import container, loading
from hvcompress.entropy import path_of
from hvcompress.errors import (
    DeviceError,
    FormatError,
    HvcompressError,
    LimitError,
    MismatchError,
    ModelError,
    UsageError,
)
from hvcompress.image_reading import read_picture
from hvcompress.metrics import mean_squared_error
from hvcompress.network import dequantize, descend
from hvcompress.picture import Picture


def reseal(data: bytes, change) -> bytes:
    """A file with a changed body under a right checksum."""
    body = bytearray(data[8:])
    change(body)
    return data[:4] + zlib.crc32(body).to_bytes(4, "little") + bytes(body)


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (65, 1), (63, 65), (64, 64), (100, 37)])
def test_any_size(tiny, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    encoded = tiny.encode(read_picture(pixels), 40)
    assert encoded.picture.pixels.shape == pixels.shape
    assert np.array_equal(tiny.decode(encoded.data).pixels, encoded.picture.pixels)


def test_every_layer_codes_something(tiny, photo):
    info = hvcompress.read_info(tiny.encode(read_picture(photo), 90).data)
    assert min(info.layer_bytes) > 0


def test_estimate_is_the_size(tiny, photo):
    encoded = tiny.encode(read_picture(photo), 90)
    layers = sum(hvcompress.read_info(encoded.data).layer_bytes)
    assert 8 * layers == pytest.approx(sum(tiny.estimated_bits(encoded.data)), rel=0.02, abs=8 * 3 * tiny.layers)


def test_latents_are_those_that_the_picture_is_made_of(tiny, photo):
    """All of them are the encoder's; the first k are the same without the others; what codes padding is left out."""
    picture = read_picture(photo[:70, :90])
    encoded = tiny.encode(picture, 80)
    found = tiny.latents(encoded.data)
    layers: list[np.ndarray] = []
    padded = np.pad(picture.pixels, ((0, 58), (0, 38), (0, 0)), "edge")
    digest = tiny.analyse(padded, 80, (0,) * tiny.layers, lambda segment: layers.append(segment.levels), state_bits=12)
    assert digest.hex() == tiny.latent_digest(encoded.data)
    for z, levels, stride in zip(found, layers, tiny.strides, strict=True):
        assert z.dtype == np.float32 and z.shape == (len(levels), -(-70 // stride), -(-90 // stride))
        assert np.array_equal(z * 2.0**10, np.rint(z * 2.0**10)) and z.any()
    for count in range(1, tiny.layers + 1):
        first = tiny.latents(encoded.data, count)
        assert len(first) == count
        assert all(np.array_equal(a, b) for a, b in zip(first, found, strict=False))


def test_latents_hash_to_what_the_file_says(tiny, photo):
    """Where nothing is padding, the arrays are the latents whose digest a file carries."""
    encoded = tiny.encode(read_picture(photo[:64, :64]), 80)
    digest = hashlib.sha256()
    for z in tiny.latents(encoded.data):
        digest.update(hashlib.sha256((z * 2.0**10).astype("<i4").tobytes()).digest())
    assert digest.hexdigest() == tiny.latent_digest(encoded.data)


@pytest.mark.parametrize("layers", [0, -1, 7, 1.5, True])
def test_no_such_layers(tiny, photo, layers):
    data = tiny.encode(read_picture(photo), 10).data
    for work in (tiny.latents, tiny.decode):
        with pytest.raises(UsageError, match="from 1 to 6"):
            work(data, layers)


def test_a_preview_comes_from_the_first_layers_alone(tiny, tiny_folder, photo):
    """Finer layers, whatever they hold, change nothing; all layers are the picture; more layers come nearer to it."""
    encoded = tiny.encode(read_picture(photo), 80)
    whole = encoded.picture.pixels
    assert np.array_equal(tiny.decode(encoded.data, tiny.layers).pixels, whole)
    other = container.parse(tiny.encode(read_picture(photo[::-1, ::-1].copy()), 80).data).streams
    for count in range(1, tiny.layers):
        preview = tiny.decode(encoded.data, count)
        assert preview.pixels.shape == whole.shape
        parsed = container.parse(encoded.data)
        mixed = dataclasses.replace(parsed, streams=parsed.streams[:count] + other[count:])
        assert np.array_equal(tiny.decode(container.pack(mixed), count).pixels, preview.pixels)
        with pytest.raises((MismatchError, FormatError)):
            tiny.decode(container.pack(mixed))
    errors = [mean_squared_error(tiny.decode(encoded.data, count).pixels, whole) for count in range(1, tiny.layers + 1)]
    assert errors[-1] == 0 < errors[-2] < errors[0]
    assert hvcompress.decode(encoded.data, layers=2, model=tiny_folder, device="cpu").size == (131, 75)


def test_gray_alpha_and_profile_survive(tiny, photo):
    alpha = np.arange(photo.shape[0] * photo.shape[1], dtype=np.uint32).reshape(photo.shape[:2]).astype(np.uint8)
    gray = np.repeat(photo[:, :, :1], 3, axis=2)
    decoded = tiny.decode(tiny.encode(Picture(gray, True, alpha, b"a profile"), 50).data)
    assert decoded.gray and decoded.icc == b"a profile"
    assert np.array_equal(decoded.alpha, alpha)
    assert np.array_equal(decoded.pixels[:, :, 0], decoded.pixels[:, :, 2])


def test_offsets_move_bits_and_are_stored(tiny, photo):
    picture = read_picture(photo)
    offsets = (0, 0, 0, 0, 30, 30)
    plain, moved = tiny.encode(picture, 60), tiny.encode(picture, 60, offsets)
    assert hvcompress.read_info(moved.data).offsets == offsets
    assert moved.data != plain.data
    assert np.array_equal(tiny.decode(moved.data).pixels, moved.picture.pixels)


@pytest.mark.parametrize(
    "arguments",
    [
        {"quality": 101},
        {"quality": -1},
        {"quality": 60.5},
        {"quality": "60"},
        {"offsets": (0,)},
        {"offsets": (0, 0, 0, 0, 0, 99)},
    ],
)
def test_bad_settings(tiny, photo, arguments):
    with pytest.raises(UsageError):
        tiny.encode(read_picture(photo), **arguments)


def test_picture_over_the_limit(tiny):
    pixels = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (70000, 2, 3))  # takes no memory
    with pytest.raises(LimitError):
        tiny.encode(Picture(pixels, False, None, None))


def test_every_truncation_is_refused(tiny, photo):
    data = tiny.encode(read_picture(photo[:32, :32]), 30).data
    for length in range(len(data)):
        with pytest.raises(FormatError):
            tiny.decode(data[:length])


def test_flipped_bits_are_refused(tiny, photo):
    """2,000 random flips; CRC-32 finds every single one."""
    data = tiny.encode(read_picture(photo), 60).data
    generator = random.Random(3)
    for _ in range(2000):
        bit = generator.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            tiny.decode(bytes(flipped))


def test_damage_under_a_right_checksum_is_found(tiny, photo):
    """Past the checksum the range decoder and the latents' hash stand guard over the layers.

    The last bits of a layer may be free: any value of theirs decodes to the same symbols, hence to the right picture.
    """
    encoded = tiny.encode(read_picture(photo), 60)
    data = encoded.data
    start = hvcompress.read_info(data).header_bytes - 8
    generator = random.Random(4)
    outcomes = []
    for _ in range(60):
        place = generator.randrange(start, len(data) - 8)

        def flip(body, place=place):
            body[place] ^= 1 << generator.randrange(8)

        try:
            assert np.array_equal(tiny.decode(reseal(data, flip)).pixels, encoded.picture.pixels)
        except (FormatError, MismatchError) as error:
            outcomes.append(type(error))
    assert len(outcomes) > 50 and MismatchError in outcomes


def test_wrong_latent_hash_is_a_mismatch(tiny, photo):
    data = tiny.encode(read_picture(photo), 60).data

    def change(body):
        body[5] ^= 1

    with pytest.raises(MismatchError):
        tiny.decode(reseal(data, change))


def test_file_of_another_model(tiny, photo):
    data = tiny.encode(read_picture(photo), 60).data

    def change(body):
        body[1] ^= 1

    other = reseal(data, change)
    with pytest.raises(ModelError):
        tiny.decode(other)
    with pytest.raises(ModelError):
        loading.codec_for(other, "cpu")


@pytest.mark.parametrize("blocks", [{"4": 1}, {"4": -1, "8": "x"}, None])
def test_a_model_whose_sizes_make_no_sense_is_refused(tiny_folder, tmp_path, blocks):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["network"]["encoder_blocks"] = blocks  # of which the fingerprint knows nothing
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="sizes make no sense"):
        loading.load_model(folder, device="cpu")


def test_damaged_model_is_refused(tiny_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    weights = bytearray((broken / "weights.safetensors").read_bytes())
    weights[-5] ^= 64
    (broken / "weights.safetensors").write_bytes(weights)
    with pytest.raises(ModelError):
        loading.load_model(broken, "cpu")
    (broken / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError):
        loading.load_model(broken, "cpu")
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError):
        loading.load_model(broken, "cpu")


def test_a_damaged_encoder_is_noticed(tiny_folder, tmp_path):
    """No file depends on its weights, so the fingerprint does not: pictures would be bad, and nothing would say so."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "weights.safetensors")
    tensors["encoder.stem.weight"].view(-1)[3] += 0.25
    save_file(tensors, folder / "weights.safetensors")
    with pytest.raises(ModelError, match="its encoder is not the one"):
        loading.load_model(folder, device="cpu")


def test_a_model_of_another_architecture_is_refused(tiny_folder, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tiny_folder, old)
    config = json.loads((old / "config.json").read_text())
    del config["network"]["architecture"]
    (old / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="architecture 1"):
        loading.load_model(old, "cpu")


def test_failed_self_test_refuses_to_code(tiny_folder, tmp_path):
    liar = tmp_path / "liar"
    shutil.copytree(tiny_folder, liar)
    text = (liar / "config.json").read_text()
    answer = '"self_test": "'
    at = text.index(answer) + len(answer)
    (liar / "config.json").write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    with pytest.raises(DeviceError):
        loading.load_model(liar, "cpu")


def test_a_device_that_cannot_compute_is_tried_once(tiny_folder, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)
    tries = []

    def failing(self) -> str:
        tries.append(self.device)
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(loading.Codec, "self_test", failing)
    for _ in range(3):
        with pytest.raises(DeviceError, match="no kernel image is available$"):
            loading.load_model(folder, device="cpu")
    assert len(tries) == 1


@pytest.mark.parametrize("device", ["toaster", "mps", "cuda:99"])
def test_unknown_device(tiny_folder, device):
    with pytest.raises(HvcompressError):
        loading.load_model(tiny_folder, device)


def test_verification_finds_a_lying_encoder(tiny, photo, monkeypatch):
    def liar(pixels, quality, offsets, use, encoder, state_bits, progress):
        def instead(segment):
            levels = path_of(np.ones(segment.levels.shape, np.int16), segment.indices, state_bits)
            use(dataclasses.replace(segment, levels=levels) if segment.layer == 2 else segment)

        return type(tiny).analyse(tiny, pixels, quality, offsets, instead, encoder, state_bits, progress)

    monkeypatch.setattr(tiny, "analyse", liar)
    with pytest.raises(MismatchError):
        tiny.encode(read_picture(photo), 60)


def test_threads_share_a_model(tiny, photo):
    pictures = [read_picture(np.roll(photo, 9 * n, axis=1)) for n in range(8)]
    alone = [tiny.encode(picture, 50).data for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda picture: tiny.encode(picture, 50).data, pictures)) == alone


def latents(codec, qualities: torch.Tensor, levels: list[torch.Tensor], height: int, width: int) -> list[torch.Tensor]:
    """Latents and priors that the exact path derives from given levels."""
    seen = []

    def choose(prior):
        z = dequantize(prior, levels[prior.layer], codec._topdown.snap)
        seen.extend((prior.scale_index, z))
        return z

    seen.append(descend(codec._topdown.walk(qualities, height, width), choose).all())
    return seen


def test_batched_alone_and_layouts_give_the_same_bits(tiny):
    torch.manual_seed(0)
    height, width = 128, 192
    qualities = torch.tensor([[20] * 6, [55] * 6, [90, 80, 70, 60, 50, 40]])
    levels = [
        torch.randint(-6, 7, (3, latent.channels, height // latent.stride, width // latent.stride))
        for latent in tiny._topdown.config.latents
    ]
    together = latents(tiny, qualities, levels, height, width)
    for image in range(3):
        alone = latents(tiny, qualities[image : image + 1], [s[image : image + 1] for s in levels], height, width)
        assert all(torch.equal(a[0], b[image]) for a, b in zip(alone, together, strict=True))
    strided = [s.contiguous(memory_format=torch.channels_last) for s in levels]
    assert all(map(torch.equal, latents(tiny, qualities, strided, height, width), together))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert all(map(torch.equal, latents(tiny, qualities, levels, height, width), together))
    finally:
        torch.set_num_threads(threads)


def test_library_face(tiny_folder, photo, tmp_path):
    path = tmp_path / "photo.png"
    image = hvcompress.decode(
        hvcompress.encode(photo, 70, beta=[1, 1, 1, 1, 0.5, 2], model=tiny_folder), model=tiny_folder
    )
    image.save(path)
    assert image.mode == "RGB" and image.size == (photo.shape[1], photo.shape[0])
    data = hvcompress.encode(path, model=tiny_folder, device="cpu", verify=False)
    assert container.read_info(data).quality == 60


@pytest.mark.parametrize("beta", [[1, 1, 1, 1, 1, -1], ["1"] * 6, 2.0, "1,1,1,1,1,1", [1, 1], [None] * 6])
def test_odd_betas_are_usage_errors(tiny_folder, photo, beta):
    with pytest.raises(UsageError):
        hvcompress.encode(photo, beta=beta, model=tiny_folder)


def test_a_memory_limit_holds_for_the_library(tiny_folder, photo):
    with pytest.raises(LimitError):
        hvcompress.encode(photo, memory_limit=1000, model=tiny_folder)
    data = hvcompress.encode(photo, memory_limit=1 << 40, model=tiny_folder)
    for decode in (hvcompress.decode, hvcompress.decode_array):
        with pytest.raises(LimitError):
            decode(data, memory_limit=1000, model=tiny_folder)
        decode(data, memory_limit=1 << 40, model=tiny_folder)


def test_metadata_can_be_left_out(tiny_folder, photo):
    image = Image.fromarray(photo)
    exif = image.getexif()
    exif[0x010F] = "maker"
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.info["exif"] = exif.tobytes()
    for strip, strip_icc in product((False, True), repeat=2):
        data = hvcompress.encode(image, strip=strip, strip_icc=strip_icc, model=tiny_folder)
        info = container.read_info(data)
        assert (info.exif, info.icc) == (not strip, not strip_icc)


@pytest.mark.cuda
def test_cuda_decodes_what_the_cpu_made(tiny, tiny_folder, photo):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_gpu = loading.load_model(tiny_folder, "cuda")
    for quality in (5, 50, 95):
        for encoder, decoder in ((tiny, on_gpu), (on_gpu, tiny)):
            encoded = encoder.encode(read_picture(photo), quality)
            decoded = decoder.decode(encoded.data)  # raises MismatchError where one bit of the latents differs
            assert np.array_equal(decoded.pixels, encoded.picture.pixels)


def test_constant_alpha_costs_a_byte(tiny, photo):
    opaque = np.full(photo.shape[:2], 255, np.uint8)
    encoded = tiny.encode(Picture(photo, False, opaque, None), 50)
    assert hvcompress.read_info(encoded.data).chunk_bytes == {"ALPH": 1}
    assert np.array_equal(encoded.picture.alpha, opaque)


def test_samples_come_from_the_same_walk(tiny):
    first, again, other = (tiny.sample(100, 70, 50, seed).pixels for seed in (1, 1, 2))
    assert first.shape == (70, 100, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
