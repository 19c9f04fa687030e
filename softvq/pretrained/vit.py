"""Vision Transformers pretrained by other people: DINO, DINOv2, CLIP and EVA-02, by timm's names.

    vit = load("vit_base_patch14_dinov2.lvd142m", image_size=256, patch_size=16)      # starts a tokenizer's encoder
    teacher = Teacher.load("vit_base_patch14_dinov2.lvd142m", image_size=256)         # or gives alignment its targets
    features = teacher(images)                                  # images (B, 3, H, W) in [-1, 1] -> (B, N, width)

Weights come from timm's hub repositories (downloaded at their first use) or from a local safetensors file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softvq import files, hub
from softvq.errors import ModelError
from softvq.layers import VITS, VisionTransformer, ViTConfig, init_linear, resample_patches, resample_positions
from softvq.saving import build

Channels = tuple[float, float, float]
_IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP: tuple[Channels, Channels] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class PretrainedViT:
    """A public network: its architecture, the image side (px) it was trained with, and the `statistics` of its inputs.

    The statistics are the mean and deviation of images in [0, 1]. `random`: a stand-in of the same kind with seeded
    random weights, for tests and the tiny variants of recipes.
    """

    architecture: ViTConfig
    image_size: int
    statistics: tuple[Channels, Channels]
    random: bool = False


_PUBLIC: dict[str, PretrainedViT] = {
    "vit_small_patch16_224.dino": PretrainedViT(VITS["vit_small_patch16_224"], 224, _IMAGENET),
    **{
        f"vit_{size}_patch14_{kind}.lvd142m": PretrainedViT(VITS[f"vit_{size}_patch14_{kind}"], 518, _IMAGENET)
        for kind in ("dinov2", "reg4_dinov2")
        for size in ("small", "base", "large")
    },
    "vit_base_patch16_clip_224.openai": PretrainedViT(VITS["vit_base_patch16_clip_224"], 224, _CLIP),
    "eva02_base_patch16_clip_224.merged2b": PretrainedViT(VITS["eva02_base_patch16_clip_224"], 224, _CLIP),
}
MODELS = _PUBLIC | {
    f"tiny_{name.partition('.')[0]}": replace(known, architecture=known.architecture.tiny(), random=True)
    for name, known in _PUBLIC.items()
}


def describe(name: str) -> PretrainedViT:
    """Return the network of a timm name; `ModelError` names those there are."""
    if name not in MODELS:
        near = [known for known in _PUBLIC if known.startswith(name)]
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_PUBLIC)}."
        raise ModelError(f"there is no pretrained ViT {name!r}; {hint}")
    return MODELS[name]


def load(name: str, image_size: int, patch_size: int | None = None, file: Path | None = None) -> VisionTransformer:
    """Return the network of a timm name for another patch and square image size (px).

    Its patch embedding and positions are resampled as timm does it. `file`: its weights as safetensors, under timm's or
    DINOv2's own names, instead of the hub's. Raise `ModelError` when the name is unknown, or the weights are missing,
    damaged or of another network.
    """
    known = describe(name)
    patch_size = patch_size or known.architecture.patch_size
    if image_size % patch_size:
        raise ModelError(f"image size {image_size} is not a multiple of {name}'s patch size {patch_size}.")
    config = replace(known.architecture, patch_size=patch_size)
    if known.random and file is None:
        return _random(config, image_size // patch_size)
    if file is None:
        folder = hub.download(f"timm/{name}", (hub.WEIGHTS,), f"the file of {name}", "pretrained")
        file = folder / hub.WEIGHTS
    elif file.suffix != ".safetensors":
        raise ModelError(f"{file} is no .safetensors file; others are not read, because unpickling runs code.")
    tensors = _timm_names(files.read_tensors(file))
    side = image_size // patch_size
    if "patch_embed.proj.weight" in tensors and "pos_embed" in tensors:
        tensors |= _resampled(tensors, known, file, patch_size, side)
    return build(lambda: VisionTransformer(config, (side, side)), config.depth, file, tensors)


def untrained(name: str, image_size: int, patch_size: int | None = None) -> VisionTransformer:
    """Return a network of the form that `load` gives, with arbitrary weights."""
    architecture = describe(name).architecture
    config = replace(architecture, patch_size=patch_size or architecture.patch_size)
    side = image_size // config.patch_size
    return VisionTransformer(config, (side, side))


class _Frozen(nn.Module):
    """A network that nothing trains, with its own input normalisation.

    It is always in evaluation mode, without gradients of its weights. It is an argument of the training step, never
    part of a model: its weights are in no checkpoint.
    """

    def __init__(self, vit: VisionTransformer, statistics: tuple[Channels, Channels]):
        super().__init__()
        self.vit, self.width = vit, vit.config.width
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "_Frozen":
        """Return the network, which stays in evaluation mode."""
        return super().train(False)

    def normalised(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1] normalised as the network's inputs."""
        return (images * 0.5 + 0.5 - self.mean) / self.std


