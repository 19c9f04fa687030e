"""Hugging Face datasets of images, from the hub or from parquet files."""

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from softvq.config import nearest, register
from softvq.data.labels import UNLABELLED, label_classes, label_text, numbers_of
from softvq.data.sources import Source, Stamp, file_stamps
from softvq.errors import DataError, ImageError
from softvq.files import hashed
from softvq.progress import is_quiet


@register
@dataclass(frozen=True)
class HubDataset(Source):
    """A split of a Hugging Face dataset, or local parquet files in its format.

    Its rows have an image, and a class where there is a column for it: `image_column` and `label_column` name the
    columns where that is not clear (a label column `none` stands for no labels); `files` are parquet files that `name`,
    a pattern, stands for. It is downloaded once by `datasets`, memory-mapped, and read row by row.
    """

    name: str
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    files: tuple[Path, ...] = ()

    @cached_property
    def _rows(self):
        try:
            import datasets
        except ImportError:
            raise DataError("Hugging Face datasets need a package: pip install 'softvq[data]'.") from None
        if is_quiet():
            datasets.disable_progress_bars()
        try:
            if self.name.lower().endswith(".parquet"):
                files = [glob.escape(str(path)) for path in self.files or (self.name,)]
                rows = datasets.load_dataset("parquet", data_files=files, split="train")
            else:
                rows = datasets.load_dataset(self.name, split=self.split)
        except Exception as error:  # of the network, the name, the split or the files
            reason = error.__cause__ or error
            raise DataError(f"the dataset {self.name!r} cannot be read ({type(reason).__name__}: {reason}).") from error
        image, label = self._image_and_label(rows.features)
        wanted = {image: "image"} | ({} if label is None else {label: "label"})
        rows = rows.select_columns(list(wanted))
        rows = rows.rename_columns({old: new for old, new in wanted.items() if old != new})
        try:
            return rows.cast_column("image", datasets.Image(decode=False))
        except Exception as error:  # pyarrow raises its own, and others
            raise DataError(
                f"the column {image!r} of the dataset {self.name!r} holds no images, one a row, as encoded bytes or "
                "paths.",
                setting="image_column",
            ) from error

    def _image_and_label(self, features: Mapping[str, Any]) -> tuple[str, str | None]:
        """Return the columns of images and labels by their types, or by the usual names."""
        import datasets

        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        images = images or [name for name in ("image", "img", "jpg", "png") if name in features]
        image = self._column(images, self.image_column, "image", list(features))
        if image is None:
            raise DataError(
                f"the dataset {self.name!r} has no column of images, only {', '.join(features)}.",
                setting="image_column",
            )
        labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        labels = [name for name in ("label",) if name in features] or labels or ["cls"] * ("cls" in features)
        label = self._column(labels, self.label_column, "label", list(features))
        if label == image:
            raise DataError(f"the column {image!r} is the images', and cannot hold labels.", setting="label_column")
        return image, label

    def _column(self, candidates: list[str], named: str | None, kind: str, columns: list[str]) -> str | None:
        """Return the column of images or labels: the one named, else that of the usual name, else the only one."""
        if named is not None and named not in columns:
            if (kind, named) == ("label", "none"):
                return None
            raise DataError(
                f"the dataset {self.name!r} has no column {named!r}{nearest(named, columns)}", setting=f"{kind}_column"
            )
        if named is not None or kind in candidates or len(candidates) < 2:
            return named or (kind if kind in candidates else next(iter(candidates), None))
        none = " (or none)" if kind == "label" else ""
        raise DataError(
            f"the dataset {self.name!r} has several columns of {kind}s ({', '.join(candidates)}); name one{none}.",
            setting=f"{kind}_column",
        )

    @cached_property
    def names(self) -> list[str]:
        """The names of the rows: dataset, split and number."""
        return [f"{self.name}/{self.split}/{number}" for number in range(len(self._rows))]

    @cached_property
    def _labelled(self) -> list[str | None]:
        """The label of each row as text, None where it has none."""
        return [label_text(label, name) for label, name in zip(self._rows["label"], self.names, strict=True)]

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes, as the dataset has them; one empty name without a column of labels."""
        kind = self._rows.features.get("label")
        if kind is None:
            return [""]
        return list(kind.names) if hasattr(kind, "names") else label_classes(set(self._labelled) - {None})

    @cached_property
    def labels(self) -> list[int]:
        """The class number of each row, 0 without a column of labels."""
        if "label" not in self._rows.features:
            return [0] * len(self._rows)
        if not hasattr(self._rows.features["label"], "names"):
            return numbers_of(self._labelled, self.classes)
        labels = [UNLABELLED if text is None else int(text) for text in self._labelled]
        if labels and max(labels) >= len(self.classes):
            name = self.names[labels.index(max(labels))]
            raise DataError(f"the label of {name} is {max(labels)}, but there are {len(self.classes)} classes.")
        return labels

    def stamps(self) -> list[Stamp]:
        """Return the size of each image, and a number of the state of the dataset in place of a time.

        Of images that a row gives as a path, they are the file's.
        """
        import pyarrow.compute as compute

        column = self._rows.data.column("image")
        sizes = compute.binary_length(compute.struct_field(column, "bytes")).to_pylist()
        changed = int(hashed(self._rows._fingerprint, 12), 16)
        stamps = [(size or 0, changed) for size in sizes]
        paths = compute.struct_field(column, "path").to_pylist() if None in sizes else []
        elsewhere = [row for row, path in enumerate(paths) if sizes[row] is None and path is not None]
        for row, stamp in zip(elsewhere, file_stamps([paths[row] for row in elsewhere]), strict=True):
            stamps[row] = stamp
        return stamps

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of a row's image; `ImageError` where it is null."""
        image = self._rows[index]["image"] or {}
        if image.get("bytes") is None and image.get("path") is None:
            raise ImageError(f"{self.names[index]} is null: the row has no image.")
        return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
