"""softvq latents."""

from typing import Annotated

from softvq.cli import options as cli
from softvq.cli.options import option


def latents(
    *,
    model: cli.TokenizerName = cli.BUNDLED_TOKENIZER,
    data: Annotated[str, option("Images.")] = "emoji",
    num: Annotated[int, cli.Num, option("How many images, evenly over them.")] = 2000,
    classes: Annotated[int, cli.Whole, option("Of the first so many classes.")] = 20,
    seed: Annotated[int, cli.Whole, option("The seed of UMAP.")] = 0,
    columns: cli.Columns = cli.Columns(),
    working: cli.Working = cli.Working(),
    common: cli.Machine = cli.Machine(),
) -> cli.Outcome:
    """Draw a tokenizer's latent space: UMAP of ẑ and z (Fig. 4), codebook usage and distances, channel statistics.

    ```
    softvq latents
    softvq latents --model SoftVQVAE/softvq-l-64 --data imagenet/val --classes 20 --num 5000
    ```

    ẑ is what the encoder gives, z what the decoder gets. Each point is an image: all its tokens, beside each other.
    Writes pictures and a JSON file into --out. Needs pip install 'softvq[plots]'.
    """
    from softvq.evaluation.latent_space import latent_space

    settings = {"num": num, "classes": classes, "seed": seed, **working.settings(common)}
    return cli.written(latent_space(model, columns.of(data), **settings), working.out)
