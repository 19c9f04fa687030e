"""Pretrained ViTs without timm: how files are read, resampled and refused. Parity with timm is in tests/reference."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from softvq import hub
from softvq.errors import ModelError
from softvq.layers import VITS, Rotary, VisionTransformer, resample_patches
from softvq.pretrained import vit as pretrained
from softvq.pretrained.vit import MODELS, PretrainedViT, Teacher, load

NAME = "vit_small_patch14_reg4_dinov2.lvd142m"
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def small(monkeypatch) -> PretrainedViT:
    """The register DINOv2, small and of a 56 px image: 4 × 4 patches."""
    known = replace(MODELS[NAME], architecture=MODELS[NAME].architecture.tiny(), image_size=56)
    monkeypatch.setitem(MODELS, NAME, known)
    return known


def weights(known: PretrainedViT) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    side = known.image_size // known.architecture.patch_size
    vit = VisionTransformer(known.architecture, (side, side))
    return {name: torch.randn_like(t) * 0.2 for name, t in vit.state_dict().items()}


@torch.no_grad()
def test_a_local_file_at_its_own_size(small: PretrainedViT, tmp_path: Path):
    tensors = weights(small)
    save_file(tensors | {"head.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    vit = load(NAME, 56, file=tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in vit.state_dict().items())
    assert vit.features(torch.zeros(1, 3, 56, 56)).shape == (1, 1 + 4 + 16, small.architecture.width)


@torch.no_grad()
def test_dinov2s_own_names(small: PretrainedViT, tmp_path: Path):
    """There, class token and positions are apart, and the class token's position is the first of them."""
    tensors = weights(small)
    theirs = dict(tensors)
    place = torch.randn(1, 1, small.architecture.width)
    theirs["register_tokens"] = theirs.pop("reg_token")
    theirs["cls_token"] = theirs["cls_token"] - place
    theirs["pos_embed"] = torch.cat([place, theirs["pos_embed"]], dim=1)
    theirs["mask_token"] = torch.zeros(1, small.architecture.width)
    save_file(theirs, tmp_path / "dinov2.safetensors")
    vit = load(NAME, 56, file=tmp_path / "dinov2.safetensors")
    for name, tensor in vit.state_dict().items():
        torch.testing.assert_close(tensor, tensors[name])


@torch.no_grad()
def test_another_patch_and_image_size(small: PretrainedViT, tmp_path: Path):
    save_file(weights(small), tmp_path / "model.safetensors")
    vit = load(NAME, 32, 16, tmp_path / "model.safetensors")
    assert vit.grid == (2, 2)
    assert vit.config == replace(small.architecture, patch_size=16)
    assert vit.features(IMAGES).shape == (2, 5 + 4, small.architecture.width)


def test_resampled_patches_see_a_resized_patch_as_the_old_ones_see_the_patch():
    """Exact where the resizing loses nothing (FlexiViT's criterion)."""
    weight = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    patch = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    larger = torch.nn.functional.interpolate(patch, size=(12, 12), mode="bicubic", antialias=True)
    seen = (resample_patches(weight, 12) * larger).sum((1, 2, 3))
    torch.testing.assert_close(seen, (weight * patch).sum((1, 2, 3)))


@torch.no_grad()
def test_a_teacher_normalises_on_its_own_and_gives_patches_alone(small: PretrainedViT, tmp_path: Path):
    save_file(weights(small), tmp_path / "model.safetensors")
    teacher = Teacher.load(NAME, 32, 16, tmp_path / "model.safetensors")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in small.statistics)
    expected = teacher.vit.features(((IMAGES + 1) / 2 - mean) / std)[:, 5:]
    torch.testing.assert_close(teacher(IMAGES), expected)
    torch.testing.assert_close(expected.mean(-1), torch.zeros(2, 4) + teacher.vit.norm.bias.mean(), atol=1, rtol=0)


def test_a_teacher_is_frozen():
    teacher = Teacher.load("tiny_vit_small_patch14_dinov2", 64, 16)
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    assert not teacher(images).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.train().training
    assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_every_stand_in_is_the_same_each_time(name: str):
    first, second = (load(f"tiny_{name}", 32, 16) for _ in range(2))
    assert torch.equal(first.features(IMAGES), second.features(IMAGES))
    assert first.features(IMAGES).isfinite().all()


