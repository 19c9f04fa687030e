"""Where a run starts: fine-tuning another tokenizer, at its own or another size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from softvq import Tokenizer
from softvq.errors import ConfigError, ModelError
from softvq.layers import resample_positions
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.training.recipe import TokenizerRecipe
from softvq.training.tokenizer import new_tokenizer
from tests.training.test_run import run, tiny_recipe


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    Tokenizer(tiny_recipe().tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def recipe_from(model: Path, **tokenizer) -> TokenizerRecipe:
    recipe = tiny_recipe(init=str(model))
    return replace(recipe, tokenizer=replace(recipe.tokenizer, **tokenizer))


def test_at_the_same_size_it_is_the_same_model(model: Path):
    given, started = Tokenizer.from_pretrained(model).state_dict(), new_tokenizer(recipe_from(model)).state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in started.items())


def test_at_another_image_size_positions_are_resampled_and_all_else_is_the_same(model: Path):
    given, started = Tokenizer.from_pretrained(model), new_tokenizer(recipe_from(model, image_size=32))
    for name, tensor in started.state_dict().items():
        expected = given.state_dict()[name]
        if name.endswith("vit.pos_embed"):
            expected = resample_positions(expected, (2, 2), (4, 4))
        assert torch.equal(tensor, expected), name
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(started(images).images, given(images).images)  # which interpolates as it goes


@pytest.mark.parametrize("tokens", [2, 8])
def test_at_another_number_of_tokens_they_are_interpolated_and_differ(model: Path, tokens: int):
    started = new_tokenizer(recipe_from(model, tokens=tokens))
    assert started.encode(torch.zeros(1, 3, 16, 16)).shape == (1, tokens, 4)
    latents = started.encoder.latent_tokens[0]
    distances = torch.cdist(latents, latents) + torch.eye(tokens)
    assert distances.min() > 1e-3
    given = Tokenizer.from_pretrained(model).encoder.latent_tokens[0]
    if tokens == 2:
        torch.testing.assert_close(latents, (given[::2] + given[1::2]) / 2)


def test_pretrained_encoder_weights_are_not_loaded_then(model: Path):
    recipe = replace(recipe_from(model), encoder_weights="vit_base_patch14_dinov2.lvd142m")  # cannot be had offline
    assert recipe.networks == []
    new_tokenizer(recipe)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_dim": 6}, r"latent_mean of shape \(4,\), this recipe's has \(6,\)"),
        ({"quantizer": ProductConfig(SoftVQConfig(9), 2, "token")}, r"codebook of shape \(8, 4\), .* has \(9, 4\)"),
        ({"quantizer": ProductConfig(SoftVQConfig(8), 4, "token")}, r"another model: quantizer\.inner\.2\.codebook"),
    ],
)
def test_another_model_is_refused_with_both_shapes(model: Path, fields: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        new_tokenizer(recipe_from(model, **fields))


def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(ModelError, match="no model folder"):
        new_tokenizer(tiny_recipe(init=str(tmp_path / "nothing")))


def test_a_run_goes_on_from_a_model_and_resumes_without_it(model: Path, tmp_path: Path):
    (pictures := tmp_path / "pictures").mkdir()  # the run draws some of its own
    for number in range(4):
        Image.new("RGB", (20, 24), (60 * number, 0, 200)).save(pictures / f"{number}.png")
    recipe = replace(recipe_from(model), data=str(pictures), steps=4)
    trained = run(recipe, tmp_path / "run", checkpoint=4)
    (model / "model.safetensors").unlink()
    (trained / "model.safetensors").unlink()
    assert run(recipe, tmp_path / "run").is_dir()
