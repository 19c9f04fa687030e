"""The cache of shards: it stays small, and a shard that is written anew at its address is read anew."""

import json
import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from softvq.data import cache as caches
from softvq.data.cache import ShardCache
from softvq.data.opening import listing, open_source
from softvq.data.stream import ShardStream
from softvq.errors import ConfigError, DataError
from tests.data import test_stream
from tests.data.test_shards import encoded, write
from tests.data.test_stream import SIZES, Server, address, names

shards = test_stream.shards  # a fixture


def held(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.tar"):
        with suppress(FileNotFoundError):  # deleted to make room since it was listed
            total += path.stat().st_size
    return total


def test_a_download_is_tried_again(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fsspec

    opened, calls = fsspec.open, []

    def flaky(url: str, mode: str):
        if str(shards) not in url:  # what another test's thread reads ahead
            return opened(url, mode)
        calls.append(url)
        if len(calls) < 3:
            raise TimeoutError("no answer")
        return opened(url, mode)

    monkeypatch.setattr(fsspec, "open", flaky)
    monkeypatch.setattr(caches.time, "sleep", lambda _: None)
    cache = ShardCache(tmp_path / "again")
    assert cache.fetch(f"file://{shards}/0.tar").read_bytes() == (shards / "0.tar").read_bytes()
    assert len(calls) == 3
    calls[:] = [""] * -10
    monkeypatch.setattr(fsspec, "open", lambda *_: (_ for _ in ()).throw(TimeoutError("no answer")))
    with pytest.raises(DataError, match=r"1\.tar cannot be fetched \(TimeoutError: no answer\)"):
        cache.fetch(f"file://{shards}/1.tar")
    assert not list(cache.folder.glob("*.part"))


def test_what_is_known_of_a_shard_is_kept_as_json(shards: Path):
    names(address(shards), 2)
    [first, *_] = (shards.parent / "cache" / "shards").glob("*.json")
    known = json.loads(first.read_text())
    assert known["left_out"] == {}
    name, offset, size, label = known["images"][0]
    assert name.endswith(".png")
    assert offset > 0
    assert size > 0
    assert label.isdecimal()


def rewrite(shards: Path, change: str) -> None:
    """Write the third shard anew at its address: longer, or as long and later."""
    path = shards / "2.tar"
    before = path.stat()
    files = {f"2{image}.png": encoded(200 + image) for image in range(SIZES[2])}
    files |= {f"2{image}.cls": b"4" for image in range(SIZES[2])}
    more = {
        f"more{image}{end}": data for image in range(20) for end, data in ((".png", encoded(image)), (".cls", b"1"))
    }
    write(path, files | (more if change == "longer" else {}))
    assert (path.stat().st_size > before.st_size) == (change == "longer")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (10**9 if change == "later" else 0)))


def pixels(data: str) -> dict[str, tuple[bytes, int]]:
    source = listing(data)
    images = [source.image(number) for number in range(len(source.names))]
    return {name: (image.tobytes(), label) for name, (image, label) in zip(source.names, images, strict=True)}


@pytest.mark.parametrize("change", ["longer", "later"])
@pytest.mark.parametrize("evicted", [False, True])
def test_a_shard_that_is_written_anew_is_read_anew_with_its_index(shards: Path, change: str, evicted: bool):
    before = pixels(address(shards))
    rewrite(shards, change)
    if evicted:
        for path in (shards.parent / "cache" / "shards").glob("*.tar"):
            path.unlink()
    now = pixels(address(shards))
    assert [name for name in now if now[name] != before.get(name)] == [n for n in now if n.startswith("2.tar/")]
    assert now["2.tar/20.png"] == (Image.open(BytesIO(encoded(200))).convert("RGB").tobytes(), 4)
    assert now["0.tar/00.png"][1] == 0
    assert sorted(name for [name] in names(address(shards), len(now), batch_size=1)) == sorted(now)


@pytest.mark.parametrize("change", ["longer", "later"])
def test_a_shard_that_changes_during_a_run_stops_it(shards: Path, change: str):
    """A run that had its index would read other images under the old names."""
    order = open_source(address(shards)).order(1, seed=3)
    reads = dict(order.find(position) for position in range(sum(SIZES)))
    for name, read in reads.items():
        assert read()[1] == int(name[0])
    rewrite(shards, change)
    assert reads["2.tar/20.png"]()[1] == 2  # its copy is the state that it knows
    for path in (shards.parent / "cache" / "shards").glob("*.tar"):
        path.unlink()
    assert reads["1.tar/10.png"]()[1] == 1
    with pytest.raises(DataError, match=r"2\.tar has changed at its address since it was first looked at; begin anew"):
        reads["2.tar/20.png"]()


def test_without_the_address_the_newest_copy_is_read(shards: Path):
    pytest.importorskip("aiohttp")
    with Server(shards) as server:
        data = f"{server.url}/{{0..4}}.tar"
        before, identity = pixels(data), open_source(data).identity
        rewrite(shards, "longer")
        now = pixels(data)
        assert now != before
        assert open_source(data).identity != identity
    assert pixels(data) == now
    assert open_source(data).identity == {**identity, "contents": open_source(data).identity["contents"]}


def test_a_run_knows_the_sizes_of_its_shards(shards: Path):
    before = open_source(address(shards)).identity
    assert open_source(address(shards)).identity == before
    rewrite(shards, "later")
    assert open_source(address(shards)).identity == before
    rewrite(shards, "longer")
    assert open_source(address(shards)).identity != before


def test_what_is_used_now_stays_in_the_cache_and_its_time_of_change_is_kept(shards: Path):
    cache = open_source(address(shards)).cache
    path = cache.fetch(f"file://{shards}/0.tar")
    os.utime(path, ns=(0, 5 * 10**9))
    cache.fetch(f"file://{shards}/0.tar")
    assert path.stat().st_mtime_ns == 5 * 10**9
    assert path.stat().st_atime_ns > 5 * 10**9


@pytest.mark.parametrize("size", ["nan", "-1", "0", "inf", "much"])
def test_a_size_of_the_cache_that_is_none_is_refused(shards: Path, monkeypatch: pytest.MonkeyPatch, size: str):
    monkeypatch.setenv("SOFTVQ_CACHE_GB", size)
    with pytest.raises(ConfigError, match=f"SOFTVQ_CACHE_GB must be a number of gigabytes above 0, not '{size}'"):
        open_source(address(shards))


def test_without_a_home_folder_the_cache_needs_one(shards: Path, monkeypatch: pytest.MonkeyPatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(caches.Path, "home", no_home)
    assert open_source(address(shards)).cache.folder == shards.parent / "cache" / "shards"
    monkeypatch.delenv("SOFTVQ_CACHE")
    with pytest.raises(ConfigError, match=r"there is no home folder .* set SOFTVQ_CACHE"):
        open_source(address(shards))


def test_the_cache_stays_below_its_limit(shards: Path, monkeypatch: pytest.MonkeyPatch):
    expected = names(address(shards), 40, batch_size=1)
    largest = max(path.stat().st_size for path in shards.glob("*.tar"))
    cache = ShardCache(shards.parent / "small", limit=2 * largest)
    order = ShardStream(open_source(address(shards)).urls, cache).order(1, seed=3)
    found = []
    for position in range(40):
        name, read = order.find(position, 0)
        image, label = read()
        assert (image.size, image.mode) == ((24, 20), "RGB")
        assert label == int(name[0])
        found.append([name])
        assert held(cache.folder) <= cache.limit
    assert found == expected
