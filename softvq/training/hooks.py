"""The hooks of training runs: sample grids and validation scores now and then, with the averaged weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softvq import distributed
from softvq.data.loader import ordered_batches, spread
from softvq.data.order import evenly
from softvq.data.sources import Source
from softvq.errors import ImageError, ModelError, TrainingError
from softvq.evaluation.comparison import domain_limits, joined, looks
from softvq.evaluation.reconstruction import Features, Perceptual, Scores, first_percentile, score
from softvq.figures import class_grid, comparison, enlarge, save_picture
from softvq.generators.base import Generator
from softvq.models import AnyTokenizer, check_finite
from softvq.pipeline import Pipeline
from softvq.tokenizer import Tokenizer
from softvq.training.logs import Log
from softvq.training.options import RunOptions
from softvq.training.state import TrainState
from softvq.training.task import Hook

SHOWN = 16  # images of a sample grid, evenly over the validation set
_SCORES = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS", 4), "rfid": ("rFID", 2)}


@dataclass(frozen=True)
class Validation:
    """Validation images, their name, and the networks that measure them besides pixels (see `score`).

    `images` is the number of them that are measured, spread evenly over all and always the same (None: all).
    """

    source: Source
    name: str
    images: int | None = None
    perceptual: Perceptual | None = None
    features: Features | None = None

    def scores(
        self, tokenizer: Tokenizer, batch_size: int = 32, see: Callable[[Tensor], object] | None = None
    ) -> Scores:
        """Return the scores of a tokenizer's reconstructions of the images, at its own size; `see` gets each batch."""
        device, size = tokenizer.device, tokenizer.config.image_size
        count = len(self.source.names)
        chosen = evenly(self.images or count, count)

        def reconstructed(images: Tensor) -> Tensor:
            if see is not None:
                see(images)
            return check_finite(tokenizer(images.to(device)).images, "the reconstructions")

        return score(
            reconstructed,
            (batch.images for batch in ordered_batches(self.source, size=size, batch_size=batch_size, chosen=chosen)),
            perceptual=self.perceptual,
            features=self.features,
        )

    def figures(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return what is stored of the images with a trained model: its figures, and what it knows.

        `psnr_floor` is the first percentile over images; `domain` is their name, and `domain_limits` say what they look
        like (see `evaluation.comparison.domain_limits`).
        """
        described: list[dict[str, Tensor]] = []
        scores = self.scores(tokenizer.eval(), see=lambda images: described.append(looks(images)))
        figures = {**scores.summary(), "data": self.name, "psnr_floor": first_percentile(scores.psnr)}
        return {"figures": figures, "domain": self.name, "domain_limits": domain_limits(joined(described))}


def reconstruction_hook(source: Source, size: int, validation: Validation | None, options: RunOptions) -> Hook:
    """Return a hook that draws fixed images of a source and, where there are validation images, measures those."""

    def call(state: TrainState, log: Log) -> None:
        tokenizer = state.players["model"].average
        shown = spread(source, size, SHOWN).to(options.device)
        with torch.no_grad(), _stopping(state.step):
            picture = comparison(shown, check_finite(tokenizer(shown).images, "the reconstructions"))
        path = options.out / "samples" / f"step-{state.step:07d}.png"
        if distributed.rank() == 0:
            save_picture(picture, path)
        log.picture(state.step, "reconstructions", np.asarray(picture))
        if validation is not None:
            with _stopping(state.step):
                scores = validation.scores(tokenizer).summary()
            _check_scores(state.step, {name: scores[name] for name in _SCORES if name in scores})
            log.values(state.step, {f"val/{name}": scores[name] for name in _SCORES if name in scores})
            words = "  ".join(
                f"{label} {scores[name]:.{digits}f}" for name, (label, digits) in _SCORES.items() if name in scores
            )
            log.say(f"step {state.step}  val {words}  {path}")

    return Hook(options.intervals.samples, call)


def sample_hook(
    tokenizer: AnyTokenizer, held_out_loss: Callable[[Generator], float] | None, options: RunOptions
) -> Hook:
    """Return a hook that draws samples of all classes, always from the same noise.

    It also measures the loss on held-out latents where there are some.
    """

    def call(state: TrainState, log: Log) -> None:
        player = state.players["model"]
        if held_out_loss is not None:
            loss = held_out_loss(player.average)
            _check_scores(state.step, {"loss": loss})
            log.values(state.step, {"val/loss": loss})
            log.say(f"step {state.step}  val loss {loss:.4f}")
        if distributed.is_sharded(player.average):
            return  # a sharded model is sampled when it is whole: at the end
        model = player.average.eval()
        pipeline = Pipeline(model, tokenizer)
        with _stopping(state.step):
            shown = pipeline.tensors(num=SHOWN, sampling=model.quick_sampling, precision="float32", progress=False)
        path = options.out / "samples" / f"step-{state.step:07d}.png"
        labels = pipeline.labels(pipeline.request(num=SHOWN), range(SHOWN))
        picture = class_grid(enlarge(shown), pipeline.class_names(labels))
        if distributed.rank() == 0:
            save_picture(picture, path)
        log.picture(state.step, "samples", np.asarray(picture))

    return Hook(options.intervals.samples, call)


@contextmanager
def _stopping(step: int) -> Iterator[None]:
    """Open a block that stops the run when a network's output in it is not finite; it reads no models and images."""
    try:
        yield
    except (ModelError, ImageError) as error:
        raise _broken(step, str(error).partition(":")[0]) from error


def _check_scores(step: int, scores: Mapping[str, float]) -> None:
    """Raise `TrainingError` when a score is not finite; but PSNR is infinite where images are equal."""
    for name, value in scores.items():
        if math.isnan(value) or (math.isinf(value) and name != "psnr"):
            raise _broken(step, f"the validation {_SCORES.get(name, (name,))[0]} is {value}")


def _broken(step: int, what: str) -> TrainingError:
    return TrainingError(
        f"step {step}: {what}, with the averaged weights; the run is kept as of its last checkpoint. "
        "Lower the learning rate, or use float32.",
        setting="precision",
    )
