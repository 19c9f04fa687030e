"""Every recipe by name."""

from softvq.config import nearest
from softvq.errors import ConfigError
from softvq.recipes.emoji import EMOJI
from softvq.recipes.generators import EMOJI_GENERATORS, PAPER_GENERATORS, tiny_generator
from softvq.recipes.paper import PAPER, as_printed, tiny
from softvq.training.generator import GeneratorRecipe
from softvq.training.recipe import TokenizerRecipe

RECIPES: dict[str, TokenizerRecipe] = {recipe.name: recipe for recipe in (*EMOJI, *PAPER)}

GENERATORS: dict[str, GeneratorRecipe] = {recipe.name: recipe for recipe in (*EMOJI_GENERATORS, *PAPER_GENERATORS)}


def find_generator(name: str) -> GeneratorRecipe:
    """A generator's recipe by name; those of the paper also as `NAME-tiny`. An unknown name is an error that names the
    nearest."""
    if name in GENERATORS:
        return GENERATORS[name]
    base = GENERATORS.get(name.removesuffix("-tiny"))
    if base is not None and base.published is not None:
        return tiny_generator(base)
    tinies = [f"{known}-tiny" for known, recipe in GENERATORS.items() if recipe.published is not None]
    raise ConfigError(f"there is no generator's recipe {name!r}{nearest(name, [*GENERATORS, *tinies])}")


def find(name: str) -> TokenizerRecipe:
    """A recipe by name, or one of its twins: those of the paper also come as `NAME-paper`, with the quantizer as
    printed instead of as released, and both as `NAME-tiny`, small enough for a laptop.

    An unknown name is an error that names the nearest.
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
    everything = [found for base in RECIPES for twin in (base, *twins(base)) for found in _with_tiny(twin)]
    raise ConfigError(f"there is no recipe {name!r}{nearest(name, everything)}")


def _with_tiny(name: str) -> list[str]:
    return [name, f"{name}-tiny"] if name.endswith("-paper") else [name]


def twins(name: str) -> list[str]:
    """The names of a recipe's twins."""
    recipe = RECIPES[name]
    if recipe.published is None:
        return []
    return [*([] if as_printed(recipe) is None else [f"{name}-paper"]), f"{name}-tiny"]
