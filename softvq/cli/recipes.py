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
        find = recipes.find
        if options.name in recipes.GENERATORS or options.name.removesuffix("-tiny") in recipes.GENERATORS:
            find = recipes.find_generator
        recipe = configs.to_dict(find(options.name))
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
    generators = {
        name: {
            "about": recipe.about,
            "command": recipe.command,
            "published_gfid": recipe.published and [recipe.published.gfid, recipe.published.gfid_guided],
        }
        for name, recipe in recipes.GENERATORS.items()
    }
    if not options.json:
        print_recipes(listed)
        print_generators(generators)
    return {**listed, **generators}


def print_generators(listed: dict[str, dict[str, Any]]) -> None:
    width = max(map(len, listed))
    print(f"\n{'generator':{width}}  gFID  guided  about")
    for name, recipe in listed.items():
        plain, guided = recipe["published_gfid"] or (None, None)
        figures = [f"{figure:.2f}" if figure is not None else "" for figure in (plain, guided)]
        print(f"{name:{width}} {figures[0]:>5}  {figures[1]:>6}  {recipe['about']}")
    print(
        "\ngFID: as published. `softvq encode` makes the latents that they are trained on; NAME-tiny tries a\n"
        "recipe of the paper out on any latents. softvq train generator NAME --data latents/"
    )


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
