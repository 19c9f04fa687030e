"""What all evaluations share: images from a model, a data set or an array; their features in parts; the real images
that they are compared with; results with their protocol."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softvq import __version__, distributed, files
from softvq.cli.runs import pretrained_files
from softvq.data.arrays import ArrayFile
from softvq.data.images import open_image
from softvq.data.loader import NoneReadable, listing, ordered_batches
from softvq.data.sources import Source, identity
from softvq.errors import DataError, ImageError, MetricError
from softvq.evaluation.appearance import appearance, periods_for
from softvq.evaluation.distribution import NEIGHBOURS
from softvq.evaluation.frechet import Moments
from softvq.evaluation.generation import MOST, Reference, appearance_of, chosen
from softvq.evaluation.metrics import CONVENTION, as_bytes
from softvq.evaluation.parts import Part, Parts
from softvq.evaluation.protocol import Protocol
from softvq.pipeline import Pipeline, Request
from softvq.pretrained import inception, lite
from softvq.pretrained.features import FeatureNetwork
from softvq.runtime import autocast, pick_device, pick_precision

EVALUATION = "evaluation"  # what a result file says it is
_ADM_CROP = "ADM's centre crop"


class Bench:
    """What all evaluations have: device, precision, feature network, and where results go."""

    def __init__(self, options: argparse.Namespace, emoji: bool, more: tuple[str, ...] = (), patch: int | None = None):
        self.options, self.patch = options, patch
        self.device = distributed.start(pick_device(options.device))
        self.precision = pick_precision(options.precision, self.device, training=False)
        name = options.features or (lite.NAME if emoji else inception.NAME)
        self.files = pretrained_files(options.pretrained, [name, *more])
        self.network = FeatureNetwork.load(name, options.resize, self.files.get(name)).to(self.device)
        self.unreadable: dict[str, str] = {}

    @property
    def is_fid(self) -> bool:
        """Whether the Fréchet distance is called FID."""
        return self.network.name in (inception.NAME, inception.TINY)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Of 8-bit images."""
        with autocast(self.device, self.precision):
            return {name: found.cpu() for name, found in self.network(images.to(self.device)).items()}

    def stem(self, *what: Any) -> str:
        """A short name of all that a result is a function of."""
        return short_name(self.network.protocol, self.precision, self.patch, *what)

    def parts(self, images: "Images", name: str) -> Parts:
        """The features of all images; those that cannot be read are in `unreadable` from then on. `MetricError` where
        none can."""
        parts = Parts(self.options.out / f"{name}.parts", images.count)

        def make(numbers: range, done: Callable[[int], object]) -> Part:
            found: list[dict[str, Tensor]] = []
            bad: dict[str, str] = {}
            digest = hashlib.sha256()
            for batch in images.batches(numbers, bad):
                found.append({**self.features(batch), **appearance(batch, periods_for(images.size, self.patch))})
                digest.update(batch.contiguous().numpy())
                done(len(batch))
            tensors = {key: torch.cat([one[key] for one in found]) for key in (found[0] if found else {})}
            return Part(tensors, bad, digest.hexdigest())

        parts.fill(make, images.title)
        bad = parts.bad
        if len(bad) == images.count:
            raise none_readable(images, parts)
        self.unreadable |= {f"{images.title}/{name}": reason for name, reason in bad.items()}
        return parts

    def protocol(self, images: int, size: int, crop: str, reference: "Compared") -> Protocol:
        told = self.network.protocol
        return Protocol(
            images, size, crop, told["features"], told["weights"], told["resizing"], *reference, self.precision
        )

    def named(self, scores: dict[str, Any], prefix: str) -> dict[str, Any]:
        """Figures under the names that people know: FID is Inception's alone."""
        names = {"fd": f"{prefix}fid" if self.is_fid else f"{prefix}fd", "spatial_fd": f"{prefix}sfid"}
        return {_renamed(name, names): value for name, value in scores.items()}


def none_readable(images: "Images", parts: Parts) -> MetricError:
    """What to raise; the parts, which say so too, are removed: the next command looks again."""
    reason = next(iter(parts.bad.values()))
    parts.remove()
    return MetricError(f"none of the {images.count} images of {images.title} can be read; the first: {reason}")


