"""Optimizers, their parameter groups and learning-rate schedules.

LAMB is our own, because PyTorch has none; so is a Muon for the machines that PyTorch's is slow on.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from softvq.config import family, register
from softvq.errors import is_whole
from softvq.runtime import gains_from_bfloat16

# Not decayed, as usual for ViTs: biases, norms and scales (1-D), and learned tokens, positions and codebooks.
_NO_DECAY = ("cls_token", "reg_token", "mask_token", "latent_tokens", "pos_embed", "codebook")


@family
class OptimizerConfig(ABC):
    """The base of the optimizers' configurations.

    An optimizer of your own is a frozen dataclass with the field `lr`, derived from this, with `@softvq.register` above
    it, and `build`.
    """

    required: ClassVar = ("lr",)
    grad_clip: float | None = None  # the largest norm of the gradient; None: no clipping
    sharded: ClassVar[bool] = False  # if it works on parameters that are split over ranks (FSDP2)

    @abstractmethod
    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """Return the optimizers of all trainable parameters; each group keeps its peak learning rate as `peak`.

        A model may name in `undecayed` its modules that have no decay, and in `blocks` those that have its matrices.
        Raise `ValueError` when nothing can be trained.
        """

    def factor_at(self, step: int, steps: int) -> float:
        """Return the share of the peak learning rate at a step from 0 on, of a run of `steps`; here it is constant."""
        return 1.0


@register
@dataclass(frozen=True)
class AdamWConfig(OptimizerConfig):
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

    sharded = True

    def __post_init__(self):
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and is_whole(self.warmup_steps, 0)):
            raise ValueError("lr must be positive, weight_decay and warmup_steps not negative, and all finite")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 <= self.min_lr <= 1:
            raise ValueError("betas must be in [0, 1), min_lr in [0, 1]")
        if self.grad_clip is not None and not 0 < self.grad_clip < math.inf:
            raise ValueError(f"grad_clip must be positive or null, not {self.grad_clip}")

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """Return one AdamW of all trainable parameters; raise `ValueError` when there are none."""
        return [self.build_for(model.named_parameters(), undecayed(model))]

    def build_for(
        self, named: Iterable[tuple[str, nn.Parameter]], exempt: Collection[nn.Parameter] = ()
    ) -> torch.optim.AdamW:
        """Return an AdamW of these parameters, those in `exempt` without decay; raise `ValueError` without any."""
        groups = parameter_groups(named, self.weight_decay, exempt)
        if not any(group["params"] for group in groups):
            raise ValueError("AdamW has no parameters to train")
        return torch.optim.AdamW([{**g, "peak": self.lr} for g in groups], lr=self.lr, betas=self.betas, fused=True)

    def factor_at(self, step: int, steps: int) -> float:
        """Return the share of the peak at a step from 0 on: a linear rise, then half a cosine down to the floor.

        The rise starts at 1 / warmup_steps.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.min_lr + (1 - self.min_lr) * cosine


@register
@dataclass(frozen=True)
class MuonConfig(OptimizerConfig):
    """Muon (Jordan et al. 2024) for the matrices inside the model's `blocks`, AdamW for all else.

    It is PyTorch's own where the machine gains from bfloat16, else `Muon`, the same in float32. Muon is not the
    paper's: on the emoji it is 3 dB ahead of AdamW after 300 steps (benchmarks/README.md).

    `lr` is Muon's peak, scaled so that an update's size is that of AdamW's; schedule and clipping are those of `rest`.
    """

    lr: float = 0.012
    momentum: float = 0.95
    weight_decay: float = 0.0
    rest: AdamWConfig = field(default_factory=AdamWConfig)

    def __post_init__(self):
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.momentum < 1):
            raise ValueError("lr must be positive, weight_decay not negative, both finite, momentum in [0, 1)")

    @property
    def grad_clip(self) -> float | None:
        """The largest norm of the gradient, that of `rest`; None for no clipping."""
        return self.rest.grad_clip

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """Return Muon and AdamW, of all trainable parameters; raise `ValueError` when either would have none."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = {p for block in model.blocks for p in block.parameters() if p.ndim == 2}
        inside = {name for name, p in named if p in matrices}
        if not inside:
            raise ValueError("Muon has no matrices of transformer blocks to train; use the AdamW optimizer")
        groups = [{"params": [p for name, p in named if name in inside], "peak": self.lr}]
        settings = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
        if gains_from_bfloat16(groups[0]["params"][0].device) and hasattr(torch.optim, "Muon"):  # PyTorch 2.9 or newer
            muon = torch.optim.Muon(groups, **settings, adjust_lr_fn="match_rms_adamw")
        else:
            muon = Muon(groups, **settings)
        others = [(name, p) for name, p in named if name not in inside]
        return [muon, self.rest.build_for(others, undecayed(model))]

    def factor_at(self, step: int, steps: int) -> float:
        """Return the share of the peak as `AdamWConfig.factor_at` of `rest` does."""
        return self.rest.factor_at(step, steps)


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is made orthogonal, of the size that AdamW's updates have.

    Five Newton–Schulz iterations make it so (Jordan et al. 2024). They are in float32 here, in bfloat16 in
    `torch.optim.Muon`: on a CPU without such products that is 24 times as fast (a matrix of 768 × 192; studies/QUEUE.md
    has the command).
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Make one step with the gradients that the parameters have; `closure` is not used."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                average = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(average, group["momentum"]))  # Nesterov's
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return about U Vᵀ of a matrix U S Vᵀ, with singular values between 0.5 and 1.5.

    Five iterations of x → a x + b x³ + c x⁵ with Jordan's coefficients bring them there.
    """
    a, b, c = 3.4445, -4.775, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class LAMB(torch.optim.Optimizer):
    """Layer-wise adaptive moments for large batches (You et al. 2020, Algorithm 2).

    An update has Adam's direction with decay, and the length of the weights themselves times `lr`. It keeps Adam's own
    length where weights or directions have length 0.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Make one step with the gradients that the parameters have; `closure` is not used."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, self.state[weight], group)

    def _update(self, weight: torch.Tensor, state: dict, group: dict) -> None:
        if not state:
            state.update(step=0, m=torch.zeros_like(weight), v=torch.zeros_like(weight))
        state["step"] += 1
        b1, b2 = group["betas"]
        m, v = state["m"].lerp_(weight.grad, 1 - b1), state["v"].lerp_(weight.grad.square(), 1 - b2)
        r = (m / (1 - b1 ** state["step"])) / ((v / (1 - b2 ** state["step"])).sqrt() + group["eps"])
        u = r + group["weight_decay"] * weight
        length, wanted = u.norm(), weight.norm()
        trust = torch.where((length > 0) & (wanted > 0), wanted / length, 1.0)
        weight.sub_(group["lr"] * trust * u)


def undecayed(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of the modules that a model names as not decayed."""
    return {p for module in getattr(model, "undecayed", ()) for p in module.parameters()}


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, exempt: Collection[nn.Parameter] = ()
) -> list[dict]:
    """Return the trainable parameters in two groups: decayed matrices, and the rest.

    The rest has those in `exempt` too.
    """
    decayed, plain = [], []
    for name, parameter in named:
        if parameter.requires_grad:
            free = parameter.ndim < 2 or name.endswith(_NO_DECAY) or parameter in exempt
            (plain if free else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
