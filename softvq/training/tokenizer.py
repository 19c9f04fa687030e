"""The training of a tokenizer: its players, a step of Eq. 7, and the latent statistics that it ends with."""

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softvq import config as configs
from softvq import distributed, progress
from softvq.config import lookup
from softvq.data.loader import Batch, training_batches
from softvq.data.opening import listing, open_source
from softvq.data.sources import Source
from softvq.errors import ModelError, counted
from softvq.evaluation.reconstruction import Features
from softvq.files import checksum
from softvq.losses.alignment import Projector
from softvq.losses.total import total, weights_at
from softvq.pretrained.inception import Inception
from softvq.pretrained.lpips import LPIPS
from softvq.pretrained.named import PERCEPTUAL, TEACHERS, check_used
from softvq.pretrained.vit import Readouts, describe, load, untrained
from softvq.quantizers.base import check_quantized
from softvq.statistics import fit_statistics, statistics_batches
from softvq.tokenizer import Tokenizer
from softvq.training.hooks import SHOWN, Validation, reconstruction_hook
from softvq.training.initialise import check_encoder, encoder_start, local_start, model_start
from softvq.training.player import Player
from softvq.training.recipe import TokenizerRecipe
from softvq.training.state import Players
from softvq.training.step import (
    Discriminating,
    Tokenizing,
    add_share,
    balance,
    discriminator_loss,
    parts_of,
    tokenizer_terms,
)
from softvq.training.task import Hook, Task, check_recipe

STATISTICS_IMAGES = 10_000  # enough for a standard error of 0.1 % at 64 tokens an image
_LEAST_STATISTICS_IMAGES, _STATISTICS_BATCH = 512, 64


