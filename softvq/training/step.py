"""One training step of Eq. 7: the tokenizer's, then the discriminator's.

Randomness is a function of (seed, sample number); frozen networks are arguments, never part of what is trained.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from softvq.config import lookup
from softvq.data.loader import Batch
from softvq.losses import adversarial
from softvq.losses.augment import Draws, Views, augmented, draw, draw_views, viewed
from softvq.losses.terms import TERMS, Seen
from softvq.losses.total import total, weights_at
from softvq.pretrained.named import PERCEPTUAL, TEACHERS
from softvq.pretrained.vit import Readouts, describe, untrained
from softvq.randomness import Stream, rng
from softvq.runtime import Precision, autocast
from softvq.training.recipe import TokenizerRecipe
from softvq.training.state import TrainState
from softvq.training.update import add, finish, set_rate


@dataclass(frozen=True)
class Frozen:
    """The networks that a step uses and nothing changes; None where the recipe has no use for them.

    `perceptual`: (images, targets) in [-1, 1] → a distance each; `readouts`: images → what the discriminator reads.
    """

    teacher: Callable[[Tensor], Tensor] | None = None
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    readouts: Callable[[Tensor], Sequence[Tensor]] | None = None

    @classmethod
    def of(cls, recipe: TokenizerRecipe, device: torch.device, files: Mapping[str, Path] | None = None) -> "Frozen":
        """Those that the recipe names, from local `files` by name, else from the hub."""
        files, config = files or {}, recipe.tokenizer
        teacher = perceptual = readouts = None
        if recipe.alignment is not None:
            name = recipe.alignment.teacher
            make = lookup(TEACHERS, name, "teacher").make
            teacher = make(config.image_size, config.encoder.patch_size, files.get(name), True)
        if (name := recipe.perceptual) is not None:
            perceptual = lookup(PERCEPTUAL, name, "perceptual network").make(files.get(name), True)
        if recipe.adversarial is not None and recipe.adversarial.discriminator.backbone is not None:
            dino = recipe.adversarial.discriminator
            readouts = Readouts.load(dino.backbone, dino.image_size, dino.after, files.get(dino.backbone))
        return cls(*(None if net is None else net.to(device) for net in (teacher, perceptual, readouts)))

    @classmethod
    def untrained(cls, recipe: TokenizerRecipe) -> "Frozen":
        """Networks of the same shapes with whatever weights: to count what a run will cost."""
        config, teacher, perceptual, readouts = recipe.tokenizer, None, None, None
        if recipe.alignment is not None:
            make = lookup(TEACHERS, recipe.alignment.teacher, "teacher").make
            teacher = make(config.image_size, config.encoder.patch_size, None, False)
        if recipe.perceptual is not None:
            perceptual = lookup(PERCEPTUAL, recipe.perceptual, "perceptual network").make(None, False)
        if recipe.adversarial is not None and recipe.adversarial.discriminator.backbone is not None:
            dino = recipe.adversarial.discriminator
            vit = untrained(dino.backbone, dino.image_size, None)
            readouts = Readouts(vit, describe(dino.backbone).statistics, dino.after)
        return cls(teacher, perceptual, readouts)


def make_step(
    recipe: TokenizerRecipe, precision: Precision, frozen: Frozen
) -> Callable[[TrainState, Batch], dict[str, Tensor]]:
    """The function that makes one step: it changes the state and gives named scalars for the log."""

    def step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
        weights = weights_at(state.step, recipe.weights, recipe.schedules)
        playing = weights.get("adversarial", 0) > 0  # before its start the discriminator does not train either
        values: dict[str, Tensor] = {}
        outputs, rate = [], set_rate(recipe.optimizer, state.optimizers, state.step, recipe.steps)
        if recipe.adversarial is not None:
            set_rate(recipe.adversarial.optimizer, state.judge_optimizers, state.step, recipe.steps)
        state.model.train()
        with standing_still(state.judge):
            for part, last in parts_of(batch, recipe.accumulate):
                with nullcontext() if last else state.no_sync():
                    terms, fakes, statistics = tokenizer_terms(state, recipe, precision, frozen, part, playing)
                    if playing and recipe.adversarial.adaptive:
                        terms["adversarial"] = terms["adversarial"] * balance(state, terms, weights)
                    (total(terms, weights) / recipe.accumulate).backward()
                outputs.append((part, fakes))
                add(values, {**{f"loss/{k}": v for k, v in terms.items()}, **statistics}, recipe.accumulate)
        values["loss/total"] = total({k: values[f"loss/{k}"] for k in terms}, weights)
        limit = recipe.optimizer.grad_clip
        values |= finish(state, state.trained, state.optimizers, limit, recipe.skip_above, "tokenizer")
        state.update_ema(recipe.ema_decay, recipe.ema_warmup)
        if playing:
            for (part, fakes), last in zip(outputs, [*[False] * (recipe.accumulate - 1), True], strict=True):
                with nullcontext() if last else state.no_sync():
                    loss, found = discriminator_loss(state, recipe, precision, frozen, part, fakes, weights)
                    (loss / recipe.accumulate).backward()
                add(values, found, recipe.accumulate)
            limit = recipe.adversarial.optimizer.grad_clip
            values |= finish(state, state.judge, state.judge_optimizers, limit, recipe.skip_above, "discriminator")
        return {
            **{name: value.detach() for name, value in values.items()},
            **{f"weight/{name}": torch.tensor(weight) for name, weight in weights.items()},
            "optimizer/lr": torch.tensor(rate),
        }

    return step


def tokenizer_terms(
    state: TrainState, recipe: TokenizerRecipe, precision: Precision, frozen: Frozen, batch: Batch, playing: bool
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Every term of Eq. 7 for these images, their reconstructions, and the quantizer's statistics."""
    images = batch.images
    noise = posterior_noise(recipe, batch.positions).to(images.device)
    disturbance = disturbances(recipe, batch.positions)
    disturbance = None if disturbance is None else disturbance.to(images.device)
    with autocast(images.device, precision):
        outputs, latent, losses, statistics, projected = state.wrapped(images, noise, disturbance)
        features = None if frozen.teacher is None else frozen.teacher(images)
        distances = None if frozen.perceptual is None else frozen.perceptual(outputs, images)
    seen = Seen(images, outputs, latent, recipe.reconstruction, distances, features, projected)
    compared = {name: TERMS[name](seen) for name in recipe.terms}
    terms = {"reconstruction": compared.pop("reconstruction"), **losses}
    terms |= {name: compared.pop(name) for name in ("alignment", "perceptual") if name in compared} | compared
    if recipe.adversarial is not None:
        terms["adversarial"] = torch.zeros((), device=images.device)
    if playing:
        (draws, views), *_ = looks(recipe, batch, (Stream.GENERATOR_FAKE,))
        with autocast(images.device, precision):
            logits = state.judge["discriminator"](reads(recipe, frozen, augmented(outputs, draws), views))
        terms["adversarial"] = adversarial.generator_loss(logits, recipe.adversarial.loss)
    return terms, outputs.detach(), {f"latent/{name}": value for name, value in statistics.items()}


