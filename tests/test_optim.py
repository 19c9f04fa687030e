"""Optimizers, groups and schedules."""

import math

import pytest
import torch
from torch import nn

from softvq.optim import AdamWConfig, Muon, MuonConfig, orthogonal, parameter_groups
from softvq.recipes.all import GENERATORS, find, find_generator
from softvq.training.generator import Generating, new_generator
from softvq.training.tokenizer import new_tokenizer
from tests.training.test_run import tiny_recipe

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.6 has no Muon of its own")


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


@pytest.mark.parametrize(
    "bad",
    [
        *({"lr": 0.0}, {"betas": (0.9, 1.0)}, {"grad_clip": 0.0}, {"min_lr": 2.0}, {"warmup_steps": True}),
        *({name: value} for name in ("lr", "weight_decay", "grad_clip") for value in (math.nan, math.inf, -1.0)),
        *({"betas": (math.nan, 0.9)}, {"min_lr": math.nan}),
    ],
)
def test_impossible_settings(bad: dict):
    with pytest.raises(ValueError, match=r"must be"):
        AdamWConfig(**bad)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_impossible_settings_of_muon(name: str, value: float):
    with pytest.raises(ValueError, match=r"must be"):
        MuonConfig(**{name: value})


def test_the_emoji_recipe_ends_at_zero():
    recipe = find("emoji-64")
    assert recipe.optimizer.factor_at(recipe.steps, recipe.steps) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["emoji-sit", "emoji-dit", "emoji-mar"])
def test_muon_trains_the_matrices_of_every_generators_blocks(name: str):
    """Blocks are what the model says they are: MAR's are called otherwise, and all its weights fell to AdamW once."""
    recipe = GENERATORS[name]
    model = new_generator(recipe)
    trained = Generating(model)
    muon, rest = recipe.optimizer.build(trained)
    held = {p for group in muon.param_groups for p in group["params"]}
    assert held == {p for block in model.blocks for p in block.parameters() if p.ndim == 2}
    assert sum(p.numel() for p in held) > 0.85 * sum(p.numel() for p in model.parameters())
    assert held.isdisjoint(p for group in rest.param_groups for p in group["params"])


def test_mars_blocks_are_all_that_look_like_some():
    model = new_generator(GENERATORS["emoji-mar"])
    owners = {
        name.rsplit(".", 1)[0] for name, _ in model.named_modules() if name.endswith((".attn", "adaLN_modulation"))
    }
    blocks = {name for name, module in model.named_modules() if any(module is block for block in model.blocks)}
    assert owners - {"head.final_layer"} == blocks


def test_an_optimizer_without_anything_to_train_is_refused():
    class Flat(torch.nn.Module):
        blocks = ()

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 2))

    with pytest.raises(ValueError, match="Muon has no matrices of transformer blocks"):
        MuonConfig().build(Flat())
    with pytest.raises(ValueError, match="AdamW has no parameters to train"):
        AdamWConfig().build(Flat().requires_grad_(False))


def test_mars_decay_leaves_out_the_head_positions_and_mask():
    """As in MAR, whose decay of 0.02 is for the transformer."""
    recipe = find_generator("mar-h-softvq-l-32-tiny")
    model = new_generator(recipe)
    trained = Generating(model)
    (optimizer,) = recipe.optimizer.build(trained)
    names = {p: name for name, p in model.named_parameters()}
    decayed = {names[p] for group in optimizer.param_groups for p in group["params"] if group["weight_decay"]}
    assert optimizer.param_groups[0]["weight_decay"] == 0.02
    assert {name.split(".")[0] for name in decayed} == {
        *("token_embedder", "label_embedder", "encoder", "decoder_embed", "decoder")
    }
    assert "encoder.0.attn.qkv.weight" in decayed
    assert not any(name.startswith("head") or name.endswith(("pos_embed", "mask_token")) for name in decayed)


@NEEDS_MUON
@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8)])
def test_muon_in_float32_is_pytorchs_in_bfloat16(shape: tuple[int, int]):
    """Up to bfloat16's rounding; and the update of a matrix has nearly equal singular values."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = Muon([ours], **settings), torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert float((ours - start).detach().norm()) > 0.3
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()
    values = torch.linalg.svdvals(orthogonal(gradient))
    assert 0.5 < values.min() <= values.max() < 1.5


@NEEDS_MUON
@pytest.mark.parametrize("gains", [True, False])
def test_the_faster_muon_is_taken(monkeypatch: pytest.MonkeyPatch, gains: bool):
    monkeypatch.setattr("softvq.optim.gains_from_bfloat16", lambda device: gains)
    muon, _ = MuonConfig().build(new_tokenizer(tiny_recipe()))
    assert type(muon) is (torch.optim.Muon if gains else Muon)
