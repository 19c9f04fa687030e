"""Fréchet distance against closed forms and a straight line through numpy; moments of features that come in batches."""

import numpy as np
import pytest
import torch

from softvq.errors import MetricError
from softvq.evaluation.frechet import Gaussian, Moments, frechet_distance, moments_of

F = 24


def made(count: int, width: int = F, seed: int = 0) -> torch.Tensor:
    """Features whose directions matter unequally and whose mean is not 0."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((width, width)) * 0.8 ** np.arange(width)
    return torch.from_numpy(rng.standard_normal((count, width)) @ mixing.T + rng.standard_normal(width))


def dead(features: torch.Tensor) -> torch.Tensor:
    """As a ReLU leaves them: some are constant, at 0 and elsewhere."""
    features = features.clone()
    features[:, 3], features[:, 7:10] = 0.0, 0.37
    return features


def scaled(features: torch.Tensor) -> torch.Tensor:
    """Over six orders of magnitude."""
    return features * torch.logspace(-3, 3, features.shape[1], dtype=torch.float64)


KINDS = {"plain": lambda x: x, "dead": dead, "scaled": scaled, "float32": lambda x: x.float()}


def straight(a: torch.Tensor, b: torch.Tensor) -> float:
    """tr (Σ^½ Σ' Σ^½)^½ = ‖X Yᵀ‖_* of the centred features X / √(n − 1) and Y / √(m − 1): no covariance, no root."""
    a, b = a.double().numpy(), b.double().numpy()
    x, y = ((side - side.mean(0)) / np.sqrt(len(side) - 1) for side in (a, b))
    traces = (x**2).sum() + (y**2).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * np.linalg.norm(x @ y.T, "nuc"))


def in_batches(features: torch.Tensor, batch: int) -> Moments:
    gaussian = Gaussian(features.shape[1])
    for part in features.split(batch):
        gaussian.add(part)
    return gaussian.moments


def exact(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    return Moments(mean, covariance, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 5, F, F + 1, 300])
def test_a_set_is_at_no_distance_from_itself(kind: str, count: int):
    features = KINDS[kind](made(count))
    a = moments_of(features)
    other = in_batches(features.flip(0), 7)  # the same set, and not the same rounding
    for b in (a, other):
        assert abs(frechet_distance(a, b)) < 1e-8 * float(a.covariance.trace())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "others"), [(2, 2), (5, 300), (F, 9), (400, 300)])
def test_the_distance_is_the_straight_lines_with_few_images_and_with_many(kind: str, count: int, others: int):
    """Where the covariances are singular too, and their root is no number that a general routine finds."""
    a, b = KINDS[kind](made(count, seed=1)), KINDS[kind](made(others, seed=2) * 1.2)
    found = frechet_distance(moments_of(a), moments_of(b))
    assert found == pytest.approx(straight(a, b), rel=1e-9)
    assert frechet_distance(moments_of(b), moments_of(a)) == pytest.approx(found, rel=1e-9)


def test_one_dimension_is_the_schoolbooks():
    a, b = (exact(torch.tensor([m]).double(), torch.tensor([[s * s]]).double()) for m, s in ((1.0, 2.0), (4.0, 0.5)))
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + 1.5**2, rel=1e-12)


def test_gaussians_that_commute():
    """With Σ = Q diag(s) Qᵀ and Σ' = Q diag(t) Qᵀ the distance is ‖μ − μ'‖² + Σ (√s − √t)²."""
    torch.manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(F, F, dtype=torch.float64))
    s, t = torch.rand(2, F, dtype=torch.float64) + 0.1
    m, n = torch.randn(2, F, dtype=torch.float64)
    expected = (m - n).square().sum() + (s.sqrt() - t.sqrt()).square().sum()
    found = frechet_distance(exact(m, (q * s) @ q.T), exact(n, (q * t) @ q.T))
    assert found == pytest.approx(float(expected), rel=1e-10)


