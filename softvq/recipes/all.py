"""Every recipe by name."""

from typing import Any

from softvq.config import nearest
from softvq.errors import ConfigError
from softvq.recipes.emoji import EMOJI
from softvq.recipes.generators import EMOJI_GENERATORS, PAPER_GENERATORS, tiny_generator
from softvq.recipes.paper import PAPER, as_printed, tiny
from softvq.training.generator import GeneratorRecipe
from softvq.training.recipe import TokenizerRecipe

_LISTED = "the command `softvq recipes`"

RECIPES: dict[str, TokenizerRecipe] = {recipe.name: recipe for recipe in (*EMOJI, *PAPER)}

GENERATORS: dict[str, GeneratorRecipe] = {recipe.name: recipe for recipe in (*EMOJI_GENERATORS, *PAPER_GENERATORS)}


def find_generator(name: str) -> GeneratorRecipe:
    """Return a generator's recipe by name; those of the paper also come as `NAME-tiny`.

    Raise `ConfigError` for an unknown name; the message names the nearest.
    """
    if name in GENERATORS:
        return GENERATORS[name]
    base = GENERATORS.get(name.removesuffix("-tiny"))
    if base is not None and base.published is not None:
        return tiny_generator(base)
    tinies = [f"{known}-tiny" for known, recipe in GENERATORS.items() if recipe.published is not None]
    raise ConfigError(f"there is no generator's recipe {name!r}{nearest(name, [*GENERATORS, *tinies], every=_LISTED)}")


def find(name: str) -> TokenizerRecipe:
    """Return a tokenizer's recipe by name, or one of its twins.

    Recipes of the paper also come as `NAME-paper`, with the quantizer as printed instead of as released, and both as
    `NAME-tiny`, small enough for a laptop. Raise `ConfigError` for an unknown name; the message names the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    if (base := name.removesuffix("-tiny")) != name:
        recipe = find(base)
        if recipe.published is None:
            raise ConfigError(f"there is no recipe {name!r}: only recipes of the paper have a tiny twin.")
        return tiny(recipe)
    if (base := name.removesuffix("-paper")) in RECIPES and base != name:
        recipe = RECIPES[base]
        if recipe.published is None:
            raise ConfigError(f"there is no recipe {name!r}: only recipes of the paper have a -paper twin.")
        if (printed := as_printed(recipe)) is None:
            raise ConfigError(f"there is no recipe {name!r}: {base} is the same as released and as printed.")
        return printed
    everything = [variant for base in RECIPES for twin in (base, *twins(base)) for variant in _with_tiny(twin)]
    raise ConfigError(f"there is no recipe {name!r}{nearest(name, everything, every=_LISTED)}")


def _with_tiny(name: str) -> list[str]:
    return [name, f"{name}-tiny"] if name.endswith("-paper") else [name]


def twins(name: str) -> list[str]:
    """Return the names of a tokenizer recipe's twins, `-paper` and `-tiny`; none where it is not the paper's."""
    recipe = RECIPES[name]
    if recipe.published is None:
        return []
    return [*([] if as_printed(recipe) is None else [f"{name}-paper"]), f"{name}-tiny"]


def generator_for(tokenizer: str) -> str:
    """Return the name of a recipe of a generator for a tokenizer's latents.

    It is one of the paper, else a small one, which takes latents of any shape.
    """
    return next((name for name, recipe in GENERATORS.items() if recipe.tokenizer == tokenizer), "emoji-sit")


def listing() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the list that `softvq recipes` shows, of all `tokenizers` and `generators` by name.

    Each has its description, command, published figures and, for tokenizers, its twins.
    """
    tokenizers = {
        name: {**_told(recipe), "published_rfid": recipe.published and recipe.published.rfid, "twins": twins(name)}
        for name, recipe in RECIPES.items()
    }
    generators = {
        name: {
            **_told(recipe),
            "published_gfid": recipe.published and [recipe.published.gfid, recipe.published.gfid_guided],
        }
        for name, recipe in GENERATORS.items()
    }
    return {"tokenizers": tokenizers, "generators": generators}


def _told(recipe: TokenizerRecipe | GeneratorRecipe) -> dict[str, Any]:
    return {"about": recipe.about, "command": recipe.command}
