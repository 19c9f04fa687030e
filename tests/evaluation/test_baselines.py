"""PCA is numpy's SVD and exact at full rank; box-downsampling keeps what it can and uses the floats it is given."""

import numpy as np
import pytest
import torch
from PIL import Image

from softvq.evaluation.baselines import downsample_reconstruct, pca_reconstruct, principal_components


def images(count: int, side: int = 6, seed: int = 0) -> torch.Tensor:
    """Images whose variance falls over directions, as PCA needs to tell components apart, and whose mean is not 0."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, 12)) * 0.7 ** np.arange(12) @ rng.standard_normal((12, 3 * side * side))
    return torch.from_numpy(mixed.reshape(count, 3, side, side) + 0.3).float()


def test_pca_of_full_rank_gives_the_training_set_back():
    train = images(9)
    for components in (8, 9):  # nine centred images have rank eight; the ninth component may be any direction
        mean, basis = principal_components(train, components)
        torch.testing.assert_close(pca_reconstruct(train, mean, basis), train.double(), rtol=0, atol=1e-9)


def test_too_few_components_do_not():
    train = images(9)
    mean, basis = principal_components(train, 4)
    assert (pca_reconstruct(train, mean, basis) - train).abs().max() > 1e-2


@pytest.mark.parametrize("components", [1, 5, 11, 12])
def test_the_basis_is_orthonormal(components):
    _, basis = principal_components(images(12), components)
    assert basis.shape == (3 * 6 * 6, components)
    assert basis.dtype == torch.float64
    torch.testing.assert_close(basis.T @ basis, torch.eye(components, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("count", "side", "components"), [(20, 6, 5), (60, 3, 7), (20, 6, 1)])
def test_components_are_numpys_singular_vectors(count, side, components):
    """In order and up to sign; with fewer images than pixels and with more."""
    train = images(count, side)
    flat = train.flatten(1).double().numpy()
    _, _, vectors = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    mean, basis = principal_components(train, components)
    np.testing.assert_allclose(mean.numpy(), flat.mean(0), atol=1e-12)
    alike = np.abs(vectors[:components] @ basis.numpy())
    np.testing.assert_allclose(alike, np.eye(components), atol=1e-8)


def test_unseen_images_are_projected():
    train, unseen = images(20), images(4, seed=1)
    mean, basis = principal_components(train, 5)
    flat = train.flatten(1).double().numpy()
    _, _, vectors = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    other = unseen.flatten(1).double().numpy() - flat.mean(0)
    expected = (other @ vectors[:5].T @ vectors[:5] + flat.mean(0)).reshape(unseen.shape)
    np.testing.assert_allclose(pca_reconstruct(unseen, mean, basis).numpy(), expected, atol=1e-8)


def test_no_basis_of_that_size_leaves_less_error():
    """Eckart–Young, against random bases."""
    train = images(20)
    mean, basis = principal_components(train, 3)
    best = (pca_reconstruct(train, mean, basis) - train).square().sum()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        other = torch.linalg.qr(torch.randn(basis.shape, generator=generator, dtype=torch.float64)).Q
        assert (pca_reconstruct(train, mean, other) - train).square().sum() > best


def test_more_components_than_images_is_an_error_with_both_numbers():
    with pytest.raises(ValueError, match=r"10 components .* 9"):
        principal_components(images(9), 10)


@pytest.mark.parametrize("floats", [3, 12, 50, 192])
def test_downsampling_keeps_constants(floats):
    constant = torch.tensor([-0.9, 0.1, 1.0]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    result = downsample_reconstruct(constant, floats)
    assert result.shape == constant.shape
    torch.testing.assert_close(result, constant.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("floats", "side"), [(12, 2), (26, 2), (48, 4), (74, 4), (192, 8)])
def test_downsampling_is_box_means_and_pillows_bicubic(floats, side):
    """`side` is the largest square whose three channels fit in `floats`; sides that divide 16 make the boxes plain."""
    originals = images(2, 16).clamp(-1, 1)
    block = 16 // side
    small = originals.double().numpy().reshape(2, 3, side, block, side, block).mean((3, 5)).astype(np.float32)
    result = downsample_reconstruct(originals, floats)
    for b in range(2):
        for channel in range(3):
            expected = Image.fromarray(small[b, channel]).resize((16, 16), Image.Resampling.BICUBIC)
            np.testing.assert_allclose(result[b, channel].numpy(), np.asarray(expected), atol=1e-5)


def test_an_image_that_fits_is_untouched():
    originals = images(2, 8)
    torch.testing.assert_close(downsample_reconstruct(originals, 3 * 8 * 8), originals.double(), rtol=0, atol=1e-12)
