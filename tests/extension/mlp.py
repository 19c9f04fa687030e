"""This is a generator of one's own: an MLP over all tokens at once, trained as a rectified flow."""

from dataclasses import dataclass

import torch
from torch import nn

import softvq
from softvq.generators.base import Generator, GeneratorConfig


@softvq.register
@dataclass(frozen=True)
class TokenMLPConfig(GeneratorConfig):
    tokens: int = 64
    channels: int = 16
    classes: int = 1
    width: int = 256

    def build(self, about=None):
        return TokenMLP(self, about)


def euler(model, x, labels, steps):
    for step in range(steps):
        x = x - model(x, torch.full_like(x[:, 0, 0], 1 - step / steps), labels) / steps
    return x


SAMPLERS = {"euler": euler}


class TokenMLP(Generator):
    samplers = SAMPLERS

    def __init__(self, config, about=None):
        super().__init__(config, about)
        numbers = config.tokens * config.channels
        self.first = nn.Linear(numbers + 1, config.width)
        self.label = nn.Embedding(config.classes + 1, config.width)
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(config.width, config.width), nn.SiLU())
        self.out = nn.Linear(config.width, numbers)

    def forward(self, x, t, labels):
        hidden = self.first(torch.cat([x.flatten(1), t[:, None]], dim=1)) + self.label(labels)
        return self.out(self.last(hidden)).view_as(x)

    def draw(self, rngs, shared):
        noise = [torch.from_numpy(g.standard_normal(self.shape, dtype="float32")) for g in rngs]
        return {"noise": torch.stack(noise), "t": torch.tensor([g.random() for g in rngs])}

    def loss(self, latents, labels, draws):
        noise, t = draws["noise"], draws["t"]
        x = torch.lerp(latents, noise, t[:, None, None])
        return {"loss": (self(x, t, labels) - (noise - latents)).square().mean((1, 2))}

    @torch.no_grad()
    def sample(self, labels, noise, sampling, progress=None):
        self.check(sampling)
        x = noise().to(labels.device, torch.float32)
        return self.samplers[sampling.sampler](self, x, labels, sampling.steps)
