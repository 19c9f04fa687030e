"""A player: a network, what changes it and what follows it. A tokenizer plays against a discriminator; a generator
plays alone; a distillation has a frozen teacher."""

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
    """One side of a training run.

    `module`: all that its optimizers change, as one module; a step calls the player, which calls the module, wrapped
    where there are several processes. It may say in `blocks` where its transformer blocks are: the units that are
    shared out. `optimizer`: how it is trained; None for a frozen network, which is in no checkpoint. `average`: a
    module like `followed` (by default `module`) that becomes its exponential moving average.
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
        """Says if nothing trains it."""
        return self.config is None

    def place(self, device: torch.device | None, parallel: distributed.Parallel = "ddp") -> None:
        """Move it to a device (None: leave it where it is), wrap or share it out where there are several processes, and
        make its optimizers. `ValueError` where there is nothing to train."""
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
        return self._wrapped(*inputs)

    def unsynchronised(self) -> AbstractContextManager:
        """A block whose backward passes are not reduced over processes yet."""
        return distributed.unsynchronised(self._wrapped)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """A block in which its weights get no gradient, and its spectral norms do not move."""
        self.module.requires_grad_(False).eval()
        try:
            yield
        finally:
            self.module.requires_grad_(True).train()

    def set_rate(self, step: int, steps: int) -> float:
        """Set the learning rate of a step of a run of `steps`; return it."""
        factor = self.config.factor_at(step, steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group.setdefault("peak", group["lr"])
        return factor * self.config.lr

    def update(self, skip_above: float | None = None) -> tuple[Tensor, bool]:
        """Clip the gradients, let the optimizers step, and forget the gradients; return the gradients' norm before, and
        if the step was left out because that was a spike: more than `skip_above` times its running average."""
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
        """A spike enters the average as what would just be none, so that a lasting change is followed in the end."""
        if not math.isfinite(norm):  # not to be skipped over: the loop stops the run and says why
            return False
        average = norm if self.norm is None else self.norm
        self.norm = 0.99 * average + 0.01 * min(norm, factor * average)
        return norm > factor * average

    @torch.no_grad()
    def update_average(self, decay: float, step: int, warmup: bool = True) -> None:
        """average ← decay · average + (1 − decay) · module, for parameters; with `warmup` `decay` is at most
        (1 + step) / (10 + step)."""
        decay = min(decay, (1 + step) / (10 + step)) if warmup else decay
        pairs = zip(self.average.parameters(), self.followed.parameters(), strict=True)
        moving = [(average, value) for average, value in pairs if value.requires_grad]  # a lerp makes 0 of -0
        averages, values = ([distributed.local(p).detach() for p in some] for some in zip(*moving, strict=True))
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in zip(self.average.buffers(), self.followed.buffers(), strict=True):  # counts, and the like
            average.copy_(value)

    @property
    def parts(self) -> list[str]:
        """The parts that its tensors come in: its module's own, "optimizer", and "average" where there is one."""
        return ["", "optimizer", *([] if self.average is None else ["average"])]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors by part and name, as they lie on this process's device."""
        parts = {"": self.module.state_dict(), "optimizer": _named(self.module, self._states())}
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        return parts

    def gathered(self) -> dict[str, dict[str, Tensor]]:
        """Return the same whole. Where the tensors are shared out they are gathered on the first process's CPU, and the
        others get nothing: every process must call this."""
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
        """Take over what `gathered` gave, at whatever number of processes."""
        _fill(self.module, parts[""])
        if self.average is not None:
            _fill(self.average, parts["average"])
        self._load_optimizers(parts["optimizer"])

    def _states(self) -> dict[nn.Parameter, dict[str, Any]]:
        """Return what the optimizers keep of each parameter; no parameter is in two of them."""
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
    """Each parameter's state as `parameter name/state name`, plain numbers as `…:int` and `…:float`."""
    found = {}
    for name, state in states.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                found[f"{name}/{key}"] = value
            elif isinstance(value, int | float):
                found[f"{name}/{key}:{type(value).__name__}"] = torch.tensor(value, dtype=_NUMBERS[type(value)])
            elif value is not None:
                raise TrainingError(
                    f"the optimizer keeps a {type(value).__name__} as {key!r}, but a checkpoint holds tensors and "
                    "numbers alone."
                )
    return found


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    if own.keys() != tensors.keys():
        raise ValueError(f"the names {', '.join(sorted(own.keys() ^ tensors.keys())[:3])} are not in both")
    for name, target in own.items():
        if target.shape != tensors[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(target.shape)}")
        distributed.fill(target, tensors[name])
