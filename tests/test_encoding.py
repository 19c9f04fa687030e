"""Encoding a data set: whatever holds the images, by a tokenizer or its name; settings, and what is refused.

What the cache holds and how it is read is in tests/data/test_latents.py.
"""

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from softvq import Tokenizer
from softvq import files as files_module
from softvq.data.latents import CONTENTS, Latents
from softvq.data.loader import ordered_batches
from softvq.data.objects import Objects
from softvq.data.opening import open_source
from softvq.data.sources import Folder
from softvq.encoding import encode
from softvq.errors import ConfigError, DataError, Notice, StorageError
from softvq.files import read_json, read_metadata, read_tensors, write_tensors
from tests.data import test_latents, test_objects
from tests.data.test_latents import Sides, made
from tests.data.test_objects import COUNT, FORMS, LABELS, TENSOR
from tests.data.test_stream import encoded, write

files, folder, source = test_objects.files, test_objects.folder, test_latents.source  # fixtures


def contents(cache: Latents) -> tuple[torch.Tensor, list[int]]:
    mirrors = range(2 if cache.index.mirrored else 1)
    latents = torch.stack([cache.read(index, mirror) for index in range(len(cache)) for mirror in mirrors])
    return latents, cache.labels.tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_images_that_a_program_holds_are_encoded_as_files_are(
    files: list[Path],
    folder: Folder,
    tmp_path: Path,
    form: str,
    workers: int,
):
    expected, labels = contents(made(folder, tmp_path / "of files"))
    cache = made(FORMS[form](files), tmp_path / "latents", workers=workers)
    found, own = contents(cache)
    assert torch.equal(found, expected)
    assert own == labels == LABELS
    assert cache.index.classes == open_source(FORMS[form](files)).classes
    assert cache.index.identity["count"] == COUNT
    assert cache.index.source.startswith("9 images (")


def test_the_same_call_keeps_what_is_there_and_other_images_are_refused(tmp_path: Path):
    data, out = TensorDataset(TENSOR, torch.tensor(LABELS)), tmp_path / "latents"
    made(data, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    made(TensorDataset(TENSOR, torch.tensor(LABELS)), out)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")} == before
    changed = TENSOR.clone()
    changed[0, 0, 0, 0] ^= 1
    made(TENSOR, tmp_path / "array")
    made(TENSOR.clone(), tmp_path / "array")
    for other in (changed, TENSOR[:-1], data):
        with pytest.raises(DataError, match="holds latents that were made otherwise") as error:
            made(other, tmp_path / "array")
        assert error.value.setting == "out"
    assert len(made(TENSOR, tmp_path / "array")) == COUNT  # nothing was deleted


def repaint(path: Path) -> None:
    """Write another image of as many bytes, at the same time, into a file: a mirrored one of raw pixels."""
    before, image = path.stat(), Image.open(path).convert("RGB")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path, format="BMP")
    assert path.stat().st_size == before.st_size


def relabel(path: Path) -> None:
    (path.parent.parent / "dog").mkdir(exist_ok=True)
    path.rename(path.parent.parent / "dog" / path.name)


CHANGES = {  # of the folder's third image: the shards of four images that are encoded again
    "another image of the same size": (repaint, {0}),
    "another image": (lambda path: Image.new("RGB", (40, 40), "red").save(path, format="BMP"), {0}),
    "a damaged image": (lambda path: path.write_bytes(b"no image"), {0}),
    "another class": (relabel, {0, 1, 2}),
    "a new image": (lambda path: path.with_name("00.bmp").write_bytes(path.read_bytes()), {0, 1, 2}),
    "a new image, the last": (lambda path: (path.parent.parent / "z.bmp").write_bytes(path.read_bytes()), {2}),
    "an image less": (lambda path: path.unlink(), {0, 1, 2}),
    "a later time": (lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9)), set()),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / "photos" / ("cat" if number < 6 else "fox") / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_encoded_again_and_the_rest_is_kept(photos: Path, tmp_path: Path, change: str):
    out = tmp_path / "latents"
    made(str(photos), out)
    before = times(out)
    alter, expected = CHANGES[change]
    alter(photos / "cat" / "2.bmp")
    coder = Counting()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", Notice)
        again = made(str(photos), out, coder)
    fresh = made(str(photos), tmp_path / "fresh")
    assert torch.equal(contents(again)[0], contents(fresh)[0])
    assert (again.labels.tolist(), again.names) == (fresh.labels.tolist(), fresh.names)
    assert (again.index, read_json(out / "index.json")) == (fresh.index, read_json(tmp_path / "fresh" / "index.json"))
    changed = {number for number in range(3) if times(out).get(number) != before[number]}
    assert changed == (expected or {0})  # which notes the later time
    assert coder.images == 2 * sum(again.index.shards[number] for number in expected)
    words = [str(one.message) for one in said if "have changed since" in str(one.message)]
    assert words == (
        [f"{len(expected)} of 3 shards in {out}: images or labels have changed since, they are encoded again."]
        if expected
        else []
    )
    made(str(photos), out, coder := Counting())
    assert coder.images == 0


