"""The part that SiT and DiT share: one network, the random numbers of a training step, and how samplers are called."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softvq.generators.base import Generator, GeneratorConfig, Noise, Part, Progress, Sampling
from softvq.generators.transformer import Transformer
from softvq.transports.guidance import Field, Guidance, guided
from softvq.transports.samplers import precise


@dataclass(frozen=True)
class SamplerInput:
    """All that a sampler needs besides the noise x it begins with, (B, T, C) in the state's type.

    `field`: (x, t, the time at which the step began) → the network's guided output there, read as velocity or noise.
    `sampling`: the settings, with their `steps`. `noise`: a step's number → standard normal numbers like x. `progress`:
    a function that the list of steps goes through. `model`: the generator.
    """

    model: "Denoiser"
    field: Field
    sampling: Sampling
    noise: Callable[[int], Tensor]
    progress: Callable[[Sequence], Sequence]


Sampler = Callable[[Tensor, SamplerInput], Tensor]  # noise, task -> latents


class Denoiser(Generator):
    """The base of SiT and DiT: the network, and the random numbers of a training step."""

    def __init__(self, config: GeneratorConfig, out_channels: int, about: dict[str, Any] | None):
        super().__init__(config, about)
        self.network = Transformer(config.network, out_channels)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of the network, in order."""
        return list(self.network.blocks)

    def draw(self, rngs: Sequence[np.random.Generator], shared: np.random.Generator) -> dict[str, Tensor]:
        """Return for each sample `drop` and `time`, uniform in [0, 1), `normal` and `noise` (T, C), normal."""
        numbers = [(g.random(2), g.standard_normal(), g.standard_normal(self.shape, dtype=np.float32)) for g in rngs]
        uniform, normal, noise = (np.stack(part) for part in zip(*numbers, strict=True))
        return {
            "drop": torch.from_numpy(uniform[:, 0]).float(),
            "time": torch.from_numpy(uniform[:, 1]),
            "normal": torch.from_numpy(normal).float(),
            "noise": torch.from_numpy(noise),
        }

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Return the network's own output for latents at times, in float32."""
        return self.network(x.to(self.network.x_embedder.weight.dtype), t.float(), labels).float()

    @torch.no_grad()
    def features(
        self, latents: Float[Tensor, "B T C"], noise: Float[Tensor, "B T C"], time: float, layer: int
    ) -> Float[Tensor, "B T D"]:
        """Return the tokens after `layer` blocks, of latents noised to `time` (0 data … 1 noise), without a class."""
        x, t = self._noised(latents, noise, latents.new_full((len(latents),), time))
        null = torch.full((len(latents),), self.classes, device=latents.device)
        weight = self.network.x_embedder.weight
        return self.network.hidden(x.to(weight.dtype), t.float(), null, layer).float()

    @abstractmethod
    def _noised(self, latents: Tensor, noise: Tensor, time: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """Return the point at a time in [0, 1], and the time as the network counts it."""

    @abstractmethod
    def field(self, labels: Int[Tensor, " B"], guidance: Guidance | None = None) -> Field:
        """Return the guided field that samplers follow for these classes: velocity or noise."""

    def _guided(self, labels: Int[Tensor, " B"], guidance: Guidance | None, read, channels: int | None = None) -> Field:
        null = torch.full_like(labels, self.classes)
        return guided(lambda x, t, y: read(x, t, self(x, t, y)), labels, null, guidance or Guidance(), channels)

    @torch.no_grad()
    def sample(
        self, labels: Int[Tensor, " B"], noise: Noise, sampling: Sampling, progress: Progress = None
    ) -> Float[Tensor, "B T C"]:
        """Return new latents (B, T, C) of these classes, float32, by the sampler that `sampling` names."""
        self.check(sampling)
        x = noise().to(labels.device, torch.float32 if sampling.dtype == "float32" else precise(labels.device))
        task = SamplerInput(self, self.field(labels, sampling.guidance), sampling, noise, progress or _unchanged)
        return self.samplers[sampling.sampler](x, task).float()

    def one_evaluation(self) -> Callable[[], Any]:
        """Return a call of the network for one image."""
        x, one = torch.zeros(1, *self.shape, device=self.device), torch.zeros(1, device=self.device)
        return lambda: self.network(x, one, one.long())

    def parts(self, rows: int, steps: int, guided: bool) -> dict[str, Part]:
        """Return one part: a call of the network for `rows` images (twice as many when guided) in each step."""
        rows = rows * (2 if guided else 1)
        x, t = torch.zeros(rows, *self.shape, device=self.device), torch.zeros(rows, device=self.device)
        return {"evaluation": Part(lambda: self.network(x, t, t.long()), steps)}


def _unchanged(steps: Sequence) -> Sequence:
    return steps
