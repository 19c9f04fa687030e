"""The hooks of runs: a score or a picture that is not finite stops the run, with its step."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from softvq.data.loader import spread
from softvq.data.opening import open_source
from softvq.data.sources import Folder
from softvq.errors import TrainingError
from softvq.evaluation.comparison import domain_limits, looks
from softvq.generators.base import Generator
from softvq.tokenizer import Tokenizer
from softvq.training.hooks import Validation, reconstruction_hook, sample_hook
from softvq.training.logs import Log
from softvq.training.options import Intervals, RunOptions
from softvq.training.run import train
from softvq.training.state import TrainState
from softvq.training.task import Hook
from softvq.training.tokenizer import TokenizerTask, new_tokenizer
from tests.training.test_run import CPU, pictures, tiny_recipe  # noqa: F401


def called(hook: Hook, average: Any) -> Mock:
    """The log of a hook that is called after step 5 with this average."""
    state, log = Mock(spec=TrainState, step=5, players={"model": Mock(average=average)}), Mock(spec=Log)
    hook.call(state, log)
    return log


def broken(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        list(model.parameters())[-1].fill_(math.nan)
    return model


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(tmp_path / "run", CPU, "float32", workers=0)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return new_tokenizer(tiny_recipe()).eval()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_validation_score_that_is_not_finite_stops_the_run(
    pictures: Path,  # noqa: F811
    options: RunOptions,
    tokenizer: Tokenizer,
    bad: float,
):
    source = Folder(pictures)
    sound = Validation(source, "pictures", 4, lambda made, real: torch.zeros(len(made)))
    assert called(reconstruction_hook(source, 16, sound, options), tokenizer).values.call_args.args[1]["val/lpips"] == 0
    wrong = Validation(source, "pictures", 4, lambda made, real: torch.full((len(made),), bad))
    with pytest.raises(TrainingError, match=f"^step 5: the validation LPIPS is {bad}, .* last checkpoint") as error:
        called(reconstruction_hook(source, 16, wrong, options), tokenizer)
    assert error.value.setting == "precision"


def test_reconstructions_that_are_not_finite_stop_the_run(
    pictures: Path,  # noqa: F811
    options: RunOptions,
    tokenizer: Tokenizer,
):
    hook = reconstruction_hook(Folder(pictures), 16, None, options)
    with pytest.raises(TrainingError, match=r"^step 5: the reconstructions are not finite, with the averaged weights"):
        called(hook, broken(tokenizer))
    assert not (options.out / "samples").exists()


def test_a_perfect_image_stops_nothing(pictures: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """Its PSNR is infinite."""
    tokenizer, source = new_tokenizer(tiny_recipe()).eval(), Folder(pictures)
    forward = Tokenizer.forward

    def perfect(self: Tokenizer, images: torch.Tensor) -> Any:
        result = forward(self, images)
        result.images.copy_(images)
        return result

    monkeypatch.setattr(Tokenizer, "forward", perfect)
    log = called(reconstruction_hook(source, 16, Validation(source, "pictures", 4), options), tokenizer)
    assert log.values.call_args.args[1]["val/psnr"] == math.inf


def test_a_models_figures_come_with_the_limits_of_its_images(tokenizer: Tokenizer):
    """Those of all the images that it is measured on, at the model's size."""
    source = open_source("emoji-val")
    told = Validation(source, "emoji-val", 120).figures(tokenizer)
    assert (told["domain"], told["figures"]["images"]) == ("emoji-val", 120)
    assert told["domain_limits"] == domain_limits(looks(spread(source, 16, 120)))
    assert Validation(source, "emoji-val", 20).figures(tokenizer)["domain_limits"] == {}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_stops_the_run(options: RunOptions, loss: float):
    hook = sample_hook(Tokenizer.from_pretrained("softvq-emoji-64"), lambda model: loss, options)
    with pytest.raises(TrainingError, match=f"^step 5: the validation loss is {loss}, .* last checkpoint"):
        called(hook, Generator.from_pretrained("emoji-sit"))


@pytest.mark.parametrize(("which", "what"), [("generator", "generator's latents"), ("tokenizer", "images")])
def test_samples_that_are_not_finite_stop_the_run(
    options: RunOptions, monkeypatch: pytest.MonkeyPatch, which: str, what: str
):
    models = {
        "generator": Generator.from_pretrained("emoji-sit"),
        "tokenizer": Tokenizer.from_pretrained("softvq-emoji-64"),
    }
    broken(models[which])
    monkeypatch.setattr("softvq.training.hooks.SHOWN", 1)
    with pytest.raises(TrainingError, match=f"^step 5: the {what} are not finite, with the averaged weights"):
        called(sample_hook(models["tokenizer"], None, options), models["generator"])


def test_the_last_checkpoint_stays(pictures: Path, tmp_path: Path):  # noqa: F811
    options = RunOptions(tmp_path / "run", CPU, "float32", workers=0, intervals=Intervals(1, 2, 4))
    spoil = Hook(3, lambda state, log: broken(state.players["model"].average) and None)
    with pytest.raises(TrainingError, match=r"^step 4: the reconstructions are not finite"):
        train(TokenizerTask(tiny_recipe(data=str(pictures))), options, hooks=[spoil])
    assert [path.name for path in (options.out / "checkpoints").iterdir()] == ["step-0000002"]
