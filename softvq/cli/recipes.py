"""List the recipes; with a name, show one with every field.

softvq recipes
softvq recipes softvq-l-64
softvq recipes softvq-l-64-paper     the quantizer as the paper prints it, not as released
softvq recipes softvq-l-64-tiny      the same in small: trains in a minute on a laptop, offline
"""

import argparse
import json
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a recipe to show in full")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq import config as configs
    from softvq.recipes import all as recipes

    if options.name is not None:
        recipe = configs.to_dict(recipes.find(options.name))
        if not options.json:
            print(json.dumps(recipe, indent=2, ensure_ascii=False))
        return recipe
    listed = {}
    for name, recipe in recipes.RECIPES.items():
        rfid = None if recipe.published is None else recipe.published.rfid
        listed[name] = {
            "about": recipe.about,
            "command": recipe.command,
            "published_rfid": rfid,
            "twins": recipes.twins(name),
        }
    if not options.json:
        print_recipes(listed)
    return listed


def print_recipes(listed: dict[str, dict[str, Any]]) -> None:
    width = max(map(len, listed))
    print(f"{'recipe':{width}}  rFID  about")
    for name, recipe in listed.items():
        rfid = "" if recipe["published_rfid"] is None else f"{recipe['published_rfid']:.2f}"
        print(f"{name:{width}} {rfid:>5}  {recipe['about']}")
    print(
        "\nrFID: as published, on ImageNet. Recipes of the paper need --data and --val (folders of ImageNet) and come\n"
        "as NAME-paper, with the quantizer as printed instead of as released, and NAME-tiny, to try out offline.\n"
        "softvq train tokenizer NAME"
    )
