"""Images that a program holds are a source like any other: the same batches as of the same images in files."""

import io
import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from softvq.data.images import Augment
from softvq.data.labels import UNLABELLED
from softvq.data.loader import Batch, ordered_batches, training_batches
from softvq.data.objects import Objects
from softvq.data.opening import listing, open_source
from softvq.data.sources import Folder
from softvq.errors import DataError, ImageError

COUNT, SIZE = 9, 8


def pixels(number: int = 0) -> np.ndarray:
    """Noise of 13 × 11 pixels."""
    return np.random.default_rng(number).integers(0, 256, (13, 11, 3), dtype=np.uint8)


ARRAY = np.stack([pixels(number) for number in range(COUNT)])
TENSOR = torch.from_numpy(ARRAY).permute(0, 3, 1, 2)
PICTURES = [Image.fromarray(image) for image in ARRAY]
LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2]  # by class, as a folder lists them


class Pictures(Dataset):
    """A data set as people write them. `form`: what an image is; `pairs`: with labels."""

    def __init__(self, form: str = "PIL", pairs: bool = False):
        self.form, self.pairs = form, pairs

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int):
        image = {"PIL": PICTURES, "array": ARRAY, "tensor": TENSOR}[self.form][index]
        return (image, LABELS[index]) if self.pairs else image


class Endless(IterableDataset):
    def __iter__(self):
        return iter(PICTURES)


