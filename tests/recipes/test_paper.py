"""The paper's tokenizers as recipes: complete, with the published numbers, and each tried in tiny."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softvq import config as configs
from softvq.data.loader import Batch
from softvq.errors import ConfigError
from softvq.losses.alignment import Projector
from softvq.losses.discriminators import DinoDiscriminatorConfig
from softvq.losses.total import ScheduleConfig
from softvq.optim import AdamWConfig
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.recipes.all import RECIPES, find, twins
from softvq.training.options import RunOptions
from softvq.training.recipe import AdversarialConfig, TokenizerRecipe
from softvq.training.tokenizer import TokenizerTask, new_tokenizer

PUBLISHED = {  # typed off the paper's tables once more, independently of the recipes
    "1": [0.89, 0.68, 0.74, 0.88, 0.65, 0.61],
    "2": [0.71],
    "7": [0.64],
    "3": [1.45, 2.61, 4.04, 10.97, 1.15, 1.33, 1.64, 2.01, 0.80, 0.92, 1.03, 1.24],
    "4": [0.98, 0.93, 0.73, 0.75, 0.81],
    "5": [
        1.33,
        1.19,
        1.55,
        1.17,
        1.12,
        1.82,
        1.58,
        1.35,
        1.14,
        1.23,
        2.31,
        0.63,
        1.61,
        0.79,
        2.03,
        1.37,
        1.19,
        1.52,
        1.10,
    ],
}
CPU = torch.device("cpu")
PAPER = [recipe for recipe in RECIPES.values() if recipe.published is not None]
FORMS = [find(name) for recipe in PAPER for name in (recipe.name, *twins(recipe.name)) if not name.endswith("-tiny")]


def flat(node, prefix: str = "") -> dict:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {k: v for name, item in node.items() for k, v in flat(item, f"{prefix}{name}.").items()}


def differing(one: TokenizerRecipe, other: TokenizerRecipe) -> set[str]:
    a, b = flat(configs.to_dict(one)), flat(configs.to_dict(other))
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


@pytest.mark.parametrize("table", PUBLISHED)
def test_every_published_row_has_a_recipe(table: str):
    assert sorted(r.published.rfid for r in PAPER if r.published.table == table) == sorted(PUBLISHED[table])


def test_names_and_commands():
    for recipe in PAPER:
        assert re.fullmatch(r"[a-z0-9.-]+", recipe.name)
        assert recipe.command == f"softvq train tokenizer {recipe.name} --data imagenet/train --val imagenet/val"
        assert configs.from_dict(TokenizerRecipe, configs.to_dict(recipe)) == recipe


@pytest.mark.parametrize("recipe", FORMS, ids=lambda recipe: recipe.name)
def test_the_settings_of_appendix_c1_are_shared(recipe: TokenizerRecipe):
    assert recipe.optimizer == AdamWConfig(1e-4, (0.9, 0.95), 1e-4, 5000, 0.0, 1.0)
    assert (recipe.batch_size, recipe.steps, recipe.ema_decay) == (256, 250_000, 0.9999)
    assert (recipe.augment.crop, recipe.augment.min_scale, recipe.augment.flip) == ("random", 0.8, True)
    assert recipe.weights["reconstruction"] == 1.0
    assert recipe.weights.get("kl", 0.01) == 0.01
    assert recipe.weights.get("alignment", 0.1) == 0.1
    assert (recipe.alignment is None) == ("alignment" not in recipe.weights)
    assert (recipe.weights["perceptual"], recipe.weights["adversarial"]) == (1.0, 0.2)
    schedules = {"perceptual": ScheduleConfig(0, 10_000), "adversarial": ScheduleConfig(20_000, 0)}
    assert recipe.schedules == schedules
    assert recipe.perceptual == "vgg16.tv_in1k"
    assert recipe.adversarial == AdversarialConfig(DinoDiscriminatorConfig(), "hinge", 0.5, 4.0, 0.001, False)
    assert recipe.adversarial.optimizer == recipe.optimizer
    assert recipe.adversarial.discriminator.backbone == "vit_small_patch16_224.dino"
    assert recipe.tokenizer.encoder.patch_size == recipe.tokenizer.decoder.patch_size == 16


@pytest.mark.parametrize("recipe", PAPER, ids=lambda recipe: recipe.name)
def test_the_paper_twin_differs_in_the_quantizer_alone(recipe: TokenizerRecipe):
    if not any(name.endswith("-paper") for name in twins(recipe.name)):
        assert type(recipe.tokenizer.quantizer).__name__ in ("AEConfig", "GMMVQConfig")
        with pytest.raises(ConfigError, match="is the same as released and as printed"):
            find(f"{recipe.name}-paper")
        return
    fields = differing(recipe, find(f"{recipe.name}-paper"))
    assert {field for field in fields if not field.startswith("tokenizer.quantizer.")} <= {"name", "about"}


def test_the_paper_twin_is_eq_4_and_eq_12():
    printed = find("softvq-l-64-paper").tokenizer.quantizer
    assert printed == ProductConfig(SoftVQConfig(8192), groups=4, axis="channel", kl="group")
    released = find("softvq-l-64").tokenizer.quantizer
    assert released == ProductConfig(SoftVQConfig.released(8192, 0.07), groups=4, axis="token", kl="pooled")


ALLOWED = {  # width, depth, codebook size, image size, batch, steps and data
    *("name", "about", "published", "published.table", "published.row", "published.rfid"),
    *(f"tokenizer.{side}.{field}" for side in ("encoder", "decoder") for field in ("width", "depth")),
    *(f"tokenizer.quantizer.{inner}codebook_size" for inner in ("", "inner.", "inner.inner.")),
    *("tokenizer.image_size", "batch_size", "steps", "optimizer.warmup_steps", "data", "val"),
    *("encoder_weights", "alignment.teacher", "alignment.hidden"),  # narrow and shallow networks of the same kind
    *("perceptual", "adversarial.discriminator.backbone"),
    *("adversarial.discriminator.after", "adversarial.discriminator.image_size"),
    *("adversarial.optimizer.warmup_steps", "schedules.perceptual.warmup", "schedules.adversarial.start"),  # steps
}


@pytest.mark.parametrize("recipe", FORMS, ids=lambda recipe: recipe.name)
def test_the_tiny_twin_differs_in_size_and_data_alone(recipe: TokenizerRecipe):
    twin = find(f"{recipe.name}-tiny")
    assert differing(recipe, twin) <= ALLOWED
    for name, tiny in ((recipe.encoder_weights, twin.encoder_weights), (target(recipe), target(twin))):
        assert tiny == (None if name is None else "tiny_" + name.partition(".")[0])


def target(recipe: TokenizerRecipe) -> str | None:
    return recipe.alignment.teacher if recipe.alignment else None


@pytest.mark.parametrize("recipe", FORMS, ids=lambda recipe: recipe.name)
def test_the_tiny_twin_trains(recipe: TokenizerRecipe):
    """Four steps on one batch with every term on: all is finite, pixels get better, every parameter moves."""
    twin = find(f"{recipe.name}-tiny")
    twin = replace(twin, optimizer=replace(twin.optimizer, warmup_steps=1, lr=1e-3))
    task = TokenizerTask(twin)
    task.options = RunOptions(Path("nowhere"), CPU, "float32").settled()
    players = task.build()
    for player in players.values():
        player.place(CPU)
    modules = {name: player.module for name, player in players.items() if not player.is_frozen}
    assert modules.keys() == {"model", "discriminator"}
    projector = modules["model"].projector
    assert isinstance(projector, Projector) if twin.alignment else projector is None
    before = {
        (who, name): p.detach().clone() for who, module in modules.items() for name, p in module.named_parameters()
    }
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = Batch(images, torch.zeros(2, dtype=torch.long), ["a", "b"], [0, 1])
    values = [task.step(players, replace(batch, step=step)) for step in range(4)]
    assert all(value.isfinite() for v in values for value in v.values())
    assert {key.removeprefix("loss/") for key in values[0] if key.startswith("loss/")} == {*twin.weights, "total"}
    assert values[-1]["loss/reconstruction"] < values[0]["loss/reconstruction"]
    after = {(who, name): p for who, module in modules.items() for name, p in module.named_parameters()}
    still = [who for who in before if torch.equal(after[who], before[who])]
    assert not still
    assert values[0]["loss/adversarial"] == 0 != values[-1]["loss/adversarial"]


def test_the_encoder_starts_as_the_pretrained_network():
    from softvq.pretrained.vit import load

    twin = find("softvq-b-64-clip-clip-tiny")
    vit = load(twin.encoder_weights, 128, 16)
    encoder = new_tokenizer(twin).encoder.vit
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in vit.state_dict().items())
    scratch = new_tokenizer(replace(twin, encoder_weights=None))
    assert not torch.equal(scratch.encoder.vit.cls_token, encoder.cls_token)
    assert torch.equal(scratch.decoder.to_pixel.weight, new_tokenizer(twin).decoder.to_pixel.weight)


def test_recipes_that_do_not_fit_are_sentences():
    twin = find("softvq-s-64-tiny")
    with pytest.raises(
        ConfigError,
        match="cannot start as tiny_vit_base_patch16_clip_224: it has width 48 instead of 96, heads 6 instead of 12",
    ):
        new_tokenizer(replace(twin, encoder_weights="tiny_vit_base_patch16_clip_224"))
    with pytest.raises(ConfigError, match="alignment"):
        new_tokenizer(replace(twin, alignment=None))
    with pytest.raises(ValueError, match="give one of them"):
        replace(twin, init="local")
    for name, message in (
        ("softvq-l-46", "did you mean softvq-"),
        ("emoji-64-tiny", "only recipes of the paper have a tiny twin"),
        ("emoji-64-paper", "only recipes of the paper have a -paper twin"),
        ("softvq-l-64-tiny-paper", "did you mean softvq-l-64-paper "),
        ("ae-s-64-paper-tiny", "the same as released and as printed"),
    ):
        with pytest.raises(ConfigError, match=message):
            find(name)
