"""SiT and DiT: one network, two ways to say what it learns (paths and velocities; chains and noise)."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softvq.generators.base import Generator, Noise, Sampling, check_share
from softvq.generators.transformer import Transformer, TransformerConfig
from softvq.transports import samplers
from softvq.transports.diffusion import LEAST, STEPS, BetasName, Diffusion
from softvq.transports.guidance import Field, Guidance, guided
from softvq.transports.paths import PathName, TimeName, mix, times, velocity_of

_FEW = 32  # tokens, for which the paper guides more strongly than for 64
_TWO_DIMENSIONAL = Guidance(1.5)  # DiT-XL/2 and SiT-XL/2, at all times


@dataclass(frozen=True)
class SiTConfig:
    """`path`: `linear` or `cosine`; `times`: how training times are drawn; `predict`: what the network says of a point,
    its velocity, its data or its noise; `dropout`: the share of labels replaced by the null class."""

    network: TransformerConfig
    path: PathName = "cosine"
    times: TimeName = "log_normal"
    predict: Literal["velocity", "data", "noise"] = "velocity"
    dropout: float = 0.1

    def __post_init__(self):
        check_share("dropout", self.dropout)

    @property
    def guidance(self) -> Guidance:
        """The paper's, by the number of tokens (appendix C.2); for 2-D latents that of SiT's authors."""
        if self.network.positions == "2d":
            return _TWO_DIMENSIONAL
        return Guidance(2.25 if self.network.tokens <= _FEW else 1.75, (0.0, 0.7))

    def build(self, about: dict[str, Any] | None = None) -> "SiT":
        return SiT(self, about)


@dataclass(frozen=True)
class DiTConfig:
    """`betas`: `linear` or `cosine`, 1,000 steps; the variance is learned."""

    network: TransformerConfig
    betas: BetasName = "cosine"
    dropout: float = 0.1

    def __post_init__(self):
        check_share("dropout", self.dropout)

    @property
    def guidance(self) -> Guidance:
        """The paper's, by the number of tokens (appendix C.2); for 2-D latents that of DiT's authors."""
        if self.network.positions == "2d":
            return _TWO_DIMENSIONAL
        return Guidance(1.45 if self.network.tokens <= _FEW else 1.35)

    def build(self, about: dict[str, Any] | None = None) -> "DiT":
        return DiT(self, about)


class _Denoiser(Generator):
    """What SiT and DiT share: the network, and the random numbers of a training step."""

    def __init__(self, config: SiTConfig | DiTConfig, out_channels: int, about: dict[str, Any] | None):
        super().__init__(config, about)
        self.network = Transformer(config.network, out_channels)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.network.blocks)

    def draw(self, rngs: Sequence[np.random.Generator], shared: np.random.Generator) -> dict[str, Tensor]:
        numbers = [(g.random(2), g.standard_normal(), g.standard_normal(self.shape, dtype=np.float32)) for g in rngs]
        uniform, normal, noise = (np.stack(part) for part in zip(*numbers, strict=True))
        return {
            "drop": torch.from_numpy(uniform[:, 0]).float(),
            "time": torch.from_numpy(uniform[:, 1]),
            "normal": torch.from_numpy(normal).float(),
            "noise": torch.from_numpy(noise),
        }

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The network's own output for latents at times: float32 out."""
        return self.network(x.to(self.network.x_embedder.weight.dtype), t.float(), labels).float()

    @torch.no_grad()
    def features(
        self, latents: Float[Tensor, "B T C"], noise: Float[Tensor, "B T C"], time: float, layer: int
    ) -> Float[Tensor, "B T D"]:
        """The tokens after `layer` blocks, of latents noised to `time` (0 data … 1 noise), without a class."""
        x, t = self._noised(latents, noise, latents.new_full((len(latents),), time))
        null = torch.full((len(latents),), self.classes, device=latents.device)
        weight = self.network.x_embedder.weight
        return self.network.hidden(x.to(weight.dtype), t.float(), null, layer).float()

    @abstractmethod
    def _noised(self, latents: Tensor, noise: Tensor, time: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """The point at a time in [0, 1], and the time as the network counts it."""

    def _start(self, labels: Int[Tensor, " B"], noise: Noise, sampling: Sampling) -> Float[Tensor, "B T C"]:
        """Noise in the state's type, where the labels are; `ValueError` when the model cannot be sampled so."""
        self.check(sampling)
        return noise().to(labels.device, getattr(torch, sampling.dtype))

    def _field(self, labels: Int[Tensor, " B"], guidance: Guidance, read, channels: int | None = None) -> Field:
        null = torch.full_like(labels, self.classes)
        return guided(lambda x, t, y: read(x, t, self(x, t, y)), labels, null, guidance, channels)


class SiT(_Denoiser):
    """Scalable interpolant transformer: the network says the velocity of a point on a path (Ma et al. 2024)."""

    samplers = ("euler", "heun", "dopri5", "sde", "dpm", "dpm-sde")

    def __init__(self, config: SiTConfig, about: dict[str, Any] | None = None):
        super().__init__(config, config.network.channels, about)

    @property
    def default_sampling(self) -> Sampling:
        return Sampling("heun", 50, self.config.guidance)

    def loss(
        self, latents: Float[Tensor, "B T C"], labels: Int[Tensor, " B"], draws: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Mean squared error of what the network predicts, at a random time of each sample."""
        t = times(self.config.times, self.config.path, draws["normal"])
        return {"loss": self.loss_at(latents, self.dropped(labels, draws["drop"]), t, draws["noise"])}

    def loss_at(self, latents: Tensor, labels: Tensor, t: Float[Tensor, " B"], noise: Tensor) -> Float[Tensor, " B"]:
        """The loss at these times, with this noise."""
        point, velocity = mix(self.config.path, latents, noise, t)
        target = {"velocity": velocity, "data": latents, "noise": noise}[self.config.predict]
        return (self(point, t, labels) - target).square().flatten(1).mean(1)

    def _noised(self, latents: Tensor, noise: Tensor, time: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        return mix(self.config.path, latents, noise, time)[0], time

    def velocity(self, labels: Int[Tensor, " B"], guidance: Guidance | None = None) -> Field:
        """The guided velocity field of these classes."""
        return self._field(labels, guidance or Guidance(), self._read)

    def _read(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        if self.config.predict == "velocity":
            return output
        given = {"x" if self.config.predict == "data" else "noise": output.to(x.dtype)}
        return velocity_of(self.config.path, x, t.to(x.dtype), **given)

    @torch.no_grad()
    def sample(
        self, labels: Int[Tensor, " B"], noise: Noise, sampling: Sampling, progress=None
    ) -> Float[Tensor, "B T C"]:
        x = self._start(labels, noise, sampling)
        field, name, more = self.velocity(labels, sampling.guidance), sampling.sampler, _steps(progress)
        if name == "dopri5":
            return samplers.dopri5(field, x, edges=sampling.guidance.interval).float()
        if name == "sde":
            return samplers.euler_maruyama(field, x, sampling.steps, self.config.path, noise, more).float()
        if name in ("dpm", "dpm-sde"):
            parts = samplers.path_denoiser(field, self.config.path, sampling.steps)
            return samplers.dpm_solver(parts[0], x, *parts[1:], noise if name == "dpm-sde" else None, more).float()
        return getattr(samplers, name)(field, x, sampling.steps, more).float()


class DiT(_Denoiser):
    """Diffusion transformer: the network says the noise in a point, and its variance (Peebles and Xie 2023)."""

    samplers = ("ddpm", "ddim", "dpm", "dpm-sde")

    def __init__(self, config: DiTConfig, about: dict[str, Any] | None = None):
        super().__init__(config, 2 * config.network.channels, about)
        self.diffusion = Diffusion.named(config.betas)

    @property
    def default_sampling(self) -> Sampling:
        return Sampling("dpm", 50, self.config.guidance)

    def loss(
        self, latents: Float[Tensor, "B T C"], labels: Int[Tensor, " B"], draws: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Mean squared error of the noise + the variational bound, which trains the variance alone."""
        step = (draws["time"] * STEPS).long()
        return self.loss_at(latents, self.dropped(labels, draws["drop"]), step, draws["noise"])

    def loss_at(
        self, latents: Tensor, labels: Tensor, step: Int[Tensor, " B"], noise: Tensor
    ) -> dict[str, Float[Tensor, " B"]]:
        """The loss at these steps of the chain, with this noise; `mse` and `bound` (bits a number) add up to `loss`."""
        point = self.diffusion.mix(latents, noise, step)
        found, logits = self(point, step, labels).chunk(2, dim=-1)
        mse = (found - noise).square().flatten(1).mean(1)
        bound = self.diffusion.bound(latents, point, found, logits, step)
        return {"loss": mse + bound, "mse": mse, "bound": bound}

    def _noised(self, latents: Tensor, noise: Tensor, time: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        step = (time * (STEPS - 1)).round().long()
        return self.diffusion.mix(latents, noise, step), step

    def noise_field(self, labels: Int[Tensor, " B"], guidance: Guidance | None = None) -> Field:
        """The guided noise (all its channels) and the conditional variance logits."""
        return self._field(labels, guidance or Guidance(), lambda x, t, output: output, self.shape[1])

    @torch.no_grad()
    def sample(
        self, labels: Int[Tensor, " B"], noise: Noise, sampling: Sampling, progress=None
    ) -> Float[Tensor, "B T C"]:
        x = self._start(labels, noise, sampling)
        field, name, more = self.noise_field(labels, sampling.guidance), sampling.sampler, _steps(progress)
        count = min(sampling.steps, STEPS)
        if name == "ddpm":
            return samplers.ddpm(field, x, self.diffusion.respaced(count), noise, more).float()
        if name == "ddim":
            return samplers.ddim(field, x, self.diffusion.respaced(count), more).float()
        chain = self.diffusion.respaced(min(count, self.diffusion.longest(LEAST)), LEAST)
        parts = samplers.chain_denoiser(field, chain)
        return samplers.dpm_solver(parts[0], x, *parts[1:], noise if name == "dpm-sde" else None, more).float()


def _steps(progress):
    return (lambda steps: steps) if progress is None else progress
