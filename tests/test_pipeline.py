"""Images from classes: by number, whatever the batch, in every form that they can be had in."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import Pipeline, Tokenizer
from softvq.errors import ConfigError, DataError, ModelError, StorageError
from softvq.files import LOCK, locked
from softvq.generators.mar import MARConfig, MARNetworkConfig
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.layers import ViTConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.tokenizer import TokenizerConfig

VIT = ViTConfig(width=16, depth=1, heads=1, patch_size=8)
NAMES = ["cat", "dog, hound", "10 o'clock"]


def filled(model, seed: int):
    """The model with weights that make its outputs depend on all inputs."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return filled(Tokenizer(TokenizerConfig(16, 4, 4, VIT, VIT, SoftVQConfig(8))), 0)


@pytest.fixture(scope="module")
def pipeline(tokenizer: Tokenizer) -> Pipeline:
    generator = filled(SiTConfig(TransformerConfig(4, 4, 3, 16, 1, 1)).build({"classes": NAMES}), 1)
    return Pipeline(generator, tokenizer, "mine")


SETTINGS = {"num": 5, "seed": 3, "steps": 3, "sampler": "sde", "guidance": 2.0, "progress": False}


def test_all_forms_are_the_same_images(pipeline: Pipeline, tmp_path: Path):
    tensors = pipeline.tensors(["dog", 0], **SETTINGS)
    assert tensors.shape == (5, 3, 16, 16)
    assert tensors.dtype == torch.uint8
    assert tensors.flatten(1).unique(dim=0).shape[0] == 5
    pictures = pipeline(["dog", 0], **SETTINGS)
    assert all(isinstance(image, Image.Image) for image in pictures)
    assert np.array_equal(np.stack([np.asarray(image) for image in pictures]), tensors.permute(0, 2, 3, 1).numpy())
    latents = pipeline.latents(["dog", 0], **SETTINGS)
    with torch.no_grad():
        decoded = pipeline.tokenizer.decode(latents).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(decoded, tensors)
    pipeline.write_npz(tmp_path / "a.npz", ["dog", 0], **SETTINGS)
    array = np.load(tmp_path / "a.npz")
    assert np.array_equal(array["arr_0"], tensors.permute(0, 2, 3, 1).numpy())
    assert array["arr_1"].tolist() == [1, 0, 1, 0, 1]
    path = pipeline.write_picture(tmp_path / "a.png", ["dog", 0], **SETTINGS)
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["labels"] == [1, 0, 1, 0, 1]
    assert (told["model"], told["seed"], told["steps"], told["guidance"]) == ("mine", 3, 3, 2.0)


def test_neither_batch_nor_neighbours_change_an_image(pipeline: Pipeline):
    together = pipeline.tensors(**SETTINGS)
    alone = pipeline.tensors(**SETTINGS, batch_size=1)
    assert int((together.int() - alone.int()).abs().max()) <= 1
    request = pipeline.request(**{k: v for k, v in SETTINGS.items() if k != "progress"})
    assert int((pipeline.images(request, [4, 2]).int() - together[[4, 2]].int()).abs().max()) <= 1
    assert not torch.equal(pipeline.tensors(**{**SETTINGS, "seed": 4}), together)


def test_without_classes_all_come_in_turn_or_at_random(pipeline: Pipeline):
    assert pipeline.labels(pipeline.request(num=7), range(7)) == [0, 1, 2, 0, 1, 2, 0]
    drawn = pipeline.labels(pipeline.request(num=60, labels="random", seed=2), range(60))
    assert sorted(set(drawn)) == [0, 1, 2]
    assert drawn == pipeline.labels(pipeline.request(num=60, labels="random", seed=2), range(60))
    assert drawn[7:9] == pipeline.labels(pipeline.request(labels="random", seed=2), range(7, 9))
    assert pipeline.request().num == 16
    assert pipeline.request("dog").num == 1
    assert pipeline.request(["dog", "cat", 2]).classes == (1, 0, 2)


