"""Sets of 8-bit images of one size, by number: a data set, an array, what a generator draws."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor

from softvq.data.arrays import ArrayFile
from softvq.data.images import to_bytes
from softvq.data.loader import NoneReadable, ordered_batches
from softvq.data.opening import BUNDLED, listing
from softvq.data.sources import Source
from softvq.errors import DataError, ImageError
from softvq.pipeline import Pipeline, Request

_ADM_CROP = "ADM's centre crop"


class Images(ABC):
    """8-bit images of one size, by number. `crop`: how they were cut; `title`: what they are called."""

    count: int
    size: int
    crop: str
    title: str

    @abstractmethod
    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        """Yield these; what cannot be read goes into `bad`."""


class DataImages(Images):
    """The images of a data set, each cut to `size` (None: all are of one size already)."""

    def __init__(self, data: Any, size: int | None, batch_size: int = 64, workers: int = 0):
        self.source: Source = listing(data)
        self.title = str(data if isinstance(data, str | Path) else self.source)
        self.batch_size, self.workers = batch_size, workers
        self.how = "keep" if size is None else "crop"
        self.crop = "none" if size is None else _ADM_CROP
        self.count = len(self.source.names)
        self.size = _side(self.source) if size is None else size
        self.checksum = self.source.identity["names"]

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        for batch in self.tensors(numbers, bad):
            yield to_bytes(batch)

    def tensors(self, numbers: range, bad: dict[str, str]) -> Iterator[Float[Tensor, "B 3 H W"]]:
        """Yield these in [-1, 1]."""
        batches = ordered_batches(
            self.source,
            size=self.size,
            batch_size=self.batch_size,
            how=self.how,
            chosen=numbers,
            workers=self.workers,
        )
        try:
            for batch in batches:
                bad.update(batch.bad)
                yield batch.images
        except NoneReadable as error:  # of these numbers; others may be
            bad.update(error.bad)


def _side(source: Source) -> int:
    """Return the side of the first image that can be read."""
    bad: dict[str, str] = {}
    for index, name in enumerate(source.names):
        try:
            image, _ = source.image(index)
        except ImageError as error:
            bad[name] = str(error)
            continue
        if image.width != image.height:
            raise DataError(f"{name} has {image.width}×{image.height} pixels; samples must be square.")
        return image.width
    raise NoneReadable(bad)


class ArrayImages(Images):
    """The images of ADM's array."""

    def __init__(self, path: Path, batch_size: int = 64):
        self.file, self.batch_size, self.title = ArrayFile(path), batch_size, path.name
        self.count, self.size, width = self.file.shape
        self.crop = "none"
        if width != self.size:
            raise DataError(f"{path}: arr_0 is of {self.size}×{width} pixels; images must be square.")
        self.checksum = self.file.checksum

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        return self.file.images(numbers.start, numbers.stop, self.batch_size)


class DrawnImages(Images):
    """The images that a generator draws: image `number` with the request's seed."""

    def __init__(self, pipeline: Pipeline, request: Request):
        self.pipeline, self.request, self.count = pipeline, request, request.num
        self.size, self.crop = pipeline.image_size, "none"
        self.title = f"guidance {request.sampling.guidance.scale:g}, seed {request.seed}"

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        batch = self.request.batch_size
        for first in range(numbers.start, numbers.stop, batch):
            yield self.pipeline.images(self.request, range(first, min(numbers.stop, first + batch)))


def is_bundled(data: Any) -> bool:
    """Return if images are one of the bundled sets, by name."""
    return isinstance(data, str) and data in BUNDLED


def is_array(data: Any) -> bool:
    """Return if images are given as the name of an `.npz` file."""
    return isinstance(data, str | Path) and str(data).lower().endswith(".npz")


def open_images(data: Any, size: int | None, batch_size: int = 64, workers: int = 0) -> DataImages | ArrayImages:
    """Return images of a data set or of an `.npz` file; `DataError` where an array is not of `size` px."""
    if not is_array(data):
        return DataImages(data, size, batch_size, workers)
    images = ArrayImages(Path(data), batch_size)
    if size is not None and images.size != size:
        raise DataError(f"{data} is of {images.size} px, but the images are of {size} px.")
    return images
