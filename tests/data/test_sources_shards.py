"""Tar shards as webdataset writes them: read in place, in any order, with their classes."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softvq.data.images import Augment
from softvq.data.loader import training_batches
from softvq.data.opening import expand, open_source
from softvq.data.sources import Shards
from softvq.errors import DataError


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), value, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of four images, of the classes 2, 10 and 7, with other files between them."""
    for shard in range(3):
        files: dict[str, bytes] = {}
        for number in range(4):
            key = f"{4 * shard + number:06d}"
            files[f"{key}.cls"] = str((2, 10, 7)[number % 3]).encode() + b"\n"
            files[f"{key}.png"] = encoded(20 * (4 * shard + number))
            files[f"{key}.json"] = b"{}"
        write(tmp_path / f"train-{shard:02d}.tar", files)
    return tmp_path


def test_every_image_is_read_in_place_with_its_class(shards: Path):
    source = open_source(str(shards / "train-{00..02}.tar"))
    assert isinstance(source, Shards)
    assert len(source.names) == len(source.labels) == 12
    assert source.names[5] == "train-01.tar/000005.png"
    assert source.classes == [str(number) for number in range(11)]
    assert source.labels == [2, 10, 7, 2] * 3  # class numbers stay what they are
    for index in (11, 0, 5):
        assert source.read(index) == encoded(20 * index)
    again = pickle.loads(pickle.dumps(source))  # as a worker gets it
    assert again.read(7) == encoded(140)


def test_without_cls_files_folders_are_classes(tmp_path: Path):
    write(tmp_path / "a.tar", {"dog/1.png": encoded(1), "cat/2.png": encoded(2)})
    source = open_source(str(tmp_path / "a.tar"))
    assert source.classes == ["cat", "dog"]
    assert source.labels == [1, 0]


def test_patterns(shards: Path):
    names = ["train-00.tar", "train-01.tar", "train-02.tar"]
    assert [p.name for p in expand(str(shards / "train-*.tar"))] == names
    assert [p.name for p in expand(str(shards / "train-{00..02}.tar"))] == names
    assert [p.name for p in expand(str(shards / "train-0{1..2}.tar"))] == names[1:]
    assert [p.name for p in expand(str(shards / "train-{0..0}{0..1}.tar"))] == names[:2]


def test_what_is_missing_or_damaged_is_a_sentence(shards: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"there is no file '.*train-03\.tar'"):
        open_source(str(shards / "train-{00..03}.tar"))
    with pytest.raises(DataError, match="no file matches"):
        open_source(str(shards / "val-*.tar"))
    write(tmp_path / "empty.tar", {"readme.txt": b"nothing"})
    with pytest.raises(DataError, match="hold no images"):
        _ = open_source(str(tmp_path / "empty.tar")).names
    (tmp_path / "text.tar").write_text("no tar at all" * 100)
    with pytest.raises(DataError, match=r"text\.tar is not a tar file"):
        _ = open_source(str(tmp_path / "text.tar")).names
    whole = (shards / "train-00.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"000003.png") + 600])
    with pytest.raises(DataError, match=r"cut\.tar is (cut off inside 000003\.png|not a tar file)"):
        _ = open_source(str(tmp_path / "cut.tar")).names


def test_training_goes_through_all_shards_in_an_order_that_resumes(shards: Path):
    source = open_source(str(shards / "*.tar"))

    def names(start: int, steps: int, workers: int = 0) -> list[list[str]]:
        batches = training_batches(
            source, size=16, batch_size=4, augment=Augment(), seed=3, start_step=start, workers=workers
        )
        return [next(batches).names for _ in range(steps)]

    epochs = names(0, 6, workers=1)
    for epoch in (epochs[:3], epochs[3:]):
        assert sorted(name for batch in epoch for name in batch) == source.names
    assert epochs[:3] != epochs[3:]
    assert names(2, 4) == epochs[2:]
