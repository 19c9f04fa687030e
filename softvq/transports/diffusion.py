"""Discrete Gaussian diffusion (Ho et al. 2020; Nichol and Dhariwal 2021) as tables in float64, indexed by step number.

There are betas, the posterior, the learned variance and the variational bound.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from softvq.errors import check_whole
from softvq.transports.paths import like

BetasName = Literal["linear", "cosine"]
STEPS = 1000
LEAST_LAMBDA = -5.1  # λ that few-step samplers begin at; linear betas end above it, at −5.06


@dataclass(frozen=True)
class Diffusion:
    """A diffusion chain of T steps with these betas.

    `timesteps` are the step numbers that a network is told, as in the chain that it was trained on.
    """

    betas: Float[Tensor, " T"]
    timesteps: Int[Tensor, " T"]

    @classmethod
    def named(cls, name: BetasName, steps: int = STEPS) -> "Diffusion":
        """Return a chain with `linear` or `cosine` betas.

        `linear`: β from 1e-4 to 0.02 (of 1,000 steps). `cosine`: ᾱ_t = cos²((t + 0.008) / 1.008 · π/2), β at most
        0.999.
        """
        check_whole("steps", steps, 1)
        if name == "linear":
            scale = STEPS / steps
            betas = np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)
        else:
            at = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
            betas = np.array([min(1 - after / before, 0.999) for before, after in pairwise(at)])
        return cls(torch.from_numpy(betas), torch.from_numpy(np.arange(steps)))  # real, whatever the default device

    def longest(self, least: float) -> int:
        """Return the number of steps with a λ = log(√ᾱ / √(1 − ᾱ)) of at least `least`."""
        return int((0.5 * (self.alpha_bar / (1 - self.alpha_bar)).log() >= least).sum())

    def respaced(self, count: int, least: float = -math.inf) -> "Diffusion":
        """Return a chain of `count` steps, evenly over this one from its first to its last, with the same ᾱ there.

        `least` leaves out the steps at the end whose λ = log(√ᾱ / √(1 − ᾱ)) is less. With cosine betas √ᾱ ends at 5e-5,
        and the network's error is divided by it: a few wide steps over that end make any error large. Raise
        `ValueError` when fewer than `count` steps are left.
        """
        total = self.longest(least)
        if not 1 <= count <= total:
            raise ValueError(f"a chain of {total} steps cannot be respaced to {count}.")
        stride = (total - 1) / (count - 1) if count > 1 else 0.0
        kept = torch.tensor([round(stride * i) for i in range(count)], device=self.betas.device)
        alpha_bar = self.alpha_bar[kept]
        before = torch.cat([torch.ones(1, dtype=torch.float64, device=alpha_bar.device), alpha_bar[:-1]])
        return Diffusion(1 - alpha_bar / before, self.timesteps[kept])

    @cached_property
    def alpha_bar(self) -> Float[Tensor, " T"]:
        """The products ᾱ of 1 − β over all steps up to each one."""
        return torch.cumprod(1 - self.betas, 0)

    @cached_property
    def alpha_bar_before(self) -> Float[Tensor, " T"]:
        """The products ᾱ over all steps before each one: 1 at the first."""
        return torch.cat([torch.ones(1, dtype=torch.float64, device=self.betas.device), self.alpha_bar[:-1]])

    def mix(self, x: Tensor, noise: Tensor, step: Int[Tensor, " B"]) -> Tensor:
        """Return the point x_t = √ᾱ x + √(1 − ᾱ) ε at each sample's step."""
        bar = self.alpha_bar
        return self.at(bar.sqrt(), step, x) * x + self.at((1 - bar).sqrt(), step, x) * noise

    def clean(self, point: Tensor, noise: Tensor, step: Int[Tensor, " B"]) -> Tensor:
        """Return the data x of a point x_t, given the noise in it."""
        bar = self.alpha_bar
        return self.at((1 / bar).sqrt(), step, point) * point - self.at((1 / bar - 1).sqrt(), step, point) * noise

    def posterior(self, x: Tensor, point: Tensor, step: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(x_{t−1} | x_t, x).

        The first step has the variance of the second, because its own is 0.
        """
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
        """Return the learned log variance: `logits` of −1 … 1 lie between the posterior's and β, in logarithms."""
        share = (logits + 1) / 2
        least, most = self.at(self._least_log_variance(), step, logits), self.at(self.betas.log(), step, logits)
        return share * most + (1 - share) * least

    def bound(
        self, x: Tensor, point: Tensor, noise: Tensor, logits: Tensor, step: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Return the variational bound's term of each sample's step, in bits a number.

        It is KL(q ‖ p), or at step 0 −log p of 8-bit data. `noise` and `logits` are the network's; no gradient reaches
        `noise`, which the mean squared error trains.
        """
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
        """Return each sample's entry of a table, in the samples' type and shaped to broadcast with them."""
        return like(table.to(x.device, x.dtype)[step], x)


def _log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log of the Gaussian's mass in the bin from x − 1/255 to x + 1/255, open at −1 and 1."""
    scale = torch.exp(-log_std)
    upper, lower = (_normal_cdf(scale * (x - mean + side)) for side in (1 / 255, -1 / 255))
    inside = (upper - lower).clamp_min(1e-12).log()
    below, above = upper.clamp_min(1e-12).log(), (1 - lower).clamp_min(1e-12).log()
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    """Return the normal distribution function by the tanh approximation that the published losses are computed with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
