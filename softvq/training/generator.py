"""Training a generator on cached latents: the recipe, the step, the run."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softvq import config as configs
from softvq import distributed
from softvq.autoencoders import FoldedAutoencoder
from softvq.data.latents import LatentBatch, Latents
from softvq.generators.base import Generator, GeneratorConfig, Sampling
from softvq.optim import AdamWConfig, OptimizerConfig
from softvq.randomness import Stream, rng
from softvq.runtime import Precision, autocast
from softvq.saving import recorded_plugins
from softvq.tokenizer import Tokenizer
from softvq.training.logs import Log
from softvq.training.loop import Hook, fit
from softvq.training.recipe import check_run
from softvq.training.run import RunOptions, open_run
from softvq.training.state import Checkpoints, TrainState
from softvq.training.update import add, finish, set_rate


@dataclass(frozen=True)
class PublishedGeneratorRecipe:
    """The row of the paper that a recipe stands for: gFID without and with guidance (50,000 images), as printed."""

    table: str
    row: str
    gfid: float | None
    gfid_guided: float | None


@dataclass(frozen=True)
class GeneratorRecipe:
    """A generator training run on the latents in the folder `data` (see `softvq encode`), made by `tokenizer`; `val`
    may be a second such folder. `batch_size` is over all processes; `accumulate` splits it into parts one after the
    other; `skip_above` leaves out steps whose gradient norm is that many times the running average. `ema_warmup`: the
    average's decay is at most (1 + t) / (10 + t) at step t. `init`: a generator (folder, bundled or hub name) to go on
    from, of the same configuration. `sampling`: how `softvq sample` draws from the model if not asked otherwise."""

    name: str
    about: str
    model: GeneratorConfig
    tokenizer: str
    data: str = "latents"
    val: str | None = None
    batch_size: int = 256
    steps: int = 400_000
    seed: int = 0
    optimizer: OptimizerConfig = field(
        default_factory=lambda: AdamWConfig(betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=0, min_lr=1.0)
    )
    accumulate: int = 1
    skip_above: float | None = None
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    init: str | None = None
    sampling: Sampling | None = None
    published: PublishedGeneratorRecipe | None = None

    def __post_init__(self):
        check_run(self)

    @property
    def command(self) -> str:
        """The command that runs this recipe."""
        return f"softvq train generator {self.name} --data {self.data}"


class _Pupil(nn.Module):
    """The generator's loss as a module's call: what is wrapped for several ranks."""

    def __init__(self, model: Generator, heads: nn.ModuleDict):
        super().__init__()
        self.model, self.heads = model, heads

    @property
    def blocks(self) -> list[nn.Module]:
        """The model's transformer blocks."""
        return self.model.blocks

    @property
    def undecayed(self) -> list[nn.Module]:
        """The model's modules without decay."""
        return self.model.undecayed

    def forward(self, latents: Tensor, labels: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model.loss(latents, labels, draws)


def new_generator(recipe: GeneratorRecipe, *, started: bool = True) -> Generator:
    """The recipe's generator before its first step: a function of the recipe (and of the model it goes on from) alone.

    Without `started` the weights of `init` are not loaded: others will replace them. `ConfigError` where `init` is
    another model, with what differs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        generator = recipe.model.build()
    if recipe.init is not None and started:
        start = Generator.from_pretrained(recipe.init)
        if difference := _difference(start, generator):
            raise configs.ConfigError(f"recipe {recipe.name} cannot go on from {recipe.init}: {difference}.")
        generator.load_state_dict(start.state_dict())
    return generator


def _difference(start: Generator, generator: Generator) -> str | None:
    """Say why the weights of the one are not for the other; None where they are."""
    if type(start) is not type(generator):
        return f"it is a {type(start).__name__}, not a {type(generator).__name__}"
    if (difference := generator.config.same_meaning(start.config)) is not None:
        return difference
    given, own = start.state_dict(), generator.state_dict()
    if differing := sorted(own.keys() ^ given.keys()):
        return f"{differing[0]} is not in both"
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            return f"its {name} has the shape {tuple(given[name].shape)}, the recipe's {tuple(tensor.shape)}"
    return None


def draws_of(model: Generator, recipe: GeneratorRecipe, positions: list[int]) -> dict[str, Tensor]:
    """The random numbers of these samples, the same whatever rank they are on."""
    rngs = [rng(recipe.seed, Stream.DENOISING, position) for position in positions]
    return model.draw(rngs, rng(recipe.seed, Stream.DENOISING_BATCH, positions[0] // recipe.batch_size))


def make_step(recipe: GeneratorRecipe, precision: Precision) -> Callable[[TrainState, LatentBatch], dict[str, Tensor]]:
    """The function that makes one step: it changes the state and gives named scalars for the log."""

    def step(state: TrainState, batch: LatentBatch) -> dict[str, Tensor]:
        rate = set_rate(recipe.optimizer, state.optimizers, state.step, recipe.steps)
        state.model.train()
        values: dict[str, Tensor] = {}
        size = len(batch) // recipe.accumulate
        for part in range(recipe.accumulate):
            rows = slice(part * size, (part + 1) * size)
            draws = draws_of(state.model, recipe, batch.positions[rows])
            with state.no_sync() if part < recipe.accumulate - 1 else nullcontext():
                losses = _losses(state.wrapped, batch.latents[rows], batch.labels[rows], draws, precision)
                (losses["loss"].mean() / recipe.accumulate).backward()
            named = {"total" if name == "loss" else name: loss.mean() for name, loss in losses.items()}
            add(values, {f"loss/{name}": value for name, value in named.items()}, recipe.accumulate)
        values |= finish(
            state, state.trained, state.optimizers, recipe.optimizer.grad_clip, recipe.skip_above, "generator"
        )
        state.update_ema(recipe.ema_decay, recipe.ema_warmup)
        return {**{name: value.detach() for name, value in values.items()}, "optimizer/lr": torch.tensor(rate)}

    return step


def _losses(
    model: Callable[..., dict[str, Tensor]],
    latents: Tensor,
    labels: Tensor,
    draws: dict[str, Tensor],
    precision: Precision,
):
    draws = {name: value.to(latents.device) for name, value in draws.items()}
    with autocast(latents.device, precision):
        return model(latents, labels, draws)


@torch.no_grad()
def validation_loss(model: Generator, recipe: GeneratorRecipe, latents: Latents, limit: int = 2048) -> float:
    """The mean loss of up to `limit` images, always with the same random numbers."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    model.eval()
    for batch in latents.in_order(min(256, recipe.batch_size), limit):
        batch = batch.to(device)
        found = _losses(model.loss, batch.latents, batch.labels, draws_of(model, recipe, batch.positions), "float32")
        total, count = total + float(found["loss"].sum()), count + len(batch)
    return total / count


def fitting(recipe: GeneratorRecipe, latents: Latents) -> GeneratorRecipe:
    """The recipe with its model made for these latents' shape and number of classes, where it leaves them open."""
    index, sizes = latents.index, recipe.model.sizes
    if (sizes.tokens, sizes.channels) != (index.tokens, index.channels) and recipe.published is not None:
        raise configs.ConfigError(
            f"recipe {recipe.name} is for latents of {sizes.tokens} × {sizes.channels}, but those in "
            f"{latents.folder} are {index.tokens} × {index.channels}."
        )
    classes = len(index.classes) if sizes.classes else 0
    return replace(recipe, model=recipe.model.fitted(index.tokens, index.channels, classes))


def check_fit(recipe: GeneratorRecipe, model: Generator, options: RunOptions) -> None:
    """Raise a `ConfigError` where the recipe's parts do not fit each other: said before the work and not after it."""
    if recipe.sampling is not None and recipe.sampling.sampler not in model.samplers:
        raise configs.ConfigError(
            f"recipe {recipe.name}: a {type(model).__name__} is sampled with {', '.join(model.samplers)}, not "
            f"{recipe.sampling.sampler!r}; null stands for the model's own settings.",
            setting="sampling",
        )
    if options.parallel == "fsdp" and distributed.world_size() > 1 and not (recipe.optimizer.sharded and model.blocks):
        raise configs.ConfigError(
            f"recipe {recipe.name}: optimizers like Muon, and models without blocks, need parallel 'ddp'.",
            setting="parallel",
        )


def train(
    recipe: GeneratorRecipe,
    options: RunOptions,
    *,
    tokenizer: Tokenizer | FoldedAutoencoder | None = None,
    hooks: Callable[[Path], list[Hook]] = lambda folder: [],
) -> Path:
    """Run a recipe to its end, from its last checkpoint where `options.out` holds one; gives the model's folder.

    `tokenizer`: the one that the latents must be of; others are a `ConfigError`.
    """
    latents = Latents(recipe.data)
    if tokenizer is not None and not tokenizer.makes(latents.index.fingerprint):
        raise configs.ConfigError(
            f"the latents in {recipe.data} were made with another tokenizer ({latents.index.tokenizer}, "
            f"{latents.index.fingerprint}) than {recipe.tokenizer} ({tokenizer.latent_fingerprint}); "
            "encode the images again."
        )
    recipe = fitting(recipe, latents)
    checkpoints = Checkpoints(options.out / "checkpoints")
    model = new_generator(recipe, started=not checkpoints.all())
    for block_owner in model.modules():
        if hasattr(block_owner, "recompute"):
            block_owner.recompute = options.recompute
    heads, judge = nn.ModuleDict(), nn.ModuleDict()  # which only tokenizers have
    check_fit(recipe, model, options)
    try:
        state = TrainState.of(
            model.to(options.device), heads, judge, recipe.optimizer, None, options.parallel, student=_Pupil
        )
    except (ValueError, RuntimeError, OverflowError) as error:
        raise configs.ConfigError(f"recipe {recipe.name}: {str(error).strip().splitlines()[0]}") from error
    if options.compile:
        state.trained.compile()
    description = describe_run(recipe, options, latents)
    model.about = about_of(recipe, options, latents)
    meta = open_run(options.out, description, checkpoints, state, model.content())
    log = Log(options.out, state.step, recipe.steps, options.wandb, description)
    try:
        fit(
            state,
            recipe.steps,
            (batch.to(options.device) for batch in latents.batches(recipe.batch_size, recipe.seed, state.step)),
            make_step(recipe, options.precision),
            checkpoints=checkpoints,
            log=log,
            bad=dict(meta.get("bad_files", {})),
            intervals=options.intervals,
            hooks=hooks(options.out),
        )
        return _finish(recipe, options, latents, state)
    finally:
        log.close()


def describe_run(recipe: GeneratorRecipe, options: RunOptions, latents: Latents) -> dict[str, Any]:
    """What must be the same for a run to be resumed."""
    left_out = ("about", "published", "data", "val", "sampling")
    choices = {key: value for key, value in configs.to_dict(recipe).items() if key not in left_out}
    index = latents.index
    return {
        "recipe": choices,
        "precision": options.precision,
        "compile": options.compile,
        "latents": {"tokenizer": index.fingerprint, "images": index.identity, "count": len(latents)},
    }


def about_of(recipe: GeneratorRecipe, options: RunOptions, latents: Latents) -> dict[str, Any]:
    """Return what is stored with the model: how it was made, and what sampling from it needs to know."""
    return {
        "recipe": json.loads(json.dumps(configs.to_dict(recipe))),
        "command": options.command or recipe.command,
        "precision": options.precision,
        "data": latents.index.source,
        "classes": latents.index.classes,
        "tokenizer": {"name": latents.index.tokenizer, "fingerprint": latents.index.fingerprint},
        "images": len(latents),
        **({} if recipe.sampling is None else {"sampling": configs.to_dict(recipe.sampling)}),
        **recorded_plugins(recipe),
    }


def _finish(recipe: GeneratorRecipe, options: RunOptions, latents: Latents, state: TrainState) -> Path:
    generator = new_generator(recipe, started=False)
    generator.load_state_dict({name: distributed.whole(t).cpu() for name, t in state.ema.state_dict().items()})
    generator.about = about_of(recipe, options, latents)
    if distributed.rank() == 0:
        generator.save_pretrained(options.out / "model")
    distributed.barrier()
    return options.out / "model"
