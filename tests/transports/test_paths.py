"""Paths: derivatives, inverses, and the distribution of training times."""

import math

import pytest
import torch
from torch import Tensor

from softvq.transports.paths import coefficients, mix, score_of, split, times, velocity_of_data, velocity_of_noise

PATHS: tuple[str, ...] = ("linear", "cosine")
SHAPE = (5, 3, 2)
T = torch.tensor([0.02, 0.25, 0.5, 0.8, 0.98], dtype=torch.float64)


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_are_autograds(path):
    t = torch.linspace(0, 1, 21, dtype=torch.float64, requires_grad=True)
    c = coefficients(path, t)
    for value, derivative in ((c.alpha, c.d_alpha), (c.sigma, c.d_sigma)):
        (found,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(derivative, found, rtol=0, atol=1e-14)


def test_coefficients_are_the_papers_numbers():
    t = torch.tensor([0, 1 / 3, 1], dtype=torch.float64)
    linear, cosine = (coefficients(path, t) for path in PATHS)
    torch.testing.assert_close(linear.alpha, torch.tensor([1, 2 / 3, 0], dtype=torch.float64))
    torch.testing.assert_close(linear.sigma, torch.tensor([0, 1 / 3, 1], dtype=torch.float64))
    torch.testing.assert_close(cosine.alpha, torch.tensor([1, math.sqrt(3) / 2, 0], dtype=torch.float64))
    torch.testing.assert_close(cosine.sigma, torch.tensor([0, 0.5, 1], dtype=torch.float64))


@pytest.mark.parametrize(("path", "value"), [("linear", 1.0), ("cosine", math.pi / 2)])
def test_the_determinant_is_constant(path, value):
    found = coefficients(path, torch.linspace(0, 1, 11, dtype=torch.float64)).determinant
    torch.testing.assert_close(found, torch.full_like(found, value))


@pytest.mark.parametrize("path", PATHS)
def test_a_path_goes_from_data_to_noise_and_its_velocity_is_its_derivative(path):
    x, noise = draw(0), draw(1)
    torch.testing.assert_close(mix(path, x, noise, torch.zeros(5, dtype=torch.float64))[0], x)
    torch.testing.assert_close(mix(path, x, noise, torch.ones(5, dtype=torch.float64))[0], noise)
    _, velocity = mix(path, x, noise, T)
    step = 1e-6
    ahead, behind = (mix(path, x, noise, T + side)[0] for side in (step, -step))
    torch.testing.assert_close(velocity, (ahead - behind) / (2 * step), rtol=0, atol=1e-8)


@pytest.mark.parametrize("path", PATHS)
def test_split_is_the_inverse_of_mix_at_all_times(path):
    t = torch.tensor([0, 1e-4, 0.5, 0.9999, 1], dtype=torch.float64)
    x, noise = draw(0), draw(1)
    found = split(path, *mix(path, x, noise, t), t)
    torch.testing.assert_close(found, (x, noise), rtol=0, atol=1e-13)
    again = mix(path, *split(path, x, noise, t), t)  # as a point and its velocity
    torch.testing.assert_close(again, (x, noise), rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
def test_velocity_score_noise_and_data_say_the_same(path):
    x, noise = draw(0), draw(1)
    point, velocity = mix(path, x, noise, T)
    torch.testing.assert_close(velocity_of_data(path, point, T, x), velocity, rtol=0, atol=1e-11)
    torch.testing.assert_close(velocity_of_noise(path, point, T, noise), velocity, rtol=0, atol=1e-11)
    score = score_of(path, point, velocity, T)
    for i, t in enumerate(T.tolist()):
        sigma = t if path == "linear" else math.sin(math.pi * t / 2)
        torch.testing.assert_close(score[i], -noise[i] / sigma, rtol=0, atol=1e-11)


@pytest.mark.parametrize("path", PATHS)
def test_the_score_of_standard_normal_data_is_minus_the_point_over_its_variance(path):
    """x_t ~ N(0, α² + σ²), and E[x | x_t], E[ε | x_t] are α and σ times the point over that variance."""
    point = draw(2)
    for i, t in enumerate(T):
        a, s = (1 - t, t) if path == "linear" else (torch.cos(math.pi * t / 2), torch.sin(math.pi * t / 2))
        da, ds = (-1, 1) if path == "linear" else (-math.pi / 2 * s, math.pi / 2 * a)
        here, variance = point[i : i + 1], a**2 + s**2
        velocity = (da * a + ds * s) / variance * here
        found = score_of(path, here, velocity, t.view(1))
        torch.testing.assert_close(found, -here / variance, rtol=0, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_velocities_from_data_or_noise_are_finite_at_both_ends(path):
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    point, said = draw(0, (2, 4)), draw(1, (2, 4))
    of_data, of_noise = velocity_of_data(path, point, t, said), velocity_of_noise(path, point, t, said)
    assert of_data.isfinite().all()
    assert of_noise.isfinite().all()
    # Where nothing is divided by, nothing is changed: at the noise's end for data, at the data's end for noise.
    c = coefficients(path, t)
    torch.testing.assert_close(of_data[1], c.d_alpha[1] * said[1] + c.d_sigma[1] * (point[1] - c.alpha[1] * said[1]))
    torch.testing.assert_close(of_noise[0], c.d_alpha[0] * point[0] + c.d_sigma[0] * said[0])


def normal_cdf(x: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).cdf(x)


def assert_has_cdf(sample: Tensor, cdf: Tensor) -> None:
    """Kolmogorov and Smirnov's test at 1 in 1,000; `cdf` is the distribution's at the sorted sample."""
    n = len(sample)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    gap = torch.maximum((cdf - steps[:-1]).abs().max(), (cdf - steps[1:]).abs().max())
    assert gap < 1.95 / math.sqrt(n)


@pytest.mark.parametrize("path", PATHS)
def test_uniform_times_are_uniform_in_0_to_1(path):
    t = times("uniform", path, draw(3, (20_000,))).sort().values
    assert_has_cdf(t, t)
    extreme = times("uniform", path, torch.tensor([-40.0, 0, 40]))
    assert extreme.tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("path", PATHS)
def test_log_normal_times_have_a_log_normal_ratio_of_noise_to_data(path):
    t = times("log_normal", path, draw(3, (20_000,))).sort().values
    c = coefficients(path, t)
    assert_has_cdf(t, normal_cdf((c.sigma / c.alpha).log()))
    assert t.min() > 0
    assert t.max() < 1
    assert abs((t < 0.5).double().mean() - 0.5) < 3 * 0.5 / math.sqrt(len(t))  # the median is σ = α on both paths
    # Few are near an end: 1.4 % (linear) and 3.3 % (cosine) below 0.1.
    ratio = 0.1 / 0.9 if path == "linear" else math.tan(math.pi / 20)
    wanted = normal_cdf(torch.tensor(math.log(ratio))).item()
    assert abs((t < 0.1).double().mean() - wanted) < 4 * math.sqrt(wanted / len(t))
