"""How well images come back: takes a function, never a model class."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from softvq.errors import MetricError
from softvq.evaluation.frechet import Gaussian, frechet_distance
from softvq.evaluation.metrics import CONVENTION, as_bytes, psnr, ssim

Images = Float[Tensor, "_ 3 H W"]


@dataclass(frozen=True)
class ReconstructionScores:
    """PSNR (dB), SSIM and, where a network for it was given, LPIPS of each image, in order; and rFID likewise, with
    whether there were more images than features."""

    psnr: list[float]
    ssim: list[float]
    lpips: list[float] = field(default_factory=list)
    rfid: float | None = None
    rfid_reliable: bool = True

    def summary(self) -> dict[str, float | int | str]:
        """Means over images, their number, and the convention."""
        count = len(self.psnr)
        return {
            "psnr": sum(self.psnr) / count,
            "ssim": sum(self.ssim) / count,
            **({"lpips": sum(self.lpips) / count} if self.lpips else {}),
            **({} if self.rfid is None else {"rfid": self.rfid, "rfid_reliable": self.rfid_reliable}),
            "images": count,
            "convention": CONVENTION,
        }


@torch.no_grad()
def score(
    reconstruct: Callable[[Images], Images],
    batches: Iterable[Images],
    *,
    perceptual: Callable[[Images, Images], Float[Tensor, " B"]] | None = None,
    features: Callable[[UInt8[Tensor, "B 3 H W"]], Float[Tensor, "B F"]] | None = None,
) -> ReconstructionScores:
    """Reconstruct every batch (in [-1, 1]) and measure it, PSNR and SSIM on the CPU (float64 is not everywhere).

    `perceptual`: (reconstructions, images) → LPIPS. `features`: of 8-bit images, for rFID.
    """
    scores = ReconstructionScores([], [])
    gaussians: tuple[Gaussian, Gaussian] | None = None
    for images in batches:
        output = reconstruct(images)
        images = images.to(output.device)
        if perceptual is not None:
            scores.lpips.extend(perceptual(output.float().clamp(-1, 1), images).tolist())
        if features is not None:
            found = [features(as_bytes(side)) for side in (output, images)]
            gaussians = gaussians or tuple(Gaussian(side.shape[1]) for side in found)
            for gaussian, side in zip(gaussians, found, strict=True):
                gaussian.add(side)
        output, images = output.cpu(), images.cpu()
        scores.psnr.extend(psnr(output, images).tolist())
        scores.ssim.extend(ssim(output, images).tolist())
    if not scores.psnr:
        raise MetricError("there are no images to measure.")
    if gaussians is None or gaussians[0].count < 2:
        return scores
    moments = [gaussian.moments for gaussian in gaussians]
    return replace(scores, rfid=frechet_distance(*moments), rfid_reliable=moments[0].reliable)


def first_percentile(values: list[float]) -> float:
    """The value below which 1 % of them lie (linear interpolation)."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.01))
