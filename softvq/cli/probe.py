"""Linear probing: how much of an image's class do latents, or a generator's features, hold? (Fig. 3, Appendix C.3)

  softvq probe                                                    the bundled tokenizer on the bundled images
  softvq probe --model SoftVQVAE/softvq-l-64 --data imagenet/train --val imagenet/val
  softvq probe --model SoftVQVAE/sit-xl_softvq-l-64 --layer 20 --data latents/ --val val_latents/

Images, or what softvq encode made of them. A batch norm without parameters and a linear layer, 90 epochs, LAMB, cosine
from 0.003, batches of 16,384 (less of a small set: an epoch has as many steps as ImageNet's); no augmentation and no
decay. Latents are read as they are, token beside token (--pool mean averages the tokens); features of a SiT or DiT
after --layer blocks are averaged over tokens, for latents noised to --time, without a class. k-NN (20 neighbours,
cosine) is told beside it; --quick tells it alone.
"""

import argparse
from pathlib import Path
from typing import Any

from softvq.cli.options import BUNDLED_TOKENIZER
from softvq.cli.results import measuring_settings, written


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=BUNDLED_TOKENIZER, help=f"a tokenizer, SiT or DiT (default: {BUNDLED_TOKENIZER})")
    add("--tokenizer", help="of a generator: its tokenizer (default: the one that it was trained with)")
    add("--data", default="emoji", help="training images or latents (default: emoji)")
    add("--val", default="emoji-val", help="validation images or latents (default: emoji-val)")
    add("--layer", type=int, help="of a generator: after how many blocks (default: 20, or 5/7 of a smaller one's)")
    add("--time", type=float, default=0.5, help="of a generator: how noisy, 0 data … 1 noise (default: 0.5)")
    add("--pool", choices=("flatten", "mean"), help="of tokens (default: flatten for latents, mean for a generator)")
    add("--epochs", type=int, default=90, help="default: 90")
    add("--probe-batch", type=int, help="images a step of the probe (default: 16384, less of a small set)")
    add("--lr", type=float, default=0.003, help="default: 0.003")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="k-NN alone")
    add(
        "--batch",
        "--batch-size",
        dest="batch",
        type=int,
        default=64,
        help="images at a time (64)",
    )
    add("--workers", type=int, default=2, help="processes that decode images (default: 2)")
    add("--out", type=Path, default=Path("evaluations"), help="the folder of results (default: evaluations)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq.evaluation.probe import ProbeConfig, probe

    result = probe(
        options.model,
        options.data,
        options.val,
        tokenizer=options.tokenizer,
        layer=options.layer,
        time=options.time,
        pool=options.pool,
        config=ProbeConfig(options.epochs, options.probe_batch, options.lr, options.seed),
        quick=options.quick,
        **measuring_settings(options),
    )
    return written(options, result, show)


def show(result: dict[str, Any]) -> None:
    for name, value in result["scores"].items():
        print(f"{name:16} {100 * value:6.2f} %")
    print(result["file"])
