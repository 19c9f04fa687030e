"""The published implementation's numbers, reproduced from a checkpoint in its own format (see golden/README.md)."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from softvq import Tokenizer, files
from softvq.cli.main import main
from softvq.layers import VisionTransformer, ViTConfig
from softvq.losses.alignment import Projector, alignment
from softvq.pretrained.vit import Teacher, describe
from softvq.tokenizer import Reconstruction, TokenizerConfig
from tests.golden.fill import filled_state_dict

CASE = Path(__file__).parent / "golden" / "tokenizer-s-64"
TEACHER = "vit_small_patch14_dinov2.lvd142m"


@dataclass(frozen=True)
class Golden:
    folder: Path
    released: dict[str, Tensor]
    expected: dict[str, Tensor]
    tokenizer: Tokenizer
    output: Reconstruction


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> Iterator[Golden]:
    folder = tmp_path_factory.mktemp("softvq-s-64")
    released = filled_state_dict(str(CASE / "manifest.json"))
    save_file(released, folder / "model.safetensors")
    shutil.copy(CASE / "config.json", folder)
    expected = load_file(CASE / "expected.safetensors")
    tokenizer = Tokenizer.from_pretrained(folder)
    with torch.no_grad():
        output = tokenizer(expected["image"])
    yield Golden(folder, released, expected, tokenizer, output)
    shutil.rmtree(folder)  # 280 MB


def assert_near(actual: Tensor, expected: Tensor, absolute: float, relative: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, atol=absolute, rtol=relative)


def test_latents_and_pixels(golden: Golden):
    assert_near(golden.output.encoded, golden.expected["encoded"], 1e-4)
    assert_near(golden.output.quantized.latent, golden.expected["latent"], 1e-4)
    assert_near(golden.output.images, golden.expected["reconstruction"], 1e-3)


def test_indices(golden: Golden):
    assert torch.equal(golden.output.quantized.indices.view(1, 4, 16), golden.expected["indices"])


def test_entropy_loss(golden: Golden):
    assert_near(0.01 * golden.output.quantized.losses["kl"], golden.expected["entropy_loss"], 0, 1e-3)


def test_alignment_loss(golden: Golden):
    """With the checkpoint's own projector and teacher."""
    config = ViTConfig.named("vit_small_patch14_dinov2")
    vit = VisionTransformer(config, (16, 16))
    prefix = "repa_model."
    vit.load_state_dict({k.removeprefix(prefix): v for k, v in golden.released.items() if k.startswith(prefix)})
    projector = Projector(32, 1024, 384)
    names = {f"layers.{i}.{part}": f"projection.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}
    projector.load_state_dict({ours: golden.released[theirs] for ours, theirs in names.items()})
    features = Teacher(vit, describe(TEACHER).statistics)(golden.expected["image"])
    projected = projector(golden.output.quantized.latent).detach()
    weighted = 0.1 * alignment(projected, features)
    assert_near(weighted, golden.expected["align_loss"], 0, 1e-3)
    shuffled = projected[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert not torch.isclose(0.1 * alignment(shuffled, features), golden.expected["align_loss"], atol=0, rtol=1e-3)
    tiled = projected.repeat(1, 4, 1)  # 0, 1, 2, … again and again, instead of 0, 0, 0, 0, 1, …
    assert not torch.isclose(0.1 * alignment(tiled, features), golden.expected["align_loss"], atol=0, rtol=1e-3)


def test_the_configuration_is_understood(golden: Golden):
    assert golden.tokenizer.config == TokenizerConfig.of_size("S")  # its defaults are the released model's
    assert golden.tokenizer.about["source"]


def test_saved_in_our_format_it_is_the_same_without_the_teacher(golden: Golden, tmp_path: Path):
    golden.tokenizer.save_pretrained(tmp_path / "ours")
    saved = files.read_tensors(tmp_path / "ours" / "model.safetensors")
    assert saved.keys() == golden.tokenizer.state_dict().keys()
    assert not [name for name in saved if "repa" in name or "projection" in name]
    assert sum(t.numel() for t in saved.values()) < 44.6e6 < 68e6 < sum(t.numel() for t in golden.released.values())
    again = Tokenizer.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, golden.tokenizer.state_dict()[name]) for name, tensor in again.state_dict().items())
    again.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        (tmp_path / "ours" / name).unlink()
        (tmp_path / "again" / name).unlink()


def test_reconstruct_takes_the_folder(golden: Golden, tmp_path: Path, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 280), (200, 30, 90)).save("photo.jpg")
    assert main(["reconstruct", "--model", str(golden.folder), "photo.jpg"]) == 0
    assert "2,048 numbers an image" in capsys.readouterr().out
    assert (tmp_path / "reconstruction.png").is_file()


def test_statistics_are_divided_out(golden: Golden, tmp_path: Path):
    import json

    config = json.loads((golden.folder / "config.json").read_text()) | {"vq_mean": 0.00097, "vq_std": 0.0726}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(golden.folder / "model.safetensors")
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        latents = tokenizer.encode(golden.expected["image"])
        assert_near(latents, (golden.expected["latent"] - 0.00097) / 0.0726, 1e-4 / 0.0726)
        assert_near(tokenizer.decode(latents), golden.expected["reconstruction"], 1e-3)
