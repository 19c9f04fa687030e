"""A player: a network, the optimizers that change it, and the average that follows it.

A tokenizer plays against a discriminator; a generator plays alone; a distillation has a frozen teacher.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from softvq import distributed
from softvq.errors import TrainingError
from softvq.optim import OptimizerConfig

_NUMBERS = {int: torch.int64, float: torch.float64, bool: torch.bool}


class Player:
    """One side of a training run: a module, its optimizers and its average.

    `module` holds all that its optimizers change, as one module; a step calls the player, which calls the module,
    wrapped where there are several processes. A module may name its transformer blocks in `blocks`, the units in which
    it is split over processes. `optimizer` says how it is trained; None is for a frozen network, which is in no
    checkpoint. `average` is a module like `followed` (by default `module`) that becomes its exponential moving average.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig | None = None,
        *,
        average: nn.Module | None = None,
        followed: nn.Module | None = None,
    ):
        self.module, self.config = module, optimizer
        self.average, self.followed = average, module if followed is None else followed
        self.optimizers: list[torch.optim.Optimizer] = []
        self.norm: float | None = None  # the running average of its gradient norm, that spikes are told by
        self._wrapped = module
        if average is not None:
            average.requires_grad_(False).eval()
        if self.is_frozen:
            module.requires_grad_(False).eval()

    @property
    def is_frozen(self) -> bool:
        """True when nothing trains the player."""
        return self.config is None

    def place(self, device: torch.device | None, parallel: distributed.Parallel = "ddp") -> None:
        """Move the player to a device, wrap or split it where there are several processes, and make its optimizers.

        With the device None it stays where it is. Raise `ValueError` when there is nothing to train.
        """
        for one in (self.module, self.average):
            if one is not None and device is not None:
                one.to(device)
        if self.is_frozen:
            return
        if parallel == "fsdp" and distributed.world_size() > 1 and list(_blocks(self.module)):
            for one in (self.module, self.average):
                if one is not None:
                    distributed.shard(one, _blocks(one))
        else:
            self._wrapped = self.module if device is None else distributed.wrapped(self.module, device)
        self.optimizers = self.config.build(self.module)

    def __call__(self, *inputs: Any) -> Any:
        """Return the outputs of the module, which is called through its wrapper where there are several processes."""
        return self._wrapped(*inputs)

    def unsynchronised(self) -> AbstractContextManager:
        """Return a block whose backward passes are not reduced over processes yet."""
        return distributed.unsynchronised(self._wrapped)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Open a block in which the player's weights get no gradient, and its spectral norms do not move."""
        self.module.requires_grad_(False).eval()
        try:
            yield
        finally:
            self.module.requires_grad_(True).train()

    def set_rate(self, step: int, steps: int) -> float:
        """Set the learning rate for step `step` of a run of `steps`, and return it."""
        factor = self.config.factor_at(step, steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group.setdefault("peak", group["lr"])
        return factor * self.config.lr

    def update(self, skip_above: float | None = None) -> tuple[Tensor, bool]:
        """Clip the gradients, let the optimizers step, and forget the gradients; return the norm and True for a spike.

        The norm is that before clipping. A spike is a norm of more than `skip_above` times its running average; its
        step is left out.
        """
        limit = self.config.grad_clip
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), math.inf if limit is None else limit)
        norm = distributed.whole(norm).detach()
        spike = skip_above is not None and self._is_spike(float(norm), skip_above)
        for optimizer in self.optimizers:
            if not spike:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm, spike

    def _is_spike(self, norm: float, factor: float) -> bool:
        """Return True when a gradient norm is more than `factor` times its running average, and update that average.

        A spike enters the average as the largest norm that is none, so that a lasting change is followed in the end.
        """
        if not math.isfinite(norm):  # not to be skipped over: the loop stops the run and says why
            return False
        average = norm if self.norm is None else self.norm
        self.norm = 0.99 * average + 0.01 * min(norm, factor * average)
        return norm > factor * average

    @torch.no_grad()
    def update_average(self, decay: float, step: int, warmup: bool = True) -> None:
        """Update the parameters' average: average ← decay · average + (1 − decay) · module; buffers are copied.

        With `warmup`, `decay` is at most (1 + step) / (10 + step).
        """
        decay = min(decay, (1 + step) / (10 + step)) if warmup else decay
        pairs = zip(self.average.parameters(), self.followed.parameters(), strict=True)
        moving = [(average, value) for average, value in pairs if value.requires_grad]  # a lerp makes 0 of -0
        averages, values = ([distributed.local(p).detach() for p in some] for some in zip(*moving, strict=True))
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in zip(self.average.buffers(), self.followed.buffers(), strict=True):  # counts, and the like
            average.copy_(value)

    @property
    def parts(self) -> list[str]:
        """The parts of its tensors: "" for its module's own, "optimizer", and "average" where there is one."""
        return ["", "optimizer", *([] if self.average is None else ["average"])]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors by part and name, as they lie on this process's device."""
        parts = {"": self.module.state_dict(), "optimizer": _named(self.module, self._states())}
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        return parts

    def gathered(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors by part and name, whole; every process must call this.

        Tensors that are split over processes are gathered on the first process's CPU, and the other processes get
        nothing.
        """
        if not distributed.is_sharded(self.module):
            return self.tensors()
        parts = {"": distributed.gathered_module(self.module), "optimizer": {}}
        if self._states():
            states = distributed.gathered_optimizers(self.module, self.optimizers)
            parts["optimizer"] = _plain(states)
        if self.average is not None:
            parts["average"] = distributed.gathered_module(self.average)
        return parts

    def load(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the tensors that `gathered` returned, at whatever number of processes."""
        _fill(self.module, parts[""])
        if self.average is not None:
            _fill(self.average, parts["average"])
        self._load_optimizers(parts["optimizer"])

    def _states(self) -> dict[nn.Parameter, dict[str, Any]]:
        """Return the optimizers' state of each parameter; no parameter is in two optimizers."""
        return {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}

    def _load_optimizers(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        missing = parameters.keys() - {name.rsplit("/", 1)[0] for name in tensors}
        if missing and tensors:  # some optimizers have no state at all, and none has before its first step
            raise ValueError(f"the optimizer's state of {len(missing)} parameters is missing")
        owner = {p: one for one in self.optimizers for group in one.param_groups for p in group["params"]}
        for full_name, value in tensors.items():
            name, key = full_name.rsplit("/", 1)
            parameter = parameters[name]
            if ":" in key:  # a plain number
                owner[parameter].state[parameter][key.partition(":")[0]] = value.item()
                continue
            # Fused AdamW keeps its step counter on the parameter's device, like the moments.
            if value.shape == parameter.shape and value.ndim:
                own = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                distributed.fill(own, value)
            else:
                own = value.to(parameter.device)
            owner[parameter].state[parameter][key] = own


def _blocks(module: nn.Module) -> list[nn.Module]:
    return list(getattr(module, "blocks", []))


def _named(module: nn.Module, states: Mapping[nn.Parameter, Mapping[str, Any]]) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in module.named_parameters()}
    return _plain({names[parameter]: state for parameter, state in states.items()})


def _plain(states: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return each parameter's state as `parameter name/state name`, plain numbers as `…:int` and `…:float`."""
    tensors = {}
    for name, state in states.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            elif isinstance(value, int | float):
                tensors[f"{name}/{key}:{type(value).__name__}"] = torch.tensor(value, dtype=_NUMBERS[type(value)])
            elif value is not None:
                raise TrainingError(
                    f"the optimizer keeps a {type(value).__name__} as {key!r}, but a checkpoint holds tensors and "
                    "numbers alone."
                )
    return tensors


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    if own.keys() != tensors.keys():
        raise ValueError(f"the names {', '.join(sorted(own.keys() ^ tensors.keys())[:3])} are not in both")
    for name, target in own.items():
        if target.shape != tensors[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(target.shape)}")
        distributed.fill(target, tensors[name])
