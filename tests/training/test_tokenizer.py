"""trains="decoder": a phase that changes how latents are read, and leaves them, and the generators made of them, be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import Tokenizer, hub
from softvq.cli.main import main
from softvq.data.latents import Latents
from softvq.errors import ConfigError
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.layers import ViTConfig
from softvq.optim import AdamWConfig, MuonConfig
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.gaussian import KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.training.generator import GeneratorRecipe, GeneratorTask
from softvq.training.options import RunOptions
from softvq.training.plan import plan
from softvq.training.recipe import TokenizerRecipe
from softvq.training.run import train
from softvq.training.task import Hook
from softvq.training.tokenizer import TokenizerTask, new_tokenizer
from tests.training.test_run import ALIGNED, CPU, pictures, run, tiny_recipe  # noqa: F401 (a fixture)

VIT = ViTConfig(width=16, depth=1, heads=2, patch_size=8, layer_scale=None)
DECODING = ("decoder.", "from_quantizer.")
VQ = {"quantizer": VQConfig(8), "weights": {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}}


def recipe_from(init: Path, data: Path, **changes) -> TokenizerRecipe:
    """The decoder alone of the tokenizer in `init`; `tokenizer`: fields of it that differ."""
    tokenizer = changes.pop("tokenizer", {})
    recipe = tiny_recipe(init=str(init), data=str(data), trains="decoder", **changes)
    return replace(recipe, tokenizer=replace(recipe.tokenizer, **tokenizer))


def saved(folder: Path, seed: int = 5, dtype: torch.dtype = torch.float32, **changes) -> Path:
    """A tokenizer with latent statistics of its own."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer(tiny_recipe(**changes).tokenizer)
    tokenizer.set_statistics(torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 1.5, 2.0, 0.3]))
    tokenizer.save_pretrained(folder, dtype)
    return folder


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return saved(tmp_path / "first")


def tensors(model: Path) -> tuple[dict, dict]:
    """Those that latents are made with, and the decoder's, as bytes: a 0 that changes its sign is another number."""
    found = {name: t.numpy().tobytes() for name, t in Tokenizer.from_pretrained(model).state_dict().items()}
    decoding = {name: content for name, content in found.items() if name.startswith(DECODING)}
    return {name: content for name, content in found.items() if name not in decoding}, decoding


# What changes


@pytest.mark.parametrize("optimizer", [AdamWConfig(1e-2, warmup_steps=1, weight_decay=0.1), MuonConfig()])
@pytest.mark.parametrize("fields", [{}, {"quantizer": KLConfig()}, VQ], ids=["softvq", "kl", "vq"])
def test_only_what_reads_latents_changes(pictures: Path, tmp_path: Path, fields: dict, optimizer):  # noqa: F811
    first = saved(tmp_path / "first", **fields)
    recipe = recipe_from(first, pictures, optimizer=optimizer, latent_noise=0.3, steps=12, **fields)
    second = run(recipe, tmp_path / "run")
    (encoding, before), (kept, after) = tensors(first), tensors(second)
    assert kept == encoding
    assert {"latent_mean", "latent_std", "to_quantizer.weight", "encoder.latent_tokens"} <= kept.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() == changed
    one, other = Tokenizer.from_pretrained(first), Tokenizer.from_pretrained(second)
    assert one.latent_fingerprint == other.latent_fingerprint
    assert one.fingerprint != other.fingerprint
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(one.encode(images), other.encode(images))


