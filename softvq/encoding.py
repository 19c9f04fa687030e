"""The encoding of a data set, once: the latents of every image and of its mirror, which generators are trained on.

    encode("softvq-emoji-64", "photos/", "latents/")

Images are cut by ADM's centre crop. Work is shared out over ranks and goes on, by whole shards, where it was stopped.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softvq import distributed
from softvq import progress as progresses
from softvq.data.latents import CONTENTS, INDEX, NAMES, LatentIndex, shard_path
from softvq.data.loader import Batch, ordered_batches, readable
from softvq.data.opening import listing
from softvq.data.sources import Source
from softvq.errors import ConfigError, DataError, Notice, check_whole, counted
from softvq.files import check_writable, read_json, read_metadata, read_tensors, write_json, write_tensors
from softvq.models import AnyTokenizer, load_tokenizer, own_device
from softvq.runtime import autocast, pick_precision

Stamps = list[list[int]] | None  # the size and the time of change of each image, as JSON has them


@dataclass(frozen=True)
class Encoding:
    """All that a cache is a function of: another tokenizer, other images or other settings are another cache."""

    tokenizer: str
    fingerprint: str
    source: str
    size: int
    tokens: int
    channels: int
    mirrored: bool
    shard: int


@torch.no_grad()
def encode(
    tokenizer: AnyTokenizer | str | Path,
    images: Any,
    out: str | Path,
    *,
    mirrored: bool = True,
    shard: int = 4096,
    batch_size: int = 64,
    workers: int = 2,
    device: str | torch.device | None = None,
    precision: str = "auto",
    progress: bool | None = None,
) -> LatentIndex:
    """Write the latents of all images into the folder `out`, and return their index.

    They are float16 in safetensors shards of `shard` images, with labels; `index.json` has the class names and the
    fingerprints of tokenizer and images. `data.latents.Latents` reads them.

    `tokenizer` is loaded, or a name. `images` are anything that `data.open_source` takes. `mirrored` is for every
    image's mirror too. `device` is the place of the encoding (None: where the tokenizer is, else the best there is),
    and `workers` the number of processes that decode. `progress` is that of `softvq.progress`. Shards that are there
    already are kept where their images and labels are what they were, and made again, with a `Notice`, where not; a
    file of which the time alone has changed is looked into. Each process makes its own shards.

    Raise `DataError` when `out` holds latents of something else, or no image can be read; `ConfigError` when a
    tokenizer that was neither saved nor loaded has no name for those who use its latents; `StorageError` when `out`
    cannot be written or there is no room.
    """
    device = own_device(device, tokenizer)
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    _check_request(tokenizer, shard=(shard, 1), batch_size=(batch_size, 1), workers=(workers, 0))
    config = tokenizer.to(device).config
    precision = pick_precision(precision, device, training=False)
    source, out = listing(images), Path(out)
    encoding = Encoding(
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.latent_fingerprint,
        source=str(images if isinstance(images, str | Path) else source),
        size=config.image_size,
        tokens=config.tokens,
        channels=config.latent_dim,
        mirrored=mirrored,
        shard=shard,
    )
    check_writable(out, _bytes_to_come(encoding, len(source.names), out), folder=True)

    def latents_of(batch: Tensor) -> Tensor:
        with autocast(device, precision):
            return tokenizer.encode(batch.to(device)).float().cpu()

    with distributed.locked(out):
        with progresses.waiting(f"comparing the images with the latents in {out}", show=progress):
            is_known = _check_same(out / "encoding.json", asdict(encoding)) and isinstance(images, str | Path)
            stamps = _stamps(source)  # before the images are read, so that no later change goes unnoticed
            _remove_stale(out, source, encoding, stamps, is_known)
        _write(latents_of, source, out, encoding, stamps, {"batch_size": batch_size, "workers": workers}, progress)
        return _index(out, source, encoding)


def _check_request(tokenizer: AnyTokenizer, **least: tuple[int, int]) -> None:
    """Raise `ConfigError` for a tokenizer without a name, and for settings (value, least) that are too small."""
    if not tokenizer.name:
        raise ConfigError(
            "this tokenizer was neither saved nor loaded, so that nothing could say whose latents these are: "
            "save_pretrained it, and load it from there."
        )
    for name, (number, smallest) in least.items():
        check_whole(name, number, smallest)


def _bytes_to_come(encoding: Encoding, images: int, out: Path) -> int:
    """Return the number of bytes of the float16 latents that are not in `out` yet."""
    firsts = (
        first for first in range(0, images, encoding.shard) if not shard_path(out, first // encoding.shard).exists()
    )
    missing = sum(min(encoding.shard, images - first) for first in firsts)
    return 2 * missing * (2 if encoding.mirrored else 1) * encoding.tokens * encoding.channels


def _write(
    latents_of: Callable[[Tensor], Tensor],
    source: Source,
    out: Path,
    encoding: Encoding,
    stamps: Stamps,
    reading: dict[str, int],
    show: bool | None,
) -> None:
    """Write the shards that are missing, each process its own."""

    def path(first: int) -> Path:
        return shard_path(out, first // encoding.shard)

    def make(numbers: range, done: Callable[[int], object]) -> None:
        made = _Shard(encoding)
        batches = ordered_batches(source, size=encoding.size, chosen=numbers, digests=True, **reading)
        for batch in readable(batches, made.bad):
            made.add(latents_of, batch)
            done(len(batch) + len(batch.bad))
        digests = [made.digests.get(number) or source.digest(number) for number in numbers]
        made.write(path(numbers.start), {**_contents(source, numbers, stamps), "digests": digests})

    distributed.in_parts(len(source.names), encoding.shard, path, make, "encoding", show=show)


class _Shard:
    """The latents, labels and bad files of consecutive images."""

    def __init__(self, encoding: Encoding):
        self.encoding = encoding
        self.latents: list[Tensor] = []
        self.labels: list[int] = []
        self.names: list[str] = []
        self.bad: dict[str, str] = {}
        self.digests: dict[int, str] = {}

    def add(self, latents_of: Callable[[Tensor], Tensor], batch: Batch) -> None:
        """Encode a batch, and its mirror images where they are wanted."""
        sides = [batch.images, batch.images.flip(-1)] if self.encoding.mirrored else [batch.images]
        latents = torch.stack([latents_of(side) for side in sides], dim=1)
        if not latents.isfinite().all():
            raise DataError(f"the latents of {batch.names[0]} and others are not finite.")
        self.latents.append(latents.to(torch.float16))
        self.labels += batch.labels.tolist()
        self.names += batch.names
        self.digests |= batch.digests

    def write(self, path: Path, contents: dict[str, Any]) -> None:
        """Write the shard's file, with what it was made of."""
        shape = (0, 2 if self.encoding.mirrored else 1, self.encoding.tokens, self.encoding.channels)
        tensors = {
            "latents": torch.cat(self.latents) if self.latents else torch.zeros(shape, dtype=torch.float16),
            "labels": torch.tensor(self.labels, dtype=torch.int32),
        }
        metadata = {"bad": self.bad, NAMES: self.names, CONTENTS: contents}
        write_tensors(path, tensors, {name: json.dumps(part) for name, part in metadata.items()})


