"""The discrete chain: betas, respacing, Bayes' posterior and the variational bound, against plain arithmetic."""

import math

import pytest
import torch
from torch import Tensor

from softvq.transports import samplers
from softvq.transports.diffusion import LEAST_LAMBDA, STEPS, Diffusion

NAMES = ("linear", "cosine")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alpha_bars(betas: Tensor) -> list[float]:
    product, found = 1.0, []
    for beta in betas.tolist():
        product *= 1 - beta
        found.append(product)
    return found


def test_linear_betas_are_a_ramp():
    betas = Diffusion.named("linear").betas
    assert betas.dtype == torch.float64
    assert len(betas) == 1000
    for i in (0, 1, 500, 999):
        assert betas[i].item() == pytest.approx(1e-4 + (0.02 - 1e-4) * i / 999, rel=1e-12)
    few = Diffusion.named("linear", 250).betas  # as much noise in all
    assert few[0].item() == pytest.approx(4e-4)
    assert few[-1].item() == pytest.approx(0.08)


def test_cosine_betas_have_the_cosines_alpha_bar_until_they_are_clipped():
    chain = Diffusion.named("cosine")
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    for i, found in enumerate(chain.alpha_bar[:999].tolist()):
        wanted = math.cos(((i + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / start
        assert found == pytest.approx(wanted, rel=1e-9)
    assert chain.betas[-1] == 0.999  # 1 without clipping
    assert (chain.betas[:-1] < 0.999).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 10, 250, 999, 1000])
def test_a_respaced_chain_keeps_alpha_bar_at_its_steps(name, count):
    chain = Diffusion.named(name)
    short = chain.respaced(count)
    kept = short.timesteps
    assert len(kept) == len(short.betas) == count
    assert kept[0] == 0
    assert count == 1 or kept[-1] == 999
    assert count == 1 or (kept.diff() - 999 / (count - 1)).abs().max() < 1  # evenly, up to rounding
    exact = torch.tensor(alpha_bars(chain.betas), dtype=torch.float64)[kept]
    torch.testing.assert_close(short.alpha_bar, exact, rtol=1e-7, atol=0)
    assert (short.betas > 0).all()
    assert (short.betas < 1).all()


def test_a_chain_respaced_to_its_own_length_is_itself():
    chain = Diffusion.named("cosine")
    same = chain.respaced(1000)
    torch.testing.assert_close(same.betas, chain.betas, rtol=1e-9, atol=1e-15)
    assert torch.equal(same.timesteps, chain.timesteps)


def test_respacing_twice_keeps_the_numbers_that_the_network_knows():
    twice = Diffusion.named("linear").respaced(10).respaced(4)
    assert twice.timesteps.tolist() == [0, 333, 666, 999]


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_a_chain_cannot_be_respaced_to_nothing_or_to_more(count):
    with pytest.raises(ValueError, match=rf"1000 steps cannot be respaced to {count}"):
        Diffusion.named("linear").respaced(count)


@pytest.mark.parametrize("name", NAMES)
def test_clean_is_the_inverse_of_mix_and_mix_keeps_unit_variance(name):
    chain = Diffusion.named(name)
    step = torch.tensor([0, 1, 500, 990])
    x, noise = draw(0, 4, 3, 2), draw(1, 4, 3, 2)
    point = chain.mix(x, noise, step)
    torch.testing.assert_close(chain.clean(point, noise, step), x, rtol=0, atol=1e-10)
    bars = alpha_bars(chain.betas)
    for i, s in enumerate(step.tolist()):
        wanted = math.sqrt(bars[s]) * x[i] + math.sqrt(1 - bars[s]) * noise[i]
        torch.testing.assert_close(point[i], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chain", [*(Diffusion.named(n) for n in NAMES), Diffusion.named("linear").respaced(7)])
def test_the_posterior_is_bayes_rule(chain):
    """q(x_{t−1} | x_t, x) ∝ N(x_t; √(1 − β) x_{t−1}, β) N(x_{t−1}; √ᾱ x, 1 − ᾱ): precisions add up."""
    betas, bars = chain.betas.tolist(), alpha_bars(chain.betas)
    for s in (1, 2, len(betas) // 2, len(betas) - 1):
        x, point = draw(s, 1, 4), draw(s + 1, 1, 4)
        mean, log_variance = chain.posterior(x, point, torch.tensor([s]))
        precision = (1 - betas[s]) / betas[s] + 1 / (1 - bars[s - 1])
        wanted = (
            math.sqrt(1 - betas[s]) / betas[s] * point + math.sqrt(bars[s - 1]) / (1 - bars[s - 1]) * x
        ) / precision
        torch.testing.assert_close(mean, wanted, rtol=1e-9, atol=1e-12)
        assert log_variance.item() == pytest.approx(-math.log(precision), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_posterior_is_the_data_with_the_second_steps_variance(name):
    chain = Diffusion.named(name)
    x, point = draw(0, 2, 4), draw(1, 2, 4)
    mean, log_variance = chain.posterior(x, point, torch.tensor([0, 1]))
    torch.testing.assert_close(mean[0], x[0], rtol=1e-9, atol=1e-12)
    assert torch.equal(log_variance[0], log_variance[1])
    one = chain.respaced(1)
    assert one.posterior(x, point, torch.tensor([0, 0]))[0].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_learned_variance_lies_between_the_posteriors_and_beta(name):
    chain = Diffusion.named(name)
    betas, bars = chain.betas.tolist(), alpha_bars(chain.betas)
    for s in (1, 40, 999):
        step = torch.tensor([s])
        least = betas[s] * (1 - bars[s - 1]) / (1 - bars[s])
        logits = torch.tensor([[-1.0, 0.0, 0.5, 1.0]], dtype=torch.float64)
        wanted = [least, math.sqrt(least * betas[s]), least**0.25 * betas[s] ** 0.75, betas[s]]
        found = chain.log_variance(logits, step).exp()
        torch.testing.assert_close(found, torch.tensor([wanted], dtype=torch.float64), rtol=1e-9, atol=0)


# ---- The variational bound


def tanh_cdf(x: float) -> float:
    return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def bound_by_hand(chain: Diffusion, x: Tensor, point: Tensor, noise: Tensor, logits: Tensor, s: int) -> float:
    """Of one sample, number by number, from the definitions."""
    betas, bars = chain.betas.tolist(), alpha_bars(chain.betas)
    beta, bar, before = betas[s], bars[s], bars[s - 1] if s else 1.0
    at = max(s, 1)
    least = betas[at] * (1 - bars[at - 1]) / (1 - bars[at])
    total = 0.0
    for x_, p, e, v in zip(*(values.flatten().tolist() for values in (x, point, noise, logits)), strict=True):
        weight_x, weight_p = math.sqrt(before) * beta / (1 - bar), math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        guess = (p - math.sqrt(1 - bar) * e) / math.sqrt(bar)
        mean = weight_x * guess + weight_p * p
        variance = math.exp((v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(least))
        if s:
            true_mean = weight_x * x_ + weight_p * p
            gap = (true_mean - mean) ** 2
            total += 0.5 * (math.log(variance / least) + (least + gap) / variance - 1)
        else:
            upper, lower = (tanh_cdf((x_ + side - mean) / math.sqrt(variance)) for side in (1 / 255, -1 / 255))
            mass = upper if x_ < -0.999 else 1 - lower if x_ > 0.999 else upper - lower
            total -= math.log(max(mass, 1e-12))
    return total / x.numel() / math.log(2)


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_is_the_divergence_in_bits_and_at_step_0_the_likelihood(name):
    chain = Diffusion.named(name)
    step = torch.tensor([0, 1, 30, 500, 980, 0])
    x = draw(0, 6, 3, 4).clamp(-1, 1)
    assert (x == 1).any()
    assert (x == -1).any()
    noise = draw(1, 6, 3, 4)
    point = chain.mix(x, noise, step)
    found = noise + 0.3 * draw(2, 6, 3, 4)
    found[5] += 30.0  # so wrong that the likelihood is at its floor
    logits = 0.7 * draw(3, 6, 3, 4)
    bits = chain.bound(x, point, found, logits, step)
    wanted = [bound_by_hand(chain, x[i], point[i], found[i], logits[i], s) for i, s in enumerate(step.tolist())]
    torch.testing.assert_close(bits, torch.tensor(wanted, dtype=torch.float64), rtol=1e-8, atol=1e-12)
    assert bits[5] > 20


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_is_zero_for_the_truth_and_positive_otherwise(name):
    chain = Diffusion.named(name)
    step = torch.tensor([1, 100, 900])
    x, noise = draw(0, 3, 8), draw(1, 3, 8)
    point, truth = chain.mix(x, noise, step), torch.full((3, 8), -1.0, dtype=torch.float64)
    assert chain.bound(x, point, noise, truth, step).abs().max() < 1e-9
    assert (chain.bound(x, point, noise, truth + 1, step) > 0).all()
    assert (chain.bound(x, point, noise + 0.1, truth, step) > 0).all()


def test_the_likelihood_at_step_0_is_that_of_a_distribution_over_256_levels():
    chain = Diffusion.named("linear")
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1)
    step = torch.zeros(256, dtype=torch.long)
    point = torch.full_like(levels, 0.3)
    noise = torch.zeros_like(levels)
    bits = chain.bound(levels, point, noise, torch.ones_like(levels), step)
    assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-8)


def test_no_gradient_of_the_bound_reaches_the_noise():
    chain = Diffusion.named("cosine")
    step = torch.tensor([0, 1, 500, 999])
    x, noise = draw(0, 4, 3), draw(1, 4, 3)
    found, logits = draw(2, 4, 3).requires_grad_(), draw(3, 4, 3).requires_grad_()
    chain.bound(x, chain.mix(x, noise, step), found, logits, step).sum().backward()
    assert found.grad is None
    assert logits.grad.isfinite().all()
    assert (logits.grad[1:3] != 0).all()


def test_tables_are_float64_and_what_they_give_is_in_the_samples_type():
    chain = Diffusion.named("cosine")
    x = draw(0, 1, 2).float()
    point = chain.mix(x, x, torch.tensor([999]))
    assert point.dtype == torch.float32
    assert chain.alpha_bar[999] > 0  # where float32 would have lost it: 1 − ᾱ rounds to 1
    assert 0 < chain.alpha_bar[999] < 1e-8


@pytest.mark.parametrize("steps", [10, 20, 100])
def test_few_steps_forgive_a_network_that_is_a_little_wrong(steps: int):
    """Cosine betas end at √ᾱ = 5e-5, by which an error is divided: chains that leave the end out stay bounded. Data is
    standard normal, so that the noise in a point is √(1 − ᾱ) x."""

    def wrong(x, t, at):
        return (1 - whole.alpha_bar[t.long()]).sqrt().view(-1, 1) * x + 0.05

    whole = Diffusion.named("cosine")
    x = torch.randn(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for chain in (whole.respaced(steps, LEAST_LAMBDA), whole.respaced(steps)):
        denoise, alpha, sigma = samplers.chain_denoiser(wrong, chain)
        found.append(samplers.dpm_solver(denoise, x, alpha, sigma))
    assert found[0].std() == pytest.approx(1, abs=0.15)
    assert found[0].mean().abs() < 2
    assert found[1].mean().abs() > 10  # what the whole chain makes of the same error


def test_linear_betas_are_taken_whole_and_cosine_ones_without_their_last():
    assert Diffusion.named("linear").longest(LEAST_LAMBDA) == STEPS
    cosine = Diffusion.named("cosine")
    kept = cosine.longest(LEAST_LAMBDA)
    assert STEPS - 5 <= kept < STEPS
    assert cosine.respaced(50, LEAST_LAMBDA).timesteps[-1] == kept - 1
    assert torch.equal(cosine.respaced(50).timesteps, cosine.respaced(50, -100.0).timesteps)
