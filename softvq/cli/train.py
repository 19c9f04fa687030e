"""Train a model from a recipe.

  softvq train tokenizer emoji-64-quick
  softvq train tokenizer emoji-64 --data my_photos/ --val null --steps 5000 --optimizer.lr 1e-3
  softvq train tokenizer emoji-64 --tokenizer.quantizer AE --weights '{"reconstruction": 1}'
  softvq train tokenizer softvq-l-64 --data imagenet/train --val imagenet/val
  softvq train tokenizer softvq-l-64 --data 'shards/train-{0000..1023}.tar' --val 'shards/val-*.tar'
  softvq train tokenizer softvq-l-64 --data 'https://host/train-{0000..1023}.tar' --val hf:OWNER/NAME:validation
  softvq train tokenizer softvq-l-64 --dry-run
  softvq recipes emoji-64 > mine.yaml; softvq train tokenizer mine.yaml
  softvq train tokenizer softvq-b-64 --init SoftVQVAE/softvq-b-64 --data my_photos/ --steps 20000
  softvq encode imagenet/train --model SoftVQVAE/softvq-l-64 --out latents/
  softvq train generator sit-xl-softvq-l-64 --data latents/ --val val_latents/

Every field of the recipe can be set: --FIELD VALUE, dotted for nested ones (`softvq recipes NAME` shows them all).
A run that was stopped goes on where its last checkpoint stands when the same command is given again; with more --steps
a run that was stopped or has ended is made longer.
Several GPUs or machines: torchrun --nproc-per-node 8 -m softvq train tokenizer … (the batch size stays the same).
A field that is null takes JSON: --alignment '{"teacher": "vit_base_patch14_dinov2.lvd142m"}'; its term then needs a
weight: --weights '{"reconstruction": 1, "kl": 0.01, "alignment": 0.1}'.
Fields that no recipe of the paper uses (docs/deviations.md):
  --perceptual efficientnet-lite0, --alignment '{"teacher": "efficientnet-lite2"}'   features without a download
  --latent_noise 0.2             the decoder sees latents with noise of up to 0.2 of their deviation
  --trains decoder --init MODEL  encoder and latents stay as they are in MODEL, and so do generators made of them
  --tokenizer.refine 32          two 3 x 3 convolutions behind the patches, 32 channels between them
  --tokenizer.quantizer '{"type": "GMMVQ", "component_std": 0.1}'   its components sampled (appendix B.2)
  --projections default, --ema_warmup false   as the release starts its projections and averages its weights
A generator goes on from another with --init: softvq train generator sit-xl-softvq-l-64 --init SoftVQVAE/sit-xl_…
Pretrained networks that a recipe names (`encoder_weights`, `perceptual`, `alignment.teacher`, the discriminator's
`backbone`) are downloaded from the hub once, or read from the files given with --pretrained.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from softvq.cli.main import Usage
from softvq.cli.runs import field_changes, recipe_of, run_options, told


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("tokenizer", "generator"), help="the kind of model")
    parser.add_argument(
        "recipe",
        help="a recipe's name (`softvq recipes` lists them), a .yaml or .json file of one, or a model's folder",
    )
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="insist on a run to resume: an error where there is none")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images (default: 2)")
    parser.add_argument(
        "--pretrained",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="read a pretrained network from this safetensors file instead of the hub; can be given for each",
    )
    parser.add_argument(
        "--parallel",
        choices=("ddp", "fsdp"),
        default="ddp",
        help="with several processes (torchrun): a copy of the model on each (default), or its parameters shared out",
    )
    parser.add_argument(
        "--most-bad",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="unreadable images are named and skipped; more than this share of all stops the run (default: 0.1)",
    )
    parser.add_argument("--recompute", action="store_true", help="less memory, more time: keep less for the gradients")
    parser.add_argument("--compile", action="store_true", help="torch.compile; pays on GPUs, not on CPUs")
    parser.add_argument(
        "--rfid",
        nargs="?",
        const="inception-2015-12-05",
        metavar="NETWORK",
        help="measure rFID too when validating; Inception's weights are downloaded once, or given with --pretrained",
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases too (pip install 'softvq[wandb]')")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and stop: parameters, operations and memory of a step, checkpoint size, images per epoch",
    )
    parser.add_argument("--log-every", type=int, default=20, metavar="STEPS")
    parser.add_argument("--checkpoint-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--sample-every", type=int, default=1000, metavar="STEPS", help="sample grid and validation")
    parser.set_defaults(takes_fields=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq.training.plan import plan, show_plan
    from softvq.training.run import train

    changes = field_changes(options.extra)
    if options.what == "tokenizer" and changes.get("data", "emoji") != "emoji" and "val" not in changes:
        changes["val"] = "null"  # the recipe's validation images are of another kind than yours
        print("validating on nothing: give --val FOLDER (or --val emoji-val) to measure as it goes", file=sys.stderr)
    recipe = recipe_of(options, changes)
    own = run_options(options, recipe)
    task = _task(options, recipe, changes)
    if options.dry_run:
        found = plan(task, own)
        if not options.json:
            print(show_plan(found))
        return found.to_dict()
    folder = train(task, own)
    then = (
        f"softvq reconstruct --model {folder} IMAGE"
        if options.what == "tokenizer"
        else f"softvq sample --model {folder}"
    )
    return told(options, folder, then, recipe.steps)


def _task(options: argparse.Namespace, recipe: Any, changes: dict[str, str]) -> Any:
    from softvq.training.generator import GeneratorTask
    from softvq.training.tokenizer import TokenizerTask

    if options.what == "tokenizer":
        return TokenizerTask(recipe, rfid=options.rfid)
    if options.rfid:
        raise Usage("--rfid is for training tokenizers")
    return GeneratorTask(recipe, tokenizer=recipe.tokenizer if "tokenizer" in changes else None)
