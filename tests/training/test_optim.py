"""Optimizers, groups and schedules."""

import math

import pytest
import torch

from softvq.optim import AdamWConfig, MuonConfig, parameter_groups
from softvq.recipes.all import find
from softvq.training.tokenizer import new_tokenizer
from tests.training.test_run import tiny_recipe


def test_warm_up_then_cosine_to_the_floor():
    config = AdamWConfig(lr=1.0, warmup_steps=10, min_lr=0.1)
    factors = [config.factor_at(step, 110) for step in range(110)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    for step in (10, 35, 60, 109):
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))
        assert factors[step] == pytest.approx(expected)
    assert config.factor_at(110, 110) == pytest.approx(0.1)


def test_only_matrices_are_decayed():
    tokenizer = new_tokenizer(tiny_recipe())
    names = {id(p): name for name, p in tokenizer.named_parameters()}
    decayed, plain = parameter_groups(tokenizer.named_parameters(), 0.1)
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed_names)
    assert {"encoder.vit.blocks.0.attn.qkv.weight", "decoder.to_pixel.weight"} <= decayed_names


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
def test_every_parameter_has_one_optimizer_and_a_peak(config):
    tokenizer = new_tokenizer(tiny_recipe())
    groups = [group for optimizer in config.build(tokenizer) for group in optimizer.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in tokenizer.parameters())
    assert all(group["peak"] > 0 for group in groups)


def test_muon_takes_the_matrices_of_the_blocks_alone():
    tokenizer = new_tokenizer(tiny_recipe())
    muon, rest = MuonConfig().build(tokenizer)
    names = {id(p): name for name, p in tokenizer.named_parameters()}
    assert all(".blocks." in names[id(p)] and p.ndim == 2 for p in muon.param_groups[0]["params"])
    assert "to_quantizer.weight" in {names[id(p)] for group in rest.param_groups for p in group["params"]}


def test_adamw_takes_the_papers_settings():
    config = AdamWConfig()
    assert (config.lr, config.betas, config.weight_decay, config.warmup_steps) == (1e-4, (0.9, 0.95), 1e-4, 5000)


def test_adamw_update_against_its_definition():
    parameter = torch.nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    config = AdamWConfig(lr=0.1, weight_decay=0.01)
    optimizer = config.build_for([("w", parameter)])
    m = v = torch.zeros_like(parameter)
    expected = parameter.detach().clone()
    for step in range(1, 4):
        gradient = torch.tensor([[0.3 * step, -1.0]], dtype=torch.float64)
        parameter.grad = gradient.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient
        v = 0.95 * v + 0.05 * gradient**2
        expected = expected * (1 - 0.1 * 0.01)
        expected = expected - 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    assert torch.allclose(parameter.detach(), expected, atol=1e-12)


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"grad_clip": 0.0}, {"min_lr": 2.0}])
def test_impossible_settings(bad: dict):
    with pytest.raises(ValueError, match=r"must be"):
        AdamWConfig(**bad)


def test_the_emoji_recipe_ends_at_zero():
    recipe = find("emoji-64")
    assert recipe.optimizer.factor_at(recipe.steps, recipe.steps) == pytest.approx(0, abs=1e-9)
