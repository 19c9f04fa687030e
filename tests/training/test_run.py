"""A training run: what it leaves, that it learns, and what stops it."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import Tokenizer, files, hub
from softvq.data.images import Augment
from softvq.data.loader import ordered_batches
from softvq.data.opening import open_source
from softvq.errors import ConfigError, Interrupted, ModelError, TrainingError
from softvq.layers import VisionTransformer, ViTConfig
from softvq.losses.reconstruction import reconstruction
from softvq.losses.total import total
from softvq.optim import AdamWConfig, MuonConfig
from softvq.pretrained.vit import describe
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.statistics import fit_statistics
from softvq.tokenizer import TokenizerConfig
from softvq.training.options import Intervals, RunOptions
from softvq.training.recipe import AlignmentConfig, PublishedRecipe, TokenizerRecipe
from softvq.training.run import train
from softvq.training.state import Checkpoints
from softvq.training.step import posterior_noise
from softvq.training.task import Hook
from softvq.training.tokenizer import TokenizerTask, frozen_networks, new_tokenizer

VIT = ViTConfig(width=16, depth=1, heads=1, patch_size=8, layer_scale=None)
CPU = torch.device("cpu")


def tiny_recipe(**changes) -> TokenizerRecipe:
    quantizer = changes.pop("quantizer", ProductConfig(SoftVQConfig(8), 2, "token"))
    recipe = TokenizerRecipe(
        name="tiny",
        about="for tests",
        tokenizer=TokenizerConfig(16, 4, 4, VIT, VIT, quantizer),
        augment=Augment(min_scale=0.8),
        batch_size=4,
        steps=7,
        optimizer=AdamWConfig(lr=1e-3, warmup_steps=2),
        ema_decay=0.9,
        val=None,
    )
    return replace(recipe, **changes)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for number in range(10):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return folder


def run(recipe: TokenizerRecipe, out: Path, checkpoint: int = 3, most_bad: float = 0.1, hooks=(), **of_task) -> Path:
    intervals = Intervals(log=2, checkpoint=checkpoint)
    options = RunOptions(out, CPU, "float32", workers=0, most_bad=most_bad, intervals=intervals)
    return train(TokenizerTask(recipe, **of_task), options, hooks=hooks)


def parts_of(checkpoint: Path) -> list[str]:
    """The names of a checkpoint's files of tensors."""
    return sorted(path.stem for path in checkpoint.glob("*.safetensors"))


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_model_checkpoints_and_a_log(pictures: Path, tmp_path: Path):
    out = tmp_path / "run"
    folder = run(tiny_recipe(data=str(pictures), val=str(pictures)), out)
    tokenizer = Tokenizer.from_pretrained(folder)
    figures = tokenizer.about["figures"]
    assert figures["data"] == tokenizer.about["domain"] == str(pictures)
    assert figures["psnr_floor"] <= figures["psnr"]
    assert tokenizer.about["recipe"]["name"] == "tiny"
    assert [p.name for p in Checkpoints(out / "checkpoints").all()] == ["step-0000006", "step-0000007"]
    *logged, validated = lines(out)
    assert [line["step"] for line in logged] == [2, 3, 4, 6, 7]
    assert validated["val/psnr"] == pytest.approx(figures["psnr"], abs=0.01)
    assert (out / "samples" / "step-0000007.png").is_file()
    assert {"loss/total", "loss/reconstruction", "loss/kl", "weight/kl", "latent/usage"} <= lines(out)[0].keys()
    assert list((out / "tensorboard").iterdir())


def test_saved_latents_have_zero_mean_and_unit_variance(pictures: Path, tmp_path: Path):
    tokenizer = Tokenizer.from_pretrained(run(tiny_recipe(data=str(pictures)), tmp_path / "run"))
    batches = ordered_batches(open_source(str(pictures)), size=16, batch_size=4)
    latents = torch.cat([tokenizer.encode(batch.images) for batch in batches]).flatten(0, 1)
    assert torch.allclose(latents.mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std(0, unbiased=False), torch.ones(4), atol=1e-4)


