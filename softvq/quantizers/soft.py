"""Soft categorical posteriors over a codebook: SoftVQ (Eq. 4) and GMMVQ (Eq. 11)."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from softvq.config import later, register
from softvq.quantizers.base import (
    TINY,
    Assignment,
    Quantized,
    Quantizer,
    QuantizerConfig,
    Reduce,
    assign,
    distances,
    full_precision,
    identity,
    new_codebook,
)

TAU = 0.07  # Section 3.2, "set to 0.07 by ablation"


@register
@dataclass(frozen=True)
class SoftVQConfig(QuantizerConfig):
    """The configuration of `SoftVQ`: Eq. 4 by default, the form of the released weights by `SoftVQConfig.released()`.

    `distance`: `euclidean` is Eq. 4 as printed, softmax(−‖ẑ − c‖₂ / τ) with the plain (unsquared) norm; `cosine` is the
    released softmax(⟨ẑ, c⟩ / τ) with ẑ and c of unit length, where z is a mixture of the unit codewords and is not
    normalised again. `learn_tau`: τ becomes a parameter (kept positive by its logarithm). `detach_codebook`: no
    gradient reaches the codebook through the logits, only through the mixture, as released. `kl_tau`: the temperature
    of the posterior in the KL term; None takes τ as in Eq. 4, the release takes 0.01.
    """

    codebook_size: int = 8192
    distance: Literal["euclidean", "cosine"] = "euclidean"
    tau: float = TAU
    learn_tau: bool = False
    detach_codebook: bool = False
    kl_tau: float | None = None

    def __post_init__(self):
        _check_codebook(self.codebook_size, self.tau)
        if self.kl_tau is not None and not self.kl_tau > 0:
            raise ValueError(f"kl_tau must be positive, not {self.kl_tau}")

    @classmethod
    def released(cls, codebook_size: int = 8192, tau: float = TAU) -> "SoftVQConfig":
        """Return the released form: cosine, codebook detached in the logits, KL term at temperature 0.01."""
        return cls(codebook_size, "cosine", tau, detach_codebook=True, kl_tau=0.01)

    def build(self, dim: int) -> "SoftVQ":
        """Return the quantizer of this configuration for latents of `dim` numbers a token."""
        return SoftVQ(self, dim)

    def as_printed(self) -> "SoftVQConfig":
        """Return the form of Eq. 4 with the same codebook size and τ."""
        return SoftVQConfig(self.codebook_size, tau=self.tau, learn_tau=self.learn_tau)

    def tiny(self) -> "SoftVQConfig":
        """Return the same with a codebook of 64 codewords."""
        return replace(self, codebook_size=TINY)


class SoftVQ(Quantizer):
    """A quantizer that mixes codewords: z = q(z|x) C, q a softmax over the codewords (Eq. 4).

    It is fully differentiable and has no codebook or commitment loss.
    """

    soft = True

    def __init__(self, config: SoftVQConfig, dim: int):
        super().__init__()
        self.config, self.dim, self.in_dim = config, dim, dim
        self.codebook = new_codebook(config.codebook_size, dim)
        self.log_tau = nn.Parameter(torch.tensor(math.log(config.tau))) if config.learn_tau else None

    @property
    def tau(self) -> Tensor | float:
        """The temperature τ: the configuration's number, or a tensor with gradients when it is learned."""
        return self.config.tau if self.log_tau is None else self.log_tau.exp()

    def similarities(self, z: Float[Tensor, "B L D"]) -> Float[Tensor, "B L K"]:
        """Return the numbers that τ divides, −‖ẑ − c‖₂ or the cosine."""
        codebook = self.codewords.to(z.dtype)
        codebook = codebook.detach() if self.config.detach_codebook else codebook
        if self.config.distance == "euclidean":
            return -distances(z, codebook)
        return F.normalize(z, dim=-1) @ codebook.T

    @property
    def codewords(self) -> Float[Tensor, "K D"]:
        """The codebook C (K, D) as it is mixed: with cosine distance its codewords have unit length."""
        return F.normalize(self.codebook, dim=-1) if self.config.distance == "cosine" else self.codebook

    def forward(
        self, z: Float[Tensor, "B L D"], noise: Float[Tensor, "B L D"] | None = None, reduce: Reduce = identity
    ) -> Quantized:
        """Return the mixture of codewords and the most likely index of each token, with the loss `kl` (Eq. 4)."""
        with full_precision(z) as z:
            similarities = self.similarities(z)
            log_q = F.log_softmax(similarities / self.tau, dim=-1)
            latent = log_q.exp() @ self.codewords.to(z.dtype)
            indices = log_q.detach().argmax(-1)
            assignment = assign(log_q, indices, reduce)
            kl_tau = self.config.kl_tau
            kl_assignment = (
                assignment if kl_tau is None else assign(F.log_softmax(similarities / kl_tau, -1), indices, reduce)
            )
        return soft_result(latent, indices, assignment, kl_assignment)

    def latent(self, z: Float[Tensor, "B L D"], noise: Float[Tensor, "B L D"] | None = None) -> Tensor:
        """Return the mixture alone, without statistics and the KL term, whose posterior may be another."""
        with full_precision(z) as z:
            return F.log_softmax(self.similarities(z) / self.tau, dim=-1).exp() @ self.codewords.to(z.dtype)


