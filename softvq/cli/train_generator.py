"""`softvq train generator`: latents in, a SiT, DiT or MAR out."""

import argparse
from dataclasses import replace
from typing import Any

from softvq.cli.main import Usage
from softvq.cli.runs import changed, field_changes, run_folder, run_options, told


def run_generator(options: argparse.Namespace) -> dict[str, Any]:
    """Train on the latents in --data, which must be of the recipe's --tokenizer."""
    from softvq import distributed
    from softvq.cli.hooks import generator_hooks
    from softvq.data.latents import Latents
    from softvq.pipeline import load_tokenizer
    from softvq.recipes import all as recipes
    from softvq.runtime import pick_device, pick_precision
    from softvq.training.generator import train

    if options.rfid or options.dry_run or options.pretrained:
        raise Usage("--rfid, --dry-run and --pretrained are for training tokenizers")
    changes = field_changes(options.extra)
    recipe = changed(recipes.find_generator(options.recipe), changes, options.recipe)
    out = run_folder(options, recipe.name)
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device, training=True)
    latents = Latents(recipe.data)
    if "tokenizer" not in changes and recipe.tokenizer != latents.index.tokenizer and recipe.published is None:
        recipe = replace(recipe, tokenizer=latents.index.tokenizer)
    tokenizer = load_tokenizer(recipe.tokenizer)
    chosen = run_options(options, out, distributed.start(device), precision)
    folder = train(
        recipe,
        chosen,
        tokenizer=tokenizer,
        hooks=lambda run: generator_hooks(run, recipe, tokenizer.to(device), options.sample_every),
    )
    return told(options, folder, f"softvq sample --model {folder}", recipe.steps)
