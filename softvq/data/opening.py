"""Data by its name, or as the objects that a program holds: each becomes a `Source`."""

import glob
import json
import os
from pathlib import Path
from typing import Any

from softvq import progress
from softvq.config import parse, variants
from softvq.data.datasets import HubDataset
from softvq.data.finding import ImageFinder
from softvq.data.objects import Objects
from softvq.data.shards import Shards, TarFile
from softvq.data.sources import EMOJI, Columns, Folder, Source, tell
from softvq.data.stream import ShardStream, braces, open_stream
from softvq.errors import DataError

# The bundled sets of images. Recipes and settings are chosen on `emoji-dev` (after training on `emoji-train`, which has
# none of its images), so that `emoji-val` is left for figures that are quoted.
BUNDLED = {
    "emoji": "the 3,094 bundled training images",
    "emoji-train": "the 2,794 of them that are not in emoji-dev",
    "emoji-dev": "300 of them, by class and without their tone variants elsewhere, to choose recipes and settings on",
    "emoji-val": "the 280 bundled validation images, for final figures",
}


def expand(pattern: str) -> list[Path]:
    """Return the files of a pattern in order: ranges in braces and wildcards, `train-{000..127}.tar` or `shards/*.tar`.

    A file that exists is itself, whatever is in its name, and so is the folder that a pattern lies in. Raise
    `DataError` when one of a range is missing, or nothing matches.
    """
    whole = _path(pattern)
    if os.path.isfile(whole):
        return [whole]
    folder = next(parent for parent in whole.parents if os.path.isdir(parent) or parent == parent.parent)
    paths: list[Path] = []
    for one in braces(str(whole.relative_to(folder))):
        if os.path.isfile(folder / one):
            paths.append(folder / one)
        elif any(mark in one for mark in "*?["):
            found = sorted(map(Path, glob.glob(os.path.join(glob.escape(str(folder)), one))))
            paths += [path for path in found if path.is_file()]
        else:
            raise DataError(f"there is no file {str(folder / one)!r}.")
    if not paths:
        raise DataError(f"no file matches {pattern!r}.")
    return paths


def _path(name: str) -> Path:
    if os.path.lexists(name):
        return Path(name)
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # of a user or a home directory that there is not
        raise DataError(f"{name!r} cannot be found ({str(error).rstrip('.')}); write the whole path.") from None


def with_columns(data: str, image: str | None = None, label: str | None = None) -> str:
    """Return a name of images that also says which column or ending holds the image and which the label."""
    named = {"image_column": image, "label_column": label}
    given = {name: value for name, value in named.items() if value is not None}
    return json.dumps({"data": data, **given}) if given else data


def is_name(data: str) -> bool:
    """Return True when a text names a data set, and is not just the path of a folder or of an image."""
    is_set = data.removeprefix("bundled:") in BUNDLED or data in variants(Source)
    return is_set or "://" in data or data.startswith(("hf:", "{")) or data.lower().endswith((".tar", ".parquet"))


