"""Reconstruct the bundled validation images with the bundled tokenizer: no network, no GPU, no download.

Writes the picture and prints PSNR and SSIM beside PCA and box-downsampling with the same number of floats.
--train first trains the small recipe from scratch for some minutes and uses the result.
"""

import argparse
from pathlib import Path
from typing import Any

from softvq.cli.main import Usage
from softvq.cli.options import BUNDLED_TOKENIZER

_RECIPE = "emoji-64-quick"
_SHOWN = 32


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", action="store_true", help=f"train {_RECIPE} from scratch first (some minutes)")
    parser.add_argument("--steps", type=int, help="with --train: how many steps (default: the recipe's)")
    parser.add_argument(
        "--out", type=Path, default=Path("softvq-demo"), help="the folder to write (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="with --train: processes that decode images (default: 2)"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from softvq.data.loader import ordered_batches
    from softvq.data.opening import open_source
    from softvq.evaluation.comparison import yardsticks
    from softvq.evaluation.metrics import CONVENTION
    from softvq.evaluation.reconstruction import score
    from softvq.figures import comparison, save_picture
    from softvq.models import Coder, load_tokenizer
    from softvq.runtime import pick_device
    from softvq.training.hooks import spread

    if options.steps is not None and not options.train:
        raise Usage("--steps goes with --train")
    model = _train(options) if options.train else BUNDLED_TOKENIZER
    coder = Coder(load_tokenizer(model).to(pick_device(options.device)), options.precision)
    source, size = open_source("emoji-val"), coder.tokenizer.config.image_size
    scores = score(
        lambda images: coder.decode(coder.encode(images)),
        (batch.images for batch in ordered_batches(source, size=size, batch_size=28)),
    )
    shown = spread(source, size, _SHOWN)
    picture = options.out / "reconstruction.png"
    save_picture(comparison(shown, coder.decode(coder.encode(shown))), picture)
    rows = [{"method": f"softvq ({model})", **scores.summary()}, *yardsticks(size, coder.latent_floats)]
    result = {
        "model": str(model),
        "size": size,
        "latent_floats": coder.latent_floats,
        "compression": 3 * size**2 / coder.latent_floats,
        "rows": rows,
        "convention": CONVENTION,
        "picture": str(picture),
        "torch": torch.__version__,
    }
    if not options.json:
        print_table(result)
    return result


def _train(options: argparse.Namespace) -> str:
    """Train the quick recipe; return the model's folder."""
    from softvq.recipes.opening import open_recipe
    from softvq.training.options import Intervals, RunOptions
    from softvq.training.run import train
    from softvq.training.tokenizer import TokenizerTask

    recipe = open_recipe(_RECIPE, changes={} if options.steps is None else {"steps": options.steps})
    own = RunOptions(
        options.out / "run",
        options.device,
        options.precision,
        workers=options.workers,
        intervals=Intervals(samples=200),
    )
    return str(train(TokenizerTask(recipe), own))


def print_table(result: dict[str, Any]) -> None:
    rows = result["rows"]
    width = max(len(row["method"]) for row in rows)
    print(f"\n{rows[0]['images']} bundled validation images, {result['size']}×{result['size']} pixels,", end=" ")
    print(f"{result['latent_floats']} floats each ({result['compression']:.0f}× fewer numbers)\n")
    print(f"{'':{width}}  PSNR dB    SSIM")
    for row in rows:
        print(f"{row['method']:{width}}  {row['psnr']:7.2f}  {row['ssim']:.4f}")
    print(f"\n{result['convention']}.\nPCA and box-downsampling: python benchmarks/yardsticks.py")
    print(f"picture: {result['picture']}")