def times(folder: Path) -> dict[int, int]:
    return {int(path.stem[-5:]): path.stat().st_mtime_ns for path in folder.glob("latents-*")}


class Counting(Sides):
    """A tokenizer that counts the images, with their mirrors, that it encodes."""

    images = 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return super().encode(images)


def test_labels_beside_the_images_of_a_shard_are_part_of_it(tmp_path: Path):
    files = {f"{n}.png": encoded(n) for n in range(10)} | {f"{n}.cls": b"1" for n in range(10)}
    write(tmp_path / "a.tar", files)
    made(str(tmp_path / "a.tar"), tmp_path / "latents")
    write(tmp_path / "a.tar", files | {"5.cls": b"3"})
    with pytest.warns(Notice, match="1 of 3 shards .* encoded again"):
        again = made(str(tmp_path / "a.tar"), tmp_path / "latents")
    assert again.labels.tolist() == [1, 1, 1, 1, 1, 3, 1, 1, 1, 1]
    assert again.index.classes == ["0", "1", "2", "3"]


def test_a_copy_of_the_images_is_the_same_and_other_images_are_refused(photos: Path, tmp_path: Path):
    out = tmp_path / "latents"
    identity = made(str(photos), out).index.identity
    shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)  # with times of its own
    coder = Counting()
    assert made(str(tmp_path / "copy"), out, coder).index.identity == identity
    assert coder.images == 0
    assert read_json(out / "encoding.json")["source"] == str(tmp_path / "copy")
    repaint(tmp_path / "copy" / "cat" / "1.bmp")
    made(str(tmp_path / "copy"), out)
    with pytest.raises(DataError, match=r"of other images than those of .*photos; use another folder"):
        made(str(photos), out)


def test_shards_of_an_earlier_version_are_made_again(photos: Path, tmp_path: Path):
    """They do not say what they were made of."""
    out = tmp_path / "latents"
    made(str(photos), out)
    path = out / "latents-00001.safetensors"
    metadata = {name: text for name, text in read_metadata(path).items() if name != CONTENTS}
    write_tensors(path, read_tensors(path), metadata)
    with pytest.warns(Notice, match="1 of 3 shards"):
        made(str(photos), out)
    assert CONTENTS in read_metadata(path)


def test_latents_are_not_read_while_they_are_made_again(photos: Path, tmp_path: Path):
    out = tmp_path / "latents"
    made(str(photos), out)
    repaint(photos / "cat" / "2.bmp")

    class Stopping(Sides):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.warns(Notice):
        made(str(photos), out, Stopping())
    with pytest.raises(DataError, match="holds no latents"):
        Latents(out)
    assert len(made(str(photos), out)) == 10


def test_files_are_asked_for_their_sizes_and_times_once_not_once_a_shard(photos: Path, tmp_path: Path, monkeypatch):
    """Of a million images in hundreds of shards, it would take longer than the encoding."""
    asked, stamps = [], Folder.stamps
    monkeypatch.setattr(Folder, "stamps", lambda self: asked.append(len(self.names)) or stamps(self))
    made(str(photos), tmp_path / "three", shard=4)
    first = len(asked)
    made(str(photos), tmp_path / "ten", shard=1)
    assert len(asked) == 2 * first


def test_paths_from_the_home_folder_and_files_beside_a_table_are_looked_at(photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(photos))
    assert Objects(["~/cat/1.bmp"]).stamps() == Objects([photos / "cat" / "1.bmp"]).stamps() != [(0, 0)]
    datasets = pytest.importorskip("datasets")
    paths = sorted(map(str, photos.rglob("*.bmp")))
    table = {"image": [{"bytes": None, "path": path} for path in paths]}
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "a.parquet"))
    made(str(tmp_path / "a.parquet"), tmp_path / "latents")
    repaint(photos / "cat" / "2.bmp")
    with pytest.warns(Notice, match="1 of 3 shards"):
        again = made(str(tmp_path / "a.parquet"), tmp_path / "latents")
    fresh = made(str(tmp_path / "a.parquet"), tmp_path / "fresh")
    assert torch.equal(contents(again)[0], contents(fresh)[0])


def test_a_second_call_in_the_same_folder_is_refused(photos: Path, tmp_path: Path):
    with files_module.locked(tmp_path / "latents"), pytest.raises(StorageError, match="latents is in use by this proc"):
        made(str(photos), tmp_path / "latents")
    assert len(made(str(photos), tmp_path / "latents")) == 10


@pytest.mark.parametrize("change", [{"mirrored": False}, {"shard": 5}])
def test_other_settings_are_another_cache(source: Folder, tmp_path: Path, change: dict):
    made(source, tmp_path / "latents")
    with pytest.raises(DataError, match=f"{next(iter(change))} was "):
        made(source, tmp_path / "latents", **change)