def test_weights_that_are_minus_0_stay_so(pictures: Path, tmp_path: Path):  # noqa: F811
    """As numbers too small for half precision become; fingerprints are of bits, and 0 − 0 · x has another."""
    tokenizer = Tokenizer.from_pretrained(saved(tmp_path / "whole"))
    with torch.no_grad():
        tokenizer.encoder.vit.cls_token.fill_(-1e-9)
        tokenizer.quantizer.inner[0].codebook[0].fill_(-1e-9)
    tokenizer.save_pretrained(tmp_path / "first", torch.float16)
    encoding, _ = tensors(tmp_path / "first")
    assert np.signbit(np.frombuffer(encoding["encoder.vit.cls_token"], np.float32)).all()
    second = run(recipe_from(tmp_path / "first", pictures, steps=12), tmp_path / "run")
    assert tensors(second)[0] == encoding
    found = [Tokenizer.from_pretrained(model).latent_fingerprint for model in (tmp_path / "first", second)]
    assert found[0] == found[1]


def test_it_learns_to_reconstruct(pictures: Path, first: Path, tmp_path: Path):  # noqa: F811
    recipe = recipe_from(first, pictures, optimizer=AdamWConfig(1e-2, warmup_steps=1), steps=60)
    second = run(recipe, tmp_path / "run", checkpoint=60)
    images = torch.stack(
        [
            torch.from_numpy(np.array(Image.open(path).convert("RGB").resize((16, 16)))).permute(2, 0, 1) / 127.5 - 1
            for path in sorted(pictures.rglob("*.png"))
        ]
    )
    with torch.no_grad():
        errors = [
            (Tokenizer.from_pretrained(model)(images).images - images).square().mean() for model in (first, second)
        ]
    assert errors[1] < 0.97 * errors[0]  # of noise


def test_a_refinement_may_be_new(pictures: Path, first: Path, tmp_path: Path):  # noqa: F811
    second = run(recipe_from(first, pictures, tokenizer={"refine": 4}), tmp_path / "run")
    assert tensors(second)[0] == tensors(first)[0]
    refined = Tokenizer.from_pretrained(second)
    assert refined.decoder.refine.conv2.weight.abs().sum() > 0
    assert refined.latent_fingerprint == Tokenizer.from_pretrained(first).latent_fingerprint


def test_the_optimizers_hold_nothing_of_what_stays(pictures: Path, first: Path):  # noqa: F811
    task = TokenizerTask(recipe_from(first, pictures))
    task.options = RunOptions(Path("nowhere"), CPU, "float32").settled()
    player = task.build()["model"]
    player.place(CPU)
    trained = {id(p) for optimizer in player.optimizers for group in optimizer.param_groups for p in group["params"]}
    model = player.followed
    expected = [*model.decoder.parameters(), *model.from_quantizer.parameters()]
    assert trained == {id(p) for p in expected}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("optimizer", [AdamWConfig(1e-3, warmup_steps=2), MuonConfig()])
def test_a_resumed_run_equals_an_uninterrupted_one(pictures: Path, first: Path, tmp_path: Path, optimizer):  # noqa: F811
    """Also when the tokenizer that it began with is gone."""
    recipe = recipe_from(first, pictures, optimizer=optimizer, latent_noise=0.3, tokenizer={"refine": 4})
    whole = run(recipe, tmp_path / "whole")

    def stop(state, log):
        if state.step == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(recipe, tmp_path / "cut", hooks=[Hook(1, stop)])
    (first / hub.WEIGHTS).unlink()
    resumed = run(recipe, tmp_path / "cut")
    assert (whole / hub.WEIGHTS).read_bytes() == (resumed / hub.WEIGHTS).read_bytes()


def test_in_half_precision_it_still_makes_the_same_latents(pictures: Path, tmp_path: Path):  # noqa: F811
    """What was saved so once, and has not changed since, is not rounded again."""
    first = saved(tmp_path / "first", dtype=torch.float16)
    second = Tokenizer.from_pretrained(run(recipe_from(first, pictures), tmp_path / "run"))
    second.save_pretrained(tmp_path / "second", torch.float16)
    found = Tokenizer.from_pretrained(tmp_path / "second")
    assert found.latent_fingerprint == second.latent_fingerprint == Tokenizer.from_pretrained(first).latent_fingerprint
    assert found.fingerprint != second.fingerprint  # its decoder was rounded
    plain = Tokenizer.from_pretrained(saved(tmp_path / "whole"))
    plain.save_pretrained(tmp_path / "half", torch.float16)
    assert Tokenizer.from_pretrained(tmp_path / "half").latent_fingerprint != plain.latent_fingerprint


