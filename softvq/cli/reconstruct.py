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
    import torch
    from tqdm import tqdm

    from softvq.cli.main import Failure, Usage
    from softvq.cli.models import Runner, image_paths, read_images
    from softvq.evaluation.metrics import CONVENTION, psnr, ssim
    from softvq.figures import comparison, save_picture

    if options.batch_size < 1 or options.shown < 1:
        raise Usage("--batch-size and --shown must be at least 1")
    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise Usage(f"--out {options.out}: the picture is written as .png or .jpg")
    paths = image_paths(options.images)
    runner = Runner(options)
    rows, shown, latents, bad = [], [], [], {}
    bar = tqdm(total=len(paths), unit="image", disable=len(paths) < 50 or not sys.stderr.isatty())
    for names, images in _batches(read_images(paths, runner.size, options.fit, bad), options.batch_size):
        codes = runner.encode(images)
        output = runner.decode(codes)
        values = zip(names, psnr(output, images).tolist(), ssim(output, images).tolist(), strict=True)
        rows += [{"image": str(name), "psnr": p, "ssim": s} for name, p, s in values]
        if options.save_latents:
            latents.append(codes)
        if (room := options.shown - sum(len(x) for x, _ in shown)) > 0:
            shown.append((images[:room], output[:room]))
        bar.update(len(names))
    bar.close()
    if len(bad) == 1 and not rows:
        raise Failure(next(iter(bad.values())))
    for reason in bad.values():
        print(f"skipped: {reason}", file=sys.stderr)
    if not rows:
        raise Failure(f"none of the {len(bad)} images can be read.")
    save_picture(comparison(*(torch.cat(part) for part in zip(*shown, strict=True))), options.out)
    if options.save_latents:
        save_latents(options.save_latents, torch.cat(latents), [row["image"] for row in rows], options.model)
    means = {key: sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim")}
    result = {
        "model": str(options.model),
        "images": rows,
        **means,
        "latent_floats": runner.latent_floats,
        "compression": 3 * runner.size**2 / runner.latent_floats,
        "fit": options.fit,
        "size": runner.size,
        "convention": CONVENTION,
        "picture": str(options.out),
        "skipped": bad,
    }
    if warning := outside_of_domain(runner.tokenizer.about, rows):
        print(warning, file=sys.stderr)
        result["warning"] = warning
    if not options.json:
        print_result(result)
    return result


def _batches(pairs: Any, size: int):
    import torch

    names, images = [], []
    for name, image in pairs:
        names.append(name)
        images.append(image)
        if len(names) == size:
            yield names, torch.stack(images)
            names, images = [], []
    if names:
        yield names, torch.stack(images)


def save_latents(path: Path, latents: Any, names: list[str], model: str) -> None:
    """Latents (N, L, D), normalised, with the images' names and the model in the file's metadata."""
    from softvq.files import write_tensors

    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    write_tensors(path, {"latents": latents}, {"names": json.dumps(names), "model": model})


def outside_of_domain(about: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    """A sentence when images come back worse than the first percentile of what the model was trained to know."""
    floor = about.get("figures", {}).get("psnr_floor")
    worse = [row for row in rows if floor is not None and row["psnr"] < floor]
    if not worse:
        return None
    which = worse[0]["image"] if len(worse) == 1 else f"{len(worse)} of {len(rows)} images"
    return (
        f"{which} came back below {floor:.1f} dB, worse than 99 % of this model's validation images "
        f"({about.get('domain', 'its own data')}): it does not know such images. The authors' released models, such as "
        f"{RELEASED}, know photographs."
    )


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
