"""Paths from data to noise, x_t = α_t x + σ_t ε with t from 0 (data) to 1 (noise), and what can be said of a point on
one: velocity, score, noise and data are four ways to say the same (SiT, Ma et al. 2024)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

PathName = Literal["linear", "cosine"]
TimeName = Literal["uniform", "log_normal"]
_LEAST = 1e-3  # of α or σ where it is divided by: data cannot be told from noise alone, nor noise from data alone


@dataclass(frozen=True)
class Coefficients:
    """α_t, σ_t and their derivatives α'_t, σ'_t, each of the shape of t."""

    alpha: Float[Tensor, "*B"]
    sigma: Float[Tensor, "*B"]
    d_alpha: Float[Tensor, "*B"]
    d_sigma: Float[Tensor, "*B"]

    @property
    def determinant(self) -> Float[Tensor, "*B"]:
        """α σ' − α' σ: 1 on the linear path, π/2 on the cosine path."""
        return self.alpha * self.d_sigma - self.d_alpha * self.sigma


def coefficients(path: PathName, t: Float[Tensor, "*B"]) -> Coefficients:
    """`linear`: α = 1 − t, σ = t. `cosine`: α = cos(π t / 2), σ = sin(π t / 2)."""
    if path == "linear":
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)
    quarter = math.pi / 2
    alpha, sigma = torch.cos(quarter * t), torch.sin(quarter * t)
    return Coefficients(alpha, sigma, -quarter * sigma, quarter * alpha)


def like(t: Shaped[Tensor, " B"], x: Float[Tensor, "B *rest"]) -> Shaped[Tensor, "B *ones"]:
    """Times, one a sample, shaped to go with samples."""
    return t.view(-1, *(1 for _ in x.shape[1:]))


def mix(path: PathName, x: Tensor, noise: Tensor, t: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """The point x_t = α x + σ ε and its velocity v = α' x + σ' ε."""
    c = coefficients(path, like(t, x))
    return c.alpha * x + c.sigma * noise, c.d_alpha * x + c.d_sigma * noise


def split(path: PathName, point: Tensor, velocity: Tensor, t: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """The data x and noise ε that a point and its velocity come from: the inverse of `mix`."""
    c = coefficients(path, like(t, point))
    x = (c.d_sigma * point - c.sigma * velocity) / c.determinant
    noise = (c.alpha * velocity - c.d_alpha * point) / c.determinant
    return x, noise


def velocity_of(
    path: PathName, point: Tensor, t: Float[Tensor, " B"], *, x: Tensor | None = None, noise=None
) -> Tensor:
    """The velocity, given the data or the noise of a point. Where it is divided by, α or σ counts as at least 0.001."""
    c = coefficients(path, like(t, point))
    if x is None:
        x = (point - c.sigma * noise) / c.alpha.clamp_min(_LEAST)
    else:
        noise = (point - c.alpha * x) / c.sigma.clamp_min(_LEAST)
    return c.d_alpha * x + c.d_sigma * noise


def score_of(path: PathName, point: Tensor, velocity: Tensor, t: Float[Tensor, " B"]) -> Tensor:
    """∇ log p_t(x_t) = −ε / σ, for t > 0."""
    return -split(path, point, velocity, t)[1] / coefficients(path, like(t, point)).sigma


def times(name: TimeName, path: PathName, normal: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Times of training from standard normal numbers. `uniform` in [0, 1]; `log_normal`: σ = exp(n) is the ratio of
    noise to data, which is at t = σ / (1 + σ) on the linear and (2/π) arctan σ on the cosine path."""
    if name == "uniform":
        return 0.5 * (1 + torch.erf(normal / math.sqrt(2)))  # a normal number's own quantile
    ratio = normal.exp()
    return ratio / (1 + ratio) if path == "linear" else torch.atan(ratio) * (2 / math.pi)