def test_statistics_are_those_of_all_tokens_whatever_is_stored():
    tokenizer = new_tokenizer(tiny_recipe(quantizer=AEConfig(), weights={"reconstruction": 1.0}))
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    raw = tokenizer.encode(images).flatten(0, 1).detach()
    tokenizer.set_statistics(3.0, 7.0)
    mean, std = fit_statistics(tokenizer, images.split(4))
    assert torch.allclose(mean, raw.mean(0), atol=1e-5)
    assert torch.allclose(std, raw.std(0, unbiased=False), atol=1e-5)


def test_the_same_recipe_gives_the_same_weights_another_seed_others(pictures: Path, tmp_path: Path):
    recipe = tiny_recipe(data=str(pictures))
    first, second, third = (
        (run(replace(recipe, seed=seed), tmp_path / f"run{i}") / hub.WEIGHTS).read_bytes()
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == second
    assert first != third


ALIGNED = {  # fields of a recipe that aligns its latents with a teacher
    "alignment": AlignmentConfig("tiny_vit_small_patch14_dinov2", hidden=8),
    "weights": {"reconstruction": 1.0, "kl": 0.01, "alignment": 0.1},
}


@pytest.mark.parametrize("optimizer", [AdamWConfig(1e-3, warmup_steps=2), MuonConfig()])
@pytest.mark.parametrize("cut", [3, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(pictures: Path, tmp_path: Path, optimizer, cut: int):
    recipe = tiny_recipe(data=str(pictures), optimizer=optimizer, quantizer=KLConfig(), **ALIGNED)
    whole = run(recipe, tmp_path / "whole")

    with pytest.raises(RuntimeError, match="power cut"):
        run(recipe, tmp_path / "cut", hooks=[power_cut_after(cut)])
    resumed = run(recipe, tmp_path / "cut")
    assert (whole / hub.WEIGHTS).read_bytes() == (resumed / hub.WEIGHTS).read_bytes()
    newest = [tmp_path / name / "checkpoints" / "step-0000007" for name in ("whole", "cut")]
    assert parts_of(newest[0]) == parts_of(newest[1]) == ["model", "model-average", "model-optimizer"]
    for part in parts_of(newest[0]):
        assert len({(folder / f"{part}.safetensors").read_bytes() for folder in newest}) == 1
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_another_recipe_is_refused_by_name(pictures: Path, tmp_path: Path):
    recipe = tiny_recipe(data=str(pictures))
    run(recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"recipe\.batch_size \(4 there, 2 now\)"):
        run(replace(recipe, batch_size=2), tmp_path / "run")


def power_cut_after(step: int) -> Hook:
    def stop(state, log):
        if state.step == step:
            raise RuntimeError("power cut")

    return Hook(1, stop)


def test_with_more_steps_a_run_goes_on_and_says_so_with_fewer_it_is_refused(pictures: Path, tmp_path: Path):
    """Killed and resumed, also before the first checkpoint after it was lengthened, it is the same."""
    recipe = tiny_recipe(data=str(pictures))
    longer = replace(recipe, steps=12)
    for name in ("whole", "cut"):
        run(recipe, tmp_path / name)
    folder = run(longer, tmp_path / "whole")
    for step in (8, 10):
        with pytest.raises(RuntimeError, match="power cut"):
            run(longer, tmp_path / "cut", hooks=[power_cut_after(step)])
    assert (run(longer, tmp_path / "cut") / hub.WEIGHTS).read_bytes() == (folder / hub.WEIGHTS).read_bytes()
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    said = [line for line in lines(tmp_path / "cut") if "lengthened_from" in line]
    assert said == [{"step": 7, "lengthened_from": 7, "lengthened_to": 12}]
    for name in ("whole", "cut"):
        about = Tokenizer.from_pretrained(tmp_path / name / "model").about
        assert about["lengthened"] == [{"at_step": 7, "from": 7, "to": 12}]
        assert about["recipe"]["steps"] == 12
    with pytest.raises(ConfigError, match=r"holds a run of 12 steps: it can get more, but not fewer \(7\)"):
        run(recipe, tmp_path / "cut")
    straight = run(longer, tmp_path / "straight")  # the rate was another before step 7
    assert (straight / hub.WEIGHTS).read_bytes() != (folder / hub.WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("quantizer", "weights"),
    [
        (AEConfig(), {"reconstruction": 1.0}),
        (KLConfig(), {"reconstruction": 1.0, "kl": 1e-6}),
        (VQConfig(8), {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}),
        (SoftVQConfig.released(8), {"reconstruction": 1.0, "kl": 0.01}),
    ],
)
def test_every_kind_of_tokenizer_trains(pictures: Path, tmp_path: Path, quantizer, weights: dict):
    recipe = tiny_recipe(data=str(pictures), quantizer=quantizer, weights=weights, steps=3)
    assert run(recipe, tmp_path / "run").is_dir()
    assert {f"loss/{name}" for name in weights} <= lines(tmp_path / "run")[0].keys()


def test_weights_of_other_terms_are_refused_before_anything_is_written(pictures: Path, tmp_path: Path):
    recipe = tiny_recipe(data=str(pictures), quantizer=VQConfig(8))
    with pytest.raises(ConfigError, match=r"terms are codebook, commitment, reconstruction.*kl, reconstruction"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_learns(tmp_path: Path):
    """On real pictures: in noise there is nothing to learn. Means over steps: a batch of four says little."""
    optimizer = MuonConfig(rest=AdamWConfig(lr=2e-3, warmup_steps=5))
    run(tiny_recipe(data="emoji-dev", steps=40, optimizer=optimizer), tmp_path / "run", checkpoint=40)
    losses = [line["loss/reconstruction"] for line in lines(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_nan_stops_the_run_with_the_last_good_state_kept(pictures: Path, tmp_path: Path):
    recipe = tiny_recipe(data=str(pictures), steps=40, optimizer=AdamWConfig(lr=1e30, warmup_steps=0, grad_clip=None))
    with pytest.raises(TrainingError, match=r"step \d+: .* is (nan|inf|-inf) on the images class\d/\d\.png"):
        run(recipe, tmp_path / "run", checkpoint=1)
    for path in Checkpoints(tmp_path / "run" / "checkpoints").all():
        tensors = files.read_tensors(path / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_bad_file_is_named_counted_and_skipped(pictures: Path, tmp_path: Path, capsys):
    (pictures / "class0" / "bad.png").write_bytes(b"not an image")
    run(tiny_recipe(data=str(pictures)), tmp_path / "run")
    events = [line for line in lines(tmp_path / "run") if "bad_file" in line]
    assert [event["bad_file"] for event in events] == ["class0/bad.png"]
    assert "1 unreadable file" in capsys.readouterr().err


def test_noise_is_a_function_of_the_sample_number():
    recipe = tiny_recipe()
    together = posterior_noise(recipe, [5, 6, 7])
    assert torch.equal(together[1:], posterior_noise(recipe, [6, 7]))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(posterior_noise(replace(recipe, seed=1), [5]), together[:1])


def test_the_total_is_weighted_and_strict():
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert total(terms, {"a": 1.0, "b": 0.5}) == 3.5
    with pytest.raises(ValueError, match="terms are a, b, but the weights name a"):
        total(terms, {"a": 1.0})
    with pytest.raises(ValueError, match="the weights name a, b, c"):
        total(terms, {"a": 1.0, "b": 1.0, "c": 1.0})


def test_reconstruction_distances():
    a, b = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    assert reconstruction(a, b) == 0.25
    assert reconstruction(a, b, "l1") == 0.5


def test_local_start_attends_nearby():
    """Before any training, a local start lets a latent token's output follow the patch at its own place most."""
    recipe = tiny_recipe(quantizer=AEConfig(), weights={"reconstruction": 1.0}, init="local")
    vit = replace(VIT, width=64, heads=2)
    config = replace(recipe.tokenizer, image_size=64, tokens=64, encoder=vit, decoder=vit)
    tokenizer = new_tokenizer(replace(recipe, tokenizer=config))
    image = torch.zeros(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 24:32, 40:48] = 1.0  # the patch in row 3, column 5
    with torch.no_grad():
        moved = (tokenizer.encode(changed) - tokenizer.encode(image))[0].norm(dim=-1)
    assert moved.argmax() == 3 * 8 + 5
    assert moved.max() > 4 * moved.median()


@pytest.mark.parametrize("moment", range(6))
def test_a_signal_at_any_moment_of_a_step_leaves_its_checkpoint(pictures: Path, tmp_path: Path, moment: int):
    """The signal comes while the first, second, … line of step 3's end runs: nothing done may be lost."""
    recipe = tiny_recipe(data=str(pictures), steps=20)
    countdown = iter(range(-moment, 100))

    def interrupt(frame, event, argument):
        in_the_loop = frame.f_code.co_filename.endswith("loop.py") and "signals" in frame.f_locals
        if in_the_loop and event == "line" and frame.f_locals["state"].step == 3 and next(countdown) == 0:
            signal.raise_signal(signal.SIGTERM)
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(Interrupted) as stopped:
            run(recipe, tmp_path / "run", checkpoint=100)
    finally:
        sys.settrace(before)
    assert stopped.value.signal == signal.SIGTERM
    assert [p.name for p in Checkpoints(tmp_path / "run" / "checkpoints").all()] in (["step-0000003"], ["step-0000004"])


def test_the_projector_is_in_the_checkpoints_and_not_in_the_model_the_teacher_in_neither(
    pictures: Path, tmp_path: Path
):
    recipe = tiny_recipe(data=str(pictures), **ALIGNED)
    folder = run(recipe, tmp_path / "run")
    checkpoint = Checkpoints(tmp_path / "run" / "checkpoints").all()[-1]
    parts = {part: files.read_tensors(checkpoint / f"{part}.safetensors") for part in parts_of(checkpoint)}
    assert parts.keys() == {"model", "model-average", "model-optimizer"}
    layers = [f"projector.layers.{i}.{kind}" for i in (0, 2, 4) for kind in ("bias", "weight")]
    heads = {name: tensor for name, tensor in parts["model"].items() if not name.startswith("model.")}
    assert sorted(heads) == layers
    assert {f"{name}/exp_avg" for name in layers} <= parts["model-optimizer"].keys()
    tokenizer = Tokenizer(recipe.tokenizer)
    own = {name.removeprefix("model.") for name in parts["model"].keys() - heads.keys()}
    for names in (own, parts["model-average"].keys(), files.read_tensors(folder / hub.WEIGHTS).keys()):
        assert names == tokenizer.state_dict().keys()
    trained = sum(p.numel() for p in tokenizer.parameters()) + sum(t.numel() for t in heads.values())
    assert sum(t.numel() for name, t in parts["model-optimizer"].items() if name.endswith("/exp_avg")) == trained
    assert all("loss/alignment" in line and "weight/alignment" in line for line in lines(tmp_path / "run"))


def test_a_published_number_is_no_part_of_what_makes_a_run_the_same(pictures: Path, tmp_path: Path):
    recipe = tiny_recipe(data=str(pictures))
    other = replace(recipe, published=PublishedRecipe("1", "row", 0.5), about="other words")
    assert run(recipe, tmp_path / "run") == run(other, tmp_path / "run")


def test_pretrained_weights_may_come_from_files(pictures: Path, tmp_path: Path):
    name = "tiny_vit_small_patch14_dinov2"
    known = describe(name)
    side = known.image_size // known.architecture.patch_size
    vit = VisionTransformer(known.architecture, (side, side))
    files.write_tensors(tmp_path / "vit.safetensors", vit.state_dict())
    config = replace(tiny_recipe().tokenizer, encoder=replace(known.architecture, patch_size=8))
    recipe = tiny_recipe(data=str(pictures), encoder_weights=name, **ALIGNED)
    recipe = replace(recipe, tokenizer=config)
    started = new_tokenizer(recipe, {name: tmp_path / "vit.safetensors"}).encoder.vit
    assert torch.equal(started.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)
    teacher = frozen_networks(recipe, {name: tmp_path / "vit.safetensors"})["teacher"]
    assert torch.equal(teacher.vit.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)
    with pytest.raises(ModelError, match=r"nowhere\.safetensors does not exist"):
        new_tokenizer(recipe, {name: tmp_path / "nowhere.safetensors"})
