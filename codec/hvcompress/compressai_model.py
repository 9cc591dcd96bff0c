"""Our models as models of CompressAI (extra `compressai`), so that its evaluation and other people's scripts run them.

    from hvcompress.compressai_model import HvcompressModel
    model = HvcompressModel(quality=50)
    model(x)["likelihoods"], model.compress(x)["strings"], model.decompress(strings, shape)["x_hat"]

For evaluation only: latents are quantized and the arithmetic that codes them is exact, so there are no gradients; a
model is trained by `hvcompress.training`. Strings are whole .hvci files, headers included, that any decoder of ours
reads. Images have 8 bits, so x is rounded to multiples of 1/255.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from . import load_model
from .errors import UsageError
from .picture import Picture


def _torchvision_anyway() -> torch.library.Library | None:
    """CompressAI imports torchvision, and one built for another torch fails as it registers the shapes of operators
    that it could not load. That they exist is all that is asked, and nothing here calls them: so then they are
    declared. The declarations last as long as the object that is returned.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return None  # CompressAI will say so
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


_operators = _torchvision_anyway()

from compressai.models import CompressionModel  # noqa: E402


class HvcompressModel(CompressionModel):
    """A model of ours at one quality."""

    def __init__(self, quality: int = 60, model: str | None = None, device: str = "cpu"):
        """quality: 0..100. model: name or folder; None is the default one. Raises ModelError, DeviceError."""
        super().__init__()
        self.quality = quality
        self.codec = load_model(model, device)
        # Not the codec's own weights: it is shared by all who load it, and `half()` or `to()` would ruin it for them.
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    @property
    def downsampling_factor(self) -> int:
        """Sides need not be multiples of anything: files hold the size, and padding is ours."""
        return 1

    def forward(self, x: Tensor) -> dict:
        """x: (B, 3, H, W) in [0, 1].

        Returns "x_hat", the decoded pixels, and "likelihoods": of each layer z_1 (coarsest) .. z_L what the tables give
        the symbols that are coded, (B, c, h, w). Their information is that of the file without its header.
        """
        pictures, bits = [], []
        for image in x:
            encoded = self.codec.encode(_picture(image), self.quality)
            pictures.append(_tensor(encoded.picture))
            bits.append(self.codec.information(encoded.data))
        likelihoods = {
            f"z_{number}": torch.from_numpy(np.exp2(-np.stack(of_layer))).to(x.device)
            for number, of_layer in enumerate(zip(*bits, strict=True), 1)
        }
        return {"x_hat": torch.stack(pictures).to(x.device), "likelihoods": likelihoods}

    def compress(self, x: Tensor) -> dict:
        """x: (B, 3, H, W) in [0, 1]. Returns "strings", one list of B files, and "shape", H and W."""
        files = [self.codec.encode(_picture(image), self.quality, verify=False).data for image in x]
        return {"strings": [files], "shape": x.shape[-2:]}

    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int]) -> dict:
        """Inverse of `compress`: "x_hat", (B, 3, H, W) in [0, 1]. Raises FormatError, MismatchError, UsageError."""
        images = [_tensor(self.codec.decode(data)) for data in strings[0]]
        if any(tuple(image.shape[-2:]) != tuple(shape) for image in images):
            raise UsageError(f"the files do not hold pictures of {tuple(shape)}")
        return {"x_hat": torch.stack(images)}

    def update(self, *arguments, **options) -> bool:
        """Tables are part of the model and never change: nothing is updated."""
        return False

    def load_state_dict(self, state_dict: dict, strict: bool = True):
        """Weights come with the model's folder. Raises UsageError."""
        raise UsageError("a model of hvcompress is loaded from its folder: HvcompressModel(quality, model=FOLDER)")


def _picture(image: Tensor) -> Picture:
    """(3, H, W) in [0, 1] -> 8 bits."""
    values = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return Picture(values.permute(1, 2, 0).cpu().contiguous().numpy())


def _tensor(picture: Picture) -> Tensor:
    """-> (3, H, W) in [0, 1]."""
    return torch.from_numpy(picture.pixels).permute(2, 0, 1).float() / 255.0
