"""PSNR and SSIM are the textbook's and scikit-image's on clamped 8-bit images, image by image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from softvq.evaluation.metrics import CONVENTION, psnr, ssim
from softvq.evaluation.reconstruction import first_percentile, score

few = settings(max_examples=15, deadline=None, derandomize=True)


def uint8_pair(
    batch: int, height: int, width: int, seed: int = 0, spread: int = 40
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (batch, 3, height, width))
    b = (a + rng.integers(-spread, spread + 1, a.shape)).clip(0, 255)
    return torch.from_numpy(a.astype(np.uint8)), torch.from_numpy(b.astype(np.uint8))


def as_floats(images: torch.Tensor) -> torch.Tensor:
    return images.double() / 127.5 - 1


def psnr_in_numpy(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    a, b = (np.clip(np.round((x.double().numpy() + 1) * 127.5), 0, 255) for x in (a, b))
    return np.array([10 * math.log10(255**2 / ((x - y) ** 2).mean()) for x, y in zip(a, b, strict=True)])


def ssim_in_skimage(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    return np.array(
        [
            structural_similarity(np.moveaxis(x, 0, -1), np.moveaxis(y, 0, -1), channel_axis=-1, **options)
            for x, y in pairs
        ]
    )


@few
@given(batch=st.integers(1, 3), height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_psnr_is_the_formula_on_clamped_eight_bit_values(batch, height, width, seed):
    a, b = (
        torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(s)) for s in (seed, seed + 100)
    )
    np.testing.assert_allclose(psnr(a, b).numpy(), psnr_in_numpy(a, b), rtol=1e-12)


def test_psnr_of_a_known_error():
    black = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    other = black.clone()
    other[0] += 1  # MSE 1
    other[1, 0] += 255  # a third of the values is wrong by the whole range
    expected = [20 * math.log10(255), 10 * math.log10(3)]
    np.testing.assert_allclose(psnr(black, other).numpy(), expected, rtol=1e-12)


def test_equal_images_have_infinite_psnr_and_ssim_one():
    a, b = uint8_pair(2, 12, 12)
    b[0] = a[0]
    assert psnr(a, b)[0] == math.inf
    assert psnr(a, b)[1].isfinite()
    assert ssim(a, b)[0].item() == pytest.approx(1, abs=1e-12)
    assert ssim(a, b)[1] < 1


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_values_outside_the_range_are_clamped(metric):
    a, b = (as_floats(x) for x in uint8_pair(2, 16, 16, spread=90))
    outside = torch.where(b.abs() == 1, b * 3, b)
    assert (outside.abs() > 1).any()
    torch.testing.assert_close(metric(a, outside), metric(a, b), rtol=1e-12, atol=0)
    torch.testing.assert_close(metric(outside, a), metric(b, a), rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bytes_and_floats_measure_alike(metric):
    a, b = uint8_pair(2, 16, 16)
    expected = metric(a, b)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(metric(as_floats(a), as_floats(b)), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(metric(a, as_floats(b).float()), expected, rtol=1e-12, atol=0)
    # An error of less than half a level is no error: images are compared as they would be saved.
    torch.testing.assert_close(metric(as_floats(a), as_floats(b) + 0.49 / 127.5), expected, rtol=1e-12, atol=0)


@few
@given(
    batch=st.integers(1, 2),
    height=st.integers(11, 40),
    width=st.integers(11, 40),
    spread=st.sampled_from([3, 40, 200]),
    seed=st.integers(0, 99),
)
def test_ssim_is_scikit_images(batch, height, width, spread, seed):
    a, b = uint8_pair(batch, height, width, seed, spread)
    np.testing.assert_allclose(ssim(a, b).numpy(), ssim_in_skimage(a, b), rtol=0, atol=1e-9)


def test_ssim_of_smooth_and_of_unrelated_pictures_is_scikit_images():
    ramp = torch.linspace(0, 255, 48).round().to(torch.uint8)
    smooth = torch.stack((ramp.expand(48, 48), ramp.view(-1, 1).expand(48, 48), torch.full((48, 48), 77).byte()))
    a = torch.stack((smooth, smooth, 255 - smooth, torch.zeros_like(smooth)))
    b = torch.stack((smooth.flip(1), (smooth // 2), smooth, torch.full_like(smooth, 255)))
    np.testing.assert_allclose(ssim(a, b).numpy(), ssim_in_skimage(a, b), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(10, 11), (11, 10), (1, 1), (64, 7)])
def test_ssim_of_small_images_says_both_numbers(height, width):
    images = torch.zeros(1, 3, height, width)
    with pytest.raises(ValueError, match=rf"11×11 .* {height}×{width}"):
        ssim(images, images)


def test_scores_are_per_image_in_order_and_summarised():
    a, b = (as_floats(x) for x in uint8_pair(5, 16, 16, spread=60))
    outputs = iter(b.split(2))
    scores = score(lambda images: next(outputs), a.split(2))
    np.testing.assert_allclose(scores.psnr, psnr(b, a).numpy(), rtol=1e-12)
    np.testing.assert_allclose(scores.ssim, ssim(b, a).numpy(), rtol=1e-12)
    summary = scores.summary()
    assert summary["images"] == 5
    assert summary["psnr"] == pytest.approx(psnr(b, a).mean().item(), rel=1e-12)
    assert summary["ssim"] == pytest.approx(ssim(b, a).mean().item(), rel=1e-12)
    assert summary["convention"] == CONVENTION


def test_scoring_keeps_no_graph():
    weight = torch.ones((), requires_grad=True)
    seen = []

    def reconstruct(images):
        seen.append((images * weight).requires_grad)
        return images * weight

    score(reconstruct, [torch.zeros(1, 3, 11, 11)])
    assert seen == [False]


def test_scoring_nothing_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        score(lambda images: images, [])


@few
@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=300))
def test_the_first_percentile_is_numpys(values):
    assert first_percentile(values) == pytest.approx(np.percentile(values, 1), abs=1e-9)


def test_the_first_percentile_of_a_ladder_is_one():
    assert first_percentile([float(i) for i in reversed(range(101))]) == 1.0
