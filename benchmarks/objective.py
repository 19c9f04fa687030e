"""Does the whole objective make reconstructions look more like images than pixel losses alone?

    pip install 'softvq[lite]'
    python benchmarks/objective.py train         half an hour on one core; resumes where it stopped
    python benchmarks/objective.py measure

Two runs go on from the bundled tokenizer with the same data, order, steps and optimizer: one with pixel and KL terms
alone, one with all of Eq. 7. In place of VGG16, DINO and DINOv2, whose weights need a network, stand EfficientNet-Lite0
(ImageNet weights from the package index) for the perceptual term and as alignment's teacher, and a PatchGAN. Measured
on the 280 validation images, in features that no run was trained on: the Fréchet distance of 8 × 8 luma patches and of
a random-weight VGG16's third stage, and the gradient energy.

`measure` takes the bundled tokenizer and those of the two runs that are there. Figures of all three on the bundled
images are written to benchmarks/results, others beside the runs.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from record import RESULTS, record
from torch import Tensor, nn

from softvq import Tokenizer
from softvq.data.images import to_bytes
from softvq.data.loader import ordered_batches, spread
from softvq.data.opening import open_source
from softvq.evaluation.frechet import frechet_distance, moments_of
from softvq.figures import enlarge, grid, save_picture, table
from softvq.losses.discriminators import PatchGANDiscriminatorConfig
from softvq.losses.total import ScheduleConfig
from softvq.optim import AdamWConfig
from softvq.pretrained.lite import NAME as LITE
from softvq.pretrained.lpips import VGG16
from softvq.recipes.emoji import EMOJI_64
from softvq.training.hooks import Validation
from softvq.training.options import RunOptions
from softvq.training.recipe import AdversarialConfig, AlignmentConfig, TokenizerRecipe
from softvq.training.run import train
from softvq.training.tokenizer import TokenizerTask

START = "softvq-emoji-64"
PIXELS = {"reconstruction": 1.0, "kl": 0.01}
VAL = "emoji-val"


def recipes(steps: int, data: str, val: str) -> list[TokenizerRecipe]:
    """Pixel and KL terms alone, and all of Eq. 7."""
    optimizer = AdamWConfig(lr=1e-4, warmup_steps=50)
    pixels = replace(
        EMOJI_64,
        name="pixels",
        data=data,
        val=val,
        init=START,
        optimizer=optimizer,
        batch_size=16,
        steps=steps,
        weights=PIXELS,
        ema_decay=0.99,
    )
    whole = replace(
        pixels,
        name="whole",
        weights={**PIXELS, "perceptual": 0.01, "alignment": 0.01, "adversarial": 0.01},
        schedules={"adversarial": ScheduleConfig(warmup=600)},  # the discriminator learns from the first step on
        perceptual=LITE,
        alignment=AlignmentConfig(LITE, hidden=256),
        adversarial=AdversarialConfig(
            PatchGANDiscriminatorConfig(width=32),
            augment=0.2,
            consistency=0.0,
            optimizer=AdamWConfig(lr=3e-4, warmup_steps=50),
        ),
    )
    return [pixels, whole]


def run(options: argparse.Namespace) -> None:
    """Train both, each in its own folder."""
    for recipe in recipes(options.steps, options.data, options.val):
        print(
            train(TokenizerTask(recipe), RunOptions(options.out / recipe.name, options.device, "bfloat16", workers=1))
        )


def frechet(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance of two sets of vectors."""
    return frechet_distance(moments_of(a), moments_of(b))


def luma(images: Tensor) -> Tensor:
    """Return the brightness (B, 1, H, W) of images."""
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def patches(images: Tensor) -> Tensor:
    """Return all 8 × 8 patches, four pixels apart, as vectors of 64 numbers."""
    return F.unfold(luma(images), 8, stride=4).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def random_vgg(images: Tensor) -> Tensor:
    """Return the features of a VGG16 with random weights, a vector a place."""
    torch.manual_seed(0)
    vgg = VGG16(1 / 4)
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return vgg(images)[2].flatten(2).transpose(1, 2).flatten(0, 1)


def gradient_energy(images: Tensor) -> float:
    """Return the mean squared difference of neighbouring pixels' brightness."""
    y = luma(images)
    return float(y.diff(dim=2).square().mean() + y.diff(dim=3).square().mean())


@torch.no_grad()
def measure(options: argparse.Namespace) -> None:
    """Print and write the figures of the models that are there, and a picture of what they make of eight images."""
    runs = {name: options.out / name for name in ("pixels", "whole")}
    missing = [name for name, place in runs.items() if not (place / "model").is_dir()]
    models = {"bundled": START, **{name: place for name, place in runs.items() if name not in missing}}
    source = open_source(options.val)
    real = torch.cat([batch.images for batch in ordered_batches(source, size=64, batch_size=70)])
    rows = {"real": {"gradient_energy": gradient_energy(real)}}
    shown = [spread(source, 64, 8)]
    for name, place in models.items():
        tokenizer = Tokenizer.from_pretrained(place)
        fake = torch.cat([tokenizer(part).images.clamp(-1, 1) for part in real.split(70)])
        scores = Validation(source, options.val).scores(tokenizer).summary()
        rows[name] = {
            "psnr": scores["psnr"],
            "ssim": scores["ssim"],
            "frechet_patches": frechet(patches(fake), patches(real)),
            "frechet_random_vgg": frechet(random_vgg(fake), random_vgg(real)),
            "gradient_energy": gradient_energy(fake),
        }
        shown.append(tokenizer(shown[0]).images.clamp(-1, 1))
    names = list(rows["bundled"])
    cells = [(name, *(f"{row[one]:.4f}" if one in row else "" for one in names)) for name, row in rows.items()]
    print(table([("", *names), *cells]))
    for name in missing:
        print(f"{name}: not measured, there is no model in {runs[name]}", file=sys.stderr)
    published = not missing and options.val == VAL
    results = options.results or (RESULTS if published else options.out)
    columns = [enlarge(to_bytes(images), 256) for images in shown]
    save_picture(grid(columns, tuple(rows)), results / "objective.png")
    record(results / "objective.json", rows)
    print(f"figures and picture: {results}/objective.json, objective.png", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--data", default=EMOJI_64.data, help="images to train on (default: %(default)s)")
    parser.add_argument("--val", default=VAL, help="images to measure on (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/objective"), help="where the runs are")
    parser.add_argument("--results", type=Path, help="where the figures go (default: see above)")
    options = parser.parse_args()
    run(options) if options.what == "train" else measure(options)


if __name__ == "__main__":
    main()
