"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

# Not decayed, as usual for ViTs: biases, norms and scales (1-D), and learned tokens, positions and codebooks.
_NO_DECAY = ("cls_token", "mask_token", "latent_tokens", "pos_embed", "codebook")


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW with a linear warm-up and a cosine decay (appendix C.1 by default).

    `lr` is the peak; `min_lr` the floor of the cosine, as a fraction of the peak; `grad_clip` the largest norm of the
    gradient (None: no clipping).
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    warmup_steps: int = 5000
    min_lr: float = 0.0
    grad_clip: float | None = 1.0

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        groups = parameter_groups(model.named_parameters(), self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True)

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of step 0 … steps − 1: linear from lr / warmup_steps, then half a cosine to the floor."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.lr * (self.min_lr + (1 - self.min_lr) * cosine)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: decayed matrices, and the rest."""
    decayed, plain = [], []
    for name, parameter in named:
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name.endswith(_NO_DECAY)
            (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
