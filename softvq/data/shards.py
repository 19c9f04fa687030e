"""Tar shards of images as webdataset writes them, and the bundled emoji's tars: read in place, by offset."""

import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from softvq.config import register
from softvq.data.finding import HEAD, ImageFinder, is_hidden
from softvq.data.labels import class_of, folder_classes, label_classes, label_text, numbers_of
from softvq.data.sources import ByFolder, Columns, Source, Stamp, kinds_of
from softvq.errors import DataError, counted

_PACKED = {  # how files begin that are compressed
    b"\x1f\x8b": "compressed (gzip)",
    b"BZh": "compressed (bzip2)",
    b"\xfd7zXZ": "compressed (xz)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"PK": "a zip archive",
}


@dataclass(frozen=True)
class TarFile(ByFolder):
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

    def stamps(self) -> list[Stamp]:
        """Return the size of each image, and the time of change of the tar."""
        changed = self.path.stat().st_mtime_ns
        return [(size, changed) for _, _, size in self._entries]

    def read(self, index: int) -> bytes:
        """Return the bytes of an image, from its place in the tar."""
        _, offset, size = self._entries[index]
        return read_at(self.path, offset, size)


@dataclass(frozen=True)
class Entry:
    """An image in a tar shard: its name with the shard's, where its bytes are, and its label where it has one."""

    name: str
    offset: int
    size: int
    label: str | None


@register
@dataclass(frozen=True)
class Shards(Source):
    """Images in tar shards as webdataset writes them, read in place by offset.

    The name of a sample ends at the first dot, and what follows says what a file is: `key.jpg` has its class in
    `key.cls`, and class numbers are kept as they are. Without `.cls` files, folders inside the shards are classes.
    `image_column` and `label_column` are the endings of images and labels where these are others; `called` are the
    shards' names in those of the images.

    The shards are looked through once (their headers, not their images) at their first use; after that any image is one
    seek away, so that shuffling and resuming need neither a buffer nor a replay.
    """

    paths: tuple[Path, ...]
    image_column: str | None = None
    label_column: str | None = None
    called: tuple[str, ...] | None = None

    @cached_property
    def _looked(self) -> tuple[list[tuple[int, Entry]], dict[str, int]]:
        """The images, each with its shard's number, and the files left out."""
        entries, left_out = [], Counter()
        columns = Columns(self.image_column, self.label_column)
        for number, path in enumerate(self.paths):
            found, others = shard_entries(path, self.called[number] if self.called else path.name, columns)
            entries += [(number, entry) for entry in found]
            left_out.update(others)
        if not entries:
            held = f"; there are {kinds_of(left_out)}" if left_out else ""
            raise DataError(
                f"the {counted(len(self.paths), 'tar shard')} from {self.paths[0]} on hold no images{held}.",
                setting="image_column" if self.image_column else None,
            )
        return entries, dict(left_out)

    @property
    def _entries(self) -> list[tuple[int, Entry]]:
        return self._looked[0]

    @property
    def left_out(self) -> dict[str, int]:
        """The number of files of each ending that are neither images nor labels."""
        return self._looked[1]

    @cached_property
    def names(self) -> list[str]:
        """The names of the images, each with its shard's, in the order of the shards."""
        return [entry.name for _, entry in self._entries]

    @cached_property
    def _classes(self) -> list[str | None]:
        """The class of each image, as it is written: in its label or, where no image has one, as its folder."""
        labels = [entry.label for _, entry in self._entries]
        if self.label_column == "none":
            return [""] * len(labels)
        if any(label is not None for label in labels):
            return labels
        if self.label_column is not None:
            raise DataError(
                f"no image of {self.paths[0]} has a label in a file of the ending {self.label_column!r}.",
                setting="label_column",
            )
        folders = [class_of(entry.name.partition("/")[2]) for _, entry in self._entries]
        return [folder or None for folder in folders] if any(folders) else folders

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes: numbers up to the largest where all are numbers, else the labels, sorted."""
        known = {label for label in self._classes if label is not None}
        if all(entry.label is None for _, entry in self._entries):
            return folder_classes(known)
        return label_classes(known)

    @cached_property
    def labels(self) -> list[int]:
        """The class number of each image."""
        return numbers_of(self._classes, self.classes)

    def stamps(self) -> list[Stamp]:
        """Return the size of each image, and the time of change of its shard."""
        changed = [path.stat().st_mtime_ns for path in self.paths]
        return [(entry.size, changed[number]) for number, entry in self._entries]

    def read(self, index: int) -> bytes:
        """Return the bytes of an image, from its place in its shard."""
        number, entry = self._entries[index]
        return read_at(self.paths[number], entry.offset, entry.size)


def shard_entries(path: Path, shard: str, columns: Columns | None = None) -> tuple[list[Entry], dict[str, int]]:
    """Return the images of a tar shard that is called `shard`, and the number of files left out, by ending.

    Raise `DataError` where it is not clear which file of a sample is its image.
    """
    columns, finder = columns or Columns(), ImageFinder()
    samples: dict[str, dict[str, tuple[int, int, str]]] = {}
    for name, offset, size in tar_entries(path):
        if not is_hidden(name):
            folder, slash, base = name.rpartition("/")
            key, _, ending = base.partition(".")
            parts = samples.setdefault(folder + slash + key, {})
            if (same := parts.get(ending.lower())) is not None:
                raise DataError(f"{shard} has both {same[2]} and {name}: which of them counts is not clear.")
            parts[ending.lower()] = (offset, size, name)
    label = (columns.label or "cls").lower().removeprefix(".")
    wanted = columns.image and columns.image.lower().removeprefix(".")

    def images(sample: Mapping[str, tuple[int, int, str]]) -> list[str]:
        def head(offset: int, size: int) -> bytes:
            return read_at(path, offset, min(HEAD, size))

        others = (ending for ending in sample if ending != label)
        return [one for one in others if finder.is_image(sample[one][2], partial(head, *sample[one][:2]))]

    candidates = {key: images(sample) for key, sample in samples.items()}
    is_plain = any("." not in ending for endings in candidates.values() for ending in endings)
    entries = []
    for key, sample in samples.items():
        own = [
            ending for ending in candidates[key] if (ending == wanted if wanted else "." not in ending or not is_plain)
        ]
        if len(own) > 1:
            raise DataError(
                f"{shard}: the sample {key} has several images ({', '.join(own)}), for its name ends at the first dot; "
                "name the ending of the images.",
                setting="image_column",
            )
        for ending in candidates[key]:
            if ending not in own:
                finder.leave_out(f".{ending}")
        if own:
            offset, size, name = sample[own[0]]
            text = _text(read_at(path, *sample[label][:2])) if label in sample else None
            entries.append(Entry(f"{shard}/{name}", offset, size, label_text(text, f"{shard}/{name}")))
    return entries, finder.left_out


def _text(data: bytes) -> str:
    """Return the text of a label's file: UTF-8, or what Windows writes; other bytes are kept as they are."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "surrogateescape")


