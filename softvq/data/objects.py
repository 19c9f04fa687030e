"""Images that a program holds: a torch `Dataset`, an array, a list of paths or of images, as a `Source`."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from softvq.data.images import as_image
from softvq.data.labels import UNLABELLED
from softvq.data.order import evenly
from softvq.data.sources import Source, Stamp, file_stamps
from softvq.errors import DataError, ImageError, counted
from softvq.files import first_line, hashed


@dataclass(frozen=True, eq=False)
class Objects(Source):
    """Images by index of anything that has a length: `items[i]` is an image, or a pair (image, label).

    An image is a path, a PIL image, an 8-bit array (H, W, 3) or tensor (3, H, W). Floating-point tensors and arrays
    need `value_range`, their numbers for black and white, such as (0, 1). `given_labels` and `class_names` replace
    those that the items, or their attributes `targets` and `classes` (torchvision's), give.

    A label that is None or −1 stands for none; an image that is None is one that cannot be read.

    An item must always be the same image: training does its own cropping and mirroring, a function of the seed.
    """

    items: Any
    value_range: tuple[float, float] | None = None
    given_labels: Any = None
    class_names: Sequence[str] | None = None

    def __post_init__(self):
        kind = type(self.items).__name__
        by_number = hasattr(self.items, "__len__") and hasattr(self.items, "__getitem__")
        if not by_number or isinstance(self.items, Mapping | IterableDataset):
            raise DataError(
                f"images by number are wanted: a {kind} has none, or no length, and so no order that a run could be "
                "resumed in."
            )
        if not len(self.items):
            raise DataError("there are no images: the data set is empty.")
        if isinstance(self.items, np.ndarray | Tensor):
            shape = tuple(self.items.shape)
            is_grey = isinstance(self.items, np.ndarray) and len(shape) == 3 and shape[2] not in (3, 4)
            if len(shape) != 4 and not is_grey:
                raise DataError(
                    f"an array of images has the shape (N, H, W, 3), a tensor of them (N, 3, H, W), not {shape}; one "
                    "image is given in a list."
                )

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        return f"{counted(len(self), 'image')} ({type(self.items).__name__})"

    @cached_property
    def _are_paths(self) -> bool:
        return isinstance(self.items, list | tuple) and all(isinstance(item, str | Path) for item in self.items)

    @cached_property
    def names(self) -> list[str]:
        """The names of the images: unique paths for a list of paths, else `image 0`, `image 1`, …."""
        if not self._are_paths:
            return [f"image {number}" for number in range(len(self.items))]
        seen: Counter[str] = Counter()
        names = []
        for item in map(str, self.items):
            seen[item] += 1
            names.append(item if seen[item] == 1 else f"{item} ({seen[item]})")  # the same file once more
        return names

    @cached_property
    def _told_labels(self) -> list[int] | None:
        """The labels given for all images at once, as `given_labels` or by the data set; None without them."""
        own = self.given_labels if self.given_labels is not None else getattr(self.items, "targets", None)
        if own is not None and len(own) == len(self.items):
            return [_label(label, self.names[number]) for number, label in enumerate(own)]
        if self.given_labels is not None:
            raise DataError(f"there are {len(self.given_labels)} labels for {len(self.items)} images.")
        return None

    @cached_property
    def labels(self) -> list[int]:
        """The class number of each image: those given for all at once, else the items' own, else 0."""
        if self._told_labels is not None:
            return self._told_labels
        if isinstance(self.items, np.ndarray | Tensor) or not isinstance(self.items[0], tuple | list):
            return [0] * len(self.items)
        return [self._parts(number)[1] for number in range(len(self.items))]

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes: those given, else the data set's, else their numbers.

        A single class, or none, has an empty name by default. Raise `DataError` when there are labels beyond the names.
        """
        count = max(self.labels) + 1
        names = self.class_names if self.class_names is not None else getattr(self.items, "classes", None)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            if len(names) < count:
                raise DataError(f"a label is {count - 1}, but there are the names of {len(names)} classes alone.")
            return list(names)
        return [""] if count < 2 else [str(number) for number in range(count)]

    def stamps(self) -> list[Stamp] | None:
        """Return the size and the time of change of each file of a list of paths; None for other images."""
        return file_stamps([os.path.expanduser(item) for item in self.items]) if self._are_paths else None

    def digest(self, index: int) -> str:
        """Return a checksum of an image's pixels, 16 hex digits."""
        return hashed(self._pixels(index))

    @cached_property
    def identity(self) -> dict[str, object]:
        """The number of images and checksums.

        `names` is of all of an array's numbers, else of the names and of the pixels of up to 64 images, evenly over
        them, with their labels; `contents` is of the labels given for all at once and, where they are known, the sizes
        of files.
        """
        digest = hashlib.sha256(f"{type(self.items).__module__}.{type(self.items).__qualname__}".encode())
        if isinstance(self.items, np.ndarray | Tensor):
            digest.update(f"{self.items.dtype} {tuple(self.items.shape)}".encode())
            numbers = (
                self.items if isinstance(self.items, Tensor) else torch.as_tensor(np.ascontiguousarray(self.items))
            )
            digest.update(numbers.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        else:
            digest.update("\n".join(self.names).encode("utf-8", "surrogateescape"))
            for number in evenly(64, len(self.items)):
                digest.update(self._pixels(number))
        sizes = [size for size, _ in self.stamps() or ()]
        contents = hashed(json.dumps([self._told_labels, sizes]))
        return {"count": len(self.items), "names": digest.hexdigest()[:16], "contents": contents}

    @property
    def version(self) -> str:
        """A checksum of the identity, and of the times of change of files where the images are files."""
        return hashed(json.dumps([self.identity, self.stamps()]))

    def read(self, index: int) -> bytes:
        """Raise `DataError`: images in memory have no bytes of a file."""
        raise DataError("these images are held in memory and have no bytes of a file.")

    def image_size(self, index: int) -> tuple[int, int]:
        """Return an image's width and height in pixels."""
        return self.image(index)[0].size

    def image(self, index: int) -> tuple[Image.Image, int]:
        """Return an image, 8-bit RGB, and its label.

        `ImageError` names a file that cannot be read; an item that is no image, or of the wrong kind, is a `DataError`.
        """
        name = self.names[index]
        try:
            image, label = self._parts(index)
            if image is None:
                raise ImageError(f"{name} is null: there is no image.")
            made = as_image(image, name, self.value_range)
        except OSError as error:  # of a data set that reads files, as it reads them
            raise ImageError(f"{name} cannot be read ({error.strerror or first_line(error)}).") from error
        except ImageError as error:
            if isinstance(image, str | Path | None):
                raise
            raise DataError(str(error)) from error  # no bad file: all images are probably of this kind
        return made, label if self._told_labels is None else self._told_labels[index]

    def _pixels(self, index: int) -> bytes:
        """Return bytes that tell an image from another, for one that cannot be read a constant."""
        try:
            image, label = self.image(index)
        except (ImageError, DataError):
            return b"unreadable"
        return f"{image.size} {label}".encode() + image.tobytes()

    def _parts(self, index: int) -> tuple[Any, int]:
        """Return an item's image and label."""
        item = self.items[index]
        if not isinstance(item, tuple | list):
            return item, 0
        if len(item) != 2:
            raise DataError(
                f"{self.names[index]} is a {type(item).__name__} of {len(item)}; an image, or (image, label)."
            )
        return item[0], _label(item[1], self.names[index])


def _label(label: Any, name: str) -> int:
    """Return a label as a number, `UNLABELLED` for None and −1; `DataError` where it is none."""
    is_one = getattr(label, "numel", lambda: getattr(label, "size", 1))() == 1
    number = label.item() if hasattr(label, "item") and is_one else label
    if number is None or (isinstance(number, float) and number != number):
        return UNLABELLED
    if not isinstance(number, Integral) or isinstance(number, bool) or number < UNLABELLED:
        raise DataError(f"the label of {name} is {label!r}; labels are whole numbers from 0 on, and -1 for none.")
    return int(number)
