"""The parts that all evaluations of images share: a feature network on a device, and a place for unfinished work."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softvq import distributed
from softvq.errors import ConfigError, MetricError, check_whole, counted
from softvq.evaluation.appearance import appearance, periods_for
from softvq.evaluation.distribution import MOST, NEIGHBOURS
from softvq.evaluation.images import Images
from softvq.evaluation.parts import Part, Parts
from softvq.evaluation.results import Protocol, short_name
from softvq.pretrained import inception, lite
from softvq.pretrained.features import FeatureNetwork
from softvq.pretrained.named import check_used
from softvq.runtime import autocast, pick_precision

Compared = tuple[str, str, int | None]  # reference, its checksum, how many images


@dataclass(frozen=True)
class Working:
    """The settings of work with a model.

    `device` is where the networks run (None: where the model is, else the best there is). `folder` is where unfinished
    work is kept, so that the same call goes on after a stop (None: nowhere).
    """

    device: str | torch.device | None = None
    precision: str = "auto"
    batch_size: int = 64
    workers: int = 2
    folder: str | Path | None = None

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("workers", 0)):
            check_whole(name, getattr(self, name), least)


@dataclass(frozen=True)
class Settings(Working):
    """The settings of `Working`, and those of the feature network that images are measured with.

    `features` is a feature network by name or loaded (None: Inception's of 2015, or EfficientNet-Lite0 for the bundled
    images). `resize` says how images are resized for it, `tf1` as FID is defined or `clean` as clean-fid does.
    `pretrained` holds files of networks' weights by name.
    """

    features: str | FeatureNetwork | None = None
    resize: str | None = None
    pretrained: Mapping[str, Path] | None = None


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Open a block in which models are in evaluation mode; afterwards they are in the mode they were in before."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class Workplace:
    """A folder for unfinished work, and the locks that keep other processes from the parts that are worked on."""

    folder: Path
    held: ExitStack

    def parts(self, name: str, count: int, version: str | None = "") -> Parts:
        """Return the parts of this name, begun or not, of `count` images in this version (see `Parts.begin`).

        Raise `StorageError` when another process works on them.
        """
        parts = Parts(self.folder / name, count)
        self.held.enter_context(distributed.locked(parts.folder))
        parts.begin(version)
        return parts


@contextmanager
def workplace(folder: str | Path | None) -> Iterator[Workplace]:
    """Open a block with a place for unfinished work: the folder given, else one that is removed when the block ends.

    Raise `ConfigError` when several processes would have one each.
    """
    if folder is not None:
        with ExitStack() as held:
            yield Workplace(Path(folder), held)
        return
    if distributed.world_size() > 1:
        raise ConfigError(
            "several processes need a folder that they share for unfinished work; name one.", setting="out"
        )
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as held:
        yield Workplace(Path(temporary), held)


class Measuring:
    """A feature network at work.

    `patch` is the side of the patches that a tokenizer decodes to, at whose borders blockiness is measured. Images that
    cannot be read are collected in `unreadable`, with the reason.
    """

    def __init__(
        self,
        settings: Settings,
        place: Workplace,
        device: torch.device,
        bundled: bool,
        patch: int | None = None,
        more: tuple[str, ...] = (),
    ):
        self.settings, self.place, self.device, self.patch = settings, place, device, patch
        self.precision = pick_precision(settings.precision, device, training=False)
        network, given = settings.features, settings.pretrained or {}
        if not isinstance(network, FeatureNetwork):
            name = network or (lite.NAME if bundled else inception.NAME)
            check_used(given, [name, *more])
            network = FeatureNetwork.load(name, settings.resize, given.get(name))
        self.network = network.to(device)
        self.unreadable: dict[str, str] = {}

    @property
    def is_fid(self) -> bool:
        """True when the Fréchet distance in these features is called FID."""
        return self.network.name in (inception.NAME, inception.TINY)

    def periods(self, size: int) -> tuple[int, ...]:
        """Return the periods at which blockiness is measured in images of this size (px)."""
        return periods_for(size, self.patch)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features of 8-bit images by name, on the CPU; `MetricError` when they are not finite."""
        with autocast(self.device, self.precision):
            features = {name: tensor.cpu() for name, tensor in self.network(images.to(self.device)).items()}
        if not all(tensor.isfinite().all() for tensor in features.values()):
            raise MetricError(
                f"the features of {self.network.name} are not finite: its weights are damaged, or the precision is too "
                "low for them.",
                setting="precision",
            )
        return features

    def stem(self, *what: Any) -> str:
        """Return a short name of all that a result is a function of, this network's settings included."""
        return short_name(self.network.protocol, self.precision, self.patch, *what)

    def parts(self, images: Images, name: str) -> Parts:
        """Return the features of all images, with the rows of `evaluation.appearance`.

        Images that cannot be read are in `unreadable` from then on. Raise `MetricError` when none can.
        """
        parts = self.place.parts(f"{name}.parts", images.count, images.version)

        def make(numbers: range, done: Callable[[int], object]) -> Part:
            rows: list[dict[str, Tensor]] = []
            bad: dict[str, str] = {}
            digest = hashlib.sha256()
            for batch in images.batches(numbers, bad):
                rows.append({**self.features(batch), **appearance(batch, self.periods(images.size))})
                digest.update(batch.contiguous().numpy())
                done(len(batch))
            return Part(concatenated(rows), bad, digest.hexdigest())

        parts.fill(make, images.title)
        if len(bad := parts.bad) == images.count:
            raise none_readable(images, parts)
        self.unreadable |= {f"{images.title}/{name}": reason for name, reason in bad.items()}
        return parts

    def protocol(self, images: int, size: int, crop: str, compared: Compared) -> dict[str, Any]:
        """Return the protocol of figures of these images: the conditions that figures must share to be compared."""
        protocol = self.network.protocol
        network = (protocol["features"], protocol["weights"], protocol["resizing"])
        return Protocol(images, size, crop, *network, *compared, self.precision).to_dict()

    def named(self, scores: dict[str, Any], prefix: str) -> dict[str, Any]:
        """Return figures under the names that people know: only Inception's Fréchet distance is called FID."""
        names = {"fd": f"{prefix}fid" if self.is_fid else f"{prefix}fd", "spatial_fd": f"{prefix}sfid"}
        return {_renamed(name, names): value for name, value in scores.items()}

    def notes(self, scores: Mapping[str, Any]) -> list[str]:
        """Return the notes that a reader of these figures needs."""
        notes = []
        if not scores.get("reliable", True):
            notes.append(
                "fewer images than features: the Fréchet distance is right, but says little of the distribution"
            )
        if not self.is_fid:
            notes.append(f"features of {self.network.name}: not comparable with FID")
        if "precision" in scores:
            notes.append(f"precision and recall: {NEIGHBOURS} neighbours, up to {MOST:,} reference images")
        if "blockiness" in scores:
            notes.append("blockiness: differences of pixels across borders of squares, over those elsewhere")
        return notes


def concatenated(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the rows of several batches as one batch; an empty dictionary when there are none."""
    return {name: torch.cat([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def none_readable(images: Images, parts: Parts) -> MetricError:
    """Return the error that none of the images can be read, and remove the parts, so that the next call tries again."""
    reason = next(iter(parts.bad.values()))
    parts.remove()
    return MetricError(
        f"none of the {counted(images.count, 'image')} of {images.title} can be read; the first: {reason}"
    )


def _renamed(name: str, names: dict[str, str]) -> str:
    base, ending = (name.removesuffix("_over_seeds"), "_over_seeds") if name.endswith("_over_seeds") else (name, "")
    return names.get(base, base) + ending


def patch_of(tokenizer: Any) -> int | None:
    """Return the side of the patches that a tokenizer decodes to, None for convolutional ones."""
    decoder = getattr(tokenizer.config, "decoder", None)
    return decoder and decoder.patch_size


def knows_bundled(model: Any) -> bool:
    """Return True when a model was trained for the bundled images."""
    return str(model.about.get("domain", "")).startswith("emoji")
