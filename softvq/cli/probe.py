"""softvq probe."""

from typing import Annotated, Literal

from softvq.cli.options import BUNDLED_TOKENIZER, Columns, Machine, Outcome, Whole, Working, option, written

Pool = Literal["flatten", "mean"]


def probe(
    *,
    model: Annotated[str, option("A tokenizer, SiT or DiT.")] = BUNDLED_TOKENIZER,
    tokenizer: Annotated[str | None, option("Of a generator (default: the one it was trained with).")] = None,
    data: Annotated[str, option("Training images or latents.")] = "emoji",
    val: Annotated[str, option("Validation images or latents.")] = "emoji-val",
    layer: Annotated[int | None, Whole, option("Of a generator: after how many blocks (default: 20).")] = None,
    time: Annotated[float | None, option("Of a generator: how noisy, 0 data … 1 noise (default: 0.5).")] = None,
    pool: Annotated[Pool | None, option("Tokens (default: flatten latents, mean of features).")] = None,
    epochs: Annotated[int | None, Whole, option("Epochs of the linear layer (default: 90).")] = None,
    probe_batch: Annotated[int | None, Whole, option("Images a step of the probe (default: 16384).")] = None,
    lr: Annotated[float | None, option("The learning rate at the start (default: 0.003).")] = None,
    seed: Annotated[int | None, Whole, option("Of first weights, the order of images, noise (default: 0).")] = None,
    quick: Annotated[bool, option("k-NN alone.")] = False,
    columns: Columns = Columns(),
    working: Working = Working(),
    common: Machine = Machine(),
) -> Outcome:
    """Probe how much of an image's class latents, or a generator's features, hold: a linear layer and k-NN.

    ```
    softvq probe
    softvq probe --model SoftVQVAE/softvq-l-64 --data imagenet/train --val imagenet/val
    softvq probe --model SoftVQVAE/sit-xl_softvq-l-64 --layer 20 --data latents --val val_latents
    ```

    Images, or what softvq encode made of them (Fig. 3, Appendix C.3). A batch norm without parameters and a linear
    layer, 90 epochs, LAMB, cosine from 0.003, batches of 16,384 (less of a small set: an epoch has as many steps as
    ImageNet's); no augmentation and no decay. Latents are read as they are, token beside token (--pool mean averages
    the tokens); features of a SiT or DiT after --layer blocks are averaged over tokens, for latents noised to --time,
    without a class. k-NN takes 20 neighbours by their cosine.
    """
    from softvq.evaluation.classifiers import ProbeConfig
    from softvq.evaluation.probe import probe

    given = {"tokenizer": tokenizer, "layer": layer, "time": time, "pool": pool, "quick": quick}
    config, sides = ProbeConfig(epochs, probe_batch, lr, seed), (columns.of(data), columns.of(val))
    return written(probe(model, *sides, config=config, **given, **working.settings(common)), working.out)
