"""VQ: the deterministic categorical posterior (Eq. 2) with the straight-through gradient."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from softvq.config import register
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
    """Eq. 2. `distance`: `euclidean` takes the nearest codeword; `cosine` normalises ẑ and C first."""

    codebook_size: int = 8192
    distance: Literal["euclidean", "cosine"] = "euclidean"

    def __post_init__(self):
        if self.codebook_size < 1:
            raise ValueError(f"codebook_size must be at least 1, not {self.codebook_size}")

    def build(self, dim: int) -> "VQ":
        return VQ(self, dim)

    def as_printed(self) -> "VQConfig":
        return VQConfig(self.codebook_size)

    def tiny(self) -> "VQConfig":
        return replace(self, codebook_size=TINY)


class VQ(Quantizer):
    """z = the nearest codeword; its gradient is copied to ẑ.

    Losses `codebook` ‖sg[ẑ] − c‖² and `commitment` ‖ẑ − sg[c]‖² are the usual mean squares; the paper prints the
    norms without the square. Eq. 2's KL is the constant log K, so it is no loss.
    """

    discrete = True

    def __init__(self, config: VQConfig, dim: int):
        super().__init__()
        self.config, self.dim, self.in_dim = config, dim, dim
        self.codebook = new_codebook(config.codebook_size, dim)

    @property
    def codewords(self) -> Float[Tensor, "K D"]:
        return F.normalize(self.codebook, dim=-1) if self.config.distance == "cosine" else self.codebook

    def forward(
        self, z: Float[Tensor, "B L D"], noise: Float[Tensor, "B L D"] | None = None, reduce: Reduce = identity
    ) -> Quantized:
        with full_precision(z) as z:
            z = F.normalize(z, dim=-1) if self.config.distance == "cosine" else z
            with torch.no_grad():
                indices = distances(z, self.codewords.to(z.dtype)).argmin(-1)
            codes = F.embedding(indices, self.codewords).to(z.dtype)
            losses = {"codebook": F.mse_loss(codes, z.detach()), "commitment": F.mse_loss(z, codes.detach())}
            assignment = assign_hard(indices, len(self.codebook), reduce)
            latent = codes.detach() + (z - z.detach())  # the value of c to the bit, the gradient of ẑ
        return Quantized(latent, indices, losses, assignment.statistics, assignment)

    def lookup(self, indices: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.codebook):
            raise ValueError(
                f"indices run from {int(indices.min())} to {int(indices.max())}, "
                f"but the codebook has {len(self.codebook)} codewords."
            )
        return F.embedding(indices, self.codewords)
