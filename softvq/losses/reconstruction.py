"""The distance of a reconstruction to its image: L_recon of Eq. 7."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Distance = Literal["l2", "l1"]


def reconstruction(
    images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B 3 H W"], distance: Distance = "l2"
) -> Float[Tensor, ""]:
    """Return the mean squared (the default, as released) or absolute error of pixels in [-1, 1], in float32."""
    images, targets = images.float(), targets.float()
    return F.mse_loss(images, targets) if distance == "l2" else F.l1_loss(images, targets)
