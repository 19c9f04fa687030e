"""Real images that generated ones are compared with: a data set, ADM's array, or stored statistics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from softvq import distributed
from softvq.data.arrays import STATISTICS, ArrayFile, write_arrays
from softvq.data.images import to_bytes
from softvq.data.loader import ordered_batches
from softvq.data.opening import listing
from softvq.errors import ConfigError, DataError, check_whole
from softvq.evaluation.distribution import MOST
from softvq.evaluation.frechet import Moments
from softvq.evaluation.images import ArrayImages, DataImages, is_array, is_bundled, open_images
from softvq.evaluation.measuring import Compared, Measuring, Settings, workplace
from softvq.evaluation.parts import Parts, appearance_of, moments
from softvq.files import check_writable
from softvq.models import own_device
from softvq.randomness import Stream, rng


@dataclass(frozen=True)
class Reference:
    """Real images as the statistics that generated ones are compared with.

    `pool` and `spatial` are moments of their features (spatial ones are of Inception alone), `features` up to `MOST` of
    the features themselves, where there are images and not statistics alone, and `appearance` the rows of
    `evaluation.appearance`.
    """

    pool: Moments
    spatial: Moments | None
    features: Float[Tensor, "M F"] | None
    appearance: Mapping[str, Tensor] | None = None  # rows of `evaluation.appearance`

    @classmethod
    def of_parts(cls, parts: Parts) -> "Reference":
        """Return the reference that the features of real images make."""
        features = parts.all("pool")
        pool, spatial = moments(parts, "pool"), moments(parts, "spatial")
        return cls(pool, spatial, features[chosen(len(features))], appearance_of(parts))


def chosen(count: int, most: int = MOST) -> list[int]:
    """Return the numbers of those of `count` reference images that precision and recall use.

    These are all, or `most` of a fixed permutation, in order.
    """
    if count <= most:
        return list(range(count))
    return sorted(rng(0, Stream.REFERENCE).permutation(count)[:most].tolist())


def look_for(reference: Any) -> None:
    """Raise `DataError` when a reference is not there, before networks are downloaded."""
    if is_array(reference):
        ArrayFile(Path(reference))
    else:
        listing(reference)


def reference_name(reference: Any) -> str:
    """Return the name of a reference for the name of a result.

    Images that a program holds are named by what tells them from others.
    """
    if isinstance(reference, str | Path):
        return str(reference)
    source = listing(reference)
    return f"{source}, {source.identity}"


def reference_of(
    measuring: Measuring, given: Any, size: int, checksum: str | None = None
) -> tuple[Reference, Compared]:
    """Return real images as a reference, and what they were: name, checksum and number of images.

    `given` is a data set, which is cut to `size`, ADM's array of images of that size, or statistics. Raise `DataError`
    when they do not have the `checksum`.
    """
    reference, compared = _reference(measuring, given, size)
    if checksum is not None and not (checksum and compared[1].startswith(checksum[:16].lower())):
        raise DataError(f"the reference {compared[0]} has the checksum {compared[1]}, not {checksum}.")
    return reference, compared


def _reference(measuring: Measuring, given: Any, size: int) -> tuple[Reference, Compared]:
    settings = measuring.settings
    if is_array(given):
        file = ArrayFile(Path(given))
        if "mu" in file.names:
            return _stored(measuring, file, size)
    images = open_images(given, size, settings.batch_size, settings.workers)
    named = str(given) if isinstance(given, str | Path) else images.title
    stem = measuring.stem(named, images.checksum, images.size, images.crop)
    parts = measuring.parts(images, f"reference-{stem}")
    reference = Reference.of_parts(parts)
    checksum = images.checksum if isinstance(images, ArrayImages) else parts.checksum
    parts.remove()
    return reference, (named, checksum, reference.pool.count)


def _stored(measuring: Measuring, file: ArrayFile, size: int) -> tuple[Reference, Compared]:
    own, protocol = {**measuring.network.protocol, "size": size}, file.protocol
    if differing := [key for key in own if key in protocol and protocol[key] != own[key]]:
        key = differing[0]
        raise DataError(f"the reference {file.path} was made with {key} {protocol[key]!r}, not {own[key]!r}.")
    statistics = {name: torch.from_numpy(array) for name, array in file.statistics().items()}
    features, seen, count = None, None, protocol.get("images")
    if "arr_0" in file.names:
        images = open_images(file.path, size, measuring.settings.batch_size)
        parts = measuring.parts(images, f"reference-{measuring.stem(str(file.path), images.checksum)}")
        features = parts.all("pool")
        features, seen = features[chosen(len(features))], appearance_of(parts)
        parts.remove()
    spatial = Moments(statistics["mu_s"], statistics["sigma_s"], count) if "mu_s" in statistics else None
    reference = Reference(Moments(statistics["mu"], statistics["sigma"], count), spatial, features, seen)
    return reference, (str(file.path), file.checksum, count)


def write_reference(images: Any, path: str | Path, size: int = 256, **settings: Any) -> dict[str, Any]:
    """Write the statistics of all images as ADM's references are, and return the description in the file.

    Up to 10,000 of the images are written too, for precision and recall. `images` are anything that `data.open_source`
    takes, cut to `size`; `settings` are the fields of `Settings`.
    """
    path, given = Path(path), Settings(**settings)
    check_whole("size", size, 1)
    if path.suffix.lower() != ".npz":
        raise ConfigError(f"{path}: the statistics are written as .npz.", setting="to")
    check_writable(path)
    device = own_device(given.device)
    with workplace(given.folder) as place:
        measuring = Measuring(given, place, device, is_bundled(images))
        data = DataImages(images, size, given.batch_size, given.workers)
        stem = measuring.stem(data.title, data.checksum, data.size, data.crop)
        parts = measuring.parts(data, f"reference-{stem}")
        reference, bad = Reference.of_parts(parts), parts.bad
        record = {**measuring.network.protocol, "size": data.size, "images": reference.pool.count, "data": data.title}
        record["precision"] = measuring.precision
        if distributed.rank() == 0:
            _write(path, reference, data, bad, record)
        parts.remove()
    return {"reference": str(path), **record, "unreadable": bad}


def _write(path: Path, reference: Reference, data: DataImages, bad: dict[str, str], record: dict[str, Any]) -> None:
    arrays = {"mu": reference.pool.mean, "sigma": reference.pool.covariance}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    readable = [n for n, name in enumerate(data.source.names) if name not in bad]
    kept = [readable[n] for n in chosen(len(readable), MOST)]
    batches = ordered_batches(
        data.source, size=data.size, batch_size=data.batch_size, chosen=kept, workers=data.workers
    )
    pixels = (to_bytes(batch.images).permute(0, 2, 3, 1).numpy() for batch in batches)
    numbers = {name: arrays[name].numpy() for name in STATISTICS if name in arrays}
    shape = (len(kept), data.size, data.size)
    write_arrays(path, shape, pixels, **numbers, protocol=np.array(json.dumps(record)))
