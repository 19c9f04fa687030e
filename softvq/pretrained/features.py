"""Networks whose features tell real from generated images, by name, each with its own way to resize.

Their inputs are 8-bit images of one size. `FeatureNetwork.protocol` says all that a figure rests on besides its images.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from softvq import files
from softvq.config import lookup
from softvq.errors import ConfigError, ModelError
from softvq.pretrained import inception, lite, vit

DINOV2 = "vit_large_patch14_dinov2.lvd142m"  # Stein et al. 2023
Resizing = Literal["tf1", "clean"]
_RESIZING = {
    "tf1": "bilinear as TensorFlow 1, no antialiasing (torch-fidelity, ADM)",
    "clean": "bicubic with antialiasing, not rounded (clean-fid)",
}


class FeatureNetwork(nn.Module):
    """A frozen network in evaluation mode, which makes `width` features of each image.

    Images are 8-bit and of one size; they are resized to `side` px and scaled to the network's range. `resizing`: `tf1`
    is the one that FID is defined with, for Inception alone; `clean` is clean-fid's, for any.
    """

    def __init__(self, name: str, network: nn.Module, side: int, width: int, resizing: Resizing):
        super().__init__()
        self.name, self.network, self.side, self.width, self.resizing = name, network, side, width, resizing
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, name: str, resizing: Resizing | None = None, file: Path | None = None) -> "FeatureNetwork":
        """Return one of `NETWORKS`; `file`: its weights, instead of a download.

        Raise `ModelError` when the name is unknown, the weights cannot be had, or the resizing is not the network's.
        """
        if resizing not in (None, *_RESIZING):
            raise ModelError(f"resize must be {' or '.join(_RESIZING)}, not {resizing!r}.")
        try:
            make = lookup(NETWORKS, name, "feature network")
        except ConfigError:
            some = [known for known in NETWORKS if known not in vit.MODELS or known == DINOV2]
            raise ModelError(
                f"there is no feature network {name!r}; there are {', '.join(some)} and other ViTs."
            ) from None
        network = make(resizing, file)
        if resizing not in (None, network.resizing):
            raise ModelError(f"{name} has only the resizing {network.resizing!r}; {resizing!r} is Inception's.")
        return network

    @property
    def protocol(self) -> dict[str, str]:
        """The network, weights and resizing: all that features are a function of besides the images."""
        resizing = f"{self.side} px, {_RESIZING[self.resizing]}"
        weights = files.fingerprint({}, self.network.state_dict())
        return {"features": self.name, "weights": weights, "resizing": resizing}

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B F"]]:
        """Return `pool`, the features; from Inception also `spatial`, those of sFID.

        Raise `ValueError` unless the images are 8-bit (B, 3, H, W).
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be 8-bit (B, 3, H, W), not {images.dtype} of {tuple(images.shape)}.")
        resized = self._resized(images)
        if isinstance(self.network, inception.Inception):
            pool, spatial = self.network.activations(resized)
            return {"pool": pool.float(), "spatial": spatial.float()}
        return {"pool": self.network(resized / 127.5 - 1).float()}

    def logits(self, pool: Float[Tensor, "N F"]) -> Float[Tensor, "N C"] | None:
        """Return the logits (N, C) of pooled features, for the Inception Score; None for other networks."""
        if not isinstance(self.network, inception.Inception):
            return None
        weight = self.network.fc.weight.detach().cpu()  # as `Inception.logits`, where the features are
        return torch.cat([part @ weight.T for part in pool.split(4096)])

    def _resized(self, images: Tensor) -> Tensor:
        if self.resizing == "tf1":
            return inception.resized(images.float(), self.side)
        # The kernel's weights are computed in the images' type; in float32 a pixel is off by up to 0.005.
        images = images.float() if images.device.type == "mps" else images.double()
        size = (self.side, self.side)
        return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255).float()


def _inception(name: str, resizing: Resizing | None, file: Path | None) -> FeatureNetwork:
    net = inception.Inception.load(name, file)
    return FeatureNetwork(name, net, inception.SIDE, net.width, resizing or "tf1")


def _lite(name: str, resizing: Resizing | None, file: Path | None) -> FeatureNetwork:
    net = lite.Lite(name)
    return FeatureNetwork(name, net, lite.SIDE, net.width, "clean")


def _vit(name: str, resizing: Resizing | None, file: Path | None) -> FeatureNetwork:
    if resizing == "tf1":  # before a download
        raise ModelError(f"{name} has only the resizing 'clean'; 'tf1' is Inception's.")
    net = vit.ClassToken.load(name, 224, file)
    return FeatureNetwork(name, net, 224, net.width, "clean")


# Name -> (resizing, a file of weights) -> the network. A file of one's own may add to them.
NETWORKS: dict[str, Callable[[Resizing | None, Path | None], FeatureNetwork]] = {
    **{name: partial(_inception, name) for name in (inception.NAME, inception.TINY)},
    **{name: partial(_lite, name) for name in lite.NAMES},
    **{name: partial(_vit, name) for name in vit.MODELS},
}
