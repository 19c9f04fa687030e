"""The terms of Eq. 7 that compare a reconstruction with its image, by name.

`TERMS` is a dictionary that a file of your own may add to; an added term is computed when the recipe's `weights` name
it:

    TERMS["edges"] = lambda seen: edges_of(seen.outputs).sub(edges_of(seen.images)).abs().mean()

The quantizer reports its own losses, and the adversarial term is computed with the discriminator.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from softvq.errors import ConfigError
from softvq.losses.alignment import alignment
from softvq.losses.reconstruction import Distance, reconstruction


@dataclass(frozen=True)
class Seen:
    """The inputs that a term may use.

    `images` and their reconstructions `outputs` are (B, 3, H, W) in [-1, 1], `latent` is (B, L, D) before
    normalisation. `distances` (B) of a perceptual network, the teacher's `features` (B, N, F) and the `projected`
    latents (B, L, F) are there when the recipe names networks for them. `distance` is the measure that pixels are
    compared by.
    """

    images: Float[Tensor, "B 3 H W"]
    outputs: Float[Tensor, "B 3 H W"]
    latent: Float[Tensor, "B L D"]
    distance: Distance = "l2"
    distances: Float[Tensor, " B"] | None = None
    features: Float[Tensor, "B N F"] | None = None
    projected: Float[Tensor, "B L F"] | None = None


Term = Callable[[Seen], Float[Tensor, ""]]


def perceptual(seen: Seen) -> Float[Tensor, ""]:
    """Return the mean distance of a perceptual network; `ConfigError` where the recipe names none."""
    if seen.distances is None:
        raise ConfigError("the weight of 'perceptual' needs a network: name one in the recipe's field perceptual.")
    return seen.distances.float().mean()


def aligned(seen: Seen) -> Float[Tensor, ""]:
    """Return L_align of Eq. 6; `ConfigError` where the recipe names no teacher."""
    if seen.features is None or seen.projected is None:
        raise ConfigError("the weight of 'alignment' needs a teacher: name one in the recipe's field alignment.")
    return alignment(seen.projected, seen.features)


TERMS: dict[str, Term] = {
    "reconstruction": lambda seen: reconstruction(seen.outputs, seen.images, seen.distance),
    "perceptual": perceptual,
    "alignment": aligned,
}
