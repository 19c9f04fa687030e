"""Batches of images: endless ones to train on, from any step on, and a data set once, in order."""

import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from multiprocessing.connection import wait
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from softvq import plugins
from softvq.data.images import Augment, fit, to_tensor
from softvq.data.order import Reader, SampleOrder, check_batch, evenly, positions_of
from softvq.data.sources import Source
from softvq.errors import DataError, ImageError, counted
from softvq.randomness import Stream, rng


@dataclass(frozen=True)
class Batch:
    """Images in [-1, 1], with class labels, names, sample numbers, and the step that they are for.

    `names` are those that the images were read from. `bad`: files that could not be read, {name: reason}; in training
    the next readable image replaces each. `step` counts the steps of training from 0 on. `digests` has checksums of the
    images' contents by sample number, where they were asked for.
    """

    images: Float[Tensor, "B 3 H W"]
    labels: Int[Tensor, " B"]
    names: list[str]
    positions: list[int]
    bad: dict[str, str] = field(default_factory=dict)
    step: int = 0
    digests: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: slice) -> "Batch":
        """Return some of the batch's samples."""
        return Batch(self.images[rows], self.labels[rows], self.names[rows], self.positions[rows], {}, self.step)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its images and labels on a device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


class NoneReadable(DataError):
    """The error of a set of images none of which can be read: {name: reason}."""

    def __init__(self, bad: dict[str, str]):
        super().__init__(bad)
        self.bad = bad

    def __str__(self) -> str:
        return f"none of the {counted(len(self.bad), 'image')} can be read; the first: {next(iter(self.bad.values()))}"


@dataclass(frozen=True)
class Sample:
    """An image as a tensor (None: it cannot be read), its label, name and number, and the bad files met on the way."""

    image: Float[Tensor, "3 H W"] | None
    label: int
    name: str
    position: int
    bad: dict[str, str]
    digest: str = ""


class Samples(Dataset):
    """A data set that reads one image by its number, in a worker process, and makes a square of it.

    A bad file gives the next readable one when `replaces` is set, else a sample without an image. A `DataError` is
    returned as the sample: raised in a worker it would reach people as a traceback. `digest` returns the checksum of a
    sample's contents, where it is wanted.
    """

    def __init__(
        self,
        order: SampleOrder,
        square: "Augmented | Fitted",
        replaces: bool,
        digest: Callable[[int], str] | None = None,
    ):
        self.order, self.square, self.replaces, self.digest = order, square, replaces, digest

    def __getitem__(self, position: int) -> Sample | DataError:
        bad: dict[str, str] = {}
        try:
            for attempt in count():
                name, read = self.order.find(position, attempt)
                if name in bad:  # once around
                    return NoneReadable(bad)
                try:
                    image, label = read()
                    view = to_tensor(self.square(image, position, name))
                    return Sample(view, label, name, position, bad, self.digest(position) if self.digest else "")
                except ImageError as error:
                    bad[name] = str(error)
                    if not self.replaces:
                        return Sample(None, -1, name, position, bad)
        except DataError as error:
            return error


@dataclass(frozen=True)
class Augmented:
    """The step that makes an image into its view for training: a function of the seed and the sample number."""

    augment: Augment
    size: int
    seed: int

    def __call__(self, image: Image.Image, position: int, name: str) -> Image.Image:
        """Return a sample's view of an image, augmented with random numbers of its own."""
        return self.augment(image, self.size, rng(self.seed, Stream.AUGMENT, position))


@dataclass(frozen=True)
class Fitted:
    """The step that fits an image to a size (see `images.fit`); `keep`: an image of another size is a `DataError`."""

    size: int
    how: str

    def __call__(self, image: Image.Image, position: int, name: str) -> Image.Image:
        """Return the image as a square of `size` px; `DataError` for one of another size with `keep`."""
        if self.how != "keep":
            return fit(image, self.size, self.how)
        if image.size != (self.size, self.size):
            raise DataError(
                f"{name} has {image.width}×{image.height} pixels, not {self.size}×{self.size}: all must be of one size."
            )
        return image


@dataclass(frozen=True)
class InOrder:
    """The order of a source's images by their index."""

    source: Source

    def find(self, position: int, attempt: int = 0) -> tuple[str, Reader]:
        """Return an image's name and reader."""
        return self.source.names[position], partial(self.source.image, position)


class _Steps:
    """A batch sampler: this process's sample numbers of the steps from `start` on."""

    def __init__(self, batch_size: int, start: int, parts: int):
        self.batch_size, self.start, self.parts = batch_size, start, parts

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self.start):
            yield positions_of(step, self.batch_size, self.parts)


