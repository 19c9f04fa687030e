"""softvq encode."""

from pathlib import Path
from typing import Annotated

from softvq.cli import options as cli
from softvq.errors import counted


def encode(
    data: Annotated[str, cli.option("A folder, tar shards, a Hugging Face dataset, emoji, emoji-val …", name="DATA")],
    /,
    *,
    out: Annotated[Path, cli.option("The folder for the latents.")],
    model: cli.TokenizerName = cli.BUNDLED_TOKENIZER,
    batch_size: cli.BatchSize = 64,
    workers: cli.Workers = 2,
    shard: Annotated[int, cli.Whole, cli.option("Images a shard.")] = 4096,
    columns: cli.Columns = cli.Columns(),
    no_mirror: Annotated[bool, cli.option("Leave the mirrored images out.")] = False,
    common: cli.Machine = cli.Machine(),
) -> cli.Outcome:
    """Tokenize a data set once: latents of every image and of its mirror, which generators are trained on.

    ```
    softvq encode emoji --out latents
    softvq encode imagenet/train --model SoftVQVAE/softvq-l-64 --out latents
    torchrun --nproc-per-node 8 -m softvq encode 'train-{0000..1023}.tar' --out latents
    ```

    DATA is what `softvq train tokenizer --data` takes. Images are cut by ADM's centre crop. The same command goes on
    where a stopped one was. Latents are stored as float16 in safetensors shards, with labels, names and classes, and
    the fingerprints of tokenizer and images in index.json. `softvq decode` turns them back.
    """
    from softvq.encoding import encode
    from softvq.recipes.all import generator_for

    settings = {"shard": shard, "batch_size": batch_size, "workers": workers, **common.settings()}
    index = encode(model, columns.of(data), out, mirrored=not no_mirror, **settings)
    count, shards = sum(index.shards), len(index.shards)
    skipped = f", {counted(len(index.bad), 'unreadable image')} left out" if index.bad else ""
    then = cli.try_next("train", "generator", generator_for(model), "--data", out, common=common)
    return cli.Outcome(
        {"latents": str(out), "images": count, "shards": shards, "unreadable": len(index.bad)},
        f"{counted(count, 'image')} in {counted(shards, 'shard')}{skipped}; {then}",
    )
