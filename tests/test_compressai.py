"""Our models as CompressAI's, and its codecs as baselines. Skipped where it is not installed (extra `compressai`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hvcompress import read_info
from hvcompress.errors import FormatError, UsageError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

needed = pytest.mark.skipif(importlib.util.find_spec("compressai") is None, reason="needs the extra compressai")


@pytest.fixture(scope="module")
def model():
    from hvcompress.compressai_model import HvcompressModel

    return HvcompressModel(70).eval()


@pytest.fixture(scope="module")
def x(photo):
    """(2, 3, H, W) in [0, 1], of a size that is no multiple of anything."""
    image = torch.from_numpy(np.ascontiguousarray(photo[:53, :75])).permute(2, 0, 1).float() / 255
    return torch.stack((image, image.flip(2)))


@needed
def test_likelihoods_are_those_of_the_files(model, x):
    out, strings = model(x), model.compress(x)["strings"]
    assert out["x_hat"].shape == x.shape and F.mse_loss(out["x_hat"], x) < 0.01
    bits = sum(-values.log2().sum().item() for values in out["likelihoods"].values())
    payload = 8 * sum(sum(read_info(data).layer_bytes) for data in strings[0])
    assert len(out["likelihoods"]) == model.codec.layers and payload == pytest.approx(bits, rel=0.05)
    assert all(values.shape[0] == 2 and (values <= 1).all() for values in out["likelihoods"].values())


@needed
def test_strings_come_back_as_pictures(model, x):
    coded = model.compress(x)
    decoded = model.decompress(coded["strings"], coded["shape"])["x_hat"]
    assert torch.equal(decoded, model(x)["x_hat"]) and len(coded["strings"]) == 1
    assert decoded.mul(255).round().div(255).equal(decoded)
    with pytest.raises(UsageError):
        model.decompress(coded["strings"], (53, 76))
    with pytest.raises(FormatError):
        model.decompress([[b"nothing"]], coded["shape"])


@needed
def test_as_compressais_own_evaluation_runs_a_model(model, photo, tmp_path):
    from compressai.utils.eval_model.__main__ import eval_model, inference, inference_entropy_estimation

    tall = np.concatenate([photo, photo[::-1], photo])[:200]
    wide = np.ascontiguousarray(np.concatenate([tall, tall[:, ::-1]], 1)[:, :180])
    image = torch.from_numpy(wide).permute(2, 0, 1).float() / 255
    real, estimated = inference(model, image), inference_entropy_estimation(model, image)
    assert 20 < real["psnr-rgb"] < 50
    assert 0.8 * real["bpp"] < estimated["bpp"] < real["bpp"]  # the former pads with black, which is not free
    Image.fromarray(wide).save(tmp_path / "a.png")
    options = {"architecture": "hvcompress", "half": False, "per_image": False}
    metrics = eval_model(model, tmp_path, tmp_path, [tmp_path / "a.png"], **options)
    assert metrics["psnr-rgb"] == pytest.approx(real["psnr-rgb"]) and metrics["bpp"] == pytest.approx(real["bpp"])


@needed
def test_weights_are_not_loaded_from_elsewhere(model):
    assert model.update() is False and model.update(force=True) is False
    with pytest.raises(UsageError, match="from its folder"):
        model.load_state_dict({})


@needed
def test_its_codecs_go_through_our_harness(photo):
    import learned

    image = Image.fromarray(photo[:50, :70])
    data = learned.encode(image, 1, "mbt2018-mean", pretrained=False)
    decoded = learned.decode(data, "mbt2018-mean", pretrained=False)
    assert decoded.shape == (50, 70, 3) and decoded.dtype == np.uint8


def test_without_it_the_harness_has_the_others():
    import learned
    from classical import CLASSICAL_KEYS

    assert [learned.other(key).key for key in CLASSICAL_KEYS] == list(CLASSICAL_KEYS)
    assert all(learned.other(name).points[0] == 1 for name in learned.ARCHITECTURES)
