"""How runs start and average: projections, the average's warm-up, a generator that goes on from another."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softvq import Generator, files
from softvq.cli.main import main
from softvq.errors import ConfigError, Notice
from softvq.generators.dit import DiTConfig
from softvq.generators.sit import SiTConfig
from softvq.training.generator import new_generator
from softvq.training.options import RunOptions
from softvq.training.tokenizer import TokenizerTask, new_tokenizer
from tests.training.test_generator import NETWORK, latents, recipe, run, same
from tests.training.test_run import CPU, tiny_recipe

__all__ = ["latents"]  # a fixture
PROJECTIONS = ("to_quantizer", "from_quantizer", "decoder.to_pixel")


def test_projections_start_as_asked_and_nothing_else_changes():
    usual, default = new_tokenizer(tiny_recipe()), new_tokenizer(tiny_recipe(projections="default"))
    for name, linear in default.named_modules():
        if name in PROJECTIONS:
            bound = 1 / math.sqrt(linear.in_features)  # PyTorch's: uniform, weight and bias
            assert 0.8 * bound < linear.weight.abs().max() <= bound
            assert 0 < linear.bias.abs().max() <= bound
            before = usual.get_submodule(name)
            assert before.weight.abs().max() < 0.09  # normal of deviation 0.02
            assert before.bias.abs().max() == 0
    ours, theirs = usual.state_dict(), default.state_dict()
    assert {k for k in ours if not torch.equal(ours[k], theirs[k])} == {
        f"{name}.{part}" for name in PROJECTIONS for part in ("weight", "bias")
    }


def test_projections_of_another_start_are_refused():
    with pytest.raises(ValueError, match="init 'local' says how projections start"):
        tiny_recipe(init="local", projections="default")


def test_a_tokenizer_with_other_heads_is_no_start(tmp_path):
    """Its weights have the same shapes, and would be another function."""
    new_tokenizer(tiny_recipe()).save_pretrained(tmp_path)
    base = tiny_recipe(init=str(tmp_path))
    new_tokenizer(base)
    other = replace(base, tokenizer=replace(base.tokenizer, decoder=replace(base.tokenizer.decoder, heads=2)))
    with pytest.raises(ConfigError, match="has 1 heads in its decoder, this recipe's has 2"):
        new_tokenizer(other)


@pytest.mark.parametrize(("warmup", "decays"), [(True, [1 / 10, 2 / 11, 3 / 12]), (False, [0.9, 0.9, 0.9])])
def test_the_averages_warm_up_against_its_definition(warmup: bool, decays: list[float]):
    task = TokenizerTask(tiny_recipe())
    task.options = RunOptions(Path("unused"), CPU, "float32").settled()
    player = task.build()["model"]
    player.place(CPU)
    weight, average = player.followed.to_quantizer.weight, player.average.to_quantizer.weight
    wanted = average.clone().double()
    for step, decay in enumerate(decays):
        with torch.no_grad():
            weight += step + 1.0
        player.update_average(0.9, step, warmup)
        wanted = decay * wanted + (1 - decay) * weight.double()
    torch.testing.assert_close(average.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_recipe_says_if_the_average_warms_up(latents, tmp_path):
    """With a constant decay next to 1 the model of a short run is where it started."""
    slow = replace(recipe("sit", latents, ema_warmup=False), ema_decay=0.9999)
    start = new_generator(slow).state_dict()
    for name, tensor in files.read_tensors(run(slow, tmp_path / "slow") / "model.safetensors").items():
        torch.testing.assert_close(tensor, start[name], rtol=0, atol=2e-5)
    warm = files.read_tensors(run(replace(slow, ema_warmup=True), tmp_path / "warm") / "model.safetensors")
    assert any((warm[name] - start[name]).abs().max() > 1e-3 for name in start)


@pytest.mark.parametrize("kind", ["sit", "dit", "mar"])
def test_a_generator_goes_on_from_another(kind: str, latents, tmp_path):
    first = run(recipe(kind, latents), tmp_path / "first")
    chosen = recipe(kind, latents, init=str(first), seed=1)
    assert new_generator(chosen).fingerprint == new_generator(replace(chosen, seed=5)).fingerprint
    for name, tensor in new_generator(chosen).state_dict().items():
        assert torch.equal(tensor, files.read_tensors(first / "model.safetensors")[name])
    second = run(chosen, tmp_path / "second")
    assert not same(first, second)
    again = run(chosen, tmp_path / "second")  # the run is finished: nothing is done, init is not read
    assert same(second, again)


def test_a_resumed_run_does_not_read_its_start_again(latents, tmp_path):
    first = run(recipe("sit", latents), tmp_path / "first")
    chosen = recipe("sit", latents, init=str(first))
    whole = run(replace(chosen, steps=6), tmp_path / "whole")
    (first / "model.safetensors").unlink()
    assert same(run(replace(chosen, steps=6), tmp_path / "whole"), whole)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (DiTConfig(NETWORK), "it is a SiT, not a DiT"),
        (SiTConfig(replace(NETWORK, depth=2)), "network.blocks.1.* is not in both"),
        (SiTConfig(replace(NETWORK, width=32)), r"has the shape \(.*16.*\), the recipe's \(.*32.*\)"),
        (SiTConfig(replace(NETWORK, heads=1)), "it has 2 heads, the recipe's 1"),
        (SiTConfig(NETWORK, path="linear"), "its path is 'cosine', the recipe's 'linear'"),
        (SiTConfig(NETWORK, predict="noise"), "its predict is 'velocity', the recipe's 'noise'"),
    ],
)
def test_another_model_is_no_start(changed, said: str, latents, tmp_path):
    start = tmp_path / "start"
    new_generator(recipe("sit", latents)).save_pretrained(start)
    with pytest.raises(ConfigError, match=f"recipe tiny cannot go on from .*start: .*{said}"):
        new_generator(recipe("sit", latents, init=str(start), model=changed))


def test_the_command_line_goes_on_from_a_generator(latents, tmp_path, capsys):
    words = ["train", "generator", "emoji-sit", "--data", str(latents), "--out", str(tmp_path / "run"), "--steps", "1"]
    small = ["--model.network.width", "12", "--model.network.depth", "1", "--model.network.heads", "1"]
    assert main([*words, *small, "--batch_size", "4", "--init", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err


def released(folder: Path, classes: int) -> Path:
    """A SiT in the authors' own format, for the latents of these tests."""
    network = replace(NETWORK, classes=classes)
    model = new_generator(replace(recipe("sit", "unused"), model=SiTConfig(network), seed=3))
    config = {
        **{"hidden_size": network.width, "depth": network.depth, "num_heads": network.heads, "mlp_ratio": 4.0},
        **{"in_channels": network.channels, "input_size": network.tokens, "patch_size": 1, "num_classes": classes},
        **{"class_dropout_prob": 0.1, "vae_1d": True, "path_type": "cosine", "qk_norm": False, "use_cfg": True},
    }
    files.write_tensors(folder / "model.safetensors", model.network.state_dict())
    files.write_json(folder / "config.json", config)
    return folder


