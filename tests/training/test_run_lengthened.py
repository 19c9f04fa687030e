"""A run that is given more steps goes on from its last checkpoint; what may not change is refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from softvq import Tokenizer
from softvq.errors import ConfigError, Interrupted
from softvq.files import read_json, read_tensors
from softvq.optim import AdamWConfig
from softvq.recipes.all import find
from softvq.training.options import Intervals, RunOptions
from softvq.training.recipe import TokenizerRecipe
from softvq.training.run import train
from softvq.training.task import Hook
from softvq.training.tokenizer import TokenizerTask
from tests.pictures import few_emoji

CPU = torch.device("cpu")
OPTIMIZER = AdamWConfig(lr=1e-3, warmup_steps=3)
Recipes = Callable[..., TokenizerRecipe]


def recipe_on(data: str, steps: int, **changes) -> TokenizerRecipe:
    twin = find("softvq-s-64-tiny")
    small = replace(twin.tokenizer, image_size=32, tokens=8, latent_dim=4)
    weights = {"reconstruction": 1.0, "kl": 0.01}
    plain = {"perceptual": None, "alignment": None, "adversarial": None, "encoder_weights": None, "schedules": {}}
    fields = {"tokenizer": small, "weights": weights, "val": None, "batch_size": 2, "optimizer": OPTIMIZER, **plain}
    return replace(twin, **{**fields, "data": data, "steps": steps, **changes})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipes:
    """The recipe of so many steps on a few images."""
    return partial(recipe_on, str(few_emoji(tmp_path_factory.mktemp("images") / "emoji")))


def options(out: Path) -> RunOptions:
    return RunOptions(out, CPU, "float32", workers=0, intervals=Intervals(log=1, checkpoint=1, samples=100))


def rates(out: Path) -> dict[int, float]:
    """The learning rate of each step, as logged."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["optimizer/lr"] for line in lines if "optimizer/lr" in line}


def scheduled(step: int, steps: int) -> float:
    return OPTIMIZER.lr * OPTIMIZER.factor_at(step - 1, steps)


def last(out: Path) -> dict[str, torch.Tensor]:
    folder = max((out / "checkpoints").iterdir())
    return {f"{p.stem}/{k}": t for p in folder.glob("*.safetensors") for k, t in read_tensors(p).items()}


def same(one: Path, other: Path) -> bool:
    a, b = last(one), last(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def longer(recipe: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lengthen") / "run"
    train(TokenizerTask(recipe(4)), options(out))
    train(TokenizerTask(recipe(8)), options(out))
    return out


def test_a_finished_run_goes_on_with_its_warm_up_as_it_was_and_a_decay_of_the_new_length(longer: Path):
    found = rates(longer)
    assert list(found) == list(range(1, 9))
    for step, rate in found.items():
        assert rate == pytest.approx(scheduled(step, 4 if step <= 4 else 8), rel=1e-6)


def test_run_log_and_model_say_so(longer: Path):
    note = [{"at_step": 4, "from": 4, "to": 8}]
    run = read_json(longer / "run.json")
    assert (run["steps"], run["lengthened"]) == (8, note)
    about = Tokenizer.from_pretrained(longer).about
    assert about["lengthened"] == note
    assert about["recipe"]["steps"] == 8
    lines = [json.loads(line) for line in (longer / "log.jsonl").read_text().splitlines()]
    assert {"step": 4, "lengthened_from": 4, "lengthened_to": 8} in lines
    assert read_json(longer / "model.json")["about"]["lengthened"] == note


def test_a_lengthened_run_that_was_stopped_ends_as_if_it_had_not_been(recipe: Recipes, longer: Path, tmp_path: Path):
    def stop(state, log):
        if state.step == 6:
            raise Interrupted(15, "stopped")

    train(TokenizerTask(recipe(4)), options(tmp_path))
    with pytest.raises(Interrupted):
        train(TokenizerTask(recipe(8)), options(tmp_path), hooks=[Hook(1, stop)])
    train(TokenizerTask(recipe(8)), options(tmp_path))
    assert same(tmp_path, longer)
    assert read_json(tmp_path / "run.json")["lengthened"] == [{"at_step": 4, "from": 4, "to": 8}]


def test_a_stopped_run_is_lengthened_too_and_twice(recipe: Recipes, tmp_path: Path):
    def stop(state, log):
        if state.step == 2:
            raise Interrupted(15, "stopped")

    with pytest.raises(Interrupted):
        train(TokenizerTask(recipe(4)), options(tmp_path), hooks=[Hook(1, stop)])
    train(TokenizerTask(recipe(5)), options(tmp_path))
    train(TokenizerTask(recipe(6)), options(tmp_path))
    notes = Tokenizer.from_pretrained(tmp_path).about["lengthened"]
    assert [(note["from"], note["to"]) for note in notes] == [(4, 5), (5, 6)]
    # A hook that raises comes before the checkpoint of its step.
    assert [note["at_step"] for note in notes] == [1, 5]


def test_a_run_is_not_made_shorter_and_loses_nothing(recipe: Recipes, longer: Path):
    before = last(longer)
    with pytest.raises(ConfigError, match=r"holds a run of 8 steps: it can get more, but not fewer \(6\)") as error:
        train(TokenizerTask(recipe(6)), options(longer))
    assert error.value.setting == "steps"
    assert all(torch.equal(t, last(longer)[k]) for k, t in before.items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, r"recipe.seed \(0 there, 1 now\)"),
        ({"batch_size": 4}, r"recipe.batch_size"),
        ({"optimizer": AdamWConfig(lr=1e-4, warmup_steps=3)}, r"recipe.optimizer.lr"),
    ],
)
def test_what_may_not_change_is_named_with_what_to_do_instead(changes: dict, named: str, recipe: Recipes, longer: Path):
    with pytest.raises(ConfigError, match=named) as error:
        train(TokenizerTask(recipe(9, **changes)), options(longer))
    assert f"whose field init is {longer}" in str(error.value)


def test_what_is_said_to_do_instead_works(recipe: Recipes, longer: Path, tmp_path: Path):
    train(TokenizerTask(recipe(1, seed=1, init=str(longer))), options(tmp_path))
    assert Tokenizer.from_pretrained(tmp_path).about["recipe"]["init"] == str(longer)
