"""Put a trained generator into the package, with the figures that `generators.py` measured.

python benchmarks/bundle_generator.py runs/emoji-sit
"""

import argparse
import json
from pathlib import Path

import torch

from softvq import hub
from softvq.generators.base import Generator

RESULTS = Path(__file__).parent / "results" / "generators.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run's folder, as it was given to generators.py")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that generators.py wrote")
    parser.add_argument("--into", type=Path, default=hub.BUNDLED, help="where the model's folder goes")
    options = parser.parse_args()
    generator = Generator.from_pretrained(options.run)
    measured = json.loads(options.results.read_text())
    figures = {k: measured[options.run][k] for k in ("images", "balanced_accuracy", "nearest", "frechet")}
    held = {f"validation_{k}": measured["validation images"][k] for k in figures}
    generator.about["figures"] = {**figures, **held, "command": f"python benchmarks/generators.py {options.run}"}
    name = generator.about["recipe"]["name"]
    generator.save_pretrained(options.into / name, torch.float16)
    size = (options.into / name / hub.WEIGHTS).stat().st_size
    print(f"{name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
