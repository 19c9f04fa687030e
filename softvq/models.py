"""Models by name: a tokenizer, a generator, or the one of both that the name belongs to."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from softvq import distributed, files, hub
from softvq.autoencoders import PREFIX, FoldedAutoencoder
from softvq.errors import ConfigError, ModelError
from softvq.generators.base import Generator
from softvq.released import is_generator
from softvq.runtime import autocast, pick_device, pick_precision
from softvq.saving import kind_of
from softvq.tokenizer import Tokenizer

AnyTokenizer = Tokenizer | FoldedAutoencoder


def load_tokenizer(name: str | Path, cache_dir: str | Path | None = None) -> AnyTokenizer:
    """Return a tokenizer by name or folder; `diffusers:NAME` is one of diffusers' autoencoders."""
    if str(name).startswith(PREFIX):
        return FoldedAutoencoder.load(str(name))
    return Tokenizer.from_pretrained(name, cache_dir=cache_dir)


def open_model(name: str) -> AnyTokenizer | Generator:
    """Return a tokenizer or a generator, the one that the name belongs to."""
    if name.startswith(PREFIX):
        return load_tokenizer(name)
    kind = kind_of(name)
    if kind == Generator.kind or (kind is None and is_generator(files.read_json(hub.find(name) / hub.CONFIG))):
        return Generator.from_pretrained(name)
    return load_tokenizer(name)


def _near(name: str, model: str) -> str | Path:
    """Return the path of a folder that a generator remembers by a relative path.

    It is looked for from here, else from the place of the generator. The name itself is returned when there is none.
    """
    if Path(name).is_absolute() or Path(name).exists():
        return name
    return next((above / name for above in Path(model).resolve().parents if (above / name).is_dir()), name)


def tokenizer_of(
    generator: Generator,
    model: str,
    tokenizer: str | Path | AnyTokenizer | None = None,
    cache_dir: str | Path | None = None,
) -> AnyTokenizer:
    """Return the tokenizer that is given, or the one that the generator was trained with.

    `model` is the name of the generator in messages, and the place from which a relative path is looked for. Raise
    `ModelError` when the tokenizer makes other latents, `ConfigError` when it does not fit or is not known.
    """
    trained_with = generator.about.get("tokenizer", {})
    name = tokenizer or trained_with.get("name")
    if name is None:
        raise ConfigError(f"{model} does not say which tokenizer it was trained with; name it.", setting="tokenizer")
    called = name if isinstance(name, str | Path) else "the tokenizer given"
    try:
        candidate = load_tokenizer(name if tokenizer else _near(name, model), cache_dir) if called is name else name
    except ModelError as error:
        if tokenizer is not None or error.setting is not None:
            raise
        raise ModelError(
            f"{model} was trained with the tokenizer {name!r}, which cannot be loaded: {str(error).removesuffix('.')}; "
            "if it is somewhere else, name it.",
            setting="tokenizer",
        ) from error
    shape = (candidate.config.tokens, candidate.config.latent_dim)
    if shape != generator.shape:
        raise ConfigError(
            f"{called} has latents of {shape[0]} × {shape[1]}, but {model} makes {generator.shape}.",
            setting="tokenizer",
        )
    expected = trained_with.get("fingerprint")
    if expected is not None and not candidate.makes(expected):
        raise ModelError(
            f"{model} was trained with another tokenizer ({expected}) than {called} ({candidate.latent_fingerprint}); "
            "its latents would be decoded to noise."
        )
    return candidate


def own_device(device: str | torch.device | None, model: Any = None) -> torch.device:
    """Return this process's device.

    It is the one given, else the one where a model is that is loaded already, else the best there is. The process joins
    the group that torchrun has started.
    """
    if device is None and hasattr(model, "device"):
        device = model.device
    return distributed.start(pick_device("auto" if device is None else device))


def check_finite(numbers: Tensor, what: str) -> Tensor:
    """Return a network's output as it is; raise `ModelError` when it holds NaN or Inf. `what` is its name, a plural."""
    if not numbers.isfinite().all():
        raise ModelError(
            f"{what} are not finite: the weights are damaged, or the precision is too low for them.",
            setting="precision",
        )
    return numbers


class Coder:
    """A tokenizer in a precision: images in, latents out and back, on the CPU in float32."""

    def __init__(self, tokenizer: AnyTokenizer, precision: str = "auto"):
        self.tokenizer = tokenizer
        self.precision = pick_precision(precision, tokenizer.device, training=False)

    @torch.inference_mode()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        """Return the latents of images in [-1, 1]; `ModelError` when they are not finite."""
        with autocast(self.tokenizer.device, self.precision):
            latents = self.tokenizer.encode(images.to(self.tokenizer.device)).float().cpu()
        return check_finite(latents, "the tokenizer's latents")

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "B L D"]) -> Float[Tensor, "B 3 H W"]:
        """Return images, not clamped; `ModelError` when they are not finite."""
        with autocast(self.tokenizer.device, self.precision):
            images = self.tokenizer.decode(latents.to(self.tokenizer.device)).float().cpu()
        return check_finite(images, "the tokenizer's images")

    @property
    def latent_floats(self) -> int:
        """The number of numbers that an image becomes."""
        return self.tokenizer.config.tokens * self.tokenizer.config.latent_dim

    @property
    def compression(self) -> float:
        """The number of an image's colour values for each of its latent numbers."""
        return 3 * self.tokenizer.config.image_size**2 / self.latent_floats
