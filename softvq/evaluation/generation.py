"""How good generated images are: every figure of the paper's tables, from features that are there already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from softvq.evaluation.appearance import NAMES, appearance_scores
from softvq.evaluation.distribution import inception_score, kernel_distance, nearest_distances, precision_recall
from softvq.evaluation.frechet import Gaussian, Moments, frechet_distance
from softvq.evaluation.parts import Parts
from softvq.randomness import Stream, rng

MOST = 10_000  # reference images of precision and recall, as in ADM


@dataclass(frozen=True)
class Reference:
    """Real images: the moments of their features (and spatial ones, of Inception), and up to `MOST` features, where
    there are images and not statistics alone."""

    pool: Moments
    spatial: Moments | None
    features: Float[Tensor, "M F"] | None
    appearance: Mapping[str, Tensor] | None = None  # rows of `evaluation.appearance`

    @classmethod
    def of_parts(cls, parts: Parts) -> "Reference":
        features = parts.all("pool")
        pool, spatial = moments(parts, "pool"), moments(parts, "spatial")
        return cls(pool, spatial, features[chosen(len(features))], appearance_of(parts))


def appearance_of(parts: Parts, prefix: str = "") -> dict[str, Tensor] | None:
    """The rows of `evaluation.appearance` of all images, None where there are none."""
    rows = {name: parts.all(prefix + name) for name in NAMES}
    return None if rows["ink"] is None else rows


def chosen(count: int, most: int = MOST) -> list[int]:
    """Which of `count` reference images precision and recall take: all, or `most` of a fixed permutation, in order."""
    if count <= most:
        return list(range(count))
    return sorted(rng(0, Stream.REFERENCE).permutation(count)[:most].tolist())


def moments(parts: Parts, name: str) -> Moments | None:
    """Of a tensor of all images, a part at a time; None where there is none of that name."""
    gaussian = None
    for part in parts.each(name):
        gaussian = gaussian or Gaussian(part.shape[1])
        gaussian.add(part)
    return gaussian and gaussian.moments


def generation_scores(
    samples: Parts, reference: Reference, logits=None, size: int = 0, periods: Sequence[int] = ()
) -> dict[str, Any]:
    """`fd`, the Fréchet distance (FID with Inception), `spatial_fd` (sFID), `inception_score`, `kid`, `precision`,
    `recall`, `nearest` (the median distance to the nearest reference image), and what people see
    (`evaluation.appearance`, of images of `size` px at these `periods`); what cannot be had is left out.

    `logits`: pooled features → class logits, of Inception. `reliable`: more images than features on both sides.
    """
    own = moments(samples, "pool")
    features = samples.all("pool")
    scores: dict[str, Any] = {"fd": frechet_distance(own, reference.pool)}
    spatial = moments(samples, "spatial")
    if spatial is not None and reference.spatial is not None:
        scores["spatial_fd"] = frechet_distance(spatial, reference.spatial)
    found = logits(features) if logits is not None else None
    if found is not None:
        scores["inception_score"], scores["inception_score_std"] = inception_score(found)
    if reference.features is not None:
        scores["kid"], scores["kid_std"] = kernel_distance(features, reference.features)
        scores["precision"], scores["recall"] = precision_recall(features, reference.features)
        scores["nearest"] = float(nearest_distances(features, reference.features).median())
    if (rows := appearance_of(samples)) is not None:
        scores |= appearance_scores(rows, reference.appearance, size, periods)
    scores["reliable"] = own.reliable and reference.pool.reliable
    return scores


def spread(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure over seeds, and its standard deviation (of a sample) where there are several."""
    result: dict[str, Any] = {}
    for name, value in scores[0].items():
        values = [one[name] for one in scores]
        if isinstance(value, bool):
            result[name] = all(values)
            continue
        result[name] = float(np.mean(values))
        if len(values) > 1:
            result[f"{name}_over_seeds"] = float(np.std(values, ddof=1))
    return result
