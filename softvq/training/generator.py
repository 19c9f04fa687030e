"""The training of a generator on cached latents: the recipe, its player, a step, and the model that it ends with."""

import copy
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softvq import config as configs
from softvq import distributed
from softvq.data.latents import LatentBatch, Latents
from softvq.errors import Notice, counted
from softvq.generators.base import Generator, GeneratorConfig, Sampling
from softvq.models import AnyTokenizer, load_tokenizer
from softvq.optim import AdamWConfig, OptimizerConfig
from softvq.pretrained.named import check_used
from softvq.randomness import Stream, rng
from softvq.runtime import autocast
from softvq.training.hooks import sample_hook
from softvq.training.options import RunOptions
from softvq.training.player import Player
from softvq.training.recipe import check_run
from softvq.training.state import Players
from softvq.training.step import add_share, parts_of
from softvq.training.task import Hook, Task, check_recipe


@dataclass(frozen=True)
class PublishedGeneratorRecipe:
    """The row of the paper that a recipe stands for: gFID without and with guidance (50,000 images), as printed."""

    table: str
    row: str
    gfid: float | None
    gfid_guided: float | None


@dataclass(frozen=True)
class GeneratorRecipe:
    """Every choice of a generator's training run on cached latents that changes its result.

    `data` is the folder of latents (see `softvq encode`), made by `tokenizer`; `val` may be a second such folder.
    `batch_size` is over all processes; `accumulate` splits a batch into that many parts, processed one after the other;
    `skip_above` leaves out steps whose gradient norm is more than that many times the running average. With
    `ema_warmup` the average's decay is at most (1 + t) / (10 + t) at step t. `init` is a generator of the same
    configuration (folder, bundled or hub name) to go on from. `sampling` holds the settings with which `softvq sample`
    draws from the model unless others are given.
    """

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
        return shlex.join(["softvq", "train", "generator", self.name, "--data", self.data])


