"""Recipes of generators sample as their row of the paper does."""

import pytest

from softvq.generators.base import Sampling
from softvq.recipes.all import GENERATORS, find_generator
from softvq.recipes.generators import PAPER_GENERATORS
from softvq.training.generator import new_generator
from softvq.transports.guidance import Guidance

# Appendix C.2, once more: scale by kind and tokens; only SiT on 1-D tokens has the interval
SCALES = {
    ("sit", 64): 1.75,
    ("sit", 32): 2.25,
    ("dit", 64): 1.35,
    ("dit", 32): 1.45,
    ("mar", 64): 3.0,
    ("mar", 32): 3.0,
}


@pytest.mark.parametrize("recipe", PAPER_GENERATORS, ids=lambda recipe: recipe.name)
def test_a_recipe_samples_as_its_row(recipe):
    kind, tokens = recipe.name.split("-")[0], recipe.model.network.tokens
    guidance = recipe.sampling.guidance
    if recipe.published.gfid_guided is None:
        assert guidance == Guidance()
    elif recipe.name.endswith("-kl"):
        assert guidance == Guidance(1.5)  # DiT's and SiT's authors', at all times
    else:
        assert guidance.scale == SCALES[kind, tokens]
        assert guidance.interval == ((0.0, 0.7) if kind == "sit" else (0.0, 1.0))
        assert guidance.schedule == ("linear" if kind == "mar" else "constant")
    assert recipe.sampling.sampler == {"sit": "sde", "dit": "ddpm", "mar": "mar"}[kind]
    assert recipe.sampling.steps == (tokens if kind == "mar" else 250)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sit-xl-softvq-l-32", Sampling("heun", 50, Guidance(2.25, (0.0, 0.7)))),
        ("sit-xl-softvq-l-64", Sampling("heun", 50, Guidance(1.75, (0.0, 0.7)))),
        ("dit-xl-softvq-l-32", Sampling("dpm", 50, Guidance(1.45))),
        ("dit-xl-softvq-l-64", Sampling("dpm", 50, Guidance(1.35))),
        ("sit-xl-2-kl", Sampling("heun", 50, Guidance(1.5))),
        ("mar-h-softvq-l-32", Sampling("mar", 32, Guidance(3.0, schedule="linear"))),
    ],
)
def test_a_model_without_a_recipe_is_guided_by_its_number_of_tokens(name: str, wanted: Sampling):
    """As the authors' released generators are, which say nothing of it."""
    assert new_generator(find_generator(f"{name}-tiny")).default_sampling == wanted


def test_every_generator_can_be_sampled_as_its_recipe_says():
    for name, recipe in GENERATORS.items():
        twin = recipe if recipe.published is None else find_generator(f"{name}-tiny")
        new_generator(twin).check(recipe.sampling)
