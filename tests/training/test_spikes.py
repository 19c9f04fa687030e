"""Each player's own rate and bound on its gradient; spikes are left out, reported and all but forgotten."""

import math
from dataclasses import replace

import pytest

from softvq.optim import AdamWConfig
from tests.training.test_step import FAST, Run, copied, gradients_of, moved, recipe_of, without_adversarial


def test_each_player_has_its_own_rate_and_its_own_bound_on_the_gradient():
    slow = AdamWConfig(lr=3e-4, warmup_steps=10, grad_clip=None)
    run = Run(recipe_of(optimizer=replace(FAST, grad_clip=1e-3), judged={"optimizer": slow}))
    values = run.step()
    assert {g["lr"] for o in run.state.optimizers for g in o.param_groups} == {1e-3}
    assert [g["lr"] for o in run.state.judge_optimizers for g in o.param_groups] == pytest.approx([3e-5, 3e-5])
    assert values["optimizer/lr"] == pytest.approx(1e-3)
    norms = {
        player: math.sqrt(math.fsum(g.double().square().sum().item() for g in gradients.values()))
        for player, gradients in run.gradients.items()
    }
    assert values["optimizer/gradient_norm"] > 1e-3 == pytest.approx(norms["tokenizer"], rel=1e-2)
    assert values["optimizer/discriminator_gradient_norm"] == pytest.approx(norms["discriminator"], rel=1e-4)


def test_a_spike_is_left_out_reported_and_all_but_forgotten():
    run = Run(recipe_of(skip_above=3.0))
    first = run.step()
    norms = {
        "tokenizer": first["optimizer/gradient_norm"],
        "discriminator": first["optimizer/discriminator_gradient_norm"],
    }
    assert run.state.norms == pytest.approx(norms, rel=1e-12)  # 0.99 x + 0.01 x
    assert first["optimizer/tokenizer_skipped"] == first["optimizer/discriminator_skipped"] == 0
    run.state.norms = {"tokenizer": 1e-9, "discriminator": norms["discriminator"]}
    before = copied(run.state)
    values = run.step()
    assert (values["optimizer/tokenizer_skipped"], values["optimizer/discriminator_skipped"]) == (1, 0)
    assert not moved(before, copied(run.state), "model", "heads", "optimizer")
    assert moved(before, copied(run.state), "judge_optimizer")
    assert run.state.norms["tokenizer"] == pytest.approx(1e-9 * (0.99 + 0.01 * 3))
    assert not gradients_of(run.state.trained)
    expected = 0.99 * norms["discriminator"] + 0.01 * values["optimizer/discriminator_gradient_norm"]
    assert run.state.norms["discriminator"] == pytest.approx(expected)
    run.state.norms = {"tokenizer": 1e9, "discriminator": 1e-9}
    before = copied(run.state)
    values = run.step()
    assert (values["optimizer/tokenizer_skipped"], values["optimizer/discriminator_skipped"]) == (0, 1)
    assert moved(before, copied(run.state), "model")
    assert not moved(before, copied(run.state), "judge_optimizer")
    parameters = {f"judge.{name}" for name, _ in run.state.judge.named_parameters()}
    assert not parameters & set(moved(before, copied(run.state), "judge"))
    assert run.state.norms["discriminator"] == pytest.approx(1e-9 * (0.99 + 0.01 * 3))
    assert run.state.norms["tokenizer"] == pytest.approx(0.99e9, rel=1e-3)


def test_a_spike_is_more_than_so_many_times_the_average_of_the_others():
    state = Run(without_adversarial(recipe_of())).state
    assert not state.is_spike("a", 2.0, 1.5)  # nothing to compare with
    assert state.norms == {"a": 2.0}
    assert not state.is_spike("a", 3.0, 1.5)  # not more
    assert state.norms["a"] == pytest.approx(0.99 * 2 + 0.01 * 3)
    average = state.norms["a"]
    for _ in range(3):  # each enters as what would just be none
        assert state.is_spike("a", 1.6 * average, 1.5)
    assert state.norms["a"] == pytest.approx(average * (0.99 + 0.01 * 1.5) ** 3)
    followed = sum(state.is_spike("a", 10 * average, 1.5) for _ in range(1000))
    assert 100 < followed < 1000  # a lasting change is no spike in the end
    norms = dict(state.norms)
    assert not any(state.is_spike("a", value, 1.5) for value in (float("nan"), float("inf")))
    assert state.norms == norms
    assert not state.is_spike("b", 100.0, 1.5)  # each name has its own


def test_without_a_guard_nothing_is_skipped_or_averaged():
    run = Run(recipe_of())
    assert not [name for name in run.step() if "skipped" in name]
    assert run.state.norms == {}
