"""What a model's parts cost: parameters, and multiplications per pixel of their convolutions.

python benchmarks/complexity.py [MODEL]        name or folder (the default model)
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "codec"))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from hvcompress.model import find_model, load_parts  # noqa: E402
from hvcompress.network import HierarchicalVAE, count_parameters, descend  # noqa: E402

SIDE = 128  # of the picture that is passed through, in pixels


@torch.inference_mode()
def macs_per_pixel(model: HierarchicalVAE) -> dict[str, float]:
    """Multiply-accumulate operations per pixel: encoder (bottom-up), posteriors, topdown (exact), synthesis."""
    counts: Counter[str] = Counter()

    def count(part: str):
        def hook(conv: nn.Conv2d, _, output: torch.Tensor) -> None:
            counts[part] += output.shape[2] * output.shape[3] * conv.weight.numel()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            part = "posteriors" if ".posteriors." in name else name.split(".")[0]
            module.register_forward_hook(count(part))
    quality = torch.tensor([50])
    latents = model.config.latents
    features = model.encoder(torch.rand(1, 3, SIDE, SIDE), quality)

    def choose(prior):
        return model.encoder.posteriors[prior.layer](prior.feature, features[latents[prior.layer].stride], quality)

    h = descend(model.topdown.walk(quality.expand(1, len(latents)), SIDE, SIDE), choose).all()
    model.synthesis(h, quality)
    return {part: total / SIDE**2 for part, total in counts.items()}


def main() -> None:
    folder = find_model(sys.argv[1] if len(sys.argv) > 1 else None)
    parts = load_parts(folder)
    macs = macs_per_pixel(HierarchicalVAE(parts.topdown.config))
    posteriors = count_parameters([parts.encoder.posteriors])
    sizes = {
        "encoder": count_parameters([parts.encoder]) - posteriors,
        "posteriors": posteriors,
        "topdown": count_parameters([parts.topdown]),
        "synthesis": count_parameters([parts.synthesis]),
    }
    print(f"model {folder.name}")
    for part, size in sizes.items():
        print(f"{part:10}  {size / 1e6:5.2f} M parameters  {macs[part] / 1e3:6.2f} kMAC/pixel")
    print(f"{'all':10}  {sum(sizes.values()) / 1e6:5.2f} M parameters  {sum(macs.values()) / 1e3:6.2f} kMAC/pixel")
    print(f"a decoder needs topdown and synthesis: {(macs['topdown'] + macs['synthesis']) / 1e3:.2f} kMAC/pixel")


if __name__ == "__main__":
    main()
