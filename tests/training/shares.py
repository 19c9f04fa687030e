"""Runs of every kind of task with every accumulation that divides, in one process or as torchrun starts several.

python -m tests.training.shares IMAGES LATENTS OUT
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from softvq.config import register
from softvq.generators.mar import MARConfig, MARNetworkConfig
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.losses.discriminators import PatchGANDiscriminatorConfig
from softvq.optim import OptimizerConfig
from softvq.recipes.all import find, find_generator
from softvq.training.generator import GeneratorTask
from softvq.training.options import Intervals, RunOptions
from softvq.training.run import train
from softvq.training.task import Task
from softvq.training.tokenizer import TokenizerTask


@register
@dataclass(frozen=True)
class MomentumConfig(OptimizerConfig):
    """Gradient descent with momentum: Adam would make steps of the rounding of gradients that are nearly zero."""

    lr: float = 0.05

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], self.lr, momentum=0.9)]


FAST = MomentumConfig()


def tasks(images: Path, latents: Path) -> dict[str, Task]:
    """Each run, by name: losses that are not linear in the batch (KL, latent noise, LeCAM), spikes, dropout."""
    twin = find("softvq-s-64-tiny")
    patchgan = replace(twin.adversarial, discriminator=PatchGANDiscriminatorConfig(4, 1), optimizer=FAST)
    tokenizer = replace(
        twin,
        tokenizer=replace(twin.tokenizer, image_size=32, tokens=8, latent_dim=4),
        **{"optimizer": FAST, "batch_size": 12, "steps": 3, "val": None, "schedules": {}, "latent_noise": 0.2},
        **{"skip_above": 2.0, "adversarial": patchgan, "data": str(images)},
    )
    sit = replace(
        find_generator("emoji-sit"),
        model=SiTConfig(TransformerConfig(64, 16, 9, width=16, depth=1, heads=2)),
        **{"optimizer": FAST, "batch_size": 12, "steps": 3},
    )
    network = MARNetworkConfig(64, 16, 9, width=16, depth=1, heads=2, head_width=16, head_depth=1, buffer=4)
    mar = replace(sit, model=MARConfig(network, hidden_dropout=0.3, repeats=1, head_steps=4), sampling=None)
    found: dict[str, Task] = {}
    for parts in (1, 2, 3, 6):
        found[f"tokenizer-{parts}"] = TokenizerTask(replace(tokenizer, accumulate=parts))
        found[f"sit-{parts}"] = GeneratorTask(replace(sit, accumulate=parts), latents)
        found[f"mar-{parts}"] = GeneratorTask(replace(mar, accumulate=parts), latents)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, task in tasks(Path(sys.argv[1]), Path(sys.argv[2])).items():
        folder = Path(sys.argv[3]) / name
        intervals = Intervals(log=1, checkpoint=3, samples=100)
        train(task, RunOptions(folder, "cpu", "float32", workers=0, intervals=intervals))
