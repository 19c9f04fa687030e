"""Generators' runs: that they learn, resume bitwise, keep to their tokenizer, and draw."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from softvq import files
from softvq.cli.main import main
from softvq.data.latents import LatentBatch, LatentIndex, Latents
from softvq.errors import ConfigError
from softvq.files import write_tensors
from softvq.generators.base import Generator
from softvq.generators.dit import DiTConfig
from softvq.generators.mar import MARConfig, MARNetworkConfig
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.layers import ViTConfig
from softvq.optim import AdamWConfig
from softvq.pipeline import Pipeline
from softvq.quantizers.gaussian import AEConfig
from softvq.recipes import all as recipes
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.training.generator import GeneratorRecipe, GeneratorTask, draws_of, new_generator, validation_loss
from softvq.training.options import Intervals, RunOptions
from softvq.training.run import train
from softvq.training.task import Hook

T, C, CLASSES = 64, 16, 3
NETWORK = TransformerConfig(T, C, CLASSES, width=16, depth=1, heads=2)
MODELS = {
    "sit": SiTConfig(NETWORK),
    "dit": DiTConfig(NETWORK),
    "mar": MARConfig(MARNetworkConfig(T, C, CLASSES, 16, 1, 2, 16, 1, buffer=2), head_steps=10),
}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents as the bundled tokenizer's, three classes that differ in their mean."""
    folder = tmp_path_factory.mktemp("latents")
    torch.manual_seed(0)
    labels = torch.arange(48) % CLASSES
    values = 0.3 * torch.randn(48, 2, T, C) + (labels - 1.0).view(-1, 1, 1, 1)
    write_tensors(folder / "latents-00000.safetensors", {"latents": values.half(), "labels": labels.int()})
    fingerprint = Tokenizer.from_pretrained("softvq-emoji-64").fingerprint
    classes = ["cat", "dog", "golden retriever, retriever"]
    LatentIndex("softvq-emoji-64", fingerprint, "made up", {"count": 48}, T, C, classes, [48]).write(folder)
    return folder


def recipe(kind: str, latents: Path, **changes) -> GeneratorRecipe:
    optimizer = AdamWConfig(lr=3e-3, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=2)
    base = GeneratorRecipe(
        "tiny", "for tests", MODELS[kind], "softvq-emoji-64", str(latents), batch_size=8, steps=6, optimizer=optimizer
    )
    return replace(base, ema_decay=0.9, **changes)


def run(chosen: GeneratorRecipe, out: Path, hooks=(), **of_task) -> Path:
    options = RunOptions(out, torch.device("cpu"), "float32", intervals=Intervals(1, 2))
    return train(GeneratorTask(chosen, **of_task), options, hooks=hooks)


def same(a: Path, b: Path) -> bool:
    first, second = (files.read_tensors(folder / "model.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", MODELS)
def test_a_resumed_run_equals_an_uninterrupted_one_and_loads(kind: str, latents: Path, tmp_path: Path):
    chosen = recipe(kind, latents)
    whole = run(chosen, tmp_path / "whole")

    def stop(state, log):
        if state.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(chosen, tmp_path / "cut", hooks=[Hook(1, stop)])
    resumed = run(chosen, tmp_path / "cut")
    assert same(whole, resumed)
    generator = Generator.from_pretrained(whole)
    assert generator.about["tokenizer"]["name"] == "softvq-emoji-64"
    assert generator.about["classes"][1] == "dog"
    logged = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss/total"]) for line in logged)


@pytest.mark.parametrize("kind", MODELS)
def test_it_learns(kind: str, latents: Path, tmp_path: Path):
    chosen = recipe(kind, latents, steps=60, batch_size=16)
    cache = Latents(latents)
    before = validation_loss(new_generator(chosen), chosen, cache)
    after = validation_loss(Generator.from_pretrained(run(chosen, tmp_path / "run")), chosen, cache)
    assert after < 0.85 * before


@pytest.mark.parametrize("kind", ["sit", "dit"])
def test_parts_of_a_batch_add_up(kind: str, latents: Path, tmp_path: Path):
    chosen = recipe(kind, latents, steps=2)
    whole = files.read_tensors(run(chosen, tmp_path / "whole") / "model.safetensors")
    parts = files.read_tensors(run(replace(chosen, accumulate=4), tmp_path / "parts") / "model.safetensors")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-4, rtol=1e-3)


def test_random_numbers_belong_to_samples_not_to_batches(latents: Path):
    chosen = recipe("sit", latents)
    model = new_generator(chosen)
    batch = LatentBatch(torch.zeros(8, T, C), torch.zeros(8, dtype=torch.long), [""] * 8, list(range(8)))
    whole = draws_of(model, chosen, batch)
    half = draws_of(model, chosen, batch.part(slice(4, 8)))
    for name, values in half.items():
        assert torch.equal(values, whole[name][4:])