def tar_entries(path: Path) -> list[tuple[str, int, int]]:
    """Return name, offset and size of each file in a tar; `DataError` when it is none, is cut off, or goes on.

    Of several of a name the last counts, and a link is the file that it leads to (without one, it is empty).
    """
    entries: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = _plain(member.name)
                if member.isfile():
                    entries[name] = (member.offset_data, member.size)
                    links.pop(name, None)
                elif member.islnk() or member.issym():
                    folder = "" if member.islnk() else posixpath.dirname(name)
                    links[name] = _plain(posixpath.join(folder, member.linkname))
            end = tar.offset
    except tarfile.TarError as error:
        start = read_at(path, 0, 8)
        kind = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), None)
        what = f"is {kind}, and images in it cannot be read in place: unpack it" if kind else None
        raise DataError(f"{path} {what or f'is not a tar file, or is damaged ({error})'}.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    for name, target in links.items():
        for _ in range(40):  # of links to links, as systems follow them, who fear circles too
            target = links.get(target, target)
        entries[name] = entries.get(target, (0, 0))
    size = path.stat().st_size
    if cut := next((name for name, (offset, length) in entries.items() if offset + length > size), None):
        raise DataError(f"{path} is cut off inside {cut}.")
    if (rest := read_at(path, end, 2**20)).strip(b"\0"):
        is_other = rest.startswith(bytes(512)) and rest.lstrip(b"\0")[257:262] == b"ustar"
        begins = "another tar begins" if is_other else "it is cut off or damaged"
        raise DataError(f"{path}: after {counted(len(entries), 'file')} {begins}; make it again, as one whole tar.")
    return [(name, *place) for name, place in entries.items()]


def _plain(name: str) -> str:
    """Return a name in a tar without what leads out of it, as unpacking does: `./a`, `/a` and `../a` are `a`."""
    return re.sub(r"^(/|\.\./)+", "", posixpath.normpath(name))


def read_at(path: Path, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
