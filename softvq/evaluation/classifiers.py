"""Classifiers of features: a linear layer that is trained on them, and their nearest neighbours.

Linear probing is that of Appendix C.3 and Fig. 3; k-NN is a quick look.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from softvq import progress
from softvq.errors import ConfigError, MetricError, check_whole, counted
from softvq.optim import LAMB

_IMAGENET_STEPS = 78  # an epoch, with batches of 16,384
_NEIGHBOURS = 20
_MOMENTUM = 0.1  # of the batch norm's running statistics


@dataclass(frozen=True)
class ProbeConfig:
    """The settings of the training of a linear probe.

    Where they are None, `epochs` and `lr` are the paper's 90 and 0.003, `seed` is 0, and `batch_size` is 16,384, or
    less of a small set, so that an epoch has as many steps as one of ImageNet. Raise `ConfigError` for impossible ones.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int | None = None

    def __post_init__(self):
        for name, least in (("epochs", 1), ("seed", 0)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least)
        if self.batch_size is not None and self.batch_size < 2:  # of one image there is no batch norm
            raise ConfigError(
                f"the probe's batch_size must be at least 2, not {self.batch_size}.", setting="probe_batch"
            )
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ConfigError(f"lr must be positive and finite, not {self.lr}.", setting="lr")
        if self.seed is not None and self.seed >= 2**63:
            raise ConfigError(f"seed must be below 2^63, not {self.seed}.", setting="seed")

    def filled(self) -> "ProbeConfig":
        """Return the settings with the default epochs, rate and seed where they are None."""
        defaults = {"epochs": 90, "lr": 0.003, "seed": 0}
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def batch_of(self, images: int) -> int:
        """Return the batch size for a set of so many images."""
        return self.batch_size or min(16_384, max(16, round(images / _IMAGENET_STEPS)))

    def step_of(self, images: int) -> int:
        """Return the number of images of a step: the batch size, or all images where they are fewer."""
        return min(self.batch_of(images), images)


@dataclass(frozen=True)
class Labelled:
    """Features of images and their classes."""

    features: Float[Tensor, "N F"]
    labels: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.features)


def figures_notes(train: Labelled, val: Labelled, classes: int) -> list[str]:
    """Return how little accuracies of these images say, as far as it is little."""
    notes = []
    trained, (present, counts) = train.labels.unique(), val.labels.unique(return_counts=True)
    error = 50 / math.sqrt(len(val))  # at most, where half are right; in percentage points
    balanced = 50 / len(present) * float((1 / counts.double()).sum().sqrt())
    if max(error, balanced) >= 1:
        notes.append(
            f"the accuracy of {counted(len(val), 'image')} has a standard error of up to {error:.1f} percentage points "
            f"(balanced: {balanced:.1f})"
        )
    if len(trained) < classes:
        missed = int((~torch.isin(val.labels, trained)).sum())
        theirs = f"; the {counted(missed, 'validation image')} of those can be right by chance alone" if missed else ""
        has = "has" if classes - len(trained) == 1 else "have"
        notes.append(f"{classes - len(trained):,} of {classes:,} classes {has} no training image{theirs}")
    if len(present) < classes:
        notes.append(f"balanced: the mean over {len(present):,} of {classes:,} classes, those of the validation images")
    if len(train) <= _NEIGHBOURS:
        notes.append(f"k-NN: all {len(train)} training images vote on each, where otherwise {_NEIGHBOURS} do")
    return notes


def training_notes(images: int, config: ProbeConfig) -> list[str]:
    """Return that a probe was trained too shortly for the running statistics that it is used with, where it was."""
    steps = config.epochs * (images // config.step_of(images))
    begun = (1 - _MOMENTUM) ** steps
    if begun < 0.01:
        return []
    return [f"{counted(steps, 'step')} of training: the batch norm's statistics are {begun:.0%} what they began with"]


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
    config = (config or ProbeConfig()).filled()
    _check(train, val, classes)
    generator = torch.Generator().manual_seed(config.seed)
    norm = nn.BatchNorm1d(train.features.shape[1], eps=1e-6, momentum=_MOMENTUM, affine=False)
    head = nn.Linear(train.features.shape[1], classes)
    with torch.no_grad():
        head.weight.normal_(std=0.01, generator=generator)
        head.bias.zero_()
    model = nn.Sequential(norm, head).to(train.features.device)
    optimizer = LAMB(model.parameters(), lr=config.lr)
    batch = config.step_of(len(train))
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
    if not logits.isfinite().all():
        raise MetricError(f"the linear layer came to NaN or Inf at lr {config.lr:g}; take a smaller one.", setting="lr")
    return {f"probe_{name}": value for name, value in accuracies(logits, val.labels).items()}


@progress.waiting("looking for nearest neighbours")
def nearest_neighbours(
    train: Labelled, val: Labelled, classes: int, neighbours: int = _NEIGHBOURS, temperature: float = 0.07
) -> dict[str, float]:
    """Return the accuracy of the nearest training images' votes as `knn_top1` and `knn_balanced`.

    Votes are weighted with exp(cosine / 0.07) (Wu et al. 2018), of features whose mean is taken off. Of fewer training
    images than `neighbours`, all vote.
    """
    if neighbours < 1 or not 0 < temperature < math.inf:
        raise ConfigError(f"neighbours and temperature must be positive, not {neighbours} and {temperature}.")
    _check(train, val, classes)
    mean = train.features.float().mean(0)
    known = F.normalize(train.features.float() - mean, dim=1)
    votes = []
    for part in val.features.split(512):
        similarity = F.normalize(part.float() - mean, dim=1) @ known.T
        cosine, index = similarity.topk(min(neighbours, len(known)), dim=1)
        vote = torch.zeros(len(part), classes, device=part.device)
        weight = ((cosine - cosine[:, :1]) / temperature).exp()  # beside the nearest's, or small temperatures give Inf
        votes.append(vote.scatter_add_(1, train.labels[index], weight))
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
    if len(train.labels.unique()) < 2:
        raise MetricError("probing needs training images of at least two classes.")
