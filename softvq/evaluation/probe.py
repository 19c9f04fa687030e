"""Measurements of how much of an image's class a representation holds, by linear probing and k-NN.

    result = probe("softvq-emoji-64", "emoji", "emoji-val")
    result.scores["probe_top1"], result.scores["knn_top1"]

Linear probing is that of Appendix C.3 and Fig. 3; k-NN is a quick look. The paper gives a batch norm without parameters
and a linear layer, 90 epochs, batches of 16,384, LAMB and a cosine from 0.003. It does not give augmentation, decay and
start: none, none, and weights of deviation 0.01 are taken here.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from softvq import progress
from softvq.data.latents import INDEX, Latents
from softvq.data.loader import NoneReadable, ordered_batches
from softvq.data.opening import listing
from softvq.errors import ConfigError, DataError, MetricError, Notice, counted
from softvq.evaluation.measuring import Working, concatenated, evaluating, workplace
from softvq.evaluation.parts import Part, Parts
from softvq.evaluation.results import Result, described, short_name
from softvq.generators.base import Generator, Noise
from softvq.models import AnyTokenizer, open_model, own_device, tokenizer_of
from softvq.optim import LAMB
from softvq.runtime import autocast, pick_precision

_IMAGENET_STEPS = 78  # an epoch, with batches of 16,384


@dataclass(frozen=True)
class ProbeConfig:
    """The settings of the training of a linear probe.

    With `batch_size` None it is 16,384, or less of a small set, so that an epoch has as many steps as one of ImageNet.
    """

    epochs: int = 90
    batch_size: int | None = None
    lr: float = 0.003
    seed: int = 0

    def __post_init__(self):
        if self.epochs < 1 or self.lr <= 0 or (self.batch_size is not None and self.batch_size < 2):
            raise ConfigError("epochs must be at least 1, batch_size at least 2, and lr positive.")

    def batch_of(self, images: int) -> int:
        """Return the batch size for a set of so many images."""
        return self.batch_size or min(16_384, max(16, round(images / _IMAGENET_STEPS)))


@dataclass(frozen=True)
class Labelled:
    """Features of images and their classes."""

    features: Float[Tensor, "N F"]
    labels: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.features)


def probe(
    model: AnyTokenizer | Generator | str | Path,
    train: Any = "emoji",
    val: Any = "emoji-val",
    *,
    tokenizer: AnyTokenizer | str | Path | None = None,
    layer: int | None = None,
    time: float = 0.5,
    pool: str | None = None,
    config: ProbeConfig | None = None,
    quick: bool = False,
    **settings: Any,
) -> Result:
    """Return the accuracy of a linear layer, and of the nearest neighbours, on a representation of images.

    The representation is a tokenizer's latents or a generator's features of them. `train` and `val` are labelled images
    (anything that `data.open_source` takes), or folders of latents. `tokenizer` is a generator's, by default the one
    that it was trained with. `layer` and `time` are for a generator: after how many blocks its features are taken
    (default 20, or 5/7 of a smaller one's), and how noisy the latents are, 0 data … 1 noise. `pool` says how tokens
    become one vector: `flatten` (the default for latents) or `mean` (for features). With `quick` the neighbours alone
    are measured. `settings` are the fields of `Working`.
    """
    given, config = Working(**settings), config or ProbeConfig()
    if not 0 <= time <= 1:
        raise ConfigError(f"time must be from 0 (data) to 1 (noise), not {time}.", setting="time")
    if pool not in (None, "flatten", "mean"):
        raise ConfigError(f"pool must be 'flatten' or 'mean', not {pool!r}.", setting="pool")
    device = own_device(given.device, model)
    probed = _Probed(model, tokenizer, layer, time, pool, config.seed, device, given)
    sides = [probed.side(data) for data in (train, val)]
    classes = [side.classes for side in sides]
    _check_sides(*sides)
    conditions = (config.epochs, config.batch_size, config.lr, config.seed, quick)
    data = [(side.identity, side.encoded) for side in sides]
    name = f"probe-{Path(probed.description['name']).name}-{probed.stem(data, conditions)}"
    with workplace(given.folder) as folder, evaluating(*probed.models):
        labelled = [
            probed.labelled(side, folder / name / part) for side, part in zip(sides, ("train", "val"), strict=True)
        ]
        scores = nearest_neighbours(*labelled, len(classes[0]))
        if not quick:
            on = [Labelled(side.features.to(device), side.labels.to(device)) for side in labelled]
            scores = {**linear_probe(*on, len(classes[0]), config, _bar), **scores}
        first, second = labelled
        own = {"epochs": config.epochs, "batch": config.batch_of(len(first)), "lr": config.lr, "seed": config.seed}
        protocol = {
            **{"data": sides[0].name, "val": sides[1].name, "images": len(first), "val_images": len(second)},
            **{"classes": len(classes[0]), "width": first.features.shape[1], "pool": probed.pool},
            **({} if quick else {**own, "optimizer": "LAMB"}),
            **({} if probed.generator is None else {"layer": probed.layer, "time": time}),
            "precision": probed.precision,
        }
        return Result("probe", name, probed.description, protocol, scores, parts=folder / name)


def _check_sides(train: "_Side", val: "_Side") -> None:
    """Raise an error when two data sets cannot be probed together: before anything is encoded."""
    if train.classes != val.classes:
        raise DataError(
            f"{train.name} and {val.name} have different classes ({len(train.classes)} and {len(val.classes)})."
        )
    if len(train.classes) < 2:
        raise MetricError(
            f"probing needs at least two classes, and {train.name} has {len(train.classes)}: one sub-folder a class."
        )
    if train.identity == val.identity:
        warnings.warn("training and validation images are the same: the figures say nothing.", Notice, stacklevel=3)


def _bar(epochs: range) -> Iterable:
    return progress.through(epochs, "epoch", "probe")


@dataclass(frozen=True)
class _Side:
    """A labelled data set.

    It has a name, the number of images, their classes' names, and the identity of the data; `encoded` is True when they
    are latents already; `read` yields batches of (inputs, labels, numbers, unreadable).
    """

    name: str
    count: int
    classes: list[str]
    identity: Any
    encoded: bool
    read: Callable[[range], Iterator[tuple[Tensor, Tensor, list[int], dict[str, str]]]]


class _Probed:
    """A tokenizer's latents, or a generator's features of them."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layer: int | None,
        time: float,
        pool: str | None,
        seed: int,
        device: torch.device,
        given: Working,
    ):
        self.given, self.device, self.layer, self.time, self.seed = given, device, layer, time, seed
        self.precision = pick_precision(given.precision, device, training=False)
        model = open_model(str(model)) if isinstance(model, str | Path) else model
        self.generator = model if isinstance(model, Generator) else None
        if self.generator is None:
            self.tokenizer = model.to(device)
        else:
            self._check_layer()
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
        return short_name(*models, data, self.pool, self.layer, self.time, settings)

    def side(self, data: Any) -> _Side:
        """Return labelled images, or latents that were made with this tokenizer.

        Raise `DataError` for latents of another tokenizer.
        """
        batch_size, workers = self.given.batch_size, self.given.workers
        if isinstance(data, str | Path) and (Path(data) / INDEX).is_file():
            cache = Latents(data)
            if not self.tokenizer.makes(cache.index.fingerprint):
                name = self.description["name"]
                raise DataError(f"{data} holds latents of another tokenizer than {name}'s.")

            def cached(numbers: range):
                for first in range(numbers.start, numbers.stop, batch_size):
                    chosen = list(range(first, min(numbers.stop, first + batch_size)))
                    yield torch.stack([cache.read(n, 0) for n in chosen]), cache.labels[chosen], chosen, {}

            return _Side(str(data), len(cache), cache.index.classes, cache.index.identity, True, cached)
        source = listing(data)

        def images(numbers: range):
            size = self.tokenizer.config.image_size
            for batch in ordered_batches(source, size=size, batch_size=batch_size, chosen=numbers, workers=workers):
                yield batch.images, batch.labels, batch.positions, batch.bad

        name = str(data if isinstance(data, str | Path) else source)
        return _Side(name, len(source.names), source.classes, source.identity, False, images)

    @torch.no_grad()
    def labelled(self, side: _Side, folder: Path) -> "Labelled":
        """Return a vector of every image and its label, made in parts."""
        parts = Parts(folder, side.count)

        def make(numbers: range, done: Callable[[int], object]) -> Part:
            rows: list[dict[str, Tensor]] = []
            bad: dict[str, str] = {}
            try:
                for inputs, labels, positions, unreadable in side.read(numbers):
                    bad |= unreadable
                    with autocast(self.device, self.precision):
                        vectors = self._vectors(inputs.to(self.device), positions, side.encoded)
                    rows.append({"features": vectors.float().cpu(), "labels": labels.cpu()})
                    done(len(labels))
            except NoneReadable as error:  # of this part; others may hold some
                bad |= error.bad
            return Part(concatenated(rows), bad)

        parts.fill(make, side.name)
        if (features := parts.all("features")) is None:
            parts.remove()  # the next call looks again
            raise MetricError(f"none of the {counted(side.count, 'image')} of {side.name} can be read.")
        return Labelled(features, parts.all("labels"))

    def _vectors(self, inputs: Tensor, numbers: list[int], encoded: bool) -> Tensor:
        tokens = inputs if encoded else self.tokenizer.encode(inputs)
        if self.generator is not None:
            noise = Noise(self.seed, numbers, self.generator.shape)().to(self.device, torch.float32)
            tokens = self.generator.features(tokens.float(), noise, self.time, self.layer)
        return tokens.flatten(1) if self.pool == "flatten" else tokens.mean(1)


