"""Networks whose features tell real from generated images, by name, each with its own way to resize: 8-bit images of
one size in, features out. What a figure rests on besides its images is said by `FeatureNetwork.protocol`."""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from softvq import hub
from softvq.errors import ModelError
from softvq.pretrained import inception, lite, vit

DINOV2 = "vit_large_patch14_dinov2.lvd142m"  # Stein et al. 2023
NAMES = (inception.NAME, DINOV2, *lite.NAMES)
Resizing = Literal["tf1", "clean"]
_RESIZING = {
    "tf1": "bilinear as TensorFlow 1, no antialiasing (torch-fidelity, ADM)",
    "clean": "bicubic with antialiasing, not rounded (clean-fid)",
}


class FeatureNetwork(nn.Module):
    """A frozen network in evaluation mode. `resizing`: `tf1` is what FID is defined with, for Inception alone; `clean`
    is clean-fid's, for any."""

    def __init__(self, name: str, network: nn.Module, side: int, width: int, resizing: Resizing):
        super().__init__()
        self.name, self.network, self.side, self.width, self.resizing = name, network, side, width, resizing
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, name: str, resizing: Resizing | None = None, file: Path | None = None) -> "FeatureNetwork":
        """One of `NAMES`, or any ViT of `vit.MODELS`; `file`: its weights, instead of a download.

        `ModelError` when the name is unknown, the weights cannot be had, or the resizing is not the network's."""
        if name in (inception.NAME, inception.TINY):
            net = inception.Inception.load(name, file)
            return cls(name, net, inception.SIDE, net.width, resizing or "tf1")
        if resizing == "tf1":
            raise ModelError(f"{name} has only the resizing 'clean'; 'tf1' is Inception's.")
        if name in lite.NAMES:
            net = lite.Lite(name)
            return cls(name, net, lite.SIDE, net.width, "clean")
        if name not in vit.MODELS:
            raise ModelError(f"there is no feature network {name!r}; there are {', '.join(NAMES)} and other ViTs.")
        net = vit.ClassToken.load(name, 224, file)
        return cls(name, net, 224, net.width, "clean")

    @property
    def protocol(self) -> dict[str, str]:
        """What features are a function of, besides the images: network, weights and resizing."""
        resizing = f"{self.side} px, {_RESIZING[self.resizing]}"
        weights = hub.fingerprint({}, self.network.state_dict())
        return {"features": self.name, "weights": weights, "resizing": resizing}

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B F"]]:
        """`pool`, the features; of Inception also `spatial`, those of sFID."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be 8-bit (B, 3, H, W), not {images.dtype} of {tuple(images.shape)}.")
        resized = self._resized(images)
        if isinstance(self.network, inception.Inception):
            pool, spatial = self.network.activations(resized)
            return {"pool": pool.float(), "spatial": spatial.float()}
        return {"pool": self.network(resized / 127.5 - 1).float()}

    def logits(self, pool: Float[Tensor, "N F"]) -> Float[Tensor, "N C"] | None:
        """Of pooled features, what the Inception Score is computed from; None for other networks."""
        if not isinstance(self.network, inception.Inception):
            return None
        weight = self.network.fc.weight.detach().cpu()
        return torch.cat([part @ weight.T for part in pool.split(4096)])

    def _resized(self, images: Tensor) -> Tensor:
        if self.resizing == "tf1":
            return inception.resized(images.float(), self.side)
        # The kernel's weights are computed in the images' type; in float32 a pixel is off by up to 0.005.
        images = images.float() if images.device.type == "mps" else images.double()
        size = (self.side, self.side)
        return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255).float()