def _stamps(source: Source) -> Stamps:
    """Return the sizes and times of change of all images as JSON has them; None where they are not known."""
    stamps = source.stamps()
    return None if stamps is None else [list(stamp) for stamp in stamps]


def _contents(source: Source, numbers: range, stamps: Stamps) -> dict[str, Any]:
    """Return what tells the images of a shard from others, but for their contents."""
    names, labels = (part[numbers.start : numbers.stop] for part in (source.names, source.labels))
    return {"names": names, "labels": labels, "stamps": stamps and stamps[numbers.start : numbers.stop]}


def _remove_stale(out: Path, source: Source, encoding: Encoding, stamps: Stamps, is_known: bool) -> None:
    """Delete the shards of images that have changed, each process its share, and the index that counts them.

    Raise `DataError` instead when the images are not known (`is_known`) by name as those that the shards are of.
    """
    count = -(-len(source.names) // encoding.shard)
    held = {int(path.stem.partition("-")[2]): path for path in out.glob("latents-*.safetensors")}
    stale = []
    for number, path in sorted(held.items())[distributed.rank() :: distributed.world_size()]:
        numbers = range(number * encoding.shard, min(len(source.names), (number + 1) * encoding.shard))
        if number >= count or not _is_fresh(path, source, numbers, stamps):
            stale.append(path)
    stale = [path for paths in distributed.gathered(stale) for path in paths]
    if not stale:
        return
    if not is_known:
        raise DataError(
            f"{out} holds latents that were made otherwise: of other images than those of {encoding.source}; use "
            "another folder.",
            setting="out",
        )
    if distributed.rank() == 0:
        (out / INDEX).unlink(missing_ok=True)
        for path in stale:
            path.unlink()
        shards = f"{len(stale)} of {counted(len(held), 'shard')} in {out}"
        warnings.warn(f"{shards}: images or labels have changed since, they are encoded again.", Notice, stacklevel=3)
    distributed.barrier()


def _is_fresh(path: Path, source: Source, numbers: range, stamps: Stamps) -> bool:
    """Return True when a shard is of the images with these numbers as they are now.

    Images whose times alone have changed are looked into, and the shard then notes the new times.
    """
    try:
        before = json.loads(read_metadata(path)[CONTENTS])
    except (KeyError, ValueError, OSError, SafetensorError):  # an earlier version's, or damaged
        return False
    now = _contents(source, numbers, stamps)
    if any(before[part] != now[part] for part in ("names", "labels")):
        return False
    old, new = before["stamps"] or [None] * len(numbers), now["stamps"] or [[0, 0]] * len(numbers)
    touched = [place for place in range(len(numbers)) if old[place] != new[place]]
    for place in touched:
        if before["digests"][place] != source.digest(numbers[place]):
            return False
    if touched and now["stamps"]:
        metadata = read_metadata(path) | {CONTENTS: json.dumps({**now, "digests": before["digests"]})}
        write_tensors(path, read_tensors(path), metadata)
    return True


def _index(out: Path, source: Source, encoding: Encoding) -> LatentIndex:
    """Write and return the index of all shards."""
    counts, bad = [], {}
    for number in range(-(-len(source.names) // encoding.shard)):
        with safe_open(shard_path(out, number), "pt") as file:
            counts.append(file.get_slice("labels").get_shape()[0])
            bad |= json.loads(file.metadata()["bad"])
    if not sum(counts):
        raise DataError(
            f"none of the {counted(len(source.names), 'image')} can be read; the first: {next(iter(bad.values()))}"
        )
    e = encoding
    classes = source.classes
    index = LatentIndex(
        e.tokenizer, e.fingerprint, e.source, source.identity, e.tokens, e.channels, classes, counts, e.mirrored, bad
    )
    if distributed.rank() == 0:
        index.write(out)
        write_json(out / "encoding.json", asdict(encoding))
    distributed.barrier()
    return index


def _check_same(path: Path, description: dict) -> bool:
    """Raise `DataError` when a folder's latents were made otherwise; return True when the images' name is the same.

    Images of another name may be a copy, and must then be the same images.
    """
    differing: list[str] = []
    if path.is_file():
        old = read_json(path)
        differing = [key for key in description if old.get(key) != description[key]]
        if keys := [key for key in differing if key != "source"]:
            key = keys[0]
            raise DataError(
                f"{path.parent} holds latents that were made otherwise: {key} was {old.get(key)!r}, and is "
                f"{description[key]!r} now; use another folder.",
                setting="out",
            )
    elif (path.parent / INDEX).exists():
        raise DataError(f"{path.parent} holds other latents; use another folder.", setting="out")
    distributed.barrier()  # all have looked
    if distributed.rank() == 0 and not path.is_file():
        write_json(path, description)
    distributed.barrier()
    return not differing
