"""Encoding decodes what it has made, from the bytes alone: whatever went wrong before, no wrong file is handed out."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

import hvcompress
from hvcompress import codec as codec_module
from hvcompress import container, loading
from hvcompress.cli import main
from hvcompress.entropy import LayerCoder
from hvcompress.errors import HvcompressError, MismatchError
from hvcompress.image_reading import read_picture
from hvcompress.segments import LatentHash


@pytest.fixture
def picture(photo):
    return read_picture(photo)


def damage(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data[:2]) + data[2:]


def corrupt_coder(monkeypatch, call: int) -> list[int]:
    """From that call on the range coder's output is damaged on its way. Returns the lengths of what it has made."""
    encode, lengths = LayerCoder.encode, []

    def damaged(self, *arguments):
        data = encode(self, *arguments)
        lengths.append(len(data))
        return damage(data) if len(lengths) > call else data

    monkeypatch.setattr(LayerCoder, "encode", damaged)
    return lengths


@pytest.mark.parametrize("call", range(6))
def test_streams_damaged_in_flight(tiny, picture, monkeypatch, call):
    lengths = corrupt_coder(monkeypatch, call)
    with pytest.raises(MismatchError, match="verification failed"):
        tiny.encode(picture, 80)
    assert len(lengths) > call and min(lengths) > 0


def test_latents_that_differ_in_the_last_bit(tiny, picture, monkeypatch):
    """The encoder goes on from other latents than a decoder will have."""
    dequantize, calls = codec_module.dequantize, []

    def drifting(*arguments):
        z = dequantize(*arguments)
        calls.append(None)
        return z + 1 if len(calls) == 1 else z  # in units

    monkeypatch.setattr(codec_module, "dequantize", drifting)
    with pytest.raises(MismatchError, match="verification failed"):
        tiny.encode(picture, 60)
    assert len(calls) > tiny.layers


def test_a_wrong_hash_of_the_latents(tiny, picture, monkeypatch):
    digest, calls = LatentHash.digest, []

    def wrong(self):
        calls.append(None)
        return damage(digest(self)) if len(calls) == 1 else digest(self)

    monkeypatch.setattr(LatentHash, "digest", wrong)
    with pytest.raises(MismatchError, match="verification failed"):
        tiny.encode(picture, 60)
    assert len(calls) == 2  # the encoder's and the verification's own


def test_any_bit_of_the_finished_bytes(tiny, photo, monkeypatch):
    picture, pack = read_picture(photo[:40, :40]), container.pack
    size = len(tiny.encode(picture, 20).data)
    for bit in np.random.default_rng(2).choice(8 * size, 60, replace=False):

        def flipped(*arguments, bit=int(bit)):
            data = bytearray(pack(*arguments))
            data[bit // 8] ^= 1 << bit % 8
            return bytes(data)

        monkeypatch.setattr(container, "pack", flipped)
        with pytest.raises(MismatchError, match="verification failed"):
            tiny.encode(picture, 20)


def test_verification_knows_nothing_of_the_encoder(tiny, picture, monkeypatch):
    """Its network is taken away and all that went through the coder is overwritten: the same picture comes back."""
    expected = tiny.encode(picture, 70)
    verified, encode, seen = tiny._verified, LayerCoder.encode, []

    def watched(self, levels, indices, state_bits):
        data = encode(self, levels, indices, state_bits)
        seen.extend((levels, indices))
        return data

    def ruined(*arguments):
        for array in seen:
            if array.flags.writeable:
                array.fill(1)
        monkeypatch.setattr(tiny, "_encoder", None)
        return verified(*arguments)

    monkeypatch.setattr(LayerCoder, "encode", watched)
    monkeypatch.setattr(tiny, "_verified", ruined)
    encoded = tiny.encode(picture, 70)
    assert tiny._encoder is None and len(seen) >= 2 * tiny.layers
    assert encoded.data == expected.data and np.array_equal(encoded.picture.pixels, expected.picture.pixels)


def test_what_was_verified_is_what_another_codec_decodes(tiny, tiny_folder, picture, tmp_path):
    """One that was loaded apart, from a copy of the model."""
    other = loading.load_model(shutil.copytree(tiny_folder, tmp_path / "copy"), "cpu")
    assert other is not tiny
    for quality in (0, 50, 100):
        encoded = tiny.encode(picture, quality)
        assert np.array_equal(other.decode(encoded.data).pixels, encoded.picture.pixels)


@pytest.mark.parametrize("effort", [1, 4])
def test_it_is_the_default_and_cannot_be_left_out_of_effort(tiny_folder, photo, monkeypatch, effort):
    options = {"effort": effort, "model": tiny_folder, "device": "cpu"}
    lengths = corrupt_coder(monkeypatch, 0)
    with pytest.raises(MismatchError):
        hvcompress.encode(photo, **options)
    if effort > 1:
        with pytest.raises(MismatchError):
            hvcompress.encode(photo, verify=False, **options)
    else:
        damaged = hvcompress.encode(photo, verify=False, **options)  # so the tests above have shown something
        with pytest.raises(HvcompressError):
            hvcompress.decode(damaged, model=tiny_folder, device="cpu")
    assert len(lengths) > 1


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_no_file_is_written(tiny_folder, photo, tmp_path, monkeypatch, capsys, jobs):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Image.fromarray(photo).save(f"{name}.png")
    (tmp_path / "b.hvci").write_bytes(b"old")
    corrupt_coder(monkeypatch, 0)
    command = ["encode", "-f", "-j", jobs, "a.png", "b.png", "--model", str(tiny_folder), "--device", "cpu"]
    assert main(command) == MismatchError.exit_code == 8
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("verification failed") == 2 == captured.err.count("\n")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.hvci", "b.png"]
    assert (tmp_path / "b.hvci").read_bytes() == b"old"
    assert main([*command, "--no-verify"]) == 0
    assert len((tmp_path / "b.hvci").read_bytes()) > 100