@torch.no_grad()
def test_weights_come_from_timms_repository_when_no_file_is_given(small: PretrainedViT, tmp_path: Path, monkeypatch):
    asked = []

    def download(name: str, files: tuple[str, ...], instead: str, setting: str) -> Path:
        asked.append((name, files))
        save_file(weights(small), tmp_path / "model.safetensors")
        return tmp_path

    monkeypatch.setattr(hub, "download", download)
    load(NAME, 32, 16)
    assert asked == [(f"timm/{NAME}", ("model.safetensors",))]


def test_refusals_are_sentences(small: PretrainedViT, tmp_path: Path):
    file = tmp_path / "model.safetensors"
    tensors = weights(small)
    with pytest.raises(ModelError, match="no pretrained ViT 'vit_huge'; there are vit_small"):
        load("vit_huge", 32)
    with pytest.raises(ModelError, match=r"did you mean vit_base_patch14_dinov2\.lvd142m\?"):
        load("vit_base_patch14_dinov2", 32)
    with pytest.raises(ModelError, match=r"image size 40 is not a multiple of .* patch size 16"):
        load(NAME, 40, 16)
    with pytest.raises(ModelError, match=r"'timm/vit_small_patch14_reg4_dinov2.lvd142m' .* could not be had"):
        load(NAME, 32, 16)
    with pytest.raises(ModelError, match="does not exist"):
        load(NAME, 32, 16, file)
    with pytest.raises(ModelError, match=r"weights.pth is no .safetensors file"):
        load(NAME, 32, 16, tmp_path / "weights.pth")
    file.write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="truncated or not a safetensors file"):
        load(NAME, 32, 16, file)
    save_file({k: v for k, v in tensors.items() if k != "norm.weight"}, file)
    with pytest.raises(ModelError, match=r"lacks the tensor norm\.weight"):
        load(NAME, 32, 16, file)
    save_file({k: v for k, v in tensors.items() if k != "pos_embed"}, file)
    with pytest.raises(ModelError, match="lacks the tensor pos_embed"):
        load(NAME, 32, 16, file)
    save_file(tensors | {"pos_embed": torch.zeros(1, 18, small.architecture.width)}, file)
    with pytest.raises(ModelError, match=r"pos_embed has shape \(1, 18, 48\), expected \(1, 16, 48\)"):
        load(NAME, 32, 16, file)
    save_file(tensors | {"norm.weight": torch.full((small.architecture.width,), torch.nan)}, file)
    with pytest.raises(ModelError, match=r"norm\.weight holds NaN"):
        load(NAME, 32, 16, file)


def test_every_network_has_its_own_statistics():
    assert MODELS["vit_base_patch16_clip_224.openai"].statistics != MODELS[NAME].statistics
    for name, known in MODELS.items():
        twin = MODELS[f"tiny_{name.partition('.')[0]}"] if not known.random else known
        assert twin.statistics == known.statistics
    assert pretrained.describe(NAME).architecture.registers == 4


class TestRotary:
    """EVA-02's rotary positions (RoPE)."""

    def test_length_is_kept_and_other_tokens_are_not_turned(self):
        x = torch.randn(2, 3, 1 + 12 + 5, 8)
        turned = Rotary.of_grid((3, 4), 8, 1, x.device)(x)
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
        assert torch.equal(turned[:, :, :1], x[:, :, :1])
        assert torch.equal(turned[:, :, 13:], x[:, :, 13:])
        assert not torch.allclose(turned[:, :, 2:13], x[:, :, 2:13])

    def test_products_depend_on_the_distance_alone(self):
        rotary = Rotary.of_grid((16, 16), 8, 0, torch.device("cpu"))
        q, k = (torch.randn(8).expand(1, 1, 256, 8) for _ in range(2))
        products = (rotary(q) @ rotary(k).transpose(-1, -2)).view(16, 16, 16, 16)
        for i, j in ((0, 0), (5, 2), (9, 12)):
            torch.testing.assert_close(products[i, j, i + 3, j + 1], products[1, 4, 4, 5])

    def test_a_finer_grid_covers_the_same_angles(self):
        coarse = Rotary.of_grid((8, 8), 8, 0, torch.device("cpu")).sin.view(8, 8, 8)
        fine = Rotary.of_grid((16, 16), 8, 0, torch.device("cpu")).sin.view(16, 16, 8)
        torch.testing.assert_close(coarse, fine[::2, ::2])