def test_classes_by_number_name_or_a_word_of_it(pipeline: Pipeline):
    assert pipeline.classes == NAMES
    assert [pipeline.class_number(one) for one in ("Dog", "hound", "dog, hound", 1, "1", "10 o'clock")] == [1] * 5 + [2]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"classes": "dgo"}, r"there is no class 'dgo'; did you mean dog\?"),
        ({"classes": 3}, "there is no class 3"),
        ({"num": 0}, "num must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"interval": (0.5, 0.2)}, "interval must be a lower and a higher time"),
        ({"interval": (0.5, 1.2)}, "interval must lie in"),
        ({"guidance": float("nan")}, "guidance must be a finite number, not nan"),
        ({"guidance": float("inf")}, "guidance must be a finite number, not inf"),
        ({"guidance": True}, "guidance must be a finite number, not True"),
        ({"interval": (0.0, float("nan"))}, r"interval must lie in \[0, 1\], not \[0.0, nan\]"),
        ({"interval": (False, 1.0)}, "interval must lie in"),
        *(
            ({name: True}, f"{name} must be a whole number, not True")
            for name in ("num", "batch_size", "steps", "seed")
        ),
        ({"guidance": -1.0}, "guidance must not be negative, not -1; 1 is none"),
        ({"classes": []}, "classes is empty"),
        ({"sampler": "ddpm"}, "a SiT is sampled with euler, heun"),
    ],
)
def test_what_cannot_be_made_is_a_sentence_before_the_work(pipeline: Pipeline, settings: dict, reason: str):
    with pytest.raises(ConfigError, match=reason):
        pipeline.request(**settings)


def test_an_unknown_setting_is_told_the_nearest(pipeline: Pipeline):
    with pytest.raises(ConfigError, match=r"there is no setting 'step'; did you mean steps"):
        pipeline(num=1, step=3)


def test_classes_may_be_an_array(pipeline: Pipeline):
    for given in (np.array([1, 0]), torch.tensor([1, 0])):
        assert pipeline.request(given).classes == (1, 0)
    assert pipeline.request(np.int64(2)).classes == (2,)


def test_an_array_that_is_there_is_not_made_again_and_not_replaced(pipeline: Pipeline, tmp_path: Path, monkeypatch):
    path = pipeline.write_npz(tmp_path / "a.npz", **SETTINGS)
    before = path.stat().st_mtime_ns
    with pytest.raises(DataError, match="is there already, with other settings"):
        pipeline.write_npz(path, **{**SETTINGS, "seed": 9})
    with pytest.raises(DataError, match="is there already, with other settings"):
        pipeline.write_npz(path, **{**SETTINGS, "num": 4})
    other = filled(SiTConfig(TransformerConfig(4, 4, 3, 16, 1, 1)).build({"classes": NAMES}), 7)
    with pytest.raises(DataError, match="is there already, with other settings"):  # trained again, by the same name
        Pipeline(other, pipeline.tokenizer, pipeline.name).write_npz(path, **SETTINGS)
    monkeypatch.setattr(Pipeline, "images", lambda *_: pytest.fail("images were made"))
    assert pipeline.write_npz(path, **SETTINGS) == path
    assert path.stat().st_mtime_ns == before


def test_a_picture_of_too_many_is_refused(pipeline: Pipeline, tmp_path: Path):
    with pytest.raises(ConfigError, match="at most 1,024 images"):
        pipeline.write_picture(tmp_path / "a.png", num=1025)


