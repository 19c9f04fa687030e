"""Samplers from noise to data, as pure functions of a field.

Times go from 1 (noise) to 0 (data); the state keeps its type, so that float64 in is float64 throughout. Noise comes in,
one draw a step: samplers hold no generator of random numbers.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from softvq.errors import ConfigError, ModelError, check_whole
from softvq.transports.diffusion import STEPS, Diffusion
from softvq.transports.guidance import Field
from softvq.transports.paths import coefficients, score_of, split

Noise = Callable[[int], Tensor]  # a step's number -> standard normal numbers of the state's shape
Progress = Callable[[Sequence], Sequence]  # tqdm, or nothing
SDE_END = 0.04  # where the stochastic steps end: the score grows as 1 / t


def _same(steps: Sequence) -> Sequence:
    return steps


def precise(device: torch.device) -> torch.dtype:
    """Return the type of times and of a state that is summed over many steps: float64, but on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def _all(x: Tensor, t: float) -> Float[Tensor, " B"]:
    return torch.full((len(x),), t, dtype=precise(x.device), device=x.device)


def _grid(first: float, last: float, count: int) -> list[float]:
    return torch.linspace(first, last, count, dtype=torch.float64, device="cpu").tolist()


def _even(steps: int) -> list[float]:
    check_whole("steps", steps, 1)  # without any, the noise would be the data
    return _grid(1, 0, steps + 1)


def euler(field: Field, x: Tensor, steps: int, progress: Progress = _same) -> Tensor:
    """Return the solution of dx = v dt by first-order steps, one evaluation each."""
    grid = _even(steps)
    for now, after in progress(list(pairwise(grid))):
        x = x + (after - now) * field(x, _all(x, now), _all(x, now)).to(x.dtype)
    return x


def heun(field: Field, x: Tensor, steps: int, progress: Progress = _same) -> Tensor:
    """Return the solution of dx = v dt by second-order steps, two evaluations each; the last is Euler's."""
    grid = _even(steps)
    for now, after in progress(list(pairwise(grid))):
        first = field(x, _all(x, now), _all(x, now)).to(x.dtype)
        ahead = x + (after - now) * first
        if after > 0:
            second = field(ahead, _all(x, after), _all(x, now)).to(x.dtype)
            ahead = x + (after - now) * 0.5 * (first + second)
        x = ahead
    return x


def euler_maruyama(field: Field, x: Tensor, steps: int, path: str, noise: Noise, progress: Progress = _same) -> Tensor:
    """Return a solution of the reverse SDE with w = 2t, dx = (v − t · score) dt + √(2t) dW.

    w is the diffusion coefficient. There are `steps` evaluations: all but the last from 1 to 0.04 with noise, the last
    from there to 0 without.
    """
    check_whole("steps", steps, 1)
    grid = [*_grid(1, SDE_END, steps), 0.0]
    for number, (now, after) in enumerate(progress(list(pairwise(grid)))):
        t = _all(x, now)
        velocity = field(x, t, t).to(x.dtype)
        drift = velocity - now * score_of(path, x, velocity, t.to(x.dtype))
        x = x + (after - now) * drift
        if after > 0:
            x = x + math.sqrt(2 * now * (now - after)) * noise(number).to(x)
    return x


# Dormand and Prince's pair of orders 5 and 4: nodes, stages, weights of the fifth order, and their difference.
_NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FOURTH = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)


def dopri5(
    field: Field, x: Tensor, tolerance: float = 1e-4, most_steps: int = 1000, edges: Sequence[float] = ()
) -> Tensor:
    """Return the solution of dx = v dt by Dormand and Prince's method with adaptive steps.

    Each sample has its own step size, so that a result does not depend on the rest of the batch. `edges`: times at
    which the field jumps (guidance begins or ends); no step crosses one, and the field is told the middle of a step as
    its beginning, which is on one side: else rounding, which decides how long a step is, would decide how long there is
    guidance. `tolerance` is absolute and relative; more than `most_steps` tries of a sample are a `ConfigError`.
    """
    check_whole("most_steps", most_steps, 1)
    if not 0 < tolerance < math.inf:
        raise ConfigError(f"tolerance must be positive and finite, not {tolerance}.")
    stops = torch.tensor(sorted({0.0, *edges}), dtype=precise(x.device), device=x.device)
    t = torch.ones(len(x), dtype=precise(x.device), device=x.device)
    size = torch.full_like(t, 0.05)
    for _ in range(most_steps):
        stop = torch.where(stops < t[:, None], stops, 0.0).amax(1)
        room = t - stop  # 0 for samples that have arrived: they stay where they are
        h = torch.minimum(size, room)
        wide = h.view(-1, *(1 for _ in x.shape[1:])).to(x.dtype)
        slopes: list[Tensor] = []
        ahead = x
        for node, weights in zip(_NODES, _STAGES, strict=True):
            if weights:
                ahead = x - wide * sum(w * k for w, k in zip(weights, slopes, strict=True))
            slopes.append(field(ahead, t - node * h, t - h / 2).to(x.dtype))
        lower = x - wide * sum(w * k for w, k in zip(_FOURTH, slopes, strict=True))
        scale = tolerance * (1 + torch.maximum(x.abs(), ahead.abs()))
        error = ((ahead - lower) / scale).flatten(1).square().mean(1).sqrt().to(t.dtype)
        if error.isnan().any():  # no step is short enough for that
            raise ModelError(
                "the network's output is not finite: its weights are damaged, or the precision is too low."
            )
        kept = error <= 1
        x = torch.where(kept.view_as(wide), ahead, x)
        t = torch.where(kept, torch.where(h >= room, stop, t - h), t)
        size = h * (0.9 * error.clamp_min(1e-10) ** -0.2).clamp(0.2, 5)
        if not (t > 0).any():
            return x
    raise ConfigError(
        f"the ODE was not solved to {tolerance} in {most_steps} steps; use another sampler, such as heun.",
        setting="sampler",
    )


