"""`softvq recipes`: the list, and a recipe as a file that can be trained."""

import json
import re
from pathlib import Path

import pytest

from softvq.config import to_dict
from softvq.recipes import all as known
from softvq.recipes.opening import open_recipe
from tests.cli.running import refusal, result, softvq


def test_all_recipes_are_listed_beside_what_is_published():
    code, out, err = softvq("recipes")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(rows) >= {*known.RECIPES, *known.GENERATORS}
    assert re.fullmatch(r"softvq-l-64 +0\.61 +SoftVQ-L: 64 tokens × 32, 256 px \(Table 1\)\.", rows["softvq-l-64"])
    assert re.fullmatch(r"sit-xl-softvq-l-64 +5\.35 +1\.86 +SiT-XL.*", rows["sit-xl-softvq-l-64"])
    assert re.fullmatch(r"emoji-64 {2,}[A-Z].*", re.sub(r" +", "  ", rows["emoji-64"]))  # nothing is published of it
    assert max(map(len, out.splitlines())) < 160


def test_the_list_as_json():
    listed = result("recipes")
    assert listed.keys() == {*known.RECIPES, *known.GENERATORS}
    assert listed["softvq-l-64"] == {
        "about": known.RECIPES["softvq-l-64"].about,
        "command": known.RECIPES["softvq-l-64"].command,
        "published_rfid": 0.61,
        "twins": ["softvq-l-64-paper", "softvq-l-64-tiny"],
    }
    assert listed["sit-xl-softvq-l-64"]["published_gfid"] == [5.35, 1.86]
    assert listed["emoji-64"]["published_rfid"] is None


@pytest.mark.parametrize(
    "name", ["emoji-64", "softvq-l-64-paper", "softvq-b-64-tiny", "sit-xl-softvq-l-64", "emoji-sit"]
)
def test_a_recipe_is_shown_as_the_file_that_makes_it(tmp_path: Path, name: str):
    code, out, err = softvq("recipes", name)
    assert (code, err) == (0, "")
    (tmp_path / "mine.yaml").write_text(out)
    assert open_recipe(tmp_path / "mine.yaml") == open_recipe(name)
    assert result("recipes", name) == json.loads(json.dumps(to_dict(open_recipe(name))))
    assert result("recipes", tmp_path / "mine.yaml") == result("recipes", name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("softvq-l-46", "there is no recipe 'softvq-l-46'; did you mean softvq-l-64"),
        ("emoji-64-tiny", "only recipes of the paper have a tiny twin"),
        ("nowhere.yaml", "there is no file 'nowhere.yaml'."),
    ],
)
def test_what_is_no_recipe_is_a_sentence(name: str, said: str):
    assert said in refusal(2, "recipes", name)
