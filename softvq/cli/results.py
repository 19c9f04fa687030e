"""The words that commands which measure share: how they measure, and what becomes of a result."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from softvq.cli.runs import pretrained_files


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add how images are measured."""
    add = parser.add_argument
    add("--features", metavar="NETWORK", help="inception-2015-12-05, vit_large_patch14_dinov2.lvd142m, …")
    add("--resize", choices=("tf1", "clean"), help="to the network's size: as FID is defined, or as clean-fid does")
    add("--pretrained", action="append", default=[], metavar="NAME=FILE", help="a network's weights from a file")
    if not any(action.dest == "batch" for action in parser._actions):
        add("--batch", "--batch-size", dest="batch", type=int, default=64, help="images at a time (default: 64)")
    add("--workers", type=int, default=2, help="processes that decode images (default: 2)")
    add("--out", type=Path, default=Path("evaluations"), help="the folder of results (default: evaluations)")


def measuring_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `evaluation.measuring.Settings` is made of; unfinished work is kept where the result will be."""
    found = {
        "device": options.device,
        "precision": options.precision,
        "batch_size": options.batch,
        "workers": options.workers,
        "folder": options.out,
    }
    if hasattr(options, "pretrained"):
        found |= {"features": options.features, "resize": options.resize}
        found["pretrained"] = pretrained_files(options.pretrained)
    return found


def written(options: argparse.Namespace, result: Any, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Write a result into --out and show it, once; return what was written."""
    from softvq import distributed

    whole = result.write(options.out)
    if distributed.rank() > 0:
        options.json = False
    elif not options.json:
        show(whole)
    distributed.stop()
    return whole
