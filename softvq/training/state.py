"""What a run is made of between two steps, and its checkpoints.

A checkpoint is a folder `step-0000500` with safetensors of the model, its EMA and the optimizer, and `state.json`. It
appears whole (by a rename) or not at all.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softvq import distributed, files, saving
from softvq.errors import ConfigError, ModelError, TrainingError
from softvq.optim import OptimizerConfig

PARTS = ("model", "ema", "heads", "optimizer", "judge", "judge_optimizer")  # the files of a checkpoint


@dataclass
class TrainState:
    """A model, its exponential moving average (a copy without gradients), its optimizers, and the steps done.

    `heads` are trained with the model and are no part of it: the alignment projector. `judge` is the other player:
    `discriminator` and `lecam`, with optimizers of its own; empty where there is none. `norms` are the running averages
    of gradient norms that spikes are told by.
    """

    model: nn.Module
    ema: nn.Module
    heads: nn.ModuleDict
    judge: nn.ModuleDict
    optimizers: list[torch.optim.Optimizer]
    judge_optimizers: list[torch.optim.Optimizer]
    trained: nn.Module
    wrapped: nn.Module
    wrapped_judge: nn.Module
    step: int = 0
    norms: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        heads: nn.ModuleDict,
        judge: nn.ModuleDict,
        optimizer: OptimizerConfig,
        judge_optimizer: OptimizerConfig | None,
        parallel: distributed.Parallel = "ddp",
        ema: nn.Module | None = None,
        student: Callable[[nn.Module, nn.ModuleDict], nn.Module] | None = None,
    ) -> "TrainState":
        """A run before its first step, its modules wrapped or sharded where there are several ranks. `ema`: a module
        equal to `model` to use as its average; by default a copy. `student`: what calls the model in a step."""
        ema = (copy.deepcopy(model) if ema is None else ema).requires_grad_(False).eval()
        trained = (student or Student)(model, heads)
        device = next(model.parameters()).device
        if parallel == "fsdp" and distributed.world_size() > 1:
            for whole, owner in ((model, trained), (ema, ema)):
                distributed.shard(owner, whole.blocks)
            wrapped = trained
        else:
            wrapped = distributed.wrapped(trained, device)
        wrapped_judge = distributed.wrapped(Judged(judge), device)
        others = [] if judge_optimizer is None else judge_optimizer.build(judge)
        return cls(model, ema, heads, judge, optimizer.build(trained), others, trained, wrapped, wrapped_judge)

    @contextmanager
    def no_sync(self):
        """A block whose backward passes are not reduced over ranks yet."""
        with distributed.unsynchronised(self.wrapped), distributed.unsynchronised(self.wrapped_judge):
            yield

    def is_spike(self, name: str, norm: float, factor: float) -> bool:
        """Whether a gradient norm is more than `factor` times its running average.

        A spike enters the average as what would just be none, so that a lasting change is followed in the end.
        """
        if not math.isfinite(norm):  # not to be skipped over: the loop stops the run and says why
            return False
        average = self.norms.get(name, norm)
        self.norms[name] = 0.99 * average + 0.01 * min(norm, factor * average)
        return norm > factor * average

    @torch.no_grad()
    def update_ema(self, decay: float, warmup: bool = True) -> None:
        """ema ← decay · ema + (1 − decay) · model, for parameters; with `warmup` `decay` starts lower: it is at most
        (1 + t) / (10 + t)."""
        decay = min(decay, (1 + self.step) / (10 + self.step)) if warmup else decay
        pairs = zip(self.ema.parameters(), self.model.parameters(), strict=True)
        moving = [(average, value) for average, value in pairs if value.requires_grad]  # a lerp makes 0 of -0
        averages, values = ([distributed.local(p).detach() for p in some] for some in zip(*moving, strict=True))
        torch._foreach_lerp_(averages, values, 1 - decay)
        for average, value in zip(self.ema.buffers(), self.model.buffers(), strict=True):  # counts, and the like
            average.copy_(value)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors by part and name, whole where they are sharded: every rank must call this."""
        parts = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": _optimizer_tensors(self.trained, self.optimizers),
            "judge": self.judge.state_dict(),
            "judge_optimizer": _optimizer_tensors(self.judge, self.judge_optimizers),
        }
        return {part: {name: distributed.whole(t) for name, t in tensors.items()} for part, tensors in parts.items()}

    def load(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what `tensors` gave, at whatever number of ranks."""
        for part in ("model", "ema", "heads", "judge"):
            _fill(getattr(self, part), parts[part])
        _load_optimizers(self.trained, self.optimizers, parts["optimizer"])
        if parts["judge_optimizer"]:  # empty before the discriminator's first step
            _load_optimizers(self.judge, self.judge_optimizers, parts["judge_optimizer"])


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    if own.keys() != tensors.keys():
        raise ValueError(f"the names {', '.join(sorted(own.keys() ^ tensors.keys())[:3])} are not in both")
    for name, target in own.items():
        if target.shape != tensors[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(target.shape)}")
        distributed.fill(target, tensors[name])


class Judged(nn.Module):
    """The discriminator on several inputs in one call, as gradient reduction wants it."""

    def __init__(self, judge: nn.ModuleDict):
        super().__init__()
        self.judge = judge

    def forward(self, inputs: list[list[Tensor]]) -> list[Tensor]:
        return [self.judge["discriminator"](readouts) for readouts in inputs]


def deviation(latent: Float[Tensor, "B L D"]) -> Float[Tensor, " D"]:
    """Each channel's standard deviation over all tokens of all ranks, in float32, with gradients: so that latents gain
    nothing against noise in its units by growing."""
    x = latent.float()
    x = x - distributed.mean(x.mean((0, 1)))
    return (distributed.mean(x.square().mean((0, 1))) + 1e-12).sqrt()


class Student(nn.Module):
    """The model and its heads as one module: what the optimizers change, and what is wrapped for several ranks."""

    def __init__(self, model: nn.Module, heads: nn.ModuleDict):
        super().__init__()
        self.model, self.heads = model, heads

    @property
    def blocks(self) -> list[nn.Module]:
        """The model's transformer blocks."""
        return self.model.blocks

    def forward(
        self, images: Tensor, noise: Tensor, disturbance: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict, dict, Tensor | None]:
        """Reconstructions, latents, the quantizer's losses and statistics, and projected latents for the alignment.
        `disturbance`: latent noise for the decoder, in units of each channel's deviation over all ranks' batch."""

        def disturb(latent: Tensor) -> Tensor:
            return latent + disturbance.to(latent.dtype) * deviation(latent).to(latent.dtype)

        output = self.model(images, noise, None if disturbance is None else disturb, distributed.mean)
        latent = output.quantized.latent
        projected = self.heads["projector"](latent) if "projector" in self.heads else None
        return output.images, latent, output.quantized.losses, output.quantized.statistics, projected


class Checkpoints:
    """The checkpoints of a run, newest last; `keep` of them stay."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return saving.checkpoints(self.folder)

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> Path:
        """Write the state; older checkpoints beyond `keep` are removed once the new one is in place."""
        target = self.folder / f"step-{state.step:07d}"
        parts = state.tensors()
        if distributed.rank() == 0:
            counts = {part: len(tensors) for part, tensors in parts.items()}
            self._write(target, parts, {"step": state.step, "norms": state.norms, "tensors": counts, **meta})
        distributed.barrier()
        return target

    def _write(self, target: Path, parts: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        size = sum(files.size_of(tensors) for tensors in parts.values())
        with files.atomic_folder(target, size) as temporary:
            for part, tensors in parts.items():
                files.write_tensors(temporary / f"{part}.safetensors", tensors)
            files.write_json(temporary / "state.json", meta)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)

    def load(self, state: TrainState) -> dict[str, Any]:
        """Load the newest checkpoint that is whole into `state`; gives its `state.json`."""
        reasons = []
        for folder in reversed(self.all()):
            try:
                meta = files.read_json(folder / "state.json")
                parts = {part: files.read_tensors(folder / f"{part}.safetensors") for part in PARTS}
                for part, count in meta.get("tensors", {}).items():  # an optimizer may have no state at all
                    if len(parts[part]) != count:
                        raise ValueError(f"{part} holds {len(parts[part])} tensors instead of {count}")
                state.load(parts)
                state.step = int(meta["step"])
                state.norms = {str(name): float(value) for name, value in meta["norms"].items()}
                return meta
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                reasons.append(f"{folder} ({str(error).strip().splitlines()[0]})")
        raise ModelError(
            f"no checkpoint can be read: {'; '.join(reasons)}; use another folder to start again.", setting="out"
        )


def check_same_run(path: Path, description: Mapping[str, Any]) -> None:
    """Compare this run with the one recorded in `path`; a difference is a `ConfigError` that names the fields."""
    old, new = _flat(files.read_json(path)), _flat(json.loads(json.dumps(description)))
    later = {key for key in new.keys() - old.keys() if key.endswith(".type")}  # one class alone was possible before
    differing = sorted(key for key in (old.keys() | new.keys()) - later if old.get(key) != new.get(key))
    if differing:
        shown = ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)" for key in differing[:4])
        raise ConfigError(
            f"{path.parent} holds a run that differs in {shown}; use another folder, or the same settings to go on.",
            setting="out",
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, item in node.items() for key, value in _flat(item, f"{prefix}{name}.").items()}


def _optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Each parameter's state as `parameter name/state name`, plain numbers as `…:int` and `…:float`; no parameter is in
    two optimizers."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    found[f"{names[parameter]}/{key}"] = value
                elif isinstance(value, int | float):
                    kind = _NUMBERS[type(value)]
                    found[f"{names[parameter]}/{key}:{type(value).__name__}"] = torch.tensor(value, dtype=kind)
                elif value is not None:
                    raise TrainingError(
                        f"{type(optimizer).__name__} keeps a {type(value).__name__} as {key!r}, but a checkpoint holds "
                        "tensors and numbers alone."
                    )
    return found


_NUMBERS = {int: torch.int64, float: torch.float64, bool: torch.bool}


def _load_optimizers(model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing = parameters.keys() - {name.rsplit("/", 1)[0] for name in tensors}
    if missing and tensors:  # some optimizers have no state at all
        raise ValueError(f"the optimizer's state of {len(missing)} parameters is missing")
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
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
