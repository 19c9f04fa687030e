"""Fréchet distance between Gaussians of features (FID with Inception's, Heusel et al. 2017), in float64."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from softvq.errors import MetricError


@dataclass(frozen=True)
class Moments:
    """The mean and the unbiased covariance of features, and the number of images (None where a file does not say)."""

    mean: Float[Tensor, " F"]
    covariance: Float[Tensor, "F F"]
    count: int | None

    @property
    def reliable(self) -> bool:
        """True when there are more images than features: with fewer, a distance says little of the distribution.

        It is True too where the number of images is not known.
        """
        return self.count is None or self.count > len(self.mean)

    @cached_property
    def factor(self) -> Float[Tensor, "F R"]:
        """A matrix A with A Aᵀ the covariance.

        Its rank R is less than the number of images: eigenvalues beyond that rank, and those below the rounding of the
        largest one, are noise, and their roots would be large.
        """
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        if self.count is not None:
            kept[: max(0, len(values) - self.count + 1)] = False
        return vectors[:, kept] * values[kept].sqrt()


class Gaussian:
    """The moments of features that come in batches, without cancellation (Chan, Golub and LeVeque 1979)."""

    def __init__(self, width: int):
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, features: Float[Tensor, "B F"]) -> None:
        """Add a batch of features."""
        if not len(features):
            return
        features = features.detach().cpu().double()
        count, mean = len(features), features.mean(0)
        centred, step, total = features - mean, mean - self.mean, self.count + len(features)
        self.scatter += centred.T @ centred + torch.outer(step, step) * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    @property
    def moments(self) -> Moments:
        """The moments of all features added; raises `MetricError` with fewer than two images."""
        if self.count < 2:
            raise MetricError(f"a covariance needs at least 2 images, not {self.count}.")
        return Moments(self.mean, self.scatter / (self.count - 1), self.count)


def moments_of(features: Float[Tensor, "N F"]) -> Moments:
    """Return the moments of all features at once."""
    gaussian = Gaussian(features.shape[1])
    for part in features.split(4096):
        gaussian.add(part)
    return gaussian.moments


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return ‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ^½ Σ' Σ^½)^½).

    With Σ = A Aᵀ and Σ' = B Bᵀ the root's trace is the sum of the singular values of Aᵀ B: exact where the matrix
    square root of ΣΣ' is unstable, with few images too. Raise `MetricError` when the features differ in number or are
    not finite.
    """
    if len(a.mean) != len(b.mean):
        raise MetricError(f"features of {len(a.mean)} and {len(b.mean)} numbers cannot be compared.")
    for moments in (a, b):
        if not (moments.mean.isfinite().all() and moments.covariance.isfinite().all()):
            raise MetricError("the features hold NaN or Inf.")
    cross = torch.linalg.svdvals(a.factor.T @ b.factor).sum()
    return float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross)
