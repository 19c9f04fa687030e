"""Running a tokenizer, in a precision, over images that are not its size."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from softvq.data.images import fit, open_image, to_tensor
from softvq.data.sources import Folder
from softvq.errors import ImageError
from softvq.pipeline import load_tokenizer
from softvq.runtime import autocast, pick_device, pick_precision


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
