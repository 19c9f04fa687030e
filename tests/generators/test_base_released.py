"""Released generators: 2-D checkpoints against a patch convolution and its inverse, and a sentence for the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from softvq.errors import ConfigError, ModelError
from softvq.generators.base import Generator
from softvq.generators.dit import DiT, DiTConfig
from softvq.generators.sit import SiT, SiTConfig
from softvq.generators.transformer import TransformerConfig, positions
from softvq.layers import fold, unfold

PATCH, CHANNELS, SIDE, WIDTH = 2, 3, 6, 32
NETWORK = TransformerConfig(9, PATCH**2 * CHANNELS, 5, WIDTH, 2, 2, positions="2d")
LATENTS = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
TIMES, LABELS = torch.tensor([0.3, 0.9]), torch.tensor([1, 5])


def config_of(kind: str, **options: Any) -> dict[str, Any]:
    """As the released classes write it; `options` of None are left out."""
    shared = {
        "hidden_size": WIDTH,
        "depth": 2,
        "num_heads": 2,
        "in_channels": CHANNELS,
        "input_size": SIDE,
        "patch_size": PATCH,
        "num_classes": 5,
        "mlp_ratio": 4.0,
        "class_dropout_prob": 0.1,
        "vae_1d": False,
    }
    own = {"learn_sigma": True} if kind == "DiT" else {"path_type": "linear", "qk_norm": False, "use_cfg": True}
    return shared | own | options


def tensors_of(kind: str) -> dict[str, Tensor]:
    """A released checkpoint: names as ours, the embedding a convolution, DiT's last layer p × p × noise ‖ variance."""
    generator = torch.Generator().manual_seed(1)
    config = DiTConfig(NETWORK) if kind == "DiT" else SiTConfig(NETWORK)
    model = config.build().network
    tensors = {n: 0.2 * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    tensors["pos_embed"] = positions(NETWORK)
    del tensors["x_embedder.weight"]
    tensors["x_embedder.proj.weight"] = 0.2 * torch.randn(WIDTH, CHANNELS, PATCH, PATCH, generator=generator)
    tensors["x_embedder.proj.bias"] = tensors.pop("x_embedder.bias")
    return tensors


def folder_of(kind: str, folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(kind), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_of(kind, **options)))
    return folder


