"""The order of training: the image of each sample number, and the sample numbers of each process.

Sample number p = step · batch + i decides which image is read (a new permutation every epoch) and every random number
used on it, whatever the number of workers and ranks. Resuming is starting at another step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from softvq import distributed
from softvq.errors import DataError
from softvq.randomness import Stream, rng

Reader = Callable[[], tuple[Image.Image, int]]  # gives an image, 8-bit RGB, and its label


@runtime_checkable
class SampleOrder(Protocol):
    """The protocol of an order: sample number → image."""

    def find(self, position: int, attempt: int = 0) -> tuple[str, Reader]:
        """Return name and reader of a sample; after `attempt` unreadable ones, of the image that many places on."""


@dataclass(frozen=True)
class Order:
    """The endless order of a list of images: epoch e is the e-th random permutation of it."""

    length: int
    seed: int

    def permutation(self, epoch: int) -> np.ndarray:
        """Return the list's indices in the order of an epoch."""
        return _permutation(self.length, self.seed, epoch)

    def at(self, positions: Sequence[int]) -> list[int]:
        """Return the list's index of each sample number."""
        return [int(self.permutation(p // self.length)[p % self.length]) for p in positions]


@lru_cache(4)  # samples of an epoch share one
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return rng(seed, Stream.ORDER, epoch).permutation(length)


def evenly(count: int, total: int) -> list[int]:
    """Return up to `count` different numbers from 0 to `total` − 1, spread evenly over them, in order."""
    if count >= total:
        return list(range(total))
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})


def check_batch(batch_size: int, parts: int = 1) -> None:
    """Raise `DataError` when a batch cannot be shared out evenly over processes and `parts` (see `positions_of`)."""
    ranks = distributed.world_size()
    if batch_size % (parts * ranks):
        processes = "1 process" if ranks == 1 else f"{ranks} processes"
        among = processes if parts == 1 else f"{processes} × {parts} parts (accumulate)"
        raise DataError(
            f"batch_size {batch_size} cannot be shared out evenly over {among}; take a multiple of {parts * ranks}, or "
            "other numbers of them.",
            setting="batch_size",
        )


def positions_of(step: int, batch_size: int, parts: int = 1) -> list[int]:
    """Return this process's sample numbers of a step: its share of each of `parts` equal parts of the batch.

    The parts are gone through one after the other, so that the k-th holds the same images at any number of processes.
    """
    part = batch_size // parts
    own, first = part // distributed.world_size(), step * batch_size
    starts = (first + number * part + distributed.rank() * own for number in range(parts))
    return [start + i for start in starts for i in range(own)]
