"""`softvq evaluate reconstruction`."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softvq.cli.evaluating import Bench, DataImages, is_emoji, none_readable, notes_of, patch_of, write_result
from softvq.cli.main import Usage
from softvq.cli.representing import CodebookCounts
from softvq.evaluation.appearance import appearance, appearance_scores, periods_for
from softvq.evaluation.frechet import frechet_distance
from softvq.evaluation.generation import appearance_of, moments
from softvq.evaluation.latent_space import codebook_scores
from softvq.evaluation.metrics import as_bytes, psnr, ssim
from softvq.evaluation.parts import Part, Parts
from softvq.pipeline import load_tokenizer
from softvq.pretrained import lpips as perceptual
from softvq.runtime import autocast


def reconstruction(options: argparse.Namespace) -> dict[str, Any]:
    """rFID, PSNR, SSIM, LPIPS, codebook usage and entropy of a tokenizer."""
    tokenizer = load_tokenizer(options.model)
    emoji = is_emoji(tokenizer)
    data = options.data or tokenizer.about.get("domain")
    if data is None:
        raise Usage(f"{options.model} does not say which images it is for; give --data")
    wants_lpips = not emoji if options.lpips is None else options.lpips
    images = DataImages(data, tokenizer.config.image_size, options)
    bench = Bench(options, emoji, (perceptual.NAME,) if wants_lpips else (), patch_of(tokenizer))
    vgg = bench.files.get(perceptual.NAME)
    judge = perceptual.LPIPS.load(perceptual.NAME, vgg).to(bench.device) if wants_lpips else None
    tokenizer.to(bench.device)
    model = {"name": str(options.model), "fingerprint": tokenizer.fingerprint}
    stem = f"reconstruction-{Path(options.model).name}-{bench.stem(model, data, images.checksum, wants_lpips)}"
    parts = Parts(options.out / f"{stem}.parts", images.count)
    parts.fill(lambda numbers, done: _part(tokenizer, bench, images, numbers, done, judge), data)
    scores, bad = _scores(parts, bench, images.size), parts.bad
    if not scores["images"]:
        raise none_readable(images, parts)
    count = scores.pop("images")
    compared = (data, parts.checksum, count)
    result = {
        "model": {**model, "recipe": tokenizer.about.get("recipe", {}).get("name")},
        "tokens": tokenizer.config.tokens,
        "protocol": bench.protocol(count, images.size, images.crop, compared).to_dict(),
        "scores": scores,
        "unreadable": bad,
        "notes": notes_of(scores, bench, options),
    }
    return write_result(options.out, stem, "reconstruction", result, parts.folder)


@torch.no_grad()
def _part(tokenizer: Any, bench: Bench, images: DataImages, numbers: range, done: Any, judge: Any) -> Part:
    counts = CodebookCounts(getattr(tokenizer, "quantizer", None))
    rows: list[dict[str, Tensor]] = []
    bad: dict[str, str] = {}
    digest = hashlib.sha256()
    for batch in images.tensors(numbers, bad):
        digest.update(as_bytes(batch).contiguous().numpy())
        batch = batch.to(bench.device)
        with autocast(bench.device, bench.precision):
            output = tokenizer(batch).images.float().clamp(-1, 1)
        row = {"psnr": psnr(output.cpu(), batch.cpu()), "ssim": ssim(output.cpu(), batch.cpu())}
        if judge is not None:
            row["lpips"] = judge(output, batch).double()
        for side, pixels in (("made", output), ("real", batch)):
            seen = as_bytes(pixels)
            rows_of = {**bench.features(seen), **appearance(seen.cpu(), periods_for(images.size, bench.patch))}
            row |= {f"{side}/{name}": found for name, found in rows_of.items()}
        rows.append(row)
        done(len(batch))
    tensors = {name: torch.cat([row[name].cpu() for row in rows]) for name in (rows[0] if rows else {})}
    return Part({**tensors, **counts.tensors()}, bad, digest.hexdigest())


def _scores(parts: Parts, bench: Bench, size: int) -> dict[str, Any]:
    psnrs = parts.all("psnr")
    if psnrs is None:
        return {"images": 0}
    scores: dict[str, Any] = {"images": len(psnrs)}
    made, real = moments(parts, "made/pool"), moments(parts, "real/pool")
    found: dict[str, Any] = {"fd": frechet_distance(made, real)}
    if (spatial := moments(parts, "made/spatial")) is not None:
        found["spatial_fd"] = frechet_distance(spatial, moments(parts, "real/spatial"))
    scores |= bench.named(found, "r")
    for name in ("psnr", "ssim", "lpips"):
        if (values := parts.all(name)) is not None:
            scores[name] = float(values.double().mean())
    sides = [appearance_of(parts, f"{side}/") for side in ("made", "real")]
    scores |= appearance_scores(*sides, size, periods_for(size, bench.patch))
    if (counts := parts.all("counts")) is not None:
        scores |= codebook_scores(counts.sum(0), parts.all("entropy").sum(0))
    return {**scores, "reliable": made.reliable}
