"""Batches in a deterministic endless order that can start at any step.

Sample number p = step · batch + i decides which image is read (a fresh permutation every epoch) and every random
number used on it, whatever the number of workers and ranks. Resuming is starting at another step.
"""

import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from softvq import distributed
from softvq.data.images import Augment, ImageError, fit, open_image, to_tensor
from softvq.data.sources import DataError, Source


@dataclass(frozen=True)
class Batch:
    """Images in [-1, 1], class labels, the names they were read from, their sample numbers, and the bad files that
    were replaced by the next readable image: {name: reason}."""

    images: Float[Tensor, "B 3 H W"]
    labels: Int[Tensor, " B"]
    names: list[str]
    positions: list[int]
    bad: dict[str, str]

    def to(self, device: torch.device) -> "Batch":
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Order:
    """The endless order: epoch e is the e-th random permutation of the source."""

    length: int
    seed: int

    def permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(self.length)

    def __call__(self, start: int, stop: int) -> list[int]:
        """Image indices of the sample numbers start … stop − 1."""
        indices: list[int] = []
        while start < stop:
            epoch, offset = divmod(start, self.length)
            taken = self.permutation(epoch)[offset : offset + stop - start]
            indices += taken.tolist()
            start += len(taken)
        return indices


def sample_rng(seed: int, position: int, stream: int = 1) -> np.random.Generator:
    """The random numbers of one sample: a function of the seed and the sample number alone. Stream 1 augments."""
    return np.random.default_rng([seed, stream, position])


class _Samples(Dataset):
    """Reads one sample (position, index) in a worker process; a bad file gives the next readable one of the source.

    Where none is readable the `DataError` is the sample: raised in a worker it would reach people as a traceback.
    """

    def __init__(self, source: Source, size: int, augment: Augment, seed: int):
        self.source, self.size, self.augment, self.seed = source, size, augment, seed

    def __getitem__(self, key: tuple[int, int]):
        position, index = key
        bad: dict[str, str] = {}
        for _ in range(len(self.source.names)):
            name = self.source.names[index]
            try:
                image = self.augment(_read(self.source, index), self.size, sample_rng(self.seed, position))
                return to_tensor(image), self.source.labels[index], name, position, bad
            except ImageError as error:
                bad[name] = str(error)
                index = (index + 1) % len(self.source.names)
        return _none_readable(bad)


class _Steps:
    """A batch sampler: this rank's (position, index) pairs of step `start`, `start` + 1, …"""

    def __init__(self, order: Order, batch_size: int, start: int):
        self.order, self.batch_size, self.start = order, batch_size, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        local = self.batch_size // distributed.world_size()
        step = self.start
        while True:
            first = step * self.batch_size + distributed.rank() * local
            yield list(zip(range(first, first + local), self.order(first, first + local), strict=True))
            step += 1


def training_batches(
    source: Source, *, size: int, batch_size: int, augment: Augment, seed: int, start_step: int = 0, workers: int = 2
) -> Iterator[Batch]:
    """Endless batches from `start_step` on; `batch_size` is over all ranks, each rank gets its share.

    `workers` processes decode; 0 decodes in this one.
    """
    if batch_size % distributed.world_size():
        raise DataError(f"batch_size {batch_size} is not a multiple of the {distributed.world_size()} processes.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total")  # the number is the user's choice
        loader = DataLoader(
            _Samples(source, size, augment, seed),
            batch_sampler=_Steps(Order(len(source.names), seed), batch_size, start_step),
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
        )
        batches = iter(loader)
    for batch in batches:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def ordered_batches(
    source: Source, *, size: int, batch_size: int, how: str = "crop", chosen: Sequence[int] | None = None
) -> Iterator[Batch]:
    """The `chosen` images (default: all), once and in order, each fitted to `size` (see `images.fit`).

    Bad files are left out and named in the `bad` of their batch or, where all of a batch are bad, of a neighbour;
    `positions` are indices into the source. `DataError` when nothing is readable.
    """
    chosen = range(len(source.names)) if chosen is None else chosen
    ready: Batch | None = None  # held back, to name the bad files that no later batch can
    bad: dict[str, str] = {}
    for start in range(0, len(chosen), batch_size):
        samples = []
        for index in chosen[start : start + batch_size]:
            name = source.names[index]
            try:
                image = to_tensor(fit(_read(source, index), size, how))
                samples.append((image, source.labels[index], name, index, {}))
            except ImageError as error:
                bad[name] = str(error)
        if samples:
            if ready is not None:
                yield ready
            ready, bad = replace(_collate(samples), bad=bad), {}
    if ready is not None:
        yield replace(ready, bad={**ready.bad, **bad})
    elif bad:
        raise _none_readable(bad)


def _read(source: Source, index: int) -> Image.Image:
    """Image number `index`, decoded."""
    name = source.names[index]
    try:
        return open_image(source.read(index), name)
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror}).") from error


def _collate(samples: list) -> Batch | DataError:
    if failed := [sample for sample in samples if isinstance(sample, DataError)]:
        return failed[0]
    images, labels, names, positions, bads = zip(*samples, strict=True)
    bad = {name: reason for bad in bads for name, reason in bad.items()}
    return Batch(torch.stack(images), torch.tensor(labels), list(names), list(positions), bad)


def _none_readable(bad: dict[str, str]) -> DataError:
    return DataError(f"none of the {len(bad)} images can be read; the first: {next(iter(bad.values()))}")


def _start_worker(_: int) -> None:
    """Ctrl-C and a group's SIGTERM reach workers too, but the main process finishes its step and stops them itself:
    so they let the first pass (not the second: that is how a worker that hangs is ended)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    torch.set_num_threads(1)
