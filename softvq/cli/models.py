"""Loading models for a command, and running a tokenizer over images that are not its size."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from softvq import files, hub
from softvq.autoencoders import PREFIX, FoldedAutoencoder
from softvq.cli.main import Failure, Usage
from softvq.data.images import fit, open_image, to_tensor
from softvq.data.sources import Folder
from softvq.errors import ImageError
from softvq.generators.base import Generator
from softvq.released import is_generator
from softvq.runtime import autocast, pick_device, pick_precision
from softvq.tokenizer import Tokenizer

AnyTokenizer = Tokenizer | FoldedAutoencoder


def load_tokenizer(name: str) -> AnyTokenizer:
    """A tokenizer by name or folder; `diffusers:NAME` is one of diffusers' autoencoders."""
    if str(name).startswith(PREFIX):
        return FoldedAutoencoder.load(str(name))
    return Tokenizer.from_pretrained(name)


def open_model(name: str) -> AnyTokenizer | Generator:
    """A tokenizer or a generator, whichever the name is of."""
    if name.startswith(PREFIX):
        return load_tokenizer(name)
    config = files.read_json(hub.find(name) / hub.CONFIG)
    if config.get("kind") == Generator.kind or is_generator(config):
        return Generator.from_pretrained(name)
    return load_tokenizer(name)


def tokenizer_of(generator: Generator, model: str, name: str | None) -> AnyTokenizer:
    """The tokenizer called `name`, or the one that the generator (called `model`) was trained with; `Failure` when it
    is another, `Usage` when it does not fit or is not known."""
    trained_with = generator.about.get("tokenizer", {})
    name = name or trained_with.get("name")
    if name is None:
        raise Usage(f"{model} does not say which tokenizer it was trained with; give --tokenizer")
    tokenizer = load_tokenizer(name)
    shape = (tokenizer.config.tokens, tokenizer.config.latent_dim)
    if shape != generator.shape:
        raise Usage(f"{name} has latents of {shape[0]} × {shape[1]}, but {model} makes {generator.shape}")
    expected = trained_with.get("fingerprint")
    if expected is not None and not tokenizer.makes(expected):
        raise Failure(
            f"{model} was trained with another tokenizer ({expected}) than {name} ({tokenizer.latent_fingerprint}); "
            "its latents would be decoded to noise."
        )
    return tokenizer


class Runner:
    """A tokenizer on a device, in a precision: `encode` and `decode` for commands."""

    def __init__(self, options: argparse.Namespace):
        self.device = pick_device(options.device)
        self.precision = pick_precision(options.precision, self.device, training=False)
        self.tokenizer = load_tokenizer(options.model).to(self.device)
        self.size = self.tokenizer.config.image_size

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.precision):
            return self.tokenizer.encode(images.to(self.device)).float().cpu()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.precision):
            return self.tokenizer.decode(latents.to(self.device)).float().cpu()

    @property
    def latent_floats(self) -> int:
        """How many numbers an image becomes."""
        return self.tokenizer.config.tokens * self.tokenizer.config.latent_dim


def image_paths(arguments: Sequence[str]) -> list[Path]:
    """The files given, folders replaced by the images in them."""
    paths: list[Path] = []
    for path in map(Path, arguments):
        if path.is_dir():
            paths += [path / name for name in Folder(path).names]
        else:
            paths.append(path)
    return paths


def read_images(paths: Sequence[Path], size: int, how: str, bad: dict[str, str]) -> Iterator[tuple[Path, torch.Tensor]]:
    """Each readable image, fitted to the model's size, in [-1, 1]; the others' reasons go into `bad`."""
    for path in paths:
        try:
            image: Image.Image = open_image(path)
        except ImageError as error:
            bad[str(path)] = str(error)
            continue
        yield path, to_tensor(fit(image, size, how))
