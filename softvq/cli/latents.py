"""Look at a tokenizer's latent space: UMAP of ẑ and z (Fig. 4), codebook usage and distances, channel statistics.

  softvq latents                                                  the bundled tokenizer on the bundled images
  softvq latents --model SoftVQVAE/softvq-l-64 --data imagenet/val --classes 20 --num 5000

ẑ is what the encoder gives, z what the decoder gets. Each point is an image: all its tokens, beside each other. Writes
pictures and a JSON file into --out. Needs pip install 'softvq[plots]'.
"""

import argparse
from pathlib import Path
from typing import Any

from softvq.cli.options import add_model_option
from softvq.cli.results import measuring_settings, written


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_option(parser)
    add = parser.add_argument
    add("--data", default="emoji", help="images (default: emoji)")
    add("-n", "--num", type=int, default=2000, help="how many images, evenly over them (default: 2000)")
    add("--classes", type=int, default=20, help="of the first so many classes (default: 20)")
    add("--batch", "--batch-size", dest="batch", type=int, default=64, help="images at a time (default: 64)")
    add("--workers", type=int, default=2, help="processes that decode images (default: 2)")
    add("--seed", type=int, default=0, help="of UMAP")
    add("--out", type=Path, help="the folder to write (default: evaluations/latents-MODEL)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq.evaluation.latent_space import latent_space

    options.out = options.out or Path("evaluations") / f"latents-{Path(options.model).name}"
    result = latent_space(
        options.model,
        options.data,
        num=options.num,
        classes=options.classes,
        seed=options.seed,
        **measuring_settings(options),
    )
    return written(options, result, show)


def show(result: dict[str, Any]) -> None:
    for name, value in result["scores"].items():
        print(f"{name:24} {value:10.4f}")
    print("\n".join(result["pictures"]))