@register
@dataclass(frozen=True)
class GMMVQConfig(QuantizerConfig):
    """The configuration of `GMMVQ` (Eq. 11), whose encoder predicts the weights ω.

    `weights`: `token` predicts one positive ω per token, the data-dependent 1/τ (the paper's "temperature parameters");
    `codeword` predicts one per codeword (its "weights of the Gaussian component").

    `component_std`: the deviation of the Gaussians whose means are the codewords. Above 0 the components are sampled by
    reparametrisation in training (appendix B.2: formally a mixture model, which the paper found to hinder learning and
    does not use); 0 mixes the means.
    """

    codebook_size: int = 8192
    weights: Literal["token", "codeword"] = "token"
    component_std: float = later(0.0)

    def __post_init__(self):
        _check_codebook(self.codebook_size)
        if not 0 <= self.component_std < math.inf:
            raise ValueError(f"component_std must not be negative, and finite, not {self.component_std}")

    def build(self, dim: int) -> "GMMVQ":
        """Return the quantizer of this configuration for latents of `dim` numbers a token."""
        return GMMVQ(self, dim)

    def tiny(self) -> "GMMVQConfig":
        """Return the same with a codebook of 64 codewords."""
        return replace(self, codebook_size=TINY)


class GMMVQ(Quantizer):
    """A quantizer that mixes codewords by predicted weights: z = softmax(−ω(ẑ) ‖ẑ − C‖₂) C (Eq. 11).

    The encoder gives D numbers for ẑ and the raw ω behind them. With `component_std` σ: z = Σ_k q_k (c_k + σ ε_k), each
    ε_k normal and of its own, in training mode or where `noise` is given. Their weighted sum is as if drawn at once,
    Σ_k q_k c_k + σ (Σ_k q_k²)^½ ε, with ε = `noise` (B, L, D).
    """

    soft = True

    def __init__(self, config: GMMVQConfig, dim: int):
        super().__init__()
        self.config, self.dim = config, dim
        self.in_dim = dim + (1 if config.weights == "token" else config.codebook_size)
        self.codebook = new_codebook(config.codebook_size, dim)

    def forward(
        self, z: Float[Tensor, "B L D_in"], noise: Float[Tensor, "B L D"] | None = None, reduce: Reduce = identity
    ) -> Quantized:
        """Return the mixture of codewords and the most likely index of each token, with the loss `kl`."""
        with full_precision(z) as z:
            z, raw = z[..., : self.dim], z[..., self.dim :]
            # Positive, and 1/0.07 where the encoder says 0: softplus(log(e − 1)) = 1.
            omega = F.softplus(raw + math.log(math.e - 1)) / TAU
            codebook = self.codebook.to(z.dtype)
            log_q = F.log_softmax(-omega * distances(z, codebook), dim=-1)
            q = log_q.exp()
            latent = q @ codebook
            if self.config.component_std:
                if noise is None and self.training:
                    noise = torch.randn_like(latent)
                if noise is not None:
                    latent = latent + self.config.component_std * q.square().sum(-1, keepdim=True).sqrt() * noise
            indices = log_q.detach().argmax(-1)
            assignment = assign(log_q, indices, reduce)
        return soft_result(latent, indices, assignment, assignment)


def soft_result(latent: Tensor, indices: Tensor, assignment: Assignment, kl_assignment: Assignment) -> Quantized:
    """Return a soft quantizer's result: statistics of the posterior that made z, and the KL term of `kl_assignment`."""
    return Quantized(latent, indices, {"kl": kl_assignment.kl}, assignment.statistics, kl_assignment)


def _check_codebook(codebook_size: int, tau: float = TAU) -> None:
    if codebook_size < 1:
        raise ValueError(f"codebook_size must be at least 1, not {codebook_size}")
    if not tau > 0:
        raise ValueError(f"tau must be positive, not {tau}")
