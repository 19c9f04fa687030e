"""What each choice of the emoji recipe is worth: short runs that differ from it in one thing, on the same images.

    python benchmarks/ablate.py                     # every variant, 300 steps each; about 5 minutes each on one core
    python benchmarks/ablate.py --only adamw vit    # some of them
    python benchmarks/ablate.py --steps 3000 --device cuda

Prints validation PSNR and SSIM (280 bundled images, averaged weights) and writes results/ablate.json. Runs are kept
under --runs and resume where they were stopped.
"""

import argparse
from pathlib import Path
from typing import Any

from record import RESULTS, record

from softvq import RunOptions, Tokenizer, TokenizerTask, open_recipe, train
from softvq.figures import table
from softvq.training.options import Intervals

RECIPE = "emoji-64-quick"
QUANTIZER = "tokenizer.quantizer"
ADAMW = {"type": "AdamW", "lr": 2e-3, "warmup_steps": 100}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe": ("cosine, tau 0.2; Muon; local start", {}),
    "vit": ("usual ViT start", {"init": "vit"}),
    "adamw": ("AdamW at 2e-3", {"optimizer": ADAMW}),
    "adamw-vit": ("AdamW, usual ViT start", {"optimizer": ADAMW, "init": "vit"}),
    "tau-0.07": ("tau 0.07, as in the paper", {f"{QUANTIZER}.inner.tau": 0.07}),
    "eq4": (
        "Eq. 4 as printed: Euclidean, tau 0.07, codebook attached, KL at tau",
        {QUANTIZER: {"type": "Product", "inner": {"type": "SoftVQ", "codebook_size": 1024}}},
    ),
    "kl-0": ("no KL term", {"weights": {"reconstruction": 1.0, "kl": 0.0}}),
    "ae": ("no quantizer (AE)", {QUANTIZER: "AE", "weights": {"reconstruction": 1.0}}),
}


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train a variant; return its figures."""
    about, fields = VARIANTS[name]
    steps = options.steps
    own = {"steps": steps, "batch_size": options.batch_size, "data": options.data, "val": options.val}
    recipe = open_recipe(RECIPE, "tokenizer", {**fields, **own})
    intervals = Intervals(samples=steps)
    where = RunOptions(options.runs / f"{name}-{steps}", options.device, workers=1, intervals=intervals)
    figures = Tokenizer.from_pretrained(train(TokenizerTask(recipe), where)).about["figures"]
    return {"variant": name, "about": about, "steps": steps, "psnr": figures["psnr"], "ssim": figures["ssim"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32, help="images a step (default: %(default)s)")
    parser.add_argument("--data", default="emoji", help="images to train on (default: %(default)s)")
    parser.add_argument("--val", default="emoji-val", help="images to measure on (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablate"))
    parser.add_argument("--out", type=Path, default=RESULTS / "ablate.json")
    options = parser.parse_args()
    rows = [run(name, options) for name in options.only]
    cells = [(row["variant"], row["about"], f"{row['psnr']:.2f}", f"{row['ssim']:.4f}") for row in rows]
    print(table([("variant", "what it changes", "PSNR dB", "SSIM"), *cells], left=2))
    record(options.out, rows)


if __name__ == "__main__":
    main()
