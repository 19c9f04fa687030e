"""Where images come from: folders, tar shards, Hugging Face datasets, and the emoji that ship with the package.

A source has a length, names, classes, and `read(index)`: the encoded bytes. Sources are small and picklable; files are
opened by the process that reads them.
"""

import glob
import hashlib
import json
import os
import re
import tarfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from softvq.config import family, parse, register, variants
from softvq.data.images import EXTENSIONS
from softvq.errors import DataError

EMOJI = Path(__file__).parent.parent / "assets" / "emoji"
# The bundled sets of images. Recipes and settings are chosen on `emoji-dev` (after training on `emoji-train`, which has
# none of its images), so that `emoji-val` is left for figures that are quoted.
BUNDLED = {
    "emoji": "the 3,094 bundled training images",
    "emoji-train": "the 2,794 of them that are not in emoji-dev",
    "emoji-dev": "300 of them, by class and without their tone variants elsewhere, to choose recipes and settings on",
    "emoji-val": "the 280 bundled validation images, for final figures",
}


@family
class Source(ABC):
    """A list of encoded images with class labels. One of your own is a frozen dataclass, derived from this, with
    `@softvq.register` above it: it is then data by its name (`Stripes`, or `{"type": "Stripes", "count": 8}`).

    `names` are unique and always the same; `labels` are numbers of `classes`."""

    required: ClassVar = ("names", "labels", "classes")
    names: list[str]
    labels: list[int]
    classes: list[str]

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return an image's bytes, as in a file of it; `OSError` or `ImageError` where it cannot be read."""


class _ByFolder(Source):
    """Classes from names: the first folder of each is its class; names without a folder are one class."""

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
        found, seen = [], set()
        for folder, folders, files in os.walk(self.root, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:  # a link back up
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if name[0] != ".")
            found += [os.path.join(folder, f) for f in files if f.lower().endswith(EXTENSIONS) and f[0] != "."]
        return sorted(os.path.relpath(path, self.root) for path in found)

    def read(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()


@dataclass(frozen=True)
class TarFile(_ByFolder):
    """A tar of `class/name` images, read in place by offset: the bundled emoji. Of them only those in `only` (if it is
    given), and none of those in `without`."""

    path: Path
    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    @cached_property
    def _entries(self) -> list[tuple[str, int, int]]:
        kept = (e for e in tar_entries(self.path) if self.only is None or e[0] in self.only)
        return sorted(entry for entry in kept if entry[0] not in self.without)

    @cached_property
    def names(self) -> list[str]:
        return [name for name, _, _ in self._entries]

    def read(self, index: int) -> bytes:
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
    """Images in tar shards as webdataset writes them: `key.jpg` with its class in `key.cls` beside it, read in place by
    offset. Class numbers are kept as they are. Without `.cls` files, folders inside the shards are classes.

    The shards are looked through once (their headers, not their images) when the source is opened; after that any
    image is one seek away, so that shuffling and resuming need neither a buffer nor a replay.
    """

    paths: tuple[Path, ...]

    @cached_property
    def _entries(self) -> list[tuple[Path, Entry]]:
        found = [(path, entry) for path in self.paths for entry in shard_entries(path, path.name)]
        if not found:
            raise DataError(f"the {len(self.paths)} tar shards from {self.paths[0]} on hold no images.")
        return found

    @cached_property
    def names(self) -> list[str]:
        return [entry.name for _, entry in self._entries]

    @cached_property
    def classes(self) -> list[str]:
        return _classes({entry.label for _, entry in self._entries})

    @cached_property
    def labels(self) -> list[int]:
        numbers = {label: number for number, label in enumerate(self.classes)}
        found = [entry.label for _, entry in self._entries]
        return [int(label) if label not in numbers else numbers[label] for label in found]  # "007" is class 7

    def read(self, index: int) -> bytes:
        path, entry = self._entries[index]
        return read_at(path, entry.offset, entry.size)


def shard_entries(path: Path, shard: str) -> list[Entry]:
    """The images of a tar shard that is called `shard`, and their classes."""
    entries = tar_entries(path)
    marks = {name[:-4]: (offset, size) for name, offset, size in entries if name.endswith(".cls")}
    found = []
    for name, offset, size in entries:
        if name.lower().endswith(EXTENSIONS):
            mark = marks.get(name.rsplit(".", 1)[0])
            label = read_at(path, *mark).decode(errors="replace").strip() if mark else _class_of(name)
            found.append(Entry(f"{shard}/{name}", offset, size, label))
    return found


@register
@dataclass(frozen=True)
class HubDataset(Source):
    """A split of a Hugging Face dataset, or local parquet files in its format: rows with an image, and a class where
    there is a column for it. Downloaded once by `datasets`, memory-mapped, read row by row."""

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
        return [f"{self.name}/{self.split}/{number}" for number in range(len(self._rows))]

    @cached_property
    def classes(self) -> list[str]:
        kind = self._rows.features.get("label")
        if kind is None:
            return [""]
        if hasattr(kind, "names"):
            return list(kind.names)
        return _classes({str(label) for label in self._rows["label"]})

    @cached_property
    def labels(self) -> list[int]:
        if "label" not in self._rows.features:
            return [0] * len(self._rows)
        numbers = {label: number for number, label in enumerate(self.classes)}
        if hasattr(self._rows.features["label"], "names"):
            return list(self._rows["label"])
        return [numbers[str(label)] for label in self._rows["label"]]

    def read(self, index: int) -> bytes:
        image = self._rows[index]["image"]
        return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]


