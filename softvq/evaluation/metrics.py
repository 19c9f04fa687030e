"""PSNR and SSIM of 8-bit images, by a stated convention.

Images are clamped to [-1, 1] and rounded to 8 bits first; the data range is 255. SSIM is Wang et al. 2004 as
scikit-image computes it with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255`:
an 11 × 11 Gaussian window, K = (0.01, 0.03), per colour channel, averaged over channels and places with a full window.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from softvq.data.images import to_bytes
from softvq.errors import MetricError

CONVENTION = "PSNR and SSIM of clamped 8-bit RGB, data range 255; SSIM with an 11×11 Gaussian window, sigma 1.5"
_WINDOW, _SIGMA = 11, 1.5


def psnr(images: Shaped[Tensor, "B 3 H W"], targets: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return 10 log10(255² / MSE) in dB per image, infinite for equal images; inputs in [-1, 1] or uint8."""
    a, b = _bytes(images), _bytes(targets)
    return 10 * torch.log10(255.0**2 / (a - b).square().mean((1, 2, 3)))


def ssim(images: Shaped[Tensor, "B 3 H W"], targets: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the mean structural similarity per image, at most 1; inputs in [-1, 1] or uint8, at least 11 × 11."""
    if min(images.shape[2:]) < _WINDOW:
        raise MetricError(f"SSIM needs images of at least 11×11 pixels, not {images.shape[2]}×{images.shape[3]}.")
    a, b = _bytes(images), _bytes(targets)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return similarity.mean((1, 2, 3))


def _bytes(images: Tensor) -> Tensor:
    return (images if images.dtype == torch.uint8 else to_bytes(images)).double()


def _blur(images: Tensor) -> Tensor:
    """Return averages under the Gaussian window along rows and columns, where the window fits: two matrix products."""
    H, W = images.shape[2:]
    return _windows(H).to(images) @ images @ _windows(W).to(images).T


def _windows(length: int) -> Float[Tensor, "places length"]:
    """Return the normalised Gaussian window shifted to each place, one row a place."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    rows = torch.zeros(length - _WINDOW + 1, length, dtype=torch.float64)
    for place, row in enumerate(rows):
        row[place : place + _WINDOW] = window / window.sum()
    return rows
