"""Does the whole objective make reconstructions look more like images than pixel losses alone?

    pip install 'softvq[lite]'
    python benchmarks/objective.py train         half an hour on one core; resumes where it stopped
    python benchmarks/objective.py measure

Two runs go on from the bundled tokenizer with the same data, order, steps and optimizer: one with pixel and KL terms
alone, one with all of Eq. 7. In place of VGG16, DINO and DINOv2, whose weights need a network, stand EfficientNet-Lite0
(ImageNet weights from the package index) for the perceptual term and as alignment's teacher (stride 8: 8 × 8 positions
for 64 latents), and a PatchGAN. Measured on the 280 validation images, in features that no run was trained on: the
Fréchet distance of 8 × 8 luma patches and of a random-weight VGG16's third stage, and the gradient energy.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softvq import Tokenizer
from softvq.cli.hooks import evaluate, save_picture, spread
from softvq.data.images import to_bytes
from softvq.data.loader import ordered_batches
from softvq.data.sources import open_listed
from softvq.evaluation.frechet import frechet_distance
from softvq.evaluation.pictures import enlarge, grid
from softvq.losses.discriminators import PatchGANDiscriminatorConfig
from softvq.losses.total import ScheduleConfig
from softvq.optim import AdamWConfig
from softvq.pretrained.lite import Lite0
from softvq.pretrained.lpips import VGG16
from softvq.recipes.emoji import EMOJI_64
from softvq.training.recipe import AdversarialConfig, AlignmentConfig, TokenizerRecipe
from softvq.training.step import Frozen
from softvq.training.tokenizer import RunOptions, train

START = "softvq-emoji-64"
PIXELS = {"reconstruction": 1.0, "kl": 0.01}


class Perceptual(Lite0):
    """Differences of features of unit length, as LPIPS takes them, with equal weights."""

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            references = super().forward(targets)
        pairs = zip(super().forward(images), references, strict=True)
        return sum((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2)) for a, b in pairs)


class LiteTeacher(Lite0):
    """Features of stride 8, one vector a position."""

    width = 40

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(images)[0].flatten(2).transpose(1, 2)


def recipes(steps: int) -> dict[str, TokenizerRecipe]:
    optimizer = AdamWConfig(lr=1e-4, warmup_steps=50)
    common = replace(
        EMOJI_64, init=START, optimizer=optimizer, batch_size=16, steps=steps, weights=PIXELS, ema_decay=0.99
    )
    whole = replace(
        common,
        weights={**PIXELS, "perceptual": 0.01, "alignment": 0.01, "adversarial": 0.01},
        schedules={"adversarial": ScheduleConfig(warmup=600)},  # the discriminator learns from the first step on
        perceptual="efficientnet_lite0",
        alignment=AlignmentConfig("efficientnet_lite0", hidden=256),
        adversarial=AdversarialConfig(
            PatchGANDiscriminatorConfig(width=32),
            augment=0.2,
            consistency=0.0,
            optimizer=AdamWConfig(lr=3e-4, warmup_steps=50),
        ),
    )
    return {"pixels": replace(common, name="pixels"), "whole": replace(whole, name="whole")}


def run(out: Path, steps: int, device: torch.device) -> None:
    for name, recipe in recipes(steps).items():
        options = RunOptions(out / name, device, "bfloat16", workers=1)
        networks = Frozen()
        if name == "whole":
            networks = Frozen(LiteTeacher((4,)).to(device), Perceptual((0, 2, 4, 10)).to(device))
        print(train(recipe, options, frozen=networks))


def frechet(a: Tensor, b: Tensor) -> float:
    sides = [Gaussian.empty(a.shape[1]) for _ in range(2)]
    for side, features in zip(sides, (a, b), strict=True):
        side.add(features)
    return frechet_distance(*sides)


def luma(images: Tensor) -> Tensor:
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def patches(images: Tensor) -> Tensor:
    return F.unfold(luma(images), 8, stride=4).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def random_vgg(images: Tensor) -> Tensor:
    torch.manual_seed(0)
    vgg = VGG16(1 / 4)
    for module in vgg.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return vgg(images)[2].flatten(2).transpose(1, 2).flatten(0, 1)


def gradient_energy(images: Tensor) -> float:
    y = luma(images)
    return float(y.diff(dim=2).square().mean() + y.diff(dim=3).square().mean())


@torch.no_grad()
def measure(out: Path) -> None:
    models = {"bundled": START, "pixels": out / "pixels", "whole": out / "whole"}
    source = open_listed("emoji-val")
    real = torch.cat([batch.images for batch in ordered_batches(source, size=64, batch_size=70)])
    rows = {"real": {"gradient_energy": gradient_energy(real)}}
    shown = [spread(source, 64, 8)]
    for name, place in models.items():
        tokenizer = Tokenizer.from_pretrained(place)
        fake = torch.cat([tokenizer(part).images.clamp(-1, 1) for part in real.split(70)])
        scores = evaluate(tokenizer, "emoji-val").summary()
        rows[name] = {
            "psnr": scores["psnr"],
            "ssim": scores["ssim"],
            "frechet_patches": frechet(patches(fake), patches(real)),
            "frechet_random_vgg": frechet(random_vgg(fake), random_vgg(real)),
            "gradient_energy": gradient_energy(fake),
        }
        shown.append(tokenizer(shown[0]).images.clamp(-1, 1))
    print(json.dumps(rows, indent=1))
    results = Path(__file__).parent / "results"
    (results / "objective.json").write_text(json.dumps(rows, indent=1) + "\n")
    columns = [enlarge(to_bytes(images), 256) for images in shown]
    save_picture(grid(columns, ("real", "bundled", "pixels", "whole")), results / "objective.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=Path("runs/objective"))
    options = parser.parse_args()
    run(options.out, options.steps, options.device) if options.what == "train" else measure(options.out)


if __name__ == "__main__":
    main()
