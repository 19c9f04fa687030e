"""Fit a tokenizer's latent mean and standard deviation on your images, and store them with its weights.

  softvq statistics runs/mine/model --data my_photos/

`encode` divides these out, so that generators see latents of zero mean and unit variance.
"""

import argparse
import sys
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model folder, a bundled model or a hub name")
    parser.add_argument("--data", required=True, help="emoji, or a folder of images")
    parser.add_argument("--images", type=int, default=10_000, help="how many to use at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the folder to write (default: the model's own)")
    parser.add_argument("--batch-size", type=int, default=32)


def run(options: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from softvq import files, hub
    from softvq.cli.main import Failure, Usage
    from softvq.data.opening import listing
    from softvq.models import load_tokenizer
    from softvq.runtime import autocast, pick_device, pick_precision
    from softvq.training.tokenizer import fit_statistics, statistics_batches

    if options.images < 2 or options.batch_size < 1:
        raise Usage("--images must be at least 2 and --batch-size at least 1")
    if options.out is None and not is_ours(Path(options.model)):
        raise Usage(f"{options.model} is no folder in our format to write to; name one with --out")
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device, training=False)
    tokenizer = load_tokenizer(options.model).to(device)
    source = listing(options.data, options.images)
    used, bad = 0, {}

    def images(bar: tqdm):
        nonlocal used
        for batch in statistics_batches(source, tokenizer.config.image_size, options.images, options.batch_size):
            used += len(batch.images)
            bad.update(batch.bad)
            bar.update(len(batch.images) + len(batch.bad))
            yield batch.images

    total = min(options.images, len(source.names))
    bar = tqdm(total=total, unit="image", disable=not sys.stderr.isatty())
    with bar, autocast(device, precision):
        mean, std = fit_statistics(tokenizer, images(bar))
    for reason in bad.values():
        print(f"skipped: {reason}", file=sys.stderr)
    if (std == 0).any():
        raise Failure(f"{int((std == 0).sum())} latent channels are the same for all these images; give more of them.")
    out = options.out or hub.find(options.model)
    tokenizer.set_statistics(mean, std)
    stored = files.read_tensors(hub.find(options.model) / hub.WEIGHTS)
    tokenizer.save_pretrained(out, stored.get("decoder.mask_token", mean).dtype)
    if not options.json:
        print(f"latent mean {mean.mean():.4g}, standard deviation {std.mean():.4g} (over channels); stored in {out}")
    return {"model": str(out), "images": used, "skipped": bad, "mean": mean.tolist(), "std": std.tolist()}


def is_ours(folder: Path) -> bool:
    """Say if a folder holds a model (or the run of one) that this package wrote."""
    from softvq import files, hub

    if not folder.is_dir():
        return False
    config = hub.find(folder) / hub.CONFIG
    return config.is_file() and "format" in files.read_json(config)
