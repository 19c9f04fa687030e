"""Sources of images: what they all are, and folders.

A source has names, labels, classes, and `read(index)`: the encoded bytes. Sources are small and picklable; files are
opened by the process that reads them.
"""

import json
import os
import stat
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from PIL import Image

from softvq.config import family, register
from softvq.data.finding import HEAD, ImageFinder, is_hidden
from softvq.data.images import open_image, size_of
from softvq.data.labels import UNLABELLED, class_of, folder_classes
from softvq.data.order import Order, Reader, SampleOrder
from softvq.errors import DataError, ImageError, Notice, counted
from softvq.files import hashed

Stamp = tuple[int, int]  # the bytes of an encoded image, and when its file last changed (ns)
EMOJI = Path(__file__).parent.parent / "assets" / "emoji"


@family
class Source(ABC):
    """A list of encoded images with class labels.

    A source of your own is a frozen dataclass that derives from this class and has `@softvq.register` above it: it is
    then data by its name (`Stripes`, or `{"type": "Stripes", "count": 8}`).

    `names` are unique and always the same; `labels` are numbers of `classes`, or `UNLABELLED`. `left_out` counts, by
    ending, the files that lie beside the images and are none.
    """

    required: ClassVar = ("names", "labels", "classes")
    names: list[str]
    labels: list[int]
    classes: list[str]
    left_out: ClassVar[Mapping[str, int]] = {}

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return an image's bytes, as in a file of it; `OSError` or `ImageError` when it cannot be read."""

    def image(self, index: int) -> tuple[Image.Image, int]:
        """Return an image, 8-bit RGB, and its label; `ImageError` names a file that cannot be read."""
        name = self.names[index]
        try:
            return open_image(self.read(index), name), self.labels[index]
        except OSError as error:
            raise ImageError(f"{name} cannot be read ({error.strerror}).") from error

    def image_size(self, index: int) -> tuple[int, int]:
        """Return an image's width and height in pixels; `ImageError` where they cannot be read."""
        return size_of(self.read(index), self.names[index])

    def __len__(self) -> int:
        """Return the number of images, for a stream approximately."""
        return len(self.names)

    def __str__(self) -> str:
        return f"{counted(len(self), 'image')} ({type(self).__name__})"

    def stamps(self) -> Sequence[Stamp] | None:
        """Return the size and the time of change of each image; None where they cannot be had without reading it."""
        return None

    def digest(self, index: int) -> str:
        """Return a checksum of an image's contents, 16 hex digits; of one that cannot be read, an empty one."""
        try:
            return hashed(self.read(index))
        except (OSError, ImageError):
            return ""

    @property
    def identity(self) -> dict[str, object]:
        """The number of images and checksums, by which one set of images is told from another.

        `names` is of their names, `contents` of their labels and, where they are known, sizes. A copy of the images
        has the same identity.
        """
        sizes = [size for size, _ in self.stamps() or ()]
        contents = hashed(json.dumps([self.labels, sizes]))
        return {"count": len(self.names), "names": hashed("\n".join(self.names)), "contents": contents}

    @property
    def version(self) -> str | None:
        """A checksum that changes when images may have, unfinished work on which is then begun anew.

        It is of the identity and the times of change. None where these are not known: work is then always begun anew.
        """
        if (stamps := self.stamps()) is None:
            return None
        return hashed(json.dumps([self.identity, stamps]))

    def holds(self, path: Path) -> bool:
        """Return True when a file written to this path would become one of the images."""
        return False

    def listing(self, images: int | None = None) -> "Source":
        """Return the images as a list that costs nothing to look through: all, or at least `images` of them."""
        return self

    def order(self, batch_size: int, seed: int) -> SampleOrder:
        """Return the order in which a run of this batch size reads the images."""
        return ListedOrder(self, Order(len(self.names), seed))


@dataclass(frozen=True)
class ListedOrder:
    """The order of a source that lists its images: sample number → image."""

    source: Source
    order: Order

    def find(self, position: int, attempt: int = 0) -> tuple[str, Reader]:
        """Return name and reader of a sample; after `attempt` unreadable ones, of the image that many places on."""
        index = (self.order.at([position])[0] + attempt) % self.order.length
        return self.source.names[index], partial(self.source.image, index)


class ByFolder(Source):
    """A source with classes from names: the first folder of each is its class; names without a folder are one class.

    Where there are folders, images beside them are unlabelled.
    """

    names: list[str]

    @cached_property
    def _folders(self) -> list[str]:
        """The folders that are classes, if all are numbers without a gap."""
        return sorted({class_of(name) for name in self.names} - {""})

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes: folders 0 … K−1 keep their numbers, all others are sorted."""
        return folder_classes({class_of(name) for name in self.names}, self._folders)

    @cached_property
    def labels(self) -> list[int]:
        """The class number of each image."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers.get(class_of(name), UNLABELLED) for name in self.names]


