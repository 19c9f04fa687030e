"""Batches in a deterministic endless order that can start at any step.

Sample number p = step · batch + i decides which image is read (a fresh permutation every epoch) and every random
number used on it, whatever the number of workers and ranks. Resuming is starting at another step.
"""

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from softvq import distributed, plugins
from softvq.data.images import Augment, fit, open_image, to_tensor
from softvq.data.sources import Source, open_listed
from softvq.data.stream import ShardStream, StreamOrder, open_stream
from softvq.errors import DataError, ImageError
from softvq.randomness import Stream, rng


@dataclass(frozen=True)
class Batch:
    """Images in [-1, 1], class labels, the names they were read from, their sample numbers, and the bad files that
    were replaced by the next readable image: {name: reason}."""

    images: Float[Tensor, "B 3 H W"]
    labels: Int[Tensor, " B"]
    names: list[str]
    positions: list[int]
    bad: dict[str, str]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

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
        return _permutation(self.length, self.seed, epoch)

    def __call__(self, start: int, stop: int) -> list[int]:
        """Image indices of the sample numbers start … stop − 1."""
        indices: list[int] = []
        while start < stop:
            epoch, offset = divmod(start, self.length)
            taken = self.permutation(epoch)[offset : offset + stop - start]
            indices += taken.tolist()
            start += len(taken)
        return indices


@lru_cache(4)  # samples of an epoch share one
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return rng(seed, Stream.ORDER, epoch).permutation(length)


@dataclass
class _SourceOrder:
    """Sample number → image for a source that lists its images."""

    source: Source
    order: Order

    def find(self, position: int, attempt: int) -> tuple[str, int, Callable[[], bytes]]:
        """Name, label and reader of a sample; after `attempt` unreadable ones, the image that many places on."""
        index = (self.order(position, position + 1)[0] + attempt) % self.order.length
        return self.source.names[index], self.source.labels[index], lambda: self.source.read(index)


class NoneReadable(DataError):
    """Of these images none can be read: {name: reason}."""

    def __init__(self, bad: dict[str, str]):
        super().__init__(bad)
        self.bad = bad

    def __str__(self) -> str:
        return f"none of the {len(self.bad)} images can be read; the first: {next(iter(self.bad.values()))}"


class _Samples(Dataset):
    """Reads one sample in a worker process, by its number; a bad file gives the next readable one.

    Where none is readable the `DataError` is the sample: raised in a worker it would reach people as a traceback.
    """

    def __init__(self, order: _SourceOrder | StreamOrder, size: int, augment: Augment, seed: int):
        self.order, self.size, self.augment, self.seed = order, size, augment, seed

    def __getitem__(self, position: int):
        bad: dict[str, str] = {}
        try:
            for attempt in count():
                name, label, read = self.order.find(position, attempt)
                if name in bad:  # once around
                    return NoneReadable(bad)
                try:
                    image = self.augment(_decode(read, name), self.size, rng(self.seed, Stream.AUGMENT, position))
                    return to_tensor(image), label, name, position, bad
                except ImageError as error:
                    bad[name] = str(error)
        except DataError as error:
            return error


class _Steps:
    """A batch sampler: this rank's sample numbers of step `start`, `start` + 1, …"""

    def __init__(self, batch_size: int, start: int):
        self.batch_size, self.start = batch_size, start

    def __iter__(self) -> Iterator[list[int]]:
        local = self.batch_size // distributed.world_size()
        for step in count(self.start):
            first = step * self.batch_size + distributed.rank() * local
            yield list(range(first, first + local))


