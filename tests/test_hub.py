"""Model folders: written whole, read back to the bit, and refused with a sentence when something is wrong."""

import json
from pathlib import Path

import pytest
import torch

from softvq import Tokenizer, hub
from softvq.config import ConfigError
from softvq.hub import ModelError
from softvq.layers import ViTConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.tokenizer import TokenizerConfig

VIT = ViTConfig(width=16, depth=1, heads=1, patch_size=8)
CONFIG = TokenizerConfig(16, 4, 2, VIT, VIT, SoftVQConfig(8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(CONFIG, {"figures": {"psnr": 20.5}})
    tokenizer.set_statistics(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.6]))
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_save_load_save_is_byte_identical(folder: Path, tmp_path: Path):
    loaded = Tokenizer.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "again")
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_loaded_model_is_ready(folder: Path):
    loaded = Tokenizer.from_pretrained(str(folder))
    assert not loaded.training
    assert loaded.about["figures"] == {"psnr": 20.5}
    assert torch.equal(loaded.latent_std, torch.tensor([0.5, 0.6]))
    assert all(p.device.type == "cpu" and p.requires_grad for p in loaded.parameters())
    image = torch.zeros(1, 3, 16, 16)
    assert torch.equal(loaded.decode(loaded.encode(image)), loaded.decode(loaded.encode(image)))


def test_the_bundled_tokenizer_loads():
    assert "softvq-emoji-64" in hub.bundled()
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    latents = tokenizer.encode(torch.ones(1, 3, 64, 64))
    assert latents.shape == (1, tokenizer.config.tokens, tokenizer.config.latent_dim)
    size = (hub.BUNDLED / "softvq-emoji-64" / hub.WEIGHTS).stat().st_size
    assert size <= 15_000_000


def test_half_precision_halves_the_file_and_loads_as_float32(folder: Path, tmp_path: Path):
    whole = Tokenizer.from_pretrained(folder)
    whole.save_pretrained(tmp_path / "half", torch.float16)
    half = Tokenizer.from_pretrained(tmp_path / "half")
    assert (tmp_path / "half" / hub.WEIGHTS).stat().st_size < 0.7 * (folder / hub.WEIGHTS).stat().st_size
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, whole.state_dict()[name].half().float())


def edit(folder: Path, change) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


def rewrite(folder: Path, change) -> None:
    tensors = hub.read_tensors(folder / hub.WEIGHTS)
    change(tensors)
    hub.write_tensors(folder / hub.WEIGHTS, tensors)


def poison(tensors: dict) -> None:
    tensors["latent_mean"][0] = float("nan")


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json does not exist"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors does not exist"),
    "broken json": (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
    "json list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "other format": (lambda f: edit(f, lambda d: d.update(format=99)), "not a softvq model configuration"),
    "other kind": (lambda f: edit(f, lambda d: d.update(kind="generator")), "holds a generator, not a tokenizer"),
    "unknown key": (
        lambda f: edit(f, lambda d: d["config"].update(tokns=3)),
        "unknown key 'tokns'; did you mean tokens",
    ),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "truncated",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated or not a safetensors"),
    "missing": (lambda f: rewrite(f, lambda t: t.pop("decoder.mask_token")), "lacks the tensor decoder.mask_token"),
    "extra": (lambda f: rewrite(f, lambda t: t.update(teacher=torch.zeros(1))), "has the tensor teacher"),
    "shape": (
        lambda f: rewrite(f, lambda t: t.update({"to_quantizer.weight": torch.zeros(3, 16)})),
        r"to_quantizer.weight has shape \(3, 16\), expected \(2, 16\)",
    ),
    "nan": (lambda f: rewrite(f, poison), "latent_mean holds NaN"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_sentence(folder: Path, damage: str):
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises((ModelError, ConfigError), match=message) as caught:
        Tokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_unknown_names(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no model folder 'nothing'.*softvq-emoji-64"):
        Tokenizer.from_pretrained("nothing")
    with pytest.raises(ModelError, match="could not be had from the hub"):
        Tokenizer.from_pretrained("someone/some-model-that-is-not-cached")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file.json"
    hub.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        hub.write_json(path, {"a": object()})
    assert hub.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
