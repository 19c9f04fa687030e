"""Sources of images: folders, tar shards, Hugging Face datasets, and the emoji that ship with the package.

A source has names, labels, classes, and `read(index)`: the encoded bytes. Sources are small and picklable; files are
opened by the process that reads them.
"""

import hashlib
import os
import tarfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from PIL import Image

from softvq.config import family, register
from softvq.data.images import EXTENSIONS, open_image, size_of
from softvq.data.order import Order, Reader, SampleOrder
from softvq.errors import DataError, ImageError, counted

EMOJI = Path(__file__).parent.parent / "assets" / "emoji"


@family
class Source(ABC):
    """A list of encoded images with class labels.

    A source of your own is a frozen dataclass that derives from this class and has `@softvq.register` above it: it is
    then data by its name (`Stripes`, or `{"type": "Stripes", "count": 8}`).

    `names` are unique and always the same; `labels` are numbers of `classes`.
    """

    required: ClassVar = ("names", "labels", "classes")
    names: list[str]
    labels: list[int]
    classes: list[str]

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

    @property
    def identity(self) -> dict[str, object]:
        """The number of images and a checksum of their names, by which one set of images is told from another."""
        names = hashlib.sha256("\n".join(self.names).encode("utf-8", "surrogateescape")).hexdigest()
        return {"count": len(self.names), "names": names[:16]}

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


class _ByFolder(Source):
    """A source with classes from names: the first folder of each is its class; names without a folder are one class."""

    names: list[str]

    @cached_property
    def classes(self) -> list[str]:
        return sorted({_class_of(name) for name in self.names})

    @cached_property
    def labels(self) -> list[int]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers[_class_of(name)] for name in self.names]


@register
@dataclass(frozen=True)
class Folder(_ByFolder):
    """Images under a folder, sorted by path. Each sub-folder of `root` is a class; a flat folder is one class."""

    root: Path

    def __post_init__(self):
        if not self.root.is_dir():
            raise DataError(
                f"there is no folder {str(self.root)!r}; give a folder of images, or one sub-folder a class."
            )
        if not self.names:
            raise DataError(
                f"{str(self.root)!r} holds no images (looked for {', '.join(EXTENSIONS)}, sub-folders too)."
            )

    @cached_property
    def names(self) -> list[str]:
        """The paths of the images relative to `root`, sorted; hidden files and folders are left out."""
        paths, seen = [], set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:  # a link back up
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if name[0] != ".")
            paths += [os.path.join(folder, f) for f in files if f.lower().endswith(EXTENSIONS) and f[0] != "."]
        return sorted(os.path.relpath(path, self.root) for path in paths)

    def read(self, index: int) -> bytes:
        """Return the bytes of an image's file; `OSError` when it cannot be read."""
        return (self.root / self.names[index]).read_bytes()

    def holds(self, path: Path) -> bool:
        """Return True when a path lies under `root`, links followed."""
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root))


@dataclass(frozen=True)
class TarFile(_ByFolder):
    """A tar of `class/name` images, read in place by offset: the bundled emoji.

    Its images are those in `only` (None: all) without those in `without`.
    """

    path: Path
    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    @cached_property
    def _entries(self) -> list[tuple[str, int, int]]:
        kept = (e for e in tar_entries(self.path) if self.only is None or e[0] in self.only)
        return sorted(entry for entry in kept if entry[0] not in self.without)

    @cached_property
    def names(self) -> list[str]:
        """The names of the images in the tar, sorted."""
        return [name for name, _, _ in self._entries]

    def read(self, index: int) -> bytes:
        """Return the bytes of an image, from its place in the tar."""
        _, offset, size = self._entries[index]
        return read_at(self.path, offset, size)


@dataclass(frozen=True)
class Entry:
    """An image in a tar shard: its name with the shard's, where its bytes are, and its class."""

    name: str
    offset: int
    size: int
    label: str