def linear_probe(
    train: Labelled,
    val: Labelled,
    classes: int,
    config: ProbeConfig | None = None,
    through: Callable[[range], Iterable] | None = None,
) -> dict[str, float]:
    """Return the accuracy (in [0, 1]) on `val` of a linear layer that is trained on `train`.

    It is given as `probe_top1`, `probe_top5` (with more than five classes), and `probe_balanced`, the mean over
    classes. All is computed where the features are, in float32.
    """
    config = config or ProbeConfig()
    _check(train, val, classes)
    generator = torch.Generator().manual_seed(config.seed)
    norm = nn.BatchNorm1d(train.features.shape[1], eps=1e-6, affine=False)
    head = nn.Linear(train.features.shape[1], classes)
    with torch.no_grad():
        head.weight.normal_(std=0.01, generator=generator)
        head.bias.zero_()
    model = nn.Sequential(norm, head).to(train.features.device)
    optimizer = LAMB(model.parameters(), lr=config.lr)
    batch = min(config.batch_of(len(train)), len(train))
    steps = config.epochs * (len(train) // batch)
    done = 0
    epochs = range(config.epochs)
    for _ in through(epochs) if through else epochs:
        order = torch.randperm(len(train), generator=generator)
        for chosen in order[: len(train) // batch * batch].split(batch):  # a last small one would upset the norm
            optimizer.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * done / steps))
            chosen = chosen.to(train.features.device)
            loss = F.cross_entropy(model(train.features[chosen].float()), train.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part.float()) for part in val.features.split(4096)])
    return {f"probe_{name}": value for name, value in accuracies(logits, val.labels).items()}


