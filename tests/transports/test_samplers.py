"""Samplers on a Gaussian whose velocity is in closed form: their order, their tolerance, and the moments of what they
draw."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from softvq.errors import ConfigError, ModelError
from softvq.transports.diffusion import Diffusion
from softvq.transports.guidance import Field, Guidance, guided
from softvq.transports.samplers import (
    chain_denoiser,
    ddim,
    ddpm,
    dopri5,
    dpm_solver,
    euler,
    euler_maruyama,
    heun,
    path_denoiser,
)

PATHS: tuple[str, ...] = ("linear", "cosine")
MEAN = torch.tensor([0.8, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.9]], dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noises(seed: int, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(seed)
    return lambda number: torch.randn(shape, generator=generator, dtype=torch.float64)


class Gaussian:
    """x ~ N(m, S). Then x_t ~ N(α m, C) with C = α² S + σ², E[x | x_t] = m + α S C⁻¹ (x_t − α m) and
    E[ε | x_t] = σ C⁻¹ (x_t − α m)."""

    def __init__(self, path: str, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE):
        self.path, self.mean, self.covariance = path, mean, covariance
        self.calls = 0

    def expected(self, point: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x | x_t] and E[ε | x_t]; one time a row."""
        a, s = self.at(t)[:2]
        C = a[..., None] ** 2 * self.covariance + s[..., None] ** 2 * torch.eye(len(self.mean), dtype=torch.float64)
        white = torch.linalg.solve(C, (point - a * self.mean)[..., None])[..., 0]
        return self.mean + a * white @ self.covariance, s * white

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = t.double()[:, None]
        if self.path == "linear":
            return 1 - t, t, -torch.ones_like(t), torch.ones_like(t)
        k = math.pi / 2
        return torch.cos(k * t), torch.sin(k * t), -k * torch.sin(k * t), k * torch.cos(k * t)

    def velocity(self, point: Tensor, t: Tensor, begun: Tensor) -> Tensor:
        self.calls += 1
        x, noise = self.expected(point, t)
        _, _, da, ds = self.at(t)
        return da * x + ds * noise

    def solution(self, noise: Tensor) -> Tensor:
        """Where the ODE ends: m + S^½ ε, as all C_t share their eigenvectors and C at t = 1 is the identity."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return self.mean + noise @ (vectors * values.sqrt()) @ vectors.T


def error(found: Tensor, wanted: Tensor) -> float:
    return (found - wanted).square().mean().sqrt().item()


def dpm(field: Field, x: Tensor, steps: int, path: str, noise=None) -> Tensor:
    denoise, alpha, sigma = path_denoiser(field, path, steps)
    return dpm_solver(denoise, x, alpha, sigma, noise)


# ---- Orders


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("solve", "ratio"), [(euler, 2), (heun, 4)])
def test_half_the_step_divides_the_error_by_two_to_the_order(path, solve, ratio):
    gaussian, x = Gaussian(path), draw(0, 16, 2)
    errors = [error(solve(gaussian.velocity, x, steps), gaussian.solution(x)) for steps in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert 0.9 * ratio < coarse / fine < 1.1 * ratio, errors


@pytest.mark.parametrize("path", PATHS)
def test_half_the_step_in_log_alpha_over_sigma_divides_the_error_of_dpm_solver_by_four(path):
    gaussian = Gaussian(path)
    first, last = torch.tensor([0.9], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)
    (a, s), (b, r) = ([c.item() for c in gaussian.at(t)[:2]] for t in (first, last))
    x, errors = draw(0, 16, 2), []
    values, vectors = torch.linalg.eigh(COVARIANCE)
    grown = (vectors * ((b**2 * values + r**2) / (a**2 * values + s**2)).sqrt()) @ vectors.T
    wanted = b * MEAN + (x - a * MEAN) @ grown
    for steps in (20, 40, 80):
        ratios = torch.linspace(math.log(a / s), math.log(b / r), steps + 1, dtype=torch.float64).exp()
        t = ratios.reciprocal().atan() * 2 / math.pi if path == "cosine" else 1 / (1 + ratios)
        alpha, sigma = (c.flatten().tolist() for c in gaussian.at(t)[:2])
        found = dpm_solver(lambda x, i, t=t: gaussian.expected(x, t[i].expand(len(x)))[0], x, alpha, sigma)
        errors.append(error(found, wanted))
    for coarse, fine in pairwise(errors):
        assert 3.5 < coarse / fine < 4.5, errors


@pytest.mark.parametrize("path", PATHS)
def test_dpm_solver_in_even_steps_of_time_is_near_second_order_and_better_than_euler(path):
    """The steps near the ends are long in log(α / σ), which costs a factor that grows as its logarithm."""
    gaussian, x = Gaussian(path), draw(0, 16, 2)
    wanted = gaussian.solution(x)
    errors = [error(dpm(gaussian.velocity, x, steps, path), wanted) for steps in (80, 160, 320)]
    for coarse, fine in pairwise(errors):
        assert 2.8 < coarse / fine < 4.5, errors
    assert errors[0] < 0.5 * error(euler(gaussian.velocity, x, 80), wanted)


@pytest.mark.parametrize("path", PATHS)
def test_how_often_each_sampler_asks_the_field(path):
    x = draw(0, 3, 2)
    for solve, calls in (
        (lambda f: euler(f, x, 10), 10),
        (lambda f: heun(f, x, 10), 19),
        (lambda f: dpm(f, x, 10, path), 10),
        (lambda f: euler_maruyama(f, x, 10, path, noises(0, (3, 2))), 10),
    ):
        gaussian = Gaussian(path)
        solve(gaussian.velocity)
        assert gaussian.calls == calls


@pytest.mark.parametrize("path", PATHS)
def test_one_step_is_the_mean_of_the_data(path):
    gaussian, x = Gaussian(path), draw(0, 3, 2)
    torch.testing.assert_close(dpm(gaussian.velocity, x, 1, path), MEAN.expand(3, 2), rtol=0, atol=1e-12)
    if path == "linear":
        torch.testing.assert_close(euler(gaussian.velocity, x, 1), MEAN.expand(3, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_type_whatever_the_field_answers_in(dtype):
    x = draw(0, 2, 2).to(dtype)
    chain = Diffusion.named("cosine").respaced(4)

    def single(point: Tensor, t: Tensor, begun: Tensor) -> Tensor:
        return 0.1 * point.float()

    def paired(point: Tensor, t: Tensor, begun: Tensor) -> Tensor:
        return 0.1 * torch.cat([point, point], dim=-1).float()

    noise = noises(0, (2, 2))
    found = [
        euler(single, x, 3),
        heun(single, x, 3),
        dopri5(single, x),
        euler_maruyama(single, x, 3, "linear", noise),
        dpm(single, x, 3, "linear"),
        dpm(single, x, 3, "cosine", noise),
        ddim(paired, x, chain),
        ddpm(paired, x, chain, noise),
    ]
    assert {samples.dtype for samples in found} == {dtype}


# ---- The adaptive solver


@pytest.mark.parametrize("path", PATHS)
def test_dopri5_reaches_its_tolerance(path):
    gaussian, x = Gaussian(path), draw(0, 32, 2)
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        gaussian.calls = 0
        errors.append(error(dopri5(gaussian.velocity, x, tolerance), gaussian.solution(x)))
        calls.append(gaussian.calls)
        assert errors[-1] < 10 * tolerance
    assert calls == sorted(set(calls))
    assert errors == sorted(errors, reverse=True)
    assert calls[-1] < 7 * 100  # a fifth-order method needs few


def test_dopri5_gives_each_sample_what_it_would_get_alone():
    def field(x: Tensor, t: Tensor, begun: Tensor) -> Tensor:
        return 40 * torch.sin(3 * x) * (x.abs().amax(1, keepdim=True) > 1) + x  # stiff for some of the samples only

    x = torch.tensor([[0.1, 0.2], [2.5, -1.7], [0.3, 0.4], [1.2, 4.0]], dtype=torch.float64)
    together = dopri5(field, x)
    for i in range(len(x)):
        assert torch.equal(dopri5(field, x[i : i + 1])[0], together[i])
    assert torch.equal(dopri5(field, x[[3, 0]]), together[[3, 0]])


def test_dopri5_gives_up_with_a_sentence():
    with pytest.raises(ConfigError, match="in 20 steps"):
        dopri5(Gaussian("linear").velocity, draw(0, 2, 2), 1e-12, most_steps=20)


def test_dopri5_does_not_call_a_broken_network_a_hard_equation():
    with pytest.raises(ModelError, match="output is not finite"):
        dopri5(lambda x, t, begun: x * math.nan, draw(0, 2, 2), most_steps=20)


@pytest.mark.parametrize("tolerance", [0.0, -1e-4, math.nan, math.inf])
def test_a_tolerance_that_is_none_is_refused(tolerance: float):
    with pytest.raises(ConfigError, match="tolerance must be positive and finite"):
        dopri5(Gaussian("linear").velocity, draw(0, 2, 2), tolerance)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_would_give_the_noise_as_data(steps: int):
    field, x = Gaussian("linear").velocity, draw(0, 2, 2)
    for sample in (euler, heun, lambda *given: euler_maruyama(*given, "linear", lambda number: x)):
        with pytest.raises(ConfigError, match=f"steps must be at least 1, not {steps}"):
            sample(field, x, steps)
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        path_denoiser(field, "linear", steps)
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        Diffusion.named("linear", steps)


def test_dopri5_crosses_the_end_of_a_guidance_interval():
    """Guidance of a step is that of its beginning, so that the estimate of its error sees no jump."""
    gaussian, x = Gaussian("linear"), draw(0, 4, 2)
    null = Gaussian("linear", torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    calls = []

    def network(point: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        calls.append(len(point))
        given, none = gaussian.velocity(point, t, t), null.velocity(point, t, t)
        return torch.where((labels == 1)[:, None], none, given)

    labels = torch.zeros(4, dtype=torch.long)
    field = guided(network, labels, labels + 1, Guidance(2.0, (0.0, 0.7)))
    found = dopri5(field, x, 1e-6, edges=(0.0, 0.7))
    assert len(calls) < 7 * 60
    assert {4, 8} <= set(calls)
    assert (found - gaussian.solution(x)).abs().min() > 1e-3
    # The same as unguided to the edge and guided from there, whatever steps that takes: a tolerance changes nothing.
    assert (dopri5(field, x, 1e-9, edges=(0.0, 0.7)) - found).abs().max() < 1e-5
    assert (dopri5(field, x, 1e-9) - dopri5(field, x, 1e-6)).abs().max() > 1e-3  # as it was without edges


# ---- Stochastic samplers


def assert_moments(found: Tensor, mean: Tensor, covariance: Tensor, bias: float = 0.0) -> None:
    """Within 4.5 standard errors, and `bias` for a finite number of steps."""
    n = len(found)
    variance = covariance.diagonal()
    assert ((found.mean(0) - mean).abs() < 4.5 * (variance / n).sqrt() + bias).all()
    errors = ((variance[:, None] * variance + covariance**2) / n).sqrt()
    assert ((found.T.cov() - covariance).abs() < 4.5 * errors + bias).all()


@pytest.mark.parametrize("path", PATHS)
def test_stochastic_samples_have_the_mean_and_covariance_of_the_data(path):
    count, gaussian = 20_000, Gaussian(path)
    x = draw(1, count, 2)
    sde = euler_maruyama(gaussian.velocity, x, 150, path, noises(2, (count, 2)))
    assert_moments(sde, MEAN, COVARIANCE, bias=0.01)
    multistep = dpm(gaussian.velocity, x, 60, path, noises(3, (count, 2)))
    assert_moments(multistep, MEAN, COVARIANCE, bias=0.005)
    for found in (sde, multistep):  # and they are not the ODE's
        assert error(found, gaussian.solution(x)) > 0.3


@pytest.mark.parametrize("path", PATHS)
def test_euler_maruyama_uses_its_noises_in_order_and_none_in_the_last_step(path):
    asked = []

    def noise(number: int) -> Tensor:
        asked.append(number)
        return draw(number, 3, 2)

    times = []

    def field(x: Tensor, t: Tensor, begun: Tensor) -> Tensor:
        times.append(t[0].item())
        return Gaussian(path).velocity(x, t, begun)

    euler_maruyama(field, draw(9, 3, 2), 8, path, noise)
    assert asked == list(range(7))
    assert times == pytest.approx([1 - 0.96 * i / 7 for i in range(8)])


# ---- Chains


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_ddim_and_dpm_solver_of_a_point_mass_return_it(name, steps):
    chain, target = Diffusion.named(name).respaced(steps), torch.tensor([0.7, -1.2, 0.1], dtype=torch.float64)
    bars = Diffusion.named(name).alpha_bar

    def field(x: Tensor, t: Tensor, begun: Tensor) -> Tensor:
        bar = bars[t.long()][:, None]  # the field is told the step's number in the whole chain
        noise = (x - bar.sqrt() * target) / (1 - bar).sqrt()
        return torch.cat([noise, torch.zeros_like(noise)], dim=-1)

    x = draw(0, 4, 3)
    torch.testing.assert_close(ddim(field, x, chain), target.expand(4, 3), rtol=0, atol=1e-8)
    found = dpm_solver(chain_denoiser(field, chain)[0], x, *chain_denoiser(field, chain)[1:])
    torch.testing.assert_close(found, target.expand(4, 3), rtol=0, atol=1e-8)


class Normals:
    """Data N(0.7, 0.6²), every number alone: the noise predictor, and the variance logits that make p(x_{t−1} | x_t)
    exactly the chain's reverse. Both are in closed form on any chain."""

    mean, variance = 0.7, 0.36

    def __init__(self, chain: Diffusion):
        self.chain = chain

    def __call__(self, x: Tensor, t: Tensor, begun: Tensor) -> Tensor:
        (index,) = (self.chain.timesteps == int(t[0])).nonzero().flatten().tolist()
        bar, before = self.chain.alpha_bar[index].item(), self.chain.alpha_bar_before[index].item()
        beta = self.chain.betas[index].item()
        total = bar * self.variance + 1 - bar
        noise = math.sqrt(1 - bar) / total * (x - math.sqrt(bar) * self.mean)
        if index == 0:
            return torch.cat([noise, torch.zeros_like(noise)], dim=-1)
        least = beta * (1 - before) / (1 - bar)
        left = self.variance * (1 - bar) / total  # Var(x | x_t)
        wanted = least + (math.sqrt(before) * beta / (1 - bar)) ** 2 * left
        logit = 2 * math.log(wanted / least) / math.log(beta / least) - 1
        return torch.cat([noise, torch.full_like(noise, logit)], dim=-1)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [3, 20])
