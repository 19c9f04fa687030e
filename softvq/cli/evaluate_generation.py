"""`softvq evaluate generation` and `softvq evaluate reference`."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from softvq import distributed
from softvq.cli.evaluating import (
    ArrayImages,
    Bench,
    DataImages,
    DrawnImages,
    is_emoji,
    look_for,
    notes_of,
    patch_of,
    reference_of,
    write_result,
)
from softvq.cli.main import Usage
from softvq.cli.sample import pipeline_of
from softvq.data.arrays import STATISTICS, write_arrays
from softvq.data.loader import ordered_batches
from softvq.evaluation.appearance import periods_for
from softvq.evaluation.generation import MOST, Reference, chosen, generation_scores, spread
from softvq.evaluation.metrics import as_bytes
from softvq.figures import pyplot, save_figure
from softvq.generators.base import Sampling


def generation(options: argparse.Namespace) -> dict[str, Any]:
    """gFID and its relatives of a generator, over seeds and guidance scales, or of images that are there."""
    _check(options)
    if options.samples is not None:
        return _of_samples(options)
    seeds = options.seed
    pipeline, asked = pipeline_of(options)
    request = pipeline.request(**asked, num=options.num, seed=seeds[0])
    swept = cells(options, request.sampling)
    if swept:
        pyplot()  # what is missing is said before the work begins
    emoji = is_emoji(pipeline.tokenizer)
    count = options.num or (900 if emoji else 50_000)
    named = options.reference or pipeline.generator.about.get("data")
    if named is None:
        raise Usage(f"{options.model} does not say which images it learned; give --reference")
    look_for(named)
    bench = Bench(options, emoji, patch=patch_of(pipeline.tokenizer))
    model = {"name": str(options.model), "fingerprint": pipeline.generator.fingerprint}
    stem = f"generation-{Path(options.model).name}-{bench.stem(model, pipeline.settings(request), count, named, seeds)}"
    size = pipeline.image_size
    reference, compared = reference_of(bench, named, size)

    def measured(name: str, sampling: Sampling) -> dict[str, Any]:
        found = []
        for seed in seeds:
            drawn = DrawnImages(pipeline, replace(request, num=count, seed=seed, sampling=sampling))
            parts = bench.parts(drawn, f"{stem}/{name}-seed{seed}")
            periods = periods_for(size, bench.patch)
            found.append(generation_scores(parts, reference, bench.network.logits, size, periods))
        return bench.named(spread(found), "g")

    recipe = pipeline.generator.about.get("recipe", {})
    result = {
        "model": {**model, "recipe": recipe.get("name"), "steps": recipe.get("steps")},
        "tokenizer": pipeline.generator.about.get("tokenizer", {}).get("name"),
        "protocol": bench.protocol(count, size, "none", compared).to_dict(),
        "sampling": {**pipeline.settings(request), "seed": seeds},
        "scores": measured("own", request.sampling),
    }
    if swept:
        result["sweep"] = []
        for cell in swept:
            g = cell.guidance
            found = measured(f"scale{g.scale!r}-{g.interval[0]!r}-{g.interval[1]!r}", cell)
            result["sweep"].append({"guidance": g.scale, "interval": list(g.interval), "scores": found})
        result["picture"] = str(draw_sweep(result["sweep"], options.out / f"{stem}.png", count))
    result |= {"unreadable": bench.unreadable, "notes": notes_of(result["scores"], bench, options)}
    return write_result(options.out, stem, "generation", result, options.out / stem)


def _of_samples(options: argparse.Namespace) -> dict[str, Any]:
    if options.reference is None:
        raise Usage("--samples need a --reference")
    array = options.samples.lower().endswith(".npz")
    images = ArrayImages(Path(options.samples), options.batch) if array else DataImages(options.samples, None, options)
    look_for(options.reference)
    bench = Bench(options, emoji=options.reference in ("emoji", "emoji-val"))
    reference, compared = reference_of(bench, options.reference, images.size)
    stem = f"generation-{Path(options.samples).stem}-{bench.stem(options.samples, images.checksum, compared[1])}"
    parts = bench.parts(images, stem)
    found = generation_scores(parts, reference, bench.network.logits, images.size, periods_for(images.size))
    scores = bench.named(found, "g")
    bad = parts.bad
    result = {
        "model": {"name": options.samples, "fingerprint": images.checksum if array else parts.checksum},
        "protocol": bench.protocol(images.count - len(bad), images.size, images.crop, compared).to_dict(),
        "scores": scores,
        "unreadable": bench.unreadable,
        "notes": notes_of(scores, bench, options),
    }
    return write_result(options.out, stem, "generation", result, parts.folder)


def reference(options: argparse.Namespace) -> dict[str, Any]:
    """Statistics of all images, and up to 10,000 of them for precision and recall, as ADM's references are."""
    if options.size < 1 or options.to.suffix.lower() != ".npz":
        raise Usage("--size must be at least 1, and --to the name of an .npz file")
    bench = Bench(options, emoji=options.data in ("emoji", "emoji-val"))
    images = DataImages(options.data, options.size, options)
    parts = bench.parts(images, f"reference-{bench.stem(options.data, images.checksum, images.size, images.crop)}")
    found = Reference.of_parts(parts)
    arrays = {"mu": found.pool.mean, "sigma": found.pool.covariance}
    if found.spatial is not None:
        arrays |= {"mu_s": found.spatial.mean, "sigma_s": found.spatial.covariance}
    told = {**bench.network.protocol, "size": images.size, "images": found.pool.count, "data": options.data}
    told["precision"] = bench.precision
    bad = parts.bad
    if distributed.rank() == 0:
        readable = [n for n, name in enumerate(images.source.names) if name not in bad]
        kept = [readable[n] for n in chosen(len(readable), MOST)]
        batches = ordered_batches(
            images.source, size=images.size, batch_size=options.batch, chosen=kept, workers=options.workers
        )
        pixels = (as_bytes(batch.images).permute(0, 2, 3, 1).numpy() for batch in batches)
        numbers = {name: arrays[name].numpy() for name in STATISTICS if name in arrays}
        shape = (len(kept), images.size, images.size)
        write_arrays(options.to, shape, pixels, **numbers, protocol=np.array(json.dumps(told)))
    parts.remove()
    return {"reference": str(options.to), **told, "unreadable": bad}


