"""The contract of every generator: its configuration, training, sampling and saving."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softvq import config as configs
from softvq import released
from softvq.config import family, lookup
from softvq.errors import ConfigError, ModelError, is_whole
from softvq.randomness import Stream, rng
from softvq.saving import Saved
from softvq.transports.guidance import Guidance

Progress = Callable[[Sequence], Sequence] | None  # what goes through the steps: `tqdm`; None for nothing
G = TypeVar("G", bound="GeneratorConfig")


@dataclass(frozen=True)
class Sampling:
    """The settings that images are made with.

    `sampler`: one of the generator's `samplers`: `euler`, `heun` (two evaluations a step), `dopri5` (adaptive; `steps`
    is not used), `sde` (Euler–Maruyama), `dpm` and `dpm-sde` (DPM-Solver++ 2M) for SiT; `ddpm`, `ddim`, `dpm`,
    `dpm-sde` for DiT; `mar` for MAR, where `steps` are those of unmasking. The state is kept in `dtype`.
    """

    sampler: str
    steps: int = 50
    guidance: Guidance = field(default_factory=Guidance)
    dtype: Literal["float32", "float64"] = "float64"

    def __post_init__(self):
        if not is_whole(self.steps, 1):
            raise ValueError(f"steps must be a whole number, at least 1, not {self.steps!r}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', not {self.dtype!r}")


def check_share(name: str, share: float) -> None:
    """Raise `ValueError` unless a share of labels or activations to drop is in [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"{name} must be in [0, 1), not {share}")


class Noise:
    """Standard normal numbers that are a function of a seed, an image's number and how many were drawn before.

    They are the same whatever batch or rank an image is made in.
    """

    def __init__(self, seed: int, images: Sequence[int], shape: tuple[int, ...]):
        self.generators = [rng(seed, Stream.SAMPLE_NOISE, image) for image in images]
        self.shape = shape

    def __call__(self, number: int = 0) -> Float[Tensor, " B *shape"]:
        """Return the next numbers, float64, for each image.

        `number` is the step's, which samplers pass and which does not matter here.
        """
        return torch.from_numpy(np.stack([g.standard_normal(self.shape) for g in self.generators]))

    def uniform(self, count: int) -> Float[Tensor, "B count"]:
        """Return the next numbers uniform in [0, 1), `count` for each image."""
        return torch.from_numpy(np.stack([g.random(count) for g in self.generators]))


@family
class GeneratorConfig(ABC):
    """The base of the generators' configurations.

    A configuration is a frozen dataclass with the fields `tokens`, `channels` and `classes` (the number of labels, 0
    for none), or with a field `network` that has them. A configuration of your own has `@softvq.register` above it,
    defines `build`, and has defaults for its fields, so that its name is enough in a recipe: training sets the three to
    those of the latents (`classes` stays 0 where it is 0).
    """

    @abstractmethod
    def build(self, about: dict[str, Any] | None = None) -> "Generator":
        """Return the generator of this configuration with its initial weights; `about` is saved with it."""

    @property
    def guidance(self) -> Guidance:
        """The guidance that images are made with by default."""
        return Guidance()

    @property
    def depth(self) -> int:
        """The least number of blocks of the network, 0 where it is not known.

        It is checked before building a network, because a damaged file must not ask for millions.
        """
        return getattr(self.sizes, "depth", 0) if self.sizes is not self else 0

    @property
    def sizes(self) -> Any:
        """The object with `tokens`, `channels` and `classes`: the field `network` where there is one, else this."""
        return getattr(self, "network", self)

    def fitted(self: G, tokens: int, channels: int, classes: int) -> G:
        """Return this configuration for latents of another shape, or another number of classes."""
        sizes = {"tokens": tokens, "channels": channels, "classes": classes}
        if self.sizes is self:
            return replace(self, **sizes)
        return replace(self, network=replace(self.sizes, **sizes))

    def same_meaning(self, other: "GeneratorConfig") -> str | None:
        """Return a reason why the weights of another configuration's network mean something else, None without one."""
        heads = getattr(other.sizes, "heads", None), getattr(self.sizes, "heads", None)
        if heads[0] != heads[1]:  # weights of the same shapes, but another function
            return f"it has {heads[0]} heads, the recipe's {heads[1]}"
        for name in self.meaning:
            theirs, ours = getattr(other, name, None), getattr(self, name, None)
            if theirs != ours:
                return f"its {name} is {theirs!r}, the recipe's {ours!r}"
        return None

    meaning: ClassVar[tuple[str, ...]] = ()  # the fields that say what the network's output means


@dataclass(frozen=True)
class Part:
    """A part of making a batch of images: a call, and how many times it is made."""

    call: Callable[[], Any]
    times: int


