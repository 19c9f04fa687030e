"""The paper's figures: those of recipes, and each as it is printed."""

import pytest

from softvq import published
from softvq.published import GENERATION, PROBE, Row
from softvq.recipes.all import GENERATORS, RECIPES

OF_THE_PAPER = [recipe for recipe in GENERATORS.values() if recipe.published is not None]
WITHOUT = [(name, row) for name, (row, _) in GENERATION.items()]
WITH = [(name, row) for name, (_, row) in GENERATION.items() if row is not None]

# Copied from the paper once more, independently of the recipes. Tables 6 to 8, as they are printed: without guidance
# gFID, Inception Score, precision, recall, then with guidance
LINES = {
    "mar-h": """
        softvq-l-32 3.83 211.2 0.77 0.61 2.54 273.6 0.78 0.61
        softvq-bl-64 2.81 218.3 0.78 0.62 1.93 289.4 0.80 0.61
        softvq-bl-64-512 8.21 152.9 0.69 0.59 3.42 261.8 0.77 0.61""",
    "dit-xl": """
        2-kl 9.62 121.5 0.67 0.67 2.27 278.2 0.83 0.53
        softvq-b-32 9.83 113.8 0.70 0.61 3.91 264.2 0.81 0.54
        softvq-bl-32 9.22 115.8 0.71 0.61 3.78 266.7 0.82 0.54
        softvq-l-32 9.07 117.2 0.71 0.61 3.69 270.4 0.83 0.53
        softvq-b-64 6.62 129.2 0.75 0.62 3.29 262.5 0.84 0.54
        softvq-bl-64 6.53 131.9 0.75 0.62 3.11 268.3 0.84 0.56
        softvq-l-64 5.83 141.3 0.75 0.62 2.93 268.5 0.84 0.55
        softvq-l-32@4M 8.54 124.0 0.72 0.62 3.58 281.9 0.82 0.53
        softvq-l-64@4M 5.60 144.5 0.76 0.63 2.84 270.1 0.85 0.54""",
    "sit-xl": """
        2-kl 8.30 131.7 0.68 0.67 2.06 270.3 0.82 0.59
        softvq-b-32 7.99 129.3 0.70 0.63 2.51 301.3 0.76 0.62
        softvq-bl-32 7.67 133.9 0.70 0.63 2.44 308.8 0.76 0.63
        softvq-l-32 7.59 137.4 0.71 0.63 2.44 310.6 0.77 0.63
        softvq-b-64 5.98 138.0 0.74 0.64 1.78 279.0 0.80 0.63
        softvq-bl-64 5.80 143.5 0.74 0.64 1.88 287.9 0.80 0.63
        softvq-l-64 5.35 151.2 0.74 0.64 1.86 293.6 0.81 0.63
        softvq-l-32-512 10.17 119.2 0.65 0.59 4.23 218.0 0.83 0.52
        softvq-bl-64-512 7.96 133.9 0.73 0.63 2.21 290.5 0.85 0.59
        softvq-l-32@400K 16.49 79.1 0.65 0.61 4.61 281.2 0.86 0.47
        softvq-l-32@1M 10.30 109.0 0.69 0.63 2.85 284.0 0.76 0.61
        softvq-l-32@2M 8.52 122.8 0.71 0.64 2.51 296.3 0.77 0.63
        softvq-l-32@4M 7.32 138.6 0.72 0.63 2.38 311.5 0.77 0.63
        softvq-l-64@400K 10.03 103.4 0.71 0.62 3.12 236.3 0.77 0.61
        softvq-l-64@1M 7.14 125.4 0.72 0.64 2.09 254.9 0.79 0.62
        softvq-l-64@2M 5.88 140.6 0.73 0.64 1.89 284.4 0.80 0.63
        softvq-l-64@4M 5.21 158.5 0.75 0.64 1.79 297.8 0.81 0.64""",
}
# Tables 3 and 4: Inception Scores of SiT-L, from 256 tokens to 32, and in the table's order
SCORES = {
    "vq-s": (58.6, 62.4, 54.5, 47.6),
    "ae-s": (58.3, 58.5, 54.3, 45.5),
    "softvq-s": (93.6, 85.8, 89.4, 79.5),
    "softvq-b-64": (89.4, 101.9, 91.5, 103.4, 109.3, 112.7),
}
STARTS = ("-none-none", "-none-dinov2", "-dinov2-none", "", "-clip-clip", "-eva02-eva02")  # Table 4's rows
STEPS = {"400K": 400_000, "1M": 1_000_000, "2M": 2_000_000, "4M": 4_000_000}