def stopped(write: Callable, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write images in parts of two, and stop when the first part is there."""
    images = Pipeline.images
    monkeypatch.setattr("softvq.pipeline.PART", 2)

    def stopping(self: Pipeline, request, numbers) -> torch.Tensor:
        if numbers[0] == 2:
            raise KeyboardInterrupt
        return images(self, request, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "images", stopping)
        with pytest.raises(KeyboardInterrupt):
            write(path, **SETTINGS)


def test_parts_of_other_settings_are_not_gone_on_with(pipeline: Pipeline, tmp_path: Path, monkeypatch):
    images = Pipeline.images
    stopped(pipeline.write_npz, tmp_path / "a.npz", monkeypatch)
    with pytest.raises(DataError, match="holds part of an array with other settings"):
        pipeline.write_npz(tmp_path / "a.npz", **{**SETTINGS, "seed": 9})
    made = []
    monkeypatch.setattr(Pipeline, "images", lambda self, r, n: made.append(list(n)) or images(self, r, n))
    pipeline.write_npz(tmp_path / "a.npz", **SETTINGS)
    assert made == [[2, 3], [4]]
    monkeypatch.undo()
    expected = pipeline.tensors(**SETTINGS).permute(0, 2, 3, 1).numpy()
    assert np.abs(np.load(tmp_path / "a.npz")["arr_0"].astype(int) - expected).max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.npz"]


@pytest.mark.parametrize("way", ["write_npz", "write_images"])
@pytest.mark.parametrize("exchanged", ["generator", "tokenizer", "plugin"])
def test_images_of_an_exchanged_model_are_not_gone_on_with(
    pipeline: Pipeline, tokenizer: Tokenizer, tmp_path: Path, monkeypatch, way: str, exchanged: str
):
    """Trained again under the same name, with the same weights but another decoder, or with other code of one's own."""
    path = tmp_path / ("a.npz" if way == "write_npz" else "a")
    stopped(getattr(pipeline, way), path, monkeypatch)
    other = filled(SiTConfig(TransformerConfig(4, 4, 3, 16, 1, 1)).build({"classes": NAMES}), 7)
    decoder = copy.deepcopy(tokenizer)
    decoder.decoder.to_pixel.bias.data += 0.1
    now = {
        "generator": Pipeline(other, tokenizer, "mine"),
        "tokenizer": Pipeline(pipeline.generator, decoder, "mine"),
        "plugin": pipeline,
    }[exchanged]
    if exchanged == "plugin":
        monkeypatch.setattr("softvq.plugins.described", lambda: {"mine.py": "0123456789abcdef"})
    with pytest.raises(DataError, match="other settings"):
        getattr(now, way)(path, **SETTINGS)


@pytest.mark.parametrize("way", ["write_npz", "write_images"])
def test_two_calls_that_write_the_same_are_kept_apart(pipeline: Pipeline, tmp_path: Path, way: str):
    path = tmp_path / ("a.npz" if way == "write_npz" else "a")
    busy = path.with_name("a.npz.parts") if way == "write_npz" else path
    with locked(busy), pytest.raises(StorageError, match=r"is in use by .*; wait until it has ended"):
        getattr(pipeline, way)(path, **SETTINGS)
    getattr(pipeline, way)(path, **SETTINGS)
    assert not [one for one in tmp_path.rglob("*") if one.name == LOCK]


def test_stored_settings_come_before_the_kinds_and_an_argument_before_both(tokenizer: Tokenizer):
    own = {"sampler": "euler", "steps": 7, "guidance": {"scale": 4.0}}
    generator = SiTConfig(TransformerConfig(4, 4, 3, 16, 1, 1)).build({"sampling": own})
    stored = Pipeline(generator, tokenizer)
    sampling = stored.request(steps=9).sampling
    assert (sampling.sampler, sampling.steps, sampling.guidance.scale) == ("euler", 9, 4.0)
    unconditional = SiTConfig(TransformerConfig(4, 4, 0, 16, 1, 1)).build({"sampling": own})
    assert Pipeline(unconditional, tokenizer).request().sampling.guidance.scale == 1
    with pytest.raises(ConfigError, match="the model knows no classes"):
        Pipeline(unconditional, tokenizer).request("dog")


def test_a_mar_is_a_pipeline_too(tokenizer: Tokenizer):
    generator = filled(MARConfig(MARNetworkConfig(4, 4, 3, 16, 1, 1, 16, 1, 2), head_steps=2).build(), 2)
    found = Pipeline(generator, tokenizer)
    images, alone = found(num=3, steps=2, progress=False), found(num=3, steps=2, batch_size=1, progress=False)
    assert max(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() for a, b in zip(images, alone, strict=True)) <= 1


def test_progress_is_what_the_steps_go_through(pipeline: Pipeline):
    seen = []
    pipeline.tensors(**{**SETTINGS, "progress": lambda steps: seen.append(len(steps)) or steps}, batch_size=2)
    assert seen == [3, 3, 3]


def test_the_tokenizer_is_found_or_given_and_must_be_the_right_one(pipeline: Pipeline, tokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    generator = pipeline.generator
    generator.about["tokenizer"] = {
        "name": str(tmp_path / "tokenizer"),
        "fingerprint": tokenizer.latent_fingerprint,
    }
    generator.save_pretrained(tmp_path / "generator")
    found = Pipeline.from_pretrained(tmp_path / "generator", device="cpu")
    assert torch.equal(found.tensors(**SETTINGS), pipeline.tensors(**SETTINGS))
    half = Pipeline.from_pretrained(tmp_path / "generator", torch_dtype=torch.bfloat16)
    assert {half.generator.dtype, half.tokenizer.dtype} == {torch.bfloat16}
    assert half.tensors(**SETTINGS).shape == (5, 3, 16, 16)
    other = filled(Tokenizer(tokenizer.config), 5)
    with pytest.raises(ModelError, match="was trained with another tokenizer"):
        Pipeline.from_pretrained(tmp_path / "generator", tokenizer=other)
    wide = Tokenizer(TokenizerConfig(16, 8, 4, VIT, VIT, SoftVQConfig(8)))
    with pytest.raises(ConfigError, match="has latents of 8 × 4"):
        Pipeline.from_pretrained(tmp_path / "generator", tokenizer=wide)
    with pytest.raises(ConfigError, match="has latents of 8 × 4"):
        Pipeline(generator, wide)
    generator.about["tokenizer"]["name"] = "tokenizer"  # as `softvq encode --model tokenizer` remembers it
    generator.save_pretrained(tmp_path / "relative")
    found = Pipeline.from_pretrained(tmp_path / "relative")  # from another folder than that of the training
    assert found.tokenizer.latent_fingerprint == tokenizer.latent_fingerprint
    generator.about["tokenizer"]["name"] = "moved"
    generator.save_pretrained(tmp_path / "relative")
    with pytest.raises(ModelError, match=r"was trained with the tokenizer 'moved', which cannot be loaded: .* name it"):
        Pipeline.from_pretrained(tmp_path / "relative")
    del generator.about["tokenizer"]
    generator.save_pretrained(tmp_path / "alone")
    with pytest.raises(ConfigError, match="does not say which tokenizer"):
        Pipeline.from_pretrained(tmp_path / "alone")
    assert Pipeline.from_pretrained(tmp_path / "alone", tokenizer=tokenizer).classes == NAMES


def named(pipeline: Pipeline, names: list[str]) -> Pipeline:
    """The same pipeline with other class names (as many as wanted: nothing is sampled)."""
    generator = SiTConfig(TransformerConfig(4, 4, len(names), 16, 1, 1)).build({"classes": names})
    return Pipeline(generator, pipeline.tokenizer, "named")


def test_a_whole_name_comes_before_a_synonym_and_a_name_before_a_number(pipeline: Pipeline):
    several = named(pipeline, ["corgi, cardigan", "cardigan", "10", "crane", "wading bird, crane", "crane", "2"])
    assert several.class_number("cardigan") == 1
    assert several.class_number("corgi") == 0
    assert (several.class_number("10"), several.class_number("2"), several.class_number(2)) == (2, 6, 2)
    assert several.class_number("0") == 0  # no class is called so
    with pytest.raises(ConfigError, match=r"'crane' is the name of 2 classes: say 3 \(crane\) or 5 \(crane\)"):
        several.class_number("crane")


def test_a_synonym_of_two_classes_is_refused_with_both(pipeline: Pipeline):
    with pytest.raises(ConfigError, match=r"say 0 \(a, x\) or 1 \(b, x\)"):
        named(pipeline, ["a, x", "b, x"]).class_number("x")


def test_an_unknown_class_of_many_is_no_list_of_all(pipeline: Pipeline):
    with pytest.raises(ConfigError) as error:
        named(pipeline, [f"class {number}" for number in range(50)]).class_number("zzzz")
    assert str(error.value) == "there is no class 'zzzz'; `softvq sample --list-classes` lists them all."


@pytest.mark.parametrize("move", [lambda p: p.to(torch.bfloat16), lambda p: p.to(dtype="bfloat16")])
def test_a_pipeline_moves_to_a_type_given_either_way(tokenizer: Tokenizer, move):
    generator = SiTConfig(TransformerConfig(4, 4, 0, 16, 1, 1)).build({})
    own = Pipeline(generator, Tokenizer(tokenizer.config), "mine")
    assert {p.dtype for model in (move(own).generator, own.tokenizer) for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ModelError, match="torch_dtype must be a floating-point type"):
        own.to(dtype="int32")
