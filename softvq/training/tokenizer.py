"""Training a tokenizer: what a run starts from, the run, and the latent statistics."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softvq import config as configs
from softvq import distributed
from softvq.data.loader import Batch, Order, listing, open_source, ordered_batches, training_batches
from softvq.data.sources import Source, identity
from softvq.data.stream import ShardStream
from softvq.errors import ModelError
from softvq.losses.adversarial import LeCAM
from softvq.losses.alignment import Projector
from softvq.losses.total import total
from softvq.pretrained.vit import describe, load
from softvq.quantizers.base import check_quantized
from softvq.saving import recorded_plugins
from softvq.tokenizer import Tokenizer
from softvq.training.initialise import check_encoder, encoder_start, local_start, model_start
from softvq.training.logs import Log
from softvq.training.loop import Hook, fit
from softvq.training.recipe import TokenizerRecipe
from softvq.training.run import RunOptions, fingerprints, images_in, open_run
from softvq.training.state import Checkpoints, TrainState
from softvq.training.step import Frozen, make_step

STATISTICS_IMAGES = 10_000  # enough for a standard error of 0.1 % at 64 tokens an image


def new_tokenizer(
    recipe: TokenizerRecipe, pretrained: Mapping[str, Path] | None = None, *, started: bool = True
) -> Tokenizer:
    """The recipe's tokenizer before its first step: a function of the recipe (and of the weights it names) alone.

    Without `started`, pretrained weights are not loaded: a checkpoint will replace them. A recipe whose parts do not
    fit each other (weights of other loss terms than it has, an encoder that is no such ViT) is a `ConfigError`.
    """
    name, config = recipe.encoder_weights, recipe.tokenizer
    try:
        if name is not None and not recipe.starts_from_model:
            known = replace(describe(name).architecture, patch_size=config.encoder.patch_size)
            check_encoder(config.encoder, known, name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            tokenizer = Tokenizer(recipe.tokenizer)
            if recipe.projections == "default":
                for linear in (tokenizer.to_quantizer, tokenizer.from_quantizer, tokenizer.decoder.to_pixel):
                    linear.reset_parameters()
            if recipe.init == "local":
                local_start(tokenizer)
        if recipe.starts_from_model and started:
            start = Tokenizer.from_pretrained(recipe.init)
            model_start(tokenizer, start)
            if recipe.trains == "decoder" and not tokenizer.makes(start.latent_fingerprint):
                raise ValueError(
                    f"to train the decoder alone, all that makes latents must be as in {recipe.init}: "
                    "image_size, tokens, latent_dim, encoder and quantizer"
                )
        elif name is not None and started:
            file = (pretrained or {}).get(name)
            encoder_start(tokenizer, load(name, config.image_size, config.encoder.patch_size, file))
        tokenizer.quantizer.eval()  # trying it must not change what it counts
        with torch.no_grad():
            tried = tokenizer.quantizer(torch.zeros(1, recipe.tokenizer.tokens, tokenizer.quantizer.in_dim))
        check_quantized(tokenizer.quantizer, tried, (1, recipe.tokenizer.tokens, recipe.tokenizer.latent_dim))
        tokenizer.quantizer.train()
        terms = {**dict.fromkeys(recipe.terms, torch.zeros(())), **tried.losses}
        if recipe.adversarial is not None:
            terms["adversarial"] = torch.zeros(())
        total(terms, recipe.weights)
    except ModelError:  # already a sentence, about the pretrained weights
        raise
    except (ValueError, RuntimeError, OverflowError) as error:  # torch on sizes that no memory holds
        raise _unfit(recipe, error) from error
    return tokenizer


def _unfit(recipe: TokenizerRecipe, error: Exception) -> configs.ConfigError:
    return configs.ConfigError(f"recipe {recipe.name}: {str(error).strip().splitlines()[0]}")


def new_parts(
    recipe: TokenizerRecipe, frozen: Frozen, options: RunOptions, *, started: bool = True
) -> tuple[Tokenizer, nn.ModuleDict, nn.ModuleDict]:
    """Tokenizer, projector and discriminator before the first step, each a function of the recipe alone."""
    model = new_tokenizer(recipe, options.pretrained, started=started)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            heads, judge = nn.ModuleDict(), nn.ModuleDict()
            if (aligned := recipe.alignment) is not None:
                heads["projector"] = Projector(recipe.tokenizer.latent_dim, aligned.hidden, frozen.teacher.width)
            if recipe.adversarial is not None:
                width = 0 if frozen.readouts is None else frozen.readouts.width
                judge["discriminator"] = recipe.adversarial.discriminator.build(width)
                judge["lecam"] = LeCAM()
        for side in (model.encoder, model.decoder):
            side.vit.recompute = options.recompute
        if recipe.trains == "decoder":
            model.requires_grad_(False)
            for part in (model.from_quantizer, model.decoder):
                part.requires_grad_(True)
        return model, heads, judge
    except (ValueError, RuntimeError, OverflowError) as error:
        raise _unfit(recipe, error) from error


def new_state(recipe: TokenizerRecipe, frozen: Frozen, options: RunOptions, *, started: bool = True) -> TrainState:
    """The run before its first step, on its device."""
    judge_optimizer = None if recipe.adversarial is None else recipe.adversarial.optimizer
    unshardable = not recipe.optimizer.sharded or (recipe.adversarial and recipe.adversarial.adaptive)
    if options.parallel == "fsdp" and distributed.world_size() > 1 and unshardable:
        raise configs.ConfigError(
            f"recipe {recipe.name}: optimizers like Muon, and the adaptive weight, need parallel 'ddp': they work on "
            "whole matrices.",
            setting="parallel",
        )
    parts = (part.to(options.device) for part in new_parts(recipe, frozen, options, started=started))
    try:
        state = TrainState.of(*parts, recipe.optimizer, judge_optimizer, options.parallel)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise _unfit(recipe, error) from error
    if options.compile:
        state.trained.compile()
    return state


def train(
    recipe: TokenizerRecipe,
    options: RunOptions,
    *,
    frozen: Frozen | None = None,
    hooks: Callable[[Path], list[Hook]] = lambda folder: [],
    finish: Callable[[Tokenizer], dict[str, Any]] = lambda tokenizer: {},
) -> Path:
    """Run a recipe to its end, from its last checkpoint where `options.out` holds one; gives the model's folder.

    `frozen`: networks of one's own for the perceptual and alignment terms, instead of those that the recipe names.

    At the end the EMA weights become the model, its latent statistics are fitted (where its encoder was trained), and
    `finish(tokenizer)` gives figures to store with it.
    """
    source = open_source(recipe.data)
    frozen = frozen or Frozen.of(recipe, options.device, options.pretrained)
    checkpoints = Checkpoints(options.out / "checkpoints")
    state = new_state(recipe, frozen, options, started=not checkpoints.all())
    description = describe_run(recipe, options, source)
    state.model.about = about_of(recipe, options)
    meta = open_run(options.out, description, checkpoints, state, state.model.content())
    log = Log(options.out, state.step, recipe.steps, options.wandb, description)
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
            make_step(recipe, options.precision, frozen),
            checkpoints=checkpoints,
            log=log,
            bad=dict(meta.get("bad_files", {})),
            most_bad=options.most_bad * images_in(source),
            intervals=options.intervals,
            hooks=hooks(options.out),
        )
        tokenizer = Tokenizer(recipe.tokenizer).to(options.device).eval()
        tokenizer.load_state_dict({name: distributed.whole(t) for name, t in state.ema.state_dict().items()})
        return _finish(tokenizer, recipe, options, finish, log)
    finally:
        log.close()


def describe_run(recipe: TokenizerRecipe, options: RunOptions, source: Source | ShardStream) -> dict[str, Any]:
    """What must be the same for a run to be resumed: the recipe's choices, the precision, the images, and the files
    of pretrained networks that were given."""
    choices = {key: value for key, value in configs.to_dict(recipe).items() if key not in ("about", "published")}
    return {
        "recipe": choices,
        "precision": options.precision,
        "compile": options.compile,
        "images": identity(source),
        "pretrained": fingerprints(options.pretrained),
    }


def about_of(recipe: TokenizerRecipe, options: RunOptions) -> dict[str, Any]:
    """Return what is stored with the model of how it was made."""
    return {
        "recipe": json.loads(json.dumps(configs.to_dict(recipe))),
        "command": options.command or recipe.command,
        "precision": options.precision,
        **({"pretrained_files": fingerprints(options.pretrained)} if options.pretrained else {}),
        **recorded_plugins(recipe),
    }


def _finish(
    tokenizer: Tokenizer,
    recipe: TokenizerRecipe,
    options: RunOptions,
    finish: Callable[[Tokenizer], dict[str, Any]],
    log: Log,
) -> Path:
    if recipe.trains == "all":  # else the latents, and so their statistics, are what they were
        log.say("fitting the latent statistics")
        source, size = listing(recipe.data, STATISTICS_IMAGES), tokenizer.config.image_size
        batches = statistics_batches(source, size, STATISTICS_IMAGES, recipe.batch_size)
        mean, std = fit_statistics(tokenizer, (batch.images for batch in batches))
        if (constant := std == 0).any():
            log.say(f"{int(constant.sum())} of {len(std)} latent channels never change: the latents have collapsed")
        tokenizer.set_statistics(mean, torch.where(constant, 1.0, std))
    tokenizer.about = {**about_of(recipe, options), **finish(tokenizer)}
    if distributed.rank() == 0:
        tokenizer.save_pretrained(options.out / "model")
    distributed.barrier()
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
