"""Hugging Face datasets, as parquet files in their format: images, classes, and what they are not."""

import datetime
import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softvq.data.images import Augment
from softvq.data.loader import ordered_batches, training_batches
from softvq.data.opening import open_source, with_columns
from softvq.data.sources import Source
from softvq.errors import DataError, ImageError, Notice
from tests.data.test_shards import encoded
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


# Which columns, and what is in them


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(values: list[Any]) -> list[Any]:
    return [{"bytes": encoded(v), "path": None} if isinstance(v, int) else v for v in values]


def kind(name: str) -> Any:
    """A type of a column: `image`, `images`, `cat dog` for their classes, `[int64]`, or a type of a value."""
    if name.startswith("image"):
        return datasets.Image() if name == "image" else datasets.Sequence(datasets.Image())
    if name.startswith("["):
        return datasets.Sequence(datasets.Value(name[1:-1]))
    return datasets.ClassLabel(names=name.split()) if " " in name else datasets.Value(name)


def made(path: str, **columns: tuple[str, list[Any]]) -> str:
    """Write a parquet file of columns, each with its type and its values, of images their grey."""
    features = datasets.Features({name: kind(of) for name, (of, _) in columns.items()})
    data = {name: rows(values) if of == "image" else values for name, (of, values) in columns.items()}
    data = {
        name: [rows(v) for v in values] if columns[name][0] == "images" else values for name, values in data.items()
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(data, features=features).to_parquet(path)
    return path


def read(source: Source) -> list[int]:
    return [source.image(i)[0].getpixel((0, 0))[0] for i in range(len(source.names))]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("columns", "image", "label", "images", "labels"),
    [
        ({"conditioning_image": ("image", [1]), "image": ("image", [9])}, None, None, [9], [0]),
        ({"conditioning_image": ("image", [1]), "image": ("image", [9])}, "conditioning_image", None, [1], [0]),
        ({"before": ("image", [1]), "after": ("image", [9])}, "after", None, [9], [0]),
        ({"image": ("string", ["a cat"]), "photo": ("image", [4])}, None, None, [4], [0]),
        ({"image": ("image", [4]), "label": ("int64", [3]), "coarse": ("a b", [1])}, None, None, [4], [3]),
        ({"image": ("image", [4]), "label": ("int64", [3]), "coarse": ("a b", [1])}, None, "coarse", [4], [1]),
        ({"image": ("image", [4]), "label": ("int64", [3])}, None, "none", [4], [0]),
        ({"image": ("image", [4]), "fine": ("a b", [1])}, None, None, [4], [1]),
        ({"image": ("int64", [5]), "label": ("image", [4])}, "label", "image", [4], [5]),
        ({"data": ("binary", [encoded(6)]), "y": ("int64", [2])}, "data", "y", [6], [2]),
        ({"image": ("binary", [encoded(6)])}, None, None, [6], [0]),
    ],
)
def test_which_column_is_which(columns: dict, image: str | None, label: str | None, images: list, labels: list):
    source = open_source(with_columns(made("a.parquet", **columns), image, label))
    assert (read(source), source.labels) == (images, labels)
    assert [label for _, label in map(source.image, range(len(labels)))] == labels
    assert all(size > 0 for size, _ in source.stamps())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("columns", "image", "label", "said", "setting"),
    [
        (
            {"x": ("image", [1]), "y": ("image", [9])},
            None,
            None,
            r"several columns of images \(x, y\); name one",
            "image",
        ),
        ({"jpg": ("image", [1]), "png": ("image", [9])}, None, None, r"images \(jpg, png\)", "image"),
        (
            {"image": ("image", [1]), "fine": ("a b", [1]), "coarse": ("c d", [0])},
            *(None, None, r"several columns of labels \(fine, coarse\); name one \(or none\)", "label"),
        ),
        (
            {"image": ("image", [1]), "fine": ("a b", [1])},
            "imag",
            None,
            "no column 'imag'; did you mean image",
            "image",
        ),
        ({"image": ("image", [1]), "fine": ("a b", [1])}, None, "Fine", "no column 'Fine'; did you mean fine", "label"),
        ({"data": ("binary", [encoded(6)])}, None, None, "no column of images, only data", "image"),
        ({"images": ("images", [[1, 2]])}, None, None, "no column of images, only images", "image"),
        ({"image": ("images", [[1, 2]])}, None, None, "column 'image' .* holds no images, one a row", "image"),
        ({"image": ("int64", [1])}, None, None, "column 'image' .* holds no images, one a row", "image"),
        ({"image": ("image", [1])}, "image", "image", "is the images', and cannot hold labels", "label"),
        ({"a": ("image", [1]), "b": ("image", [1])}, "a", "b", "which is no class", "label"),
    ],
)
def test_what_is_not_clear_is_a_sentence(columns: dict, image: str | None, label: str | None, said: str, setting: str):
    with pytest.raises(DataError, match=said) as error:
        open_source(with_columns(made("a.parquet", **columns), image, label))
    assert error.value.setting == f"{setting}_column"
    assert "\n" not in str(error.value)


