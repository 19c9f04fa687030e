"""The options of a run, where and how it is made: none but the precision and `compile` changes its result."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from softvq import distributed
from softvq.errors import ConfigError, check_whole, is_number, is_whole
from softvq.runtime import pick_device, pick_precision


@dataclass(frozen=True)
class Intervals:
    """The steps between two lines of a run's log, two checkpoints, and two sample grids with validation scores."""

    log: int = 20
    checkpoint: int = 500
    samples: int = 1000

    def __post_init__(self):
        for name in ("log", "checkpoint", "samples"):
            if not is_whole(getattr(self, name), 1):
                every = f"{name.removesuffix('s')}_every"
                raise ConfigError(
                    f"{name} must be every so many steps, at least 1, not {getattr(self, name)!r}.", setting=every
                )


@dataclass(frozen=True)
class RunOptions:
    """The place of a run and its technical settings; `auto` stands for the best `device` and `precision` there are.

    `pretrained` holds local files of pretrained networks, by name. `parallel` says what several processes share: `ddp`
    gives each a copy of the model, `fsdp` a part of it. `most_bad` is the share of all images that may be unreadable
    before the run stops. `recompute` makes blocks keep less for the backward pass: less memory, more time. `compile`
    uses torch.compile, which rounds differently. `command` is stored as the model's command (None: the recipe's).
    `wandb` is a project at Weights & Biases to log to. `val_images` is the number of validation images that are
    measured, spread evenly over all of them and always the same.
    """

    out: Path | str
    device: torch.device | str = "auto"
    precision: str = "auto"
    workers: int = 2
    pretrained: Mapping[str, Path] = field(default_factory=dict)
    parallel: distributed.Parallel = "ddp"
    most_bad: float = 0.1
    recompute: bool = False
    compile: bool = False
    command: str | None = None
    intervals: Intervals = field(default_factory=Intervals)
    wandb: str | None = None
    val_images: int = 1000

    def __post_init__(self):
        check_whole("workers", self.workers, 0)
        check_whole("val_images", self.val_images, 1)
        if not is_number(self.most_bad, 0, 1):
            raise ConfigError(f"most_bad is a share, from 0 to 1, not {self.most_bad!r}.", setting="most_bad")
        if self.parallel not in ("ddp", "fsdp"):
            raise ConfigError(f"parallel must be 'ddp' or 'fsdp', not {self.parallel!r}.", setting="parallel")

    def settled(self) -> "RunOptions":
        """Return these options with this machine's device and precision in place of `auto`.

        It joins the group of processes that torchrun has started.
        """
        device = distributed.start(pick_device(self.device))
        return replace(
            self, out=Path(self.out), device=device, precision=pick_precision(self.precision, device, training=True)
        )

    @property
    def is_sharded(self) -> bool:
        """True when parameters are split over processes."""
        return self.parallel == "fsdp" and distributed.world_size() > 1
