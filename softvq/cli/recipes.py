"""softvq recipes."""

from typing import Annotated

from softvq.cli.options import Common, Outcome, option


def recipes(
    name: Annotated[str | None, option("A name, a file or a model's folder.", name="RECIPE")] = None,
    /,
    *,
    common: Common = Common(),
) -> Outcome:
    """List the recipes; with a name, print one with every field, as a file that can be edited and trained.

    ```
    softvq recipes
    softvq recipes emoji-64 > mine.yaml
    softvq train tokenizer mine.yaml
    softvq recipes runs/emoji-64          the recipe that a model was trained with
    softvq recipes softvq-l-64-paper      the quantizer as the paper prints it, not as released
    softvq recipes softvq-l-64-tiny       the same in small: trains in a minute on a laptop, offline
    ```
    """
    from softvq import config as configs
    from softvq.figures import table
    from softvq.recipes import all as known
    from softvq.recipes.opening import open_recipe, recipe_text

    if name is not None:
        recipe = open_recipe(name)
        return Outcome(configs.to_dict(recipe), recipe_text(recipe).rstrip())
    listed = known.listing()
    first = [(one, _figure(row["published_rfid"]), row["about"]) for one, row in listed["tokenizers"].items()]
    second = [
        (one, *map(_figure, row["published_gfid"] or (None, None)), row["about"])
        for one, row in listed["generators"].items()
    ]
    text = f"""{table([("recipe", "rFID", "about"), *first], left=3)}

rFID: as published, on ImageNet. Recipes of the paper need --data and --val (folders of ImageNet) and come as
NAME-paper, with the quantizer as printed instead of as released, and NAME-tiny, to try out offline.
softvq train tokenizer NAME

{table([("generator", "gFID", "guided", "about"), *second], left=4)}

gFID: as published. `softvq encode` makes the latents to train on; NAME-tiny tries a recipe out on any latents.
softvq train generator NAME --data latents"""
    return Outcome({**listed["tokenizers"], **listed["generators"]}, text)


def _figure(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f}"