def test_ddpm_with_the_true_variance_draws_from_the_data_in_any_number_of_steps(name, steps):
    chain, count = Diffusion.named(name).respaced(steps), 40_000
    found = ddpm(Normals(chain), draw(0, count, 1), chain, noises(1, (count, 1))).flatten()
    n = math.sqrt(count)
    assert abs(found.mean().item() - 0.7) < 4.5 * 0.6 / n
    assert abs(found.var().item() - 0.36) < 4.5 * 0.36 * math.sqrt(2) / n
    assert abs(((found - 0.7) / 0.6).pow(4).mean().item() - 3) < 4.5 * math.sqrt(96) / n


def test_ddpm_draws_no_noise_in_its_last_step_and_tells_the_numbers_of_the_whole_chain():
    chain = Diffusion.named("linear").respaced(4)
    told, begun_at, asked = [], [], []

    def field(x: Tensor, t: Tensor, begun: Tensor) -> Tensor:
        told.append(t.tolist())
        begun_at.append(begun[0].item())
        return torch.zeros(2, 6, dtype=torch.float64)

    def noise(number: int) -> Tensor:
        asked.append(number)
        return draw(number, 2, 3)

    ddpm(field, draw(0, 2, 3), chain, noise)
    assert told == [[999, 999], [666, 666], [333, 333], [0, 0]]
    assert begun_at == pytest.approx([1, 666 / 999, 333 / 999, 0])  # of the guidance interval
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddim_and_dpm_solver_come_nearer_the_ode_with_more_steps(name):
    """Of normal data the ODE from x_T ends at m + s · (x_T − √ᾱ m) / √(ᾱ s² + 1 − ᾱ), up to the first step's ᾱ."""
    x = draw(0, 64, 1)
    whole = Diffusion.named(name)
    bar = whole.alpha_bar[-1].item()
    wanted = 0.7 + 0.6 * (x - math.sqrt(bar) * 0.7) / math.sqrt(bar * 0.36 + 1 - bar)
    first, second = [], []
    for steps in (40, 80, 160):
        chain = whole.respaced(steps)
        first.append(error(ddim(Normals(chain), x, chain), wanted))
        denoise, alpha, sigma = chain_denoiser(Normals(chain), chain)
        second.append(error(dpm_solver(denoise, x, alpha, sigma), wanted))
    for coarse, fine in pairwise(first):
        assert 1.8 < coarse / fine < 2.2
    assert second[2] < second[0]
    assert all(b < 0.3 * a for a, b in zip(first, second, strict=True))


