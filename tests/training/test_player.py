"""Each player's own rate and bound on its gradient; spikes are left out, reported and all but forgotten."""

import math
from dataclasses import replace

import pytest
import torch

from softvq.optim import AdamWConfig
from softvq.training.player import Player
from tests.training.test_step import FAST, Run, copied, gradients_of, moved, recipe_of


def test_each_player_has_its_own_rate_and_its_own_bound_on_the_gradient():
    slow = AdamWConfig(lr=3e-4, warmup_steps=10, grad_clip=None)
    run = Run(recipe_of(optimizer=replace(FAST, grad_clip=1e-3), judged={"optimizer": slow}))
    values = run.step()
    assert {g["lr"] for o in run.players["model"].optimizers for g in o.param_groups} == {1e-3}
    rates = [g["lr"] for o in run.players["discriminator"].optimizers for g in o.param_groups]
    assert rates == pytest.approx([3e-5, 3e-5])
    assert values["optimizer/lr"] == pytest.approx(1e-3)
    norms = {
        player: math.sqrt(math.fsum(g.double().square().sum().item() for g in gradients.values()))
        for player, gradients in run.gradients.items()
    }
    assert values["optimizer/gradient_norm"] > 1e-3 == pytest.approx(norms["model"], rel=1e-2)
    assert values["optimizer/discriminator_gradient_norm"] == pytest.approx(norms["discriminator"], rel=1e-4)


def set_norms(run: Run, model: float, discriminator: float) -> None:
    """The running averages that spikes are told by."""
    run.players["model"].norm, run.players["discriminator"].norm = model, discriminator


def test_a_spike_is_left_out_reported_and_all_but_forgotten():
    run = Run(recipe_of(skip_above=3.0))
    first = run.step()
    norms = {
        "model": first["optimizer/gradient_norm"],
        "discriminator": first["optimizer/discriminator_gradient_norm"],
    }
    assert run.state.norms == pytest.approx(norms, rel=1e-12)  # 0.99 x + 0.01 x
    assert first["optimizer/tokenizer_skipped"] == first["optimizer/discriminator_skipped"] == 0
    set_norms(run, 1e-9, norms["discriminator"])
    before = copied(run.state)
    values = run.step()
    assert (values["optimizer/tokenizer_skipped"], values["optimizer/discriminator_skipped"]) == (1, 0)
    assert not moved(before, copied(run.state), "model", "model-optimizer")
    assert moved(before, copied(run.state), "discriminator-optimizer")
    assert run.state.norms["model"] == pytest.approx(1e-9 * (0.99 + 0.01 * 3))
    assert not gradients_of(run.tokenizing)
    expected = 0.99 * norms["discriminator"] + 0.01 * values["optimizer/discriminator_gradient_norm"]
    assert run.state.norms["discriminator"] == pytest.approx(expected)
    set_norms(run, 1e9, 1e-9)
    before = copied(run.state)
    values = run.step()
    assert (values["optimizer/tokenizer_skipped"], values["optimizer/discriminator_skipped"]) == (0, 1)
    assert moved(before, copied(run.state), "model")
    assert not moved(before, copied(run.state), "discriminator-optimizer")
    parameters = {f"discriminator.{name}" for name, _ in run.discriminating.named_parameters()}
    assert not parameters & set(moved(before, copied(run.state), "discriminator"))
    assert run.state.norms["discriminator"] == pytest.approx(1e-9 * (0.99 + 0.01 * 3))
    assert run.state.norms["model"] == pytest.approx(0.99e9, rel=1e-3)


class Pulled:
    """A player of one number, with gradients of any norm: if its step was a spike, and its average after that."""

    def __init__(self):
        self.weight = torch.nn.Linear(1, 1, bias=False)
        self.player = Player(self.weight, AdamWConfig(lr=1e-3, grad_clip=None))
        self.player.place(torch.device("cpu"))

    def is_spike(self, norm: float, factor: float) -> bool:
        before = self.weight.weight.clone()
        self.weight.weight.grad = torch.full((1, 1), norm, dtype=torch.float32)
        found, spike = self.player.update(factor)
        assert found == norm or math.isnan(norm)
        assert torch.equal(self.weight.weight, before) == spike
        assert self.weight.weight.grad is None
        return spike


def test_a_spike_is_more_than_so_many_times_the_average_of_the_others():
    pulled = Pulled()
    player = pulled.player
    assert player.norm is None
    assert not pulled.is_spike(2.0, 1.5)  # nothing to compare with
    assert player.norm == 2.0
    assert not pulled.is_spike(3.0, 1.5)  # not more
    assert player.norm == pytest.approx(0.99 * 2 + 0.01 * 3)
    average = player.norm
    for _ in range(3):  # each enters as what would just be none
        assert pulled.is_spike(1.6 * average, 1.5)
    assert player.norm == pytest.approx(average * (0.99 + 0.01 * 1.5) ** 3)
    followed = sum(pulled.is_spike(10 * average, 1.5) for _ in range(1000))
    assert 100 < followed < 1000  # a lasting change is no spike in the end
    norm = player.norm
    assert not any(pulled.is_spike(value, 1.5) for value in (float("inf"), float("nan")))
    assert player.norm == norm
    assert not Pulled().is_spike(100.0, 1.5)  # each player has its own


def test_without_a_guard_nothing_is_skipped_or_averaged():
    run = Run(recipe_of())
    assert not [name for name in run.step() if "skipped" in name]
    assert run.state.norms == {}
