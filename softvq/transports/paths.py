"""Paths from data to noise, x_t = α_t x + σ_t ε with t from 0 (data) to 1 (noise).

Velocity, score, noise and data are four equivalent descriptions of a point on a path (SiT, Ma et al. 2024).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

_LEAST = 1e-3  # of α or σ where it is divided by: data cannot be told from noise alone, nor noise from data alone


@dataclass(frozen=True)
class Coefficients:
    """The coefficients α_t, σ_t and their derivatives α'_t, σ'_t, each of the shape of t."""

    alpha: Float[Tensor, "*B"]
    sigma: Float[Tensor, "*B"]
    d_alpha: Float[Tensor, "*B"]
    d_sigma: Float[Tensor, "*B"]

    @property
    def determinant(self) -> Float[Tensor, "*B"]:
        """The determinant α σ' − α' σ: 1 on the linear path, π/2 on the cosine path."""
        return self.alpha * self.d_sigma - self.d_alpha * self.sigma


def linear(t: Float[Tensor, "*B"]) -> Coefficients:
    """Return the coefficients of the linear path, α = 1 − t, σ = t."""
    one = torch.ones_like(t)
    return Coefficients(1 - t, t, -one, one)


def cosine(t: Float[Tensor, "*B"]) -> Coefficients:
    """Return the coefficients of the cosine path, α = cos(π t / 2), σ = sin(π t / 2)."""
    quarter = math.pi / 2
    alpha, sigma = torch.cos(quarter * t), torch.sin(quarter * t)
    return Coefficients(alpha, sigma, -quarter * sigma, quarter * alpha)


# Paths by name, from α = 1, σ = 0 at t = 0 to α = 0, σ = 1 at t = 1, with σ / α rising. A file of one's own may add to
# them.
PATHS: dict[str, Callable[[Tensor], Coefficients]] = {"linear": linear, "cosine": cosine}


def coefficients(path: str, t: Float[Tensor, "*B"]) -> Coefficients:
    """Return α_t, σ_t and their derivatives on a path of `PATHS`."""
    return PATHS[path](t)


def like(t: Shaped[Tensor, " B"], x: Float[Tensor, " B *rest"]) -> Shaped[Tensor, " B *ones"]:
    """Return numbers, one a sample, shaped to broadcast with the samples."""
    return t.view(-1, *(1 for _ in x.shape[1:]))


def mix(path: str, x: Tensor, noise: Tensor, t: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """Return the point x_t = α x + σ ε and its velocity v = α' x + σ' ε."""
    c = coefficients(path, like(t, x))
    return c.alpha * x + c.sigma * noise, c.d_alpha * x + c.d_sigma * noise


def split(path: str, point: Tensor, velocity: Tensor, t: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """Return the data x and noise ε that a point and its velocity come from: the inverse of `mix`."""
    c = coefficients(path, like(t, point))
    x = (c.d_sigma * point - c.sigma * velocity) / c.determinant
    noise = (c.alpha * velocity - c.d_alpha * point) / c.determinant
    return x, noise


def velocity_of_data(path: str, point: Tensor, t: Float[Tensor, " B"], x: Tensor) -> Tensor:
    """Return the velocity of a point, given its data x; the divisor σ counts as at least 0.001."""
    c = coefficients(path, like(t, point))
    return c.d_alpha * x + c.d_sigma * ((point - c.alpha * x) / c.sigma.clamp_min(_LEAST))


def velocity_of_noise(path: str, point: Tensor, t: Float[Tensor, " B"], noise: Tensor) -> Tensor:
    """Return the velocity of a point, given its noise ε; the divisor α counts as at least 0.001."""
    c = coefficients(path, like(t, point))
    return c.d_alpha * ((point - c.sigma * noise) / c.alpha.clamp_min(_LEAST)) + c.d_sigma * noise


def score_of(path: str, point: Tensor, velocity: Tensor, t: Float[Tensor, " B"]) -> Tensor:
    """Return the score ∇ log p_t(x_t) = −ε / σ, for t > 0."""
    return -split(path, point, velocity, t)[1] / coefficients(path, like(t, point)).sigma


def uniform(path: str, normal: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return times uniform in [0, 1], whatever the path."""
    return 0.5 * (1 + torch.erf(normal / math.sqrt(2)))  # a normal number's own quantile


def log_normal(path: str, normal: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return times at which the ratio of noise to data σ / α is exp(n) for standard normal n."""
    return time_at(path, normal.exp())


# Distributions of training times by name: (path, standard normal numbers) -> times. A file of one's own may add.
TIMES: dict[str, Callable[[str, Tensor], Tensor]] = {"uniform": uniform, "log_normal": log_normal}


def times(name: str, path: str, normal: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return training times from standard normal numbers, by a distribution of `TIMES`."""
    return TIMES[name](path, normal)


def time_at(path: str, ratio: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the time at which σ / α is `ratio`.

    It is r / (1 + r) on the linear path, (2/π) arctan r on the cosine path, and found by bisection on others.
    """
    if path == "linear":
        return ratio / (1 + ratio)
    if path == "cosine":
        return torch.atan(ratio) * (2 / math.pi)
    low, high = torch.zeros_like(ratio, dtype=torch.float64), torch.ones_like(ratio, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        c = coefficients(path, middle)
        beyond = c.sigma > ratio * c.alpha
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return ((low + high) / 2).to(ratio.dtype)