def ddpm(field: Field, x: Tensor, chain: Diffusion, noise: Noise, progress: Progress = _same) -> Tensor:
    """Return data by ancestral sampling with the learned variance.

    The field gives noise ‖ variance logits, and is told the numbers of the chain's steps, 0 to 999. Nothing is clipped.
    """
    count = len(chain.betas)
    for number, index in enumerate(progress(list(reversed(range(count))))):
        step = torch.full((len(x),), index, device=x.device)
        estimate, logits = _at(field, x, chain, index).to(x.dtype).chunk(2, dim=-1)
        mean, _ = chain.posterior(chain.clean(x, estimate, step), x, step)
        x = mean
        if index:
            x = x + torch.exp(0.5 * chain.log_variance(logits, step)) * noise(number).to(x)
    return x


def ddim(field: Field, x: Tensor, chain: Diffusion, progress: Progress = _same) -> Tensor:
    """Return data by deterministic steps (Song et al. 2021, η = 0)."""
    for index in progress(list(reversed(range(len(chain.betas))))):
        step = torch.full((len(x),), index, device=x.device)
        noise = _at(field, x, chain, index).to(x.dtype)[..., : x.shape[-1]]
        before = chain.at(chain.alpha_bar_before, step, x)
        x = before.sqrt() * chain.clean(x, noise, step) + (1 - before).sqrt() * noise
    return x


def _at(field: Field, x: Tensor, chain: Diffusion, index: int) -> Tensor:
    timestep = float(chain.timesteps[index])
    return field(x, _all(x, timestep), _all(x, timestep / (STEPS - 1)))


Denoiser = Callable[[Tensor, int], Tensor]  # (state, step number) -> the data that the network sees in it


def dpm_solver(
    denoise: Denoiser,
    x: Tensor,
    alpha: Sequence[float],
    sigma: Sequence[float],
    noise: Noise | None = None,
    progress: Progress = _same,
) -> Tensor:
    """Return data by DPM-Solver++(2M), or with `noise` by its SDE form (Lu et al. 2022).

    It is a second-order multistep method in λ = log(α / σ), with one evaluation a step. `alpha` and `sigma` are those
    at the steps' times, from noise to data, one more than there are steps; the last σ may be 0.
    """
    ratio = [a / s if s > 0 else math.inf for a, s in zip(alpha, sigma, strict=True)]
    logs = [math.log(r) if 0 < r < math.inf else math.copysign(math.inf, r - 1) for r in ratio]
    previous: Tensor | None = None
    for i in progress(range(len(alpha) - 1)):
        data = denoise(x, i).to(x.dtype)
        h = logs[i + 1] - logs[i]
        guess = data
        last_h = logs[i] - logs[i - 1] if i else math.inf
        if previous is not None and math.isfinite(last_h) and h <= 2 * last_h:  # further is no extrapolation to trust
            guess = data + h / (2 * last_h) * (data - previous)
        shrink = math.exp(-h)
        if noise is None:
            x = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * (1 - shrink) * guess
        else:
            x = sigma[i + 1] / sigma[i] * shrink * x + alpha[i + 1] * (1 - shrink**2) * guess
            if sigma[i + 1] > 0:
                x = x + sigma[i + 1] * math.sqrt(1 - shrink**2) * noise(i).to(x)
        previous = data
    return x


def path_denoiser(field: Field, path: str, steps: int) -> tuple[Denoiser, list[float], list[float]]:
    """Return the inputs of `dpm_solver` for a velocity field: denoiser, α and σ at evenly spaced times from 1 to 0."""
    grid = _even(steps)
    c = coefficients(path, torch.tensor(grid, dtype=torch.float64, device="cpu"))

    def denoise(x: Tensor, number: int) -> Tensor:
        t = _all(x, grid[number])
        return split(path, x, field(x, t, t).to(x.dtype), t.to(x.dtype))[0]

    return denoise, c.alpha.tolist(), c.sigma.tolist()


def chain_denoiser(field: Field, chain: Diffusion) -> tuple[Denoiser, list[float], list[float]]:
    """Return the inputs of `dpm_solver` for a noise-predicting field, on the steps of a respaced chain."""
    bar = [*reversed(chain.alpha_bar.tolist()), 1.0]
    last = len(chain.betas) - 1

    def denoise(x: Tensor, number: int) -> Tensor:
        step = torch.full((len(x),), last - number, device=x.device)
        return chain.clean(x, _at(field, x, chain, last - number).to(x.dtype)[..., : x.shape[-1]], step)

    return denoise, [math.sqrt(b) for b in bar], [math.sqrt(1 - b) for b in bar]
