"""Labels and classes: what is written beside an image, or the folder it lies in, becomes the number of its class."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date
from numbers import Number
from pathlib import Path
from typing import Any

from softvq.errors import DataError

UNLABELLED = -1  # the label of an image whose class is not known
_MOST_NUMBERS = 10**6  # beyond it, numbers are names: a date, an identifier


def label_classes(labels: set[str]) -> list[str]:
    """Return the classes of labels: numbers up to the largest where all are numbers, else the labels, sorted.

    Class numbers stay as they are, so that all below the largest are classes too. Numbers of a million and more are
    names.
    """
    if not labels:
        return [""]
    if all(label.isdecimal() for label in labels) and (largest := max(map(int, labels))) < _MOST_NUMBERS:
        return [str(number) for number in range(largest + 1)]
    return sorted(labels)


def folder_classes(folders: set[str], more: Iterable[str] = ()) -> list[str]:
    """Return the classes of folders: in the order of their numbers where they are exactly 0 … K−1, else sorted.

    `more` are folders without images: those that are numbers are classes too where that fills the gaps of the others.
    No folder at all is one class.
    """
    named = folders - {""}
    if named and all(map(_is_number, named)) and len(set(map(int, named))) == len(named):
        by_number = {int(name): name for name in (*filter(_is_number, more), *named)}
        count = next(number for number in range(len(by_number) + 1) if number not in by_number)
        if max(map(int, named)) < count:
            return [by_number[number] for number in range(count)]
    return sorted(named) or [""]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 10


def label_text(label: Any, name: str) -> str | None:
    """Return a label as text, None where there is none: null, NaN, empty or −1; `DataError` where it is no class."""
    if isinstance(label, float):
        label = None if math.isnan(label) else int(label) if label.is_integer() else label
    text = "" if label is None else str(label).strip()
    text = re.sub(r"^(-?\d+)\.0*$", r"\1", text)  # 2.0 is class 2
    if text in ("", "-1"):
        return None
    negative = text[:1] == "-" and text[1:].isdecimal()
    is_one = isinstance(label, str | Number | date) and not isinstance(label, float)
    if negative or not is_one or set("\n\0") & set(text) or _is_json(text):
        raise DataError(
            f"the label of {name} is {' '.join(text[:40].split())}, which is no class; classes are whole numbers from "
            "0 on or names, and -1 stands for none.",
            setting="label_column",
        )
    return text


def _is_json(text: str) -> bool:
    """Return True for an object or a list: a label is then somewhere within it."""
    with suppress(ValueError, RecursionError):
        return text[0] in "{[" and isinstance(json.loads(text), dict | list)
    return False


def numbers_of(labels: Sequence[str | None], classes: list[str]) -> list[int]:
    """Return the number of each label in `classes`; "007" is class 7 where they are numbers."""
    numbers: dict[str | None, int] = {label: number for number, label in enumerate(classes)} | {None: UNLABELLED}
    return [numbers[label] if label in numbers else int(label) for label in labels]


def class_of(name: str) -> str:
    """Return the class that a path says: its first folder, an empty name without one."""
    parts = Path(name.lstrip("/")).parts
    return parts[0] if len(parts) > 1 else ""
