"""The adversarial terms of Eq. 7 as functions of logits: hinge and non-saturating losses, LeCAM, the adaptive weight.

Every mean is over the global batch: the gradient reduction averages the ranks' means, which is the same where the
ranks' shares are equal. Terms that are not linear in the batch (LeCAM's averages, the adaptive weight) are reduced
here.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from softvq import distributed

AdversarialLoss = Literal["hinge", "non_saturating"]


def discriminator_loss(
    real: Float[Tensor, "B M"], fake: Float[Tensor, "B M"], loss: AdversarialLoss
) -> Float[Tensor, ""]:
    """Return the discriminator's loss for logits of real images and of reconstructions.

    It is ½ E[relu(1 − real)] + ½ E[relu(1 + fake)] for `hinge`, and ½ E[softplus(−real)] + ½ E[softplus(fake)] for
    `non_saturating`.
    """
    real, fake = real.float(), fake.float()
    if loss == "hinge":
        return 0.5 * F.relu(1 - real).mean() + 0.5 * F.relu(1 + fake).mean()
    return 0.5 * F.softplus(-real).mean() + 0.5 * F.softplus(fake).mean()


def generator_loss(fake: Float[Tensor, "B M"], loss: AdversarialLoss) -> Float[Tensor, ""]:
    """Return the adversarial loss of the reconstructions: −E[fake] for `hinge`, else E[softplus(−fake)]."""
    return -fake.float().mean() if loss == "hinge" else F.softplus(-fake.float()).mean()


def consistency(logits: Float[Tensor, "B M"], stronger: Float[Tensor, "B M"]) -> Float[Tensor, ""]:
    """Return the mean squared difference that a stronger augmentation makes to logits (Zhang et al. 2020)."""
    return F.mse_loss(logits.float(), stronger.float())


class LeCAM(nn.Module):
    """LeCAM's regularisation (Tseng et al. 2021): logits are kept near the moving average of the other kind's.

    It is E[relu(real − α_fake)²] + E[relu(α_real − fake)²], where α are exponential moving averages of the mean logits.
    They are part of a run's checkpoint.
    """

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: Float[Tensor, "B M"], fake: Float[Tensor, "B M"]) -> None:
        """Move the averages towards the mean logits of this step, over all ranks."""
        self.real.lerp_(distributed.mean(real.float().mean()), 1 - self.decay)
        self.fake.lerp_(distributed.mean(fake.float().mean()), 1 - self.decay)

    def forward(self, real: Float[Tensor, "B M"], fake: Float[Tensor, "B M"]) -> Float[Tensor, ""]:
        """Return E[relu(real − α_fake)²] + E[relu(α_real − fake)²] for the averages as they are."""
        return F.relu(real.float() - self.fake).square().mean() + F.relu(self.real - fake.float()).square().mean()


def adaptive_weight(
    reconstruction: Float[Tensor, ""], adversarial: Float[Tensor, ""], last_layer: Tensor
) -> Float[Tensor, ""]:
    """Return ‖∇ reconstruction‖ / (‖∇ adversarial‖ + 1e-4) at the decoder's last layer, at most 1e4.

    This is the weight of VQGAN (Esser et al. 2021), from gradients of the global batch. `reconstruction` includes the
    perceptual term. The weight itself has no gradient.
    """
    norms = [
        distributed.mean(torch.autograd.grad(term, last_layer, retain_graph=True)[0].detach()).norm()
        for term in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
