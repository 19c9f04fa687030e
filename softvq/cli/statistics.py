"""softvq statistics."""

import sys
from pathlib import Path
from typing import Annotated

from softvq.cli.options import BatchSize, Columns, Machine, Num, Outcome, option
from softvq.errors import counted


def statistics(
    model: Annotated[str, option("A tokenizer: a folder, a bundled model or a hub name.", name="MODEL")],
    /,
    *,
    data: Annotated[str, option("emoji, or images of your own.")],
    num: Annotated[int, Num, option("How many images to use at most.")] = 10_000,
    out: Annotated[Path | None, option("The folder to write (default: the model's own).")] = None,
    columns: Columns = Columns(),
    batch_size: BatchSize = 32,
    common: Machine = Machine(),
) -> Outcome:
    """Fit a tokenizer's latent mean and standard deviation on your images, and store them with its weights.

    ```
    softvq statistics runs/mine --data my_photos/
    ```

    `encode` divides these out, so that generators see latents of zero mean and unit variance.
    """
    from softvq.statistics import fit_latent_statistics

    fitted = fit_latent_statistics(model, columns.of(data), out, num=num, batch_size=batch_size, **common.settings())
    for reason in fitted.unreadable.values():
        print(f"skipped: {reason}", file=sys.stderr)
    result = {"model": str(fitted.model), "images": fitted.images, "unreadable": fitted.unreadable}
    mean, std = fitted.mean.mean(), fitted.std.mean()
    return Outcome(
        {**result, "mean": fitted.mean.tolist(), "std": fitted.std.tolist()},
        f"latent mean {mean:.4g}, standard deviation {std:.4g} (over channels), of {counted(fitted.images, 'image')}; "
        f"stored in {fitted.model}",
    )