class TokenizerTask(Task):
    """A tokenizer's training run, or, with `trains` "decoder" in its recipe, the phase that trains the decoder alone.

    `data` and `val` are images that replace those named in the recipe: anything that `data.open_source` takes, such as
    a torch `Dataset`. `networks` are frozen networks of the user's own, by the names `teacher`, `perceptual` or
    `readouts`, that replace those named in the recipe. `rfid` is the name of a feature network with which validation
    measures rFID.
    """

    kind = "tokenizer"

    def __init__(
        self,
        recipe: TokenizerRecipe,
        data: Any = None,
        val: Any = None,
        *,
        networks: Mapping[str, nn.Module] | None = None,
        rfid: str | None = None,
    ):
        check_recipe(recipe, TokenizerRecipe, "a tokenizer")
        if data is not None:
            recipe = replace(recipe, data=_named(data), val=None if val is None else _named(val))
        elif val is not None:
            recipe = replace(recipe, val=_named(val))
        super().__init__(recipe)
        self._data, self._val = data, val
        self.networks, self.rfid = networks or {}, rfid
        self._inception: Features | None = None
        if rfid is not None and self.recipe.val is None:
            raise configs.ConfigError("rFID needs validation images; name some.", setting="val")

    @property
    def latent_shape(self) -> tuple[int, int]:
        """The number of tokens of an image, and of numbers of a token."""
        return self.recipe.tokenizer.tokens, self.recipe.tokenizer.latent_dim

    @cached_property
    def source(self) -> Source:
        """The training images."""
        return open_source(self.recipe.data if self._data is None else self._data)

    @cached_property
    def held_out(self) -> Source | None:
        """The validation images, None where there are none."""
        val = self.recipe.val if self._val is None else self._val
        return None if val is None else listing(val, self.options.val_images)

    def _validation(self, players: Players) -> Validation | None:
        """Return the validation images with the networks that measure them besides pixels; None without images."""
        if self.held_out is None:
            return None
        perceptual = players["perceptual"].module if "perceptual" in players else None
        if self.rfid is not None and self._inception is None:
            file = self.options.pretrained.get(self.rfid)
            network = Inception.load(self.rfid, file).to(self.options.device)
            self._inception = lambda images: {"pool": network(images)}
        is_lpips = isinstance(perceptual, LPIPS)
        perceptual = perceptual if is_lpips else None
        return Validation(self.held_out, self.recipe.val, self.options.val_images, perceptual, self._inception)

    def build(self, weights: bool = True) -> Players:
        """Return the players before the first step: `model`, a `discriminator` where there is one, and frozen networks.

        Raise `ConfigError` when the recipe's parts do not fit each other, or need `parallel` "ddp".
        """
        recipe, options = self.recipe, self.options
        is_adaptive = recipe.adversarial is not None and recipe.adversarial.adaptive
        if options.is_sharded and (is_adaptive or not recipe.optimizer.sharded):
            raise configs.ConfigError(
                f"recipe {recipe.name}: optimizers like Muon, and the adaptive weight, need parallel 'ddp': they work "
                "on whole matrices.",
                setting="parallel",
            )
        frozen = frozen_networks(recipe, options.pretrained, weights, self.networks) | dict(self.networks)
        model = new_tokenizer(recipe, options.pretrained, started=weights and not self.resumes)
        # Copying tensors without contents corrupts memory.
        average = copy.deepcopy(model) if weights else new_tokenizer(recipe, started=False)
        with _as_config_error(recipe), torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            projector = None
            if (aligned := recipe.alignment) is not None:
                projector = Projector(recipe.tokenizer.latent_dim, aligned.hidden, frozen["teacher"].width)
            rival = None if recipe.adversarial is None else Discriminating(recipe, frozen.get("readouts"))
        for side in (model.encoder, model.decoder):
            side.vit.recompute = options.recompute
        if recipe.trains == "decoder":
            model.requires_grad_(False)
            for part in (model.from_quantizer, model.decoder):
                part.requires_grad_(True)
        players = {"model": Player(Tokenizing(model, projector), recipe.optimizer, average=average, followed=model)}
        if rival is not None:
            players["discriminator"] = Player(rival, recipe.adversarial.optimizer)
        return players | {name: Player(network) for name, network in frozen.items()}

    def batches(self, start: int) -> Iterator[Batch]:
        """Return endless batches of augmented training images from step `start` on, this process's share of each."""
        recipe = self.recipe
        self.say(f"training on {counted(len(self.source), 'image')} of {recipe.data}")
        return training_batches(
            self.source,
            size=recipe.tokenizer.image_size,
            batch_size=recipe.batch_size,
            augment=recipe.augment,
            seed=recipe.seed,
            start_step=start,
            workers=self.options.workers,
            parts=recipe.accumulate,
        )

    def step(self, players: Players, batch: Batch) -> dict[str, Tensor]:
        """Make a step of Eq. 7 for the tokenizer and, from its start on, for the discriminator; return log scalars."""
        recipe, precision, model = self.recipe, self.options.precision, players["model"]
        weights = weights_at(batch.step, recipe.weights, recipe.schedules)
        # Before its start the discriminator does not train either.
        discriminator = players["discriminator"] if weights.get("adversarial", 0) > 0 else None
        values: dict[str, Tensor] = {}
        fakes: list[Tensor] = []
        rate = model.set_rate(batch.step, recipe.steps)
        model.module.train()
        with nullcontext() if "discriminator" not in players else players["discriminator"].frozen():
            for part, last in parts_of(batch, recipe.accumulate):
                with nullcontext() if last else model.unsynchronised():
                    terms, images, statistics = tokenizer_terms(
                        players, recipe, precision, part, discriminator is not None
                    )
                    if discriminator is not None and recipe.adversarial.adaptive:
                        terms["adversarial"] = terms["adversarial"] * balance(players, terms, weights)
                    (total(terms, weights) / recipe.accumulate).backward()
                fakes.append(images)
                add_share(values, {**{f"loss/{k}": v for k, v in terms.items()}, **statistics}, recipe.accumulate)
        values["loss/total"] = total({k: values[f"loss/{k}"] for k in terms}, weights)
        norm, spike = model.update(recipe.skip_above)
        values["optimizer/gradient_norm"] = norm
        if recipe.skip_above is not None:
            values["optimizer/tokenizer_skipped"] = torch.tensor(float(spike))
        model.update_average(recipe.ema_decay, batch.step, recipe.ema_warmup)
        if discriminator is not None:
            values |= self._discriminate(players, batch, fakes, weights)
        return {
            **{name: value.detach() for name, value in values.items()},
            **{f"weight/{name}": torch.tensor(weight) for name, weight in weights.items()},
            "optimizer/lr": torch.tensor(rate),
        }

    def _discriminate(
        self, players: Players, batch: Batch, fakes: list[Tensor], weights: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Make the discriminator's step, on the images that the tokenizer has just made; return its log scalars."""
        recipe, discriminator = self.recipe, players["discriminator"]
        values: dict[str, Tensor] = {}
        discriminator.set_rate(batch.step, recipe.steps)
        for (part, last), images in zip(parts_of(batch, recipe.accumulate), fakes, strict=True):
            with nullcontext() if last else discriminator.unsynchronised():
                loss, scalars = discriminator_loss(players, recipe, self.options.precision, part, images, weights)
                (loss / recipe.accumulate).backward()
            add_share(values, scalars, recipe.accumulate)
        values["optimizer/discriminator_gradient_norm"], spike = discriminator.update(recipe.skip_above)
        if recipe.skip_above is not None:
            values["optimizer/discriminator_skipped"] = torch.tensor(float(spike))
        return values

    def finish(self, players: Players) -> Tokenizer:
        """Return the average's weights as a tokenizer, its latent statistics fitted where its encoder was trained."""
        recipe, options = self.recipe, self.options
        tokenizer = Tokenizer(recipe.tokenizer)
        average = players["model"].average
        tokenizer.load_state_dict({name: distributed.whole(t).cpu() for name, t in average.state_dict().items()})
        tokenizer.to(options.device).eval()
        if recipe.trains == "all":  # else the latents, and so their statistics, are what they were
            seen = recipe.steps * recipe.batch_size  # a trial of a few steps is not worth thousands of images
            images = min(STATISTICS_IMAGES, max(_LEAST_STATISTICS_IMAGES, seen))
            source = self.source.listing(images)
            size, batch_size = recipe.tokenizer.image_size, max(recipe.batch_size, _STATISTICS_BATCH)
            with progress.bar(min(images, len(source.names)), "image", "fitting the latent statistics") as done:

                def counted_images() -> Iterator[Tensor]:
                    for batch in statistics_batches(source, size, images, batch_size):
                        yield batch.images
                        done(len(batch) + len(batch.bad))

                mean, std = fit_statistics(tokenizer, counted_images())
            if (constant := std == 0).any():
                self.say(
                    f"{int(constant.sum())} of {len(std)} latent channels never change: the latents have collapsed"
                )
            tokenizer.set_statistics(mean, torch.where(constant, 1.0, std))
        tokenizer.about = self.about()
        if (validation := self._validation(players)) is not None:
            tokenizer.about |= validation.figures(tokenizer)
        return tokenizer

    def prepare(self) -> None:
        """Open the training and the validation images.

        Raise `ConfigError` when the run's folder lies inside that of its images, or a file is given for a network that
        the run does not use.
        """
        check_used(self.options.pretrained, [*self.recipe.networks, *([self.rfid] if self.rfid else [])])
        for source in (self.source, self.held_out):
            if source is not None and source.holds(self.options.out):
                raise configs.ConfigError(
                    f"the run's folder {self.options.out} lies inside its images' folder, and its pictures would "
                    "become images of the run; use another folder.",
                    setting="out",
                )

    def describe(self) -> dict[str, Any]:
        """Return what a resumed run must share: the recipe's choices, precision, images and pretrained networks."""
        left_out = ("about", "published", "steps")
        choices = {key: value for key, value in configs.to_dict(self.recipe).items() if key not in left_out}
        return {
            "recipe": choices,
            "precision": self.options.precision,
            "compile": self.options.compile,
            "images": self.source.identity,
            "pretrained": self._pretrained(),
        }

    def about(self) -> dict[str, Any]:
        """Return the record of how the model was made, with the checksums of the pretrained networks' files."""
        return {**super().about(), **({"pretrained_files": self._pretrained()} if self._pretrained() else {})}

    def _pretrained(self) -> dict[str, str]:
        """Return the checksums of the local network files that the result depends on, by the network's name."""
        return {name: checksum(path) for name, path in self.options.pretrained.items() if name != self.rfid}

    def images(self) -> int:
        """Return the number of training images, for streamed ones about."""
        return len(self.source)

    def hooks(self, players: Players) -> list[Hook]:
        """Return the hook that shows reconstructions and, where there are validation images, measures them."""
        shown = self.source.listing(SHOWN) if self.held_out is None else self.held_out
        size = self.recipe.tokenizer.image_size
        return [reconstruction_hook(shown, size, self._validation(players), self.options)]

    def example(self, rows: int) -> Batch:
        """Return a batch of `rows` blank images, for a step at which every term of the loss has started."""
        size = self.recipe.tokenizer.image_size
        start = max((schedule.start for schedule in self.recipe.schedules.values()), default=0)
        labels = torch.zeros(rows, dtype=torch.long)
        return Batch(torch.zeros(rows, 3, size, size), labels, [""] * rows, [0] * rows, {}, start)


def new_tokenizer(
    recipe: TokenizerRecipe, pretrained: Mapping[str, Path] | None = None, *, started: bool = True
) -> Tokenizer:
    """Return the recipe's tokenizer before its first step, a function of the recipe and the weights it names alone.

    Without `started`, pretrained weights are not loaded, because a checkpoint will replace them. Raise `ConfigError`
    when the recipe's parts do not fit each other: weights of other loss terms than it has, or an encoder whose
    architecture is not that of the pretrained ViT it starts as.
    """
    name, config = recipe.encoder_weights, recipe.tokenizer
    with _as_config_error(recipe):
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
    return tokenizer


def frozen_networks(
    recipe: TokenizerRecipe, files: Mapping[str, Path], weights: bool = True, given: Collection[str] = ()
) -> dict[str, nn.Module]:
    """Return the networks that a step of the recipe uses and that nothing trains, without those in `given`.

    They are `teacher` (images → features), `perceptual` ((images, targets) → a distance each) and `readouts` (images →
    the features that the discriminator reads). Their weights come from local `files` by name, else from the hub;
    without `weights` none are loaded, and the networks have the same shapes alone.
    """
    config, networks = recipe.tokenizer, {}
    size, patch = config.image_size, config.encoder.patch_size
    if recipe.alignment is not None and "teacher" not in given:
        name = recipe.alignment.teacher
        networks["teacher"] = lookup(TEACHERS, name, "teacher").make(size, patch, files.get(name), weights)
    if (name := recipe.perceptual) is not None and "perceptual" not in given:
        networks["perceptual"] = lookup(PERCEPTUAL, name, "perceptual network").make(files.get(name), weights)
    dino = None if recipe.adversarial is None else recipe.adversarial.discriminator
    if dino is not None and dino.backbone is not None and "readouts" not in given:
        if weights:
            networks["readouts"] = Readouts.load(dino.backbone, dino.image_size, dino.after, files.get(dino.backbone))
        else:
            vit = untrained(dino.backbone, dino.image_size, None)
            networks["readouts"] = Readouts(vit, describe(dino.backbone).statistics, dino.after)
    return networks


@contextmanager
def _as_config_error(recipe: TokenizerRecipe) -> Iterator[None]:
    """Open a block in which the parts of a recipe are made, and raise `ConfigError` when they do not fit together."""
    try:
        yield
    except ModelError:  # already a sentence, about the pretrained weights
        raise
    except (ValueError, RuntimeError, OverflowError) as error:  # torch on sizes that no memory holds
        raise configs.ConfigError(f"recipe {recipe.name}: {str(error).strip().splitlines()[0]}") from error


def _named(data: Any) -> str:
    """Return the name by which a recipe records the images given."""
    return str(data) if isinstance(data, str | Path) else str(open_source(data))
