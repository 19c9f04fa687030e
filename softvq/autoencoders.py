"""Other people's 2-D autoencoders, from diffusers, as tokenizers.

They put the KL and DC-AE rows of Tables 1 to 3 in the same harness. Needs pip install 'softvq[autoencoders]'.

    tokenizer = FoldedAutoencoder.load("diffusers:stabilityai/sd-vae-ft-mse")  # or diffusers:FOLDER; …@512: 512 px
    latents = tokenizer.encode(images)      # (B, 3, 256, 256) in [-1, 1] -> (B, 256, 16): 2 × 2 latents a token

Everything that takes a tokenizer's name takes such a name: encode, evaluate, probe, latents, train generator, sample.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softvq import files, hub
from softvq.data.images import check_range
from softvq.errors import ImageError, ModelError
from softvq.layers import fold, unfold
from softvq.quantizers.base import Quantized
from softvq.tokenizer import Reconstruction

PREFIX = "diffusers:"
KINDS = ("AutoencoderKL", "AutoencoderDC", "AutoencoderRAE")
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_FINE = 16  # latents of more than so many a side are folded by two, as DiT-XL/2 does


@dataclass(frozen=True)
class FoldedConfig:
    """The shapes of an autoencoder's images, latents and tokens.

    Images of `image_size` px become a `grid` × `grid` square of `channels` numbers, which is folded by `patch` into
    `tokens` of `latent_dim` numbers; `kind` is the diffusers class.
    """

    kind: str
    image_size: int
    channels: int
    grid: int
    patch: int

    @property
    def tokens(self) -> int:
        """The number of tokens of an image."""
        return (self.grid // self.patch) ** 2

    @property
    def latent_dim(self) -> int:
        """The number of numbers of a token."""
        return self.channels * self.patch**2


class FoldedAutoencoder(nn.Module):
    """A diffusers autoencoder with a tokenizer's `encode`, `decode` and `forward`.

    Latents are the posterior's mean, shifted and scaled as the model's configuration says.
    """

    kind = "tokenizer"

    def __init__(self, model: nn.Module, config: FoldedConfig, about: dict[str, Any] | None = None):
        super().__init__()
        self.model, self.config, self.about = model, config, about or {}
        mean, std = _statistics(model.config, config)
        self.register_buffer("latent_mean", mean)
        self.register_buffer("latent_std", std)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, name: str) -> "FoldedAutoencoder":
        """Return the autoencoder of a name `diffusers:NAME` or `diffusers:FOLDER`.

        Either may end with `@SIZE` for images of other than 256 px. Raise `ModelError` when it cannot be had or is of
        another kind.
        """
        where, _, size = name.removeprefix(PREFIX).partition("@")
        if size and not size.isdecimal():
            raise ModelError(f"{name!r}: the size behind @ must be a number of pixels, not {size!r}.")
        folder = Path(where)
        if not folder.is_dir():
            folder = hub.download(where, (hub.CONFIG, _WEIGHTS), f"{PREFIX}FOLDER")
        kind = files.read_json(folder / hub.CONFIG).get("_class_name")
        if kind not in KINDS:
            raise ModelError(f"{where} holds a {kind!r}; of diffusers, {', '.join(KINDS)} can be tokenizers.")
        return cls.of(_loaded(kind, folder), kind, int(size or 256), {"source": name})

    @classmethod
    def of(cls, model: nn.Module, kind: str, image_size: int, about: dict[str, Any]) -> "FoldedAutoencoder":
        """Return the tokenizer that a loaded diffusers model makes.

        Raise `ModelError` when it cannot encode images of `image_size` px, or decodes them to another size.
        """
        with torch.no_grad():
            device = next(model.parameters()).device
            try:
                latents = _encoded(model, kind, torch.zeros(1, 3, image_size, image_size, device=device))
            except RuntimeError as error:
                raise ModelError(
                    f"this {kind} cannot encode {image_size} px ({str(error).splitlines()[0]})."
                ) from error
        _, channels, grid, _ = latents.shape
        if (side := _side(model.config, kind, grid)) != image_size:
            raise ModelError(f"this {kind} makes {side} px of {image_size} px; give a size that fits behind @.")
        patch = 2 if grid > _FINE and grid % 2 == 0 else 1
        return cls(model, FoldedConfig(kind, image_size, channels, grid, patch), about)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        """Return latents of about zero mean and unit variance."""
        c = self.config
        if images.shape[1:] != (3, c.image_size, c.image_size):
            raise ImageError(f"images must be (B, 3, {c.image_size}, {c.image_size}), not {tuple(images.shape)}.")
        check_range(images)
        latents = _encoded(self.model, c.kind, images)
        return fold((latents - self.latent_mean) / self.latent_std, c.patch)

    def decode(self, latents: Float[Tensor, "B L D"]) -> Float[Tensor, "B 3 H W"]:
        """Return images, not clamped."""
        c = self.config
        if latents.shape[1:] != (c.tokens, c.latent_dim):
            raise ModelError(f"latents must be (B, {c.tokens}, {c.latent_dim}), not {tuple(latents.shape)}.")
        side = c.grid // c.patch
        images = self.model.decode(unfold(latents, c.patch, (side, side)) * self.latent_std + self.latent_mean).sample
        return images * 2 - 1 if c.kind == "AutoencoderRAE" else images

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Reconstruction:
        """Return the images decoded from their latents, with these latents as `encoded` and as `quantized`."""
        latents = self.encode(images)
        return Reconstruction(self.decode(latents), latents, Quantized(latents))

    @property
    def name(self) -> str:
        """The name that the model was loaded by."""
        return self.about.get("source", "")

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the configuration and every weight, 16 hex digits."""
        return files.fingerprint(asdict(self.config), self.state_dict())

    @property
    def latent_fingerprint(self) -> str:
        """The fingerprint of what makes latents: that of the whole model."""
        return self.fingerprint

    def makes(self, fingerprint: str) -> bool:
        """Return True when latents recorded with this fingerprint are this model's."""
        return fingerprint == self.fingerprint


