"""Make new images with a generator and the tokenizer whose latents it knows.

  softvq sample
  softvq sample --class smileys-emotion --class food-drink -n 16 --guidance 2 --seed 1
  softvq sample --model SoftVQVAE/sit-xl_softvq-l-64 --class "golden retriever" -n 16 --steps 50 --guidance 1.75
  softvq sample --model runs/mine --num 50000 --npz samples.npz      the array that ADM's evaluator reads

Writes a picture and, beside it, the seed and all settings as JSON. An image is a function of the seed and its number:
batch size and number of processes change an 8-bit pixel by at most 1. Without --class, all classes in turn. With --npz
the images are streamed to disk; the same command goes on where a stopped one was, and torchrun shares the work out.
"""

import argparse
from pathlib import Path
from typing import Any

from softvq.cli.main import Usage

BUNDLED_GENERATOR = "emoji-sit"


def configure(parser: argparse.ArgumentParser) -> None:
    add_sampling_options(parser)
    add = parser.add_argument
    add("-n", "--num", type=int, default=16, help="how many images (default: 16)")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("samples.png"), help="the picture (default: samples.png)")
    add("--npz", type=Path, help="write an array of all images here instead of a picture")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """The model, and how images are drawn from it."""
    add = parser.add_argument
    add("--model", default=BUNDLED_GENERATOR, help=f"a folder, bundled or hub name (default: {BUNDLED_GENERATOR})")
    add("--tokenizer", help="the tokenizer that decodes (default: the one that the generator was trained with)")
    add("--class", dest="classes", action="append", help="a class by name or number; can be given several times")
    add("--labels", choices=("balanced", "random"), default="balanced", help="of images without --class")
    add("--sampler", help="euler, heun, dopri5, sde, dpm, dpm-sde (SiT); ddpm, ddim, dpm, dpm-sde (DiT); mar (MAR)")
    add("--steps", type=int, help="steps of the sampler (default: the model's own, else 50)")
    add("--guidance", type=float, help="guidance scale; 1 is none (default: the model's own)")
    add("--interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guide in these times alone, 0 data … 1 noise")
    add("--batch", "--batch-size", dest="batch", type=int, default=64, help="images at a time (default: 64)")
    add("--no-ema", action="store_true", help="of a run's folder: the trained weights instead of their average")


def pipeline_of(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Return the pipeline and what is asked of it (but for the number of images and the seed), as the options say."""
    from softvq import distributed
    from softvq.pipeline import Pipeline
    from softvq.runtime import pick_device

    device = distributed.start(pick_device(options.device))
    pipeline = Pipeline.from_pretrained(
        options.model, tokenizer=options.tokenizer, device=device, average=not options.no_ema
    )
    asked = {
        "steps": options.steps,
        "guidance": options.guidance,
        "interval": options.interval,
        "sampler": options.sampler,
        "labels": options.labels,
        "batch_size": options.batch,
        "precision": options.precision,
    }
    return pipeline, {"classes": options.classes, **asked}


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq import distributed
    from softvq.files import read_json

    if min(options.num, options.batch) < 1 or not 0 <= options.seed < 2**63:
        raise Usage("--num and --batch must be at least 1, --seed not negative and below 2^63")
    pipeline, asked = pipeline_of(options)
    asked |= {"num": options.num, "seed": options.seed}
    if options.npz is None:
        path = pipeline.write_picture(options.out, **asked)
    else:
        path = pipeline.write_npz(options.npz, **asked)
    settings: dict[str, Any] = {}
    if distributed.rank() > 0:
        options.json = False
    else:
        settings = {key: value for key, value in read_json(path.with_suffix(".json")).items() if key != "labels"}
        if not options.json:
            print(f"{options.num} images in {path}")
    distributed.stop()
    return {"images": str(path), **settings}
