"""Tables and figures of measured results, beside the paper's: Markdown from a folder of what the other commands wrote.

  softvq report                                  evaluations/ → evaluations/report.md
  softvq report evaluations/ --out results.md

Reads what softvq evaluate, probe, latents and bench wrote. A table holds only figures of one protocol (images, crop,
feature network and its weights, resizing, reference, precision); others get a table of their own. The paper's figures
stand beside those of its recipes, and the table says whether its protocol is the paper's.
"""

import argparse
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, default=Path("evaluations"), help="default: evaluations")
    parser.add_argument("--out", type=Path, help="the Markdown file (default: report.md in the folder)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from softvq.evaluation.report import report

    found = report(options.folder, options.out)
    if not options.json:
        print(f"{found.results} results in {found.file}" + "".join(f"\nleft out: {r}" for r in found.left_out))
    figures = [str(figure) for figure in found.figures]
    return {
        "report": str(found.file),
        "results": found.results,
        "figures": figures,
        "left_out": list(found.left_out),
    }
