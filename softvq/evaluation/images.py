"""Sets of 8-bit images of one size, by number: a data set, an array, or the images that a generator draws."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor

from softvq import progress
from softvq.data.arrays import ArrayFile
from softvq.data.images import Fit, to_bytes
from softvq.data.loader import NoneReadable, ordered_batches, readable
from softvq.data.opening import BUNDLED, listing
from softvq.data.sources import Source
from softvq.errors import DataError, ImageError
from softvq.pipeline import Pipeline, Request

CROPS = {"crop": "ADM's centre crop", "resize": "stretched to a square", "pad": "padded with white to a square"}


class Images(ABC):
    """A set of 8-bit images of one size, by number.

    `crop` says how they were cut from larger ones, and `title` is their name. `version` changes when the images may
    have (see `data.sources.Source`), where `checksum` and name do not say it.
    """

    count: int
    size: int
    crop: str
    title: str
    version: str | None = ""

    @abstractmethod
    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        """Yield the images of these numbers in batches; those that cannot be read go into `bad`, with the reason."""


class DataImages(Images):
    """The images of a data set, each made a square of `size` as `fit` says (None: all are of one size already).

    Raise `DataError` when images that are to be kept as they are have several sizes or are not square: all are looked
    at before any is worked on.
    """

    def __init__(self, data: Any, size: int | None, batch_size: int = 64, workers: int = 0, fit: Fit = "crop"):
        self.source: Source = listing(data)
        self.title = str(data if isinstance(data, str | Path) else self.source)
        self.batch_size, self.workers = batch_size, workers
        self.how = "keep" if size is None else fit
        self.crop = "none" if size is None else CROPS[fit]
        self.count = len(self.source.names)
        self.size = _common_side(self.source) if size is None else size
        self.checksum = "-".join(map(str, self.source.identity.values()))
        self.version = self.source.version

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        """Yield the images of these numbers in batches; those that cannot be read go into `bad`, with the reason."""
        for batch in self.tensors(numbers, bad):
            yield to_bytes(batch)

    def tensors(self, numbers: range, bad: dict[str, str]) -> Iterator[Float[Tensor, "B 3 H W"]]:
        """Yield the images of these numbers in [-1, 1], in batches; those that cannot be read go into `bad`."""
        batches = ordered_batches(
            self.source,
            size=self.size,
            batch_size=self.batch_size,
            how=self.how,
            chosen=numbers,
            workers=self.workers,
        )
        for batch in readable(batches, bad):
            yield batch.images


def _common_side(source: Source) -> int:
    """Return the side that all images have; those that cannot be read do not count."""
    bad: dict[str, str] = {}
    first: tuple[str, int] | None = None
    for index in progress.through(range(len(source.names)), "image", "looking at sizes", kept=False):
        name = source.names[index]
        try:
            width, height = source.image_size(index)
        except (ImageError, OSError) as error:
            bad[name] = str(error)
            continue
        first = first or (name, width)
        if (width, height) != (first[1], first[1]):
            raise DataError(
                f"{name} has {width}×{height} pixels"
                + ("" if name == first[0] else f", {first[0]} {first[1]}×{first[1]}")
                + ": images must be square and of one size, or be made so with fit: crop, resize or pad.",
                setting="fit",
            )
    if first is None:
        raise NoneReadable(bad)
    return first[1]


def shortest_side(data: Any) -> int:
    """Return the shorter side, in pixels, of the first image that can be read."""
    source, bad = listing(data), {}
    for index, name in enumerate(source.names):
        try:
            return min(source.image_size(index))
        except (ImageError, OSError) as error:
            bad[name] = str(error)
    raise NoneReadable(bad)


class ArrayImages(Images):
    """The images of an `.npz` file as ADM writes them, `arr_0`."""

    def __init__(self, path: Path, batch_size: int = 64):
        self.file, self.batch_size, self.title = ArrayFile(path), batch_size, path.name
        self.count, self.size, width = self.file.shape
        self.crop = "none"
        if width != self.size:
            raise DataError(f"{path}: arr_0 is of {self.size}×{width} pixels; images must be square.")
        self.checksum = self.file.checksum

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        """Return the images of these numbers in batches; none is ever `bad`."""
        return self.file.images(numbers.start, numbers.stop, self.batch_size)


class DrawnImages(Images):
    """The images that a generator draws, each a function of its number and the request with its seed."""

    def __init__(self, pipeline: Pipeline, request: Request):
        self.pipeline, self.request, self.count = pipeline, request, request.num
        self.size, self.crop = pipeline.image_size, "none"
        self.title = f"guidance {request.sampling.guidance.scale:g}, seed {request.seed}"

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        """Yield the images of these numbers in batches, drawn as they are needed; none is ever `bad`."""
        batch = self.request.batch_size
        for first in range(numbers.start, numbers.stop, batch):
            yield self.pipeline.images(self.request, range(first, min(numbers.stop, first + batch)))


def is_bundled(data: Any) -> bool:
    """Return True when images are one of the bundled sets, by name."""
    return isinstance(data, str) and data in BUNDLED


def is_array(data: Any) -> bool:
    """Return True when images are given as the name of an `.npz` file."""
    return isinstance(data, str | Path) and str(data).lower().endswith(".npz")


def open_images(
    data: Any, size: int | None, batch_size: int = 64, workers: int = 0, fit: Fit = "crop"
) -> DataImages | ArrayImages:
    """Return the images of a data set or of an `.npz` file; raise `DataError` when an array is not of `size` px."""
    if not is_array(data):
        return DataImages(data, size, batch_size, workers, fit)
    images = ArrayImages(Path(data), batch_size)
    if size is not None and images.size != size:
        raise DataError(f"{data} is of {images.size} px, but the images are of {size} px.")
    return images
