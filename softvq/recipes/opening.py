"""Recipes by name, in files, and in the models that were made with them.

recipe = open_recipe("emoji-64", changes={"steps": 500, "optimizer.lr": 1e-3})
Path("mine.yaml").write_text(recipe_text(recipe)); open_recipe("mine.yaml"); open_recipe("runs/mine")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from softvq import hub
from softvq.config import from_dict, override, to_dict
from softvq.errors import ConfigError
from softvq.files import read_data, read_json, yaml_text
from softvq.recipes.all import find, find_generator
from softvq.training.generator import GeneratorRecipe
from softvq.training.recipe import TokenizerRecipe

Kind = Literal["tokenizer", "generator"]
Recipe = TokenizerRecipe | GeneratorRecipe


def open_recipe(name: str | Path, kind: Kind | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Return a recipe by name, from a file, or from a model that was trained with it.

    A file is `.yaml` or `.json`, as `recipe_text` returned it, or a model's `config.json`; a model is given by its
    folder. A recipe's name comes before a folder of that name. `changes` are other values for its fields,
    `{"optimizer.lr": 3e-4}`.

    Raise `ConfigError` when there is none, or it is of the other `kind`.
    """
    recipe = _parsed(_data(Path(name)), str(name), kind) if is_file(name) else _by_name(str(name), kind)
    own = "tokenizer" if isinstance(recipe, TokenizerRecipe) else "generator"
    if kind not in (None, own):
        raise ConfigError(f"{name} is the recipe of a {own}, not of a {kind}: `softvq train {own}` trains it.")
    return override(recipe, changes, f"recipe {name}") if changes else recipe


def is_file(name: str | Path) -> bool:
    """Return True when a recipe is given as a file."""
    return str(name).lower().endswith((".yaml", ".yml", ".json"))


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as YAML, every field of it, for `open_recipe` to read."""
    return yaml_text(to_dict(recipe))


def _parsed(data: dict[str, Any], where: str, kind: Kind | None = None) -> Recipe:
    """Return the recipe of a file's content: a generator's has a `model`, and names its tokenizer."""
    tokenizer = data.get("tokenizer")
    is_generator = "model" in data or isinstance(tokenizer, str) or (tokenizer is None and kind == "generator")
    return from_dict(GeneratorRecipe if is_generator else TokenizerRecipe, data, where)


def _data(path: Path) -> dict[str, Any]:
    if path.is_dir() and not any((path / name).exists() for name in (hub.CONFIG, "model", "model.json")):
        raise ConfigError(f"{path} holds no model, whose recipe could be told.")
    data = read_json(hub.find(path) / hub.CONFIG) if path.is_dir() else read_data(path)
    if "format" not in data:
        return data
    recipe = data.get("about", {}).get("recipe")
    if not isinstance(recipe, dict):
        raise ConfigError(f"the model in {path} does not say which recipe it was trained with.")
    return recipe


def _by_name(name: str, kind: Kind | None) -> Recipe:
    known = {"tokenizer": find, "generator": find_generator}
    errors = []
    for one in known if kind is None else (kind, *(other for other in known if other != kind)):
        try:
            return known[one](name)
        except ConfigError as error:
            errors.append(error)
    if Path(name).is_dir():
        return _parsed(_data(Path(name)), name, kind)
    raise errors[0]
