"""What a training run shows and measures: sample grids and validation scores, made here and given to `training`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softvq import distributed
from softvq.data.latents import Latents
from softvq.data.loader import listing, ordered_batches
from softvq.data.sources import Source
from softvq.evaluation.reconstruction import ReconstructionScores, first_percentile, score
from softvq.figures import comparison, enlarge, grid, save_picture
from softvq.pipeline import AnyTokenizer, Pipeline
from softvq.tokenizer import Tokenizer
from softvq.training.generator import GeneratorRecipe, validation_loss
from softvq.training.logs import Log
from softvq.training.loop import Hook
from softvq.training.recipe import TokenizerRecipe
from softvq.training.state import TrainState

_SHOWN = 16  # images of a sample grid, evenly over the validation set


@dataclass(frozen=True)
class Judges:
    """Networks that validation uses besides pixels; None where there is none. See `evaluation.reconstruction.score`."""

    perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    features: Callable[[torch.Tensor], torch.Tensor] | None = None


def sample_hooks(folder: Path, recipe: TokenizerRecipe, every: int, judges: Judges | None = None) -> list[Hook]:
    """A picture of fixed images (validation images where the recipe has them), and scores, with the EMA weights."""
    source = listing(recipe.val) if recipe.val else listing(recipe.data, _SHOWN)
    size = recipe.tokenizer.image_size

    def sample(state: TrainState, log: Log) -> None:
        tokenizer = state.ema
        device = tokenizer.latent_mean.device
        shown = spread(source, size, _SHOWN).to(device)
        with torch.no_grad():
            picture = comparison(shown, tokenizer(shown).images)
        path = folder / "samples" / f"step-{state.step:07d}.png"
        if distributed.rank() == 0:
            save_picture(picture, path)
        log.picture(state.step, "reconstructions", np.asarray(picture))
        if recipe.val is not None:
            found = evaluate(tokenizer, recipe.val, judges=judges).summary()
            log.values(state.step, {f"val/{name}": found[name] for name in _SCORES if name in found})
            words = "  ".join(
                f"{label} {found[name]:.{digits}f}" for name, (label, digits) in _SCORES.items() if name in found
            )
            log.say(f"step {state.step}  val {words}  {path}")

    return [Hook(every, sample)]


def generator_hooks(folder: Path, recipe: GeneratorRecipe, tokenizer: AnyTokenizer, every: int) -> list[Hook]:
    """Samples of all classes with the EMA weights, always of the same noise, and the loss on validation latents."""
    held_out = Latents(recipe.val) if recipe.val else None

    def sample(state: TrainState, log: Log) -> None:
        model = state.ema
        if held_out is not None:
            loss = validation_loss(model, recipe, held_out)
            log.values(state.step, {"val/loss": loss})
            log.say(f"step {state.step}  val loss {loss:.4f}")
        if distributed.world_size() > 1 and any(hasattr(p, "placements") for p in model.parameters()):
            return  # a sharded model is sampled when it is whole: at the end
        pipeline = Pipeline(model.eval(), tokenizer)
        shown = pipeline.tensors(num=_SHOWN, sampling=model.quick_sampling, precision="float32", progress=False)
        path = folder / "samples" / f"step-{state.step:07d}.png"
        picture = grid([enlarge(shown)], ("samples",), rows=4)
        if distributed.rank() == 0:
            save_picture(picture, path)
        log.picture(state.step, "samples", np.asarray(picture))

    return [Hook(every, sample)]


_SCORES = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS", 4), "rfid": ("rFID", 2)}


def evaluate(
    tokenizer: Tokenizer,
    data: str,
    batch_size: int = 32,
    chosen: Sequence[int] | None = None,
    judges: Judges | None = None,
) -> ReconstructionScores:
    """The scores over a data set (or the images chosen from it) at the model's own size."""
    device, size = tokenizer.latent_mean.device, tokenizer.config.image_size
    batches = ordered_batches(listing(data), size=size, batch_size=batch_size, chosen=chosen)
    judges = judges or Judges()
    return score(
        lambda images: tokenizer(images.to(device)).images,
        (batch.images for batch in batches),
        perceptual=judges.perceptual,
        features=judges.features,
    )


def figures_of(tokenizer: Tokenizer, val: str | None, judges: Judges | None = None) -> dict[str, Any]:
    """The figures that are stored with a trained model; `psnr_floor` is the first percentile over validation images."""
    if val is None:
        return {}
    scores = evaluate(tokenizer.eval(), val, judges=judges)
    figures = {**scores.summary(), "data": val, "psnr_floor": first_percentile(scores.psnr)}
    return {"figures": figures, "domain": val}


def spread(source: Source, size: int, count: int) -> torch.Tensor:
    """Up to `count` images, evenly over a source."""
    last = len(source.names) - 1
    chosen = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
    return torch.cat([b.images for b in ordered_batches(source, size=size, batch_size=count, chosen=chosen)])
