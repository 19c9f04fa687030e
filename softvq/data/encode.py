"""Making the cache of latents: every image of a source through a function, over ranks, resumable by whole shards."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from softvq import distributed
from softvq.data.images import center_crop, open_image, to_tensor
from softvq.data.latents import INDEX, LatentIndex, shard_path
from softvq.data.sources import Source, identity
from softvq.errors import DataError, ImageError
from softvq.files import write_json, write_tensors
from softvq.plugins import carried


@dataclass(frozen=True)
class Encoding:
    """What a cache is made of: another tokenizer, other images or other settings are another cache."""

    tokenizer: str
    fingerprint: str
    source: str
    size: int
    tokens: int
    channels: int
    mirrored: bool
    shard: int


class _Cropped(Dataset):
    """Centre crops, or the reason why there is none."""

    def __init__(self, source: Source, size: int):
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source.names)

    def __getitem__(self, index: int) -> Tensor | str:
        name = self.source.names[index]
        try:
            return to_tensor(center_crop(open_image(self.source.read(index), name), self.size))
        except ImageError as error:
            return str(error)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})."


@torch.no_grad()
def encode(
    latents_of: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B T C"]],
    source: Source,
    out: Path,
    encoding: Encoding,
    batch_size: int = 64,
    workers: int = 2,
) -> LatentIndex:
    """Write the latents of all images of a source. Shards that are there already are kept; each rank makes its own.

    `DataError` when `out` holds latents of something else, or nothing can be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    description = {**asdict(encoding), "identity": identity(source)}
    _check_same(out / "encoding.json", description)
    total = len(source.names)
    firsts = list(range(0, total, encoding.shard))
    mine = [
        n for n in range(distributed.rank(), len(firsts), distributed.world_size()) if not shard_path(out, n).exists()
    ]
    left = sum(min(encoding.shard, total - firsts[n]) for n in mine)
    with tqdm(total=left, unit="image", disable=distributed.rank() > 0 or not left, dynamic_ncols=True) as bar:
        for number in mine:
            chosen = range(firsts[number], min(total, firsts[number] + encoding.shard))
            _write_shard(shard_path(out, number), latents_of, source, chosen, encoding, batch_size, workers, bar)
    distributed.barrier()
    index = _index(out, source, encoding, len(firsts))
    if distributed.rank() == 0:
        index.write(out)
    distributed.barrier()
    return index


def _write_shard(path, latents_of, source, chosen, encoding, batch_size, workers, bar) -> None:
    loader = DataLoader(
        carried(_Cropped(source, encoding.size)), batch_size, sampler=list(chosen), num_workers=workers, collate_fn=list
    )
    found, labels, bad, place = [], [], {}, 0
    for samples in loader:
        indices = list(chosen)[place : place + len(samples)]
        place += len(samples)
        good = [(i, s) for i, s in zip(indices, samples, strict=True) if isinstance(s, Tensor)]
        bad |= {source.names[i]: s for i, s in zip(indices, samples, strict=True) if not isinstance(s, Tensor)}
        if good:
            images = torch.stack([sample for _, sample in good])
            sides = [images, images.flip(-1)] if encoding.mirrored else [images]
            latents = torch.stack([latents_of(side) for side in sides], dim=1)
            if not latents.isfinite().all():
                raise DataError(f"the latents of {source.names[good[0][0]]} and others are not finite.")
            found.append(latents.to(torch.float16))
            labels += [source.labels[i] for i, _ in good]
        bar.update(len(samples))
    shape = (0, 2 if encoding.mirrored else 1, encoding.tokens, encoding.channels)
    tensors = {
        "latents": torch.cat(found) if found else torch.zeros(shape, dtype=torch.float16),
        "labels": torch.tensor(labels, dtype=torch.int32),
    }
    write_tensors(path, tensors, {"bad": json.dumps(bad)})


def _index(out: Path, source: Source, encoding: Encoding, shards: int) -> LatentIndex:
    counts, bad = [], {}
    for number in range(shards):
        with safe_open(shard_path(out, number), "pt") as file:
            counts.append(file.get_slice("labels").get_shape()[0])
            bad |= json.loads(file.metadata()["bad"])
    if not sum(counts):
        raise DataError(f"none of the {len(source.names)} images can be read; the first: {next(iter(bad.values()))}")
    e = encoding
    classes = source.classes
    return LatentIndex(
        e.tokenizer, e.fingerprint, e.source, identity(source), e.tokens, e.channels, classes, counts, e.mirrored, bad
    )


def _check_same(path: Path, description: dict) -> None:
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key in description if old.get(key) != description[key]]:
            key = differing[0]
            raise DataError(
                f"{path.parent} holds latents of another {key} ({old.get(key)!r} there, {description[key]!r} now); "
                "use another folder.",
                setting="out",
            )
    elif (path.parent / INDEX).exists():
        raise DataError(f"{path.parent} holds other latents; use another folder.", setting="out")
    distributed.barrier()  # all have looked
    if distributed.rank() == 0 and not path.is_file():
        write_json(path, description)
    distributed.barrier()