class Sized(Endless):
    def __len__(self) -> int:
        return COUNT


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The images as PNG files, one folder a class."""
    found = []
    for number, picture in enumerate(PICTURES):
        path = tmp_path / "images" / "abc"[LABELS[number]] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        found.append(path)
    return found


@pytest.fixture
def folder(files: list[Path]) -> Folder:
    return Folder(files[0].parent.parent)


def assert_images(source, labels: list[int] | None = None) -> None:
    """Every image by its index, 8-bit, with its label."""
    assert len(source) == len(source.names) == len(set(source.names)) == COUNT
    assert source.labels == (labels or [0] * COUNT)
    for index in range(COUNT):
        image, label = source.image(index)
        assert (image.mode, label) == ("RGB", source.labels[index])
        np.testing.assert_array_equal(np.asarray(image), ARRAY[index])


# What may be given


@pytest.mark.parametrize("form", ["PIL", "array", "tensor"])
def test_a_data_set_of_images(form: str):
    source = open_source(Pictures(form))
    assert_images(source)
    assert source.classes == [""]
    assert str(source) == "9 images (Pictures)"


@pytest.mark.parametrize("form", ["PIL", "array", "tensor"])
def test_a_data_set_of_images_with_labels(form: str):
    source = open_source(Pictures(form, pairs=True))
    assert_images(source, LABELS)
    assert source.classes == ["0", "1", "2"]


@pytest.mark.parametrize(
    "images",
    [ARRAY, TENSOR, PICTURES, tuple(PICTURES), list(ARRAY), list(TENSOR), np.asfortranarray(ARRAY)],
    ids=["array", "tensor", "pictures", "tuple", "arrays", "tensors", "Fortran"],
)
def test_arrays_tensors_and_lists_of_images(images):
    assert_images(open_source(images))


def test_lists_of_paths(files: list[Path]):
    for paths in (files, [str(path) for path in files], [files[0], *map(str, files[1:])], tuple(files)):
        source = open_source(paths)
        assert_images(source)
        assert source.names == [str(path) for path in files]


def test_lists_of_pairs(files: list[Path]):
    for images in (files, PICTURES, ARRAY, TENSOR):
        for kind in (int, np.int64, torch.tensor):
            pairs = [(image, kind(label)) for image, label in zip(images, LABELS, strict=True)]
            assert_images(open_source(pairs), LABELS)
    assert_images(open_source([[image, 0] for image in PICTURES]))


def test_torchs_own_data_sets():
    data = TensorDataset(TENSOR, torch.tensor(LABELS))
    assert_images(open_source(data), LABELS)
    part = open_source(Subset(data, [8, 4]))
    assert part.labels == [2, 1]
    np.testing.assert_array_equal(np.asarray(part.image(0)[0]), ARRAY[8])


def test_grey_and_transparent_images():
    grey = open_source(ARRAY[..., 0])
    np.testing.assert_array_equal(np.asarray(grey.image(3)[0]), ARRAY[3, :, :, :1].repeat(3, axis=2))
    np.testing.assert_array_equal(np.asarray(open_source(TENSOR[:, :1]).image(3)[0]), np.asarray(grey.image(3)[0]))
    clear = np.concatenate([ARRAY, np.zeros_like(ARRAY[..., :1])], axis=-1)
    assert (np.asarray(open_source(clear).image(0)[0]) == 255).all()


def test_a_turned_photo_is_turned_as_from_a_file(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PICTURES[0].save(file, "PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(file.getvalue())
    (held, _), (read, _) = (open_source(data).image(0) for data in ([Image.open(file)], tmp_path))
    assert held.size == read.size == (13, 11)
    np.testing.assert_array_equal(np.asarray(held), np.asarray(read))


def test_a_source_stays_itself_and_a_list_is_its_own_listing(folder: Folder):
    assert open_source(folder) is folder
    source = open_source(PICTURES)
    assert listing(source) is source
    assert listing(source, 3) is source


# Floating-point numbers


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16, np.float32, np.float64])
def test_floats_are_refused_without_their_range_and_right_with_it(kind):
    def images(black: float, white: float):
        scaled = TENSOR.double() / 255 * (white - black) + black
        if isinstance(kind, torch.dtype):
            return scaled.to(kind)
        return scaled.permute(0, 2, 3, 1).numpy().astype(kind)

    off = 3 if kind == torch.bfloat16 else 1 if kind == torch.float16 else 0  # grey levels that 8 and 11 bits lose
    with pytest.raises(DataError, match=r"^image 0 is of floating-point numbers, .* value_range, \(0, 1\) or \(-1, 1"):
        open_source(images(0, 1)).image(0)
    for black, white in ((0, 1), (-1, 1), (0, 255), (1, 0)):
        source = Objects(images(black, white), value_range=(black, white))
        for index in range(COUNT):
            found = np.asarray(source.image(index)[0]).astype(int)
            assert np.abs(found - ARRAY[index]).max() <= off
        assert source.identity["count"] == COUNT


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_floats_outside_of_their_range_are_refused(value: float):
    images = TENSOR.float() / 255
    images[1, 0, 0, 0] = value
    source = Objects(images, value_range=(0, 1))
    assert source.image(0)[0].size == (11, 13)
    with pytest.raises(DataError, match=r"^image 1 holds .*, not from 0 to 1\.$|^image 1 has numbers"):
        source.image(1)


def test_bytes_do_not_need_a_range_and_are_not_scaled_by_it():
    assert_images(Objects(Pictures("tensor"), value_range=(0, 1)))


# Labels and classes


class Torchvision(Pictures):
    """Has labels and names as torchvision's data sets do. It counts the images that were read."""

    classes = ("cat", "dog", "owl", "yak")

    def __init__(self, targets=LABELS):
        super().__init__(pairs=True)
        self.targets, self.reads = targets, 0

    def __getitem__(self, index: int):
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_labels_and_names_that_a_data_set_tells_cost_no_reading(kind):
    data = Torchvision(kind(LABELS))
    source = open_source(data)
    assert source.labels == LABELS
    assert all(type(label) is int for label in source.labels)
    assert source.classes == ["cat", "dog", "owl", "yak"]
    assert data.reads == 0
    assert_images(source, LABELS)


def test_a_data_set_that_tells_labels_of_images_alone():
    data = Pictures()
    data.targets = LABELS
    assert_images(open_source(data), LABELS)


def test_labels_of_another_length_are_another_things():
    assert open_source(Torchvision(LABELS[:4])).labels == LABELS


