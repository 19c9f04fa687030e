"""A bounded cache on disk of tar shards that are somewhere else.

A shard is known by its address and its state there (size, ETag, time of change): one that is written anew is another
shard, with an index of its own.
"""

import json
import math
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock

from softvq.data.shards import Entry, shard_entries
from softvq.data.sources import Columns
from softvq.errors import ConfigError, DataError
from softvq.files import atomic, hashed, write_text

_TRIES = 4  # of a download, with pauses of 1, 2 and 4 s between them
_STATE = ("size", "ETag", "etag", "e_tag", "Last-Modified", "LastModified", "last_modified", "mtime", "updated")
_STATE += ("Content-MD5", "Digest", "md5Hash", "crc32c", "generation", "version_id", "versionId", "blob_id")
UNKNOWN = "{}"  # the state of a shard whose address says nothing of it
_SHARED = 0o666  # the mode of locks, which several users of a cache open


@dataclass(frozen=True)
class ShardCache:
    """A cache of shards by address and state, each fetched once; beyond `limit` bytes the longest unused are deleted.

    The names, places and classes of a shard's images are kept when the shard is not. `states` are those that shards
    were in when they were first asked for, by address: a shard that has changed since is refused.
    """

    folder: Path
    limit: int = 200 * 10**9
    states: dict[str, str] = field(default_factory=dict)

    def look(self, urls: tuple[str, ...]) -> None:
        """Ask the addresses for the states of their shards, several at a time."""
        with ThreadPoolExecutor(16) as pool:
            self.states.update(zip(urls, pool.map(self._state, urls), strict=True))

    def _state(self, url: str) -> str:
        """Return the state of a shard at its address; that of the newest copy where the address does not answer."""
        try:
            return _state_of(url)
        except Exception as error:  # each protocol raises its own; with no copy here, fetching it says why
            if _is_missing(error):
                raise DataError(f"there is no shard {url}.") from None
            copies = [path for path in self.folder.glob(f"{hashed(url, 24)}-*.tar") if path.is_file()]
            newest = max(copies, key=lambda path: path.stat().st_mtime, default=None)
            return UNKNOWN if newest is None else f"copy {newest.stem.partition('-')[2]}"

    def fetch(self, url: str) -> Path:
        """Return the local copy of a shard; `DataError` when it cannot be had, or has changed at its address.

        Processes of a machine wait for one another.
        """
        path = self._path(url, ".tar")
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock"), mode=_SHARED):
                if not path.is_file():
                    self._fetch(url, path)
        with suppress(OSError):  # another user's, or deleted to make room
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # used just now, but not changed
        return path

    def _fetch(self, url: str, path: Path) -> None:
        state, size = self.states[url], self.size_of(url)
        with ExitStack() as room, atomic(path, size or 0) as partial:
            _download(url, partial)
            held = partial.stat().st_size
            if (state != UNKNOWN and _now(url) != state) or (isinstance(size, int) and held != size):
                raise DataError(f"{url} has changed at its address since it was first looked at; begin anew.")
            room.enter_context(FileLock(self.folder / "room.lock", mode=_SHARED))  # until it is in its place
            self._make_room(held)

    def size_of(self, url: str) -> int | None:
        """Return the number of bytes of a shard as its address says, or as those of its copy; None if unknown."""
        path = self._path(url, ".tar")
        if not self.states[url].startswith("{"):
            return path.stat().st_size if path.is_file() else None
        return json.loads(self.states[url]).get("size")

    def entries(self, url: str, columns: Columns | None = None) -> tuple[list[Entry], dict[str, int]]:
        """Return a shard's images, and the files left out, from an earlier look at it where there was one."""
        parts = {name: part for name, part in asdict(columns or Columns()).items() if part is not None}
        path = self._path(url, f"-{hashed(json.dumps(parts), 8)}.json" if parts else ".json")
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            return [Entry(*entry) for entry in known["images"]], known["left_out"]
        entries, left_out = shard_entries(self.fetch(url), title_of(url), columns)
        images = [[e.name, e.offset, e.size, e.label] for e in entries]
        write_text(path, json.dumps({"images": images, "left_out": left_out}))
        return entries, left_out

    def _path(self, url: str, suffix: str) -> Path:
        if url not in self.states:
            self.states[url] = self._state(url)
        state = self.states[url]
        held = state.removeprefix("copy ") if state.startswith("copy ") else hashed(state, 8)
        return self.folder / f"{hashed(url, 24)}-{held}{suffix}"

    def _make_room(self, size: int) -> None:
        """Delete the longest unused shards until `size` bytes more are within the limit."""
        shards = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # another process made room too
                shards.append((path.stat().st_atime_ns, path.stat().st_size, path))
        held = sum(held for _, held, _ in shards)
        for _, freed, path in sorted(shards):
            if held + size > self.limit:
                with suppress(PermissionError):  # another user's, who alone may delete it
                    path.unlink(missing_ok=True)
                    held -= freed


def title_of(url: str) -> str:
    """Return a shard's name, the last part of its address."""
    return url.rsplit("/", 1)[-1]


def _state_of(url: str) -> str:
    """Return what an address says of its shard's state, as JSON; `FileNotFoundError` when there is none."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    system.invalidate_cache()  # a listing may be older than the shard
    told = system.info(path)
    return json.dumps({name: told[name] for name in _STATE if told.get(name) is not None}, default=str, sort_keys=True)


def _is_missing(error: Exception) -> bool:
    """Return True when an address says that it has no such file; fsspec says it too where no address answers."""
    cause = error.__cause__
    gone = cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in (404, 410)
    return isinstance(error, FileNotFoundError) and gone


def _now(url: str) -> str | None:
    with suppress(Exception):  # each protocol raises its own
        return _state_of(url)
    return None


def _download(url: str, path: Path) -> None:
    import fsspec

    for attempt in range(_TRIES):
        try:
            with fsspec.open(url, "rb") as remote, path.open("wb") as local:
                shutil.copyfileobj(remote, local, 2**22)
            return
        except ImportError as error:
            raise DataError(f"reading {url} needs a package: {error}") from None
        except ValueError as error:  # a protocol that fsspec does not know
            raise DataError(f"{url} cannot be read ({error}).") from None
        except Exception as error:  # each protocol raises its own
            if _is_missing(error):
                raise DataError(f"there is no shard {url}.") from None
            if attempt == _TRIES - 1:
                reason = error.__cause__ if isinstance(error, FileNotFoundError) else error
                raise DataError(f"{url} cannot be fetched ({type(reason).__name__}: {reason}).") from error
            time.sleep(2**attempt)


def default_cache() -> ShardCache:
    """Return the cache in the folder and of the size that the environment says: SOFTVQ_CACHE, SOFTVQ_CACHE_GB."""
    return ShardCache(_cache_folder() / "shards", _cache_bytes())


def _cache_folder() -> Path:
    if folder := os.environ.get("SOFTVQ_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "softvq"
    except RuntimeError:
        raise ConfigError("there is no home folder for the cache of shards; set SOFTVQ_CACHE to a folder.") from None


def _cache_bytes() -> int:
    text = os.environ.get("SOFTVQ_CACHE_GB") or "200"
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not (0 < size < math.inf):
        raise ConfigError(f"SOFTVQ_CACHE_GB must be a number of gigabytes above 0, not {text!r}.")
    return int(size * 1e9)