def tar_entries(path: Path) -> list[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar; `DataError` when it is none, or is cut off."""
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
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def braces(pattern: str) -> list[str]:
    """`train-{000..127}.tar` written out; any pattern without such a range as it is."""
    if not (found := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)):
        return [pattern]
    first, last = found.groups()
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [one for n in numbers for one in braces(pattern[: found.start()] + n + pattern[found.end() :])]


def expand(pattern: str) -> list[Path]:
    """The files of a pattern with ranges in braces and wildcards, `train-{000..127}.tar` or `shards/*.tar`, in order.
    `DataError` when one of a range is missing, or nothing matches."""
    found = []
    for one in braces(pattern):
        if any(mark in one for mark in "*?["):
            found += sorted(map(Path, glob.glob(os.path.expanduser(one))))
        elif not (path := Path(one).expanduser()).is_file():
            raise DataError(f"there is no file {one!r}.")
        else:
            found.append(path)
    if not found:
        raise DataError(f"no file matches {pattern!r}.")
    return found


def open_listed(data: str) -> Source:
    """Return images that can be listed: one of the bundled sets in `BUNDLED`, a folder, tar shards (`train.tar`,
    `shards/*.tar`, `train-{0000..1023}.tar`), a Hugging Face dataset (`hf:OWNER/NAME`, `hf:OWNER/NAME:SPLIT`),
    parquet files of one (`part-*.parquet`), or a registered source by name or as JSON (`{"type": NAME, …}`)."""
    if data in BUNDLED:
        return _bundled(data)
    if data.startswith("{") and data.endswith("}") and '"type"' in data:
        return _registered(data)
    if data.isidentifier() and data in variants(Source):
        if Path(data).exists():
            raise DataError(f'{data!r} is a folder and a registered source; write ./{data}, or {{"type": "{data}"}}.')
        return _registered(json.dumps({"type": data}))
    if data.startswith("hf:") and not data.startswith("hf://"):
        name, _, split = data[3:].partition(":")
        return HubDataset(name, split or "train")
    if data.lower().endswith(".parquet"):
        expand(data)
        return HubDataset(data)
    if data.lower().endswith(".tar"):
        return Shards(tuple(expand(data)))
    return Folder(Path(data).expanduser())


def _registered(data: str) -> Source:
    try:
        described = json.loads(data)
    except ValueError as error:
        raise DataError(f"{data!r} is no JSON ({error}).") from error
    return parse(Source, described, "data")


def _bundled(name: str) -> TarFile:
    if name == "emoji-val":
        return TarFile(EMOJI / "val.tar")
    if name == "emoji":
        return TarFile(EMOJI / "train.tar")
    dev = frozenset(json.loads((EMOJI / "dev.json").read_text(encoding="utf-8")))
    return TarFile(EMOJI / "train.tar", only=dev) if name == "emoji-dev" else TarFile(EMOJI / "train.tar", without=dev)


def emoji_labels() -> dict[str, dict[str, str]]:
    """Of each bundled emoji by code points: its name, Unicode group and subgroup, and split."""
    return json.loads((EMOJI / "labels.json").read_text(encoding="utf-8"))


_MOST_NUMBERS = 10**6  # beyond it, numbers are names: a date, an identifier


def _classes(labels: set[str]) -> list[str]:
    """Class numbers stay what they are, so that all below the largest are classes too; other labels are names."""
    if all(label.isdecimal() for label in labels) and (largest := max(map(int, labels))) < _MOST_NUMBERS:
        return [str(number) for number in range(largest + 1)]
    return sorted(labels)


def _class_of(name: str) -> str:
    parts = Path(name).parts
    return parts[0] if len(parts) > 1 else ""


def identity(source: Source) -> dict[str, object]:
    """Which images these are: how many, and a checksum of their names."""
    if hasattr(source, "identity"):  # a stream's own
        return source.identity
    names = hashlib.sha256("\n".join(source.names).encode("utf-8", "surrogateescape")).hexdigest()
    return {"count": len(source.names), "names": names[:16]}
