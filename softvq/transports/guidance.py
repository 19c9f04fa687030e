"""Classifier-free guidance (Ho and Salimans 2022): null + scale · (conditional − null).

It can be limited to an interval of times (Kynkäänniemi et al. 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from softvq.errors import ConfigError, check_number, is_number

# (x, t, the time at which the step began) -> what a network says of x, for each sample
Field = Callable[[Float[Tensor, " B *rest"], Float[Tensor, " B"], Float[Tensor, " B"]], Tensor]
# (x, t, conditions) -> the same, given conditions such as labels
Conditional = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Guidance:
    """The settings of guidance: a `scale` (1 is none), the `interval` of times in which it counts, and a `schedule`.

    It counts for steps that begin at times in `interval`, of [0 data, 1 noise]. `schedule`: `constant`, or `linear`,
    which rises from 1 at the noise to `scale` at the data (as MAR's).
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    schedule: Literal["constant", "linear"] = "constant"

    def __post_init__(self):
        if not is_number(self.scale):
            raise ValueError(f"the guidance scale must be finite, not {self.scale!r}")
        if len(self.interval) != 2 or self.interval[0] > self.interval[1]:
            raise ValueError(f"the guidance interval must be a lower and a higher time, not {list(self.interval)}")
        if not all(is_number(time, 0, 1) for time in self.interval):
            raise ValueError(f"the guidance interval must lie in [0, 1], not {list(self.interval)}")

    def scaled(self, scale: float) -> "Guidance":
        """Return the same with a scale that a user gives; `ConfigError` when it is not finite, or negative."""
        check_number("guidance", scale)
        if scale < 0:
            raise ConfigError(f"guidance must not be negative, not {scale:g}; 1 is none.", setting="guidance")
        return replace(self, scale=float(scale))

    def at(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the scale of steps that begin at these times: 1 outside of the interval."""
        scale = torch.full_like(t, self.scale) if self.schedule == "constant" else 1 + (self.scale - 1) * (1 - t)
        return torch.where((t >= self.interval[0]) & (t <= self.interval[1]), scale, 1.0)


def guided(
    network: Conditional,
    labels: Tensor,
    null: Tensor,
    guidance: Guidance,
    channels: int | None = None,
) -> Field:
    """Return the guided field of a network.

    The null branch is computed only for samples that are guided, in one batch with the others. `channels`: guide only
    so many of the last axis; the rest is the conditional branch's (DiT's variance).
    """

    def field(x: Tensor, t: Tensor, begun: Tensor) -> Tensor:
        scale = guidance.at(begun)
        chosen = (scale != 1).nonzero().flatten()
        if not len(chosen):
            return network(x, t, labels)
        predictions = network(torch.cat([x, x[chosen]]), torch.cat([t, t[chosen]]), torch.cat([labels, null[chosen]]))
        both, without = predictions[: len(x)], predictions[len(x) :]
        with_ = both[chosen]
        weight = scale[chosen].to(predictions.dtype).view(-1, *(1 for _ in x.shape[1:]))
        mixed = without + weight * (with_ - without)
        if channels is not None:
            mixed = torch.cat([mixed[..., :channels], with_[..., channels:]], dim=-1)
        return both.index_copy(0, chosen, mixed)

    return field
