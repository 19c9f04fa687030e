"""The baselines with a Gaussian or no posterior: KL (Eq. 1) and AE."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from softvq.config import register
from softvq.quantizers.base import Quantized, Quantizer, QuantizerConfig, Reduce, full_precision, identity


@register
@dataclass(frozen=True)
class KLConfig(QuantizerConfig):
    """The configuration of `KL`: a diagonal Gaussian per token (Eq. 1)."""

    def build(self, dim: int) -> "KL":
        """Return the quantizer of this configuration for latents of `dim` numbers a token."""
        return KL(dim)


class KL(Quantizer):
    """A quantizer with a Gaussian posterior, z = μ + σ ε (Eq. 1); the encoder gives μ and log σ², D numbers each.

    ε is `noise` where given, else fresh normal noise in training mode and 0 (z = μ) in evaluation mode. The loss `kl`
    is −½ (1 + log σ² − μ² − σ²), ≥ 0, summed over the D channels as a divergence is and averaged over tokens; the
    appendix's Eq. 8 prints it with the opposite sign. log σ² is clamped to [−30, 20] against overflow.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim, self.in_dim = dim, 2 * dim

    def forward(
        self, z: Float[Tensor, "B L D_in"], noise: Float[Tensor, "B L D"] | None = None, reduce: Reduce = identity
    ) -> Quantized:
        """Return z = μ + σ ε (B, L, D) with the loss `kl` and the statistic `posterior_std`, the mean σ."""
        with full_precision(z) as z:
            mean, log_var = z.chunk(2, dim=-1)
            log_var = log_var.clamp(-30.0, 20.0)
            if noise is None and self.training:
                noise = torch.randn_like(mean)
            latent = mean if noise is None else mean + (0.5 * log_var).exp() * noise
            kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1).mean()
            statistics = {"posterior_std": (0.5 * log_var).exp().mean().detach()}
        return Quantized(latent, losses={"kl": kl}, statistics=statistics)


@register
@dataclass(frozen=True)
class AEConfig(QuantizerConfig):
    """The configuration of `AE`: no bottleneck but the width, the plain auto-encoder of Section 2.1."""

    def build(self, dim: int) -> "AE":
        """Return the quantizer of this configuration for latents of `dim` numbers a token."""
        return AE(dim)


class AE(Quantizer):
    """A quantizer that leaves the encoder's output as it is: z = ẑ, without losses."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim, self.in_dim = dim, dim

    def forward(
        self, z: Float[Tensor, "B L D"], noise: Float[Tensor, "B L D"] | None = None, reduce: Reduce = identity
    ) -> Quantized:
        """Return ẑ as the latents, without indices, losses or statistics."""
        return Quantized(z)