def test_a_released_generator_is_fine_tuned(latents, tmp_path):
    start = released(tmp_path / "sit-xl_softvq-l-64", NETWORK.classes)
    chosen = recipe("sit", latents, init=str(start))
    given = files.read_tensors(start / "model.safetensors")
    for name, tensor in new_generator(chosen).network.state_dict().items():
        assert torch.equal(tensor, given[name]), name
    trained = Generator.from_pretrained(run(chosen, tmp_path / "run"))
    assert trained.about["recipe"]["init"] == str(start)
    assert trained.fingerprint != Generator.from_pretrained(start).fingerprint


def test_with_another_number_of_classes_their_embeddings_start_anew_and_that_is_said(latents, tmp_path):
    start = released(tmp_path / "start", NETWORK.classes + 7)
    chosen = recipe("sit", latents, init=str(start))
    fresh = new_generator(replace(chosen, init=None)).state_dict()
    with pytest.warns(Notice, match=f"has {NETWORK.classes} classes and .*start {NETWORK.classes + 7}: their embedd"):
        generator = new_generator(chosen)
    given = {f"network.{name}": tensor for name, tensor in files.read_tensors(start / "model.safetensors").items()}
    table = "network.y_embedder.embedding_table.weight"
    for name, tensor in generator.state_dict().items():
        if name == table:
            assert torch.equal(tensor[:-1], fresh[name][:-1])
            assert torch.equal(tensor[-1], given[name][-1])  # of no class
        else:
            assert torch.equal(tensor, given[name]), name
