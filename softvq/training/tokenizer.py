"""Training a tokenizer: the step of Eq. 7, the whole run, and the latent statistics."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from softvq import config as configs
from softvq import distributed, hub
from softvq.data.loader import Batch, Order, ordered_batches, sample_rng, training_batches
from softvq.data.sources import Source, open_source
from softvq.losses.alignment import Projector, alignment
from softvq.losses.reconstruction import reconstruction
from softvq.losses.total import total
from softvq.pretrained.vit import Teacher, load
from softvq.tokenizer import Tokenizer
from softvq.training.initialise import encoder_start, local_start
from softvq.training.logs import Log
from softvq.training.loop import Hook, Intervals, fit
from softvq.training.recipe import TokenizerRecipe
from softvq.training.state import Checkpoints, TrainState, check_same_run

Precision = Literal["float32", "bfloat16"]
STATISTICS_IMAGES = 10_000  # enough for a standard error of 0.1 % at 64 tokens an image


@dataclass(frozen=True)
class RunOptions:
    """What does not change a run's result (but for the precision): where it runs and what it writes."""

    out: Path
    device: torch.device
    precision: Precision = "float32"
    workers: int = 2
    pretrained: Mapping[str, Path] = field(default_factory=dict)  # local files of pretrained ViTs, by name
    command: str | None = None  # what to store as the model's command; None: the recipe's
    intervals: Intervals = field(default_factory=Intervals)


def new_tokenizer(recipe: TokenizerRecipe, pretrained: Mapping[str, Path] | None = None) -> Tokenizer:
    """The recipe's tokenizer before its first step: a function of the recipe (and of the weights it names) alone.

    A recipe whose parts do not fit each other (groups that do not divide the tokens, weights of other loss terms than
    it has) is a `ConfigError`.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            tokenizer = Tokenizer(recipe.tokenizer)
            if recipe.init == "local":
                local_start(tokenizer)
        if (name := recipe.encoder_weights) is not None:
            config = recipe.tokenizer
            file = (pretrained or {}).get(name)
            encoder_start(tokenizer, load(name, config.image_size, config.encoder.patch_size, file))
        with torch.no_grad():
            tried = tokenizer.quantizer(torch.zeros(1, recipe.tokenizer.tokens, tokenizer.quantizer.in_dim))
        aligned = {} if recipe.alignment is None else {"alignment": torch.zeros(())}
        total({"reconstruction": torch.zeros(()), **tried.losses, **aligned}, recipe.weights)
    except hub.ModelError:  # already a sentence, about the pretrained weights
        raise
    except ValueError as error:
        raise configs.ConfigError(f"recipe {recipe.name}: {error}") from error
    return tokenizer


def new_teacher(recipe: TokenizerRecipe, pretrained: Mapping[str, Path] | None = None) -> Teacher | None:
    """The frozen network that the recipe aligns its latents with, if it does."""
    if recipe.alignment is None:
        return None
    name, config = recipe.alignment.teacher, recipe.tokenizer
    return Teacher.load(name, config.image_size, config.encoder.patch_size, (pretrained or {}).get(name))


def new_heads(recipe: TokenizerRecipe, teacher: Teacher | None) -> nn.ModuleDict:
    """What is trained along with the tokenizer: the projector, where there is a teacher."""
    if recipe.alignment is None or teacher is None:
        return nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        projector = Projector(recipe.tokenizer.latent_dim, recipe.alignment.hidden, teacher.width)
    return nn.ModuleDict({"projector": projector})


def make_step(
    recipe: TokenizerRecipe, precision: Precision, teacher: Teacher | None
) -> Callable[[TrainState, Batch], dict[str, Tensor]]:
    """One step of Eq. 7: reconstruction, alignment and the quantizer's own terms."""

    def step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
        factor = recipe.optimizer.factor_at(state.step, recipe.steps)
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
        images = batch.images
        noise = latent_noise(recipe, batch.positions).to(images.device)
        state.model.train()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = state.model(images, noise)
            aligned = None if teacher is None else (state.heads["projector"](output.quantized.latent), teacher(images))
        terms = {
            "reconstruction": reconstruction(output.images, images, recipe.reconstruction),
            **output.quantized.losses,
        }
        if aligned is not None:
            terms["alignment"] = alignment(*aligned)
        loss = total(terms, recipe.weights)
        loss.backward()
        limit = recipe.optimizer.grad_clip
        norm = nn.utils.clip_grad_norm_(state.trained.parameters(), float("inf") if limit is None else limit)
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state.update_ema(recipe.ema_decay)
        return {
            "loss/total": loss.detach(),
            **{f"loss/{name}": term.detach() for name, term in terms.items()},
            **{f"weight/{name}": torch.tensor(weight) for name, weight in recipe.weights.items()},
            **{f"latent/{name}": value for name, value in output.quantized.statistics.items()},
            "optimizer/gradient_norm": norm.detach(),
            "optimizer/lr": torch.tensor(factor * recipe.optimizer.lr),
        }

    return step


def latent_noise(recipe: TokenizerRecipe, positions: list[int]) -> Float[Tensor, "B L D"]:
    """The reparametrisation noise of these sample numbers (KL samples with it), whatever rank they are on."""
    shape = (recipe.tokenizer.tokens, recipe.tokenizer.latent_dim)
    draws = [sample_rng(recipe.seed, p, stream=2).standard_normal(shape, dtype=np.float32) for p in positions]
    return torch.from_numpy(np.stack(draws))