def printed() -> dict[tuple[str, int], tuple[Row, Row]]:
    found = {}
    for network, lines in LINES.items():
        for line in lines.split("\n")[1:]:
            label, *words = line.split()
            name, _, steps = f"{network}-{label}".partition("@")
            numbers = tuple(map(float, words))
            found[name, STEPS[steps] if steps else GENERATORS[name].steps] = numbers[:4], numbers[4:]
    return found


def test_tables_6_to_8_are_as_printed():
    assert {key: rows for key, rows in GENERATION.items() if rows[1] is not None} == printed()


def test_tables_3_and_4_are_as_printed():
    expected = {}
    for name, scores in SCORES.items():
        endings = STARTS if name == "softvq-b-64" else [f"-{tokens}" for tokens in (256, 128, 64, 32)]
        expected |= {f"sit-l-{name}{ending}": score for ending, score in zip(endings, scores, strict=True)}
    found = {name: rows[0] for (name, _), rows in GENERATION.items() if rows[1] is None}
    assert {name: row[1] for name, row in found.items()} == expected
    assert {row[2:] for row in found.values()} == {(None, None)}


def test_every_figure_is_of_a_recipe_of_the_paper_and_every_recipe_has_its_figure():
    assert {name for name, _ in GENERATION} == {recipe.name for recipe in OF_THE_PAPER}
    assert published.GENERATORS.keys() == {recipe.name for recipe in OF_THE_PAPER}
    assert published.TOKENIZERS.keys() == {recipe.name for recipe in RECIPES.values() if recipe.published is not None}


@pytest.mark.parametrize("recipe", OF_THE_PAPER, ids=lambda recipe: recipe.name)
def test_at_a_recipes_own_steps_its_gfid_is_the_recipes(recipe):
    without, guided = GENERATION[recipe.name, recipe.steps]
    assert without[0] == recipe.published.gfid
    assert (None if guided is None else guided[0]) == recipe.published.gfid_guided


def test_the_other_steps_are_table_8s():
    others = {key for key in GENERATION if key[1] != GENERATORS[key[0]].steps}
    early = {(f"sit-xl-softvq-l-{tokens}", steps) for tokens in (32, 64) for steps in STEPS.values()}
    assert others == early | {(f"dit-xl-softvq-l-{tokens}", 4_000_000) for tokens in (32, 64)}


@pytest.mark.parametrize(("key", "row"), [*WITHOUT, *WITH])
def test_figures_are_in_their_range(key: tuple[str, int], row: Row):
    gfid, score, precision, recall = row
    assert 1 < gfid < 30
    assert 40 < score < 320
    assert (precision is None) == (recall is None)
    assert precision is None or 0 <= min(precision, recall) <= max(precision, recall) <= 1


@pytest.mark.parametrize("key", [key for key, _ in WITH])
def test_guidance_makes_images_better_and_more_alike(key: tuple[str, int]):
    without, guided = GENERATION[key]
    assert guided[0] < without[0]
    assert guided[1] > without[1]
    assert guided[2] > without[2]


@pytest.mark.parametrize("name", sorted({name for name, steps in GENERATION if steps == 4_000_000}))
@pytest.mark.parametrize("guided", [False, True])
def test_longer_training_makes_better_images(name: str, guided: bool):
    rows = [rows[guided] for (one, _), rows in sorted(GENERATION.items()) if one == name]
    assert len(rows) > 1
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)


def test_probes_are_of_table_4s_tokenizers():
    table = [recipe.name for recipe in RECIPES.values() if recipe.published and recipe.published.table == "4"]
    assert set(PROBE) == {*table, "softvq-b-64"}
    assert [PROBE[f"softvq-b-64{start}"] for start in STARTS] == [5.42, 41.08, 11.87, 42.42, 47.12, 44.23]
    # of each a SiT-L was trained, whose figure stands in the same row
    assert all((f"sit-l-{name}", 400_000) in GENERATION for name in PROBE)
