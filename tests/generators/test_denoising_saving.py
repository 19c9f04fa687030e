"""SiT and DiT: saved and loaded they are the same, and a sentence for what cannot be loaded."""

import json
from pathlib import Path

import pytest
import torch

from softvq import files, hub
from softvq.errors import ConfigError, ModelError
from softvq.generators.base import Generator, Noise, Sampling
from softvq.generators.sit import SiT, SiTConfig
from softvq.generators.transformer import TransformerConfig
from tests.generators.models import draws_of, made
from tests.generators.test_denoising import CONFIGS, LABELS, LATENTS


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(name, tmp_path: Path):
    model = made(CONFIGS[name])
    model.about["classes"] = ["a", "b", "c", "d", "e"]
    model.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert again.config == model.config
    assert again.about == model.about
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())
    draws = draws_of(model, *range(6))
    torch.testing.assert_close(again.loss(LATENTS, LABELS, draws), model.loss(LATENTS, LABELS, draws))


@pytest.mark.parametrize("kind", ["SiT", "DiT"])
def test_a_loaded_generator_samples_as_the_one_that_was_saved(kind, tmp_path: Path):
    model = made(CONFIGS[kind])
    model.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    for sampler in model.samplers:
        sampling = Sampling(sampler, 4)
        one, other = (m.sample(LABELS[:2], Noise(0, range(2), (4, 3)), sampling) for m in (model, again))
        assert torch.equal(one, other)


def test_half_precision_is_saved_as_such_but_for_the_positions(tmp_path: Path):
    model = made(CONFIGS["SiT"])
    model.save_pretrained(tmp_path, torch.bfloat16)
    saved = files.read_tensors(tmp_path / hub.WEIGHTS)
    assert {name for name, tensor in saved.items() if tensor.dtype == torch.float32} == {"network.pos_embed"}
    again = Generator.from_pretrained(tmp_path)
    for key, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[key], rtol=2**-8, atol=0)
    with pytest.raises(ValueError, match=r"floating-point type, not torch\.int8"):
        model.save_pretrained(tmp_path, torch.int8)


def edit(folder: Path, change) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


def rewrite(folder: Path, change) -> None:
    tensors = files.read_tensors(folder / hub.WEIGHTS)
    change(tensors)
    files.write_tensors(folder / hub.WEIGHTS, tensors)


DAMAGE = {
    "missing": (
        lambda f: rewrite(f, lambda t: t.pop("network.x_embedder.bias")),
        ModelError,
        "lacks the tensor network.x_embedder.bias",
    ),
    "extra": (
        lambda f: rewrite(f, lambda t: t.update(ema=torch.zeros(1))),
        ModelError,
        "has the tensor ema, which the model has not",
    ),
    "shape": (
        lambda f: rewrite(f, lambda t: t.update({"network.x_embedder.bias": torch.zeros(3)})),
        ModelError,
        r"network.x_embedder.bias has shape \(3,\), expected \(32,\)",
    ),
    "deep": (
        lambda f: edit(f, lambda d: d["config"]["network"].update(depth=200)),
        ModelError,
        "has 200 blocks",
    ),
    "kind": (lambda f: edit(f, lambda d: d.update(kind="tokenizer")), ModelError, "not a 'generator'"),
    "type": (
        lambda f: edit(f, lambda d: d["config"].update(type="GiT")),
        ModelError,
        "not \"GiT\"; did you mean SiT or DiT; if a Python file of one's own adds 'GiT', import",
    ),
    "path": (
        lambda f: edit(f, lambda d: d["config"].update(path="edm")),
        ModelError,
        "there is no path 'edm'; valid: linear, cosine",
    ),
    "key": (
        lambda f: edit(f, lambda d: d["config"]["network"].update(width_=3)),
        ConfigError,
        "unknown key 'width_'; did you mean width",
    ),
    "size": (
        lambda f: edit(f, lambda d: d["config"]["network"].update(heads=5)),
        ConfigError,
        "must be a multiple of 4 and of heads 5",
    ),
    "nothing": (lambda f: (f / "model.safetensors").unlink(), ModelError, "does not exist"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_loaded_is_a_sentence(name, tmp_path: Path):
    damage, error, sentence = DAMAGE[name]
    made(CONFIGS["SiT"]).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=sentence) as caught:
        Generator.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_front_door_leads_to_saved_generators(tmp_path):
    from softvq import Generator

    saved = SiTConfig(TransformerConfig.named("tiny", 4, 3, 2)).build()
    saved.save_pretrained(tmp_path)
    found = Generator.from_pretrained(tmp_path)
    assert type(found) is SiT
    assert not found.training
    assert "Pipeline.from_pretrained" in (tmp_path / "README.md").read_text()
