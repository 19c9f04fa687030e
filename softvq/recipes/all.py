"""Every recipe by name."""

from softvq.config import ConfigError, nearest
from softvq.recipes.emoji import EMOJI_64, EMOJI_64_QUICK, EMOJI_128
from softvq.training.recipe import TokenizerRecipe

RECIPES: dict[str, TokenizerRecipe] = {recipe.name: recipe for recipe in (EMOJI_64, EMOJI_64_QUICK, EMOJI_128)}


def find(name: str) -> TokenizerRecipe:
    """A recipe by name; an unknown one is an error that names the nearest."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}{nearest(name, list(RECIPES))}")
    return RECIPES[name]
