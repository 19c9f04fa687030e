"""The options that mean the same in every command, and the outcome that a command returns.

Imports nothing heavy, so that `--help` answers at once.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from cyclopts import Group, Parameter

from softvq.errors import ConfigError

BUNDLED_TOKENIZER = "softvq-emoji-64"
BUNDLED_GENERATOR = "emoji-sit"
Interval = tuple[float, float]
Precision = Literal["auto", "float32", "bfloat16"]
Resizing = Literal["tf1", "clean"]
Square = Literal["crop", "resize", "pad"]


def option(text: str, **more: Any) -> Parameter:
    """Return how an option is explained by `--help`, and what else cyclopts is to know of it."""
    return Parameter(help=text, **more)


def _whole(hint: Any, tokens: Sequence[Any]) -> Any:
    """Return whole numbers, which cyclopts would round from others without a word."""
    for token in tokens:
        if not re.fullmatch(r"[-+]?[0-9]+", token.value):
            raise ValueError(f"{token.value!r} is no whole number")
    numbers = tuple(int(token.value) for token in tokens)
    return numbers if get_origin(hint) is tuple else numbers[0]


Whole = Parameter(converter=_whole)
MEASURING = Group("Measuring", sort_key=1)
DATA = Group("Data", sort_key=1)
MACHINE = Group("Machine", sort_key=2)
EVERY = Group("Every command", sort_key=3)


class Usage(ConfigError):
    """A command that was not understood; the message is one sentence for the user."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command: `result`, which --json prints, and `text` for people."""

    result: dict[str, Any]
    text: str


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """The options of every command."""

    json: Annotated[bool, option("Print the result as one JSON object on standard output.", group=EVERY)] = False
    quiet: Annotated[bool, option("Show no progress.", group=EVERY)] = False
    plugin: Annotated[tuple[Path, ...], option("A Python file of your own to load; may be repeated.", group=EVERY)] = ()

    @property
    def words(self) -> list[str]:
        """The words that load the same plugins again."""
        return [word for file in self.plugin for word in ("--plugin", str(file))]


@Parameter(name="*")
@dataclass(frozen=True)
class Machine(Common):
    """The options of every command that runs networks."""

    device: Annotated[str, option("auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps.", group=MACHINE)] = "auto"
    precision: Annotated[Precision, option("auto: bfloat16 where training gains from it.", group=MACHINE)] = "auto"

    def settings(self) -> dict[str, str]:
        """Return the keywords that library functions take."""
        return {"device": self.device, "precision": self.precision}


@Parameter(name="*")
@dataclass(frozen=True)
class Columns:
    """The parts of a sample that are its image and its label: of datasets, columns; of tar shards, endings."""

    image_column: Annotated[str | None, option("The images' column, or ending in .tar.", group=DATA)] = None
    label_column: Annotated[str | None, option("The labels'; none for no labels.", group=DATA)] = None

    def of(self, data: str) -> str:
        """Return a name of images that says these parts too."""
        from softvq.data.opening import with_columns

        return data if self == Columns() or data.endswith(".npz") else with_columns(data, *astuple(self))

    @property
    def words(self) -> list[str]:
        """The words that say the same again."""
        given = {"--image-column": self.image_column, "--label-column": self.label_column}
        return [word for name, value in given.items() if value is not None for word in (name, value)]


TokenizerName = Annotated[str, option("A folder, a bundled model (softvq-emoji-64 knows emoji) or a hub name.")]
BatchSize = Annotated[int, Whole, option("Images at a time.")]
Workers = Annotated[int, Whole, option("Processes that decode images.")]
Num = Parameter(name=("--num", "-n"), converter=_whole)
Fit = Annotated[Square, option("How an image becomes a square: ADM's centre crop, stretched, padded.")]
Pretrained = Annotated[tuple[str, ...], option("NAME=FILE: weights of a network; may be repeated.")]


@Parameter(name="*", group=MEASURING)
@dataclass(frozen=True)
class Working:
    """The settings of work through images, and the folder of its result."""

    batch_size: BatchSize = 64
    workers: Workers = 2
    out: Annotated[Path, option("The folder of results.")] = Path("evaluations")

    def settings(self, machine: Machine) -> dict[str, Any]:
        """Return what `evaluation.measuring.Working` is made of; unfinished work is kept where the result will be."""
        from softvq.files import check_writable

        check_writable(self.out, folder=True)
        return {**machine.settings(), "batch_size": self.batch_size, "workers": self.workers, "folder": self.out}


@Parameter(name="*", group=MEASURING)
@dataclass(frozen=True)
class Measuring(Working):
    """The settings of measuring images, and the folder of the result."""

    features: Annotated[str | None, option("The network (default: Inception, for bundled images Lite0).")] = None
    resize: Annotated[Resizing | None, option("To its size: as FID is defined, or as clean-fid does.")] = None
    pretrained: Pretrained = ()

    def settings(self, machine: Machine) -> dict[str, Any]:
        """Return what `evaluation.measuring.Settings` is made of."""
        pretrained = pretrained_files(self.pretrained)
        more = {"features": self.features, "resize": self.resize, "pretrained": pretrained}
        return super().settings(machine) | more


def pretrained_files(pairs: Sequence[str]) -> dict[str, Path]:
    """Return the files of NAME=FILE pairs."""
    files = {name: Path(file) for name, _, file in (pair.partition("=") for pair in pairs)}
    if len(files) < len(pairs):
        raise Usage(f"--pretrained {' '.join(pairs)}: a name is given twice.")
    for pair, file in zip(pairs, files.values(), strict=True):
        if "=" not in pair or not file.is_file():
            raise Usage(f"--pretrained {pair}: write NAME=FILE, with a file that exists.")
    return files


def try_next(*words: object, common: Common) -> str:
    """Return `try: softvq …`, a command that runs as it stands, with the plugins that were given."""
    return f"try: {shlex.join(['softvq', *map(str, words), *common.words])}"


def written(result: Any, folder: Path) -> Outcome:
    """Write an evaluation's result and its pictures into a folder; return them with its figures."""
    whole = result.write(folder)
    pictures = [f"picture: {picture}" for picture in whole.get("pictures", ())]
    return Outcome(whole, "\n".join([str(result), *pictures, whole["file"]]))
