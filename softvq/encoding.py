"""The encoding of a data set, once: the latents of every image and of its mirror, which generators are trained on.

    encode("softvq-emoji-64", "photos/", "latents/")

Images are cut by ADM's centre crop. Work is shared out over ranks and goes on, by whole shards, where it was stopped.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from softvq import distributed
from softvq.data.latents import INDEX, NAMES, LatentIndex, shard_path
from softvq.data.loader import Batch, ordered_batches, readable
from softvq.data.opening import listing
from softvq.data.sources import Source
from softvq.errors import ConfigError, DataError, counted
from softvq.files import check_writable, write_json, write_tensors
from softvq.models import AnyTokenizer, load_tokenizer, own_device
from softvq.runtime import autocast, pick_precision


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
    already are kept; each process makes its own.

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
    out.mkdir(parents=True, exist_ok=True)
    _check_same(out / "encoding.json", {**asdict(encoding), "identity": source.identity})

    def latents_of(batch: Tensor) -> Tensor:
        with autocast(device, precision):
            return tokenizer.encode(batch.to(device)).float().cpu()

    _write(latents_of, source, out, encoding, {"batch_size": batch_size, "workers": workers}, progress)
    index = _index(out, source, encoding, -(-len(source.names) // shard))
    if distributed.rank() == 0:
        index.write(out)
    distributed.barrier()
    return index


def _check_request(tokenizer: AnyTokenizer, **least: tuple[int, int]) -> None:
    """Raise `ConfigError` for a tokenizer without a name, and for settings (value, least) that are too small."""
    if not tokenizer.name:
        raise ConfigError(
            "this tokenizer was neither saved nor loaded, so that nothing could say whose latents these are: "
            "save_pretrained it, and load it from there."
        )
    for name, (number, smallest) in least.items():
        if number < smallest:
            raise ConfigError(f"{name} must be at least {smallest}, not {number}.", setting=name)


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
    reading: dict[str, int],
    show: bool | None,
) -> None:
    """Write the shards that are missing, each process its own."""

    def path(first: int) -> Path:
        return shard_path(out, first // encoding.shard)

    def make(numbers: range, done: Callable[[int], object]) -> None:
        made = _Shard(encoding)
        for batch in readable(ordered_batches(source, size=encoding.size, chosen=numbers, **reading), made.bad):
            made.add(latents_of, batch)
            done(len(batch) + len(batch.bad))
        made.write(path(numbers.start))

    distributed.in_parts(len(source.names), encoding.shard, path, make, "encoding", show=show)


class _Shard:
    """The latents, labels and bad files of consecutive images."""

    def __init__(self, encoding: Encoding):
        self.encoding = encoding
        self.latents: list[Tensor] = []
        self.labels: list[int] = []
        self.names: list[str] = []
        self.bad: dict[str, str] = {}

    def add(self, latents_of: Callable[[Tensor], Tensor], batch: Batch) -> None:
        """Encode a batch, and its mirror images where they are wanted."""
        sides = [batch.images, batch.images.flip(-1)] if self.encoding.mirrored else [batch.images]
        latents = torch.stack([latents_of(side) for side in sides], dim=1)
        if not latents.isfinite().all():
            raise DataError(f"the latents of {batch.names[0]} and others are not finite.")
        self.latents.append(latents.to(torch.float16))
        self.labels += batch.labels.tolist()
        self.names += batch.names

    def write(self, path: Path) -> None:
        """Write the shard's file."""
        shape = (0, 2 if self.encoding.mirrored else 1, self.encoding.tokens, self.encoding.channels)
        tensors = {
            "latents": torch.cat(self.latents) if self.latents else torch.zeros(shape, dtype=torch.float16),
            "labels": torch.tensor(self.labels, dtype=torch.int32),
        }
        write_tensors(path, tensors, {"bad": json.dumps(self.bad), NAMES: json.dumps(self.names)})


def _index(out: Path, source: Source, encoding: Encoding, shards: int) -> LatentIndex:
    counts, bad = [], {}
    for number in range(shards):
        with safe_open(shard_path(out, number), "pt") as file:
            counts.append(file.get_slice("labels").get_shape()[0])
            bad |= json.loads(file.metadata()["bad"])
    if not sum(counts):
        raise DataError(
            f"none of the {counted(len(source.names), 'image')} can be read; the first: {next(iter(bad.values()))}"
        )
    e = encoding
    classes = source.classes
    return LatentIndex(
        e.tokenizer, e.fingerprint, e.source, source.identity, e.tokens, e.channels, classes, counts, e.mirrored, bad
    )


def _check_same(path: Path, description: dict) -> None:
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key in description if old.get(key) != description[key]]:
            key = differing[0]
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
