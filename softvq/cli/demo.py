"""Reconstruct the bundled validation images with the bundled tokenizer: no network, no GPU, no download.

Writes the picture and prints PSNR and SSIM beside PCA and box-downsampling with the same number of floats.
--train first trains the small recipe from scratch for some minutes and uses the result.
"""

import argparse
from pathlib import Path
from typing import Any

from softvq.cli.main import Parser, Usage, common_options
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

    from softvq.cli.hooks import spread
    from softvq.cli.models import Runner
    from softvq.data.loader import ordered_batches
    from softvq.data.sources import open_listed
    from softvq.evaluation.metrics import CONVENTION
    from softvq.evaluation.reconstruction import score
    from softvq.figures import comparison, save_picture

    if options.steps is not None and not options.train:
        raise Usage("--steps goes with --train")
    options.model = _train(options) if options.train else BUNDLED_TOKENIZER
    runner = Runner(options)
    source = open_listed("emoji-val")
    scores = score(
        lambda images: runner.decode(runner.encode(images)),
        (batch.images for batch in ordered_batches(source, size=runner.size, batch_size=28)),
    )
    shown = spread(source, runner.size, _SHOWN)
    picture = options.out / "reconstruction.png"
    save_picture(comparison(shown, runner.decode(runner.encode(shown))), picture)
    means = scores.summary()
    rows = [{"method": f"softvq ({options.model})", **means}, *yardsticks(runner.size, runner.latent_floats)]
    result = {
        "model": str(options.model),
        "size": runner.size,
        "latent_floats": runner.latent_floats,
        "compression": 3 * runner.size**2 / runner.latent_floats,
        "rows": rows,
        "convention": CONVENTION,
        "picture": str(picture),
        "torch": torch.__version__,
    }
    if not options.json:
        print_table(result)
    return result


def _train(options: argparse.Namespace) -> str:
    """Train the quick recipe as `softvq train` does; gives the model's folder."""
    from softvq.cli import train

    steps = [] if options.steps is None else ["--steps", str(options.steps)]
    parser = Parser(parents=[common_options()])
    train.configure(parser)
    own = ["--out", str(options.out / "run"), "--sample-every", "200", "--workers", str(options.workers)]
    shared = ["--device", options.device, "--precision", options.precision, "--json"]
    chosen = parser.parse_args(["tokenizer", _RECIPE, *own, *shared])
    chosen.extra = steps
    return train.run(chosen)["model"]


def yardsticks(size: int, floats: int) -> list[dict[str, Any]]:
    """The shipped figures of PCA and box-downsampling at this size and number of floats (none for others)."""
    from softvq.data.sources import EMOJI
    from softvq.files import read_json

    rows = read_json(EMOJI.parent / "yardsticks.json")["rows"]
    return [row for row in rows if (row["size"], row["floats"]) == (size, floats)]


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
