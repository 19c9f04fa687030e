"""The tokenizer of Figure 2: image → L latent tokens → image.

    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    latents = tokenizer.encode(images)      # images (B, 3, H, W) in [-1, 1]; latents (B, L, D), mean 0 and variance 1
    images = tokenizer.decode(latents)

The encoder reads patches and L learnable latent tokens and keeps the latter; the quantizer makes them the latents;
the decoder reads N mask tokens and the latents and regresses the pixels of each patch (Section 3.1).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from softvq import config as configs
from softvq import released
from softvq.data.images import Fit, a_kind, as_image, check_range, fit, to_bytes, to_tensor
from softvq.errors import ImageError, ModelError, is_whole
from softvq.files import fingerprint
from softvq.layers import Refinement, Trunk, VisionTransformer, ViTConfig, init_linear
from softvq.quantizers.base import (
    Quantized,
    QuantizerConfig,
    Reduce,
    check_built,
    check_quantizer,
    identity,
    quantize,
    tree,
)
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.saving import Saved

_SMALL, _BASE, _LARGE = (ViTConfig.named(f"vit_{size}_patch14_dinov2") for size in ("small", "base", "large"))
_TINY = ViTConfig(width=64, depth=2, heads=2)
SIZES = {  # encoder and decoder of Section 4.1; BL is a B encoder with an L decoder
    "tiny": (_TINY, _TINY),
    "S": (_SMALL, _SMALL),
    "B": (_BASE, _BASE),
    "BL": (_BASE, _LARGE),
    "L": (_LARGE, _LARGE),
}


def _released_quantizer() -> ProductConfig:
    return ProductConfig(SoftVQConfig.released(), groups=4, axis="token", kl="pooled")


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer's architecture.

    `image_size` (px) is the square size its positions are learned for; other sizes interpolate them. `tokens` is L,
    `latent_dim` is D; the default quantizer is the released one (SoftVQ in four token groups). `refine` is the number
    of channels of a convolutional refinement behind the decoder (`layers.Refinement`); 0, as in the paper, is for none.
    """

    image_size: int = 256
    tokens: int = 64
    latent_dim: int = 32
    encoder: ViTConfig = _SMALL
    decoder: ViTConfig = _SMALL
    quantizer: QuantizerConfig = field(default_factory=_released_quantizer)
    refine: int = configs.later(0)

    def __post_init__(self):
        if self.refine < 0:
            raise ValueError(f"refine must not be negative, not {self.refine}")
        if min(self.image_size, self.tokens, self.latent_dim) < 1:
            raise ValueError("image_size, tokens and latent_dim must be at least 1")
        for name in ("encoder", "decoder"):
            patch = getattr(self, name).patch_size
            if self.image_size % patch:
                raise ValueError(f"image_size {self.image_size} is not a multiple of the {name}'s patch size {patch}")
        check_quantizer(self.quantizer, self.tokens)

    @classmethod
    def of_size(cls, size: str, **fields: Any) -> "TokenizerConfig":
        """Return the configuration of one of `SIZES` by name, with the other fields as given."""
        if size not in SIZES:
            raise configs.ConfigError(f"there is no tokenizer size {size!r}; the sizes are {', '.join(SIZES)}.")
        encoder, decoder = SIZES[size]
        return cls(encoder=encoder, decoder=decoder, **fields)


@tree
@dataclass(frozen=True)
class Reconstruction:
    """The result of `Tokenizer.forward`: images, ẑ and the quantizer's answer.

    `encoded` is the encoder's ẑ before the quantizer; the latents in `quantized` are not normalised.
    """

    images: Float[Tensor, "B 3 H W"]
    encoded: Float[Tensor, "B L D_in"]
    quantized: Quantized


class Encoder(nn.Module):
    """A ViT over patches and latent tokens, of which only the latter's outputs are kept: ẑ = E([x_p; z_l]; φ)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        side = config.image_size // config.encoder.patch_size
        width = config.encoder.width
        self.vit = VisionTransformer(config.encoder, (side, side))
        self.latent_tokens = nn.Parameter(torch.empty(1, config.tokens, width).normal_(std=0.02))
        self.latent_pos_embed = nn.Parameter(torch.empty(1, config.tokens, width).normal_(std=0.02))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        """Return the outputs of the L latent tokens for images in [-1, 1]; D is the encoder's width."""
        latents = (self.latent_tokens + self.latent_pos_embed).expand(images.shape[0], -1, -1)
        return self.vit.features(images, latents)[:, -latents.shape[1] :]