def by_hand(kind: str, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
    """The released forward pass: convolve, transform, and put each token's p × p × c numbers back in their square."""
    tensors = tensors_of(kind)
    out = CHANNELS * (2 if kind == "DiT" else 1)
    model = (DiT(DiTConfig(NETWORK)) if kind == "DiT" else SiT(SiTConfig(NETWORK))).network
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("x_embedder")}
    model.load_state_dict(own, strict=False)
    x = F.conv2d(latents, tensors["x_embedder.proj.weight"], tensors["x_embedder.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)  # B 9 D, row by row
    model.x_embedder = nn.Identity()
    tokens = model(x, times, labels)
    image = torch.empty(len(latents), out, SIDE, SIDE)
    for row in range(3):
        for column in range(3):
            square = tokens[:, 3 * row + column].view(-1, PATCH, PATCH, out)
            for i in range(PATCH):
                for j in range(PATCH):
                    image[:, :, PATCH * row + i, PATCH * column + j] = square[:, i, j]
    return image


@pytest.mark.parametrize("kind", ["SiT", "DiT"])
@torch.no_grad()
def test_2d_checkpoints_say_of_folded_latents_what_they_say_of_latents(kind, tmp_path: Path):
    model = Generator.from_pretrained(folder_of(kind, tmp_path))
    assert type(model).__name__ == kind
    assert model.shape == (9, 12)
    times = TIMES if kind == "SiT" else torch.tensor([3.0, 900.0])
    said = model(fold(LATENTS, PATCH), times, LABELS)
    wanted = by_hand(kind, LATENTS, times, LABELS)
    for part, image in zip(said.split(12, dim=-1), wanted.split(CHANNELS, dim=1), strict=True):
        torch.testing.assert_close(unfold(part, PATCH, (3, 3)), image, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 0.1


@pytest.mark.parametrize("kind", ["SiT", "DiT"])
def test_2d_checkpoints_saved_in_our_format_are_the_same(kind, tmp_path: Path):
    model = Generator.from_pretrained(folder_of(kind, tmp_path / "theirs"))
    model.save_pretrained(tmp_path / "ours")
    again = Generator.from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [("sit-xl_softvq-l-64", "SoftVQVAE/softvq-l-64"), ("dit-xl_softvq-b-32", "SoftVQVAE/softvq-b-32"), ("mine", None)],
)
def test_the_name_says_the_tokenizer(name, tokenizer, tmp_path: Path):
    about = Generator.from_pretrained(folder_of("SiT", tmp_path / name)).about
    assert about.get("tokenizer") == ({"name": tokenizer} if tokenizer else None)


REFUSED = {
    "query-key norm": ({"qk_norm": True}, "asks for qk_norm"),
    "no null class": ({"class_dropout_prob": 0.0}, "no null class"),
    "path": ({"path_type": "vp"}, "path_type = 'vp'; valid: linear, cosine"),
    "patch": ({"patch_size": 4}, "input_size must be a multiple of patch_size"),
    "patch 0": ({"patch_size": 0}, "input_size must be a multiple of patch_size"),
    "channels": ({"in_channels": 0}, "in_channels at least 1"),
    "unknown": ({"num_head": 2}, "unknown key 'num_head'; did you mean num_heads"),
    "wrong type": ({"depth": "28"}, "config.json.depth must be a whole number"),
    "heads": ({"num_heads": 5}, "must be a multiple of 4 and of heads 5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_built_is_a_sentence(name, tmp_path: Path):
    options, sentence = REFUSED[name]
    with pytest.raises(ConfigError, match=sentence) as caught:
        Generator.from_pretrained(folder_of("SiT", tmp_path, **options))
    assert "\n" not in str(caught.value)


def test_a_fixed_variance_is_not_built(tmp_path: Path):
    with pytest.raises(ConfigError, match="fixed variance"):
        Generator.from_pretrained(folder_of("DiT", tmp_path, learn_sigma=False))


CHANGED = {
    "missing": (lambda t: t.pop("blocks.1.mlp.fc1.weight"), "lacks the tensor network.blocks.1.mlp.fc1.weight"),
    "extra": (lambda t: t.update({"projector.weight": torch.zeros(2)}), "has the tensor network.projector.weight"),
    "shape": (
        lambda t: t.update({"x_embedder.proj.bias": torch.zeros(3)}),
        r"x_embedder.bias has shape \(3,\), expected \(32,\)",
    ),
    "nan": (lambda t: t["x_embedder.proj.bias"].fill_(torch.nan), "holds NaN"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_other_tensors_than_the_configuration_says_are_a_sentence(name, tmp_path: Path):
    change, sentence = CHANGED[name]
    folder, tensors = folder_of("SiT", tmp_path), tensors_of("SiT")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=sentence):
        Generator.from_pretrained(folder)


def test_a_1d_configuration_of_2d_weights_is_a_sentence(tmp_path: Path):
    with pytest.raises(ModelError, match=r"x_embedder.weight has shape"):
        Generator.from_pretrained(folder_of("SiT", tmp_path, vae_1d=True, input_size=9, in_channels=12))


@pytest.mark.parametrize("shape", [(25,), (5, 5), ()])
def test_a_last_layer_or_embedding_of_another_shape_is_a_sentence(shape, tmp_path: Path):
    folder, tensors = folder_of("DiT", tmp_path), tensors_of("DiT")
    for name in ("final_layer.linear.bias", "x_embedder.proj.weight"):
        save_file(tensors | {name: torch.zeros(shape)}, folder / "model.safetensors")
        with pytest.raises(ModelError, match=name.replace("proj.", "")):
            Generator.from_pretrained(folder)