@progress.waiting("looking for nearest neighbours")
def nearest_neighbours(
    train: Labelled, val: Labelled, classes: int, neighbours: int = 20, temperature: float = 0.07
) -> dict[str, float]:
    """Return the accuracy of the nearest training images' votes as `knn_top1` and `knn_balanced`.

    Votes are weighted with exp(cosine / 0.07) (Wu et al. 2018), of features whose mean is taken off.
    """
    _check(train, val, classes)
    mean = train.features.float().mean(0)
    known = F.normalize(train.features.float() - mean, dim=1)
    votes = []
    for part in val.features.split(512):
        similarity = F.normalize(part.float() - mean, dim=1) @ known.T
        cosine, index = similarity.topk(min(neighbours, len(known)), dim=1)
        vote = torch.zeros(len(part), classes, device=part.device)
        votes.append(vote.scatter_add_(1, train.labels[index], (cosine / temperature).exp()))
    scores = accuracies(torch.cat(votes), val.labels)
    return {"knn_top1": scores["top1"], "knn_balanced": scores["balanced"]}


def accuracies(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> dict[str, float]:
    """Return `top1`, `top5` (with more than five classes), and `balanced`, the mean over classes of top 1."""
    right = logits.argmax(1) == labels
    scores = {
        "top1": float(right.double().mean()),
        "balanced": float(torch.stack([right[labels == c].double().mean() for c in labels.unique()]).mean()),
    }
    if logits.shape[1] > 5:
        scores["top5"] = float((logits.topk(5, dim=1).indices == labels[:, None]).any(1).double().mean())
    return scores


def _check(train: Labelled, val: Labelled, classes: int) -> None:
    if train.features.shape[1] != val.features.shape[1]:
        widths = f"{train.features.shape[1]} and {val.features.shape[1]}"
        raise MetricError(f"features of {widths} numbers cannot be probed together.")
    if classes < 2 or len(train) < 2 or not len(val):
        raise MetricError(f"probing needs classes: there are {classes}, {len(train)} training and {len(val)} images.")
    for side in (train, val):
        if not 0 <= int(side.labels.min()) <= int(side.labels.max()) < classes:
            raise MetricError(f"labels must be in 0 to {classes - 1}.")
        if not side.features.isfinite().all():
            raise MetricError("the features hold NaN or Inf.")