DATES = [datetime.datetime(2021, 1, 1), datetime.datetime(2020, 1, 1), None]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("of", "values", "labels", "classes"),
    [
        ("cat dog", [-1, 1, None], [-1, 1, -1], ["cat", "dog"]),
        ("cat dog", [-1, -1, -1], [-1, -1, -1], ["cat", "dog"]),
        ("int64", [2, -1, None], [2, -1, -1], ["0", "1", "2"]),
        ("int64", [None, None, None], [-1, -1, -1], [""]),
        ("uint8", [2, 0, None], [2, 0, -1], ["0", "1", "2"]),
        ("float64", [10.0, math.nan, 2.0], [10, -1, 2], [str(k) for k in range(11)]),
        ("float16", [1.0, 0.0, -1.0], [1, 0, -1], ["0", "1"]),
        ("string", ["dog", "", None], [0, -1, -1], ["dog"]),
        ("string", ["10", "2", "-1"], [10, 2, -1], [str(k) for k in range(11)]),
        ("bool", [True, False, None], [1, 0, -1], ["False", "True"]),
        ("timestamp[s]", DATES, [1, 0, -1], ["2020-01-01 00:00:00", "2021-01-01 00:00:00"]),
    ],
)
def test_an_image_without_a_label_is_unlabelled_and_said(of: str, values: list, labels: list[int], classes: list[str]):
    data = made("a.parquet", image=("image", [1, 2, 3]), label=(of, values))
    few = f"{labels.count(-1)} image"
    with pytest.warns(Notice, match=rf"^a\.parquet: {few}s? of 3 ha.* no label, the first a\.parquet/train/[012]: unl"):
        source = open_source(data)
    assert (source.labels, source.classes) == (labels, classes)
    [batch] = ordered_batches(source, size=16, batch_size=3)
    assert batch.labels.tolist() == labels


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("of", "value"),
    [("int64", -5), ("float64", 0.37), ("[int64]", [1, 2]), ("binary", b"cat"), ("string", '{"label": 1}')],
)
def test_what_is_no_label_is_named(of: str, value: Any):
    data = made("a.parquet", image=("image", [1, 2]), label=(of, [value, value]))
    with pytest.raises(DataError, match=r"^the label of a\.parquet/train/0 is .*, which is no class") as error:
        open_source(data)
    assert error.value.setting == "label_column"


@pytest.mark.usefixtures("here")
def test_a_label_beyond_the_classes_is_named():
    import pyarrow as pa
    from pyarrow import parquet

    whole = parquet.read_table(made("a.parquet", image=("image", [1, 2]), label=("cat dog", [0, 1])))
    other = whole.set_column(1, "label", pa.array([0, 7], pa.int64()))
    parquet.write_table(other.replace_schema_metadata(whole.schema.metadata), "b.parquet")
    with pytest.raises(DataError, match=r"^the label of b\.parquet/train/1 is 7, but there are 2 classes\.$"):
        open_source("b.parquet")


@pytest.mark.usefixtures("here")
def test_a_null_image_is_a_bad_file_like_any_other():
    source = open_source(made("a.parquet", image=("image", [1, None, 3]), label=("int64", [0, 1, 1])))
    with pytest.raises(ImageError, match=r"^a\.parquet/train/1 is null: the row has no image\.$"):
        source.image(1)
    assert [size for size, _ in source.stamps()] == [len(encoded(1)), 0, len(encoded(3))]
    assert source.digest(1) == ""
    [batch] = ordered_batches(source, size=16, batch_size=3)
    assert batch.bad == {"a.parquet/train/1": "a.parquet/train/1 is null: the row has no image."}
    assert batch.labels.tolist() == [0, 1]
    batches = training_batches(source, size=16, batch_size=3, augment=Augment(), seed=0, workers=0)
    assert {name for _ in range(2) for name in next(batches).bad} == {"a.parquet/train/1"}
    data = made("b.parquet", image=("binary", [b"", encoded(2), b"<html>"]))
    [batch] = ordered_batches(open_source(data), size=16, batch_size=3)
    assert list(batch.bad) == ["b.parquet/train/0", "b.parquet/train/2"]


@pytest.mark.usefixtures("here")
def test_a_file_that_exists_is_itself(monkeypatch: pytest.MonkeyPatch):
    made("aXb.parquet", image=("image", [9]))
    for name in ("s[1].parquet", "a*b.parquet", "UP.PARQUET", "x[1]/a.parquet", "sp ace.parquet", "b{0..1}.parquet"):
        assert read(open_source(made(name, image=("image", [7])))) == [7], name
    made("p-0.parquet", image=("image", [1]))
    made("p-1.parquet", image=("image", [2]))
    for pattern in ("p-{0..1}.parquet", "p-*.parquet", "p-[01].parquet"):
        assert read(open_source(pattern)) == [1, 2]
    assert read(open_source("x[1]/*.parquet")) == [7]
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert read(open_source("~/p-1.parquet")) == [2]
    shutil.copy("p-1.parquet", "caf\udce9.parquet")
    source = open_source("caf\udce9.parquet")
    assert read(source) == [2]
    assert source.names == ["caf\udce9.parquet/train/0"]
    assert source.version