@pytest.mark.parametrize(
    "data", [ARRAY, PICTURES, Pictures(pairs=True), Torchvision()], ids=lambda data: type(data).__name__
)
def test_given_labels_and_names_come_first(data):
    others = [number % 2 for number in range(COUNT)]
    source = Objects(data, given_labels=others, class_names=["even", "odd"])
    assert_images(source, others)
    assert source.classes == ["even", "odd"]


def test_as_many_labels_as_images_and_names_as_classes():
    with pytest.raises(DataError, match=r"^there are 4 labels for 9 images\.$"):
        _ = Objects(ARRAY, given_labels=LABELS[:4]).labels
    with pytest.raises(DataError, match=r"^a label is 2, but there are the names of 2 classes alone\.$"):
        _ = Objects(ARRAY, given_labels=LABELS, class_names=["a", "b"]).classes


@pytest.mark.parametrize(
    "label",
    [-2, 1.0, "cat", True, np.float32(1), torch.tensor(1.0), torch.tensor([0, 1]), np.array([0, 1]), {"a": 1}],
    ids=str,
)
def test_labels_that_are_no_numbers_of_classes_are_refused(label):
    source = open_source([(PICTURES[0], 0), (PICTURES[1], label)])
    with pytest.raises(DataError, match=r"^the label of image 1 is .*; labels are whole numbers from 0 on, and -1 for"):
        _ = source.labels
    with pytest.raises(DataError, match="the label of image 1"):
        source.image(1)


UNLABELLED_FORMS = [None, -1, np.int64(-1), torch.tensor(-1), math.nan, np.float32("nan")]


@pytest.mark.parametrize("label", UNLABELLED_FORMS, ids=lambda label: f"{type(label).__name__} {label}")
def test_an_image_without_a_label_is_unlabelled(label):
    source = open_source([(PICTURES[0], 2), (PICTURES[1], label), (PICTURES[2], 0)])
    assert source.labels == [2, UNLABELLED, 0]
    assert source.image(1)[1] == UNLABELLED == -1
    assert source.classes == ["0", "1", "2"]
    [batch] = ordered_batches(source, size=SIZE, batch_size=4)
    assert batch.labels.tolist() == [2, -1, 0]


def test_given_labels_are_checked_too():
    with pytest.raises(DataError, match=r"^the label of image 1 is -5; labels are whole numbers from 0 on"):
        _ = Objects(PICTURES[:2], given_labels=[0, -5]).labels
    assert Objects(PICTURES[:3], given_labels=[0, None, -1]).labels == [0, -1, -1]


def test_none_labelled_at_all_is_one_class():
    source = Objects(PICTURES[:2], given_labels=[None, -1])
    assert (source.labels, source.classes) == ([-1, -1], [""])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_none_is_a_bad_file_like_any_other(workers: int):
    source = open_source([(PICTURES[0], 0), (None, 1), (PICTURES[2], 1), (PICTURES[3], 0)])
    with pytest.raises(ImageError, match=r"^image 1 is null: there is no image\.$"):
        source.image(1)
    [batch] = ordered_batches(source, size=SIZE, batch_size=4, workers=workers)
    assert batch.bad == {"image 1": "image 1 is null: there is no image."}
    assert batch.labels.tolist() == [0, 1, 0]
    assert {name for one in training(source, 3) for name in one.bad} == {"image 1"}


# Which images these are


def test_identity_is_of_the_numbers_or_the_names(files: list[Path]):
    assert open_source(ARRAY).identity == open_source(ARRAY.copy()).identity
    assert open_source(ARRAY).identity == open_source(np.asfortranarray(ARRAY)).identity
    assert open_source(files).identity == open_source([str(path) for path in files]).identity
    assert open_source(Pictures()).identity == open_source(Pictures()).identity
    changed, turned = ARRAY.copy(), TENSOR.clone()
    changed[-1, -1, -1, -1] ^= 1
    turned[0, 0, 0, 0] ^= 1
    longer = [*PICTURES, PICTURES[0]]
    told = [
        open_source(data).identity
        for data in (ARRAY, changed, TENSOR, turned, files, files[:-1], files[::-1], Pictures(), PICTURES, longer)
    ]
    assert all(told.count(one) == 1 for one in told)
    assert told[0]["count"] == COUNT


