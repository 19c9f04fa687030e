"""softvq latents."""

from typing import Annotated

from softvq.cli.options import BUNDLED_TOKENIZER, Machine, Num, Outcome, TokenizerName, Whole, Working, option, written


def latents(
    *,
    model: TokenizerName = BUNDLED_TOKENIZER,
    data: Annotated[str, option("Images.")] = "emoji",
    num: Annotated[int, Num, option("How many images, evenly over them.")] = 2000,
    classes: Annotated[int, Whole, option("Of the first so many classes.")] = 20,
    seed: Annotated[int, Whole, option("The seed of UMAP.")] = 0,
    working: Working = Working(),
    common: Machine = Machine(),
) -> Outcome:
    """Draw a tokenizer's latent space: UMAP of ẑ and z (Fig. 4), codebook usage and distances, channel statistics.

    ```
    softvq latents
    softvq latents --model SoftVQVAE/softvq-l-64 --data imagenet/val --classes 20 --num 5000
    ```

    ẑ is what the encoder gives, z what the decoder gets. Each point is an image: all its tokens, beside each other.
    Writes pictures and a JSON file into --out. Needs pip install 'softvq[plots]'.
    """
    from softvq.evaluation.latent_space import latent_space

    settings = working.settings(common)
    return written(latent_space(model, data, num=num, classes=classes, seed=seed, **settings), working.out)
