"""softvq decode."""

from pathlib import Path
from typing import Annotated

from softvq.cli.options import BatchSize, Machine, Num, Outcome, option
from softvq.errors import counted


def decode(
    latents: Annotated[Path, option("A folder that encode wrote, or a file of latents.", name="LATENTS")],
    /,
    *,
    image: Annotated[tuple[str, ...], option("An image by name or by number, from 0; may be repeated.")] = (),
    num: Annotated[int | None, Num, option("The first so many (default: all of a file, 16 of a folder).")] = None,
    model: Annotated[str | None, option("The tokenizer (default: the one that made the latents).")] = None,
    out: Annotated[Path, option("The folder of the images.")] = Path("decoded"),
    batch_size: BatchSize = 16,
    common: Machine = Machine(),
) -> Outcome:
    """Turn latents back into images: of `softvq encode`, or of `softvq reconstruct --save-latents`.

    ```
    softvq encode emoji-val --out val_latents
    softvq decode val_latents --image 12 --image 13
    softvq decode photo.safetensors --out decoded_photo
    ```
    Writes PNG files by number and name. The tokenizer must be the one that made the latents.
    """
    from softvq.decoding import decode

    files = decode(latents, out, images=image, num=num, tokenizer=model, batch_size=batch_size, **common.settings())
    return Outcome({"images": [str(file) for file in files]}, f"{counted(len(files), 'image')} in {out}")
