"""Our Vision Transformers against the real timm, with the same random weights: `make test-reference`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from softvq.layers import VisionTransformer, resample_patches, resample_positions
from softvq.pretrained.vit import MODELS, Teacher, describe, load
from softvq.tokenizer import Encoder, TokenizerConfig
from tests.reference.networks import random_timm

NAMES = [name for name, known in MODELS.items() if not known.random]


def ours_of(model: torch.nn.Module, name: str) -> VisionTransformer:
    vit = VisionTransformer(describe(name).architecture, model.patch_embed.grid_size)
    vit.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    return vit.eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_at_the_native_size(name: str):
    model = random_timm(name)
    images = torch.randn(1, 3, describe(name).image_size, describe(name).image_size)
    torch.testing.assert_close(
        ours_of(model, name).features(images), model.forward_features(images), atol=1e-4, rtol=1e-4
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """A file of random weights at the native size, as timm's hub repositories hold."""
    folder = tmp_path_factory.mktemp("weights")

    def write(name: str) -> Path:
        file = folder / f"{name}.safetensors"
        if not file.exists():
            save_file(random_timm(name).state_dict(), file)
        return file

    return write


RESAMPLED = [(name, 256, 16) for name in NAMES]
RESAMPLED += [(name, *sizes) for sizes in ((384, 16), (112, 8)) for name in NAMES if "large" not in name]


@pytest.mark.parametrize(("name", "image_size", "patch_size"), RESAMPLED)
@torch.no_grad()
def test_weights_loaded_at_another_patch_and_image_size(name: str, image_size: int, patch_size: int, saved):
    file = saved(name)
    theirs = timm.create_model(
        name,
        pretrained=True,
        img_size=image_size,
        patch_size=patch_size,
        num_classes=0,
        pretrained_cfg_overlay={"file": str(file)},
    ).eval()
    images = torch.rand(1, 3, image_size, image_size) * 2 - 1
    ours = load(name, image_size, patch_size, file).eval()
    torch.testing.assert_close(ours.features(images), theirs.forward_features(images), atol=1e-4, rtol=1e-4)
    mean, std = (torch.tensor(theirs.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = theirs.forward_features((images * 0.5 + 0.5 - mean) / std)[:, theirs.num_prefix_tokens :]
    features = Teacher.load(name, image_size, patch_size, file)(images)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if "large" not in name])
@torch.no_grad()
def test_an_image_that_is_not_square(name: str):
    model = random_timm(name, img_size=112, patch_size=16, dynamic_img_size=True)
    vit = VisionTransformer(load_config(name), (7, 7))
    vit.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    images = torch.randn(1, 3, 96, 160)
    torch.testing.assert_close(vit.features(images), model.forward_features(images), atol=1e-4, rtol=1e-4)


def load_config(name: str):
    return replace(describe(name).architecture, patch_size=16)


@pytest.mark.parametrize("name", [name for name in NAMES if "large" not in name and "eva02" not in name])
@torch.no_grad()
def test_an_encoder_is_the_network_with_latent_tokens_behind_the_patches(name: str):
    """As the released encoder: latents join before the norm that CLIP has in front of its blocks."""
    model = random_timm(name, img_size=64, patch_size=16)
    encoder = Encoder(TokenizerConfig(image_size=64, tokens=8, encoder=load_config(name)))
    encoder.vit.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    images = torch.randn(2, 3, 64, 64)
    tokens = model._pos_embed(model.patch_embed(images))
    latents = (encoder.latent_tokens + encoder.latent_pos_embed).expand(2, -1, -1)
    tokens = model.norm(model.blocks(model.norm_pre(torch.cat([tokens, latents], dim=1))))
    torch.testing.assert_close(encoder(images), tokens[:, -8:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (16, 14), (16, 8), (8, 32), (14, 14)])
def test_patch_embedding_resampling(old: int, new: int):
    weight = torch.randn(6, 3, old, old)
    expected = resample_patch_embed(weight, [new, new])
    torch.testing.assert_close(resample_patches(weight, new), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(("old", "new"), [((37, 37), (16, 16)), ((7, 7), (9, 5)), ((16, 16), (32, 32))])
def test_position_resampling(prefix: int, old: tuple[int, int], new: tuple[int, int]):
    positions = torch.randn(1, prefix + old[0] * old[1], 8)
    expected = resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=prefix)
    torch.testing.assert_close(resample_positions(positions, old, new), expected, atol=1e-6, rtol=1e-5)
