"""VQ: the deterministic categorical posterior (Eq. 2) with the straight-through gradient."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from softvq.config import register
from softvq.errors import ModelError
from softvq.quantizers.base import (
    TINY,
    Quantized,
    Quantizer,
    QuantizerConfig,
    Reduce,
    assign_hard,
    distances,
    full_precision,
    identity,
    new_codebook,
)


@register
@dataclass(frozen=True)
class VQConfig(QuantizerConfig):
    """The configuration of `VQ` (Eq. 2): the size of the codebook, and the distance to its codewords.

    `distance`: `euclidean` takes the nearest codeword; `cosine` normalises ẑ and C first.
    """

    codebook_size: int = 8192
    distance: Literal["euclidean", "cosine"] = "euclidean"

    def __post_init__(self):
        if self.codebook_size < 1:
            raise ValueError(f"codebook_size must be at least 1, not {self.codebook_size}")

    def build(self, dim: int) -> "VQ":
        """Return the quantizer of this configuration for latents of `dim` numbers a token."""
        return VQ(self, dim)

    def as_printed(self) -> "VQConfig":
        """Return the form that the paper prints: the nearest codeword by the Euclidean distance."""
        return VQConfig(self.codebook_size)

    def tiny(self) -> "VQConfig":
        """Return the same with a codebook of 64 codewords."""
        return replace(self, codebook_size=TINY)


class VQ(Quantizer):
    """A quantizer whose z is the nearest codeword; the gradient of z is copied to ẑ (Eq. 2).

    Losses `codebook` ‖sg[ẑ] − c‖² and `commitment` ‖ẑ − sg[c]‖² are the usual mean squares (sg stops the gradient); the
    paper prints the norms without the square. Eq. 2's KL is the constant log K, so it is no loss.
    """

    discrete = True

    def __init__(self, config: VQConfig, dim: int):
        super().__init__()
        self.config, self.dim, self.in_dim = config, dim, dim
        self.codebook = new_codebook(config.codebook_size, dim)

    @property
    def codewords(self) -> Float[Tensor, "K D"]:
        """The codebook C (K, D) as it is used: with cosine distance its codewords have unit length."""
        return F.normalize(self.codebook, dim=-1) if self.config.distance == "cosine" else self.codebook

    def forward(
        self, z: Float[Tensor, "B L D"], noise: Float[Tensor, "B L D"] | None = None, reduce: Reduce = identity
    ) -> Quantized:
        """Return the nearest codeword of each token and its index, with the losses `codebook` and `commitment`."""
        with full_precision(z) as z:
            z = F.normalize(z, dim=-1) if self.config.distance == "cosine" else z
            indices = distances(z.detach(), self.codewords.detach().to(z.dtype)).argmin(-1)
            codes = F.embedding(indices, self.codewords).to(z.dtype)
            losses = {"codebook": F.mse_loss(codes, z.detach()), "commitment": F.mse_loss(z, codes.detach())}
            assignment = assign_hard(indices, len(self.codebook), reduce)
            latent = codes.detach() + (z - z.detach())  # the value of c to the bit, the gradient of ẑ
        return Quantized(latent, indices, losses, assignment.statistics, assignment)

    def lookup(self, indices: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Return the codewords (B, L, D) of indices; `ModelError` when one lies outside of the codebook."""
        if torch.compiler.is_compiling() or not indices.numel():
            return F.embedding(indices, self.codewords)
        if not 0 <= int(indices.min()) <= int(indices.max()) < len(self.codebook):
            raise ModelError(
                f"indices run from {int(indices.min())} to {int(indices.max())}, "
                f"but the codebook has {len(self.codebook)} codewords."
            )
        return F.embedding(indices, self.codewords)