def test_latents_of_another_tokenizer_or_shape_are_refused(latents: Path, tmp_path: Path):
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    tokenizer.set_statistics(0.5, 2.0)
    with pytest.raises(ConfigError, match=rf"another tokenizer \(.*\) than .* \({tokenizer.latent_fingerprint}\)"):
        run(recipe("sit", latents), tmp_path / "run", tokenizer=tokenizer)
    paper = replace(recipes.find_generator("sit-xl-softvq-l-64"), data=str(latents))
    with pytest.raises(ConfigError, match=r"is for latents of 64 × 32, but those in .* are 64 × 16"):
        run(paper, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "0123456789abcdef"}, r"latents in .*held_out were made with another tokenizer"),
        ({"classes": ["cat", "retriever", "dog"]}, r"latents in .*held_out have different classes from those in"),
    ],
)
def test_validation_latents_of_another_tokenizer_or_of_other_classes_are_refused(
    latents: Path, tmp_path: Path, changes: dict, reason: str
):
    """They would give a loss that says nothing."""
    held_out = tmp_path / "held_out"
    shutil.copytree(latents, held_out)
    replace(LatentIndex.read(held_out), **changes).write(held_out)
    with pytest.raises(ConfigError, match=reason):
        run(replace(recipe("sit", latents), val=str(held_out)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name, r in recipes.GENERATORS.items() if r.published is not None])
def test_the_tiny_twin_of_each_recipe_of_the_paper_trains(name: str, latents: Path, tmp_path: Path):
    twin = replace(recipes.find_generator(f"{name}-tiny"), data=str(latents), steps=2, batch_size=4)
    if isinstance(twin.model, MARConfig):
        twin = replace(twin, model=replace(twin.model, head_steps=10))  # of its picture at the end alone
    run(twin, tmp_path / "run")
    assert recipes.find_generator(name).command == f"softvq train generator {name} --data latents"


@pytest.fixture(scope="module")
def trained(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(recipe("sit", latents, steps=30), tmp_path_factory.mktemp("runs") / "sit").parent


def sampled(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["sample", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_trains_and_another_draws(latents: Path, tmp_path: Path, capsys):
    small = ["--model.network.width", "16", "--model.network.heads", "2", "--model.network.depth", "1"]
    own = ["--out", str(tmp_path / "run"), "--steps", "2", "--batch_size", "4", "--data", str(latents), "--json"]
    assert main(["train", "generator", "emoji-sit", *own, *small]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert (tmp_path / "run" / "samples" / "step-0000002.png").is_file()
    picture = tmp_path / "s.png"
    code, _, err = sampled(
        capsys, "--model", model, "-n", 3, "--steps", 2, "--out", picture, "--class", "dog", "--seed", 5
    )
    assert code == 0, err
    told = json.loads(picture.with_suffix(".json").read_text())
    assert told["labels"] == [1, 1, 1]
    assert told["seed"] == 5
    assert told["steps"] == 2


def test_classes_by_the_words_of_their_names(trained: Path):
    pipeline = Pipeline.from_pretrained(trained)
    assert [pipeline.class_number(name) for name in ("golden retriever", "Retriever", "2", 2, "CAT")] == [2, 2, 2, 2, 0]
    imagenet = new_generator(replace(recipes.find_generator("sit-xl-softvq-l-64-tiny")))
    vit = ViTConfig(width=16, depth=1, heads=1, patch_size=8)
    tokenizer = Tokenizer(TokenizerConfig(16, *imagenet.shape, vit, vit, AEConfig()))
    assert Pipeline(imagenet, tokenizer).class_number("golden retriever") == 207


def test_the_average_unless_asked(trained: Path, tmp_path: Path, capsys):
    for name, more in (("ema", []), ("raw", ["--no-ema"])):
        code, _, err = sampled(
            capsys, "--model", trained, "-n", 2, "--steps", 2, "--npz", tmp_path / f"{name}.npz", *more
        )
        assert code == 0, err
    averaged, raw = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("ema", "raw"))
    assert not np.array_equal(averaged, raw)


@pytest.mark.parametrize("kind", MODELS)
def test_an_unconditional_model_trains_on_labelled_latents_and_samples(
    kind: str, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    chosen = recipe(kind, latents)
    chosen = replace(chosen, model=replace(chosen.model, network=replace(chosen.model.network, classes=0)))
    folder = run(chosen, tmp_path / "run")
    assert Generator.from_pretrained(folder).classes == 0
    ask = ["sample", "--model", str(folder), "-n", "3", "--steps", "2", "--out", str(tmp_path / "a.png")]
    assert main(ask) == 0
    assert main([*ask, "--class", "dog"]) == 2
    assert "the model knows no classes" in capsys.readouterr().err
