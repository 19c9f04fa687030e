"""Encode and decode images, and show what came back.

  softvq reconstruct photo.jpg                       original | reconstruction | error in reconstruction.png
  softvq reconstruct photos/ --model runs/mine/model --out mine.png
  softvq reconstruct photo.jpg --save-latents photo.safetensors    then: softvq decode photo.safetensors

PSNR and SSIM compare clamped 8-bit images at the model's size, SSIM with a Gaussian window of sigma 1.5.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from softvq.cli.main import Usage
from softvq.cli.options import RELEASED, add_fit_option, add_model_option


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add_model_option(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("reconstruction.png"), help="the picture (default: %(default)s)"
    )
    parser.add_argument("--save-latents", type=Path, metavar="FILE", help="also write the latents, as safetensors")
    add_fit_option(parser)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--shown", type=int, default=64, help="images in the picture at most (default: %(default)s)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq.evaluation.comparison import compare
    from softvq.figures import save_picture
    from softvq.models import Coder, load_tokenizer
    from softvq.runtime import pick_device

    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise Usage(f"--out {options.out}: the picture is written as .png or .jpg")
    tokenizer = load_tokenizer(options.model).to(pick_device(options.device))
    coder = Coder(tokenizer, options.precision)
    found = compare(
        coder,
        options.images,
        fit=options.fit,
        batch_size=options.batch_size,
        shown=options.shown,
        latents=options.save_latents is not None,
    )
    for reason in found.unreadable.values():
        print(f"skipped: {reason}", file=sys.stderr)
    save_picture(found.picture, options.out)
    if options.save_latents:
        save_latents(options.save_latents, found.latents, [row["image"] for row in found.rows], options.model)
    size = tokenizer.config.image_size
    result = {
        "model": str(options.model),
        "images": found.rows,
        **found.means,
        "latent_floats": coder.latent_floats,
        "compression": 3 * size**2 / coder.latent_floats,
        "fit": options.fit,
        "size": size,
        "convention": found.convention,
        "picture": str(options.out),
        "skipped": found.unreadable,
    }
    if found.warning:
        result["warning"] = f"{found.warning} The authors' released models, such as {RELEASED}, know photographs."
        print(result["warning"], file=sys.stderr)
    if not options.json:
        print_result(result)
    return result


def save_latents(path: Path, latents: Any, names: list[str], model: str) -> None:
    """Latents (N, L, D), normalised, with the images' names and the model in the file's metadata."""
    from softvq.files import write_tensors

    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    write_tensors(path, {"latents": latents}, {"names": json.dumps(names), "model": model})


def print_result(result: dict[str, Any]) -> None:
    width = max(5, *(len(row["image"]) for row in result["images"]))
    print(f"{'image':{width}}  PSNR dB   SSIM")
    for row in result["images"]:
        print(f"{row['image']:{width}}  {row['psnr']:7.2f}  {row['ssim']:.4f}")
    if len(result["images"]) > 1:
        print(f"{'mean':{width}}  {result['psnr']:7.2f}  {result['ssim']:.4f}")
    print(
        f"{result['latent_floats']} latent floats an image, {result['compression']:.1f} times fewer numbers than the "
        f"{result['size']}×{result['size']} pixels; picture: {result['picture']}"
    )
