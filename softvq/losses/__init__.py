"""The terms of Eq. 7 and the discriminators. Importing this package registers the built-in ones."""

from softvq.losses.discriminators import DinoDiscriminatorConfig, DiscriminatorConfig, PatchGANDiscriminatorConfig
from softvq.losses.terms import TERMS, Seen
from softvq.losses.total import ScheduleConfig, total

__all__ = [
    "TERMS",
    "DinoDiscriminatorConfig",
    "DiscriminatorConfig",
    "PatchGANDiscriminatorConfig",
    "ScheduleConfig",
    "Seen",
    "total",
]
