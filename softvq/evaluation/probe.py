"""Measurements of how much of an image's class a representation holds, by linear probing and k-NN.

    result = probe("softvq-emoji-64", "emoji", "emoji-val")
    result.scores["probe_top1"], result.scores["knn_top1"]

Linear probing is that of Appendix C.3 and Fig. 3; k-NN is a quick look. The paper gives a batch norm without parameters
and a linear layer, 90 epochs, batches of 16,384, LAMB and a cosine from 0.003. It does not give augmentation, decay and
start: none, none, and weights of deviation 0.01 are taken here.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softvq import progress
from softvq.data.labels import UNLABELLED
from softvq.data.latents import INDEX, Latents, shard_path
from softvq.data.loader import NoneReadable, ordered_batches
from softvq.data.opening import listing
from softvq.data.sources import file_stamps
from softvq.errors import ConfigError, DataError, MetricError, Notice, check_whole, counted
from softvq.evaluation.classifiers import (
    Labelled,
    ProbeConfig,
    figures_notes,
    linear_probe,
    nearest_neighbours,
    training_notes,
)
from softvq.evaluation.measuring import Working, Workplace, concatenated, evaluating, workplace
from softvq.evaluation.parts import Part
from softvq.evaluation.results import Result, described, short_name
from softvq.generators.base import Generator, Noise
from softvq.models import AnyTokenizer, open_model, own_device, tokenizer_of
from softvq.runtime import autocast, pick_precision


def probe(
    model: AnyTokenizer | Generator | str | Path,
    train: Any = "emoji",
    val: Any = "emoji-val",
    *,
    tokenizer: AnyTokenizer | str | Path | None = None,
    layer: int | None = None,
    time: float | None = None,
    pool: str | None = None,
    config: ProbeConfig | None = None,
    quick: bool = False,
    **settings: Any,
) -> Result:
    """Return the accuracy of a linear layer, and of the nearest neighbours, on a representation of images.

    The representation is a tokenizer's latents or a generator's features of them. `train` and `val` are labelled images
    (anything that `data.open_source` takes), or folders of latents; classes of `val` are found in `train` by name, and
    images without a label are left out. `tokenizer`, `layer` and `time` are for a generator: its tokenizer (default:
    the one that it was trained with), after how many blocks its features are taken (default: 20, or 5/7 of a smaller
    one's), and how noisy the latents are, 0 data … 1 noise (default: 0.5). `pool` says how tokens become one vector:
    `flatten` (the default for latents) or `mean` (for features). With `quick` the neighbours alone are measured.
    `settings` are the fields of `Working`.

    Raise `ConfigError` for a setting that nothing would read, `DataError` where `val` has classes that `train` has not.
    """
    given, config = Working(**settings), config or ProbeConfig()
    if time is not None and not 0 <= time <= 1:
        raise ConfigError(f"time must be from 0 (data) to 1 (noise), not {time}.", setting="time")
    if pool not in (None, "flatten", "mean"):
        raise ConfigError(f"pool must be 'flatten' or 'mean', not {pool!r}.", setting="pool")
    if layer is not None:
        check_whole("layer", layer)
    device = own_device(given.device, model)
    probed = _Probed(model, tokenizer, layer, time, pool, config.filled().seed, device, given)
    if quick:
        _check_quick(config, probed.generator is None)
    config = config.filled()
    sides = _matched(probed.side(train, "train"), probed.side(val, "val"))
    notes = _check_sides(*sides)
    classes = len(sides[0].classes)
    conditions = (config.epochs, config.batch_size, config.lr, config.seed, quick)
    name = f"probe-{Path(probed.description['name']).name}-{probed.stem([side.key for side in sides], conditions)}"
    with workplace(given.folder) as place, evaluating(*probed.models):
        train_set, val_set = labelled = [probed.labelled(side, place, f"{name}/{side.part}") for side in sides]
        scores = nearest_neighbours(*labelled, classes)
        if not quick:
            on = [Labelled(one.features.to(device), one.labels.to(device)) for one in labelled]
            scores = {**linear_probe(*on, classes, config, _bar), **scores}
        own = {"epochs": config.epochs, "batch": config.step_of(len(train_set)), "lr": config.lr, "seed": config.seed}
        protocol = {
            **{"data": sides[0].name, "val": sides[1].name, "images": len(train_set), "val_images": len(val_set)},
            **{"classes": classes, "width": train_set.features.shape[1], "pool": probed.pool},
            **({} if quick else {**own, "optimizer": "LAMB"}),
            **probed.protocol,
            "precision": probed.precision,
        }
        notes += [*figures_notes(*labelled, classes), *([] if quick else training_notes(len(train_set), config))]
        more = {"notes": tuple(notes + probed.notes), "unreadable": probed.unreadable, "parts": place.folder / name}
        return Result("probe", name, probed.description, protocol, scores, **more)


def _check_quick(config: ProbeConfig, is_tokenizer: bool) -> None:
    """Raise an error for settings of a linear layer where none is trained; a generator's noise has the seed too."""
    for name in ("epochs", "batch_size", "lr", *(["seed"] if is_tokenizer else [])):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"{name} is for the linear layer, and none is trained where the neighbours alone are measured (quick).",
                setting="probe_batch" if name == "batch_size" else name,
            )


