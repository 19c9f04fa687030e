"""The terms of Eq. 7 that compare a reconstruction with its image, by name: a dictionary that a file of one's own may
add to. (The quantizer reports its own, and the adversarial term is a game of two.)

    TERMS["edges"] = lambda seen: edges_of(seen.outputs).sub(edges_of(seen.images)).abs().mean()

A term of one's own is computed where the recipe's `weights` name it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from softvq.losses.alignment import alignment
from softvq.losses.reconstruction import Distance, reconstruction


@dataclass(frozen=True)
class Seen:
    """All that a term may look at: `images` and their reconstructions `outputs` (B, 3, H, W) in [-1, 1], the `latent`
    before normalisation (B, L, D); where the recipe names networks for it, `distances` (B) of a perceptual network, the
    teacher's `features` (B, N, F) and the `projected` latents (B, L, F). `distance`: how pixels are compared."""

    images: Float[Tensor, "B 3 H W"]
    outputs: Float[Tensor, "B 3 H W"]
    latent: Float[Tensor, "B L D"]
    distance: Distance = "l2"
    distances: Float[Tensor, " B"] | None = None
    features: Float[Tensor, "B N F"] | None = None
    projected: Float[Tensor, "B L F"] | None = None


Term = Callable[[Seen], Float[Tensor, ""]]

TERMS: dict[str, Term] = {
    "reconstruction": lambda seen: reconstruction(seen.outputs, seen.images, seen.distance),
    "perceptual": lambda seen: seen.distances.float().mean(),
    "alignment": lambda seen: alignment(seen.projected, seen.features),
}
