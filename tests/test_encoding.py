"""Encoding a data set: whatever holds the images, by a tokenizer or its name; settings, and what is refused.

What the cache holds and how it is read is in tests/data/test_latents.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from softvq import Tokenizer
from softvq.data.latents import Latents
from softvq.data.loader import ordered_batches
from softvq.data.objects import Objects
from softvq.data.opening import open_source
from softvq.data.sources import Folder
from softvq.encoding import encode
from softvq.errors import ConfigError, DataError
from tests.data import test_latents, test_objects
from tests.data.test_latents import Sides, made
from tests.data.test_objects import COUNT, FORMS, LABELS, TENSOR

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
