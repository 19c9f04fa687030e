"""LPIPS with VGG16 (Zhang et al. 2018, version 0.1): the perceptual loss of Eq. 7, and a figure of reconstructions.

The VGG16 weights are ImageNet's from timm's hub repository, or a local safetensors file. The five linear layers on top
(1,472 numbers, BSD licence, see assets/lpips/LICENSE) ship with the package.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softvq import files, hub
from softvq.errors import ModelError
from softvq.saving import build

NAME = "vgg16.tv_in1k"
TINY = "tiny_vgg16"  # a stand-in, an eighth as wide, with seeded random weights: for tests and tiny twins of recipes
LINEAR = hub.BUNDLED.parent / "lpips" / "vgg_linear.safetensors"
_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Inputs in [-1, 1] to what VGG16 was trained on: ImageNet's mean and deviation, as LPIPS rounds them.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class VGG16(nn.Module):
    """The convolutions of VGG16, their layers numbered as in torchvision and timm.

    `share` is the share of the network's width that it has.
    """

    def __init__(self, share: float = 1.0):
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []  # the last ReLU of each stage
        channels = 3
        for stage, widths in enumerate(_WIDTHS):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for width in (int(width * share) for width in widths):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Return the activations of the five stages, each (B, C, H', W')."""
        activations = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                activations.append(x)
        return activations


class LPIPS(nn.Module):
    """The perceptual distance LPIPS, without dropout.

    It is Σ over stages of the mean over places of w · (f̂(x) − f̂(y))², f̂ of unit length over channels.
    """

    def __init__(self, vgg: VGG16, linear: dict[str, Tensor]):
        super().__init__()
        self.vgg = vgg
        for stage in range(5):
            self.register_buffer(f"lin{stage}", linear[f"lin{stage}"])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1))
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, name: str = NAME, file: Path | None = None) -> "LPIPS":
        """Return the network with VGG16's ImageNet weights, or the stand-in of that name.

        The weights come from `file` (safetensors, names as timm's or torchvision's), or the hub.
        """
        if name == TINY:
            return cls._tiny()
        if name != NAME:
            raise ModelError(f"there is no perceptual network {name!r}; there are {NAME} and {TINY}.")
        if file is None:
            file = hub.download(f"timm/{NAME}", (hub.WEIGHTS,), f"the file of {NAME}", "pretrained") / hub.WEIGHTS
        tensors = {k: v for k, v in files.read_tensors(file).items() if k.startswith("features.")}
        vgg = build(VGG16, 13, file, tensors)
        return cls(vgg, files.read_tensors(LINEAR))

    @classmethod
    def _tiny(cls) -> "LPIPS":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return cls.untrained(TINY)

    @classmethod
    def untrained(cls, name: str = NAME) -> "LPIPS":
        """Return a network of the form that `load` gives, with arbitrary weights."""
        part = 8 if name == TINY else 1
        linear = {f"lin{i}": torch.full((widths[-1] // part,), 0.3) for i, widths in enumerate(_WIDTHS)}
        return cls(VGG16(1 / part), linear)

    def forward(self, images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
        """Return the distance of each image in [-1, 1] to its target; the targets get no gradient."""
        with torch.no_grad():
            references = [unit(f) for f in self.vgg((targets - self.shift) / self.scale)]
        distance = torch.zeros(len(images), device=images.device)
        for stage, activation in enumerate(self.vgg((images - self.shift) / self.scale)):
            weights = getattr(self, f"lin{stage}").view(-1, 1, 1)
            difference = (unit(activation) - references[stage]).square()
            distance = distance + (difference * weights).sum(1).mean((1, 2)).float()
        return distance


def unit(features: Tensor) -> Tensor:
    """Return features scaled to unit length over channels.

    The gradient of the norm is 0, not NaN, where all channels are 0.
    """
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)