def _matched(train: "_Side", val: "_Side") -> tuple["_Side", "_Side"]:
    """Return two data sets with the labels of the second as numbers of the first's classes, found by their names.

    Its images follow the first's, so that no two have one number.
    """
    for side in (train, val):
        labels = side.labels[side.labels != UNLABELLED]
        if not len(labels):
            raise DataError(f"none of the {counted(len(side.labels), 'image')} of {side.name} has a label.")
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(side.classes):
            raise DataError(f"the labels of {side.name} must be in 0 to {len(side.classes) - 1}.")
    val = replace(val, first=len(train.labels))
    if train.classes == val.classes:
        return train, val
    present = [val.classes[number] for number in val.labels[val.numbers].unique().tolist()]
    numbers = {name: number for number, name in enumerate(train.classes)}
    if unknown := [name for name in present if name not in numbers]:
        if unknown == [""]:
            raise DataError(f"the images of {val.name} have no classes, and those of {train.name} have.")
        shown = ", ".join(map(repr, unknown[:3])) + (f" and {len(unknown) - 3:,} more" if len(unknown) > 3 else "")
        raise DataError(f"{val.name} has classes that {train.name} has not: {shown}.")
    counts = [Counter(side.classes) for side in (train, val)]
    if doubled := [name for name in present if max(count[name] for count in counts) > 1]:
        raise DataError(
            f"the classes of {val.name} cannot be found in {train.name} by name: {doubled[0]!r} is the name of two."
        )
    mapping = torch.tensor([numbers.get(name, UNLABELLED) for name in val.classes])
    labels = torch.where(val.labels == UNLABELLED, UNLABELLED, mapping[val.labels.clamp_min(0)])
    return train, replace(val, labels=labels, classes=train.classes)


def _check_sides(train: "_Side", val: "_Side") -> list[str]:
    """Return what a reader must know of two data sets; raise an error when they cannot be probed together.

    All this is before anything is encoded.
    """
    if len(train.classes) < 2:
        raise MetricError(
            f"probing needs at least two classes, and {train.name} has {len(train.classes)}: one sub-folder a class."
        )
    if len(present := train.labels[train.numbers].unique()) < 2:
        raise MetricError(
            f"probing needs training images of at least two classes, and those of {train.name} are all of "
            f"{train.classes[int(present)]!r}."
        )
    notes = []
    if train.identity == val.identity:
        warnings.warn("training and validation images are the same: the figures say nothing.", Notice, stacklevel=3)
        notes.append("training and validation images are the same: the figures say nothing")
    elif shared := len(train.places & val.places):
        notes.append(f"training images too: {shared:,} of the {counted(len(val.labels), 'validation image')}")
    for side, which in ((train, "training"), (val, "validation")):
        if left := len(side.labels) - len(side.numbers):
            has = "has no label and is left out" if left == 1 else "have no label and are left out"
            notes.append(f"{left:,} of the {counted(len(side.labels), f'{which} image')} {has}")
    return notes


