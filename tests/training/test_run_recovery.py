"""What a run does when its folder, its data or its machine is not as it was."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import Tokenizer, files, hub
from softvq.errors import ConfigError, DataError, ModelError, StorageError, TrainingError
from softvq.files import LOCK, read_tensors
from softvq.optim import MuonConfig
from softvq.quantizers.hard import VQConfig
from softvq.training.options import Intervals, RunOptions
from softvq.training.run import train
from softvq.training.state import Checkpoints, check_same_run
from softvq.training.task import Hook
from softvq.training.tokenizer import TokenizerTask
from tests.training.test_run import lines, pictures, power_cut_after, run, tiny_recipe  # noqa: F401 (a fixture)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(pictures: Path, tmp_path: Path):  # noqa: F811
    recipe = tiny_recipe(data=str(pictures))
    whole = (run(recipe, tmp_path / "run") / hub.WEIGHTS).read_bytes()
    newest = Checkpoints(tmp_path / "run" / "checkpoints").all()[-1]
    damaged = (("model-optimizer.safetensors", b""), ("state.json", b"{}"), ("model.safetensors", b"x" * 99))
    for name, content in damaged:
        (newest / name).write_bytes(content)
        assert (run(recipe, tmp_path / "run") / hub.WEIGHTS).read_bytes() == whole


def test_only_damaged_checkpoints_are_a_sentence(pictures: Path, tmp_path: Path):  # noqa: F811
    recipe = tiny_recipe(data=str(pictures))
    run(recipe, tmp_path / "run")
    for folder in Checkpoints(tmp_path / "run" / "checkpoints").all():
        files.write_tensors(folder / "model-optimizer.safetensors", {})
    with pytest.raises(ModelError, match=r"can be read: .*step-0000007 \(model-optimizer holds 0 tensors instead of"):
        run(recipe, tmp_path / "run")


def test_other_images_are_refused(pictures: Path, tmp_path: Path):  # noqa: F811
    recipe = tiny_recipe(data=str(pictures))
    run(recipe, tmp_path / "run")
    (pictures / "class0" / "0.png").rename(pictures / "class0" / "00.png")
    with pytest.raises(ConfigError, match=r"images\.names"):
        run(recipe, tmp_path / "run")


def test_a_run_from_before_a_field_had_types_goes_on(tmp_path: Path):
    """Where one class alone was possible its name was not written; a name that was written must be the same."""
    before = {"optimizer": {"type": "AdamW"}, "other": {"lr": 1}}
    check_same_run(tmp_path, before, {"optimizer": {"type": "AdamW"}, "other": {"type": "AdamW", "lr": 1}})
    for optimizer, rate in (("Muon", 1), ("AdamW", 2)):
        described = {"optimizer": {"type": optimizer}, "other": {"type": "AdamW", "lr": rate}}
        with pytest.raises(ConfigError, match=r"differs in (optimizer\.type|other\.lr)"):
            check_same_run(tmp_path, before, described)


def test_a_finished_model_is_not_overwritten(pictures: Path, tmp_path: Path):  # noqa: F811
    recipe = tiny_recipe(data=str(pictures))
    run(recipe, tmp_path / "run")
    for folder in Checkpoints(tmp_path / "run" / "checkpoints").all():
        folder.rename(tmp_path / folder.name)
    with pytest.raises(ConfigError, match="holds a finished model and no checkpoints"):
        run(recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"differs in recipe\.seed"):
        run(replace(recipe, seed=1), tmp_path / "run")


def test_bad_files_are_counted_over_the_whole_run(pictures: Path, tmp_path: Path, capsys):  # noqa: F811
    (pictures / "class0" / "bad.png").write_bytes(b"not an image")
    recipe = tiny_recipe(data=str(pictures))
    run(recipe, tmp_path / "whole")

    with pytest.raises(RuntimeError, match="power cut"):
        run(recipe, tmp_path / "cut", hooks=[power_cut_after(6)])
    run(recipe, tmp_path / "cut")
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_a_collapsed_codebook_still_leaves_a_model(pictures: Path, tmp_path: Path, capsys):  # noqa: F811
    weights = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}
    recipe = tiny_recipe(data=str(pictures), quantizer=VQConfig(1), weights=weights)
    tokenizer = Tokenizer.from_pretrained(run(recipe, tmp_path / "run"))
    assert torch.equal(tokenizer.latent_std, torch.ones(4))
    assert "4 of 4 latent channels never change" in capsys.readouterr().err


def test_without_pytorchs_muon_there_is_our_own(pictures: Path, tmp_path: Path, monkeypatch):  # noqa: F811
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    monkeypatch.setattr("softvq.optim.gains_from_bfloat16", lambda device: True)
    assert run(tiny_recipe(data=str(pictures), optimizer=MuonConfig()), tmp_path / "run").is_dir()


def test_a_device_without_memory_is_a_sentence(pictures, tmp_path, monkeypatch):  # noqa: F811
    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TokenizerTask, "step", step)
    with pytest.raises(TrainingError, match="no memory left for 4 images a step"):
        run(tiny_recipe(data=str(pictures)), tmp_path / "run")


def test_a_killed_worker_ends_the_run_and_the_checkpoint_stands(pictures: Path, tmp_path: Path):  # noqa: F811
    """It is found by its parent, which is this process; the run then goes on as if nothing had been."""
    recipe = tiny_recipe(data=str(pictures), steps=40)
    run(recipe, tmp_path / "whole")

    def kill(state, log) -> None:
        if state.step == 4:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    options = RunOptions(tmp_path / "cut", "cpu", "float32", workers=2, intervals=Intervals(log=2, checkpoint=3))
    begun = time.monotonic()
    with pytest.raises(DataError, match="a process that decodes images has died"):
        train(TokenizerTask(recipe), options, hooks=[Hook(1, kill)])
    assert time.monotonic() - begun < 20
    assert not multiprocessing.active_children()
    assert Checkpoints(tmp_path / "cut" / "checkpoints").all()
    resumed = train(TokenizerTask(recipe), options)
    first, second = (read_tensors(folder / "model.safetensors") for folder in (tmp_path / "whole" / "model", resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_runs_in_one_folder_are_kept_apart(pictures: Path, tmp_path: Path):  # noqa: F811
    recipe, met = tiny_recipe(data=str(pictures)), []

    def again(state, log) -> None:
        with pytest.raises(StorageError, match=r"run is in use by .*; wait until it has ended, or use another folder"):
            run(recipe, tmp_path / "run")
        met.append(state.step)

    run(recipe, tmp_path / "run", hooks=[Hook(3, again)])
    assert met
    assert not (tmp_path / "run" / LOCK).exists()


def test_tensorboard_has_every_logged_step_once(pictures: Path, tmp_path: Path):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tiny_recipe(data=str(pictures))
    with pytest.raises(RuntimeError, match="power cut"):
        run(recipe, tmp_path / "cut", hooks=[power_cut_after(5)])
    run(recipe, tmp_path / "cut")
    events = EventAccumulator(str(tmp_path / "cut" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [2, 3, 4, 6, 7]


def test_a_thousand_files_with_one_bad_one(tmp_path: Path):
    folder = tmp_path / "many"
    folder.mkdir()
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(folder / "0000.png")
    content = (folder / "0000.png").read_bytes()
    for number in range(1, 1000):
        (folder / f"{number:04d}.png").write_bytes(content if number != 500 else content[:40])
    run(tiny_recipe(data=str(folder), batch_size=250, steps=4), tmp_path / "run", checkpoint=4)
    events = [line for line in lines(tmp_path / "run") if "bad_file" in line]
    assert [event["bad_file"] for event in events] == ["0500.png"]


def test_too_many_bad_files_stop_the_run_and_it_is_saved(pictures: Path, tmp_path: Path):  # noqa: F811
    for number in range(3):
        (pictures / "class0" / f"bad{number}.png").write_bytes(b"no image")
    recipe = tiny_recipe(data=str(pictures), steps=50)
    with pytest.raises(TrainingError, match=r"files cannot be read, more than the share that may be"):
        run(recipe, tmp_path / "run", most_bad=0.1)
    assert Checkpoints(tmp_path / "run" / "checkpoints").all()
    assert run(recipe, tmp_path / "all", most_bad=0.3).is_dir()
