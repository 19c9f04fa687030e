"""List the recipes; with a name, show one with every field.

softvq recipes
softvq recipes emoji-64
"""

import argparse
import json
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a recipe to show in full")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq import config as configs
    from softvq.recipes import all as recipes

    if options.name:
        recipe = configs.to_dict(recipes.find(options.name))
        if not options.json:
            print(json.dumps(recipe, indent=2, ensure_ascii=False))
        return recipe
    listed = {name: {"about": r.about, "command": r.command} for name, r in recipes.RECIPES.items()}
    if not options.json:
        width = max(map(len, listed))
        for name, recipe in listed.items():
            print(f"{name:{width}}  {recipe['about']}\n{'':{width}}  {recipe['command']}")
    return listed