def _check(options: argparse.Namespace) -> None:
    """What can be said before the work begins."""
    if options.within and not options.scale:
        raise Usage("--within goes with --scale")
    if options.samples is not None and (options.scale or options.num is not None):
        raise Usage("--samples are measured as they are; --num and --scale are for models")
    if (options.num is not None and options.num < 2) or not all(0 <= seed < 2**63 for seed in options.seed):
        raise Usage("--num must be at least 2, each --seed not negative and below 2^63")
    if len(set(options.seed)) < len(options.seed):
        raise Usage("--seed: a deviation needs seeds that differ")


def cells(options: argparse.Namespace, sampling: Sampling) -> list[Sampling]:
    """The sampler's settings with each guidance scale in each interval."""
    own = sampling.guidance
    try:
        intervals = [own.interval]
        if options.within:
            intervals = [(float(low), float(high)) for low, high in (one.split(":") for one in options.within)]
        wanted = [replace(own, scale=scale, interval=one) for one in intervals for scale in options.scale or ()]
    except (ValueError, TypeError) as error:
        raise Usage(f"--scale or --within: {error}; an interval is LOW:HIGH, from 0 (data) to 1 (noise)") from None
    return [replace(sampling, guidance=guidance) for guidance in wanted]


def draw_sweep(sweep: list[dict[str, Any]], path: Path, count: int) -> Path:
    """Fréchet distance over guidance scale, a curve an interval."""
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
    if distributed.rank() == 0:
        save_figure(figure, path)
    return path
