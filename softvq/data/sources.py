"""Where images come from: folders, tar shards, and the emoji that ship with the package.

A source has a length, names, classes, and `read(index)`: the encoded bytes. Sources are small and picklable; files are
opened by the process that reads them.
"""

import glob
import json
import os
import re
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from softvq.data.images import EXTENSIONS

EMOJI = Path(__file__).parent.parent / "assets" / "emoji"


class DataError(ValueError):
    """Data that cannot be used; the message is one sentence for the user."""


@runtime_checkable
class Source(Protocol):
    """A list of encoded images with class labels."""

    names: list[str]
    labels: list[int]
    classes: list[str]

    def read(self, index: int) -> bytes: ...


class _ByFolder:
    """Classes from names: the first folder of each is its class; names without a folder are one class."""

    names: list[str]

    @cached_property
    def classes(self) -> list[str]:
        return sorted({_class_of(name) for name in self.names})

    @cached_property
    def labels(self) -> list[int]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers[_class_of(name)] for name in self.names]


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
    """A tar of `class/name` images, read in place by offset: the bundled emoji."""

    path: Path

    @cached_property
    def _entries(self) -> list[tuple[str, int, int]]:
        return sorted(tar_entries(self.path))

    @cached_property
    def names(self) -> list[str]:
        return [name for name, _, _ in self._entries]

    def read(self, index: int) -> bytes:
        _, offset, size = self._entries[index]
        return _read_at(self.path, offset, size)


@dataclass(frozen=True)
class Shards:
    """Images in tar shards as webdataset writes them: `key.jpg` with its class number in `key.cls` beside it, read in
    place by offset. Without `.cls` files, folders inside the shards are classes.

    The shards are looked through once (their headers, not their images) when the source is opened; after that any
    image is one seek away, so that shuffling and resuming need neither a buffer nor a replay.
    """

    paths: tuple[Path, ...]

    @cached_property
    def _entries(self) -> list[tuple[int, str, int, int, str]]:
        """Of each image: its shard, name, offset, size and class."""
        found = []
        for number, path in enumerate(self.paths):
            entries = tar_entries(path)
            marks = {name[:-4]: (offset, size) for name, offset, size in entries if name.endswith(".cls")}
            for name, offset, size in entries:
                if name.lower().endswith(EXTENSIONS):
                    mark = marks.get(name.rsplit(".", 1)[0])
                    label = _read_at(path, *mark).decode(errors="replace").strip() if mark else _class_of(name)
                    found.append((number, name, offset, size, label))
        if not found:
            raise DataError(f"the {len(self.paths)} tar shards from {self.paths[0]} on hold no images.")
        return found

    @cached_property
    def names(self) -> list[str]:
        return [f"{self.paths[number].name}/{name}" for number, name, *_ in self._entries]

    @cached_property
    def classes(self) -> list[str]:
        found = {label for *_, label in self._entries}
        return sorted(found, key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else 0, label))

    @cached_property
    def labels(self) -> list[int]:
        numbers = {label: number for number, label in enumerate(self.classes)}
        return [numbers[label] for *_, label in self._entries]

    def read(self, index: int) -> bytes:
        number, _, offset, size, _ = self._entries[index]
        return _read_at(self.paths[number], offset, size)


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


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def expand(pattern: str) -> list[Path]:
    """The files of a pattern with ranges in braces and wildcards, `train-{000..127}.tar` or `shards/*.tar`, in order.
    `DataError` when one of a range is missing, or nothing matches."""
    if found := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = found.groups()
        numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        return [path for n in numbers for path in expand(pattern[: found.start()] + n + pattern[found.end() :])]
    if any(mark in pattern for mark in "*?["):
        paths = sorted(map(Path, glob.glob(os.path.expanduser(pattern))))
        if not paths:
            raise DataError(f"no file matches {pattern!r}.")
        return paths
    path = Path(pattern).expanduser()
    if not path.is_file():
        raise DataError(f"there is no tar shard {pattern!r}.")
    return [path]


def open_source(data: str) -> Folder | TarFile | Shards:
    """`emoji` (the bundled training images), `emoji-val` (the bundled validation images), a folder, or tar shards:
    `train.tar`, `shards/*.tar`, `train-{0000..1023}.tar`."""
    if data in ("emoji", "emoji-val"):
        return TarFile(EMOJI / ("train.tar" if data == "emoji" else "val.tar"))
    if data.lower().endswith(".tar"):
        return Shards(tuple(expand(data)))
    return Folder(Path(data).expanduser())


def emoji_labels() -> dict[str, dict[str, str]]:
    """Of each bundled emoji by code points: its name, Unicode group and subgroup, and split."""
    return json.loads((EMOJI / "labels.json").read_text(encoding="utf-8"))


def _class_of(name: str) -> str:
    parts = Path(name).parts
    return parts[0] if len(parts) > 1 else ""