# What is refused


def test_it_needs_a_tokenizer_to_begin_with():
    for init in ("vit", "local"):
        with pytest.raises(ValueError, match="init must name the tokenizer that it belongs to"):
            tiny_recipe(trains="decoder", init=init)


def test_alignment_is_refused(pictures: Path, first: Path):  # noqa: F811
    with pytest.raises(ValueError, match="alignment changes nothing; set alignment to null"):
        recipe_from(first, pictures, **ALIGNED)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"image_size": 32},
        {"tokens": 8},
        {"quantizer": ProductConfig(SoftVQConfig(8, tau=0.5), 2, "token")},
    ],
    ids=["image_size", "tokens", "tau"],
)
def test_what_would_make_other_latents_is_refused(pictures: Path, first: Path, tokenizer: dict):  # noqa: F811
    recipe = recipe_from(first, pictures, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"recipe tiny: to train the decoder alone, all that makes latents must be"):
        new_tokenizer(recipe)
    new_tokenizer(replace(recipe, trains="all"))


@pytest.mark.parametrize(
    "tokenizer",
    [{"latent_dim": 6}, {"quantizer": ProductConfig(SoftVQConfig(9), 2, "token")}, {"quantizer": KLConfig()}],
)
def test_other_shapes_are_refused_as_ever(pictures: Path, first: Path, tokenizer: dict):  # noqa: F811
    with pytest.raises(ConfigError, match="the tokenizer to start from"):
        new_tokenizer(recipe_from(first, pictures, tokenizer=tokenizer))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_another_reading_of_the_same_weights_is_refused(pictures: Path, first: Path, side: str):  # noqa: F811
    """Two heads instead of one: the same shapes, another function."""
    with pytest.raises(ConfigError, match=f"has 1 heads in its {side}, this recipe's has 2"):
        new_tokenizer(recipe_from(first, pictures, tokenizer={side: VIT}))


# Latents and generators of the first are those of the second


def told(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def changed(model: Path, folder: Path, parameter: str) -> Path:
    tokenizer = Tokenizer.from_pretrained(model)
    with torch.no_grad():
        tokenizer.state_dict()[parameter].view(-1)[0] += 0.25
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "part", ["encoder.latent_tokens", "to_quantizer.bias", "latent_std", "quantizer.inner.0.codebook"]
)
def test_a_changed_encoder_makes_other_latents(first: Path, tmp_path: Path, part: str):
    own, other = (Tokenizer.from_pretrained(m) for m in (first, changed(first, tmp_path / "other", part)))
    assert own.makes(own.latent_fingerprint)
    assert own.makes(own.fingerprint)  # which earlier versions recorded
    assert not other.makes(own.latent_fingerprint)
    assert not other.makes(own.fingerprint)


@pytest.mark.parametrize("part", ["decoder.mask_token", "from_quantizer.bias"])
def test_a_changed_decoder_makes_the_same(first: Path, tmp_path: Path, part: str):
    own, other = (Tokenizer.from_pretrained(m) for m in (first, changed(first, tmp_path / "other", part)))
    assert other.makes(own.latent_fingerprint)
    assert not other.makes(own.fingerprint)  # of which it cannot know