def test_dpm_sde_on_a_chain_draws_from_the_data():
    chain, count = Diffusion.named("cosine").respaced(60), 20_000
    denoise, alpha, sigma = chain_denoiser(Normals(chain), chain)
    found = dpm_solver(denoise, draw(0, count, 1), alpha, sigma, noises(1, (count, 1)))
    assert abs(found.mean() - 0.7) < 4.5 * 0.6 / math.sqrt(count) + 0.005
    assert abs(found.var() - 0.36) < 4.5 * 0.36 * math.sqrt(2 / count) + 0.005


def test_progress_sees_every_step():
    seen = []

    def progress(steps):
        seen.append(len(steps))
        return steps

    x, chain = draw(0, 2, 2), Diffusion.named("linear").respaced(5)
    field = Gaussian("linear").velocity
    euler(field, x, 3, progress)
    heun(field, x, 4, progress)
    euler_maruyama(field, x, 6, "linear", noises(0, (2, 2)), progress)
    ddim(lambda x, t, b: torch.cat([x, x], -1), x, chain, progress)
    ddpm(lambda x, t, b: torch.cat([x, x], -1), x, chain, noises(0, (2, 2)), progress)
    denoise, alpha, sigma = path_denoiser(field, "linear", 7)
    dpm_solver(denoise, x, alpha, sigma, None, progress)
    assert seen == [3, 4, 6, 5, 5, 7]
