"""Configurations survive JSON, and refuse what they do not know."""

import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from softvq import config as configs
from softvq.errors import ConfigError
from softvq.recipes.all import RECIPES
from softvq.training.recipe import TokenizerRecipe


@configs.family
class ShapeConfig:
    """The base of shapes."""


@configs.register
@dataclass(frozen=True)
class CircleConfig(ShapeConfig):
    radius: float = 1.0


@configs.register
@dataclass(frozen=True)
class SquareConfig(ShapeConfig):
    side: float
    inner: ShapeConfig | None = None


@dataclass(frozen=True)
class Drawing:
    shape: ShapeConfig
    count: int = 1
    title: str | None = None
    mode: Literal["fill", "line"] = "fill"
    size: tuple[int, int] = (1, 2)
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count must not be negative")


DRAWING = Drawing(SquareConfig(2.0, CircleConfig()), 3, "a", "line", (4, 5), {"x": 0.5})


def test_json_round_trip():
    data = json.loads(json.dumps(configs.to_dict(DRAWING)))
    assert data["shape"] == {"type": "Square", "side": 2.0, "inner": {"type": "Circle", "radius": 1.0}}
    assert configs.from_dict(Drawing, data) == DRAWING


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str):
    recipe = RECIPES[name]
    assert configs.from_dict(TokenizerRecipe, json.loads(json.dumps(configs.to_dict(recipe)))) == recipe


def test_defaults_may_be_left_out():
    assert configs.from_dict(Drawing, {"shape": "Circle"}) == Drawing(CircleConfig())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shape": "Circle", "cuont": 2}, "unknown key 'cuont'; did you mean count"),
        ({"shape": "Circle", "zzz": 2}, "valid: shape, count"),
        ({}, "lacks the key 'shape'"),
        ({"shape": {"type": "Blob"}}, 'one of Circle, Square, not "Blob"'),
        ({"shape": {"type": "Square"}}, "config.shape lacks the key 'side'"),
        ({"shape": 3}, "'type' is one of Circle, Square"),
        ({"shape": "Circle", "count": 1.5}, "config.count must be a whole number, not 1.5"),
        ({"shape": "Circle", "count": True}, "config.count must be a whole number"),
        ({"shape": "Circle", "count": -1}, "count must not be negative"),
        ({"shape": "Circle", "title": 3}, "config.title must be a string"),
        ({"shape": "Circle", "mode": "dot"}, "one of 'fill', 'line'"),
        ({"shape": "Circle", "size": [1]}, "config.size must have 2 entries, not 1"),
        ({"shape": "Circle", "size": [1, "a"]}, r"config.size\[1\] must be a whole number"),
        ({"shape": "Circle", "weights": {"x": "a"}}, "config.weights.x must be a number"),
        ({"shape": {"type": "Circle", "radius": float("nan")}}, "finite"),
        ([], "must be an object"),
    ],
)
def test_what_is_wrong_is_named(data, message: str):
    with pytest.raises(ConfigError, match=message):
        configs.from_dict(Drawing, data)


def test_override_reads_text():
    changed = configs.override(DRAWING, {"shape.side": "3", "title": "new", "size": "[7, 8]", "mode": "fill"})
    assert changed == Drawing(SquareConfig(3.0, CircleConfig()), 3, "new", "fill", (7, 8), {"x": 0.5})
    assert configs.override(DRAWING, {"shape": "Circle", "title": "null"}).shape == CircleConfig()
    assert configs.override(DRAWING, {"title": "null"}).title is None


@pytest.mark.parametrize("path", ["shape.sied", "side", "count.x", "nothing"])
def test_override_of_an_unknown_field(path: str):
    with pytest.raises(ConfigError, match=f"there is no field '{path}'"):
        configs.override(DRAWING, {path: "1"})


def test_another_variant_can_be_chosen_and_then_set():
    assert configs.override(DRAWING, {"shape": "Circle", "shape.radius": "2"}).shape == CircleConfig(2.0)


@pytest.mark.parametrize(("text", "title"), [("2024", "2024"), ("true", "true"), ("[", "["), ("null", None)])
def test_a_string_stays_what_was_typed(text: str, title: str | None):
    assert configs.override(DRAWING, {"title": text}).title == title


@dataclass(frozen=True)
class Album:
    cover: ShapeConfig = field(default_factory=CircleConfig)
    pages: tuple[ShapeConfig, ...] = ()
    named: dict[str, ShapeConfig] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    folder: Path = Path("here")


def test_families_inside_other_fields_keep_their_types():
    album = Album(SquareConfig(1.0), (CircleConfig(2.0), SquareConfig(3.0)), {"a": CircleConfig()}, [1, 2], Path("x"))
    data = json.loads(json.dumps(configs.to_dict(album)))
    assert [page["type"] for page in data["pages"]] == ["Circle", "Square"]
    assert configs.from_dict(Album, data) == album
    with pytest.raises(ConfigError, match=r"config\.numbers\[1\] must be a whole number"):
        configs.from_dict(Album, {"numbers": [1, "a"]})


