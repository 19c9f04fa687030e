"""The hooks of training runs: sample grids and validation scores now and then, with the averaged weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from softvq import distributed
from softvq.data.loader import ordered_batches, spread
from softvq.data.sources import Source
from softvq.evaluation.reconstruction import Features, Perceptual, Scores, first_percentile, score
from softvq.figures import class_grid, comparison, enlarge, save_picture
from softvq.generators.base import Generator
from softvq.models import AnyTokenizer
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
    """Validation images, their name, and the networks that measure them besides pixels (see `score`)."""

    source: Source
    name: str
    perceptual: Perceptual | None = None
    features: Features | None = None

    def scores(self, tokenizer: Tokenizer, batch_size: int = 32) -> Scores:
        """Return the scores of a tokenizer's reconstructions of the images, at its own size."""
        device, size = tokenizer.device, tokenizer.config.image_size
        return score(
            lambda images: tokenizer(images.to(device)).images,
            (batch.images for batch in ordered_batches(self.source, size=size, batch_size=batch_size)),
            perceptual=self.perceptual,
            features=self.features,
        )

    def figures(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return the figures that are stored with a trained model; `psnr_floor` is the first percentile over images."""
        scores = self.scores(tokenizer.eval())
        figures = {**scores.summary(), "data": self.name, "psnr_floor": first_percentile(scores.psnr)}
        return {"figures": figures, "domain": self.name}


def reconstruction_hook(source: Source, size: int, validation: Validation | None, options: RunOptions) -> Hook:
    """Return a hook that draws fixed images of a source and, where there are validation images, measures those."""

    def call(state: TrainState, log: Log) -> None:
        tokenizer = state.players["model"].average
        shown = spread(source, size, SHOWN).to(options.device)
        with torch.no_grad():
            picture = comparison(shown, tokenizer(shown).images)
        path = options.out / "samples" / f"step-{state.step:07d}.png"
        if distributed.rank() == 0:
            save_picture(picture, path)
        log.picture(state.step, "reconstructions", np.asarray(picture))
        if validation is not None:
            scores = validation.scores(tokenizer).summary()
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
            log.values(state.step, {"val/loss": loss})
            log.say(f"step {state.step}  val loss {loss:.4f}")
        if distributed.is_sharded(player.average):
            return  # a sharded model is sampled when it is whole: at the end
        model = player.average.eval()
        pipeline = Pipeline(model, tokenizer)
        shown = pipeline.tensors(num=SHOWN, sampling=model.quick_sampling, precision="float32", progress=False)
        path = options.out / "samples" / f"step-{state.step:07d}.png"
        labels = pipeline.labels(pipeline.request(num=SHOWN), range(SHOWN))
        picture = class_grid(enlarge(shown), pipeline.class_names(labels))
        if distributed.rank() == 0:
            save_picture(picture, path)
        log.picture(state.step, "samples", np.asarray(picture))

    return Hook(options.intervals.samples, call)