def test_gaussians_that_do_not_commute():
    torch.manual_seed(2)
    a, b = (m @ m.T for m in torch.randn(2, 6, 6, dtype=torch.float64))
    values = torch.linalg.eigvals(a @ b)  # of the product itself: another way to tr (ΣΣ')^½
    expected = a.trace() + b.trace() - 2 * values.real.clamp_min(0).sqrt().sum()
    zero = torch.zeros(6, dtype=torch.float64)
    assert frechet_distance(exact(zero, a), exact(zero, b)) == pytest.approx(float(expected), rel=1e-9)


def test_images_that_are_all_alike_are_points():
    a, b = (torch.full((5, F), value, dtype=torch.float64) for value in (1.0, 3.0))
    assert frechet_distance(moments_of(a), moments_of(b)) == pytest.approx(4 * F, rel=1e-12)
    spread = made(100)
    expected = (spread.mean(0) - 1).square().sum() + spread.var(0).sum()
    assert frechet_distance(moments_of(spread), moments_of(a)) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_mean_and_covariance_do_not_depend_on_the_batches(batch: int):
    features = made(200)
    found = in_batches(features, batch)
    np.testing.assert_allclose(found.mean, features.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-9, atol=1e-12)
    assert found.count == 200


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_a_mean_far_from_zero_loses_no_digits(batch: int):
    """Multiples of 2⁻²⁰, so that adding 10,000 rounds nothing: sums of squares would lose eight digits."""
    near = (made(200) * 2**20).round() / 2**20
    far = in_batches(near + 1e4, batch)
    expected = np.cov(near.numpy(), rowvar=False)
    np.testing.assert_allclose(far.covariance, expected, rtol=1e-9, atol=1e-11 * np.abs(expected).max())
    other = made(150, seed=3)
    distance = frechet_distance(moments_of(near), moments_of(other))
    assert frechet_distance(far, moments_of(other + 1e4)) == pytest.approx(distance, rel=1e-9)


def test_an_empty_batch_adds_nothing():
    gaussian = Gaussian(F)
    for part in (made(0), made(30)[:11], made(0), made(30)[11:], made(0)):
        gaussian.add(part)
    torch.testing.assert_close(gaussian.moments.covariance, made(30).T.cov(), rtol=1e-10, atol=1e-12)
    assert gaussian.moments.count == 30


def test_more_images_than_features_are_reliable():
    found = {count: moments_of(made(count)).reliable for count in (2, F - 1, F, F + 1, 300)}
    assert found == {2: False, F - 1: False, F: False, F + 1: True, 300: True}
    assert exact(torch.zeros(2).double(), torch.eye(2).double()).reliable  # ADM's file does not say


def test_a_factor_has_fewer_directions_than_there_are_images():
    """A covariance that was stored in float32 has noise where its images had nothing; its root would be large."""
    few = moments_of(made(5))
    rounded = Moments(few.mean, few.covariance.float().double(), 5)
    assert rounded.factor.shape == few.factor.shape == (F, 4)
    torch.testing.assert_close(few.factor @ few.factor.T, few.covariance, rtol=1e-9, atol=1e-12)
    assert moments_of(dead(made(300))).factor.shape == (F, F - 4)


def test_too_few_broken_or_other_features_are_a_sentence():
    for count in (0, 1):
        with pytest.raises(MetricError, match=rf"a covariance needs at least 2 images, not {count}\.$"):
            moments_of(made(count))
    many = moments_of(made(30))
    with pytest.raises(MetricError, match="features of 24 and 3 numbers cannot be compared"):
        frechet_distance(many, moments_of(made(30)[:, :3]))
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = made(30)
        broken[4, 2] = value
        for pair in ((moments_of(broken), many), (many, moments_of(broken))):
            with pytest.raises(MetricError, match="the features hold NaN or Inf"):
                frechet_distance(*pair)
    holed = many.covariance.clone()
    holed[0, 1] = torch.nan
    with pytest.raises(MetricError, match="the features hold NaN or Inf"):
        frechet_distance(many, Moments(many.mean, holed, 30))
