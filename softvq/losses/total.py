"""The weighted total of Eq. 7, as a dictionary of named terms."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from softvq.errors import is_whole


@dataclass(frozen=True)
class ScheduleConfig:
    """The schedule of a term's weight: 0 until `start` steps are done, then a linear rise over `warmup` steps."""

    start: int = 0
    warmup: int = 0

    def __post_init__(self):
        if not (is_whole(self.start, 0) and is_whole(self.warmup, 0)):
            raise ValueError("start and warmup must not be negative, and whole")

    def factor_at(self, step: int) -> float:
        """Return the share of the weight after `step` steps, in [0, 1]."""
        if step < self.start:
            return 0.0
        return min(1.0, (step - self.start + 1) / self.warmup) if self.warmup else 1.0


def weights_at(step: int, weights: Mapping[str, float], schedules: Mapping[str, ScheduleConfig]) -> dict[str, float]:
    """Return each term's weight after `step` steps; terms without a schedule have all of it from the first step on."""
    return {name: weight * schedules.get(name, ScheduleConfig()).factor_at(step) for name, weight in weights.items()}


def total(terms: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Return Σ weight · term; raise `ValueError` when terms and weights do not name the same terms."""
    if terms.keys() != weights.keys():
        known = f"the loss terms are {', '.join(sorted(terms))}, but the weights name {', '.join(sorted(weights))}"
        if extra := sorted(weights.keys() - terms.keys()):
            example = json.dumps({name: weights.get(name, 1) for name in terms})
            raise ValueError(f"{known}; leave {', '.join(extra)} out of the weights: {example}.")
        raise ValueError(f"{known}; give every term a weight, 0 to leave it out.")
    return sum(weights[name] * term for name, term in terms.items())