def short_name(*what: Any) -> str:
    """8 hex digits of all that a result is a function of, so that the same command finds its parts again."""
    told = json.dumps([__version__, *what], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def write_result(folder: Path, name: str, kind: str, result: dict[str, Any], parts: Path) -> dict[str, Any]:
    """The result, kept as JSON with what kind it is of; the parts that it was made of are removed."""
    told = {"softvq": EVALUATION, "kind": kind, "version": __version__, "date": datetime.now(timezone.utc).date()}
    whole = json.loads(json.dumps({**told, **result}, default=str))
    path = folder / f"{name}.json"
    distributed.barrier()
    if distributed.rank() == 0:
        files.write_json(path, whole)
        shutil.rmtree(parts, ignore_errors=True)
    return {**whole, "file": str(path)}


Compared = tuple[str, str, int | None]  # reference, its checksum, how many images


def _renamed(name: str, names: dict[str, str]) -> str:
    base, ending = (name.removesuffix("_over_seeds"), "_over_seeds") if name.endswith("_over_seeds") else (name, "")
    return names.get(base, base) + ending


class Images:
    """8-bit images of one size, by number."""

    count: int
    size: int
    crop: str
    title: str

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[Tensor]:
        """These, (B, 3, H, W); what cannot be read goes into `bad`."""
        raise NotImplementedError


class DataImages(Images):
    """Of a data set, each cut to `size` (None: all are of one size already)."""

    def __init__(self, data: str, size: int | None, options: argparse.Namespace):
        self.source: Source = listing(data)
        self.options, self.title = options, data
        self.how = "keep" if size is None else "crop"
        self.crop = "none" if size is None else _ADM_CROP
        self.count = len(self.source.names)
        self.size = _side(self.source) if size is None else size
        self.checksum = identity(self.source)["names"]

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[Tensor]:
        for batch in self.tensors(numbers, bad):
            yield as_bytes(batch)

    def tensors(self, numbers: range, bad: dict[str, str]) -> Iterator[Tensor]:
        """In [-1, 1]."""
        o = self.options
        batches = ordered_batches(
            self.source, size=self.size, batch_size=o.batch, how=self.how, chosen=numbers, workers=o.workers
        )
        try:
            for batch in batches:
                bad.update(batch.bad)
                yield batch.images
        except NoneReadable as error:  # of these numbers; others may be
            bad.update(error.bad)


def _side(source: Source) -> int:
    """Of the first image that can be read."""
    bad: dict[str, str] = {}
    for index, name in enumerate(source.names):
        try:
            image = open_image(source.read(index), name)
        except (ImageError, OSError) as error:
            bad[name] = str(error)
            continue
        if image.width != image.height:
            raise DataError(f"{name} has {image.width}×{image.height} pixels; samples must be square.")
        return image.width
    raise NoneReadable(bad)


class ArrayImages(Images):
    """Of ADM's array."""

    def __init__(self, path: Path, batch: int):
        self.file, self.batch, self.title = ArrayFile(path), batch, path.name
        self.count, self.size, width = self.file.shape
        self.crop = "none"
        if width != self.size:
            raise DataError(f"{path}: arr_0 is of {self.size}×{width} pixels; images must be square.")
        self.checksum = self.file.checksum

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[Tensor]:
        return self.file.images(numbers.start, numbers.stop, self.batch)


class DrawnImages(Images):
    """Of a generator: image `number` with a seed."""

    def __init__(self, pipeline: Pipeline, request: Request):
        self.pipeline, self.request, self.count = pipeline, request, request.num
        self.size, self.crop = pipeline.image_size, "none"
        self.title = f"guidance {request.sampling.guidance.scale:g}, seed {request.seed}"

    def batches(self, numbers: range, bad: dict[str, str]) -> Iterator[Tensor]:
        batch = self.request.batch_size
        for first in range(numbers.start, numbers.stop, batch):
            yield self.pipeline.images(self.request, range(first, min(numbers.stop, first + batch)))


def look_for(reference: str) -> None:
    """`DataError` when it is not there: said before networks are downloaded."""
    if reference.lower().endswith(".npz"):
        ArrayFile(Path(reference))
    else:
        listing(reference)


def reference_of(bench: Bench, named: str, size: int) -> tuple[Reference, Compared]:
    """Real images: a data set cut to `size`, ADM's array of images of that size, or statistics. `DataError` when they
    are others than --checksum says."""
    reference, compared = _reference(bench, named, size)
    wanted = bench.options.checksum
    if wanted is not None and not (wanted and compared[1].startswith(wanted[:16].lower())):
        raise DataError(f"the reference {named} has the checksum {compared[1]}, not {wanted}.")
    return reference, compared


def _reference(bench: Bench, named: str, size: int) -> tuple[Reference, Compared]:
    if not named.lower().endswith(".npz"):
        images: Images = DataImages(named, size, bench.options)
    else:
        file = ArrayFile(Path(named))
        if "mu" in file.names:
            return _stored(bench, file, size)
        images = ArrayImages(Path(named), bench.options.batch)
        if images.size != size:
            raise DataError(f"the reference {named} is of {images.size} px, but the images are of {size} px.")
    parts = bench.parts(images, f"reference-{bench.stem(named, images.checksum, images.size, images.crop)}")
    reference = Reference.of_parts(parts)
    checksum = images.checksum if isinstance(images, ArrayImages) else parts.checksum
    parts.remove()
    return reference, (named, checksum, reference.pool.count)


def _stored(bench: Bench, file: ArrayFile, size: int) -> tuple[Reference, Compared]:
    own, told = {**bench.network.protocol, "size": size}, file.protocol
    if differing := [key for key in own if key in told and told[key] != own[key]]:
        key = differing[0]
        raise DataError(f"the reference {file.path} was made with {key} {told[key]!r}, not {own[key]!r}.")
    found = {name: torch.from_numpy(array) for name, array in file.statistics().items()}
    features, seen, count = None, None, told.get("images")
    if "arr_0" in file.names:
        images = ArrayImages(file.path, bench.options.batch)
        if images.size != size:
            raise DataError(f"the reference {file.path} is of {images.size} px, but the images are of {size} px.")
        parts = bench.parts(images, f"reference-{bench.stem(str(file.path), images.checksum)}")
        features = parts.all("pool")
        features, seen = features[chosen(len(features))], appearance_of(parts)
        parts.remove()
    spatial = Moments(found["mu_s"], found["sigma_s"], count) if "mu_s" in found else None
    reference = Reference(Moments(found["mu"], found["sigma"], count), spatial, features, seen)
    return reference, (str(file.path), file.checksum, count)


def patch_of(tokenizer: Any) -> int | None:
    """The side of the patches that a tokenizer decodes to, None for convolutional ones."""
    decoder = getattr(tokenizer.config, "decoder", None)
    return decoder and decoder.patch_size


def is_emoji(model: Any) -> bool:
    return str(model.about.get("domain", "")).startswith("emoji")


def notes_of(scores: dict[str, Any], bench: Bench, options: argparse.Namespace) -> list[str]:
    """What a reader must know."""
    notes = []
    if not scores.get("reliable", True):
        notes.append("fewer images than features: the Fréchet distance is right, but says little of the distribution")
    if not bench.is_fid:
        notes.append(f"features of {bench.network.name}: not comparable with FID")
    if "precision" in scores:
        notes.append(f"precision and recall: {NEIGHBOURS} neighbours, up to {MOST:,} reference images")
    elif options.what == "generation":
        notes.append("the reference holds no images: no KID, precision and recall")
    if "blockiness" in scores:
        notes.append(
            "blockiness: differences of pixels across borders of squares, over those elsewhere (evaluate --help)"
        )
    if "psnr" in scores:
        notes.append(CONVENTION)
    return notes


def show(result: dict[str, Any]) -> None:
    """Figures for people."""
    scores = result.get("scores")
    if scores is None:
        print(f"statistics of {result['images']} images in {result['reference']}")
        return
    for name, value in scores.items():
        deviation = scores.get(f"{name}_over_seeds")
        if not name.endswith("_over_seeds") and value is not None and name != "reliable":
            print(f"{name:24} {value:10.4f}" + (f" ± {deviation:.4f}" if deviation is not None else ""))
    p = result["protocol"]
    print(f"\n{p['images']} images of {p['size']} px against {p['reference']} ({p['reference_checksum']})")
    print(f"features: {p['features']} ({p['weights']}), {p['resizing']}, {p['precision']}")
    for note in result["notes"]:
        print(f"note: {note}.")
    if unreadable := result.get("unreadable"):
        print(f"{len(unreadable)} unreadable images left out; the first: {next(iter(unreadable.values()))}")
    if "picture" in result:
        print(f"picture: {result['picture']}")
    print(result["file"])