def _encoded(model: nn.Module, kind: str, images: Tensor) -> Tensor:
    if kind == "AutoencoderRAE":  # which takes and gives [0, 1]
        return model.encode((images + 1) / 2).latent
    encoding = model.encode(images)
    return encoding.latent_dist.mean if kind == "AutoencoderKL" else encoding.latent


def _side(theirs: Any, kind: str, grid: int) -> int:
    """Return the side in pixels of the images that the decoder makes of a grid of latents."""
    if kind == "AutoencoderRAE":  # whose encoder resizes what it is given
        return theirs.patch_size * grid
    blocks = theirs.block_out_channels if kind == "AutoencoderKL" else theirs.decoder_block_out_channels
    return grid * 2 ** (len(blocks) - 1)


def _statistics(theirs: Any, config: FoldedConfig) -> tuple[Tensor, Tensor]:
    """Return the latents' mean and deviation by the configuration, (C, 1, 1) each; a RAE divides out its own."""
    if config.kind == "AutoencoderRAE":
        return torch.zeros(config.channels, 1, 1), torch.ones(config.channels, 1, 1)
    scale = getattr(theirs, "scaling_factor", None) or 1.0
    mean = getattr(theirs, "latents_mean", None) or [getattr(theirs, "shift_factor", None) or 0.0] * config.channels
    std = getattr(theirs, "latents_std", None) or [1 / scale] * config.channels
    for numbers in (mean, std):
        if len(numbers) != config.channels or not all(math.isfinite(n) for n in numbers):
            raise ModelError(f"the configuration's latent statistics do not fit {config.channels} channels.")
    if not all(number > 0 for number in std):
        raise ModelError(f"the configuration's latent deviations must be positive, not {min(std)}.")
    return torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)


def _loaded(kind: str, folder: Path) -> nn.Module:
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(f"{folder / _WEIGHTS} does not exist; other formats are not read.")
    try:
        import diffusers
    except ImportError:
        raise ModelError("diffusers' autoencoders need packages: pip install 'softvq[autoencoders]'.") from None
    try:
        model, info = getattr(diffusers, kind).from_pretrained(
            folder, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers raises many kinds
        reason = shorten(str(error), 300) or type(error).__name__
        raise ModelError(f"{folder} cannot be loaded by diffusers ({reason}).") from error
    if missing := sorted(info["missing_keys"]):  # which diffusers starts at random
        raise ModelError(f"{folder / _WEIGHTS} lacks {len(missing)} of the model's tensors, {missing[0]} for one.")
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ModelError(f"{folder / _WEIGHTS}: {name} holds NaN or Inf.")
    return model
