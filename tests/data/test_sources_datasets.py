"""Hugging Face datasets, as parquet files in their format: images, classes, and what they are not."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from softvq.data.images import Augment
from softvq.data.loader import ordered_batches, training_batches
from softvq.data.opening import open_source
from softvq.errors import DataError
from tests.data.test_sources_shards import encoded
from tests.later import Later

pytestmark = pytest.mark.skipif(find_spec("datasets") is None, reason="pip install 'softvq[data]'")
datasets = Later("datasets")


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for part in range(2):
        rows = {
            "image": [{"bytes": encoded(30 * part + number), "path": None} for number in range(4)],
            "label": [number % 2 for number in range(4)],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"part-{part}.parquet")
    return tmp_path


def test_rows_are_images_with_classes(parquet: Path):
    source = open_source(f"{parquet}/part-*.parquet")
    assert len(source.names) == 8
    assert source.classes == ["cat", "dog"]
    assert source.labels == [0, 1] * 4
    assert source.read(5) == encoded(31)
    [batch] = ordered_batches(source, size=16, batch_size=8)
    values = batch.images[:, 0, 0, 0].add(1).mul(127.5).round()
    np.testing.assert_array_equal(values, [0, 1, 2, 3, 30, 31, 32, 33])


def test_training_reads_them_in_workers(parquet: Path):
    batches = training_batches(
        open_source(f"{parquet}/part-*.parquet"), size=16, batch_size=4, augment=Augment(), seed=0, workers=1
    )
    epoch = [name for _ in range(2) for name in next(batches).names]
    assert len(set(epoch)) == 8


def test_columns_without_names_of_classes(parquet: Path, tmp_path: Path):
    images = [{"bytes": encoded(number), "path": None} for number in range(3)]
    features = datasets.Features({"jpg": datasets.Image(), "cls": datasets.Value("int64")})
    datasets.Dataset.from_dict({"jpg": images, "cls": [4, 0, 2]}, features=features).to_parquet(tmp_path / "n.parquet")
    source = open_source(f"{tmp_path}/n.parquet")
    assert source.labels == [4, 0, 2]
    assert source.classes == ["0", "1", "2", "3", "4"]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": images, "caption": ["a", "b", "c"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "c.parquet")
    source = open_source(f"{tmp_path}/c.parquet")
    assert source.labels == [0, 0, 0]
    assert source.classes == [""]


def test_what_is_no_dataset_is_a_sentence(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="no file matches"):
        open_source(f"{tmp_path}/x-*.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"text\.parquet' cannot be read"):
        _ = open_source(f"{tmp_path}/text.parquet").names
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of images, only a"):
        _ = open_source(f"{tmp_path}/a.parquet").names
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="'nobody/nothing' cannot be read"):
        _ = open_source("hf:nobody/nothing:validation").names
