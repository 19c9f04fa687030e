"""These are two optimizers of one's own: PyTorch's SGD with momentum, and Lion (Chen et al. 2023) debiased."""

from dataclasses import dataclass

import torch

import softvq


@softvq.register
@dataclass(frozen=True)
class MomentumConfig(softvq.OptimizerConfig):
    lr: float = 0.01
    momentum: float = 0.9
    grad_clip: float | None = 1.0

    def build(self, model):
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "peak": self.lr}]
        return [torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)]

    def factor_at(self, step, steps):
        return 1 - step / steps


@softvq.register
@dataclass(frozen=True)
class LionConfig(softvq.OptimizerConfig):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)

    def build(self, model):
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "peak": self.lr}]
        return [Lion(groups, self.lr, self.betas)]


class Lion(torch.optim.Optimizer):
    def __init__(self, groups, lr, betas):
        super().__init__(groups, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            near, far = group["betas"]
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state.setdefault("mean", torch.zeros_like(p))
                    mean = state["mean"] / (1 - far ** max(1, state.setdefault("step", 0)))
                    p.sub_(group["lr"] * torch.lerp(p.grad, mean, near).sign())
                    state["mean"].lerp_(p.grad, 1 - far)
                    state["step"] += 1
