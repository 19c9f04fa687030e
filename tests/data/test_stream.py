"""Shards that are streamed: which image is which sample number, and a cache that stays small."""

import itertools
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from softvq import distributed
from softvq.data.images import Augment
from softvq.data.loader import training_batches
from softvq.data.opening import listing, open_source
from softvq.errors import DataError
from tests.data.test_shards import encoded, write

SIZES = (5, 3, 7, 4, 6)  # images of each shard


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTVQ_CACHE", str(tmp_path / "cache"))
    for number, size in enumerate(SIZES):
        files: dict[str, bytes] = {}
        for image in range(size):
            files[f"{number}{image}.png"] = encoded(40 * number + image)
            files[f"{number}{image}.cls"] = str(number).encode()
        write(tmp_path / "shards" / f"{number}.tar", files)
    return tmp_path / "shards"


def address(shards: Path) -> str:
    return f"file://{shards}/{{0..4}}.tar"


def names(data: str, steps: int, *, start: int = 0, workers: int = 0, batch_size: int = 4) -> list[list[str]]:
    batches = training_batches(
        open_source(data),
        size=16,
        batch_size=batch_size,
        augment=Augment(),
        seed=3,
        start_step=start,
        workers=workers,
    )
    return [batch.names for batch in itertools.islice(batches, steps)]


def test_every_image_comes_equally_often_with_its_class(shards: Path):
    batches = training_batches(
        open_source(address(shards)), size=16, batch_size=1, augment=Augment(), seed=0, workers=0
    )
    read = [
        (name, int(label)) for b in itertools.islice(batches, 75) for name, label in zip(b.names, b.labels, strict=True)
    ]
    assert set(Counter(name for name, _ in read).values()) == {3}  # one lane: three whole epochs
    assert all(int(name[0]) == label for name, label in read)
    assert [name for name, _ in read[:25]] != [name for name, _ in read[25:50]]


def test_lanes_share_the_shards_of_an_epoch(shards: Path):
    order = open_source(address(shards)).order(20, seed=0)
    assert order.lanes == 10
    walked, places = [], [0] * 10
    for _ in range(3):
        for lane, place in enumerate(places):  # at the first image of its next shard
            step, offset = divmod(place, 2)
            position = 20 * step + 2 * lane + offset
            assert order.place(position) == (lane, place)
            name, _ = order.find(position)
            number = int(name[0])
            walked.append(order.stream.urls[number])
            places[lane] += SIZES[number]
    for epoch in range(6):
        assert sorted(walked[5 * epoch : 5 * epoch + 5]) == list(order.stream.urls)


def test_shuffled_within_a_shard_and_across(shards: Path):
    epoch = [name for [name] in names(address(shards), 25, batch_size=1)]
    assert epoch != sorted(epoch)
    first = [name for name in epoch if name.startswith("2.tar")]
    assert first != sorted(first)


def test_workers_do_not_change_the_order(shards: Path):
    assert names(address(shards), 12, workers=2) == names(address(shards), 12)


class Server:
    """The files of a folder over HTTP; `fetched`: the names of those that were asked for, as often as they were."""

    def __init__(self, folder: Path):
        self.fetched: list[str] = []
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                server.fetched.append(self.path.removeprefix("/"))
                super().do_GET()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Server":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_a_resumed_run_reads_no_shard_again(shards: Path):
    """Four lanes have gone through 36 shards of two images: those that they are at are fetched, once, and the next of
    each ahead."""
    pytest.importorskip("aiohttp")
    for number in range(24):
        write(shards / "many" / f"{number}.tar", {f"{i}.png": encoded(9 * number + i) for i in range(2)})
    with Server(shards / "many") as server:
        data = f"{server.url}/{{0..23}}.tar"
        whole = names(data, 20)
        assert set(server.fetched) == {f"{number}.tar" for number in range(24)}
        for path in (shards.parent / "cache" / "shards").glob("*.tar"):
            path.unlink()
        server.fetched.clear()
        assert names(data, 1, start=18) == whole[18:19]
        read = {name.split("/")[0] for name in whole[18]}
        assert read <= set(server.fetched)
        assert len(set(server.fetched)) == len(server.fetched) <= 4 + 4


def test_a_resume_where_nothing_is_cached_is_the_same(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = names(address(shards), 30)
    monkeypatch.setenv("SOFTVQ_CACHE", str(tmp_path / "elsewhere"))
    assert names(address(shards), 5, start=25) == whole[25:]


def test_two_ranks_read_what_one_does_and_each_its_own_lanes(shards: Path, monkeypatch: pytest.MonkeyPatch):
    whole = names(address(shards), 10)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        halves.append(names(address(shards), 10))
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_over_http(shards: Path):
    pytest.importorskip("aiohttp")
    with Server(shards) as server:
        assert names(f"{server.url}/{{0..4}}.tar", 6) == names(address(shards), 6)
        with pytest.raises(DataError, match=r"there is no shard http.*/9\.tar"):
            names(f"{server.url}/9.tar", 1)


def test_bad_images_are_named_and_replaced_and_shards_without_any_are_a_sentence(shards: Path):
    write(shards / "5.tar", {"a.png": b"no image", "b.png": encoded(7)})
    batches = training_batches(
        open_source(f"file://{shards}/5.tar"), size=16, batch_size=2, augment=Augment(), seed=1, workers=0
    )
    batch = next(batches)
    assert batch.names == ["5.tar/b.png"] * 2
    assert list(batch.bad) == ["5.tar/a.png"]
    write(shards / "6.tar", {"a.png": b"no image"})
    with pytest.raises(DataError, match="none of the 1 image can be read"):
        names(f"file://{shards}/6.tar", 1)
    write(shards / "7.tar", {"readme.txt": b""})
    with pytest.raises(DataError, match="hold no images"):
        names(f"file://{shards}/7.tar", 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("https://example.org/images/", "names no tar shards"),
        ("nothing://bucket/a.tar", "Protocol not known"),
        ("file:///nowhere/a.tar", "there is no shard"),
    ],
)
def test_addresses_that_cannot_be_read_are_a_sentence(data: str, reason: str, shards: Path):
    with pytest.raises(DataError, match=reason):
        names(data, 1)


def test_a_listing_holds_as_many_images_as_asked_for(shards: Path):
    assert len(listing(address(shards)).names) == sum(SIZES)
    few = listing(address(shards), 4)
    assert 4 <= len(few.names) < sum(SIZES)
    assert few.labels


def test_wildcards_where_the_protocol_can_list(shards: Path):
    assert [url.rsplit("/", 1)[1] for url in open_source(f"file://{shards}/*.tar").urls] == [
        f"{i}.tar" for i in range(5)
    ]
    with pytest.raises(DataError, match="no shard matches"):
        open_source(f"file://{shards}/x*.tar")