@register
@dataclass(frozen=True)
class Shards(Source):
    """Images in tar shards as webdataset writes them, read in place by offset.

    `key.jpg` has its class in `key.cls` beside it, and class numbers are kept as they are. Without `.cls` files,
    folders inside the shards are classes.

    The shards are looked through once (their headers, not their images) at their first use; after that any image is one
    seek away, so that shuffling and resuming need neither a buffer nor a replay.
    """

    paths: tuple[Path, ...]

    @cached_property
    def _entries(self) -> list[tuple[Path, Entry]]:
        entries = [(path, entry) for path in self.paths for entry in shard_entries(path, path.name)]
        if not entries:
            raise DataError(f"the {len(self.paths)} tar shards from {self.paths[0]} on hold no images.")
        return entries

    @cached_property
    def names(self) -> list[str]:
        """The names of the images, each with its shard's, in the order of the shards."""
        return [entry.name for _, entry in self._entries]

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes: numbers up to the largest where all are numbers, else the labels, sorted."""
        return _classes({entry.label for _, entry in self._entries})

    @cached_property
    def labels(self) -> list[int]:
        """The class number of each image."""
        numbers = {label: number for number, label in enumerate(self.classes)}
        labels = [entry.label for _, entry in self._entries]
        return [int(label) if label not in numbers else numbers[label] for label in labels]  # "007" is class 7

    def read(self, index: int) -> bytes:
        """Return the bytes of an image, from its place in its shard."""
        path, entry = self._entries[index]
        return read_at(path, entry.offset, entry.size)


def shard_entries(path: Path, shard: str) -> list[Entry]:
    """Return the images of a tar shard that is called `shard`, and their classes."""
    entries = tar_entries(path)
    marks = {name[:-4]: (offset, size) for name, offset, size in entries if name.endswith(".cls")}
    images = []
    for name, offset, size in entries:
        if name.lower().endswith(EXTENSIONS):
            mark = marks.get(name.rsplit(".", 1)[0])
            label = read_at(path, *mark).decode(errors="replace").strip() if mark else _class_of(name)
            images.append(Entry(f"{shard}/{name}", offset, size, label))
    return images


@register
@dataclass(frozen=True)
class HubDataset(Source):
    """A split of a Hugging Face dataset, or local parquet files in its format.

    Its rows have an image, and a class where there is a column for it. It is downloaded once by `datasets`,
    memory-mapped, and read row by row.
    """

    name: str
    split: str = "train"

    @cached_property
    def _rows(self):
        try:
            import datasets
        except ImportError:
            raise DataError("Hugging Face datasets need a package: pip install 'softvq[data]'.") from None
        try:
            if self.name.endswith(".parquet"):
                rows = datasets.load_dataset("parquet", data_files=self.name, split="train")
            else:
                rows = datasets.load_dataset(self.name, split=self.split)
        except Exception as error:  # of the network, the name, the split or the files
            raise DataError(f"the dataset {self.name!r} cannot be read ({type(error).__name__}: {error}).") from error
        images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        images = images or [name for name in ("image", "img", "jpg", "png") if name in rows.features]
        if not images:
            raise DataError(f"the dataset {self.name!r} has no column of images, only {', '.join(rows.features)}.")
        labels = [name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
        labels = labels or [name for name in ("label", "cls") if name in rows.features]
        wanted = {images[0]: "image"} | ({labels[0]: "label"} if labels else {})
        rows = rows.select_columns(list(wanted))
        rows = rows.rename_columns({old: new for old, new in wanted.items() if old != new})
        return rows.cast_column("image", datasets.Image(decode=False))

    @cached_property
    def names(self) -> list[str]:
        """The names of the rows: dataset, split and number."""
        return [f"{self.name}/{self.split}/{number}" for number in range(len(self._rows))]

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes, as the dataset has them; one empty name without a column of labels."""
        kind = self._rows.features.get("label")
        if kind is None:
            return [""]
        if hasattr(kind, "names"):
            return list(kind.names)
        return _classes({str(label) for label in self._rows["label"]})

    @cached_property
    def labels(self) -> list[int]:
        """The class number of each row, 0 without a column of labels."""
        if "label" not in self._rows.features:
            return [0] * len(self._rows)
        numbers = {label: number for number, label in enumerate(self.classes)}
        if hasattr(self._rows.features["label"], "names"):
            return list(self._rows["label"])
        return [numbers[str(label)] for label in self._rows["label"]]

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of a row's image."""
        image = self._rows[index]["image"]
        return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]


def tar_entries(path: Path) -> list[tuple[str, int, int]]:
    """Return name, offset and size of each file in a tar; `DataError` when it is none, or is cut off."""
    try:
        with tarfile.open(path, "r:") as tar:
            entries = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    except tarfile.TarError as error:
        raise DataError(f"{path} is not a tar file, or is damaged or compressed ({error}).") from error
    size = path.stat().st_size
    if cut := next((name for name, offset, length in entries if offset + length > size), None):
        raise DataError(f"{path} is cut off inside {cut}.")
    return entries


def read_at(path: Path, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


_MOST_NUMBERS = 10**6  # beyond it, numbers are names: a date, an identifier


def _classes(labels: set[str]) -> list[str]:
    """Return the classes of labels: numbers up to the largest where all are numbers, else the labels, sorted.

    Class numbers stay as they are, so that all below the largest are classes too. Numbers of a million and more are
    names.
    """
    if all(label.isdecimal() for label in labels) and (largest := max(map(int, labels))) < _MOST_NUMBERS:
        return [str(number) for number in range(largest + 1)]
    return sorted(labels)


def _class_of(name: str) -> str:
    parts = Path(name).parts
    return parts[0] if len(parts) > 1 else ""