@dataclass(frozen=True)
class Columns:
    """The parts of a sample that are its image and its label, where that is not clear.

    They are columns of a Hugging Face dataset, or endings in tar shards (`png`, `cls`). The label `none` stands for no
    labels.
    """

    image: str | None = None
    label: str | None = None


@register
@dataclass(frozen=True)
class Folder(ByFolder):
    """Images under a folder, sorted by path. Each sub-folder of `root` is a class; a flat folder is one class."""

    root: Path

    def __post_init__(self):
        if not os.path.isdir(self.root):
            raise DataError(
                f"there is no folder {str(self.root)!r}; give a folder of images, or one sub-folder a class."
            )
        if not self.names:
            held = f"; it holds {kinds_of(self.left_out)}" if self.left_out else ""
            raise DataError(f"{str(self.root)!r} holds no images that Pillow can open, sub-folders too{held}.")

    @cached_property
    def _walked(self) -> tuple[list[str], dict[str, int], list[str]]:
        """The sorted paths of the images relative to `root`, the files left out, and the folders in `root`.

        Hidden and system files and folders are passed over.
        """
        finder, paths, above, top = ImageFinder(), [], {}, []
        for folder, folders, files in os.walk(self.root, onerror=_unreadable, followlinks=True):
            chain, real = above.get(os.path.dirname(folder), ()), os.path.realpath(folder)
            if real in chain:  # a link back up
                folders.clear()
                continue
            above[folder] = (*chain, real)
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            inside = os.path.relpath(folder, self.root)
            if inside == ".":
                top = list(folders)
            for name in files:
                path = os.path.join(folder, name)
                if not is_hidden(name) and finder.is_image(name, partial(_head, path)):
                    paths.append(name if inside == "." else os.path.join(inside, name))
        return sorted(paths), finder.left_out, top

    @property
    def names(self) -> list[str]:
        """The paths of the images relative to `root`, sorted; hidden files and folders are left out."""
        return self._walked[0]

    @property
    def left_out(self) -> dict[str, int]:
        """The number of files of each ending that Pillow cannot open."""
        return self._walked[1]

    @property
    def _folders(self) -> list[str]:
        return self._walked[2]

    def read(self, index: int) -> bytes:
        """Return the bytes of an image's file; `OSError` when it cannot be read, `ImageError` when it is a pipe."""
        path = self.root / self.names[index]
        if not stat.S_ISREG(path.stat().st_mode):  # which would wait for somebody who writes
            raise ImageError(f"{self.names[index]} is a pipe or a device, and no file.")
        return path.read_bytes()

    def stamps(self) -> list[Stamp]:
        """Return the size and the time of change of each file; zeros for one that is gone."""
        return file_stamps([os.path.join(self.root, name) for name in self.names])

    def holds(self, path: Path) -> bool:
        """Return True when a path lies under `root`, links followed."""
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root))


def _unreadable(error: OSError) -> None:
    raise DataError(f"the folder {error.filename} cannot be read ({error.strerror}).") from error


def _head(path: str) -> bytes:
    """Return the beginning of a file; nothing of what cannot be read, or is no file."""
    try:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read(HEAD)
    except OSError:
        pass
    return b""


def file_stamps(paths: Sequence[str | Path]) -> list[Stamp]:
    """Return the size and the time of change of files; zeros for those that are gone."""

    def some(chunk: Sequence[str | Path]) -> list[Stamp]:
        stamps = []
        for path in chunk:
            try:
                status = os.stat(path)
                stamps.append((status.st_size, status.st_mtime_ns))
            except OSError:
                stamps.append((0, 0))
        return stamps

    chunks = [paths[first : first + 1000] for first in range(0, len(paths), 1000)]
    with ThreadPoolExecutor(min(16, max(1, len(chunks)))) as pool:  # a file server answers many questions at a time
        return [stamp for chunk in pool.map(some, chunks) for stamp in chunk]


def kinds_of(left_out: Mapping[str, int]) -> str:
    """Return the commonest kinds of files left out, for a sentence: `12 .txt, 1 without an ending`."""
    common = Counter(left_out).most_common(4)
    kinds = [f"{count:,} {ending or 'without an ending'}" for ending, count in common]
    return ", ".join([*kinds, *(["…"] if len(left_out) > 4 else [])])


def tell(source: Source, name: str) -> None:
    """Say, as notices, what of a source is not used: files that are no images, and images without a label."""
    if source.left_out:
        count = sum(source.left_out.values())
        which = "is no image" if count == 1 else "are no images"
        said = f"{counted(count, 'file')} left out, which {which} to be used: {kinds_of(source.left_out)}"
        warnings.warn(f"{name}: {said}.", Notice, stacklevel=3)
    labels = source.labels
    if UNLABELLED in labels:
        first, count = source.names[labels.index(UNLABELLED)], labels.count(UNLABELLED)
        which = f"{counted(count, 'image')} of {len(labels):,}"
        has = "has no label" if count == 1 else "have no label"
        warnings.warn(f"{name}: {which} {has}, the first {first}: unlabelled.", Notice, stacklevel=3)