def test_a_generator_of_the_first_is_sampled_with_the_second(
    pictures: Path,  # noqa: F811
    first: Path,
    tmp_path: Path,
    capsys,
):
    second = run(recipe_from(first, pictures), tmp_path / "run")
    stranger = changed(first, tmp_path / "stranger", "encoder.latent_tokens")
    latents = tmp_path / "latents"
    code, _, err = told(capsys, "encode", pictures, "--model", first, "--out", latents, "--workers", 0)
    assert code == 0, err
    models = {name: Tokenizer.from_pretrained(folder) for name, folder in (("second", second), ("other", stranger))}
    assert models["second"].makes(Latents(latents).index.fingerprint)
    network = TransformerConfig(4, 4, 2, width=16, depth=1, heads=2)
    recipe = GeneratorRecipe(
        "tiny", "for tests", SiTConfig(network), str(first), str(latents), batch_size=4, steps=2, ema_decay=0.9
    )
    with pytest.raises(ConfigError, match="were made with another tokenizer"):
        train(GeneratorTask(recipe, tokenizer=models["other"]), RunOptions(tmp_path / "other", CPU, "float32"))
    task = GeneratorTask(recipe, tokenizer=models["second"])
    generator = train(task, RunOptions(tmp_path / "sit", CPU, "float32"))
    for name, tokenizer in (("own", []), ("second", ["--tokenizer", second])):
        arguments = ("--model", generator, "-n", 2, "--steps", 2, "--seed", 1, "--npz", tmp_path / f"{name}.npz")
        code, _, err = told(capsys, "sample", *arguments, *tokenizer)
        assert code == 0, err
    own, other = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("own", "second"))
    assert own.shape == other.shape == (2, 16, 16, 3)
    assert not np.array_equal(own, other)  # read by another decoder
    arguments = ("--model", generator, "-n", 2, "--steps", 2, "--npz", tmp_path / "none.npz")
    code, _, err = told(capsys, "sample", *arguments, "--tokenizer", stranger)
    assert code == 1
    assert f"({models['other'].latent_fingerprint}); its latents would be decoded to noise." in err
    assert not (tmp_path / "none.npz").exists()


# The plan


def test_the_plan_counts_what_is_trained(pictures: Path, first: Path, tmp_path: Path):  # noqa: F811
    recipe = recipe_from(first, pictures, latent_noise=0.3)
    whole = replace(recipe, trains="all")
    options = RunOptions(tmp_path / "none", CPU, "float32")
    found, other = plan(TokenizerTask(recipe), options), plan(TokenizerTask(whole), options)
    model = new_tokenizer(recipe)
    counts = {
        decoding: sum(p.numel() for name, p in model.named_parameters() if name.startswith(DECODING) == decoding)
        for decoding in (True, False)
    }
    assert found.parameters == other.parameters == {"tokenizer": sum(counts.values())}
    frozen = [name for name, _ in model.named_parameters() if not name.startswith(DECODING)]
    averages = 4 * (2 * counts[False] + len(frozen))  # of AdamW: two numbers a weight, and each tensor's step
    assert other.checkpoint - found.checkpoint == averages
    assert found.flops < 0.8 * other.flops
    assert found.images == 10
    assert not (tmp_path / "none").exists()


def test_the_plan_counts_no_gradients_of_what_stays(pictures: Path, first: Path, tmp_path: Path):  # noqa: F811
    recipe = recipe_from(first, pictures)
    options = RunOptions(tmp_path, CPU, "float32")
    found, other = (plan(TokenizerTask(r), options) for r in (recipe, replace(recipe, trains="all")))
    frozen = [p for name, p in new_tokenizer(recipe).named_parameters() if not name.startswith(DECODING)]
    averages = 4 * (2 * sum(p.numel() for p in frozen) + len(frozen))
    assert other.fixed - found.fixed == averages + 4 * sum(p.numel() for p in frozen)


def test_a_dry_run_needs_neither_the_tokenizer_nor_a_folder(tmp_path: Path, capsys):
    fields = ("--trains", "decoder", "--init", tmp_path / "later", "--batch_size", 2, "--val", "null")
    code, out, err = told(capsys, "train", "tokenizer", "emoji-64-quick", *fields, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 3094
    code, _, err = told(capsys, "train", "tokenizer", "emoji-64-quick", "--trains", "decoder", "--dry-run")
    assert code != 0
    assert "init must name the tokenizer that it belongs to" in err
    assert not list(tmp_path.iterdir())
