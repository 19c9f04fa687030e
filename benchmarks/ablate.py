"""What each choice of the emoji recipe is worth: short runs that differ from it in one thing, on the same images.

    python benchmarks/ablate.py                     # every variant, 300 steps each; about 5 minutes each on one core
    python benchmarks/ablate.py --only adamw vit    # some of them
    python benchmarks/ablate.py --device cuda       # options that are not its own go to `softvq train`

Prints validation PSNR (280 bundled images, EMA weights) and writes benchmarks/results/ablate.json. Runs are kept under
--runs and resume where they were stopped.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from softvq.files import write_json

RECIPE = "emoji-64-quick"
QUANTIZER = "tokenizer.quantizer"
ADAMW = json.dumps({"type": "AdamW", "lr": 2e-3, "warmup_steps": 100})
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "recipe": ("cosine, tau 0.2; Muon; local start", {}),
    "vit": ("usual ViT start", {"init": "vit"}),
    "adamw": ("AdamW at 2e-3", {"optimizer": ADAMW}),
    "adamw-vit": ("AdamW, usual ViT start", {"optimizer": ADAMW, "init": "vit"}),
    "tau-0.07": ("tau 0.07, as in the paper", {f"{QUANTIZER}.inner.tau": "0.07"}),
    "eq4": (
        "Eq. 4 as printed: Euclidean, tau 0.07, codebook attached, KL at tau",
        {QUANTIZER: json.dumps({"type": "Product", "inner": {"type": "SoftVQ", "codebook_size": 1024}})},
    ),
    "kl-0": ("no KL term", {"weights": json.dumps({"reconstruction": 1.0, "kl": 0.0})}),
    "ae": ("no quantizer (AE)", {QUANTIZER: "AE", "weights": json.dumps({"reconstruction": 1.0})}),
}


def run(name: str, steps: int, runs: Path, more: list[str]) -> dict:
    """One variant's figures, from its run's log."""
    about, fields = VARIANTS[name]
    words = [word for field, value in fields.items() for word in (f"--{field}", value)]
    out = runs / f"{name}-{steps}"
    own = ["--out", str(out), "--steps", str(steps), "--sample-every", str(steps), "--workers", "1"]
    command = ["softvq", "train", "tokenizer", RECIPE, *own, *words, *more]
    subprocess.run([sys.executable, "-m", *command], check=True)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "val/psnr" in line)
    return {"variant": name, "about": about, "steps": steps, "psnr": last["val/psnr"], "ssim": last["val/ssim"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablate"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ablate.json")
    options, more = parser.parse_known_args()
    rows = [run(name, options.steps, options.runs, more) for name in options.only]
    for row in rows:
        print(f"{row['psnr']:6.2f} dB  SSIM {row['ssim']:.4f}  {row['variant']:10} {row['about']}")
    write_json(options.out, {"command": shlex.join(["python", "benchmarks/ablate.py", *sys.argv[1:]]), "rows": rows})


if __name__ == "__main__":
    main()
