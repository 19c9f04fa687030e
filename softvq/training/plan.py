"""A plan of what a run will cost, before it is begun, by two steps on tensors without contents.

The steps' operations and memory are counted. Nothing is downloaded, and no memory is taken.
"""

import copy
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils.flop_counter import FlopCounterMode

from softvq import progress
from softvq.errors import ConfigError, DataError, counted
from softvq.memory import Memory, without_contents
from softvq.training.options import RunOptions
from softvq.training.state import Players
from softvq.training.task import Task


@dataclass(frozen=True)
class Plan:
    """The cost of a run that is not made.

    `flops` are floating-point operations of a whole step (a multiply-accumulate is two), over all devices. `memory` is
    the largest number of bytes that tensors hold at once on each of 1 and of 8 devices (DDP), without what kernels and
    the allocator add; `fixed` is the part of it that does not depend on the batch. `checkpoint` is the number of bytes
    of a checkpoint.
    """

    recipe: str
    parameters: dict[str, int]
    tokens: int | None
    latent_dim: int | None
    batch_size: int
    steps: int
    flops: int
    fixed: int
    memory: dict[int, int]
    checkpoint: int
    images: int | None
    why_unknown: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and the number of epochs where that of the images is known, JSON-ready."""
        epochs = {} if not self.images else {"epochs": self.steps * self.batch_size / self.images}
        return {**asdict(self), **epochs}


def plan(task: Task, options: RunOptions | None = None) -> Plan:
    """Return the plan of a run that is not made.

    A run on several devices gives each an equal share of the batch. Raise `ConfigError` when the task's step cannot be
    counted without numbers.
    """
    task, batch_size = copy.copy(task), task.recipe.batch_size
    task.options = replace(options or RunOptions("nowhere"), parallel="ddp").settled()
    try:
        images, why = task.images(), None
    except DataError as error:
        images, why = None, str(error)
    if is_dataclass(task.recipe) and hasattr(task.recipe, "skip_above"):
        task.recipe = replace(task.recipe, skip_above=None)  # spikes are told by numbers, and there are none
    devices = [n for n in (1, 8) if batch_size % (n * task.accumulate) == 0]
    with progress.waiting(f"counting two steps of {task.recipe.name}"):
        measured = {n: _counted(task, batch_size // n) for n in devices}
    first, shape = measured[1], task.latent_shape
    return Plan(
        task.recipe.name,
        first.parameters,
        shape and shape[0],
        shape and shape[1],
        batch_size,
        task.steps,
        first.flops,
        first.fixed,
        {n: counted.peak for n, counted in measured.items()},
        first.checkpoint,
        images,
        why,
    )


@dataclass(frozen=True)
class _Count:
    parameters: dict[str, int]
    flops: int
    fixed: int
    peak: int
    checkpoint: int


def _counted(task: Task, rows: int) -> _Count:
    memory, flops = Memory(), FlopCounterMode(display=False)
    with without_contents():
        players = task.build(weights=False)
        for player in players.values():
            player.place(None)
        batch = task.example(rows)
        with flops:
            _step(task, players, batch)  # which makes the optimizers' averages, too
        saved = [t for p in players.values() if not p.is_frozen for part in p.tensors().values() for t in part.values()]
        frozen = [t for p in players.values() if p.is_frozen for t in p.module.state_dict().values()]
        fixed = sum(t.untyped_storage().nbytes() for t in [*saved, *frozen])
        trained = [p for player in players.values() if not player.is_frozen for p in player.module.parameters()]
        fixed += sum(p.numel() * p.element_size() for p in trained if p.requires_grad)
        with memory:
            memory.hold([*saved, *frozen, *(t for t in vars(batch).values() if isinstance(t, Tensor))])
            _step(task, players, batch)
        checkpoint = sum(t.numel() * t.element_size() for t in saved)
        parameters = _parameters(task, players)
    return _Count(parameters, flops.get_total_flops(), fixed, memory.peak, checkpoint)


def _step(task: Task, players: Players, batch: Any) -> None:
    try:
        task.step(players, batch)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(f"recipe {task.recipe.name} cannot be planned: its step depends on numbers.") from error


def _parameters(task: Task, players: Players) -> dict[str, int]:
    """Return the number of parameters of each network, by the network's name."""
    networks: dict[str, nn.Module] = {}
    for name, player in players.items():
        if player.is_frozen:
            networks[f"{name} (frozen)"] = player.module
        else:
            for own, module in player.module.named_children():
                networks[task.kind if own == "model" else own] = module
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in networks.items()}
    return {name: count for name, count in counts.items() if count}


def show_plan(plan: Plan) -> str:
    """Return the plan as text for people."""
    lines = [
        f"{plan.recipe}: {counted(plan.steps, 'step')} of {counted(plan.batch_size, 'image')}; nothing was started."
    ]
    rows = [(f"parameters, {name}", f"{count / 1e6:,.1f} M") for name, count in plan.parameters.items()]
    if plan.tokens is not None:
        rows.append(("tokens an image", f"{plan.tokens} of {plan.latent_dim} numbers"))
    rows.append(("operations a step", f"{plan.flops / 1e12:,.2f} TFLOP"))
    rows.append(("memory that the batch does not change", _bytes(plan.fixed)))
    for devices, memory in plan.memory.items():
        share = plan.batch_size // devices
        rows.append((f"memory of tensors, {devices} device{'s' * (devices > 1)}, {share} images each", _bytes(memory)))
    rows.append(("a checkpoint", _bytes(plan.checkpoint)))
    if plan.images:
        epochs = plan.steps * plan.batch_size / plan.images
        rows.append(
            ("images an epoch", f"{plan.images:,} ({plan.images / plan.batch_size:,.1f} steps; {epochs:,.1f} epochs)")
        )
    else:
        rows.append(("images an epoch", f"unknown: {plan.why_unknown or 'the task does not say'}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join([*lines, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
