"""From noise to data and back: paths, times, diffusion chains, guidance and samplers, as pure functions."""

from softvq.transports.diffusion import Diffusion
from softvq.transports.guidance import Guidance, guided
from softvq.transports.paths import PATHS, TIMES, Coefficients, coefficients, mix, times

__all__ = ["PATHS", "TIMES", "Coefficients", "Diffusion", "Guidance", "coefficients", "guided", "mix", "times"]
