"""Device and precision: what was asked for, or what this machine does best."""

import pytest
import torch

from softvq import runtime
from softvq.errors import ConfigError

CPU = torch.device("cpu")


def test_a_device_is_the_one_asked_for_or_a_sentence():
    assert runtime.pick_device("cpu") == CPU
    assert runtime.pick_device() == runtime.best_device()
    for asked in ("tpu", "xla", "cuda:99"):
        with pytest.raises(ConfigError, match=f"the device '{asked}' cannot be used here") as error:
            runtime.pick_device(asked)
        assert error.value.setting == "device"


@pytest.mark.parametrize("gains", [True, False])
def test_auto_is_bfloat16_for_training_where_the_machine_gains(monkeypatch: pytest.MonkeyPatch, gains: bool):
    monkeypatch.setattr(runtime, "gains_from_bfloat16", lambda device: gains)
    assert runtime.pick_precision("auto", CPU, training=True) == ("bfloat16" if gains else "float32")
    assert runtime.pick_precision("auto", CPU, training=False) == "float32"
    assert runtime.pick_precision("bfloat16", CPU, training=False) == "bfloat16"


def test_autocast_is_on_for_bfloat16_alone():
    x = torch.ones(2, 2)
    with runtime.autocast(CPU, "bfloat16"):
        assert (x @ x).dtype == torch.bfloat16
    with runtime.autocast(CPU, "float32"):
        assert (x @ x).dtype == torch.float32
