"""The options of a run, checked before it begins."""

import math

import pytest

from softvq.errors import ConfigError
from softvq.training.options import Intervals, RunOptions


@pytest.mark.parametrize("share", [math.nan, math.inf, -0.1, 1.1, True])
def test_the_share_of_unreadable_images_is_a_share(share: float):
    with pytest.raises(ConfigError, match=f"most_bad is a share, from 0 to 1, not {share}") as error:
        RunOptions("run", most_bad=share)
    assert error.value.setting == "most_bad"
    for sound in (0, 0.5, 1):
        assert RunOptions("run", most_bad=sound).most_bad == sound


@pytest.mark.parametrize(("name", "least"), [("workers", 0), ("val_images", 1)])
def test_counts_are_whole_and_not_too_small(name: str, least: int):
    assert getattr(RunOptions("run", **{name: least}), name) == least
    with pytest.raises(ConfigError, match=f"{name} must be at least {least}, not {least - 1}"):
        RunOptions("run", **{name: least - 1})
    with pytest.raises(ConfigError, match=f"{name} must be a whole number, not True"):
        RunOptions("run", **{name: True})


@pytest.mark.parametrize("name", ["log", "checkpoint", "samples"])
@pytest.mark.parametrize("steps", [0, -1, True])
def test_intervals_are_steps(name: str, steps: int):
    with pytest.raises(ConfigError, match=f"{name} must be every so many steps, at least 1, not {steps}"):
        Intervals(**{name: steps})
