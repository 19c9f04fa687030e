"""`softvq evaluate generation` and `softvq evaluate reference`."""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from softvq import distributed
from softvq.cli.evaluating import ArrayImages, Bench, DataImages, DrawnImages, is_emoji, notes_of, reference_of
from softvq.cli.main import Usage
from softvq.cli.plots import pyplot, save_figure
from softvq.cli.sampling import Sampler
from softvq.data.arrays import STATISTICS, write_arrays
from softvq.data.loader import ordered_batches
from softvq.evaluation.generation import MOST, Reference, chosen, generation_scores, spread
from softvq.evaluation.metrics import as_bytes
from softvq.transports.guidance import Guidance


def generation(options: argparse.Namespace) -> dict[str, Any]:
    """gFID and its relatives of a generator, over seeds and guidance scales, or of images that are there."""
    if options.samples is not None and (options.scale or options.num):
        raise Usage("--samples are measured as they are; --num and --scale are for models")
    if options.samples is not None:
        return _of_samples(options)
    options.seeds, options.seed = options.seed, options.seed[0]
    sampler = Sampler(options)
    if options.scale:
        pyplot()  # what is missing is said before the work begins
    emoji = is_emoji(sampler.tokenizer)
    bench = Bench(options, emoji)
    count = options.num or (900 if emoji else 50_000)
    named = options.reference or sampler.generator.about.get("data")
    if named is None:
        raise Usage(f"{options.model} does not say which images it learned; give --reference")
    model = {"name": str(options.model), "fingerprint": sampler.generator.fingerprint}
    stem = f"generation-{Path(options.model).name}-{bench.stem(model, sampler.settings(), count, named, options.seeds)}"
    size = sampler.tokenizer.config.image_size
    reference, compared = reference_of(bench, named, size)

    def measured(name: str) -> dict[str, Any]:
        found = []
        for seed in options.seeds:
            sampler.seed = seed
            parts = bench.parts(DrawnImages(sampler, count, options.batch), f"{stem}/{name}-seed{seed}")
            found.append(generation_scores(parts, reference, bench.network.logits))
        return bench.named(spread(found), "g")

    result = {
        "model": {**model, "recipe": sampler.generator.about.get("recipe", {}).get("name")},
        "tokenizer": sampler.generator.about.get("tokenizer", {}).get("name"),
        "protocol": bench.protocol(count, size, "none", compared).to_dict(),
        "sampling": {**sampler.settings(), "seed": options.seeds},
        "scores": measured("own"),
    }
    if options.scale:
        result["sweep"] = [
            {"guidance": g.scale, "interval": list(g.interval), "scores": measured(name)}
            for name, g in cells(options, sampler)
        ]
        result["picture"] = str(draw_sweep(result["sweep"], options.out / f"{stem}.png", count))
    written = bench.write(stem, "generation", {**result, "notes": notes_of(result["scores"], bench, options)})
    if distributed.rank() == 0:
        shutil.rmtree(options.out / stem, ignore_errors=True)
    return written


def _of_samples(options: argparse.Namespace) -> dict[str, Any]:
    if options.reference is None:
        raise Usage("--samples need a --reference")
    bench = Bench(options, emoji=options.reference in ("emoji", "emoji-val"))
    array = options.samples.lower().endswith(".npz")
    images = ArrayImages(Path(options.samples), options.batch) if array else DataImages(options.samples, None, options)
    reference, compared = reference_of(bench, options.reference, images.size)
    stem = f"generation-{Path(options.samples).stem}-{bench.stem(images.checksum, compared[1])}"
    parts = bench.parts(images, stem)
    scores = bench.named(generation_scores(parts, reference, bench.network.logits), "g")
    parts_bad = parts.bad
    parts.remove()
    result = {
        "model": {"name": options.samples, "fingerprint": images.checksum},
        "protocol": bench.protocol(images.count - len(parts_bad), images.size, images.crop, compared).to_dict(),
        "scores": scores,
        "unreadable": parts_bad,
        "notes": notes_of(scores, bench, options),
    }
    return bench.write(stem, "generation", result)


def reference(options: argparse.Namespace) -> dict[str, Any]:
    """Statistics of all images, and up to 10,000 of them for precision and recall, as ADM's references are."""
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
        write_arrays(options.to, shape, pixels, **numbers, protocol=json.dumps(told))
    parts.remove()
    return {"reference": str(options.to), **told, "unreadable": bad}


def cells(options: argparse.Namespace, sampler: Sampler) -> Iterator[tuple[str, Guidance]]:
    """Each guidance scale in each interval; the sampler is set to it."""
    own = sampler.sampling.guidance
    try:
        intervals = [tuple(map(float, one.split(":"))) for one in options.within or []] or [own.interval]
        wanted = [replace(own, scale=scale, interval=interval) for interval in intervals for scale in options.scale]
    except (ValueError, TypeError) as error:
        raise Usage(f"--scale or --within: {error}; an interval is LOW:HIGH, from 0 (data) to 1 (noise)") from None
    before = sampler.sampling
    for guidance in wanted:
        sampler.sampling = replace(before, guidance=guidance)
        yield f"scale{guidance.scale:g}-{guidance.interval[0]:g}-{guidance.interval[1]:g}", guidance
    sampler.sampling = before


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
