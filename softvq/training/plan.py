"""What a run will cost, before it is begun: two steps on tensors without contents, whose operations and memory are
counted. Nothing is downloaded, and no memory is taken."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from softvq.data.loader import Batch, open_source
from softvq.errors import DataError
from softvq.memory import Memory, without_contents
from softvq.training.recipe import TokenizerRecipe
from softvq.training.run import RunOptions, images_in
from softvq.training.state import TrainState
from softvq.training.step import Frozen, make_step
from softvq.training.tokenizer import new_parts


@dataclass(frozen=True)
class Plan:
    """`flops` are floating-point operations of a whole step (a multiply-accumulate is two), over all devices.
    `memory` is the largest number of bytes that tensors hold at once on each of 1 and of 8 devices (DDP), without what
    kernels and the allocator add; `fixed` is how much of it does not depend on the batch."""

    recipe: str
    parameters: dict[str, int]
    tokens: int
    latent_dim: int
    batch_size: int
    steps: int
    flops: int
    fixed: int
    memory: dict[int, int]
    checkpoint: int
    images: int | None
    why_unknown: str | None

    def to_dict(self) -> dict[str, Any]:
        epochs = {} if not self.images else {"epochs": self.steps * self.batch_size / self.images}
        return {**asdict(self), **epochs}


def plan(recipe: TokenizerRecipe, options: RunOptions) -> Plan:
    """Count a run that is not made. A run on several devices gives each an equal share of the batch."""
    # None of these changes what is counted; where only the decoder trains, `init` must name a tokenizer.
    init = "vit" if recipe.trains == "all" else recipe.init
    recipe = replace(recipe, init=init, encoder_weights=None, skip_above=None)
    devices = [n for n in (1, 8) if recipe.batch_size % (n * recipe.accumulate) == 0]
    measured = {n: _counted(replace(recipe, batch_size=recipe.batch_size // n), options) for n in devices}
    try:
        images, why = images_in(open_source(recipe.data)), None
    except DataError as error:
        images, why = None, str(error)
    first = measured[1]
    return Plan(
        recipe.name,
        first.parameters,
        recipe.tokenizer.tokens,
        recipe.tokenizer.latent_dim,
        recipe.batch_size,
        recipe.steps,
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


def _counted(recipe: TokenizerRecipe, options: RunOptions) -> _Count:
    size, count = recipe.tokenizer.image_size, recipe.batch_size
    memory, flops = Memory(), FlopCounterMode(display=False)
    with without_contents():
        frozen = Frozen.untrained(recipe)
        parts = new_parts(recipe, frozen, options, started=False)
        judge_optimizer = None if recipe.adversarial is None else recipe.adversarial.optimizer
        ema = new_parts(recipe, frozen, options, started=False)[0]  # copying such tensors corrupts memory
        state = TrainState.of(*parts, recipe.optimizer, judge_optimizer, ema=ema)
        state.step = max((s.start for s in recipe.schedules.values()), default=0)  # when every term counts
        batch = Batch(
            torch.zeros(count, 3, size, size), torch.zeros(count, dtype=torch.long), [""] * count, [0] * count, {}
        )
        step = make_step(recipe, options.precision, frozen)
        step(state, batch)  # makes the optimizers' averages
        held = [*_tensors(state), *(t for net in vars(frozen).values() if net for t in net.state_dict().values())]
        fixed = sum(t.untyped_storage().nbytes() for t in held)
        fixed += sum(p.numel() * p.element_size() for p in state.trained.parameters() if p.requires_grad)
        with memory:
            memory.hold([*held, batch.images])
            step(state, batch)
        with flops:
            step(state, batch)
        checkpoint = sum(t.numel() * t.element_size() for t in _tensors(state))
        parameters = _parameters(state, frozen)
    return _Count(parameters, flops.get_total_flops(), fixed, memory.peak, checkpoint)


def _tensors(state: TrainState) -> list[Tensor]:
    """What is saved: weights, EMA and optimizers' averages."""
    return [t for part in state.tensors().values() for t in part.values()]


def _parameters(state: TrainState, frozen: Frozen) -> dict[str, int]:
    found: dict[str, nn.Module | None] = {
        "tokenizer": state.model,
        "projector": state.heads,
        "discriminator": state.judge,
        **{f"{name} (frozen)": network for name, network in vars(frozen).items()},
    }
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in found.items() if net is not None}
    return {name: count for name, count in counts.items() if count}


def show_plan(plan: Plan) -> str:
    """The plan for people."""
    lines = [f"{plan.recipe}: {plan.steps:,} steps of {plan.batch_size} images; nothing was started."]
    rows = [(f"parameters, {name}", f"{count / 1e6:,.1f} M") for name, count in plan.parameters.items()]
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
        rows.append(("images an epoch", f"unknown: {plan.why_unknown}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join([*lines, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
