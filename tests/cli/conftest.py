"""Fixtures of the commands' tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import Tokenizer
from softvq.data.opening import open_source
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.layers import ViTConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.tokenizer import TokenizerConfig
from tests.cli.running import result
from tests.evaluation.images import SIZE, other, real, small  # noqa: F401

CLASSES = ["cat", "dog, hound", "10 o'clock"]


@pytest.fixture(scope="module")
def reference(small: None, real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The statistics of the real images, in the features of a small Inception."""
    folder = tmp_path_factory.mktemp("reference")
    own = ("--features", "tiny_inception", "--workers", 0)
    result("evaluate", "reference", "--data", real, "--size", SIZE, "--to", folder / "ref.npz", *own, "--out", folder)
    assert [one.name for one in folder.iterdir()] == ["ref.npz"]
    return folder / "ref.npz"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A noisy picture, unlike any emoji."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    """One of the validation images, as a file."""
    path = tmp_path / "emoji.webp"
    path.write_bytes(open_source("emoji-val").read(3))
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tokenizer`, of 16 px, and `generator`, of its latents and three classes, whose outputs depend on all inputs; and
    `none`, of no classes."""
    folder = tmp_path_factory.mktemp("tiny")
    vit = ViTConfig(width=16, depth=1, heads=1, patch_size=8)
    tokenizer = filled(Tokenizer(TokenizerConfig(16, 4, 4, vit, vit, SoftVQConfig(8))), 0)
    tokenizer.save_pretrained(folder / "tokenizer")
    known = {"name": str(folder / "tokenizer"), "fingerprint": tokenizer.latent_fingerprint}
    for name, classes in (("generator", CLASSES), ("none", [])):
        network = TransformerConfig(4, 4, len(classes), 16, 1, 1)
        about = {"classes": classes, "tokenizer": known, "sampling": {"sampler": "euler", "steps": 2}}
        filled(SiTConfig(network).build(about), 1).save_pretrained(folder / name)
    return folder


def filled(model: Any, seed: int) -> Any:
    """The model with weights that make its outputs depend on all inputs."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images of 20 px in two classes, of which two have the same file's name."""
    folder = tmp_path_factory.mktemp("gallery")
    rng = np.random.default_rng(0)
    for name in ("cat/0.png", "cat/1.png", "cat/tabby.png", "cat/7.png", "dog/0.png", "dog/2.png", "dog/hound.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / name)
    return folder
