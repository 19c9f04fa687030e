"""What a run is said to cost, against what it costs."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from softvq.data.latents import LatentBatch
from softvq.data.loader import Batch
from softvq.recipes.all import find, find_generator
from softvq.recipes.emoji import EMOJI_64
from softvq.training.generator import GeneratorTask
from softvq.training.options import RunOptions
from softvq.training.plan import Plan
from softvq.training.plan import plan as planned
from softvq.training.recipe import TokenizerRecipe
from softvq.training.state import Players
from softvq.training.task import Task
from softvq.training.tokenizer import TokenizerTask, frozen_networks

TWIN = find("softvq-l-64-tiny")
ODD = 28  # images of a batch that eight devices cannot share: it is counted for one alone, in half the time


def options(**more) -> RunOptions:
    return RunOptions(Path("none"), torch.device("cpu"), "float32", **more)


def plan(recipe: TokenizerRecipe, chosen: RunOptions) -> Plan:
    return planned(TokenizerTask(recipe), chosen)


@cache
def plan_of_emoji(**more) -> Plan:
    """Counted once for all tests that look at it."""
    return plan(EMOJI_64, options(**more))


def set_up(task: Task, chosen: RunOptions) -> Players:
    """A run before its first step."""
    task.options = chosen.settled()
    players = task.build()
    for player in players.values():
        player.place(torch.device("cpu"))
    return players


def batch_of(task: Task) -> Batch | LatentBatch:
    size = task.recipe.batch_size
    labels, names, positions = torch.zeros(size, dtype=torch.long), [""] * size, list(range(size))
    if isinstance(task, GeneratorTask):
        return LatentBatch(torch.zeros(size, *task.latent_shape), labels, names, positions)
    side = task.recipe.tokenizer.image_size
    return Batch(torch.zeros(size, 3, side, side), labels, names, positions)


def measured_peak(task: Task, chosen: RunOptions, folder: Path) -> int:
    """The largest number of bytes that PyTorch's allocator held while a run was set up and took two steps; networks
    that the task was given are not among them."""
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as profiler:
        players, batch = set_up(task, chosen), batch_of(task)
        for _ in range(2):
            task.step(players, batch)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    held = [event["args"] for event in sorted(events, key=lambda e: e.get("ts", 0)) if event.get("name") == "[memory]"]
    before = held[0]["Total Allocated"] - held[0]["Bytes"]  # the account goes on from earlier profiles
    return max(event["Total Allocated"] for event in held) - before


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_memory_estimate_is_within_a_fifth_of_the_measured_peak(recompute: bool, precision: str, tmp_path: Path):
    recipe = replace(EMOJI_64, batch_size=ODD, init="vit")
    chosen = replace(options(recompute=recompute), precision=precision)
    assert plan(recipe, chosen).memory[1] == pytest.approx(
        measured_peak(TokenizerTask(recipe), chosen, tmp_path), rel=0.2
    )


def test_so_it_is_with_every_term_on(tmp_path: Path):
    recipe = replace(TWIN, batch_size=20, schedules={})
    networks = frozen_networks(recipe, {})
    assert networks.keys() == {"teacher", "perceptual", "readouts"}
    held = sum(p.numel() * 4 for network in networks.values() for p in network.parameters())
    measured = measured_peak(TokenizerTask(recipe, networks=networks), options(), tmp_path) + held
    assert plan(recipe, options()).memory[1] == pytest.approx(measured, rel=0.2)


def test_parameters_and_checkpoint_are_those_of_the_run():
    found = plan(replace(TWIN, batch_size=4), options())
    players = set_up(TokenizerTask(TWIN), options())
    model, rival = players["model"], players["discriminator"]
    assert found.parameters["tokenizer"] == sum(p.numel() for p in model.followed.parameters())
    assert found.parameters["discriminator"] == sum(p.numel() for p in rival.module.discriminator.parameters())
    teacher = players["teacher"].module
    assert found.parameters["teacher (frozen)"] == sum(p.numel() for p in teacher.parameters())
    weights = sum(t.numel() * t.element_size() for m in (model.module, model.average) for t in m.state_dict().values())
    trained = sum(p.numel() for p in model.module.parameters())
    assert (
        weights + 2 * 4 * trained
        < found.checkpoint
        < 1.2 * (weights + 2 * 4 * trained) + 3 * 4 * sum(p.numel() for p in rival.module.parameters())
    )


@pytest.mark.parametrize("name", ["emoji-sit", "mar-h-softvq-l-32-tiny"])
def test_a_generator_is_planned_too(name: str, tmp_path: Path):
    recipe = replace(find_generator(name), batch_size=16)
    found = planned(GeneratorTask(recipe), options())
    assert found.memory[1] == pytest.approx(measured_peak(GeneratorTask(recipe), options(), tmp_path), rel=0.2)
    task = GeneratorTask(recipe)
    players = set_up(task, options())
    task.step(players, batch_of(task))  # makes the optimizers' averages
    assert found.parameters == {"generator": sum(p.numel() for p in players["model"].followed.parameters())}
    saved = [tensor for part in players["model"].tensors().values() for tensor in part.values()]
    assert found.checkpoint == sum(t.numel() * t.element_size() for t in saved)
    assert (found.tokens, found.latent_dim) == (recipe.model.sizes.tokens, recipe.model.sizes.channels)
    assert found.images is None
    assert "'latents' holds no latents" in found.why_unknown


def linear_layers(recipe: TokenizerRecipe) -> int:
    """Multiply-accumulates of a forward pass through the blocks' linear layers, for one image."""
    config = recipe.tokenizer
    tokens = config.tokens + (config.image_size // config.encoder.patch_size) ** 2
    return sum(12 * side.width**2 * side.depth * tokens for side in (config.encoder, config.decoder))


def test_operations_are_those_of_the_layers_and_the_batch():
    found = plan_of_emoji()
    ratio = found.flops / (3 * 2 * linear_layers(EMOJI_64) * EMOJI_64.batch_size)
    assert 1 < ratio < 1.3  # attention, patches, pixels and codebooks come to the blocks
    double, fourfold = (plan(replace(EMOJI_64, batch_size=size), options()).flops for size in (68, 140))
    assert fourfold - double == 2 * (double - found.flops)  # of 32, 68 and 140 images: what does not grow is Muon's
    assert plan_of_emoji(recompute=True).flops > 1.15 * found.flops


def test_more_devices_and_recomputing_take_less_memory_and_the_fixed_part_stays():
    found = plan_of_emoji()
    assert found.fixed < found.memory[8] < found.memory[1] / 4
    assert plan_of_emoji(recompute=True).memory[1] < 0.8 * found.memory[1]


def test_bfloat16_takes_less():
    recipe = replace(EMOJI_64, batch_size=ODD)
    half = plan(recipe, replace(options(), precision="bfloat16"))
    assert half.memory[1] < 0.9 * plan(recipe, options()).memory[1]


def test_the_command_prints_the_plan_of_the_real_recipe_with_neither_data_nor_network(tmp_path: Path):
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "softvq",
            "train",
            "tokenizer",
            "softvq-s-64",
            "--dry-run",
            "--json",
            "--batch_size",
            "4",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    told = json.loads(found.stdout)
    assert told["parameters"]["tokenizer"] > 4e7
    assert told["tokens"] == 64
    assert told["images"] is None
    assert "imagenet/train" in told["why_unknown"]
    assert not list(tmp_path.iterdir())


def test_the_plan_for_people():
    from softvq.training.plan import show_plan

    words = show_plan(plan_of_emoji())
    for part in (
        "parameters, tokenizer",
        "3.8 M",
        "64 of 16 numbers",
        "TFLOP",
        "a checkpoint",
        "3,094",
        "8 devices, 4 images",
    ):
        assert part in words