def test_identity_is_a_function_of_all_tensors_that_are_images():
    floats = TENSOR.float().requires_grad_()
    told = [Objects(data, value_range=(0, 255)).identity for data in (floats, TENSOR.bfloat16(), TENSOR)]
    assert all(told.count(one) == 1 for one in told)


# What is refused, with a sentence


@pytest.mark.parametrize(
    "data",
    [Endless(), Sized(), iter(PICTURES), (image for image in PICTURES), 5, None, PICTURES[0], {"a": PICTURES[0]}],
    ids=["IterableDataset", "IterableDataset with a length", "iterator", "generator", "5", "None", "image", "dict"],
)
def test_what_has_no_images_by_number_is_refused(data):
    with pytest.raises(DataError, match="images by number are wanted") as error:
        open_source(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data", [[], (), ARRAY[:0], TENSOR[:0], Subset(Pictures(), [])], ids=lambda d: type(d).__name__
)
def test_nothing_is_refused(data):
    with pytest.raises(DataError, match=r"^there are no images: the data set is empty\.$"):
        open_source(data)


@pytest.mark.parametrize("item", [(PICTURES[1],), (PICTURES[1], 0, "more"), (), [PICTURES[1]]], ids=len)
def test_wrong_tuples_are_refused(item):
    source = open_source([(PICTURES[0], 0), item])
    with pytest.raises(
        DataError, match=rf"^image 1 is a (tuple|list) of {len(item)}; an image, or \(image, label\)\.$"
    ):
        source.image(1)
    with pytest.raises(DataError, match="image 1 is a"):
        list(training(source))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (5, "must be a PIL image, a path, an array or a tensor, not a int"),
        ({"image": PICTURES[0]}, "must be a PIL image, a path, an array or a tensor, not a dict"),
        (TENSOR[0].permute(1, 2, 0), r"must be a tensor \(3, H, W\), not \(13, 11, 3\)"),
        (ARRAY[0].transpose(2, 0, 1), r"must be 8-bit, \(H, W, 3\) as an array, not uint8 of \(3, 13, 11\)"),
        (ARRAY[0].astype(np.int64), "must be 8-bit, .* not int64"),
        (TENSOR[0].long(), "must be 8-bit, .* not int64"),
    ],
)
def test_what_is_no_image_is_named(image, reason: str):
    with pytest.raises(DataError, match=f"^image 1 {reason}"):
        open_source([PICTURES[0], image]).image(1)


@pytest.mark.parametrize("image", [ARRAY[0], TENSOR[0]], ids=["array", "tensor"])
def test_one_image_is_no_list_of_its_rows(image):
    with pytest.raises((DataError, ImageError)):
        open_source(image).image(0)


# Batches: those of the same images in files


