"""List the recipes; with a name, show one with every field, as a file that can be edited and trained.

softvq recipes
softvq recipes softvq-l-64
softvq recipes emoji-64 > mine.yaml && softvq train tokenizer mine.yaml
softvq recipes runs/emoji-64         the recipe that a model was trained with
softvq recipes softvq-l-64-paper     the quantizer as the paper prints it, not as released
softvq recipes softvq-l-64-tiny      the same in small: trains in a minute on a laptop, offline
"""

import argparse
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a recipe to show in full: a name, a file or a model's folder")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq import config as configs
    from softvq.recipes import all as recipes
    from softvq.recipes.opening import open_recipe, recipe_text

    if options.name is not None:
        recipe = open_recipe(options.name)
        if not options.json:
            print(recipe_text(recipe), end="")
        return configs.to_dict(recipe)
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
