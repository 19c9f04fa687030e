"""Measurements of how good generated images are: every figure of the paper's tables.

result = evaluate_generation("emoji-sit", num=900, scales=(1, 2, 3.5))
result = evaluate_generation("samples.npz", "VIRTUAL_imagenet256_labeled.npz")
result = frechet("samples/", "photos/")
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from softvq import progress
from softvq.data.arrays import ArrayFile
from softvq.data.images import Fit
from softvq.errors import ConfigError, MetricError, SoftVQError, check_whole
from softvq.evaluation.appearance import appearance_scores
from softvq.evaluation.distribution import SPLITS, inception_score, kernel_distance, nearest_distances, precision_recall
from softvq.evaluation.frechet import frechet_distance
from softvq.evaluation.images import CROPS, ArrayImages, DrawnImages, is_array, is_bundled, open_images, shortest_side
from softvq.evaluation.measuring import (
    Measuring,
    Settings,
    evaluating,
    knows_bundled,
    patch_of,
    workplace,
)
from softvq.evaluation.parts import Parts, appearance_of, moments
from softvq.evaluation.references import Reference, look_for, reference_name, reference_of
from softvq.evaluation.results import Result, described
from softvq.figures import pyplot, rendered
from softvq.generators.base import Sampling
from softvq.models import own_device
from softvq.pipeline import Pipeline, Request

Logits = Callable[[Tensor], Tensor | None] | None  # pooled features → class logits, of Inception
_BUNDLED_IMAGES, _IMAGES = 900, 50_000


def evaluate_generation(
    images: Any,
    reference: Any = None,
    *,
    num: int | None = None,
    seeds: Sequence[int] = (0,),
    scales: Sequence[float] = (),
    intervals: Sequence[tuple[float, float]] = (),
    checksum: str | None = None,
    sampling: dict[str, Any] | None = None,
    fit: Fit | None = None,
    size: int | None = None,
    **settings: Any,
) -> Result:
    """Return gFID and its relatives for generated images, and what people see of them (`evaluation.appearance`).

    In the features of another network than Inception's, gFID is called FD.

    `images` are a `Pipeline`, or images that exist already: an `.npz` file or anything that `data.open_source` takes.
    The latter must be square and of one size, or are made so: by `fit` (crop, resize, pad) to `size` pixels, by default
    those of an `.npz` reference, else the shorter side of the first image. `reference` are real images, or an `.npz` of
    them or of their statistics; by default the images that a generator has learned. `checksum` is the reference's;
    another is refused.

    A pipeline makes `num` images (default: 50,000, for the bundled ones 900) with each of `seeds`: figures are means,
    with their deviation. With guidance `scales`, those are measured too, in each of `intervals` of time, and drawn as a
    curve. `sampling` holds settings of `Pipeline.request`. `settings` are the fields of `Settings`.
    """
    given = Settings(**settings)
    check_whole("size", 1 if size is None else size, 1)
    if isinstance(images, Pipeline):
        for name, value in (("fit", fit), ("size", size)):
            if value is not None:
                raise ConfigError(f"{name} is for images that are there; a generator's have its size.", setting=name)
        asked = _asked(
            images, num, seeds, {"batch_size": given.batch_size, "precision": given.precision, **(sampling or {})}
        )
        return _of_pipeline(images, asked, seeds, _cells(asked.sampling, scales, intervals), reference, checksum, given)
    settings_of_model = {"num": num is not None, "guidance": scales, "interval": intervals, "sampling": sampling}
    for name, is_given in settings_of_model.items():
        if is_given:
            raise ConfigError(
                f"images that are there are measured as they are, all of them: {name} is for a generator's.",
                setting=name,
            )
    if reference is None:
        raise ConfigError("images that are there need a reference to be compared with.", setting="reference")
    fit = "crop" if fit is None and size is not None else fit
    if fit is not None and fit not in CROPS:
        raise ConfigError(f"fit must be {', '.join(CROPS)}, not {fit!r}.", setting="fit")
    if fit is not None and is_array(images):
        raise ConfigError("the images of an .npz file are of one size already; fit is for folders.", setting="fit")
    return _of_images(images, reference, checksum, given, fit, size)


def frechet(images: Any, other: Any, *, size: int | None = None, **settings: Any) -> Result:
    """Return the Fréchet distance between two sets of images: `scores["fd"]`, or `"fid"` in Inception's features.

    Each set is an `.npz` file or anything that `data.open_source` takes, cut to `size` pixels (default: the first's are
    of one size, and the second's are cut to it). `settings` are the fields of `Settings`.
    """
    given = Settings(**settings)
    check_whole("size", 1 if size is None else size, 1)
    first = open_images(images, size, given.batch_size, given.workers)
    look_for(other)
    device = own_device(given.device)
    with workplace(given.folder) as place:
        measuring = Measuring(given, place, device, is_bundled(images) or is_bundled(other))
        reference, compared = reference_of(measuring, other, first.size)
        name = f"frechet-{Path(first.title).stem}-{measuring.stem(first.title, first.checksum, compared[1])}"
        parts = measuring.parts(first, name)
        own = moments(parts, "pool")
        scores = measuring.named({"fd": frechet_distance(own, reference.pool)}, "")
        scores["reliable"] = own.reliable and reference.pool.reliable
        count = first.count - len(parts.bad)
        return Result(
            "generation",
            name,
            {"name": first.title, "fingerprint": _checksum(first, parts)},
            measuring.protocol(count, first.size, first.crop, compared),
            scores,
            notes=tuple(measuring.notes(scores)),
            unreadable=dict(measuring.unreadable),
            parts=parts.folder,
        )


def _asked(pipeline: Pipeline, num: int | None, seeds: Sequence[int], sampling: dict[str, Any]) -> Request:
    check_whole("num", 2 if num is None else num, 2)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("a deviation needs seeds that differ, at least one.", setting="seed")
    count = num or (_BUNDLED_IMAGES if knows_bundled(pipeline.tokenizer) else _IMAGES)
    requests = [pipeline.request(num=count, seed=seed, **sampling) for seed in seeds]
    return requests[0]


def _cells(sampling: Sampling, scales: Sequence[float], intervals: Sequence[tuple[float, float]]) -> list[Sampling]:
    """Return the sampler's settings with each guidance scale in each interval."""
    own = sampling.guidance
    if intervals and not scales:
        raise ConfigError("intervals go with guidance scales.", setting="guidance")
    try:
        wanted = [
            replace(own.scaled(scale), interval=(low, high))
            for low, high in intervals or [own.interval]
            for scale in scales
        ]
    except SoftVQError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{error}; an interval is from 0 (data) to 1 (noise).", setting="guidance") from None
    return [replace(sampling, guidance=guidance) for guidance in wanted]


def _of_pipeline(
    pipeline: Pipeline,
    request: Request,
    seeds: Sequence[int],
    cells: list[Sampling],
    reference: Any,
    checksum: str | None,
    given: Settings,
) -> Result:
    if cells:
        pyplot()  # what is missing is said before the work begins
    model, size, count = described(pipeline.generator), pipeline.image_size, request.num
    reference = pipeline.generator.about.get("data") if reference is None else reference
    if reference is None:
        raise ConfigError(f"{model['name']} does not say which images it learned; name some.", setting="reference")
    look_for(reference)
    device = own_device(given.device, pipeline)
    pipeline.to(device)
    with workplace(given.folder) as place, evaluating(pipeline.generator, pipeline.tokenizer):
        bundled = knows_bundled(pipeline.tokenizer)
        measuring = Measuring(given, place, device, bundled, patch_of(pipeline.tokenizer))
        _check_count(measuring, count)
        known = {"name": model["name"], "fingerprint": model["fingerprint"]}
        named = reference_name(reference)
        stem = measuring.stem(known, pipeline.settings(request), count, named, list(seeds))
        name = f"generation-{Path(model['name']).name}-{stem}"
        real, compared = reference_of(measuring, reference, size, checksum)

        def measured(called: str, sampling: Sampling) -> dict[str, Any]:
            seed_scores = []
            for seed in seeds:
                drawn = DrawnImages(pipeline, replace(request, seed=seed, sampling=sampling))
                parts = measuring.parts(drawn, f"{name}/{called}-seed{seed}")
                seed_scores.append(
                    generation_scores(parts, real, measuring.network.logits, size, measuring.periods(size))
                )
            return measuring.named(over_seeds(seed_scores), "g")

        scores, sweep = measured("own", request.sampling), []
        for cell in cells:
            g = cell.guidance
            cell_scores = measured(f"scale{g.scale!r}-{g.interval[0]!r}-{g.interval[1]!r}", cell)
            sweep.append({"guidance": g.scale, "interval": list(g.interval), "scores": cell_scores})
        more = {
            "tokenizer": pipeline.generator.about.get("tokenizer", {}).get("name"),
            "sampling": {**pipeline.settings(request), "seed": list(seeds)},
            **({"sweep": sweep} if sweep else {}),
        }
        recipe = pipeline.generator.about.get("recipe", {})
        return _result(
            name,
            {**model, "steps": recipe.get("steps")},
            measuring,
            measuring.protocol(count, size, "none", compared),
            scores,
            more,
            {name: drawn_sweep(sweep, count)} if sweep else {},
            place.folder / name,
        )


def _of_images(
    given_images: Any, reference: Any, checksum: str | None, given: Settings, fit: Fit | None, size: int | None
) -> Result:
    look_for(reference)
    if fit is not None and size is None:
        size = ArrayFile(Path(reference)).side if is_array(reference) else None
        size = size or shortest_side(given_images)
    images = open_images(given_images, size if fit else None, given.batch_size, given.workers, fit or "crop")
    named = str(given_images) if isinstance(given_images, str | Path) else images.title
    device = own_device(given.device)
    with workplace(given.folder) as place:
        measuring = Measuring(given, place, device, is_bundled(reference))
        _check_count(measuring, images.count)
        real, compared = reference_of(measuring, reference, images.size, checksum)
        stem = measuring.stem(named, images.checksum, compared[1], images.size, images.crop)
        name = f"generation-{Path(named).stem}-{stem}"
        parts = measuring.parts(images, name)
        periods = measuring.periods(images.size)
        scores = generation_scores(parts, real, measuring.network.logits, images.size, periods)
        protocol = measuring.protocol(images.count - len(parts.bad), images.size, images.crop, compared)
        model = {"name": named, "fingerprint": _checksum(images, parts)}
        return _result(name, model, measuring, protocol, measuring.named(scores, "g"), {}, {}, parts.folder)


def _check_count(measuring: Measuring, count: int) -> None:
    """Raise `MetricError`, before any image is made, when there will be too few for the Inception Score."""
    if measuring.is_fid and count < SPLITS:
        raise MetricError(
            f"the Inception Score is of {SPLITS} parts and needs as many images, not {count}.", setting="num"
        )


def _checksum(images: Any, parts: Parts) -> str:
    return images.checksum if isinstance(images, ArrayImages) else parts.checksum


def _result(
    name: str,
    model: dict[str, Any],
    measuring: Measuring,
    protocol: dict[str, Any],
    scores: dict[str, Any],
    more: dict[str, Any],
    pictures: dict[str, Image.Image],
    parts: Path,
) -> Result:
    notes = measuring.notes(scores)
    if "precision" not in scores:
        notes.append("the reference holds no images: no KID, precision and recall")
    unreadable = dict(measuring.unreadable)
    return Result("generation", name, model, protocol, scores, more, tuple(notes), unreadable, pictures, parts)


@progress.waiting("computing distances, precision and recall")
def generation_scores(
    samples: Parts, reference: Reference, logits: Logits = None, size: int = 0, periods: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the figures of generated images, by name; those that cannot be had are left out.

    They are `fd`, the Fréchet distance (FID with Inception), `spatial_fd` (sFID), `inception_score`, `kid`,
    `precision`, `recall`, `nearest` (the median distance to the nearest reference image), and what people see
    (`evaluation.appearance`, of images of `size` px at these `periods`). `reliable` is True when there are more images
    than features on both sides.

    `logits` maps pooled features to class logits, with Inception.
    """
    own = moments(samples, "pool")
    features = samples.all("pool")
    scores: dict[str, Any] = {"fd": frechet_distance(own, reference.pool)}
    spatial = moments(samples, "spatial")
    if spatial is not None and reference.spatial is not None:
        scores["spatial_fd"] = frechet_distance(spatial, reference.spatial)
    class_logits = logits(features) if logits is not None else None
    if class_logits is not None:
        scores["inception_score"], scores["inception_score_std"] = inception_score(class_logits)
    if reference.features is not None:
        scores["kid"], scores["kid_std"] = kernel_distance(features, reference.features)
        scores["precision"], scores["recall"] = precision_recall(features, reference.features)
        scores["nearest"] = float(nearest_distances(features, reference.features).median())
    if (rows := appearance_of(samples)) is not None:
        scores |= appearance_scores(rows, reference.appearance, size, periods)
    scores["reliable"] = own.reliable and reference.pool.reliable
    return scores


def over_seeds(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each figure over seeds, and its standard deviation (of a sample) where there are several."""
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


def drawn_sweep(sweep: list[dict[str, Any]], count: int) -> Image.Image:
    """Return a figure of the Fréchet distance over guidance scale, with a curve for each interval."""
    name = "gfid" if "gfid" in sweep[0]["scores"] else "gfd"
    figure, axes = pyplot().subplots(figsize=(5, 3.5), layout="constrained")
    for interval in dict.fromkeys(tuple(cell["interval"]) for cell in sweep):
        row = sorted((c for c in sweep if tuple(c["interval"]) == interval), key=lambda c: c["guidance"])
        values = [cell["scores"][name] for cell in row]
        errors = [cell["scores"].get(f"{name}_over_seeds", 0.0) for cell in row]
        label = f"t in [{interval[0]:g}, {interval[1]:g}]"
        axes.errorbar([cell["guidance"] for cell in row], values, errors, marker="o", capsize=3, label=label)
    axes.set(xlabel="guidance scale", ylabel=f"{name[0]}{name[1:].upper()} ({count:,} images)")
    axes.legend()
    return rendered(figure)
