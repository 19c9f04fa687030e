"""The contract of every training run: its players, the batches that they are shown, and the work of a step."""

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
    """A function that is called as `call(state, log)` after every `every` steps and after the last one."""

    every: int
    call: Callable[[TrainState, Log], None]


@runtime_checkable
class TrainingBatch(Protocol):
    """A batch as the run knows it, such as `data.loader.Batch` and `data.latents.LatentBatch`.

    `names` are those of its samples, `bad` the reasons why files could not be read, by name, and `step` is the number
    of the step that it is for.
    """

    names: Sequence[str]
    bad: Mapping[str, str]
    step: int

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> "TrainingBatch":
        """Return the batch on a device."""


def check_recipe(recipe: Any, kind: type, of: str) -> None:
    """Raise `ConfigError` when a recipe is not of this kind."""
    if not isinstance(recipe, kind):
        raise ConfigError(f"{getattr(recipe, 'name', recipe)!r} is a {type(recipe).__name__}, not the recipe of {of}.")


class Task(ABC):
    """A training run's content; `training.run.train` runs it.

    `recipe` is a frozen dataclass of every choice that changes the result, with `name`, `steps` and `batch_size` (over
    all processes). Before `train` calls any method, it sets `options` (where and how precisely the run is made) and
    `resumes` (True when a checkpoint will replace what `build` returns). Before the first step it sets `lengthened`
    (the times that the run got more steps) and `say` (a function that prints a line for the user).

    The player called `model` is the one that the run is for: `from_pretrained` on the run's folder loads its average,
    or the player itself where it has no average.
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
        """The number of parts into which each batch is split, and which are processed one after the other."""
        return getattr(self.recipe, "accumulate", 1)

    def prepare(self) -> None:
        """Open the data, and raise an error where recipe, options and data do not fit: before anything is built."""
        return

    @abstractmethod
    def build(self, weights: bool = True) -> Players:
        """Return the players before the first step, on the CPU, a function of the recipe alone.

        Without `weights`, nothing that was trained before is loaded: this serves to plan a run that is not made.
        """

    @abstractmethod
    def batches(self, start: int) -> Iterator[TrainingBatch]:
        """Yield endless batches from step `start` on, this process's share of each; each knows its `step`."""

    @abstractmethod
    def step(self, players: Players, batch: TrainingBatch) -> dict[str, Tensor]:
        """Make one step and return named scalars for the log, `loss/total` among them.

        The step evaluates the losses, goes backward, and decides when optimizers and averages are updated.
        """

    @abstractmethod
    def finish(self, players: Players) -> Saved:
        """Return the model that the run has made, whole, on every process."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what must stay the same for a run to be resumed, JSON-ready: choices, images, precision.

        It is called first, so that missing data are reported before anything is downloaded.
        """

    def about(self) -> dict[str, Any]:
        """Return the record of how the model was made, which is stored with it."""
        return {
            "recipe": json.loads(json.dumps(configs.to_dict(self.recipe))),
            "command": self.options.command or getattr(self.recipe, "command", None),
            "precision": self.options.precision,
            **({"lengthened": self.lengthened} if self.lengthened else {}),
            **recorded_plugins(self.recipe),
        }

    def content(self, players: Players) -> dict[str, Any]:
        """Return the content of `config.json` that belongs to the weights in the run's checkpoints."""
        model = players["model"].followed
        model.about = self.about()
        return model.content()

    def images(self) -> int:
        """Return about how many images there are, of which `most_bad` is the share that may be unreadable."""
        return 0

    def hooks(self, players: Players) -> list[Hook]:
        """Return the hooks that the run calls now and then besides training, for pictures and validation."""
        return []

    def example(self, rows: int) -> TrainingBatch:
        """Return a batch of `rows` blank samples to plan with, for a step at which every term of the loss counts.

        Raise `ConfigError` when the task has no such example.
        """
        raise ConfigError(f"a {type(self).__name__} cannot be planned: it gives no example of a batch.")
