"""Measures of how close generated images are to real ones, besides the Fréchet distance.

They are Inception Score, KID, precision and recall, all in float64, from features that are there already.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from softvq.errors import MetricError, check_whole

SPLITS = 10  # parts of the images that an Inception Score is a mean over
NEIGHBOURS = 3  # precision and recall (Kynkäänniemi et al. 2019), as ADM takes them
MOST = 10_000  # reference images of precision and recall, as in ADM
_SEED = 2020  # of torch-fidelity's permutation and subsets
_BLOCK = 2048


def inception_score(logits: Float[Tensor, "N C"], splits: int = SPLITS) -> tuple[float, float]:
    """Return the mean and deviation over `splits` parts of exp E KL(p(y|x) ‖ p(y)) (Salimans et al. 2016).

    The images are permuted first as torch-fidelity does.
    """
    check_whole("splits", splits, 1)
    _check_finite(logits)
    count = len(logits)
    if count < splits:
        raise MetricError(f"an Inception Score of {splits} parts needs as many images, not {count}.")
    logits = logits[np.random.RandomState(_SEED).permutation(count)].double()
    scores = []
    for part in range(splits):
        log_p = logits[part * count // splits : (part + 1) * count // splits].log_softmax(1)
        p = log_p.exp()
        divergence = torch.where(p > 0, p * (log_p - p.mean(0).log()), 0.0)  # a class may have no probability at all
        scores.append(float(divergence.sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def kernel_distance(
    samples: Float[Tensor, "N F"], reference: Float[Tensor, "M F"], subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """Return KID (Bińkowski et al. 2018): the unbiased squared MMD with kernel (x · y / F + 1)³, as mean and deviation.

    They are those over subsets of `size` images of each side (all, where there are fewer), drawn as torch-fidelity
    draws them.
    """
    check_whole("subsets", subsets, 1)
    _check_finite(samples, reference)
    size = min(size, len(samples), len(reference))
    if size < 2:
        raise MetricError(f"KID needs at least 2 images of each side, not {size}.")
    rng = np.random.RandomState(_SEED)
    distances = []
    for _ in range(subsets):
        x = samples[rng.choice(len(samples), size, replace=False)].double()
        y = reference[rng.choice(len(reference), size, replace=False)].double()
        within = sum(float(k.sum() - k.diagonal().sum()) for k in (_cubic(x, x), _cubic(y, y))) / (size * (size - 1))
        distances.append(within - 2 * float(_cubic(x, y).mean()))
    return float(np.mean(distances)), float(np.std(distances))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(
    samples: Float[Tensor, "N F"], reference: Float[Tensor, "M F"], neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Return precision and recall of samples (Kynkäänniemi et al. 2019), each in [0, 1].

    Precision is the share of samples within the reach of some reference image, recall that of reference images within
    the reach of some sample. An image reaches as far as its k-th nearest neighbour of its own side.
    """
    check_whole("neighbours", neighbours, 1)
    for side, name in ((samples, "generated"), (reference, "reference")):
        if len(side) < neighbours + 1:
            raise MetricError(
                f"precision and recall with {neighbours} neighbours need at least {neighbours + 1} {name} images, "
                f"not {len(side)}."
            )
    samples, reference = _centred(samples, reference)
    precision = _within(samples, reference, _reach(reference, neighbours))
    recall = _within(reference, samples, _reach(samples, neighbours))
    return float(precision.double().mean()), float(recall.double().mean())


def _centred(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sides less the reference's mean.

    Distances are computed as differences of squares, and those of small numbers keep their digits.
    """
    _check_finite(samples, reference)
    middle = reference.double().mean(0)
    return samples.double() - middle, reference.double() - middle


def _reach(points: Tensor, neighbours: int) -> Float[Tensor, " N"]:
    """Return the squared distance of each point to its k-th nearest neighbour among the others."""
    reaches = []
    for first in range(0, len(points), _BLOCK):
        squares = _squares(points[first : first + _BLOCK], points)
        own = torch.arange(len(squares))
        squares[own, first + own] = torch.inf
        reaches.append(squares.kthvalue(neighbours, dim=1).values)
    return torch.cat(reaches)


def _within(points: Tensor, centres: Tensor, reach: Tensor) -> Bool[Tensor, " N"]:
    """Return for each point True when it is within the reach of some centre; equal distances count, to rounding."""
    slack = 1e-12 * max(float(side.square().sum(1).max()) for side in (points, centres))
    return torch.cat([(_squares(p, centres) <= reach + slack).any(1) for p in points.split(_BLOCK)])


def _squares(a: Tensor, b: Tensor) -> Float[Tensor, "N M"]:
    squares = torch.addmm(a.square().sum(1, keepdim=True) + b.square().sum(1), a, b.T, alpha=-2)
    return squares.clamp_min_(0)


def nearest_distances(samples: Float[Tensor, "N F"], reference: Float[Tensor, "M F"]) -> Float[Tensor, " N"]:
    """Return the distance of each sample to the nearest reference image.

    A set of copies lies nearer than new images do.
    """
    samples, reference = _centred(samples, reference)
    return torch.cat([_squares(part, reference).amin(1).sqrt() for part in samples.split(_BLOCK)])


def _check_finite(*features: Tensor) -> None:
    """Raise `MetricError` for NaN and Inf, which are near to nothing and would count as unlike any image."""
    if not all(one.isfinite().all() for one in features):
        raise MetricError("the features hold NaN or Inf.")
