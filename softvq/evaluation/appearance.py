"""Flaws that people see in generated or decoded images and that no feature network measures.

They are borders of patches, blur, and empty pictures.

    rows = appearance(images, periods)                    # of 8-bit images, a row an image
    appearance_scores(rows, real, size, periods)          # of all of them, beside real images'
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

PERIODS = (4, 8, 16)
NAMES = ("difference", "borders", "gradient_energy", "ink")  # of the rows
_LUMA = (0.299, 0.587, 0.114)
_WHITE, _LEAST_INK = 0.95, 0.03


def periods_for(size: int, patch: int | None = None) -> tuple[int, ...]:
    """Return the periods at which blockiness is measured in images of `size` px: 4, 8, 16, and the model's patch."""
    return tuple(sorted(p for p in {*PERIODS, *(() if patch is None else (patch,))} if 1 < p < size))


def appearance(images: UInt8[Tensor, "B 3 S S"], periods: Sequence[int]) -> dict[str, Float[Tensor, " B *P"]]:
    """Return one row an image of what blockiness, sharpness and blank pictures are computed from.

    `difference` is the sum of absolute differences of neighbouring pixels, down and across, over all channels (pixels
    in [0, 1]); `borders` is the part of it that lies across the borders of squares of each period; `gradient_energy` is
    the mean squared difference of luma, down + across (pixels in [-1, 1]); `ink` is the share of pixels darker than
    0.95 in some channel.
    """
    x = images.double() / 255
    down, across = x.diff(dim=2).abs().sum((1, 3)), x.diff(dim=3).abs().sum((1, 2))  # B S-1, by place
    luma = (x * x.new_tensor(_LUMA).view(3, 1, 1)).sum(1) * 2
    steps = down + across
    return {
        "difference": steps.sum(1),
        "borders": torch.stack([steps[:, p - 1 :: p].sum(1) for p in periods], 1)
        if periods
        else x.new_zeros(len(x), 0),
        "gradient_energy": luma.diff(dim=1).square().mean((1, 2)) + luma.diff(dim=2).square().mean((1, 2)),
        "ink": (x.amin(1) < _WHITE).double().mean((1, 2)),
    }


def blockiness(rows: Mapping[str, Tensor], size: int, periods: Sequence[int]) -> dict[int, float]:
    """Return, by period, the mean absolute difference of neighbours across borders over that elsewhere, of all images.

    It is 1 where borders are no different. Periods between whose borders nothing differs are left out.
    """
    total, ratios = float(rows["difference"].sum()), {}
    for place, period in enumerate(periods):
        border, count = float(rows["borders"][:, place].sum()), (size - 1) // period
        elsewhere = (total - border) / (size - 1 - count)
        if elsewhere > 0:
            ratios[period] = border / count / elsewhere
    return ratios


def appearance_scores(
    rows: Mapping[str, Tensor], real: Mapping[str, Tensor] | None, size: int, periods: Sequence[int]
) -> dict[str, Any]:
    """Return `blockiness`, `gradient_energy` and `nearly_blank` of all images, and what they are compared with.

    `blockiness` is that of the worst period, `blockiness_real` the real images' at the same period, and `blockiness_P`
    that of each period P; `gradient_energy` is relative to the real images' (1: as sharp); `nearly_blank` is the share
    of images with less than 3 % of pixels darker than 0.95 in some channel. Figures that need real images are left out
    without them.
    """
    scores: dict[str, Any] = {}
    if ratios := blockiness(rows, size, periods):
        worst = max(ratios, key=lambda period: ratios[period])
        scores["blockiness"] = ratios[worst]
        if real is not None and worst in (theirs := blockiness(real, size, periods)):
            scores["blockiness_real"] = theirs[worst]
        scores |= {f"blockiness_{period}": value for period, value in ratios.items()}
    if real is not None and (energy := float(real["gradient_energy"].mean())) > 0:
        scores["gradient_energy"] = float(rows["gradient_energy"].mean()) / energy
    return {**scores, "nearly_blank": float((rows["ink"] < _LEAST_INK).double().mean())}
