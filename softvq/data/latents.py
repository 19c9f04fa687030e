"""Latents of a data set, made once and read many times.

A cache is a folder of safetensors shards with labels, both mirrors of every image, and an index that names the
tokenizer and the images they are of.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softvq.data.order import Order, check_batch, evenly, positions_of
from softvq.errors import DataError
from softvq.files import write_json
from softvq.randomness import Stream, rng

INDEX = "index.json"
NAMES = "names"  # in a shard's metadata: the images' names, as a JSON list
CONTENTS = "contents"  # there too: what the shard was made of, which tells whether its images have changed
FORMAT = 1
_HELD = 8 * 10**9  # bytes: larger caches are read from disk as they are needed


@dataclass(frozen=True)
class LatentIndex:
    """The index of a cache.

    `tokenizer`, `fingerprint`: the tokenizer's name and fingerprint; `source`, `identity`: the images' name and
    checksum; `shards`: the number of images in each; `bad`: images that could not be read, with the reason.
    """

    tokenizer: str
    fingerprint: str
    source: str
    identity: dict
    tokens: int
    channels: int
    classes: list[str]
    shards: list[int]
    mirrored: bool = True
    bad: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `index.json` into the folder of the shards."""
        write_json(folder / INDEX, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> "LatentIndex":
        """Return the index of a folder; raise `DataError` when there is none, or none of this format."""
        path = folder / INDEX
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.pop("format") != FORMAT:
                raise KeyError("format")
            return cls(**fields)
        except FileNotFoundError:
            raise DataError(
                f"{str(folder)!r} holds no latents ({INDEX} is missing); make them with softvq encode."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not an index of latents (format {FORMAT}).") from error


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a cache's shard, numbered from 0 on."""
    return folder / f"latents-{number:05d}.safetensors"


@dataclass(frozen=True)
class LatentBatch:
    """Latents of zero mean and unit variance, with class labels, names, sample numbers, and the step that they are for.

    `names` are the images'. `bad` is empty: it is there because batches of images have it.
    """

    latents: Float[Tensor, "B T C"]
    labels: Int[Tensor, " B"]
    names: list[str]
    positions: list[int]
    bad: dict[str, str] = field(default_factory=dict)
    step: int = 0

    def __len__(self) -> int:
        return len(self.latents)

    def part(self, rows: slice) -> "LatentBatch":
        """Return some of the batch's samples."""
        return LatentBatch(self.latents[rows], self.labels[rows], self.names[rows], self.positions[rows], {}, self.step)

    def to(self, device: torch.device) -> "LatentBatch":
        """Return the batch with its latents and labels on a device."""
        return replace(self, latents=self.latents.to(device), labels=self.labels.to(device))


class Latents:
    """A cache, opened for reading: whole in memory where it fits in 8 GB, else read from disk image by image."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.index = LatentIndex.read(self.folder)
        self.starts = np.cumsum([0, *self.index.shards])
        self._files = [self._open(number) for number in range(len(self.index.shards))]
        self.labels = torch.cat([file.get_tensor("labels").long() for file in self._files])
        if (
            len(self)
            and self.index.classes
            and not -1 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.index.classes)
        ):
            raise DataError(f"{self.folder} holds labels beyond its {len(self.index.classes)} classes; encode again.")
        self._whole: Tensor | None = None
        mirrors = 2 if self.index.mirrored else 1
        if len(self) * mirrors * self.index.tokens * self.index.channels * 2 <= _HELD:
            self._whole = torch.cat([file.get_tensor("latents") for file in self._files])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _open(self, number: int):
        path, images = shard_path(self.folder, number), self.index.shards[number]
        try:
            file = safe_open(path, "pt")
            shape = tuple(file.get_slice("latents").get_shape())
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} is missing or damaged ({error}); make it again with softvq encode.") from error
        expected = (images, 2 if self.index.mirrored else 1, self.index.tokens, self.index.channels)
        if shape != expected:
            raise DataError(f"{path} holds latents of shape {shape}, expected {expected}; remove it and encode again.")
        return file

    @cached_property
    def names(self) -> list[str]:
        """The images' names in order; empty where an earlier version wrote the cache, which left them out."""
        metadata = [file.metadata() or {} for file in self._files]
        return (
            [name for one in metadata for name in json.loads(one[NAMES])]
            if all(NAMES in one for one in metadata)
            else []
        )

    def read(self, index: int, mirror: int) -> Float[Tensor, "T C"]:
        """Return the latents of an image, float32; `mirror` 1 is the mirrored image."""
        if self._whole is not None:
            return self._whole[index, mirror].float()
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self._files[shard].get_slice("latents")[index - int(self.starts[shard])][mirror].float()

    def batches(self, batch_size: int, seed: int, start_step: int = 0, parts: int = 1) -> Iterator[LatentBatch]:
        """Yield batches without end, from `start_step` on.

        `batch_size` is over all ranks; each rank gets its share of each of `parts` equal parts. The image of a sample
        number, and which of its mirrors it is, is a function of the seed alone.
        """
        check_batch(batch_size, parts)
        order = Order(len(self), seed)
        for step in count(start_step):
            positions = positions_of(step, batch_size, parts)
            mirrors = [int(rng(seed, Stream.MIRROR, p).random() < 0.5 and self.index.mirrored) for p in positions]
            yield replace(self._batch(order.at(positions), mirrors, positions), step=step)

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[LatentBatch]:
        """Yield batches of the images as they are, once and in order; `limit`: only so many, spread evenly over all."""
        chosen = evenly(len(self) if limit is None else limit, len(self))
        for first in range(0, len(chosen), batch_size):
            indices = chosen[first : first + batch_size]
            yield self._batch(indices, [0] * len(indices), indices)

    def _batch(self, indices: list[int], mirrors: list[int], positions: list[int]) -> LatentBatch:
        if self._whole is not None:
            latents = self._whole[torch.tensor(indices), torch.tensor(mirrors)].float()
        else:
            latents = torch.stack([self.read(i, m) for i, m in zip(indices, mirrors, strict=True)])
        return LatentBatch(latents, self.labels[indices], [f"image {i}" for i in indices], positions)
