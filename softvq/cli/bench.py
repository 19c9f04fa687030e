"""What tokenizers and generators cost: parameters, multiply-accumulates, memory and throughput, beside the paper's.

  softvq bench cost                            all rows of Tables 1 and 2, and the tokenizers
  softvq bench cost sit-xl-64 sit-xl-2-kl --batch 1 --repeats 1
  softvq bench cost --no-time                  counts alone, in seconds
  softvq bench cost --model emoji-sit --model softvq-emoji-64

The protocol: random weights (cost does not depend on them); --precision, --batch images at a time on one device; an
image takes --steps evaluations of a SiT or DiT, with --guidance each of a doubled batch; the time of an evaluation is
the fastest of --repeats after one that warms up, and images/s = batch / (steps × evaluation + decoding). A MAR takes
--steps unmasking steps (at most its tokens), each an evaluation with the mean number of known tokens, and 100 of its
head a token. Multiply-accumulates are those of linear and convolutional layers, one image, one evaluation, no guidance,
as the paper counts (its Gflops). Memory is what tensors hold at once in one evaluation, weights included.
"""

import argparse
from pathlib import Path
from typing import Any

from softvq.cli.results import written


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", choices=("cost",), help="what to measure")
    add("rows", nargs="*", metavar="ROW", help="of those that --list names (default: all)")
    add("--list", action="store_true", help="name the rows and stop")
    add("--model", action="append", default=[], help="a model of your own, by name or folder, instead of rows")
    add("--batch", type=int, help="images at a time (default: 64, on a CPU 1)")
    add("--steps", type=int, default=50, help="evaluations an image (default: 50; the paper's SDE takes 250)")
    add("--guidance", type=float, default=1.75, help="guidance scale; 1 is none (default: 1.75)")
    add("--repeats", type=int, default=3, help="default: 3")
    add("--no-time", action="store_true", help="parameters and multiply-accumulates alone")
    add("--out", type=Path, default=Path("evaluations"), help="the folder of results (default: evaluations)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq.evaluation.cost import ROWS, cost

    if options.list:
        for name, row in ROWS.items() if not options.json else ():
            print(f"{name:18} Table {row.table}: {row.about}")
        return {"rows": list(ROWS)}
    result = cost(
        options.rows,
        models=options.model,
        steps=options.steps,
        guidance=options.guidance,
        batch_size=options.batch,
        repeats=options.repeats,
        timed=not options.no_time,
        device=options.device,
        precision=options.precision,
    )
    return written(options, result, _show)


_COLUMNS = {  # of a row: heading, width and digits
    "parameters": ("M parameters", 12, 1),
    "gmacs": ("GMACs", 8, 2),
    "published_gmacs": ("paper", 8, 2),
    "decode_gmacs": ("decoder", 8, 2),
    "memory_gb": ("GB", 6, 2),
    "evaluation_ms": ("ms/evaluation", 13, 1),
    "decode_ms": ("ms/decode", 10, 1),
    "images_per_second": ("images/s", 9, 3),
    "published_images_per_second": ("paper", 7, 2),
}


def _show(result: dict[str, Any]) -> None:
    shown = [key for key in _COLUMNS if any(row.get(key) is not None for row in result["rows"].values())]
    width = max(map(len, result["rows"]))
    print(" " * width, *(f"{_COLUMNS[key][0]:>{_COLUMNS[key][1]}}" for key in shown))
    for name, row in result["rows"].items():
        cells = []
        for key in shown:
            _, space, digits = _COLUMNS[key]
            value = row.get(key)
            cells.append(f"{'' if value is None else format(value, f'.{digits}f'):>{space}}")
        print(f"{name:{width}}", *cells)
    p = result["protocol"]
    print(f"\n{p['device']}, PyTorch {p['torch']}, {p['precision']}, batch {p['batch']}, {p['steps']} steps,", end=" ")
    print(f"guidance {p['guidance']:g}\n{result['file']}")