class GeneratorTask(Task):
    """A generator's training run on cached latents.

    `data` and `val` are folders of latents that replace those named in the recipe. `tokenizer`, loaded or by name, is
    the one that the latents must have been made with. By default it is the recipe's for a recipe of the paper, and else
    the one that made the latents.
    """

    kind = "generator"

    def __init__(
        self,
        recipe: GeneratorRecipe,
        data: str | Path | None = None,
        val: str | Path | None = None,
        *,
        tokenizer: AnyTokenizer | str | Path | None = None,
    ):
        check_recipe(recipe, GeneratorRecipe, "a generator")
        changes = {name: str(value) for name, value in (("data", data), ("val", val)) if value is not None}
        super().__init__(replace(recipe, **changes))
        self._tokenizer = tokenizer
        if isinstance(tokenizer, str | Path):
            self.recipe = replace(self.recipe, tokenizer=str(tokenizer))

    @property
    def latent_shape(self) -> tuple[int, int]:
        """The number of tokens of an image, and of numbers of a token."""
        return self.recipe.model.sizes.tokens, self.recipe.model.sizes.channels

    @cached_property
    def latents(self) -> Latents:
        """The training latents.

        Opening them fits the recipe's model to their shape and classes, and makes their tokenizer the recipe's where
        none was given and the recipe is not one of the paper.
        """
        latents = Latents(self.recipe.data)
        if self._tokenizer is None and self.recipe.published is None:
            self.recipe = replace(self.recipe, tokenizer=latents.index.tokenizer)
        self.recipe = fitting(self.recipe, latents)
        return latents

    @cached_property
    def held_out(self) -> Latents | None:
        """The validation latents, None where there are none."""
        return None if self.recipe.val is None else Latents(self.recipe.val)

    @cached_property
    def tokenizer(self) -> AnyTokenizer:
        """The tokenizer that the latents were made with."""
        is_loaded = self._tokenizer is not None and not isinstance(self._tokenizer, str | Path)
        return self._tokenizer if is_loaded else load_tokenizer(self.recipe.tokenizer)

    def build(self, weights: bool = True) -> Players:
        """Return the one player before the first step, `model`, with its average.

        Raise `ConfigError` when the recipe's parts do not fit each other, or need `parallel` "ddp".
        """
        recipe, options = self.recipe, self.options
        model = new_generator(recipe, started=weights and not self.resumes)
        check_fit(recipe, model, options)
        for module in model.modules():
            if hasattr(module, "recompute"):
                module.recompute = options.recompute
        # Copying tensors without contents corrupts memory.
        average = copy.deepcopy(model) if weights else new_generator(recipe, started=False)
        return {"model": Player(Generating(model), recipe.optimizer, average=average, followed=model)}

    def batches(self, start: int) -> Iterator[LatentBatch]:
        """Return endless batches of training latents from step `start` on, this process's share of each."""
        index = self.latents.index
        self.say(
            f"training on latents of {counted(len(self.latents), 'image')} of {index.source} in {self.recipe.data}"
        )
        return self.latents.batches(self.recipe.batch_size, self.recipe.seed, start, self.recipe.accumulate)

    def step(self, players: Players, batch: LatentBatch) -> dict[str, Tensor]:
        """Make one step of the generator's own loss and return named scalars for the log, `loss/total` among them."""
        recipe, player = self.recipe, players["model"]
        rate = player.set_rate(batch.step, recipe.steps)
        player.module.train()
        values: dict[str, Tensor] = {}
        for part, last in parts_of(batch, recipe.accumulate):
            draws = draws_of(player.followed, recipe, part)
            with nullcontext() if last else player.unsynchronised():
                losses = _losses(player, part, draws, self.options.precision)
                (losses["loss"].mean() / recipe.accumulate).backward()
            named = {"total" if name == "loss" else name: loss.mean() for name, loss in losses.items()}
            add_share(values, {f"loss/{name}": value for name, value in named.items()}, recipe.accumulate)
        values["optimizer/gradient_norm"], spike = player.update(recipe.skip_above)
        if recipe.skip_above is not None:
            values["optimizer/generator_skipped"] = torch.tensor(float(spike))
        player.update_average(recipe.ema_decay, batch.step, recipe.ema_warmup)
        return {**{name: value.detach() for name, value in values.items()}, "optimizer/lr": torch.tensor(rate)}

    def finish(self, players: Players) -> Generator:
        """Return the average's weights as a generator."""
        generator = new_generator(self.recipe, started=False)
        average = players["model"].average.state_dict()
        generator.load_state_dict({name: distributed.whole(t).cpu() for name, t in average.items()})
        generator.about = self.about()
        return generator

    def prepare(self) -> None:
        """Open the training and validation latents and the tokenizer.

        Raise `ConfigError` when another tokenizer has made either of the latents, or the classes differ.
        """
        check_used(self.options.pretrained, ())
        opened = {self.recipe.data: self.latents, self.recipe.val: self.held_out}  # both, before anything is downloaded
        for folder, latents in opened.items():
            if latents is not None and not self.tokenizer.makes(latents.index.fingerprint):
                raise configs.ConfigError(
                    f"the latents in {folder} were made with another tokenizer ({latents.index.tokenizer}, "
                    f"{latents.index.fingerprint}) than {self.recipe.tokenizer} "
                    f"({self.tokenizer.latent_fingerprint}); encode the images again."
                )
        for folder, latents in opened.items():
            model = self.recipe.model
            if latents is not None and model.sizes.classes and (count := int((latents.labels < 0).sum())):
                key = "model.classes" if model.sizes is model else "model.network.classes"
                raise configs.ConfigError(
                    f"{counted(count, 'image')} of {len(latents):,} in {folder} {'has' if count == 1 else 'have'} no "
                    "label, and the generator is trained on classes; leave them out of the images and encode again, or "
                    f"train without classes ({key}: 0)."
                )
        if self.held_out is not None and self.held_out.index.classes != self.latents.index.classes:
            raise configs.ConfigError(
                f"the latents in {self.recipe.val} have different classes from those in {self.recipe.data}.",
                setting="val",
            )

    def describe(self) -> dict[str, Any]:
        """Return what a resumed run must share: the recipe's choices, precision, and the identity of the latents."""
        latents, index = self.latents, self.latents.index
        left_out = ("about", "published", "data", "val", "sampling", "steps")
        choices = {key: value for key, value in configs.to_dict(self.recipe).items() if key not in left_out}
        return {
            "recipe": choices,
            "precision": self.options.precision,
            "compile": self.options.compile,
            "latents": {"tokenizer": index.fingerprint, "images": index.identity, "count": len(latents)},
        }

    def about(self) -> dict[str, Any]:
        """Return the record of how the model was made, with what sampling from it needs to know."""
        index, recipe = self.latents.index, self.recipe
        return {
            **super().about(),
            "data": index.source,
            "classes": index.classes,
            "tokenizer": {"name": index.tokenizer, "fingerprint": index.fingerprint},
            "images": len(self.latents),
            **({} if recipe.sampling is None else {"sampling": configs.to_dict(recipe.sampling)}),
        }

    def images(self) -> int:
        """Return the number of images whose latents are trained on."""
        return len(self.latents)

    def hooks(self, players: Players) -> list[Hook]:
        """Return the hook that shows samples and, where there are validation latents, measures the loss on them."""
        held_out = self.held_out
        limit = self.options.val_images
        loss = None if held_out is None else lambda model: validation_loss(model, self.recipe, held_out, limit)
        return [sample_hook(self.tokenizer.to(self.options.device), loss, self.options)]

    def example(self, rows: int) -> LatentBatch:
        """Return a batch of `rows` blank latents of the first class."""
        sizes = self.recipe.model.sizes
        labels = torch.zeros(rows, dtype=torch.long)
        return LatentBatch(torch.zeros(rows, sizes.tokens, sizes.channels), labels, [""] * rows, [0] * rows)


