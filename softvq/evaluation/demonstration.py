"""The bundled validation images through a tokenizer, beside plain methods with as many numbers: `softvq demo`."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from softvq import progress
from softvq.data.loader import ordered_batches, spread
from softvq.data.opening import open_source
from softvq.data.sources import EMOJI
from softvq.evaluation.metrics import CONVENTION
from softvq.evaluation.reconstruction import score
from softvq.figures import comparison, table
from softvq.files import read_json
from softvq.models import Coder


def yardsticks(size: int, floats: int) -> list[dict[str, Any]]:
    """Return the figures of PCA and of box-downsampling to as many numbers an image, on the bundled validation images.

    They ship with the package; there are none where they were not measured at this size.
    """
    rows = read_json(EMOJI.parent / "yardsticks.json")["rows"]
    return [row for row in rows if (row["size"], row["floats"]) == (size, floats)]


@dataclass(frozen=True)
class Demonstration:
    """The bundled validation images and a tokenizer's reconstructions of them.

    `rows` are the scores of the tokenizer and of plain methods with as many numbers; `picture` shows some of the images
    beside their reconstructions.
    """

    rows: list[dict[str, Any]]
    picture: Image.Image
    size: int
    latent_floats: int
    compression: float

    def to_dict(self) -> dict[str, Any]:
        """Return all but the picture, JSON-ready."""
        fields = {name: getattr(self, name) for name in ("size", "latent_floats", "compression", "rows")}
        return {**fields, "convention": CONVENTION, "torch": torch.__version__}

    def __str__(self) -> str:
        """Return the scores as a table."""
        cells = [(row["method"], f"{row['psnr']:.2f}", f"{row['ssim']:.4f}") for row in self.rows]
        images = f"{self.rows[0]['images']} bundled validation images, {self.size}×{self.size} pixels"
        return (
            f"{images}, {self.latent_floats:,} numbers each ({self.compression:.0f} times fewer)\n\n"
            f"{table([('', 'PSNR dB', 'SSIM'), *cells])}\n\n{CONVENTION}.\n"
            "PCA and box-downsampling: python benchmarks/yardsticks.py"
        )


def demonstrate(coder: Coder, name: str, shown: int = 32) -> Demonstration:
    """Reconstruct the bundled validation images with a tokenizer called `name`; return its scores and others.

    The others are those of PCA and of box-downsampling to as many numbers an image.
    """
    source, size = open_source("emoji-val"), coder.tokenizer.config.image_size
    with progress.bar(len(source.names), "image", "reconstructing") as done:

        def again(images: Tensor) -> Tensor:
            done(len(images))
            return coder.decode(coder.encode(images))

        scores = score(again, (batch.images for batch in ordered_batches(source, size=size, batch_size=28)))
    some = spread(source, size, shown)
    return Demonstration(
        [{"method": name, **scores.summary()}, *yardsticks(size, coder.latent_floats)],
        comparison(some, coder.decode(coder.encode(some))),
        size,
        coder.latent_floats,
        coder.compression,
    )
