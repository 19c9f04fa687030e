"""Discriminators: their configurations, and the parts of them that are trained.

A frozen backbone, where there is one, is given to the training step.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from softvq import distributed
from softvq.config import family, register


@family
class DiscriminatorConfig(ABC):
    """The base of the discriminators' configurations.

    A configuration of your own is a frozen dataclass that derives from this class, has `@softvq.register` above it and
    defines `build`.

    `backbone`: a frozen ViT of `pretrained.vit` whose tokens the discriminator reads, after the embedding and after the
    blocks in `after`, of images of `image_size` px; None for one that reads the images themselves.
    """

    backbone: str | None = None
    after: tuple[int, ...] = ()
    image_size: int = 0

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """Return the trained part: a module from a list of readouts to logits (B, M), high for real images.

        Readouts are tokens (B, T, C) of a backbone of this `width`, or without a backbone the images (B, 3, H, W)
        alone.
        """


@register
@dataclass(frozen=True)
class DinoDiscriminatorConfig(DiscriminatorConfig):
    """The configuration of heads on a frozen DINO (Section 4.1; as in StyleGAN-T).

    `backbone` is a ViT of `pretrained.vit`; features are read after the embedding and after the blocks in `after`, of
    images of `image_size` px; `kernel` is the width of the convolution along the tokens.
    """

    backbone: str = "vit_small_patch16_224.dino"
    after: tuple[int, ...] = (3, 6, 9, 12)
    image_size: int = 224
    kernel: int = 9

    def __post_init__(self):
        if self.kernel < 1 or self.kernel % 2 == 0 or self.image_size < 1:
            raise ValueError("kernel must be odd, image_size at least 1")
        if any(b <= a for a, b in pairwise((0, *self.after))):
            raise ValueError(f"after must be increasing numbers of blocks from 1 on, not {list(self.after)}")

    def build(self, width: int) -> "DinoHeads":
        """Return the heads for a backbone of this width, one for each readout."""
        return DinoHeads(1 + len(self.after), width, self.kernel)


@register
@dataclass(frozen=True)
class PatchGANDiscriminatorConfig(DiscriminatorConfig):
    """The convolutional discriminator of pix2pix (Isola et al. 2017): with 3 layers a logit sees 70 × 70 px."""

    width: int = 64
    layers: int = 3

    def __post_init__(self):
        if self.width < 1 or self.layers < 1:
            raise ValueError("width and layers must be at least 1")

    def build(self, width: int) -> "PatchGAN":
        """Return the network; it reads the images themselves, so that the `width` of a backbone does not matter."""
        return PatchGAN(self)


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch, whatever the number of ranks (`nn.SyncBatchNorm` needs CUDA).

    A discriminator is only ever used in training: there are no running statistics.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "B C *places"]) -> Float[Tensor, "B C *places"]:
        """Return x normalised over the global batch and all places, in float32."""
        dims = (0, *range(2, x.ndim))
        shape = (1, -1, *(1 for _ in dims[1:]))
        x = x.float()
        x = x - distributed.mean(x.mean(dims)).view(shape)
        variance = distributed.mean(x.square().mean(dims))
        return x * (self.weight / (variance + self.eps).sqrt()).view(shape) + self.bias.view(shape)


class _Along(nn.Module):
    """A layer along the tokens: spectrally normalised convolution with circular padding, batch norm, LeakyReLU 0.2."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular", bias=False)
        self.conv = spectral_norm(conv)  # a bias would be taken out again by the norm
        self.norm = BatchNorm(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class _DinoHead(nn.Module):
    """A head on one readout: layers with k = 1 and k = `kernel`, then a convolution to one logit a token.

    The second layer is residual, (f(x) + x) / √2; the convolution (k = 1) is spectrally normalised.
    """

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.first = _Along(width, 1)
        self.second = _Along(width, kernel)
        self.last = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B T"]:
        x = self.first(x)
        x = (self.second(x) + x) / math.sqrt(2)
        return self.last(x).squeeze(1)


class DinoHeads(nn.Module):
    """The heads of a DINO discriminator, one for each readout of the backbone, with all their logits side by side."""

    def __init__(self, readouts: int, width: int, kernel: int):
        super().__init__()
        self.heads = nn.ModuleList(_DinoHead(width, kernel) for _ in range(readouts))

    def forward(self, readouts: Sequence[Float[Tensor, "B T C"]]) -> Float[Tensor, "B M"]:
        """Return the logits (B, M) of readouts (B, T, C), one readout for each head."""
        logits = [head(tokens.transpose(1, 2)) for head, tokens in zip(self.heads, readouts, strict=True)]
        return torch.cat(logits, dim=1)


class PatchGAN(nn.Module):
    """Convolutions of 4 × 4 with LeakyReLU 0.2, batch norm in all but the first and the last; a logit a place."""

    def __init__(self, config: PatchGANDiscriminatorConfig):
        super().__init__()
        widths = [config.width * min(2**i, 8) for i in range(config.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if number < config.layers else 1
            layers += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                BatchNorm(after, eps=1e-5),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, readouts: Sequence[Float[Tensor, "B 3 H W"]]) -> Float[Tensor, "B M"]:
        """Return the logits (B, M) of images (B, 3, H, W), the only element of `readouts`."""
        return self.layers(readouts[0]).flatten(1)