class Teacher(_Frozen):
    """A frozen ViT that gives patch features after its final norm: the latents are aligned with them (Eq. 6)."""

    @classmethod
    def load(cls, name: str, image_size: int, patch_size: int = 16, file: Path | None = None) -> "Teacher":
        """Return the teacher of a timm name (see the function `load`).

        Patches are of 16 px by default, as in the paper.
        """
        return cls(load(name, image_size, patch_size, file), describe(name).statistics)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Return the features of the patches, row by row, of images in [-1, 1]."""
        return self.vit.features(self.normalised(images))[:, self.vit.config.prefix :]


class ClassToken(_Frozen):
    """A frozen ViT that gives its class token after its final norm: one vector an image."""

    @classmethod
    def load(cls, name: str, image_size: int, file: Path | None = None) -> "ClassToken":
        """Return the network of a timm name (see the function `load`) at its own patch size."""
        return cls(load(name, image_size, None, file), describe(name).statistics)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the class token of each image in [-1, 1]."""
        return self.vit.features(self.normalised(images))[:, 0]


class Readouts(_Frozen):
    """The frozen part of the DINO discriminator: a ViT's patch tokens, with its class token added to each.

    The tokens are those before the first block and after the blocks in `after`, without final norm; always in float32.
    Gradients reach the images.
    """

    def __init__(self, vit: VisionTransformer, statistics: tuple[Channels, Channels], after: Sequence[int]):
        super().__init__(vit, statistics)
        self.after = tuple(after)

    @classmethod
    def load(cls, name: str, image_size: int, after: Sequence[int], file: Path | None = None) -> "Readouts":
        """Return the network of a timm name (see the function `load`) at its own patch size.

        Raise `ModelError` when it has fewer blocks than `after` names.
        """
        vit, last = load(name, image_size, None, file), max(after, default=0)
        if last > vit.config.depth:
            raise ModelError(f"{name} has {vit.config.depth} blocks, but readouts were asked for after {last}.")
        return cls(vit, describe(name).statistics, after)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Return the readouts of images in [-1, 1], each (B, N, D)."""
        with torch.autocast(images.device.type, enabled=False):
            first = self.vit.config.prefix
            tokens = self.vit.readouts(self.normalised(images.float()), self.after)
            return [t[:, first:] + t[:, :1] for t in tokens]


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under timm's names, without heads and the tensors that only pretraining needs."""
    tensors = {k: v for k, v in tensors.items() if not k.startswith(("head.", "rope.")) and k != "mask_token"}
    if "register_tokens" in tensors and "cls_token" in tensors and "pos_embed" in tensors:  # DINOv2's own files
        tensors["reg_token"] = tensors.pop("register_tokens")
        tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    return tensors


def _resampled(
    tensors: dict[str, Tensor], known: PretrainedViT, file: Path, patch_size: int, side: int
) -> dict[str, Tensor]:
    weight, positions = tensors["patch_embed.proj.weight"].float(), tensors["pos_embed"].float()
    config, prefix = known.architecture, 0 if known.architecture.registers else 1
    if weight.ndim != 4 or weight.shape[:2] != (config.width, 3) or weight.shape[2] != weight.shape[3]:
        expected = (config.width, 3, config.patch_size, config.patch_size)
        raise ModelError(f"{file}: patch_embed.proj.weight has shape {tuple(weight.shape)}, expected {expected}.")
    old = math.isqrt(max(0, positions.shape[1] - prefix)) if positions.ndim == 3 else 0
    if positions.shape != (1, prefix + old * old, config.width) or not old:
        native = known.image_size // config.patch_size
        expected = (1, prefix + native**2, config.width)
        raise ModelError(
            f"{file}: pos_embed has shape {tuple(positions.shape)}, expected {expected} or that of another square grid."
        )
    return {
        "patch_embed.proj.weight": resample_patches(weight, patch_size),
        "pos_embed": resample_positions(positions, (old, old), (side, side)),
    }


def _random(config: ViTConfig, side: int) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        vit = VisionTransformer(config, (side, side))
        vit.apply(init_linear)
    return vit