def discriminator_loss(
    state: TrainState,
    recipe: TokenizerRecipe,
    precision: Precision,
    frozen: Frozen,
    batch: Batch,
    fakes: Tensor,
    weights: Mapping[str, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """λ2 · (loss + lecam) + consistency (appendix C.1), and what is logged of it."""
    config = recipe.adversarial
    weak_fake, weak_real, strong_fake, strong_real = looks(
        recipe, batch, (Stream.FAKE, Stream.REAL, Stream.STRONG_FAKE, Stream.STRONG_REAL)
    )
    shown = [(fakes, weak_fake), (batch.images, weak_real)]
    if config.consistency:
        shown += [(fakes, strong_fake), (batch.images, strong_real)]
    with torch.no_grad():
        seen = [reads(recipe, frozen, augmented(images.float(), draws), views) for images, (draws, views) in shown]
    with autocast(fakes.device, precision):
        fake, real, *stronger = state.wrapped_judge(seen)
    lecam = state.judge["lecam"]
    lecam.update(real.detach(), fake.detach())
    found = {
        "discriminator/loss": adversarial.discriminator_loss(real, fake, config.loss),
        "discriminator/lecam": lecam(real, fake),
        "discriminator/real": real.detach().float().mean(),
        "discriminator/fake": fake.detach().float().mean(),
    }
    loss = weights["adversarial"] * (found["discriminator/loss"] + config.lecam * found["discriminator/lecam"])
    if stronger:
        moved = adversarial.consistency(torch.cat([fake, real]), torch.cat(stronger))
        found["discriminator/consistency"] = moved
        loss = loss + config.consistency * moved
    return loss, {name: value.detach() for name, value in found.items()}


def reads(recipe: TokenizerRecipe, frozen: Frozen, images: Tensor, views: Views) -> list[Tensor]:
    """What the discriminator's trained part reads: the images, or a frozen network's float32 features of a view."""
    config = recipe.adversarial.discriminator
    if config.backbone is None:
        return [images]
    return list(frozen.readouts(viewed(images.float(), views, config.image_size)))


def looks(recipe: TokenizerRecipe, batch: Batch, streams: Sequence[Stream]) -> list[tuple[Draws, Views]]:
    """What DiffAug does, and which view is taken, for each sample: of streams of random numbers apart from each other.

    The strong streams take all of DiffAug, with cutouts of half the side."""
    found, size = [], (batch.images.shape[2], batch.images.shape[3])
    config = recipe.adversarial.discriminator
    target = size[0] if config.backbone is None else config.image_size
    for stream in streams:
        rngs = [rng(recipe.seed, stream, position) for position in batch.positions]
        strong = stream in (Stream.STRONG_FAKE, Stream.STRONG_REAL)
        draws = draw(rngs, size, 1.0 if strong else recipe.adversarial.augment, 0.5 if strong else 0.2)
        device = batch.images.device
        found.append((draws.to(device), draw_views(rngs, size, target).to(device)))
    return found


def balance(state: TrainState, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The adaptive weight of the adversarial term."""
    pixels = sum(weights[name] * terms[name] for name in ("reconstruction", "perceptual") if name in terms)
    return adversarial.adaptive_weight(pixels, terms["adversarial"], state.model.decoder.last_weight)


def posterior_noise(recipe: TokenizerRecipe, positions: list[int]) -> Float[Tensor, "B L D"]:
    """The reparametrisation noise of these sample numbers (KL samples with it), whatever rank they are on."""
    shape = (recipe.tokenizer.tokens, recipe.tokenizer.latent_dim)
    draws = [rng(recipe.seed, Stream.POSTERIOR, p).standard_normal(shape, dtype=np.float32) for p in positions]
    return torch.from_numpy(np.stack(draws))


def disturbances(recipe: TokenizerRecipe, positions: list[int]) -> Float[Tensor, "B L D"] | None:
    """The latent noise σ ε of these sample numbers, in units of the latents' deviation; None where there is none."""
    if not recipe.latent_noise:
        return None
    shape, found = (recipe.tokenizer.tokens, recipe.tokenizer.latent_dim), []
    for position in positions:
        own = rng(recipe.seed, Stream.LATENT_NOISE, position)
        found.append(recipe.latent_noise * own.random() * own.standard_normal(shape, dtype=np.float32))
    return torch.from_numpy(np.stack(found).astype(np.float32))


def parts_of(batch: Batch, count: int) -> Iterator[tuple[Batch, bool]]:
    """The batch in `count` equal parts, and whether each is the last."""
    size = len(batch.images) // count
    for number in range(count):
        rows = slice(number * size, (number + 1) * size)
        part = Batch(batch.images[rows], batch.labels[rows], batch.names[rows], batch.positions[rows], {})
        yield part, number == count - 1


@contextmanager
def standing_still(module: nn.Module):
    """A module's weights get no gradient, and its spectral norms do not move, for the block's time."""
    module.requires_grad_(False).eval()
    try:
        yield
    finally:
        module.requires_grad_(True).train()
