"""Discrete Gaussian diffusion (Ho et al. 2020; Nichol and Dhariwal 2021): betas, the posterior, the learned variance
and the variational bound. Everything a step needs is a table in float64, indexed by step number."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from softvq.transports.paths import like

BetasName = Literal["linear", "cosine"]
STEPS = 1000
LEAST = -5.1  # λ that few-step samplers begin at; linear betas end above it, at −5.06


@dataclass(frozen=True)
class Diffusion:
    """A chain of T steps. `timesteps` are the numbers, of the chain that a network was trained on, which it is told."""

    betas: Float[Tensor, " T"]
    timesteps: Int[Tensor, " T"]

    @classmethod
    def named(cls, name: BetasName, steps: int = STEPS) -> "Diffusion":
        """`linear`: β from 1e-4 to 0.02 (of 1,000 steps). `cosine`: ᾱ_t = cos²((t + 0.008) / 1.008 · π/2),
        β at most 0.999."""
        if name == "linear":
            scale = STEPS / steps
            betas = np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)
        else:
            at = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
            betas = np.array([min(1 - after / before, 0.999) for before, after in pairwise(at)])
        return cls(torch.from_numpy(betas), torch.from_numpy(np.arange(steps)))  # real, whatever the default device

    def longest(self, least: float) -> int:
        """How many steps have a λ of at least that."""
        return int((0.5 * (self.alpha_bar / (1 - self.alpha_bar)).log() >= least).sum())

    def respaced(self, count: int, least: float = -math.inf) -> "Diffusion":
        """A chain of `count` steps, evenly over this one from its first to its last, with the same ᾱ there.

        `least`: without the steps at the end whose λ = log(√ᾱ / √(1 − ᾱ)) is less. With cosine betas √ᾱ ends at 5e-5,
        and what a network says of noise there is divided by it: a few wide steps over that end make any error large."""
        total = self.longest(least)
        if not 1 <= count <= total:
            raise ValueError(f"a chain of {total} steps cannot be respaced to {count}.")
        stride = (total - 1) / (count - 1) if count > 1 else 0.0
        kept = torch.tensor([round(stride * i) for i in range(count)], device=self.betas.device)
        alpha_bar = self.alpha_bar[kept]
        before = torch.cat([torch.ones(1, dtype=torch.float64, device=alpha_bar.device), alpha_bar[:-1]])
        return Diffusion(1 - alpha_bar / before, self.timesteps[kept])

    @property
    def alpha_bar(self) -> Float[Tensor, " T"]:
        return torch.cumprod(1 - self.betas, 0)

    @property
    def alpha_bar_before(self) -> Float[Tensor, " T"]:
        return torch.cat([torch.ones(1, dtype=torch.float64, device=self.betas.device), self.alpha_bar[:-1]])

    def mix(self, x: Tensor, noise: Tensor, step: Int[Tensor, " B"]) -> Tensor:
        """x_t = √ᾱ x + √(1 − ᾱ) ε."""
        bar = self.alpha_bar
        return self.at(bar.sqrt(), step, x) * x + self.at((1 - bar).sqrt(), step, x) * noise

    def clean(self, point: Tensor, noise: Tensor, step: Int[Tensor, " B"]) -> Tensor:
        """The data x of a point x_t and its noise."""
        bar = self.alpha_bar
        return self.at((1 / bar).sqrt(), step, point) * point - self.at((1 / bar - 1).sqrt(), step, point) * noise

    def posterior(self, x: Tensor, point: Tensor, step: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(x_{t−1} | x_t, x). At the first step the variance is the second's: it is 0."""
        bar, before = self.alpha_bar, self.alpha_bar_before
        mean = (
            self.at(self.betas * before.sqrt() / (1 - bar), step, x) * x
            + self.at((1 - before) * (1 - self.betas).sqrt() / (1 - bar), step, x) * point
        )
        return mean, self.at(self._least_log_variance(), step, x)

    def _least_log_variance(self) -> Float[Tensor, " T"]:
        variance = self.betas * (1 - self.alpha_bar_before) / (1 - self.alpha_bar)
        return torch.cat([variance[min(1, len(variance) - 1)].view(1), variance[1:]]).log()

    def log_variance(self, logits: Tensor, step: Int[Tensor, " B"]) -> Tensor:
        """The learned variance: `logits` of −1 … 1 lie between the posterior's and β, in logarithms."""
        share = (logits + 1) / 2
        least, most = self.at(self._least_log_variance(), step, logits), self.at(self.betas.log(), step, logits)
        return share * most + (1 - share) * least

    def bound(
        self, x: Tensor, point: Tensor, noise: Tensor, logits: Tensor, step: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """The variational bound's term of a step, in bits a number: KL(q ‖ p), or at step 0 −log p of 8-bit data.

        `noise` and `logits` are the network's; no gradient reaches `noise`, which the mean squared error trains."""
        true_mean, true_log_variance = self.posterior(x, point, step)
        mean, _ = self.posterior(self.clean(point, noise.detach(), step), point, step)
        log_variance = self.log_variance(logits, step)
        divergence = 0.5 * (
            log_variance
            - true_log_variance
            - 1
            + torch.exp(true_log_variance - log_variance)
            + (true_mean - mean).square() * torch.exp(-log_variance)
        )
        likelihood = -_log_likelihood(x, mean, 0.5 * log_variance)
        terms = torch.where(like(step == 0, x), likelihood, divergence)
        return terms.flatten(1).mean(1) / math.log(2)

    def at(self, table: Float[Tensor, " T"], step: Int[Tensor, " B"], x: Tensor) -> Tensor:
        """Of a table, each sample's entry, in the samples' type and shape."""
        return like(table.to(x.device)[step].to(x.dtype), x)


def _log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log of the Gaussian's mass in the 1/255-wide bin on either side of x, open at −1 and 1."""
    scale = torch.exp(-log_std)
    upper, lower = (_normal_cdf(scale * (x - mean + side)) for side in (1 / 255, -1 / 255))
    inside = (upper - lower).clamp_min(1e-12).log()
    below, above = upper.clamp_min(1e-12).log(), (1 - lower).clamp_min(1e-12).log()
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation that the published losses are computed with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
