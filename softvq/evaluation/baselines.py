"""The baselines that a learned tokenizer must beat: PCA and box-downsampling at the same number of floats."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def principal_components(
    train: Float[Tensor, "N 3 H W"], components: int
) -> tuple[Float[Tensor, " P"], Float[Tensor, "P C"]]:
    """Return the mean and orthonormal leading components of flattened images, from the N × N Gram matrix in float64."""
    flat = train.flatten(1).double()
    if components > len(flat):
        raise ValueError(f"PCA with {components} components needs as many images, not {len(flat)}.")
    mean = flat.mean(0)
    centred = flat - mean
    _, vectors = torch.linalg.eigh(centred @ centred.T)
    basis = centred.T @ vectors.flip(1)[:, :components]
    return mean, torch.linalg.qr(basis).Q


def pca_reconstruct(
    images: Float[Tensor, "B 3 H W"], mean: Float[Tensor, " P"], basis: Float[Tensor, "P C"]
) -> Float[Tensor, "B 3 H W"]:
    """Return the images after their projection on the components."""
    flat = images.flatten(1).double() - mean
    return (flat @ basis @ basis.T + mean).view(images.shape)


def downsample_reconstruct(images: Float[Tensor, "B 3 H W"], floats: int) -> Float[Tensor, "B 3 H W"]:
    """Return images box-downsampled to the largest square with at most `floats` numbers, and enlarged bicubically."""
    side = math.isqrt(floats // 3)
    small = F.interpolate(images.double(), size=(side, side), mode="area")
    return F.interpolate(small, size=images.shape[2:], mode="bicubic", antialias=True)