class Generator(Saved):
    """A model of latents (B, T, C) given class labels from 0 on; label `classes` is the null class.

    A generator of your own is made by a `GeneratorConfig` and has `draw`, `loss`, `sample` and `samplers`:

    - `draw` gives the random numbers of a training step as tensors with a row a sample, each a function of its own
      generator alone, so that a run does not depend on how many processes share a batch;
    - `loss` gives a loss a sample, and is a function of its arguments and the weights alone;
    - `sample` gives latents of the labels' batch by one of `samplers`, and takes its random numbers from `noise` alone,
      so that an image is a function of its seed and number and not of the batch it is made in.

    `about` is free JSON that travels with a saved model: recipe, figures, `classes` (their names) and `tokenizer`.
    """

    kind = "generator"
    samplers: ClassVar[dict[str, Callable[..., Tensor]]] = {}  # by name; a file of one's own may add to them
    translate = staticmethod(released.generator)

    @abstractmethod
    def draw(self, rngs: Sequence[np.random.Generator], shared: np.random.Generator) -> dict[str, Tensor]:
        """Return a training step's random numbers: each sample's by its own generator, the batch's by `shared`."""

    @abstractmethod
    def loss(
        self, latents: Float[Tensor, "B T C"], labels: Int[Tensor, " B"], draws: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the loss of each sample as `loss`, and the parts that it consists of by name."""

    @abstractmethod
    def sample(
        self, labels: Int[Tensor, " B"], noise: Noise, sampling: Sampling, progress: Progress = None
    ) -> Float[Tensor, "B T C"]:
        """Return new latents of these classes, float32. `noise` holds one generator a label."""

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (T, C) of the latents of an image."""
        return self.config.sizes.tokens, self.config.sizes.channels

    @property
    def classes(self) -> int:
        """The number of classes, 0 for an unconditional model."""
        return self.config.sizes.classes

    @property
    def default_sampling(self) -> Sampling:
        """The sampling by default: the first sampler with few steps (50), and the configuration's guidance.

        It is used where neither the user nor the recipe says otherwise. Raise `ModelError` when there are no samplers.
        """
        if not self.samplers:
            raise ModelError(f"{type(self).__name__} has no samplers: a dictionary of functions by name.")
        return Sampling(next(iter(self.samplers)), 50, self.config.guidance)

    @property
    def quick_sampling(self) -> Sampling:
        """The sampling of images to look at while training: few evaluations, good enough to see progress."""
        return replace(self.default_sampling, steps=20, guidance=Guidance(2.0))

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks: the units that are sharded over ranks, and whose matrices Muon trains."""
        return []

    @property
    def undecayed(self) -> list[nn.Module]:
        """The modules whose weights no optimizer decays."""
        return []

    def one_evaluation(self) -> Callable[[], Any]:
        """Return a call that does the work of one step for one image, for counting its operations.

        This default makes a whole image in one step.
        """
        return lambda: self.sample(*self._trial(1), replace(self.default_sampling, steps=1, guidance=Guidance()))

    def parts(self, rows: int, steps: int, guided: bool) -> dict[str, Part]:
        """Return the parts of making `rows` images in so many steps, by name, for timing them.

        This default has one part, which makes all of them.
        """
        guidance = Guidance(2.0) if guided and self.classes else Guidance()
        sampling = replace(self.default_sampling, steps=steps, guidance=guidance)
        return {"evaluation": Part(lambda: self.sample(*self._trial(rows), sampling), 1)}

    def _trial(self, rows: int) -> tuple[Tensor, Noise]:
        return torch.zeros(rows, dtype=torch.long, device=self.device), Noise(0, range(rows), self.shape)

    @classmethod
    def read_config(cls, config: Any, about: dict[str, Any]) -> tuple[Callable[[], "Generator"], int]:
        """Return a function that builds the generator of a stored configuration, and its number of blocks."""
        parsed = configs.parse(GeneratorConfig, config, "config.model")
        return lambda: parsed.build(about), parsed.depth

    def stored_config(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values, with its `type` first."""
        return configs.tagged(self.config)

    def named(self, name: str, is_folder: bool) -> None:
        """Note the tokenizer that a model of the authors goes with, which is part of its name."""
        if "source" in self.about:
            own = Path(name).name if is_folder else name.rpartition("/")[2].partition("@")[0]
            if (parts := own.partition("_"))[2]:
                self.about["tokenizer"] = {"name": f"SoftVQVAE/{parts[2]}"}

    def check(self, sampling: Sampling) -> None:
        """Raise `ConfigError` when this model has no such sampler."""
        try:
            lookup(self.samplers, sampling.sampler, "sampler")
        except ConfigError:
            raise ConfigError(
                f"a {type(self).__name__} is sampled with {', '.join(self.samplers)}, not {sampling.sampler!r}."
            ) from None

    def dropped(self, labels: Int[Tensor, " B"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return labels with a share of `config.dropout` replaced by the null class.

        Guidance needs it to compare with. All labels of an unconditional model are replaced. `uniform` are numbers in
        [0, 1), one a sample.
        """
        if not self.classes:
            return torch.zeros_like(labels)
        return torch.where(uniform < getattr(self.config, "dropout", 0.0), self.classes, labels)

    def described(self, loaded_as: str) -> tuple[str, str]:
        """Return a summary of the model for its card, and Python lines that make images with it."""
        tokens, channels = self.shape
        parameters = sum(p.numel() for p in self.parameters()) / 1e6
        summary = (
            f"A {type(self).__name__} that makes latents of {tokens} tokens × {channels} numbers, "
            f"{self.classes or 'no'} classes; {parameters:.2f}M parameters. "
            f"Configuration: {json.dumps(configs.to_dict(self.config))}."
        )
        usage = (
            f'from softvq import Pipeline\n\nimages = Pipeline.from_pretrained("{loaded_as}")(num=16, seed=0)\n'
            f"# or, in a shell: softvq sample --model {loaded_as}"
        )
        return summary, usage
