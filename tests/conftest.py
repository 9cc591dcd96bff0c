"""A tiny model with random weights, so that most tests need neither time nor the trained model."""

from __future__ import annotations

import numpy as np
import pytest

from hvcompress.batch import wait_briefly

wait_briefly()  # tests share their cores with the processes that they start, and with what else is running


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a model of a few thousand random weights; its latents are lively at every layer."""
    import torch

    from hvcompress.entropy import gaussian_tables
    from hvcompress.network import Config, HierarchicalVAE, Latent
    from hvcompress.training.export import network_of, tensors_of, write_folder

    strides = (4, 8, 16, 32, 64)
    config = Config(
        widths=dict.fromkeys(strides, 16),
        encoder_blocks=dict.fromkeys(strides, 1),
        latents=(
            Latent(64, 4, 1),
            Latent(32, 4, 1),
            Latent(16, 8, 1),
            Latent(16, 8, 1),
            Latent(8, 4, 1),
            Latent(8, 4, 1),
        ),
        synthesis_blocks={8: 1, 4: 1},
        knots=5,
    )
    torch.manual_seed(1)
    model = HierarchicalVAE(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    network = network_of(config)
    tensors = tensors_of(model, gaussian_tables())
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(folder, "tiny", tensors, network, {"description": "random weights, for tests"})
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The tiny model, loaded on the CPU."""
    from hvcompress.loading import load_model

    return load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def photo():
    """(H, W, 3) uint8: a made-up picture with smooth areas, edges and texture, of a size that is no multiple of 64."""
    height, width = 75, 131
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    generator = np.random.Generator(np.random.PCG64(5))
    smooth = 128 + 90 * np.sin(x / 25 + 1.0) * np.cos(y / 19)
    disc = 60 * ((x - 80) ** 2 + (y - 40) ** 2 < 500)
    texture = generator.normal(0, 12, (height, width)) * (x < 50)
    planes = [smooth + disc + texture, smooth * 0.8 - disc + 20, 255 - smooth + texture]
    return np.clip(np.stack(planes, 2), 0, 255).astype(np.uint8)
