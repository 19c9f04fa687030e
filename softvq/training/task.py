"""The contract of every training run: what its players are, what they are shown, and what a step does."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from softvq import config as configs
from softvq.errors import ConfigError
from softvq.saving import Saved, recorded_plugins
from softvq.training.logs import Log
from softvq.training.options import RunOptions
from softvq.training.state import Players, TrainState


@dataclass(frozen=True)
class Hook:
    """`call(state, log)` after every `every` steps and after the last one."""

    every: int
    call: Callable[[TrainState, Log], None]


@runtime_checkable
class TrainingBatch(Protocol):
    """A batch as the run knows it: `data.loader.Batch` and `data.latents.LatentBatch` are such."""

    names: Sequence[str]
    bad: Mapping[str, str]
    step: int

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> "TrainingBatch":
        """Return the batch on a device."""


class Task(ABC):
    """A training run's content; `training.run.train` runs it.

    `recipe`: a frozen dataclass of every choice that changes the result, with `name`, `steps` and `batch_size` (over
    all processes). `train` sets, before it asks for anything, `options`, where and how precisely the run is, and
    `resumes`, if a checkpoint will replace what `build` gives; before the first step `lengthened`, the times that the
    run got more steps, and `say`, a line for who waits.

    The player called `model` is what the run is for: `from_pretrained` on the run's folder loads its average, else it.
    """

    kind = "model"  # what is trained, for those who read about it

    def __init__(self, recipe: Any):
        self.recipe = recipe
        self.options: RunOptions | None = None
        self.resumes = False
        self.lengthened: list[dict[str, int]] = []
        self.say: Callable[[str], object] = lambda message: None

    @property
    def steps(self) -> int:
        """The number of steps of the run."""
        return self.recipe.steps

    @property
    def latent_shape(self) -> tuple[int, int] | None:
        """The number of tokens of an image, and of numbers of a token; None where it has none."""
        return None

    @property
    def accumulate(self) -> int:
        """The number of parts that a batch is gone through in, one after the other."""
        return getattr(self.recipe, "accumulate", 1)

    @abstractmethod
    def build(self, weights: bool = True) -> Players:
        """Return the players before the first step, on the CPU, a function of the recipe alone. Without `weights`
        nothing is loaded that others have trained: to plan a run that is not made."""

    @abstractmethod
    def batches(self, start: int) -> Iterator[TrainingBatch]:
        """Yield endless batches from step `start` on, this process's share of each; each knows its `step`."""

    @abstractmethod
    def step(self, players: Players, batch: TrainingBatch) -> dict[str, Tensor]:
        """Make one step: evaluate, go backward, and say when optimizers and averages are updated. Return named scalars
        for the log, `loss/total` among them."""

    @abstractmethod
    def finish(self, players: Players) -> Saved:
        """Return the model that the run has made, whole, on every process."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what must be the same for a run to be resumed, JSON-ready: choices, images, precision. Called first:
        data that are missing are said before anything is downloaded."""

    def about(self) -> dict[str, Any]:
        """Return what is stored with the model of how it was made."""
        return {
            "recipe": json.loads(json.dumps(configs.to_dict(self.recipe))),
            "command": self.options.command or getattr(self.recipe, "command", None),
            "precision": self.options.precision,
            **({"lengthened": self.lengthened} if self.lengthened else {}),
            **recorded_plugins(self.recipe),
        }

    def content(self, players: Players) -> dict[str, Any]:
        """Return what a checkpoint's weights are of: what `config.json` will hold."""
        model = players["model"].followed
        model.about = self.about()
        return model.content()

    def images(self) -> int:
        """Return how many images there are, about: what a share of unreadable ones is told by."""
        return 0

    def hooks(self, players: Players) -> list[Hook]:
        """Return what is done now and then besides training: pictures, validation."""
        return []

    def example(self, rows: int) -> TrainingBatch:
        """Return a batch of so many samples without contents, for a step in which every term counts: to plan with."""
        raise ConfigError(f"a {type(self).__name__} cannot be planned: it gives no example of a batch.")