def train(
    recipe: TokenizerRecipe,
    options: RunOptions,
    *,
    hooks: Callable[[Path], list[Hook]] = lambda folder: [],
    finish: Callable[[Tokenizer], dict[str, Any]] = lambda tokenizer: {},
) -> Path:
    """Run a recipe to its end, from its last checkpoint where `options.out` holds one; gives the model's folder.

    At the end the EMA weights become the model, its latent statistics are fitted, and `finish(tokenizer)` gives
    figures to store with it.
    """
    source = open_source(recipe.data)
    model = new_tokenizer(recipe, options.pretrained).to(options.device)
    teacher = new_teacher(recipe, options.pretrained)
    if teacher is not None:
        teacher = teacher.to(options.device)
    try:
        state = TrainState.of(model, new_heads(recipe, teacher).to(options.device), recipe.optimizer)
    except ValueError as error:
        raise configs.ConfigError(f"recipe {recipe.name}: {error}") from error
    description = describe(recipe, options.precision, source)
    checkpoints = Checkpoints(options.out / "checkpoints")
    meta = open_run(options.out, description, checkpoints, state)
    log = Log(options.out, state.step, recipe.steps)
    try:
        batches = training_batches(
            source,
            size=recipe.tokenizer.image_size,
            batch_size=recipe.batch_size,
            augment=recipe.augment,
            seed=recipe.seed,
            start_step=state.step,
            workers=options.workers,
        )
        fit(
            state,
            recipe.steps,
            (batch.to(options.device) for batch in batches),
            make_step(recipe, options.precision, teacher),
            checkpoints=checkpoints,
            log=log,
            bad=dict(meta.get("bad_files", {})),
            intervals=options.intervals,
            hooks=hooks(options.out),
        )
        log.say("fitting the latent statistics")
        return _finish(state.ema, recipe, options, finish, log)
    finally:
        log.close()


def describe(recipe: TokenizerRecipe, precision: Precision, source: Source) -> dict[str, Any]:
    """What must be the same for a run to be resumed: the recipe's choices, the precision, the images."""
    choices = {key: value for key, value in configs.to_dict(recipe).items() if key not in ("about", "published")}
    names = hashlib.sha256("\n".join(source.names).encode("utf-8", "surrogateescape")).hexdigest()
    return {"recipe": choices, "precision": precision, "images": {"count": len(source.names), "names": names[:16]}}


def open_run(out: Path, description: dict[str, Any], checkpoints: Checkpoints, state: TrainState) -> dict[str, Any]:
    """Start a run in `out`, or load the last checkpoint of the one that is there; gives the checkpoint's `state.json`.

    `ConfigError` when `out` holds another run, or a finished model without the checkpoints that could say so.
    """
    if (out / "run.json").exists():
        check_same_run(out / "run.json", description)
    if checkpoints.all():
        return checkpoints.load(state)
    if (out / "model").exists():
        raise configs.ConfigError(f"{out} holds a finished model and no checkpoints; use another --out.")
    hub.write_json(out / "run.json", description)
    return {}


def _finish(
    tokenizer: Tokenizer,
    recipe: TokenizerRecipe,
    options: RunOptions,
    finish: Callable[[Tokenizer], dict[str, Any]],
    log: Log,
) -> Path:
    source, size = open_source(recipe.data), tokenizer.config.image_size
    batches = statistics_batches(source, size, STATISTICS_IMAGES, recipe.batch_size)
    mean, std = fit_statistics(tokenizer, (batch.images for batch in batches))
    if (constant := std == 0).any():
        log.say(f"{int(constant.sum())} of {len(std)} latent channels never change: the codebook has collapsed")
    tokenizer.set_statistics(mean, torch.where(constant, 1.0, std))
    tokenizer.about = {
        "recipe": json.loads(json.dumps(configs.to_dict(recipe))),
        "command": options.command or recipe.command,
        "precision": options.precision,
        **finish(tokenizer),
    }
    tokenizer.save_pretrained(options.out / "model")
    return options.out / "model"


def statistics_batches(source: Source, size: int, images: int, batch_size: int) -> Iterator[Batch]:
    """Up to `images` centre crops, spread at random (but always the same way) over the source."""
    chosen = sorted(Order(len(source.names), seed=0)(0, min(images, len(source.names))))
    return ordered_batches(source, size=size, batch_size=batch_size, chosen=chosen)


@torch.no_grad()
def fit_statistics(tokenizer: Tokenizer, batches: Iterable[Float[Tensor, "_ 3 H W"]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of the latents before normalisation, over all tokens of all images.

    Sums run in float64; the batches of all ranks are counted together. A channel that is constant (to 1e-6 of its
    size) gets the deviation 0, with which `set_statistics` would refuse it.
    """
    device = tokenizer.latent_mean.device
    dim = tokenizer.config.latent_dim
    count = torch.zeros((), dtype=torch.float64)
    sums = torch.zeros(2, dim, dtype=torch.float64)
    for images in batches:
        latents = tokenizer.encode(images.to(device)) * tokenizer.latent_std + tokenizer.latent_mean
        latents = latents.cpu().double().flatten(0, 1)
        count += len(latents)
        sums += torch.stack([latents.sum(0), latents.square().sum(0)])
    count, sums = distributed.total(count), distributed.total(sums)
    mean = sums[0] / count
    std = (sums[1] / count - mean.square()).clamp_min(0).sqrt()
    return mean.float(), torch.where(std > 1e-6 * mean.abs(), std, 0.0).float()
