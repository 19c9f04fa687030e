"""Fréchet distance between Gaussians of features (FID with Inception's, Heusel et al. 2017), in float64."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from softvq import distributed


@dataclass
class Gaussian:
    """Mean and covariance of features that come in batches: their number, sum, and sum of outer products."""

    count: int
    sum: Float[Tensor, " F"]
    outer: Float[Tensor, "F F"]

    @classmethod
    def empty(cls, width: int) -> "Gaussian":
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    def add(self, features: Float[Tensor, "B F"]) -> None:
        features = features.detach().cpu().double()
        self.count += len(features)
        self.sum += features.sum(0)
        self.outer += features.T @ features

    def over_ranks(self) -> "Gaussian":
        """With what all ranks have added."""
        count = int(distributed.total(torch.tensor(self.count, dtype=torch.float64)))
        return Gaussian(count, distributed.total(self.sum), distributed.total(self.outer))

    @property
    def mean(self) -> Float[Tensor, " F"]:
        return self.sum / self.count

    @property
    def covariance(self) -> Float[Tensor, "F F"]:
        """Unbiased; needs two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.count}.")
        mean = self.mean
        return (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)

    @property
    def reliable(self) -> bool:
        """Whether there are more images than features: with fewer, the distance says little of the distribution."""
        return self.count > len(self.sum)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ^½ Σ' Σ^½)^½). The root's trace comes from the eigenvalues of a symmetric matrix,
    which is stable where the matrix square root of ΣΣ' is not."""
    if len(a.sum) != len(b.sum):
        raise ValueError(f"features of {len(a.sum)} and {len(b.sum)} numbers cannot be compared.")
    sigma_a, sigma_b = a.covariance, b.covariance
    values, vectors = torch.linalg.eigh(sigma_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ sigma_b @ root).clamp_min(0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + sigma_a.trace() + sigma_b.trace() - 2 * cross)