def training_batches(
    source: Source | ShardStream,
    *,
    size: int,
    batch_size: int,
    augment: Augment,
    seed: int,
    start_step: int = 0,
    workers: int = 2,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on; `batch_size` is over all ranks, each rank gets its share.

    `workers` processes decode; 0 decodes in this one.
    """
    if batch_size % distributed.world_size():
        raise DataError(f"batch_size {batch_size} is not a multiple of the {distributed.world_size()} processes.")
    if isinstance(source, ShardStream):
        order = source.order(batch_size, seed)
    else:
        order = _SourceOrder(source, Order(len(source.names), seed))
    with _workers_as_asked():
        loader = DataLoader(
            plugins.carried(_Samples(order, size, augment, seed)),
            batch_sampler=_Steps(batch_size, start_step),
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


class _Fitted(Dataset):
    """Images by their index in the source, or the reason why one is bad."""

    def __init__(self, source: Source, size: int, how: str):
        self.source, self.size, self.how = source, size, how

    def __getitem__(self, index: int):
        name = self.source.names[index]
        try:
            image = _decode(partial(self.source.read, index), name)
        except ImageError as error:
            return name, str(error)
        if self.how == "keep" and image.size != (self.size, self.size):
            return DataError(
                f"{name} has {image.width}×{image.height} pixels, not {self.size}×{self.size}: all must be of one size."
            )
        image = image if self.how == "keep" else fit(image, self.size, self.how)
        return to_tensor(image), self.source.labels[index], name, index, {}


def ordered_batches(
    source: Source,
    *,
    size: int,
    batch_size: int,
    how: str = "crop",
    chosen: Sequence[int] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """The `chosen` images (default: all), once and in order, each fitted to `size` (see `images.fit`; `keep`: all are
    of that size, or it is a `DataError`). `workers` processes decode; 0 decodes in this one.

    Bad files are left out and named in the `bad` of their batch or, where all of a batch are bad, of a neighbour;
    `positions` are indices into the source. `NoneReadable` when nothing is.
    """
    chosen = range(len(source.names)) if chosen is None else chosen
    ready: Batch | None = None  # held back, to name the bad files that no later batch can
    bad: dict[str, str] = {}
    dataset = _Fitted(source, size, how)
    with _workers_as_asked():
        loader = iter(
            DataLoader(plugins.carried(dataset), batch_size, sampler=list(chosen), num_workers=workers, collate_fn=list)
        )
    for found in loader:
        if failed := [sample for sample in found if isinstance(sample, DataError)]:
            raise failed[0]
        bad |= dict(sample for sample in found if len(sample) == 2)
        samples = [sample for sample in found if len(sample) != 2]
        if samples:
            if ready is not None:
                yield ready
            ready, bad = replace(_collate(samples), bad=bad), {}
    if ready is not None:
        yield replace(ready, bad={**ready.bad, **bad})
    elif bad:
        raise NoneReadable(bad)


def open_source(data: str) -> Source | ShardStream:
    """What `sources.open_listed` opens, or tar shards at an address, `https://host/train-{0000..1023}.tar`, which are
    streamed."""
    if "://" in data:
        if not data.lower().endswith(".tar"):
            raise DataError(f"{data!r} names no tar shards; remote images are read from .tar files.")
        return open_stream(data)
    return open_listed(data)


def listing(data: str, images: int | None = None) -> Source:
    """The images as a list: all, or where they are streamed at least `images` of them."""
    source = open_source(data)
    return source.listing(images) if isinstance(source, ShardStream) else source


def _decode(read: Callable[[], bytes], name: str) -> Image.Image:
    try:
        return open_image(read(), name)
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror}).") from error


def _collate(samples: list) -> Batch | DataError:
    if failed := [sample for sample in samples if isinstance(sample, DataError)]:
        return failed[0]
    images, labels, names, positions, bads = zip(*samples, strict=True)
    bad = {name: reason for bad in bads for name, reason in bad.items()}
    return Batch(torch.stack(images), torch.tensor(labels), list(names), list(positions), bad)


@contextmanager
def _workers_as_asked() -> Iterator[None]:
    """How many workers there are is the user's choice: no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total")
        yield


def _start_worker(_: int) -> None:
    """Ctrl-C and a group's SIGTERM reach workers too, but the main process finishes its step and stops them itself:
    so they let the first pass (not the second: that is how a worker that hangs is ended)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    torch.set_num_threads(1)
