"""Tokenize a data set once: latents of every image and of its mirror, which generators are trained on.

  softvq encode emoji --out latents/
  softvq encode imagenet/train --model SoftVQVAE/softvq-l-64 --out latents/
  torchrun --nproc-per-node 8 -m softvq encode 'train-{0000..1023}.tar' --model SoftVQVAE/softvq-l-64 --out latents/

DATA is what `softvq train tokenizer --data` takes. Images are cut by ADM's centre crop. The same command goes on where
a stopped one was. Latents are stored as float16 in safetensors shards, with labels, class names, and the fingerprints
of tokenizer and images in index.json.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

from softvq.cli.runs import plugin_words


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a folder, tar shards, a Hugging Face dataset, emoji or emoji-val")
    parser.add_argument("--model", default="softvq-emoji-64", help="the tokenizer (default: the bundled one)")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the latents")
    parser.add_argument("--batch", "--batch-size", dest="batch", type=int, default=64, help="images at a time (64)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images (default: 2)")
    parser.add_argument("--shard", type=int, default=4096, help="images a shard (default: 4096)")
    parser.add_argument("--no-mirror", action="store_true", help="leave the mirrored images out")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq import distributed
    from softvq.encoding import encode

    index = encode(
        options.model,
        options.data,
        options.out,
        mirrored=not options.no_mirror,
        shard=options.shard,
        batch_size=options.batch,
        workers=options.workers,
        device=options.device,
        precision=options.precision,
    )
    count = sum(index.shards)
    if distributed.rank() == 0 and not options.json:
        skipped = f", {len(index.bad)} unreadable images left out" if index.bad else ""
        then = ["softvq", "train", "generator", "emoji-sit", "--data", str(options.out), *plugin_words(options)]
        print(f"{count} images in {len(index.shards)} shards{skipped}; try: {shlex.join(then)}")
    if distributed.rank() > 0:
        options.json = False
    distributed.stop()
    return {"latents": str(options.out), "images": count, "shards": len(index.shards), "unreadable": len(index.bad)}