def open_source(data: Any) -> Source:
    """Return the images that `data` means, as a `Source`.

    It is a `Source` already; a torch `Dataset`, an array or a list of images or paths (see `Objects`); or a name.

    Names: one of the bundled sets in `BUNDLED`, a folder, tar shards (`train.tar`, `shards/*.tar`,
    `train-{0000..1023}.tar`; at an address, `https://host/train-{0000..1023}.tar`, they are streamed), a Hugging Face
    dataset (`hf:OWNER/NAME`, `hf:OWNER/NAME:SPLIT`), parquet files of one (`part-*.parquet`), or a registered source by
    name or as JSON (`{"type": NAME, …}`). A path that exists is itself. `with_columns` adds which part of a sample is
    its image. Raise `DataError`, which says what is missing, when there are no such images. What is left out is said in
    a `Notice`.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, Path):
        data = str(data) if data.parent.name or data.is_absolute() else f"./{data}"  # never a bundled set
    if not isinstance(data, str):
        return Objects(data)
    name, columns = _parts(data)
    if not name:
        raise DataError("the name of the images is empty.")
    with progress.waiting(f"listing {name}"):
        source = _named(name, columns)
        if not isinstance(source, ShardStream):  # which is looked through as it comes
            tell(source, name)
        return source


def listing(data: Any, images: int | None = None) -> Source:
    """Return the images as a list: all, or of a stream at least `images` of them."""
    source = open_source(data)
    listed = source.listing(images)
    if listed is not source:
        tell(listed, _parts(data)[0] if isinstance(data, str) else str(data))
    return listed


def _parts(data: str) -> tuple[str, Columns | None]:
    """Return the name of the images, and the columns that `with_columns` has added to it."""
    if not (data.startswith("{") and data.endswith("}") and '"data"' in data):
        return data, None
    parts = _object(data)
    if odd := sorted(set(parts) - {"data", "image_column", "label_column"}):
        raise DataError(f"{data}: there is no key {odd[0]!r}; it has data, image_column and label_column.")
    return str(parts.get("data")), Columns(parts.get("image_column"), parts.get("label_column"))


def _named(data: str, columns: Columns | None) -> Source:
    chosen = columns or Columns()
    source = _of_columns(data, chosen)
    if source is not None:
        return source
    if columns is not None and columns != Columns():
        raise DataError(
            f"{data!r} has no columns: these are for datasets and tar shards.",
            setting="label_column" if chosen.image is None else "image_column",
        )
    return _plain(data)


def _of_columns(data: str, columns: Columns) -> Source | None:
    """Return a data set whose samples have several parts: a Hugging Face dataset or tar shards; None for others."""
    if data in BUNDLED or os.path.isdir(_path(data)):
        return None
    is_file = os.path.isfile(_path(data))
    if data.startswith("hf:") and not data.startswith("hf://") and not is_file:
        name, _, split = data[3:].partition(":")
        if not name:
            raise DataError(f"{data!r} names no dataset; write hf:OWNER/NAME, or hf:OWNER/NAME:SPLIT.")
        return HubDataset(name, split or "train", columns.image, columns.label)
    if "://" in data and not is_file:
        if not data.lower().endswith(".tar"):
            raise DataError(f"{data!r} names no tar shards; remote images are read from .tar files, not compressed.")
        return open_stream(data, columns)
    if data.lower().endswith(".parquet"):
        return HubDataset(data, "train", columns.image, columns.label, tuple(expand(data)))
    if data.lower().endswith(".tar"):
        return Shards(tuple(expand(data)), columns.image, columns.label)
    return None


def _plain(data: str) -> Source:
    """Return images that are no samples of several parts: bundled or registered ones, a folder, a single file."""
    if data.removeprefix("bundled:") in BUNDLED:
        if not data.startswith("bundled:") and Path(data).is_dir():
            raise DataError(f"{data!r} is a folder here and a bundled set; write ./{data}, or bundled:{data}.")
        return _bundled(data.removeprefix("bundled:"))
    if data.startswith("{") and data.endswith("}") and '"type"' in data:
        return _registered(data)
    if data.isidentifier() and data in variants(Source):
        if Path(data).exists():
            raise DataError(f'{data!r} is a folder and a registered source; write ./{data}, or {{"type": "{data}"}}.')
        return _registered(json.dumps({"type": data}))
    path = _path(data)
    if os.path.isfile(path):
        return _file(path)
    if os.path.lexists(path) and not os.path.isdir(path):
        raise DataError(f"{str(path)!r} is neither a folder nor a file, or a link that leads nowhere.")
    return Folder(path)


_UNREAD = {  # what other files are, and what to do with them
    (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".gz", ".bz2", ".xz", ".zst"): (
        "is compressed, and images in it cannot be read in place: unpack it, to a .tar or a folder"
    ),
    (".zip", ".7z", ".rar"): "is an archive that is not read: unpack it, and give the folder",
    (".npz", ".npy"): "is an array; in Python, open_source takes arrays",
    (".safetensors",): "holds tensors, and no images; latents are for softvq decode",
}


def _file(path: Path) -> Source:
    """Return a single image as a source; `DataError` names any other file for what it is."""
    name = path.name.lower()
    what = next((text for endings, text in _UNREAD.items() if name.endswith(endings)), None)
    if what is None:
        with path.open("rb") as file:
            start = file.read(512)
        if ImageFinder().is_image(path.name, lambda: start):
            return Objects([path])
        is_tar = start[257:262] == b"ustar"
        what = "is a tar file without the ending .tar: rename it" if is_tar else "is a file of a kind that is not read"
    raise DataError(f"{str(path)!r} {what}; images are in a folder, .tar shards, or a dataset (.parquet, hf:NAME).")


def _object(data: str) -> dict[str, Any]:
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"{data!r} is no JSON ({error}).") from error


def _registered(data: str) -> Source:
    return parse(Source, _object(data), "data")


def _bundled(name: str) -> TarFile:
    if name == "emoji-val":
        return TarFile(EMOJI / "val.tar")
    if name == "emoji":
        return TarFile(EMOJI / "train.tar")
    dev = frozenset(json.loads((EMOJI / "dev.json").read_text(encoding="utf-8")))
    return TarFile(EMOJI / "train.tar", only=dev) if name == "emoji-dev" else TarFile(EMOJI / "train.tar", without=dev)


def emoji_labels() -> dict[str, dict[str, str]]:
    """Return name, Unicode group and subgroup, and split of each bundled emoji by its code points."""
    return json.loads((EMOJI / "labels.json").read_text(encoding="utf-8"))
