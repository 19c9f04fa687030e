"""SiT (Ma et al. 2024): the network predicts the velocity of a point on a path from noise to data."""

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from softvq.config import lookup, register
from softvq.generators.base import GeneratorConfig, Sampling, check_share
from softvq.generators.denoising import Denoiser, Sampler, SamplerInput
from softvq.generators.transformer import TransformerConfig
from softvq.transports import samplers
from softvq.transports.guidance import Field, Guidance
from softvq.transports.paths import PATHS, TIMES, mix, times, velocity_of_data, velocity_of_noise

_FEW = 32  # tokens, for which the paper guides more strongly than for 64
_TWO_DIMENSIONAL = Guidance(1.5)  # SiT-XL/2, at all times


@register
@dataclass(frozen=True)
class SiTConfig(GeneratorConfig):
    """The configuration of `SiT`.

    `path`: one of `transports.paths.PATHS`; `times`: one of its `TIMES`, the distribution of training times; `predict`:
    the meaning of the network's output for a point, its velocity, its data or its noise; `dropout`: the share of labels
    replaced by the null class.
    """

    network: TransformerConfig
    path: str = "cosine"
    times: str = "log_normal"
    predict: Literal["velocity", "data", "noise"] = "velocity"
    dropout: float = 0.1

    meaning = ("path", "predict")

    def __post_init__(self):
        check_share("dropout", self.dropout)
        lookup(PATHS, self.path, "path")
        lookup(TIMES, self.times, "distribution of times")

    @property
    def guidance(self) -> Guidance:
        """The paper's guidance, by the number of tokens (appendix C.2); for 2-D latents that of SiT's authors."""
        if self.network.positions == "2d":
            return _TWO_DIMENSIONAL
        return Guidance(2.25 if self.network.tokens <= _FEW else 1.75, (0.0, 0.7))

    def build(self, about: dict[str, Any] | None = None) -> "SiT":
        """Return the generator of this configuration with its initial weights; `about` is saved with it."""
        return SiT(self, about)


def _dopri5(x: Tensor, task: SamplerInput) -> Tensor:
    return samplers.dopri5(task.field, x, edges=task.sampling.guidance.interval)


def _sde(x: Tensor, task: SamplerInput) -> Tensor:
    path = task.model.config.path
    return samplers.euler_maruyama(task.field, x, task.sampling.steps, path, task.noise, task.progress)


def _dpm(x: Tensor, task: SamplerInput, noise=None) -> Tensor:
    denoise, alpha, sigma = samplers.path_denoiser(task.field, task.model.config.path, task.sampling.steps)
    return samplers.dpm_solver(denoise, x, alpha, sigma, noise, task.progress)


SAMPLERS: dict[str, Sampler] = {
    "euler": lambda x, task: samplers.euler(task.field, x, task.sampling.steps, task.progress),
    "heun": lambda x, task: samplers.heun(task.field, x, task.sampling.steps, task.progress),
    "dopri5": _dopri5,
    "sde": _sde,
    "dpm": _dpm,
    "dpm-sde": lambda x, task: _dpm(x, task, task.noise),
}


class SiT(Denoiser):
    """A scalable interpolant transformer, which predicts the velocity of a point on a path (Ma et al. 2024).

    The configuration's `predict` can make it the point's data or noise instead.
    """

    samplers = SAMPLERS

    def __init__(self, config: SiTConfig, about: dict[str, Any] | None = None):
        super().__init__(config, config.network.channels, about)

    @property
    def default_sampling(self) -> Sampling:
        """The sampling by default: `heun` with 50 steps, and the configuration's guidance."""
        return Sampling("heun", 50, self.config.guidance)

    def loss(
        self, latents: Float[Tensor, "B T C"], labels: Int[Tensor, " B"], draws: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the mean squared error of the network's prediction, at a random time of each sample."""
        t = times(self.config.times, self.config.path, draws["normal"])
        return {"loss": self.loss_at(latents, self.dropped(labels, draws["drop"]), t, draws["noise"])}

    def loss_at(self, latents: Tensor, labels: Tensor, t: Float[Tensor, " B"], noise: Tensor) -> Float[Tensor, " B"]:
        """Return the loss of each sample at these times, with this noise."""
        point, velocity = mix(self.config.path, latents, noise, t)
        target = {"velocity": velocity, "data": latents, "noise": noise}[self.config.predict]
        return (self(point, t, labels) - target).square().flatten(1).mean(1)

    def _noised(self, latents: Tensor, noise: Tensor, time: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        return mix(self.config.path, latents, noise, time)[0], time

    def field(self, labels: Int[Tensor, " B"], guidance: Guidance | None = None) -> Field:
        """Return the guided velocity field of these classes."""
        return self._guided(labels, guidance, self._read)

    def _read(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        if self.config.predict == "velocity":
            return output
        velocity = velocity_of_data if self.config.predict == "data" else velocity_of_noise
        return velocity(self.config.path, x, t.to(x.dtype), output.to(x.dtype))
