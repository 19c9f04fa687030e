"""What every run has, of a tokenizer or a generator: where and how it runs, and that a resumed one is the same."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from softvq import config as configs
from softvq import distributed, files
from softvq.data.sources import Source
from softvq.data.stream import ShardStream
from softvq.errors import Notice
from softvq.runtime import Precision
from softvq.saving import UNFINISHED
from softvq.training.loop import Intervals
from softvq.training.state import Checkpoints, TrainState, check_same_run


@dataclass(frozen=True)
class RunOptions:
    """What does not change a run's result (but for the precision): where it runs and what it writes."""

    out: Path
    device: torch.device
    precision: Precision = "float32"
    workers: int = 2
    pretrained: Mapping[str, Path] = field(default_factory=dict)  # local files of pretrained ViTs, by name
    parallel: distributed.Parallel = "ddp"  # with several processes: a copy of the model each, or a share (FSDP2)
    most_bad: float = 0.1  # the share of all images that may be unreadable before the run stops
    recompute: bool = False  # blocks keep less for the backward pass: less memory, more time
    compile: bool = False  # torch.compile; rounds differently
    command: str | None = None  # what to store as the model's command; None: the recipe's
    intervals: Intervals = field(default_factory=Intervals)
    wandb: str | None = None  # the project to log to at Weights & Biases


def images_in(source: Source | ShardStream) -> int:
    """How many images there are; of a stream, about how many."""
    return source.about() if isinstance(source, ShardStream) else len(source.names)


def fingerprints(files: Mapping[str, Path]) -> dict[str, str]:
    """The beginning of each file's SHA-256, by the network's name."""
    found = {}
    for name, path in files.items():
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**24):
                digest.update(block)
        found[name] = digest.hexdigest()[:16]
    return found


def open_run(
    out: Path, description: dict[str, Any], checkpoints: Checkpoints, state: TrainState, content: dict[str, Any]
) -> dict[str, Any]:
    """Start a run in `out`, or load the last checkpoint of the one that is there; gives the checkpoint's `state.json`.

    `content`: what says of which model the checkpoints hold the weights (see `saving`), kept in `model.json`.

    `ConfigError` when `out` holds another run, or a finished model without the checkpoints that could say so.
    """
    if (out / "run.json").exists():
        check_same_run(out / "run.json", description)
    if (out / UNFINISHED).exists():
        before = files.read_json(out / UNFINISHED).get("about", {}).get("plugins", {})
        if before != content["about"].get("plugins", {}):
            warnings.warn(f"the plugins have changed since the run in {out} began.", Notice, stacklevel=3)
    if checkpoints.all():
        if distributed.rank() == 0 and not (out / UNFINISHED).exists():  # a run of an earlier version
            files.write_json(out / UNFINISHED, content)
        return checkpoints.load(state)
    if (out / "model").exists():
        raise configs.ConfigError(
            f"{out} holds a finished model and no checkpoints; use another folder.", setting="out"
        )
    distributed.barrier()  # all have looked
    if distributed.rank() == 0:
        files.write_json(out / UNFINISHED, content)
        files.write_json(out / "run.json", description)
    return {}
