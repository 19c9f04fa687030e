"""Tar shards that are somewhere else: fetched whole, in a seeded order, into a bounded cache on disk.

A listing of all images would mean reading all shards first, so the order is one of shards. A batch is cut into lanes;
each lane reads one shard at a time, in a random order, and the lanes share out every permutation of the shards. The
image of sample number p is then a function of the seed, p and how many images the lane's earlier shards hold. It is the
same for any number of ranks and workers, and a run resumes without reading earlier images again. A rank reads its own
lanes' shards only; one shard a lane is held at once.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from bisect import bisect_right
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from softvq.data.images import open_image
from softvq.data.order import Reader
from softvq.data.sources import Entry, Shards, Source, read_at, shard_entries
from softvq.errors import DataError, ImageError
from softvq.files import atomic, write_text
from softvq.randomness import Stream, rng

MOST_LANES = 16
_TRIES = 4  # of a download, with pauses of 1, 2 and 4 s between them


@dataclass(frozen=True)
class ShardCache:
    """A cache of shards by address, each fetched once; beyond `limit` bytes the longest unused are deleted.

    The names, places and classes of a shard's images are kept when the shard is not.
    """

    folder: Path
    limit: int = 200 * 10**9

    def fetch(self, url: str) -> Path:
        """Return the local copy of a shard; `DataError` when it cannot be had.

        Processes of a machine wait for one another.
        """
        path = self._path(url, ".tar")
        if path.is_file():
            os.utime(path)  # used just now
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                with ExitStack() as room, atomic(path) as partial:
                    _download(url, partial)
                    room.enter_context(FileLock(self.folder / "room.lock"))  # until the shard is in its place
                    self._make_room(partial.stat().st_size)
        return path

    def entries(self, url: str) -> list[Entry]:
        """Return the images of a shard, from an earlier look at it where there was one."""
        path = self._path(url, ".json")
        if path.is_file():
            return [Entry(*entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        entries = shard_entries(self.fetch(url), url.rsplit("/", 1)[-1])
        write_text(path, json.dumps([[e.name, e.offset, e.size, e.label] for e in entries]))
        return entries

    def _path(self, url: str, suffix: str) -> Path:
        return self.folder / (hashlib.sha256(url.encode()).hexdigest()[:24] + suffix)

    def _make_room(self, size: int) -> None:
        """Delete the longest unused shards until `size` bytes more are within the limit."""
        shards = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # another process made room too
                shards.append((path.stat().st_mtime, path.stat().st_size, path))
        held = sum(held for _, held, _ in shards)
        for _, freed, path in sorted(shards):
            if held + size > self.limit:
                held -= freed
                path.unlink(missing_ok=True)


def _download(url: str, path: Path) -> None:
    import fsspec

    for attempt in range(_TRIES):
        try:
            with fsspec.open(url, "rb") as remote, path.open("wb") as local:
                shutil.copyfileobj(remote, local, 2**22)
            return
        except ImportError as error:
            raise DataError(f"reading {url} needs a package: {error}") from None
        except FileNotFoundError:
            raise DataError(f"there is no shard {url}.") from None
        except ValueError as error:  # a protocol that fsspec does not know
            raise DataError(f"{url} cannot be read ({error}).") from None
        except Exception as error:  # each protocol raises its own
            if attempt == _TRIES - 1:
                raise DataError(f"{url} cannot be fetched ({type(error).__name__}: {error}).") from error
            time.sleep(2**attempt)


@dataclass(frozen=True)
class ShardStream(Source):
    """The images of the shards at `urls`, in an endless order that knows nothing of the shards it has not come to.

    Names, classes and images by index are those of `listing`, which fetches all shards. Labels of streamed images are
    the numbers in `.cls` files, −1 where there are none.
    """

    urls: tuple[str, ...]
    cache: ShardCache

    @cached_property
    def _listed(self) -> Shards:
        return self.listing()

    @property
    def names(self) -> list[str]:
        """The names of all images, for which all shards are fetched."""
        return self._listed.names

    @property
    def labels(self) -> list[int]:
        """The class number of each image, for which all shards are fetched."""
        return self._listed.labels

    @property
    def classes(self) -> list[str]:
        """The names of the classes, for which all shards are fetched."""
        return self._listed.classes

    def read(self, index: int) -> bytes:
        """Return the bytes of an image by its index in `listing`, for which all shards are fetched."""
        return self._listed.read(index)

    @property
    def identity(self) -> dict[str, object]:
        """The number of shards and a checksum of their addresses, which must be the same for a run to be resumed."""
        return {"shards": len(self.urls), "names": hashlib.sha256("\n".join(self.urls).encode()).hexdigest()[:16]}

    def __len__(self) -> int:
        """Return about the number of images, estimated from the first shard."""
        return len(self.urls) * len(self.cache.entries(self.urls[0]))

    def listing(self, images: int | None = None) -> Shards:
        """Return the images of as many shards as it takes to have `images`, of all shards if None, fetched whole."""
        order = range(len(self.urls)) if images is None else _permutation(len(self.urls), 0, 0)
        paths, count = [], 0
        for number in order:
            paths.append(self.cache.fetch(self.urls[number]))
            count += len(self.cache.entries(self.urls[number]))
            if images is not None and count >= images:
                break
        return Shards(tuple(paths))

    def order(self, batch_size: int, seed: int) -> "StreamOrder":
        """Return the order in which a run of this batch size reads the images."""
        lanes = max(n for n in range(1, MOST_LANES + 1) if batch_size % n == 0)
        return StreamOrder(self, batch_size, seed, lanes)


@dataclass(frozen=True)
class _Opened:
    number: int
    url: str
    entries: list[Entry]
    order: np.ndarray


@dataclass
class StreamOrder:
    """The order of a stream: sample number → image.

    Lane ℓ's j-th shard is number j · lanes + ℓ of the endless series of permutations of the shards, and the images of
    each are permuted anew each time.
    """

    stream: ShardStream
    batch_size: int
    seed: int
    lanes: int
    _ends: dict[int, list[int]] = field(default_factory=dict)  # of each lane: where its shards end, in lane positions
    _counts: dict[str, int] = field(default_factory=dict)
    _open: dict[int, "_Opened"] = field(default_factory=dict)  # of each lane: its shard now

    def place(self, position: int) -> tuple[int, int]:
        """Return the lane of a sample number, and the position within it."""
        step, within = divmod(position, self.batch_size)
        share = self.batch_size // self.lanes
        lane, offset = divmod(within, share)
        return lane, step * share + offset

    def find(self, position: int, attempt: int = 0) -> tuple[str, Reader]:
        """Return name and reader of a sample; after `attempt` unreadable ones, of the image that many places on."""
        lane, place = self.place(position)
        ends = self._ends.setdefault(lane, [])
        while not ends or ends[-1] <= place:
            before = ends[-1] if ends else 0
            ends.append(before + self._count(self._url(lane, len(ends))))
            if len(ends) >= 2 * len(self.stream.urls) and ends[-1] == 0:
                raise DataError(f"the {len(self.stream.urls)} shards from {self.stream.urls[0]} on hold no images.")
        number = bisect_right(ends, place)
        shard = self._shard(lane, number)
        first = ends[number - 1] if number else 0
        entry = shard.entries[shard.order[(place - first + attempt) % len(shard.entries)]]
        return entry.name, lambda: self._image(shard.url, entry)

    def _url(self, lane: int, number: int) -> str:
        shards = len(self.stream.urls)
        epoch, index = divmod(number * self.lanes + lane, shards)
        return self.stream.urls[_permutation(shards, self.seed, epoch)[index]]

    def _count(self, url: str) -> int:
        if url not in self._counts:
            self._counts[url] = len(self.stream.cache.entries(url))
        return self._counts[url]

    def _shard(self, lane: int, number: int) -> _Opened:
        """Return a lane's shard with its images in their order; coming to a shard starts the fetching of the next."""
        if lane not in self._open or self._open[lane].number != number:
            url = self._url(lane, number)
            entries = self.stream.cache.entries(url)
            order = rng(self.seed, Stream.SHARD_CONTENTS, lane, number).permutation(len(entries))
            self._open[lane] = _Opened(number, url, entries, order)
            threading.Thread(target=self._ahead, args=(self._url(lane, number + 1),), daemon=True).start()
        return self._open[lane]

    def _ahead(self, url: str) -> None:
        with suppress(DataError, OSError):  # said when its turn comes
            self.stream.cache.fetch(url)

    def _image(self, url: str, entry: Entry) -> tuple[Image.Image, int]:
        label = int(entry.label) if entry.label.isdecimal() else -1
        try:
            return open_image(self._read(url, entry), entry.name), label
        except OSError as error:
            raise ImageError(f"{entry.name} cannot be read ({error.strerror}).") from error

    def _read(self, url: str, entry: Entry) -> bytes:
        for _ in range(2):
            try:
                return read_at(self.stream.cache.fetch(url), entry.offset, entry.size)
            except FileNotFoundError:  # deleted to make room since it was fetched
                continue
        raise DataError(
            "the cache of shards is too small for the shards in use; set SOFTVQ_CACHE_GB to more than 16 shards."
        )


