"""The weighted total of Eq. 7, as a dictionary of named terms."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor


def total(terms: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Σ weight · term. Both must name the same terms: a missing or an extra name is a `ValueError`."""
    if terms.keys() != weights.keys():
        raise ValueError(
            f"the loss terms are {', '.join(sorted(terms))}, but the weights name {', '.join(sorted(weights))}; "
            "give every term a weight, 0 to leave it out."
        )
    return sum(weights[name] * term for name, term in terms.items())
