"""Where images come from: folders, and the emoji that ship with the package.

A source has a length, names, classes, and `read(index)`: the encoded bytes. Sources are small and picklable; files are
opened by the process that reads them.
"""

import json
import os
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
        with tarfile.open(self.path) as tar:
            return sorted((m.name, m.offset_data, m.size) for m in tar if m.isfile())

    @cached_property
    def names(self) -> list[str]:
        return [name for name, _, _ in self._entries]

    def read(self, index: int) -> bytes:
        _, offset, size = self._entries[index]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def open_source(data: str) -> Folder | TarFile:
    """`emoji` (the bundled training images), `emoji-val` (the bundled validation images), or a folder."""
    if data in ("emoji", "emoji-val"):
        return TarFile(EMOJI / ("train.tar" if data == "emoji" else "val.tar"))
    return Folder(Path(data).expanduser())


def emoji_labels() -> dict[str, dict[str, str]]:
    """Of each bundled emoji by code points: its name, Unicode group and subgroup, and split."""
    return json.loads((EMOJI / "labels.json").read_text(encoding="utf-8"))


def _class_of(name: str) -> str:
    parts = Path(name).parts
    return parts[0] if len(parts) > 1 else ""
