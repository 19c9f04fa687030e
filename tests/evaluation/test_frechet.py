"""Fréchet distance against closed forms, and features that come in batches."""

import math

import pytest
import torch

from softvq.evaluation.frechet import Gaussian, frechet_distance

F = 6


def gaussian(features: torch.Tensor, batch: int = 7) -> Gaussian:
    found = Gaussian.empty(features.shape[1])
    for part in features.split(batch):
        found.add(part)
    return found


def exact(mean: torch.Tensor, covariance: torch.Tensor, count: int = 1000) -> Gaussian:
    """As if features of exactly this mean and covariance had been added."""
    return Gaussian(count, count * mean, (count - 1) * covariance + count * torch.outer(mean, mean))


@pytest.fixture
def features() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(200, F, dtype=torch.float64) @ torch.randn(F, F, dtype=torch.float64) + 3


def test_a_set_is_at_no_distance_from_itself(features: torch.Tensor):
    a = gaussian(features)
    assert abs(frechet_distance(a, a)) < 1e-8 * float(a.covariance.trace())


def test_gaussians_that_commute(features: torch.Tensor):
    """With Σ = Q diag(s) Qᵀ and Σ' = Q diag(t) Qᵀ the distance is ‖μ − μ'‖² + Σ (√s − √t)²."""
    torch.manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(F, F, dtype=torch.float64))
    s, t = torch.rand(2, F, dtype=torch.float64) + 0.1
    m, n = torch.randn(2, F, dtype=torch.float64)
    expected = (m - n).square().sum() + (s.sqrt() - t.sqrt()).square().sum()
    found = frechet_distance(exact(m, (q * s) @ q.T), exact(n, (q * t) @ q.T))
    assert found == pytest.approx(float(expected), rel=1e-10)


def test_gaussians_that_do_not_commute(features: torch.Tensor):
    torch.manual_seed(2)
    a, b = (m @ m.T for m in torch.randn(2, F, F, dtype=torch.float64))
    values = torch.linalg.eigvals(a @ b)  # of the product itself: another way to tr (ΣΣ')^½
    expected = a.trace() + b.trace() - 2 * values.real.clamp_min(0).sqrt().sum()
    zero = torch.zeros(F, dtype=torch.float64)
    assert frechet_distance(exact(zero, a), exact(zero, b)) == pytest.approx(float(expected), rel=1e-9)


def test_mean_and_covariance_do_not_depend_on_the_batches(features: torch.Tensor):
    found = [gaussian(features, batch) for batch in (1, 7, 64)]
    for one in found:
        torch.testing.assert_close(one.mean, features.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(one.covariance, torch.cov(features.T), rtol=1e-9, atol=1e-12)
    other = gaussian(features[:100] * 1.1)
    distances = [frechet_distance(one, other) for one in found]
    assert max(distances) - min(distances) < 1e-9


def test_fewer_images_than_features_give_a_number_that_is_called_unreliable(features: torch.Tensor):
    few, many = gaussian(features[:4]), gaussian(features)
    assert not few.reliable
    assert many.reliable
    a, b = few.covariance, many.covariance
    values = torch.linalg.eigvals(a @ b).real.clamp_min(0).sqrt().sum()
    expected = (few.mean - many.mean).square().sum() + a.trace() + b.trace() - 2 * values
    assert frechet_distance(few, many) == pytest.approx(float(expected), rel=1e-6)
    assert math.isfinite(frechet_distance(few, few))


def test_too_few_or_other_features_are_a_sentence(features: torch.Tensor):
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        frechet_distance(gaussian(features[:1]), gaussian(features))
    with pytest.raises(ValueError, match="features of 6 and 3 numbers"):
        frechet_distance(gaussian(features), gaussian(features[:, :3]))