def training_batches(
    source: Source,
    *,
    size: int,
    batch_size: int,
    augment: Augment,
    seed: int,
    start_step: int = 0,
    workers: int = 2,
    parts: int = 1,
) -> Iterator[Batch]:
    """Yield batches of augmented images without end, from `start_step` on.

    `batch_size` is over all ranks; each rank gets its share of each of `parts` equal parts. `workers` processes decode;
    0 decodes in this one.
    """
    check_batch(batch_size, parts)
    with _workers_as_asked():
        loader = DataLoader(
            plugins.carried(Samples(source.order(batch_size, seed), Augmented(augment, size, seed), replaces=True)),
            batch_sampler=_Steps(batch_size, start_step, parts),
            num_workers=workers,
            collate_fn=_collated,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
        )
    for step, batch in zip(count(start_step), _ended(loader), strict=False):
        if isinstance(batch, DataError):
            raise batch
        yield replace(batch, step=step)


def ordered_batches(
    source: Source,
    *,
    size: int,
    batch_size: int,
    how: str = "crop",
    chosen: Sequence[int] | None = None,
    workers: int = 0,
    digests: bool = False,
) -> Iterator[Batch]:
    """Yield batches of the `chosen` images (default: all), once and in order, each fitted to `size`.

    `how` is that of `images.fit`, or `keep`: an image of another size is a `DataError`. `workers` processes decode; 0
    decodes in this one. With `digests` batches have checksums of the images' contents.

    Bad files are left out and named in the `bad` of their batch or, where all of a batch are bad, of a neighbour;
    `positions` are indices into the source. Raise `NoneReadable` when no image can be read.
    """
    chosen = range(len(source.names)) if chosen is None else chosen
    ready: Batch | None = None  # held back, to name the bad files that no later batch can
    bad: dict[str, str] = {}
    digest = source.digest if digests else None
    dataset = Samples(InOrder(source), Fitted(size, how), replaces=False, digest=digest)
    with _workers_as_asked():
        loader = DataLoader(
            plugins.carried(dataset), batch_size, sampler=list(chosen), num_workers=workers, collate_fn=list
        )
    for samples in _ended(loader):
        if failed := [sample for sample in samples if isinstance(sample, DataError)]:
            raise failed[0]
        bad |= {name: reason for sample in samples if sample.image is None for name, reason in sample.bad.items()}
        if samples := [sample for sample in samples if sample.image is not None]:
            if ready is not None:
                yield ready
            ready, bad = replace(_collate(samples), bad=bad), {}
    if ready is not None:
        yield replace(ready, bad={**ready.bad, **bad})
    elif bad:
        raise NoneReadable(bad)


def _collated(samples: list[Sample | DataError]) -> Batch | DataError:
    """Return a batch, or the error that is one of the samples.

    The batch is made in the worker, where one copy serves all its images.
    """
    return next((sample for sample in samples if isinstance(sample, DataError)), None) or _collate(samples)


def _collate(samples: list[Sample]) -> Batch:
    bad = {name: reason for sample in samples for name, reason in sample.bad.items()}
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        [sample.name for sample in samples],
        [sample.position for sample in samples],
        bad,
        digests={sample.position: sample.digest for sample in samples if sample.digest},
    )


def _ended(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches of a loader, and end its workers at once when no more are wanted, or anything fails.

    Left to PyTorch, workers may be waited for in vain: one that was killed leaves locks behind that the others wait
    for, and a worker of ours does not heed the one SIGTERM that it would get. At the end of this process they are
    killed too, whoever still holds this generator. Raise `DataError` when a worker has died.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    with _workers_as_asked():
        iterator = iter(batches)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)  # PyTorch's raises wherever the main thread is when a worker ends
    workers = getattr(iterator, "_workers", [])
    kill = weakref.finalize(iterator, _kill, workers)
    try:
        yield from iterator
    except (RuntimeError, OSError, EOFError) as error:  # as PyTorch finds it, or a batch that only the dead one had
        if not wait([worker.sentinel for worker in workers], timeout=1):
            raise
        raise DataError(
            "a process that decodes images has died (often: no memory left); the same call goes on where it was saved "
            "last, with fewer workers if that was it.",
            setting="workers",
        ) from error
    finally:
        kill()
        del iterator


def _kill(processes: list[Any]) -> None:
    """End processes at once, and wait until they have ended."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


@contextmanager
def _workers_as_asked() -> Iterator[None]:
    """Enter a block without the warning about many workers: their number is the user's choice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total")
        yield


def _start_worker(_: int) -> None:
    """Prepare a worker: it ignores Ctrl-C and a first SIGTERM, and computes with one thread.

    Ctrl-C and a group's SIGTERM reach workers too, but the main process finishes its step and stops them itself. A
    second SIGTERM ends the worker: that is how one that hangs is ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    torch.set_num_threads(1)


def readable(batches: Iterable[Batch], bad: dict[str, str]) -> Iterator[Batch]:
    """Yield batches, and collect in `bad` the images that cannot be read, by name and reason; it may be all of them."""
    try:
        for batch in batches:
            bad.update(batch.bad)
            yield batch
    except NoneReadable as error:
        bad.update(error.bad)


def spread(source: Source, size: int, count: int) -> Tensor:
    """Return up to `count` images (B, 3, size, size), spread evenly over a source."""
    chosen = evenly(count, len(source.names))
    return torch.cat([b.images for b in ordered_batches(source, size=size, batch_size=count, chosen=chosen)])
