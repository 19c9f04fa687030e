"""Generators without a zero in them, and the random numbers of their training steps."""

import numpy as np
import torch
from torch import Tensor, nn

from softvq.generators.base import Generator, GeneratorConfig


def made(config: GeneratorConfig, std: float = 0.15) -> Generator:
    """In evaluation mode, with every parameter drawn anew."""
    model = config.build().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return model


def rngs(*samples: int) -> list[np.random.Generator]:
    return [np.random.default_rng([7, sample]) for sample in samples]


def draws_of(model: Generator, *samples: int, batch: int = 1) -> dict[str, Tensor]:
    return model.draw(rngs(*samples), np.random.default_rng(batch))