@lru_cache(8)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return rng(seed, Stream.SHARD_ORDER, epoch).permutation(length)


def braces(pattern: str) -> list[str]:
    """Return a pattern with a range, `train-{000..127}.tar`, written out; any other pattern as it is."""
    if not (match := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)):
        return [pattern]
    first, last = match.groups()
    numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return [one for n in numbers for one in braces(pattern[: match.start()] + n + pattern[match.end() :])]


def open_stream(pattern: str) -> ShardStream:
    """Return the shards of an address with ranges in braces, or wildcards where the protocol can list (s3, gs, hf)."""
    folder = Path(os.environ.get("SOFTVQ_CACHE", Path.home() / ".cache" / "softvq"))
    cache = ShardCache(folder / "shards", int(float(os.environ.get("SOFTVQ_CACHE_GB", 200)) * 1e9))
    urls = [url for one in braces(pattern) for url in (_matching(one) if any(c in one for c in "*?[") else [one])]
    return ShardStream(tuple(urls), cache)


def _matching(pattern: str) -> list[str]:
    import fsspec

    try:
        system, _, paths = fsspec.get_fs_token_paths(pattern)
    except Exception as error:  # each protocol raises its own
        raise DataError(
            f"{pattern} cannot be listed ({type(error).__name__}: {error}); use a range {{000..127}}."
        ) from error
    if not paths:
        raise DataError(f"no shard matches {pattern!r}.")
    return [system.unstrip_protocol(path) for path in sorted(paths)]
