"""Both players' checkpoint: the next steps are bitwise those of the uninterrupted run."""

from pathlib import Path

import pytest

from softvq import files
from softvq.errors import ModelError
from softvq.quantizers.gaussian import KLConfig
from softvq.training.state import Checkpoints
from tests.training.test_step import START, Run, copied, moved, recipe_of


def test_the_averages_of_norms_survive_a_checkpoint(tmp_path: Path):
    run = Run(recipe_of(skip_above=10.0))
    run.step()
    Checkpoints(tmp_path).save(run.state, {"bad_files": {"a": "b"}})
    other = Run(run.recipe)
    meta = Checkpoints(tmp_path).load(other.state)
    assert other.state.norms == run.state.norms
    assert other.state.norms.keys() == {"model", "discriminator"}
    assert (other.state.step, meta["bad_files"]) == (1, {"a": "b"})


@pytest.mark.parametrize("cut", [1, 2, 3], ids=["before_the_start", "at_the_start", "after_the_start"])
def test_resumed_the_next_steps_are_bitwise_those_of_the_uninterrupted_run(tmp_path: Path, cut: int):
    """Also from a checkpoint that was written before the discriminator's first step."""
    recipe = recipe_of(KLConfig(), schedules={"adversarial": START}, skip_above=100.0, accumulate=2)
    run = Run(recipe)
    for _ in range(cut):
        run.step()
    Checkpoints(tmp_path).save(run.state, {})
    resumed = Run(recipe)
    Checkpoints(tmp_path).load(resumed.state)
    assert resumed.state.step == cut
    loaded = resumed.state.tensors()
    assert not moved(copied(run.state), loaded, *loaded)
    for _ in range(2):
        assert run.step() == resumed.step()
        found = resumed.state.tensors()
        assert not moved(copied(run.state), found, *found)
        assert run.state.norms == resumed.state.norms


@pytest.mark.parametrize("part", ["discriminator", "discriminator-optimizer"])
def test_a_checkpoint_without_the_other_player_is_refused(tmp_path: Path, part: str):
    run = Run(recipe_of())
    run.step()
    folder = Checkpoints(tmp_path).save(run.state, {})
    tensors = files.read_tensors(folder / f"{part}.safetensors")
    files.write_tensors(folder / f"{part}.safetensors", dict(list(tensors.items())[:-4]))
    with pytest.raises(ModelError, match="no checkpoint can be read"):
        Checkpoints(tmp_path).load(Run(run.recipe).state)