class Decoder(nn.Module):
    """A ViT over mask tokens and latents, and a linear layer from each mask token to its patch: x̂ = D([m; z]; θ)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        side = config.image_size // config.decoder.patch_size
        width = config.decoder.width
        self.patch_size = config.decoder.patch_size
        self.vit = Trunk(config.decoder, (side, side))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.latent_pos_embed = nn.Parameter(torch.empty(1, config.tokens, width).normal_(std=0.02))
        self.to_pixel = nn.Linear(width, 3 * self.patch_size**2)
        self.refine = Refinement(config.refine) if config.refine else nn.Identity()

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the last layer, at which an adaptive adversarial weight balances gradients."""
        return self.refine.conv2.weight if isinstance(self.refine, Refinement) else self.to_pixel.weight

    def forward(self, latents: Float[Tensor, "B L D"], size: tuple[int, int]) -> Float[Tensor, "B 3 H W"]:
        """Return images of (height, width) `size` for latents of the decoder's width D; they are not clamped."""
        P = self.patch_size
        h, w = size[0] // P, size[1] // P
        masks = self.mask_token.expand(latents.shape[0], h * w, -1)
        tokens = self.vit(masks, (h, w), latents + self.latent_pos_embed)
        first = self.vit.config.prefix
        pixels = self.to_pixel(tokens[:, first : first + h * w])  # B N P·P·3
        pixels = pixels.view(-1, h, w, P, P, 3)
        return self.refine(pixels.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, h * P, w * P))


