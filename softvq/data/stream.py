"""Tar shards that are somewhere else: fetched whole, in a seeded order.

A listing of all images would mean reading all shards first, so the order is one of shards. A batch is cut into lanes;
each lane reads one shard at a time, in a random order, and the lanes share out every permutation of the shards. The
image of sample number p is then a function of the seed, p and how many images the lane's earlier shards hold. It is the
same for any number of ranks and workers, and a run resumes without reading earlier images again. A rank reads its own
lanes' shards only; one shard a lane is held at once.
"""

import json
import re
import threading
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image

from softvq.data.cache import ShardCache, default_cache, title_of
from softvq.data.images import open_image
from softvq.data.labels import UNLABELLED
from softvq.data.order import Reader
from softvq.data.shards import Entry, Shards, read_at
from softvq.data.sources import Columns, Source, Stamp
from softvq.errors import DataError, ImageError
from softvq.files import hashed
from softvq.randomness import Stream, rng

MOST_LANES = 16


@dataclass(frozen=True)
class ShardStream(Source):
    """The images of the shards at `urls`, in an endless order that knows nothing of the shards it has not come to.

    Names, classes and images by index are those of `listing`, which fetches all shards. Labels of streamed images are
    the numbers in `.cls` files, −1 where there are none.
    """

    urls: tuple[str, ...]
    cache: ShardCache
    columns: Columns | None = None

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

    def stamps(self) -> list[Stamp]:
        """Return the size of each image and the time of change of its shard, for which all shards are fetched."""
        return self._listed.stamps()

    @property
    def identity(self) -> dict[str, object]:
        """The number of shards and checksums of their addresses and sizes, the same for a run to be resumed."""
        sizes = [self.cache.size_of(url) for url in self.urls]
        contents = {"contents": hashed(json.dumps(sizes))} if None not in sizes else {}
        return {"shards": len(self.urls), "names": hashed("\n".join(self.urls)), **contents}

    def __len__(self) -> int:
        """Return about the number of images, estimated from the first shard."""
        return len(self.urls) * len(self.entries(self.urls[0]))

    def entries(self, url: str) -> list[Entry]:
        """Return the images of a shard."""
        return self.cache.entries(url, self.columns)[0]

    def listing(self, images: int | None = None) -> Shards:
        """Return the images of as many shards as it takes to have `images`, of all shards if None, fetched whole."""
        order = range(len(self.urls)) if images is None else _permutation(len(self.urls), 0, 0)
        paths, called, count = [], [], 0
        for number in order:
            paths.append(self.cache.fetch(self.urls[number]))
            called.append(title_of(self.urls[number]))
            count += len(self.entries(self.urls[number]))
            if images is not None and count >= images:
                break
        columns = self.columns or Columns()
        return Shards(tuple(paths), columns.image, columns.label, tuple(called))

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
            self._counts[url] = len(self.stream.entries(url))
        return self._counts[url]

    def _shard(self, lane: int, number: int) -> _Opened:
        """Return a lane's shard with its images in their order; coming to a shard starts the fetching of the next."""
        if lane not in self._open or self._open[lane].number != number:
            url = self._url(lane, number)
            entries = self.stream.entries(url)
            order = rng(self.seed, Stream.SHARD_CONTENTS, lane, number).permutation(len(entries))
            self._open[lane] = _Opened(number, url, entries, order)
            threading.Thread(target=self._ahead, args=(self._url(lane, number + 1),), daemon=True).start()
        return self._open[lane]

    def _ahead(self, url: str) -> None:
        with suppress(DataError, OSError):  # said when its turn comes
            self.stream.cache.fetch(url)

    def _image(self, url: str, entry: Entry) -> tuple[Image.Image, int]:
        label = int(entry.label) if (entry.label or "").isdecimal() else UNLABELLED
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


def open_stream(pattern: str, columns: Columns | None = None) -> ShardStream:
    """Return the shards of an address with ranges in braces, or wildcards where the protocol can list (s3, gs, hf)."""
    cache = default_cache()
    urls = [url for one in braces(pattern) for url in (_matching(one) if any(c in one for c in "*?[") else [one])]
    cache.look(tuple(urls))
    return ShardStream(tuple(urls), cache, columns)


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
