"""The terms of Eq. 7 for a batch: the tokenizer's side, then the discriminator's.

All randomness is a function of (seed, sample number). Frozen networks are players like the others, but nothing trains
them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from softvq import distributed
from softvq.data.latents import LatentBatch
from softvq.data.loader import Batch
from softvq.losses import adversarial
from softvq.losses.augment import Draws, Views, augmented, draw, draw_views, viewed
from softvq.losses.terms import TERMS, Seen
from softvq.randomness import Stream, rng
from softvq.runtime import autocast
from softvq.tokenizer import Tokenizer
from softvq.training.recipe import TokenizerRecipe
from softvq.training.state import Players

B = TypeVar("B", Batch, LatentBatch)


def deviation(latent: Float[Tensor, "B L D"]) -> Float[Tensor, " D"]:
    """Return each channel's standard deviation over all tokens of all ranks, in float32.

    Gradients flow through it, so that latents gain nothing against noise in its units by growing.
    """
    x = latent.float()
    x = x - distributed.mean(x.mean((0, 1)))
    return (distributed.mean(x.square().mean((0, 1))) + 1e-12).sqrt()


class Tokenizing(nn.Module):
    """A tokenizer and the alignment's projector as one module, whose weights the optimizers change."""

    def __init__(self, model: Tokenizer, projector: nn.Module | None):
        super().__init__()
        self.model, self.projector = model, projector

    @property
    def blocks(self) -> list[nn.Module]:
        """The model's transformer blocks."""
        return self.model.blocks

    def forward(
        self, images: Tensor, noise: Tensor, disturbance: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict, dict, Tensor | None]:
        """Return reconstructions, latents, the quantizer's losses and statistics, and the projector's output.

        `disturbance` is latent noise for the decoder, in units of each channel's deviation over all ranks' batch. The
        projector's output, for the alignment, is None where there is no projector.
        """

        def disturb(latent: Tensor) -> Tensor:
            return latent + disturbance.to(latent.dtype) * deviation(latent).to(latent.dtype)

        output = self.model(images, noise, None if disturbance is None else disturb, distributed.mean)
        latent = output.quantized.latent
        projected = None if self.projector is None else self.projector(latent)
        return output.images, latent, output.quantized.losses, output.quantized.statistics, projected


class Discriminating(nn.Module):
    """The discriminator and LeCAM's averages as one module.

    A call takes several inputs at once, because the reduction of gradients over processes expects one call a step.
    """

    def __init__(self, recipe: TokenizerRecipe, readouts: nn.Module | None):
        super().__init__()
        self.discriminator = recipe.adversarial.discriminator.build(0 if readouts is None else readouts.width)
        self.lecam = adversarial.LeCAM()

    def forward(self, inputs: list[list[Tensor]]) -> list[Tensor]:
        """Return the discriminator's logits for each of the inputs."""
        return [self.discriminator(one) for one in inputs]