def training(source, steps: int = 5, **options) -> list[Batch]:
    options = {"size": SIZE, "batch_size": 4, "augment": Augment(), "seed": 5, "workers": 0} | options
    return list(itertools.islice(training_batches(source, **options), steps))


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected) > 0
    for one, other in zip(batches, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.positions == other.positions
        assert one.step == other.step
        assert not one.bad
        assert not other.bad


FORMS = {
    "data set of PIL": lambda files: Pictures("PIL", pairs=True),
    "data set of arrays": lambda files: Pictures("array", pairs=True),
    "data set of tensors": lambda files: Pictures("tensor", pairs=True),
    "torchvision": lambda files: Torchvision(),
    "TensorDataset": lambda files: TensorDataset(TENSOR, torch.tensor(LABELS)),
    "array": lambda files: Objects(ARRAY, given_labels=LABELS),
    "floats": lambda files: Objects(TENSOR / 127.5 - 1, value_range=(-1, 1), given_labels=LABELS),
    "paths": lambda files: Objects(files, given_labels=LABELS),
    "pairs": lambda files: list(zip(files, LABELS, strict=True)),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_training_batches_are_those_of_the_files(files: list[Path], folder: Folder, form: str, workers: int):
    source = open_source(FORMS[form](files))
    assert_same(training(source, workers=workers), training(folder))
    assert_same(training(source, 2, start_step=3, workers=workers), training(folder)[3:])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_ordered_batches_are_those_of_the_files(files: list[Path], folder: Folder, form: str, workers: int):
    source = open_source(FORMS[form](files))
    for how in ("crop", "resize", "pad"):
        options = {"size": SIZE, "batch_size": 4, "how": how}
        found = list(ordered_batches(source, **options, workers=workers))
        assert_same(found, list(ordered_batches(folder, **options)))
        assert [name for batch in found for name in batch.names] == source.names
    chosen = [7, 0, 3]
    [some] = ordered_batches(source, size=SIZE, batch_size=4, chosen=chosen, workers=workers)
    assert some.positions == chosen


def test_workers_that_are_started_anew_get_them_by_pickle():
    for data in (Pictures(pairs=True), ARRAY, PICTURES):
        source = open_source(data)
        copies = [pickle.loads(pickle.dumps(source)), (source.labels, pickle.loads(pickle.dumps(source)))[1]]
        for copy in copies:
            assert (copy.names, copy.labels, copy.identity) == (source.names, source.labels, source.identity)
            assert copy.image(3)[0].tobytes() == PICTURES[3].tobytes()


# Bad ones


class Damaged(Pictures):
    """Opens files itself; some of them cannot be opened."""

    def __init__(self, error: Exception, bad: tuple[int, ...] = (2, 3)):
        super().__init__(pairs=True)
        self.error, self.bad, self.targets = error, bad, LABELS

    def __getitem__(self, index: int):
        if index in self.bad:
            raise self.error
        return super().__getitem__(index)


ERRORS = [
    FileNotFoundError(2, "No such file or directory", "x.png"),
    OSError("image file is truncated (3 bytes not processed)"),
    Image.UnidentifiedImageError("cannot identify image file 'x.png'"),
]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_images_that_a_data_set_cannot_read_are_left_out_and_named(error: Exception, workers: int):
    source = open_source(Damaged(error))
    batches = list(ordered_batches(source, size=SIZE, batch_size=4, workers=workers))
    assert sum(map(len, batches)) == COUNT - 2
    bad = {name: reason for batch in batches for name, reason in batch.bad.items()}
    assert list(bad) == ["image 2", "image 3"]
    assert all("None" not in reason and reason.startswith("image") and reason.endswith(".") for reason in bad.values())
    trained = training(source, workers=workers)
    assert all(len(batch) == 4 for batch in trained)
    assert {name for batch in trained for name in batch.bad} == {"image 2", "image 3"}


def test_a_list_of_paths_with_bad_files(files: list[Path]):
    files[2].write_bytes(b"no image")
    files[5].unlink()
    batches = list(ordered_batches(open_source(files), size=SIZE, batch_size=4))
    assert {name for batch in batches for name in batch.bad} == {str(files[2]), str(files[5])}
    assert sum(map(len, batches)) == COUNT - 2


def test_an_image_that_is_listed_twice_may_be_bad(tmp_path: Path, files: list[Path]):
    (tmp_path / "bad.png").write_bytes(b"no image")
    source = open_source([tmp_path / "bad.png"] * 8 + [files[0]])
    for batch in training(source, 5):
        assert set(batch.names) == {str(files[0])}
        assert all(name.startswith(str(tmp_path / "bad.png")) for name in batch.bad)
        assert batch.bad


@pytest.mark.parametrize("workers", [0, 2])
def test_none_that_can_be_read_is_a_sentence(workers: int):
    with pytest.raises(DataError, match=r"^image 0 is of floating-point"):  # at the first, not after all of them
        list(ordered_batches(open_source(TENSOR / 255), size=SIZE, batch_size=4, workers=workers))
    with pytest.raises(DataError, match="floating-point numbers"):
        training(open_source(TENSOR / 255), workers=workers)


def test_there_are_no_bytes_of_files():
    with pytest.raises(DataError, match="held in memory"):
        open_source(PICTURES).read(0)