def test_without_mirrors(source: Folder, tmp_path: Path):
    both, one = made(source, tmp_path / "both"), made(source, tmp_path / "one", mirrored=False)
    assert not one.index.mirrored
    for index in range(10):
        assert torch.equal(one.read(index, 0), both.read(index, 0))
    assert next(one.batches(4, seed=0)).names == next(both.batches(4, seed=0)).names
    with pytest.raises(IndexError):
        one.read(0, 1)


@pytest.mark.parametrize(("shard", "batch_size"), [(1, 3), (3, 1), (4, 64), (4096, 3)])
def test_neither_shards_nor_batches_change_what_is_encoded(
    source: Folder,
    tmp_path: Path,
    shard: int,
    batch_size: int,
):
    expected = contents(made(source, tmp_path / "expected"))
    cache = made(source, tmp_path / "latents", shard=shard, batch_size=batch_size)
    latents, labels = contents(cache)
    assert torch.equal(latents, expected[0])
    assert labels == expected[1]
    assert cache.index.shards == [min(shard, 10 - first) for first in range(0, 10, shard)]


def test_by_the_name_of_a_tokenizer_or_loaded(source: Folder, tmp_path: Path):
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    settings = {"workers": 0, "progress": False, "mirrored": False}
    encode("softvq-emoji-64", source, tmp_path / "named", **settings)
    encode(tokenizer, str(source.root), tmp_path / "loaded", **settings)
    named, loaded = Latents(tmp_path / "named"), Latents(tmp_path / "loaded")
    assert torch.equal(contents(named)[0], contents(loaded)[0])
    assert named.index.tokenizer == loaded.index.tokenizer == "softvq-emoji-64"
    assert named.index.fingerprint == loaded.index.fingerprint == tokenizer.latent_fingerprint
    assert loaded.index.source == str(source.root)
    assert named.index.source == "10 images (Folder)"
    [batch] = ordered_batches(source, size=64, batch_size=10)
    with torch.no_grad():
        np.testing.assert_allclose(contents(named)[0], tokenizer.encode(batch.images), atol=4e-3, rtol=1e-3)


def test_no_gradients_are_kept_and_the_tokenizer_is_as_before(source: Folder, tmp_path: Path):
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    before = tokenizer.fingerprint
    encode(tokenizer, Objects(TENSOR), tmp_path / "latents", workers=0, progress=False)
    assert tokenizer.fingerprint == before
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    assert torch.is_grad_enabled()


def test_a_tokenizer_without_a_name_is_refused(source: Folder, tmp_path: Path):
    tokenizer = Sides()
    tokenizer.name = ""
    with pytest.raises(ConfigError, match="save_pretrained it, and load it from there"):
        made(source, tmp_path / "latents", tokenizer)
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(("setting", "value"), [("shard", 0), ("batch_size", 0), ("workers", -1)])
def test_impossible_settings_are_a_sentence_before_the_work(
    source: Folder,
    tmp_path: Path,
    setting: str,
    value: int,
):
    with pytest.raises(ConfigError, match=rf"^{setting} must be at least {value + 1}, not {value}\.$") as error:
        made(source, tmp_path / "latents", **{setting: value})
    assert error.value.setting == setting
    assert not (tmp_path / "latents").exists()


def test_latents_that_are_not_finite_are_refused_and_leave_no_shard(source: Folder, tmp_path: Path):
    class Broken(Sides):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return super().encode(images) / torch.where(images[:, :1, 0, 0] > -0.5, 0.0, 1.0)[:, :, None]

    with pytest.raises(DataError, match=r"^the latents of .*\.png and others are not finite\.$"):
        made(source, tmp_path / "latents", Broken())
    assert not (tmp_path / "latents" / "index.json").exists()


def test_a_shard_of_bad_images_only_is_there_and_empty(source: Folder, tmp_path: Path):
    for name in source.names[4:8]:
        (source.root / name).write_bytes(b"no image")
    cache = made(source, tmp_path / "latents")
    assert cache.index.shards == [4, 0, 2]
    assert list(cache.index.bad) == source.names[4:8]
    assert cache.labels.tolist() == source.labels[:4] + source.labels[8:]


def test_bars_are_for_terminals_or_when_asked_for(source: Folder, tmp_path: Path, capsys):
    for progress, shown in ((False, False), (None, False), (True, True)):
        made(source, tmp_path / str(progress), progress=progress)
        assert ("10/10" in capsys.readouterr().err) == shown
    made(source, tmp_path / "True", progress=True)  # nothing to do
    assert capsys.readouterr().err == ""


def test_what_is_written_is_said_in_the_folder(source: Folder, tmp_path: Path):
    index = made(source, tmp_path / "latents").index
    assert json.loads((tmp_path / "latents" / "index.json").read_text())["shards"] == index.shards == [4, 4, 2]
    assert sorted(path.name for path in (tmp_path / "latents").iterdir()) == [
        "encoding.json",
        "index.json",
        *(f"latents-0000{number}.safetensors" for number in range(3)),
    ]