class Tokenizer(Saved):
    """A model between images (B, 3, H, W) in [-1, 1] and latents (B, L, D), in both directions.

    `latent_mean`, `latent_std` (D,) are the statistics that `encode` divides out and `decode` puts back; they are 0 and
    1 until `set_statistics`. `about` is free JSON that travels with a saved model: recipe, data, figures.
    """

    kind = "tokenizer"
    translate = staticmethod(released.tokenizer)

    def __init__(self, config: TokenizerConfig, about: dict[str, Any] | None = None):
        super().__init__(config, about)
        self.encoder = Encoder(config)
        self.quantizer = config.quantizer.build(config.latent_dim)
        check_built(self.quantizer, config.latent_dim)
        self.to_quantizer = nn.Linear(config.encoder.width, self.quantizer.in_dim)
        self.from_quantizer = nn.Linear(config.latent_dim, config.decoder.width)
        self.decoder = Decoder(config)
        for part in (self.encoder, self.to_quantizer, self.from_quantizer, self.decoder):
            part.apply(init_linear)  # a quantizer starts as it wants to
        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        noise: Float[Tensor, "B L D"] | None = None,
        disturb: Callable[[Float[Tensor, "B L D"]], Float[Tensor, "B L D"]] | None = None,
        reduce: Reduce = identity,
    ) -> Reconstruction:
        """Return images after encoding, quantizing and decoding, all in this process, with the latents on the way.

        `noise` is that with which a KL quantizer samples (see `KL`). Training passes in `disturb`, a function that is
        applied to the latents on their way to the decoder, and `reduce`, the mean over ranks.
        """
        encoded = self._encoded(images)
        quantized = quantize(self.quantizer, encoded, noise, reduce)
        latent = quantized.latent if disturb is None else disturb(quantized.latent)
        decoded = self._decoded(latent, (images.shape[2], images.shape[3]))
        return Reconstruction(decoded, encoded, quantized)

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        """Return latents of zero mean and unit variance (once statistics are fitted); for KL, of the posterior's mean.

        Images of another size than the model's are encoded as they are (positions interpolate); `prepare` and
        `reconstruct` fit PIL images and files to its size.
        """
        check_range(images)
        latents = self.quantizer.latent(*self._to_quantize(images)).to(self.latent_mean.dtype)
        return (latents - self.latent_mean) / self.latent_std

    def decode(
        self, latents: Float[Tensor, "B L D"], size: int | tuple[int, int] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Return images of `size`, (height, width) or the side of a square (default: the model's own), not clamped.

        The normalisation of `encode` is undone. Raise `ModelError` when the latents do not have this model's shape.
        """
        if not isinstance(latents, Tensor):
            raise ModelError(f"decode takes latents as a tensor (B, L, D), not {a_kind(latents)}.")
        if latents.shape[1:] != (self.config.tokens, self.config.latent_dim):
            raise ModelError(
                f"latents have shape {tuple(latents.shape)}, but this model's are "
                f"(B, {self.config.tokens}, {self.config.latent_dim})."
            )
        latents = latents.to(self.latent_mean) * self.latent_std + self.latent_mean
        return self._decoded(latents, self._wanted(size))

    def encode_indices(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L *G"]:
        """Return the codewords' indices, for quantizers whose indices determine the latent.

        These are VQ, and Product and Residual of it. Raise `ModelError` for other quantizers.
        """
        if not self.quantizer.discrete:
            raise ModelError(
                f"{type(self.quantizer).__name__} latents are continuous: use encode; the most likely codewords are in "
                "tokenizer(images).quantized.indices."
            )
        quantized = quantize(self.quantizer, *self._to_quantize(images), identity)
        if not (torch.compiler.is_compiling() or quantized.latent.isfinite().all()):  # NaN is near to any codeword
            raise ModelError(
                "the encoder's outputs are not finite: its weights are damaged, or the precision is too low."
            )
        return quantized.indices

    def decode_indices(
        self, indices: Int[Tensor, "B L *G"], size: int | tuple[int, int] | None = None
    ) -> Float[Tensor, "B 3 H W"]:
        """Return images of `size` (see `decode`) for the indices that `encode_indices` returned, not clamped."""
        if indices.is_floating_point() or indices.ndim < 2 or indices.shape[1] != self.config.tokens:
            raise ModelError(
                f"indices must be whole numbers (B, {self.config.tokens}, …), not {indices.dtype} of "
                f"{tuple(indices.shape)}."
            )
        return self._decoded(self.quantizer.lookup(indices), self._wanted(size))

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks: the units that are sharded over ranks, and whose matrices Muon trains."""
        return [*self.encoder.vit.blocks, *self.decoder.vit.blocks]

    @property
    def latent_fingerprint(self) -> str:
        """The fingerprint of all that latents are a function of: encoder, quantizer and latent statistics.

        It has 16 hex digits. Tokenizers that differ in their decoders alone share it, and each other's latents and
        generators.
        """
        config = {k: v for k, v in configs.identity(self.config).items() if k not in ("decoder", "refine")}
        decoding = ("decoder.", "from_quantizer.")
        return fingerprint(config, {k: v for k, v in self.state_dict().items() if not k.startswith(decoding)})

    def makes(self, fingerprint: str) -> bool:
        """Return True when latents recorded with this fingerprint are this tokenizer's.

        Earlier versions recorded the fingerprint of the whole model, which counts too.
        """
        return fingerprint in (self.latent_fingerprint, self.fingerprint)

    def set_statistics(self, mean: Tensor | float, std: Tensor | float) -> None:
        """Store the mean and standard deviation, per channel (D,) or one for all, of latents before normalisation."""
        mean, std = torch.as_tensor(mean), torch.as_tensor(std)
        for given in (mean, std):
            if given.shape not in ((), (1,), self.latent_mean.shape):
                raise ModelError(f"latent statistics must be one number or {len(self.latent_mean)}, not {given.shape}.")
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise ModelError("latent statistics must be finite and the standard deviation positive.")
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def prepare(self, images: "Any | Sequence[Any]", fit: Fit = "crop") -> Float[Tensor, "B 3 S S"]:
        """Return images in the form that `encode` takes: in [-1, 1], of the model's size, on its device.

        `images` are a PIL image, a path, an array or tensor, or a sequence of these. Arrays are 8-bit (H, W, 3), grey
        or with alpha too; tensors are (3, H, W) in [-1, 1] or 8-bit, and with a batch axis a sequence. `fit` says how
        an image becomes the square that the model knows: `crop` (ADM's centre crop), `resize` (stretched) or `pad`
        (with white). Raise `ImageError` that names what cannot be read.
        """
        many = images if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4 else [images]
        if not len(many):
            raise ImageError("there are no images to prepare.")
        return torch.stack([self._fitted(image, fit) for image in many]).to(self.device)

    @torch.no_grad()
    def reconstruct(self, images: "Any | Sequence[Any]", fit: Fit = "crop") -> Image.Image | list[Image.Image]:
        """Return a PIL image encoded and decoded, of the model's size; for a sequence of images a list.

        `images` and `fit` are those of `prepare`.
        """
        alone = not isinstance(images, list | tuple) and getattr(images, "ndim", 0) != 4
        decoded = self.decode(self.encode(self.prepare(images, fit)))
        pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in to_bytes(decoded.float().cpu())]
        return pictures[0] if alone else pictures

    def _fitted(self, image: Any, how: Fit) -> Float[Tensor, "3 S S"]:
        size = self.config.image_size
        if isinstance(image, Tensor) and image.is_floating_point():
            if image.ndim != 3 or image.shape[0] != 3:
                raise ImageError(f"a tensor must be an image (3, H, W), or a batch of them, not {tuple(image.shape)}.")
            if not (image.isfinite().all() and image.abs().max() <= 1 + 1e-3):
                raise ImageError("a tensor of floats must be in [-1, 1]: give x / 127.5 - 1 for pixels of 0 to 255.")
            if image.shape[1:] == (size, size):
                return image.float().cpu()
            image = to_bytes(image[None].float().cpu())[0]
        return to_tensor(fit(as_image(image), size, how))

    @classmethod
    def read_config(cls, config: Any, about: dict[str, Any]) -> tuple[Callable[[], "Tokenizer"], int]:
        """Return a function that builds the tokenizer of a stored configuration, and the number of its parts.

        The parts are its blocks and codebooks.
        """
        parsed = configs.from_dict(TokenizerConfig, config, "config")
        return lambda: cls(parsed, about), parsed.encoder.depth + parsed.decoder.depth + parsed.quantizer.codebooks

    def stored_config(self) -> dict[str, Any]:
        """Return the configuration as it is stored, JSON-ready."""
        return configs.to_dict(self.config)

    def named(self, name: str, is_folder: bool) -> None:
        """Note the hub's name of a converted model as its source."""
        if "source" in self.about and not is_folder:
            self.about["source"] = name

    def check_loaded(self, file: Path) -> None:
        """Raise `ModelError` when a latent deviation that was loaded is not positive."""
        if not (self.latent_std > 0).all():
            raise ModelError(f"{file}: latent_std must be positive.")

    def described(self, loaded_as: str) -> tuple[str, str]:
        """Return two parts of the model card: the tokenizer's sizes and quantizer, and Python lines that use it."""
        c = self.config
        parameters = sum(p.numel() for p in self.parameters()) / 1e6
        summary = (
            f"A SoftVQ image tokenizer: {c.image_size}×{c.image_size} images ↔ {c.tokens} tokens of {c.latent_dim} "
            f"numbers; {parameters:.2f}M parameters. Quantizer: {json.dumps(configs.to_dict(c)['quantizer'])}."
        )
        usage = (
            f'from softvq import Tokenizer\n\ntokenizer = Tokenizer.from_pretrained("{loaded_as}")\n'
            "latents = tokenizer.encode(images)  # images (B, 3, H, W) in [-1, 1]\nimages = tokenizer.decode(latents)"
        )
        return summary, usage

    def _to_quantize(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        noise = None
        if self.training:  # encode gives the posterior's mean, whatever the mode
            noise = images.new_zeros(images.shape[0], self.config.tokens, self.config.latent_dim)
        return self._encoded(images), noise

    def _encoded(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor):
            raise ImageError(
                f"encode takes a batch of images as a tensor (B, 3, H, W) in [-1, 1], not {a_kind(images)}: "
                "tokenizer.prepare(image) makes one of PIL images and files, and tokenizer.reconstruct(image) gives "
                "the reconstruction at once."
            )
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ImageError(
                f"images must be floats in [-1, 1] of shape (B, 3, H, W), not {images.dtype} of {tuple(images.shape)}."
            )
        _check_size(images.shape[2:], self.config.encoder.patch_size)
        return self.to_quantizer(self.encoder(images.to(self.dtype)))

    def _wanted(self, size: Any) -> tuple[int, int]:
        """Return the height and width that a user asks for: two numbers, one for both, or None for the model's own."""
        size = self.config.image_size if size is None else size
        sides = tuple(size) if isinstance(size, Sequence) else (size, size)
        if len(sides) != 2 or not all(is_whole(side) for side in sides):
            raise ImageError(f"size must be a whole number of pixels, or (height, width), not {size!r}.")
        return sides

    def _decoded(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        _check_size(size, self.config.decoder.patch_size)
        return self.decoder(self.from_quantizer(latents.to(self.dtype)), size)


def _check_size(size: tuple[int, ...], patch_size: int) -> None:
    if min(size) < patch_size or any(side % patch_size for side in size):
        raise ImageError(
            f"images are {size[0]}×{size[1]}, but height and width must be multiples of the patch size {patch_size}; "
            "crop or resize them first."
        )
