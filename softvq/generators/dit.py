"""DiT (Peebles and Xie 2023): the network predicts the noise in a point of a diffusion chain, and its variance."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from softvq.config import register
from softvq.generators.base import GeneratorConfig, Sampling, check_share
from softvq.generators.denoising import Denoiser, Sampler, SamplerInput
from softvq.generators.transformer import TransformerConfig
from softvq.transports import samplers
from softvq.transports.diffusion import LEAST_LAMBDA, STEPS, BetasName, Diffusion
from softvq.transports.guidance import Field, Guidance

_FEW = 32  # tokens, for which the paper guides more strongly than for 64
_TWO_DIMENSIONAL = Guidance(1.5)  # DiT-XL/2, at all times


@register
@dataclass(frozen=True)
class DiTConfig(GeneratorConfig):
    """The configuration of `DiT`.

    `betas`: `linear` or `cosine`, 1,000 steps; the variance is learned. `dropout`: the share of labels replaced by the
    null class.
    """

    network: TransformerConfig
    betas: BetasName = "cosine"
    dropout: float = 0.1

    meaning = ("betas",)

    def __post_init__(self):
        check_share("dropout", self.dropout)

    @property
    def guidance(self) -> Guidance:
        """The paper's guidance, by the number of tokens (appendix C.2); for 2-D latents that of DiT's authors."""
        if self.network.positions == "2d":
            return _TWO_DIMENSIONAL
        return Guidance(1.45 if self.network.tokens <= _FEW else 1.35)

    def build(self, about: dict[str, Any] | None = None) -> "DiT":
        """Return the generator of this configuration with its initial weights; `about` is saved with it."""
        return DiT(self, about)


def _respaced(task: SamplerInput) -> Diffusion:
    return task.model.diffusion.respaced(min(task.sampling.steps, STEPS))


def _dpm(x: Tensor, task: SamplerInput, noise=None) -> Tensor:
    diffusion = task.model.diffusion
    count = min(task.sampling.steps, STEPS, diffusion.longest(LEAST_LAMBDA))
    denoise, alpha, sigma = samplers.chain_denoiser(task.field, diffusion.respaced(count, LEAST_LAMBDA))
    return samplers.dpm_solver(denoise, x, alpha, sigma, noise, task.progress)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": lambda x, task: samplers.ddpm(task.field, x, _respaced(task), task.noise, task.progress),
    "ddim": lambda x, task: samplers.ddim(task.field, x, _respaced(task), task.progress),
    "dpm": _dpm,
    "dpm-sde": lambda x, task: _dpm(x, task, task.noise),
}


class DiT(Denoiser):
    """A diffusion transformer, which predicts the noise in a point, and its variance (Peebles and Xie 2023)."""

    samplers = SAMPLERS

    def __init__(self, config: DiTConfig, about: dict[str, Any] | None = None):
        super().__init__(config, 2 * config.network.channels, about)
        self.diffusion = Diffusion.named(config.betas)

    @property
    def default_sampling(self) -> Sampling:
        """The sampling by default: `dpm` with 50 steps, and the configuration's guidance."""
        return Sampling("dpm", 50, self.config.guidance)

    def loss(
        self, latents: Float[Tensor, "B T C"], labels: Int[Tensor, " B"], draws: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the mean squared error of the noise + the variational bound, which trains the variance alone."""
        step = (draws["time"] * STEPS).long()
        return self.loss_at(latents, self.dropped(labels, draws["drop"]), step, draws["noise"])

    def loss_at(
        self, latents: Tensor, labels: Tensor, step: Int[Tensor, " B"], noise: Tensor
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the loss of each sample at these steps of the chain, with this noise.

        `mse` and `bound` (bits a number) add up to `loss`.
        """
        point = self.diffusion.mix(latents, noise, step)
        estimate, logits = self(point, step, labels).chunk(2, dim=-1)
        mse = (estimate - noise).square().flatten(1).mean(1)
        bound = self.diffusion.bound(latents, point, estimate, logits, step)
        return {"loss": mse + bound, "mse": mse, "bound": bound}

    def _noised(self, latents: Tensor, noise: Tensor, time: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        step = (time * (STEPS - 1)).round().long()
        return self.diffusion.mix(latents, noise, step), step

    def field(self, labels: Int[Tensor, " B"], guidance: Guidance | None = None) -> Field:
        """Return the guided noise (all its channels) and the conditional variance logits."""
        return self._guided(labels, guidance, lambda x, t, output: output, self.shape[1])
