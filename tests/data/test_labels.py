"""Labels and folders become the numbers of classes: numbers stay what they are, all else is a name."""

import math
from datetime import datetime
from decimal import Decimal

import numpy as np
import pytest
from PIL import Image

from softvq.data.labels import class_of, folder_classes, label_classes, label_text, numbers_of
from softvq.errors import DataError


@pytest.mark.parametrize(
    ("folders", "more", "classes"),
    [
        ([str(k) for k in range(12)], [], [str(k) for k in range(12)]),
        ([f"{k:02}" for k in range(12)], [], [f"{k:02}" for k in range(12)]),
        (["0", "01", "2"], [], ["0", "01", "2"]),
        (["2", "0", "10", "1"], [], ["0", "1", "10", "2"]),  # a gap: names
        ([str(k) for k in range(1, 12)], [], sorted(str(k) for k in range(1, 12))),
        (["0", "00", "1"], [], ["0", "00", "1"]),
        (["0", "1", "cat"], [], ["0", "1", "cat"]),
        (["-1", "0", "1"], [], ["-1", "0", "1"]),
        (["1", "²", "0"], [], ["0", "1", "²"]),
        (["٢", "٠", "١"], [], ["٠", "١", "٢"]),
        (["dog", "Cat", "éa"], [], ["Cat", "dog", "éa"]),
        (["2", "0"], ["1"], ["0", "1", "2"]),  # an empty folder is a class where it fills a gap
        ([str(k) for k in range(11)], ["masks"], [str(k) for k in range(11)]),
        ([str(k) for k in range(11)], ["99"], [str(k) for k in range(11)]),
        (["0", "2"], ["1", "9", "3", "00", "x"], ["0", "1", "2", "3"]),
        (["dog", "cat"], ["owl"], ["cat", "dog"]),
        ([], ["0", "1"], [""]),
        ([], [], [""]),
    ],
)
def test_folders_that_are_exactly_numbers_keep_them(folders: list[str], more: list[str], classes: list[str]):
    assert folder_classes({*folders, ""}, more) == classes


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["2", "10", "0"], [str(k) for k in range(11)], [2, 10, 0]),
        (["007", "2"], [str(k) for k in range(8)], [7, 2]),
        (["٣"], ["0", "1", "2", "3"], [3]),
        (["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]),
        (["10", "cat", "2"], ["10", "2", "cat"], [0, 2, 1]),
        (["20200101", "0"], ["0", "20200101"], [1, 0]),
        (["3", None], ["0", "1", "2", "3"], [3, -1]),
        ([None], [""], [-1]),
    ],
)
def test_numbers_stay_and_names_are_sorted(labels: list[str | None], classes: list[str], numbers: list[int]):
    found = label_classes(set(labels) - {None})
    assert found == classes
    assert numbers_of(labels, found) == numbers


@pytest.mark.parametrize("label", [None, math.nan, np.float64("nan"), "", " \n", "-1", -1, -1.0, np.int64(-1), "-1.0"])
def test_no_label_is_none(label: object):
    assert label_text(label, "a") is None


@pytest.mark.parametrize(
    ("label", "text"),
    [
        *[
            (3, "3"),
            (3.0, "3"),
            ("3\r\n", "3"),
            ("3.0", "3"),
            (np.int64(3), "3"),
            (Decimal("3.00"), "3"),
            ("007", "007"),
        ],
        *[("cat", "cat"), (" a cat ", "a cat"), (True, "True"), ("1.5", "1.5"), ("[other]", "[other]"), ("{x", "{x")],
        (datetime(2020, 1, 2), "2020-01-02 00:00:00"),
    ],
)
def test_a_label_as_text(label: object, text: str):
    assert label_text(label, "a") == text


@pytest.mark.parametrize(
    "label",
    [
        *[-5, "-5", -5.0, 0.37, math.inf, [1, 2], [], {"a": 1}, b"cat", b"", (1,)],
        *['{"label": 3}', "[3]", "3\n4", "2\0"],
    ],
    ids=repr,
)
def test_what_is_no_class_is_a_sentence_that_names_it(label: object):
    with pytest.raises(
        DataError, match=r"^the label of a/b\.png is .*, which is no class; .* -1 stands for none\.$"
    ) as e:
        label_text(label, "a/b.png")
    assert e.value.setting == "label_column"
    assert "\n" not in str(e.value)


def test_an_image_is_no_label():
    with pytest.raises(DataError, match="which is no class"):
        label_text(Image.new("L", (1, 1)), "a/b.png")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("dog/1.png", "dog"), ("./dog/1.png", "dog"), ("/dog/1.png", "dog"), ("dog/a/1.png", "dog"), ("1.png", "")],
)
def test_a_class_is_the_first_folder(name: str, folder: str):
    assert class_of(name) == folder