def tokenizer_terms(
    players: Players, recipe: TokenizerRecipe, precision: str, batch: Batch, is_adversarial: bool
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Return every term of Eq. 7 for these images, their reconstructions, and the quantizer's statistics.

    `is_adversarial` is True when the discriminator takes part in this step.
    """
    images = batch.images
    noise = posterior_noise(recipe, batch.positions).to(images.device)
    disturbance = disturbances(recipe, batch.positions)
    disturbance = None if disturbance is None else disturbance.to(images.device)
    with autocast(images.device, precision):
        outputs, latent, losses, statistics, projected = players["model"](images, noise, disturbance)
        features = players["teacher"](images) if "teacher" in players else None
        distances = players["perceptual"](outputs, images) if "perceptual" in players else None
    seen = Seen(images, outputs, latent, recipe.reconstruction, distances, features, projected)
    compared = {name: TERMS[name](seen) for name in recipe.terms}
    # The order in which the terms are summed decides the last bit, and runs are to stay what they were.
    terms = {"reconstruction": compared.pop("reconstruction"), **losses}
    terms |= {name: compared.pop(name) for name in ("alignment", "perceptual") if name in compared} | compared
    if recipe.adversarial is not None:
        terms["adversarial"] = torch.zeros((), device=images.device)
    if is_adversarial:
        (draws, views), *_ = augmentations(recipe, batch, (Stream.GENERATOR_FAKE,))
        with autocast(images.device, precision):
            inputs = discriminator_inputs(players, recipe, augmented(outputs, draws), views)
            logits = players["discriminator"].module.discriminator(inputs)
        terms["adversarial"] = adversarial.generator_loss(logits, recipe.adversarial.loss)
    return terms, outputs.detach(), {f"latent/{name}": value for name, value in statistics.items()}


def discriminator_loss(
    players: Players,
    recipe: TokenizerRecipe,
    precision: str,
    batch: Batch,
    fakes: Tensor,
    weights: Mapping[str, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return λ2 · (loss + lecam) + consistency (appendix C.1), and its parts for the log."""
    config = recipe.adversarial
    weak_fake, weak_real, strong_fake, strong_real = augmentations(
        recipe, batch, (Stream.FAKE, Stream.REAL, Stream.STRONG_FAKE, Stream.STRONG_REAL)
    )
    shown = [(fakes, weak_fake), (batch.images, weak_real)]
    if config.consistency:
        shown += [(fakes, strong_fake), (batch.images, strong_real)]
    with torch.no_grad():
        inputs = [
            discriminator_inputs(players, recipe, augmented(images.float(), draws), views)
            for images, (draws, views) in shown
        ]
    with autocast(fakes.device, precision):
        fake, real, *stronger = players["discriminator"](inputs)
    lecam = players["discriminator"].module.lecam
    lecam.update(real.detach(), fake.detach())
    scalars = {
        "discriminator/loss": adversarial.discriminator_loss(real, fake, config.loss),
        "discriminator/lecam": lecam(real, fake),
        "discriminator/real": real.detach().float().mean(),
        "discriminator/fake": fake.detach().float().mean(),
    }
    loss = weights["adversarial"] * (scalars["discriminator/loss"] + config.lecam * scalars["discriminator/lecam"])
    if stronger:
        moved = adversarial.consistency(torch.cat([fake, real]), torch.cat(stronger))
        scalars["discriminator/consistency"] = moved
        loss = loss + config.consistency * moved
    return loss, {name: value.detach() for name, value in scalars.items()}


def discriminator_inputs(players: Players, recipe: TokenizerRecipe, images: Tensor, views: Views) -> list[Tensor]:
    """Return the inputs of the discriminator's trained part: images, or a frozen network's features of their views.

    The features are float32.
    """
    config = recipe.adversarial.discriminator
    if config.backbone is None:
        return [images]
    return list(players["readouts"](viewed(images.float(), views, config.image_size)))


def augmentations(recipe: TokenizerRecipe, batch: Batch, streams: Sequence[Stream]) -> list[tuple[Draws, Views]]:
    """Return DiffAug's random numbers and the view of each sample, one pair for each stream of random numbers.

    The streams are independent of each other. The strong ones apply all of DiffAug, with cutouts of half the side.
    """
    pairs, size = [], (batch.images.shape[2], batch.images.shape[3])
    config = recipe.adversarial.discriminator
    target = size[0] if config.backbone is None else config.image_size
    for stream in streams:
        rngs = [rng(recipe.seed, stream, position) for position in batch.positions]
        strong = stream in (Stream.STRONG_FAKE, Stream.STRONG_REAL)
        draws = draw(rngs, size, 1.0 if strong else recipe.adversarial.augment, 0.5 if strong else 0.2)
        device = batch.images.device
        pairs.append((draws.to(device), draw_views(rngs, size, target).to(device)))
    return pairs


def balance(players: Players, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the adaptive weight of the adversarial term, by the gradients at the decoder's last layer."""
    pixels = sum(weights[name] * terms[name] for name in ("reconstruction", "perceptual") if name in terms)
    return adversarial.adaptive_weight(pixels, terms["adversarial"], players["model"].followed.decoder.last_weight)


def posterior_noise(recipe: TokenizerRecipe, positions: list[int]) -> Float[Tensor, "B L D"]:
    """Return the reparametrisation noise of these sample numbers, the same whatever rank they are on.

    A KL quantizer samples with it.
    """
    shape = (recipe.tokenizer.tokens, recipe.tokenizer.latent_dim)
    draws = [rng(recipe.seed, Stream.POSTERIOR, p).standard_normal(shape, dtype=np.float32) for p in positions]
    return torch.from_numpy(np.stack(draws))


def disturbances(recipe: TokenizerRecipe, positions: list[int]) -> Float[Tensor, "B L D"] | None:
    """Return the latent noise σ ε of these sample numbers, in units of the latents' deviation; None without noise."""
    if not recipe.latent_noise:
        return None
    shape, noise = (recipe.tokenizer.tokens, recipe.tokenizer.latent_dim), []
    for position in positions:
        own = rng(recipe.seed, Stream.LATENT_NOISE, position)
        noise.append(recipe.latent_noise * own.random() * own.standard_normal(shape, dtype=np.float32))
    return torch.from_numpy(np.stack(noise).astype(np.float32))


def add_share(values: dict[str, Tensor], more: Mapping[str, Tensor], count: int) -> None:
    """Add one part's share to `values`, which so become the means over `count` parts."""
    for name, value in more.items():
        values[name] = values.get(name, 0) + value.detach() / count


def parts_of(batch: B, count: int) -> Iterator[tuple[B, bool]]:
    """Yield the batch in `count` equal parts, each with a flag that is True for the last."""
    size = len(batch) // count
    for number in range(count):
        rows = slice(number * size, (number + 1) * size)
        yield batch.part(rows), number == count - 1
