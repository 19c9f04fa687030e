"""Data by its name, or as the objects that a program holds: each becomes a `Source`."""

import glob
import json
import os
from pathlib import Path
from typing import Any

from softvq import progress
from softvq.config import parse, variants
from softvq.data.objects import Objects
from softvq.data.sources import EMOJI, Folder, HubDataset, Shards, Source, TarFile
from softvq.data.stream import braces, open_stream
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

    Raise `DataError` when one of a range is missing, or nothing matches.
    """
    paths = []
    for one in braces(pattern):
        if any(mark in one for mark in "*?["):
            paths += sorted(map(Path, glob.glob(os.path.expanduser(one))))
        elif not (path := Path(one).expanduser()).is_file():
            raise DataError(f"there is no file {one!r}.")
        else:
            paths.append(path)
    if not paths:
        raise DataError(f"no file matches {pattern!r}.")
    return paths


def open_source(data: Any) -> Source:
    """Return the images that `data` means, as a `Source`.

    It is a `Source` already; a torch `Dataset`, an array or a list of images or paths (see `Objects`); or a name.

    Names: one of the bundled sets in `BUNDLED`, a folder, tar shards (`train.tar`, `shards/*.tar`,
    `train-{0000..1023}.tar`; at an address, `https://host/train-{0000..1023}.tar`, they are streamed), a Hugging Face
    dataset (`hf:OWNER/NAME`, `hf:OWNER/NAME:SPLIT`), parquet files of one (`part-*.parquet`), or a registered source by
    name or as JSON (`{"type": NAME, …}`). Raise `DataError`, which says what is missing, when there are no such images.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, Path):
        data = str(data)
    if not isinstance(data, str):
        return Objects(data)
    with progress.waiting(f"listing {data}"):
        return _named(data)


def listing(data: Any, images: int | None = None) -> Source:
    """Return the images as a list: all, or of a stream at least `images` of them."""
    return open_source(data).listing(images)


def _named(data: str) -> Source:
    if data in BUNDLED:
        return _bundled(data)
    if data.startswith("{") and data.endswith("}") and '"type"' in data:
        return _registered(data)
    if data.isidentifier() and data in variants(Source):
        if Path(data).exists():
            raise DataError(f'{data!r} is a folder and a registered source; write ./{data}, or {{"type": "{data}"}}.')
        return _registered(json.dumps({"type": data}))
    if data.startswith("hf:") and not data.startswith("hf://"):
        name, _, split = data[3:].partition(":")
        return HubDataset(name, split or "train")
    if "://" in data:
        if not data.lower().endswith(".tar"):
            raise DataError(f"{data!r} names no tar shards; remote images are read from .tar files.")
        return open_stream(data)
    if data.lower().endswith(".parquet"):
        expand(data)
        return HubDataset(data)
    if data.lower().endswith(".tar"):
        return Shards(tuple(expand(data)))
    return Folder(Path(data).expanduser())


def _registered(data: str) -> Source:
    try:
        described = json.loads(data)
    except ValueError as error:
        raise DataError(f"{data!r} is no JSON ({error}).") from error
    return parse(Source, described, "data")


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