class Generating(nn.Module):
    """The generator's loss as a module's call, which can be wrapped for several ranks."""

    def __init__(self, model: Generator):
        super().__init__()
        self.model = model

    @property
    def blocks(self) -> list[nn.Module]:
        """The model's transformer blocks."""
        return self.model.blocks

    @property
    def undecayed(self) -> list[nn.Module]:
        """The model's modules whose weights no optimizer decays."""
        return self.model.undecayed

    def forward(self, latents: Tensor, labels: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of each sample as `loss`, and what it consists of, by name."""
        return self.model.loss(latents, labels, draws)


def new_generator(recipe: GeneratorRecipe, *, started: bool = True) -> Generator:
    """Return the recipe's generator before its first step, a function of the recipe and of the model it goes on from.

    Without `started`, the weights of `init` are not loaded, because others will replace them. The classes' embeddings
    start anew, with a `Notice`, where `init` has another number of classes; only the one for no class is kept. Raise
    `ConfigError` when `init` is another model; the message names the difference.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        generator = recipe.model.build()
    if recipe.init is not None and started:
        start = Generator.from_pretrained(recipe.init)
        if type(start) is not type(generator):
            difference = f"it is a {type(start).__name__}, not a {type(generator).__name__}"
        else:
            difference = generator.config.same_meaning(start.config) or _take_over(generator, start, recipe)
        if difference is not None:
            raise configs.ConfigError(f"recipe {recipe.name} cannot go on from {recipe.init}: {difference}.")
    return generator


def _take_over(generator: Generator, start: Generator, recipe: GeneratorRecipe) -> str | None:
    """Copy the weights of another generator; where they do not fit this one, return the reason instead."""
    given, own = start.state_dict(), generator.state_dict()
    if differing := sorted(own.keys() ^ given.keys()):
        return f"{differing[0]} is not in both"
    for name, tensor in own.items():
        counts = len(given[name]) - 1 if given[name].ndim else 0, len(tensor) - 1 if tensor.ndim else 0
        if generator.classes != start.classes and counts == (start.classes, generator.classes):
            given[name] = torch.cat([tensor[:-1], given[name][-1:]])  # the last is that of no class
            warnings.warn(
                f"recipe {recipe.name} has {counts[1]} classes and {recipe.init} {counts[0]}: "
                "their embeddings start anew.",
                Notice,
                stacklevel=4,
            )
        if tensor.shape != given[name].shape:
            return f"its {name} has the shape {tuple(given[name].shape)}, the recipe's {tuple(tensor.shape)}"
    generator.load_state_dict(given)
    return None


def draws_of(model: Generator, recipe: GeneratorRecipe, batch: LatentBatch) -> dict[str, Tensor]:
    """Return the random numbers of these samples, the same whatever rank they are on."""
    rngs = [rng(recipe.seed, Stream.DENOISING, position) for position in batch.positions]
    return model.draw(rngs, rng(recipe.seed, Stream.DENOISING_BATCH, batch.positions[0] // recipe.batch_size))


def _losses(
    model: Callable[..., dict[str, Tensor]], batch: LatentBatch, draws: dict[str, Tensor], precision: str
) -> dict[str, Tensor]:
    device = batch.latents.device
    draws = {name: value.to(device) for name, value in draws.items()}
    with autocast(device, precision):
        return model(batch.latents, batch.labels, draws)


@torch.no_grad()
def validation_loss(model: Generator, recipe: GeneratorRecipe, latents: Latents, limit: int = 1000) -> float:
    """Return the mean loss of up to `limit` images, spread evenly and with the same random numbers each time."""
    total, count = 0.0, 0
    model.eval()
    for batch in latents.in_order(min(256, recipe.batch_size), limit):
        batch = batch.to(model.device)
        losses = _losses(model.loss, batch, draws_of(model, recipe, batch), "float32")
        total, count = total + float(losses["loss"].sum()), count + len(batch)
    return total / count


def fitting(recipe: GeneratorRecipe, latents: Latents) -> GeneratorRecipe:
    """Return the recipe with its model fitted to these latents' shape and number of classes.

    Raise `ConfigError` when a recipe of the paper is for latents of another shape.
    """
    index, sizes = latents.index, recipe.model.sizes
    if (sizes.tokens, sizes.channels) != (index.tokens, index.channels) and recipe.published is not None:
        raise configs.ConfigError(
            f"recipe {recipe.name} is for latents of {sizes.tokens} × {sizes.channels}, but those in "
            f"{latents.folder} are {index.tokens} × {index.channels}."
        )
    classes = len(index.classes) if sizes.classes else 0
    return replace(recipe, model=recipe.model.fitted(index.tokens, index.channels, classes))


def check_fit(recipe: GeneratorRecipe, model: Generator, options: RunOptions) -> None:
    """Raise `ConfigError` when the recipe's parts do not fit each other, before the work begins."""
    if recipe.sampling is not None and recipe.sampling.sampler not in model.samplers:
        raise configs.ConfigError(
            f"recipe {recipe.name}: a {type(model).__name__} is sampled with {', '.join(model.samplers)}, not "
            f"{recipe.sampling.sampler!r}; null stands for the model's own settings.",
            setting="sampling",
        )
    if options.is_sharded and not (recipe.optimizer.sharded and model.blocks):
        raise configs.ConfigError(
            f"recipe {recipe.name}: optimizers like Muon, and models without blocks, need parallel 'ddp'.",
            setting="parallel",
        )
