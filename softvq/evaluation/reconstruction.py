"""How well images come back: takes a function, never a model class."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from softvq.evaluation.metrics import CONVENTION, psnr, ssim

Images = Float[Tensor, "_ 3 H W"]


@dataclass(frozen=True)
class ReconstructionScores:
    """PSNR (dB) and SSIM of each image, in order."""

    psnr: list[float]
    ssim: list[float]

    def summary(self) -> dict[str, float | int | str]:
        """Means over images, their number, and the convention."""
        count = len(self.psnr)
        return {
            "psnr": sum(self.psnr) / count,
            "ssim": sum(self.ssim) / count,
            "images": count,
            "convention": CONVENTION,
        }


@torch.no_grad()
def score(reconstruct: Callable[[Images], Images], batches: Iterable[Images]) -> ReconstructionScores:
    """Reconstruct every batch (in [-1, 1]) and measure it, on the CPU (float64 is not everywhere)."""
    scores = ReconstructionScores([], [])
    for images in batches:
        output = reconstruct(images).cpu()
        scores.psnr.extend(psnr(output, images).tolist())
        scores.ssim.extend(ssim(output, images).tolist())
    if not scores.psnr:
        raise ValueError("there are no images to measure.")
    return scores


def first_percentile(values: list[float]) -> float:
    """The value below which 1 % of them lie (linear interpolation)."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.01))