def test_without_a_type_a_value_is_of_the_defaults():
    assert configs.from_dict(Album, {"cover": {"radius": 4}}).cover == CircleConfig(4.0)
    with pytest.raises(ConfigError, match="has the unknown key 'side'"):
        configs.from_dict(Album, {"cover": {"side": 4}})


def test_override_names_the_nearest_field():
    with pytest.raises(ConfigError, match=r"did you mean shape\.side"):
        configs.override(DRAWING, {"side": "1"})


@dataclass(frozen=True)
class Inner:
    size: int = 3


@dataclass(frozen=True)
class Outer:
    inner: Inner | None = None


def test_a_field_that_may_be_missing_is_plain_or_null():
    for value in (Outer(), Outer(Inner(5))):
        assert configs.from_dict(Outer, configs.to_dict(value)) == value
    assert configs.to_dict(Outer(Inner(5))) == {"inner": {"size": 5}}
    with pytest.raises(configs.ConfigError, match=r"config\.inner has the unknown key 'sise'; did you mean size"):
        configs.from_dict(Outer, {"inner": {"sise": 3}})


def test_a_field_of_what_is_null_says_to_give_it_whole():
    recipe = RECIPES["emoji-64-quick"]
    with pytest.raises(ConfigError, match="adversarial is null and has no fields yet: give it whole") as error:
        configs.override(recipe, {"adversarial.discriminator.width": "8"})
    assert 'adversarial = {"discriminator": …}' in str(error.value)


def test_a_name_of_many_is_compared_with_none(monkeypatch: pytest.MonkeyPatch):
    """Which would take minutes; those of the same ending are still found."""
    monkeypatch.setattr("difflib.get_close_matches", lambda *_, **__: pytest.fail("names were compared"))
    assert configs.nearest("tabby", [f"{number}" for number in range(20_000)]) == "."
    assert (
        configs.nearest("tabby", [*(f"{number}" for number in range(20_000)), "cat.tabby"])
        == "; did you mean cat.tabby?"
    )


@dataclass(frozen=True)
class Numbers:
    """Numbers in all the places where a configuration may have some."""

    count: int = 1
    share: float = 0.5
    perhaps: int | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    mixed: tuple[int, float] = (1, 0.5)
    by_name: dict[str, float] = field(default_factory=dict)
    inside: "Numbers | None" = None
    flag: bool = False
    name: str = "nan"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": np.int64(2), "share": np.float64(0.1), "pair": (0, 1), "perhaps": 3, "flag": True},
        {"share": 1, "by_name": {"a": 2}, "inside": Numbers(2), "mixed": (1, 1.5)},
    ],
)
def test_numbers_that_a_file_could_hold(values: dict):
    configs.check_numbers(Numbers(**values), "numbers")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"share": math.nan}, "numbers.share must be a finite number, not nan."),
        ({"share": np.float64("inf")}, "numbers.share must be a finite number, not inf."),
        ({"share": True}, "numbers.share must be a number, not true."),
        ({"count": 2.0}, "numbers.count must be a whole number, not 2.0."),
        ({"count": True}, "numbers.count must be a whole number, not true."),
        ({"perhaps": math.nan}, "numbers.perhaps must be a whole number, not NaN."),
        ({"pair": (0.0, math.inf)}, "numbers.pair[1] must be a finite number, not inf."),
        ({"mixed": (1, math.nan)}, "numbers.mixed[1] must be a finite number, not nan."),
        ({"by_name": {"kl": math.nan}}, "numbers.by_name['kl'] must be a finite number, not nan."),
        ({"inside": Numbers(inside=Numbers(share=math.nan))}, "numbers.inside.inside.share must be a finite number"),
    ],
)
def test_numbers_that_no_file_could_hold_are_named(values: dict, sentence: str):
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}"):
        configs.check_numbers(Numbers(**values), "numbers")


@pytest.mark.parametrize("name", ["emoji-64", "softvq-l-64"])
def test_a_recipe_made_in_python_is_checked_as_a_file_is(name: str):
    recipe = RECIPES[name]
    for changes, field_name in (
        ({"weights": {**recipe.weights, "kl": math.nan}}, r"weights\['kl'\]"),
        ({"skip_above": math.nan}, "skip_above"),
        ({"skip_above": math.inf}, "skip_above"),
        ({"batch_size": True}, "batch_size"),
    ):
        with pytest.raises(ConfigError, match=f"^TokenizerRecipe.{field_name} must be a "):
            replace(recipe, **changes)