def _bar(epochs: range) -> Iterable:
    return progress.through(epochs, "epoch", "probe")


@dataclass(frozen=True)
class _Side:
    """A labelled data set.

    It is the `part` train or val, and has a name, the labels of all images, their classes' names, and the identity of
    the data; `encoded` is True when they are latents already; `read` yields batches of (inputs, numbers of the images,
    unreadable) of the images that are asked for. `version` changes when files of it do (None: not known). `bad` are
    images that could not be read when the latents were made, `first` is the number of the first image where those of
    two sides must differ, and `places` are where images lie, as far as it is known.
    """

    part: str
    name: str
    labels: Tensor
    classes: list[str]
    identity: Any
    version: str | None
    encoded: bool
    read: Callable[[Sequence[int]], Iterator[tuple[Tensor, list[int], dict[str, str]]]]
    bad: Mapping[str, str] = field(default_factory=dict)
    first: int = 0
    places: frozenset[tuple[str, str]] = frozenset()

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers of the images that have a label: those that are probed."""
        return (self.labels != UNLABELLED).nonzero().flatten().tolist()

    @property
    def key(self) -> list[Any]:
        """All of the data that a result is a function of, as far as its name is to tell."""
        return [self.name, self.identity, self.encoded, short_name(self.classes, self.labels.tolist())]


class _Probed:
    """A tokenizer's latents, or a generator's features of them."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layer: int | None,
        time: float | None,
        pool: str | None,
        seed: int,
        device: torch.device,
        given: Working,
    ):
        self.given, self.device, self.layer, self.time, self.seed = given, device, layer, time, seed
        self.precision = pick_precision(given.precision, device, training=False)
        self.unreadable: dict[str, str] = {}
        model = open_model(str(model)) if isinstance(model, str | Path) else model
        self.generator = model if isinstance(model, Generator) else None
        if self.generator is None:
            self.tokenizer = model.to(device)
            for name, value in (("tokenizer", tokenizer), ("layer", layer), ("time", time)):
                if value is not None:
                    called = self.description["name"]
                    raise ConfigError(f"{name} is for a generator, and {called} is a tokenizer.", setting=name)
        else:
            self._check_layer()
            self.time = 0.5 if time is None else time
            self.tokenizer = tokenizer_of(self.generator, self.generator.name, tokenizer).to(device)
            self.generator.to(device)
        self.pool = pool or ("flatten" if self.generator is None else "mean")

    def _check_layer(self) -> None:
        name = self.description["name"]
        if not hasattr(self.generator, "features"):
            raise ConfigError(f"{name} is a {type(self.generator).__name__}; a SiT or DiT is probed.", setting="model")
        depth = len(self.generator.blocks)
        if self.layer is None:
            self.layer = 20 if depth > 20 else max(1, round(depth * 5 / 7))
        if not 1 <= self.layer <= depth:
            raise ConfigError(f"{name} has layers 1 to {depth}, and none {self.layer}.", setting="layer")

    @property
    def protocol(self) -> dict[str, Any]:
        """The conditions of a generator's features, for the result's protocol; none for a tokenizer's latents."""
        if self.generator is None:
            return {}
        tokenizer = self.tokenizer.fingerprint
        return {"layer": self.layer, "time": self.time, "seed": self.seed, "tokenizer": tokenizer}

    @property
    def notes(self) -> list[str]:
        """The notes on the features that a reader needs."""
        return ["at time 1 the latents are noise, and the figures of chance"] if self.time == 1 else []

    @property
    def models(self) -> list[nn.Module]:
        """The models that are looked through: the tokenizer, and the generator where there is one."""
        return [one for one in (self.tokenizer, self.generator) if one is not None]

    @property
    def description(self) -> dict[str, Any]:
        """The model's name, fingerprint and recipe, as results have them."""
        return described(self.generator or self.tokenizer)

    def stem(self, data: Any, settings: tuple) -> str:
        """Return a short name of all that the result is a function of."""
        models = (self.description, self.tokenizer.fingerprint, self.precision)
        return short_name(*models, data, self.pool, self.layer, self.time, self.seed, settings)

    def side(self, data: Any, part: str) -> _Side:
        """Return labelled images, or latents that were made with this tokenizer.

        Raise `DataError` for latents of another tokenizer.
        """
        batch_size, workers = self.given.batch_size, self.given.workers
        if isinstance(data, str | Path) and (Path(data) / INDEX).is_file():
            cache = Latents(data)
            if not self.tokenizer.makes(cache.index.fingerprint):
                name = self.description["name"]
                raise DataError(f"{data} holds latents of another tokenizer than {name}'s.")

            def cached(numbers: Sequence[int]):
                for first in range(0, len(numbers), batch_size):
                    chosen = list(numbers[first : first + batch_size])
                    yield torch.stack([cache.read(n, 0) for n in chosen]), chosen, {}

            index = cache.index
            shards = [shard_path(cache.folder, number) for number in range(len(index.shards))]
            version = short_name(asdict(index), file_stamps(shards))
            told = (index.identity, version, True)
            return _Side(part, str(data), cache.labels, index.classes, *told, cached, index.bad)
        source = listing(data)

        def images(numbers: Sequence[int]):
            size = self.tokenizer.config.image_size
            for batch in ordered_batches(source, size=size, batch_size=batch_size, chosen=numbers, workers=workers):
                yield batch.images, batch.positions, batch.bad

        name = str(data if isinstance(data, str | Path) else source)
        place = getattr(source, "path", None)  # of the bundled images, of which one set holds another
        return _Side(
            part,
            name,
            torch.tensor(source.labels),
            source.classes,
            source.identity,
            source.version,
            False,
            images,
            places=frozenset((str(place), one) for one in source.names) if place else frozenset(),
        )

    @torch.no_grad()
    def labelled(self, side: _Side, place: Workplace, name: str) -> Labelled:
        """Return a vector of every image and its label, made in parts; images that cannot be read are kept by name."""
        parts = place.parts(name, len(side.numbers), side.version)

        def make(places: range, done: Callable[[int], object]) -> Part:
            rows: list[dict[str, Tensor]] = []
            bad: dict[str, str] = {}
            try:
                for inputs, numbers, unreadable in side.read(side.numbers[places.start : places.stop]):
                    bad |= unreadable
                    with autocast(self.device, self.precision):
                        vectors = self._vectors(inputs.to(self.device), [side.first + n for n in numbers], side.encoded)
                    rows.append({"features": vectors.float().cpu(), "numbers": torch.tensor(numbers)})
                    done(len(numbers))
            except NoneReadable as error:  # of this part; others may hold some
                bad |= error.bad
            return Part(concatenated(rows), bad)

        parts.fill(make, side.name)
        bad = parts.bad
        if (features := parts.all("features")) is None:
            parts.remove()  # the next call looks again
            none = f"none of the {counted(len(side.numbers), 'image')} of {side.name} can be read"
            raise MetricError(f"{none}; the first: {next(iter(bad.values()))}")
        self.unreadable |= {f"{side.part}/{name}": reason for name, reason in {**side.bad, **bad}.items()}
        return Labelled(features, side.labels[parts.all("numbers")])

    def _vectors(self, inputs: Tensor, numbers: list[int], encoded: bool) -> Tensor:
        tokens = inputs if encoded else self.tokenizer.encode(inputs)
        if self.generator is not None:
            # No two images have one noise: an image's nearest neighbour would be the one with the same number.
            noise = Noise(self.seed, numbers, self.generator.shape)().to(self.device, torch.float32)
            tokens = self.generator.features(tokens.float(), noise, self.time, self.layer)
        return tokens.flatten(1) if self.pool == "flatten" else tokens.mean(1)
