"""Results that are computed of many images, kept in parts: files of consecutive images, each made once by one process.

A stopped call therefore makes none again, and the result is the same for any number of processes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from softvq import distributed, files
from softvq.evaluation.appearance import NAMES
from softvq.evaluation.frechet import Gaussian, Moments

SIZE = 500  # images a part
_VERSION = "version.txt"  # beside the parts: which images they are of


@dataclass(frozen=True)
class Part:
    """The results for the images of one part.

    `tensors` have a row an image; `bad` holds the images that could not be read, with the reason; `checksum` is one of
    the other images' pixels.
    """

    tensors: Mapping[str, Tensor]
    bad: Mapping[str, str] = field(default_factory=dict)
    checksum: str = ""


class Parts:
    """The tensors of `count` images in `folder`, in files of `size` images each.

    The folder's name must tell what the tensors are a function of, because files that are there already are used; but
    see `begin`.
    """

    def __init__(self, folder: Path, count: int, size: int = SIZE):
        self.folder, self.count, self.size = folder, count, size

    def begin(self, version: str | None) -> None:
        """Delete what is there of images in another `version` than these; None, which nothing is, deletes all."""
        beside = self.folder / _VERSION
        if distributed.rank() == 0:
            known = beside.read_text(encoding="utf-8") if beside.is_file() else None
            if version is None or known != version:
                for path in self.folder.glob("*.safetensors"):
                    path.unlink()
                files.write_text(beside, version or "")
        distributed.barrier()

    def fill(self, make: Callable[[range, Callable[[int], object]], Part], title: str) -> None:
        """Make the parts that are missing, each process its share.

        `make(numbers, done)` returns the part of the images with these numbers, and calls `done` with the count of
        images finished.
        """

        def write(numbers: range, done: Callable[[int], object]) -> None:
            part = make(numbers, done)
            metadata = {"bad": json.dumps(dict(part.bad)), "checksum": part.checksum}
            files.write_tensors(self._path(numbers.start), part.tensors, metadata)

        distributed.in_parts(self.count, self.size, self._path, write, title)

    def each(self, name: str) -> Iterator[Tensor]:
        """Yield the tensor of this name, part by part; nothing where there is none."""
        for file in self._files():
            if name in file.keys():  # noqa: SIM118
                yield file.get_tensor(name)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield all tensors, part by part."""
        for file in self._files():
            yield {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def all(self, name: str) -> Tensor | None:
        """Return the tensor of this name for all images, None where there is none."""
        tensors = list(self.each(name))
        return torch.cat(tensors) if tensors else None

    @property
    def bad(self) -> dict[str, str]:
        """All images that could not be read, with the reason."""
        return {name: reason for file in self._files() for name, reason in json.loads(file.metadata()["bad"]).items()}

    @property
    def checksum(self) -> str:
        """The checksum of all pixels, 16 hex digits."""
        return hashlib.sha256("".join(file.metadata()["checksum"] for file in self._files()).encode()).hexdigest()[:16]

    def remove(self) -> None:
        """Delete the files, once the result that they are for has been written."""
        distributed.barrier()
        if distributed.rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> Iterator:
        for first in range(0, self.count, self.size):
            with safe_open(self._path(first), "pt") as file:
                yield file

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:08d}.safetensors"


def moments(parts: Parts, name: str) -> Moments | None:
    """Return the moments of a tensor of all images, a part at a time; None where there is none of that name."""
    gaussian = None
    for part in parts.each(name):
        gaussian = gaussian or Gaussian(part.shape[1])
        gaussian.add(part)
    return gaussian and gaussian.moments


def appearance_of(parts: Parts) -> dict[str, Tensor] | None:
    """Return the rows of `evaluation.appearance` for all images, None where there are none."""
    rows = {name: parts.all(name) for name in NAMES}
    return None if rows["ink"] is None else rows
