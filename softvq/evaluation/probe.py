"""How much of an image's class a representation holds: linear probing (Appendix C.3, Fig. 3), and k-NN as a quick look.

The paper gives a batch norm without parameters and a linear layer, 90 epochs, batches of 16,384, LAMB and a cosine from
0.003. It does not give augmentation, decay and start: none, none, and weights of deviation 0.01 are taken here.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from softvq.errors import MetricError
from softvq.optim import LAMB

_IMAGENET_STEPS = 78  # an epoch, with batches of 16,384


@dataclass(frozen=True)
class ProbeConfig:
    """`batch_size` None: 16,384, or less of a small set, so that an epoch has as many steps as one of ImageNet."""

    epochs: int = 90
    batch_size: int | None = None
    lr: float = 0.003
    seed: int = 0

    def __post_init__(self):
        if self.epochs < 1 or self.lr <= 0 or (self.batch_size is not None and self.batch_size < 2):
            raise ValueError("epochs must be at least 1, batch_size at least 2, and lr positive")

    def batch_of(self, images: int) -> int:
        return self.batch_size or min(16_384, max(16, round(images / _IMAGENET_STEPS)))


@dataclass(frozen=True)
class Labelled:
    """Features of images and their classes."""

    features: Float[Tensor, "N F"]
    labels: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.features)


def linear_probe(
    train: Labelled,
    val: Labelled,
    classes: int,
    config: ProbeConfig | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, float]:
    """Accuracy (in [0, 1]) on `val` of a linear layer on `train`: `probe_top1`, `probe_top5`, and `probe_balanced`, the
    mean over classes. Computed where the features are, in float32."""
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
    epochs: Iterable[int] = range(config.epochs)
    for _ in progress(epochs) if progress else epochs:
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


def nearest_neighbours(
    train: Labelled, val: Labelled, classes: int, neighbours: int = 20, temperature: float = 0.07
) -> dict[str, float]:
    """`knn_top1`, `knn_balanced`: votes of the nearest training images by cosine, weighted with exp(cosine / 0.07)
    (Wu et al. 2018), of features whose mean is taken off."""
    _check(train, val, classes)
    mean = train.features.float().mean(0)
    known = F.normalize(train.features.float() - mean, dim=1)
    votes = []
    for part in val.features.split(512):
        found = F.normalize(part.float() - mean, dim=1) @ known.T
        cosine, index = found.topk(min(neighbours, len(known)), dim=1)
        vote = torch.zeros(len(part), classes, device=part.device)
        votes.append(vote.scatter_add_(1, train.labels[index], (cosine / temperature).exp()))
    found = accuracies(torch.cat(votes), val.labels)
    return {"knn_top1": found["top1"], "knn_balanced": found["balanced"]}


def accuracies(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> dict[str, float]:
    """`top1`, `top5` (where there are more than five classes), and `balanced`: the mean over classes of top 1."""
    right = logits.argmax(1) == labels
    found = {
        "top1": float(right.double().mean()),
        "balanced": float(torch.stack([right[labels == c].double().mean() for c in labels.unique()]).mean()),
    }
    if logits.shape[1] > 5:
        found["top5"] = float((logits.topk(5, dim=1).indices == labels[:, None]).any(1).double().mean())
    return found


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
