"""Representation alignment of the latents with a frozen teacher's patch features (Section 3.3, Eq. 5 and 6)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Projector(nn.Module):
    """The MLP of Eq. 6, from a latent to the teacher's width: three linear layers with SiLU between."""

    def __init__(self, dim: int, hidden: int, teacher_width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, teacher_width)
        )

    def forward(self, latents: Float[Tensor, "B L D"]) -> Float[Tensor, "B L E"]:
        """Return the latents projected to the teacher's width E."""
        return self.layers(latents)


def alignment(projected: Float[Tensor, "B L E"], features: Float[Tensor, "B N E"]) -> Float[Tensor, ""]:
    """Return −1/N Σ_n sim(y^[n], MLP(z_r^[n])), the *negative* mean cosine similarity, in float32.

    Eq. 6 lacks the sign. `projected` is MLP(z), one vector a latent; it is replicated here, behind the MLP, which gives
    the same as in front of it. `features` are the teacher's patches, row by row.
    """
    replicated = projected[:, latent_of_patch(projected.shape[1], features.shape[1]).to(projected.device)]
    return -F.cosine_similarity(replicated.float(), features.float(), dim=-1).mean()


def latent_of_patch(latents: int, patches: int) -> Tensor:
    """Return the number of the latent for each of N patches, ⌊n L / N⌋ (Eq. 5).

    A latent takes a run of N / L patches, as even as can be where that is not whole. With more latents than patches,
    the others are aligned with none.
    """
    return torch.arange(patches) * latents // patches
