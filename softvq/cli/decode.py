"""Turn saved latents back into images.

  softvq decode photo.safetensors --out decoded/

Latents are what `softvq reconstruct --save-latents` wrote: a tensor `latents` (N, L, D), normalised.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from softvq.cli.options import BUNDLED_TOKENIZER


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("latents", type=Path, metavar="FILE", help="a safetensors file of latents")
    parser.add_argument("--model", help=f"the model (default: the one that made the latents, else {BUNDLED_TOKENIZER})")
    parser.add_argument("--out", type=Path, default=Path("decoded"), help="the images' folder (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16)


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq.cli.main import Failure, Usage
    from softvq.data.images import to_image
    from softvq.figures import save_picture
    from softvq.files import read_metadata, read_tensors
    from softvq.models import Coder, load_tokenizer
    from softvq.runtime import pick_device

    if options.batch_size < 1:
        raise Usage("--batch-size must be at least 1")
    tensors = read_tensors(options.latents)
    if "latents" not in tensors or tensors["latents"].ndim != 3:
        raise Failure(f"{options.latents} holds no tensor 'latents' of shape (N, L, D).")
    latents, metadata = tensors["latents"], read_metadata(options.latents)
    if not latents.isfinite().all():
        raise Failure(f"{options.latents} holds latents that are NaN or infinite; the file is damaged.")
    options.model = options.model or metadata.get("model", BUNDLED_TOKENIZER)
    names = _names(metadata, len(latents))
    tokenizer = load_tokenizer(options.model).to(pick_device(options.device))
    coder = Coder(tokenizer, options.precision)
    own = (tokenizer.config.tokens, tokenizer.config.latent_dim)
    if latents.shape[1:] != own:
        raise Failure(
            f"{options.latents} holds latents of {latents.shape[1]} × {latents.shape[2]}, "
            f"but {options.model} decodes {own[0]} × {own[1]}; give the model that made them."
        )
    written = []
    for start in range(0, len(latents), options.batch_size):
        images = coder.decode(latents[start : start + options.batch_size].float())
        for number, image in enumerate(images, start):
            path = options.out / f"{number:06d}{names[number]}.png"
            save_picture(to_image(image), path)
            written.append(str(path))
    if not options.json:
        print(f"wrote {len(written)} images to {options.out}")
    return {"model": options.model, "images": written}


def _names(metadata: dict[str, str], count: int) -> list[str]:
    """Return what is put behind each image's number: the name it was encoded from, where the file says so."""
    try:
        names = [f"-{Path(name).stem}" for name in json.loads(metadata["names"])]
    except (KeyError, ValueError, TypeError):
        names = []
    return names if len(names) == count else [""] * count
