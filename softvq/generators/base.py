"""What DiT, SiT and MAR share: how they are trained, sampled, saved and found."""

import json
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softvq import config as configs
from softvq import hub
from softvq.randomness import Stream, rng
from softvq.transports.guidance import Guidance

SamplerName = Literal["euler", "heun", "dopri5", "sde", "dpm", "dpm-sde", "ddpm", "ddim", "mar"]


@dataclass(frozen=True)
class Sampling:
    """How images are made. `sampler`: `euler`, `heun` (two evaluations a step), `dopri5` (adaptive; `steps` is not
    used), `sde` (Euler–Maruyama), `dpm` and `dpm-sde` (DPM-Solver++ 2M) for SiT; `ddpm`, `ddim`, `dpm`, `dpm-sde` for
    DiT; `mar` for MAR, where `steps` are those of unmasking. The state is kept in `dtype`."""

    sampler: SamplerName
    steps: int = 50
    guidance: Guidance = field(default_factory=Guidance)
    dtype: Literal["float32", "float64"] = "float64"

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


def check_share(name: str, share: float) -> None:
    """`ValueError` unless a share of what is dropped is in [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"{name} must be in [0, 1), not {share}")


class Noise:
    """Standard normal numbers that are a function of a seed, an image's number and how many were drawn before: the same
    whatever batch or rank an image is made in."""

    def __init__(self, seed: int, images: Sequence[int], shape: tuple[int, ...]):
        self.generators = [rng(seed, Stream.SAMPLE_NOISE, image) for image in images]
        self.shape = shape

    def __call__(self, number: int = 0) -> Float[Tensor, "B *shape"]:
        """The next ones, float64. `number` is the step's, which samplers say and which does not matter here."""
        return torch.from_numpy(np.stack([g.standard_normal(self.shape) for g in self.generators]))

    def uniform(self, count: int) -> Float[Tensor, "B count"]:
        """The next uniform numbers."""
        return torch.from_numpy(np.stack([g.random(count) for g in self.generators]))


class Generator(nn.Module):
    """A model of latents (B, T, C) given class labels; label `classes` is the null class.

    `about` is free JSON that travels with a saved model: recipe, figures, `classes` (their names) and `tokenizer`.
    """

    kind = "generator"
    samplers: tuple[str, ...] = ()

    def __init__(self, config: Any, about: dict[str, Any] | None = None):
        super().__init__()
        self.config, self.about = config, about or {}

    @abstractmethod
    def draw(self, rngs: Sequence[np.random.Generator], shared: np.random.Generator) -> dict[str, Tensor]:
        """The random numbers of a training step: of each sample by its own generator, of the batch by `shared`."""

    @abstractmethod
    def loss(
        self, latents: Float[Tensor, "B T C"], labels: Int[Tensor, " B"], draws: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, " B"]]:
        """The loss of each sample as `loss`, and what it consists of."""

    @abstractmethod
    def sample(
        self, labels: Int[Tensor, " B"], noise: Noise, sampling: Sampling, progress=None
    ) -> Float[Tensor, "B T C"]:
        """New latents of these classes. `noise` holds one generator a label."""

    @property
    def shape(self) -> tuple[int, int]:
        """(T, C) of the latents."""
        return self.config.network.tokens, self.config.network.channels

    @property
    def classes(self) -> int:
        """How many classes there are, 0 for an unconditional model."""
        return self.config.network.classes

    @property
    @abstractmethod
    def default_sampling(self) -> Sampling:
        """How images are made where neither the user nor the recipe says so: few steps, the paper's guidance."""

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks: the units that are sharded over ranks, and whose matrices Muon trains."""

    @property
    def undecayed(self) -> list[nn.Module]:
        """The modules whose weights no optimizer decays."""
        return []

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the configuration and every weight."""
        return hub.fingerprint(configs.identity(self.config), self.state_dict())

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> "Generator":
        """A SiT, DiT or MAR in evaluation mode: from a folder, of those bundled with the package (`emoji-sit`), or from
        the hub. Also reads the authors' own format, so that `SoftVQVAE/sit-xl_softvq-l-64` is a name.

        `ModelError` or `ConfigError`, one sentence, when something is missing, damaged or unknown.
        """
        from softvq.generators.all import load_generator  # which knows the models, which know this class

        return load_generator(name_or_folder)

    def check(self, sampling: Sampling) -> None:
        """`ValueError` when this model cannot be sampled so."""
        if sampling.sampler not in self.samplers:
            raise ValueError(
                f"a {type(self).__name__} is sampled with {', '.join(self.samplers)}, not {sampling.sampler!r}."
            )

    def dropped(self, labels: Int[Tensor, " B"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Labels with a share of `config.dropout` replaced by the null class, so that guidance has something to
        compare with; of an unconditional model all."""
        if not self.classes:
            return torch.zeros_like(labels)
        return torch.where(uniform < self.config.dropout, self.classes, labels)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json`, `model.safetensors` and a model card into `folder`, atomically."""
        self._save(folder, dtype, "FOLDER OR OWNER/NAME")

    def _save(self, folder: str | Path, dtype: torch.dtype, name: str) -> None:
        if not dtype.is_floating_point:
            raise ValueError(f"weights are stored in a floating-point type, not {dtype}.")
        tensors = {name: p.to(dtype) for name, p in self.named_parameters()}
        plain = {"type": type(self).__name__, **configs.to_dict(self.config)}
        config = {"kind": self.kind, "config": plain, "about": self.about}
        hub.save(folder, config, {**self.state_dict(), **tensors}, self._card(name))

    def push_to_hub(self, name: str, *, private: bool = False, dtype: torch.dtype = torch.float32) -> str:
        """Share the model on the hub as `owner/name`; gives its address. Needs a hub account (`hf auth login`)."""
        with tempfile.TemporaryDirectory() as folder:
            self._save(folder, dtype, name)
            return hub.push(Path(folder), name, private)

    def _card(self, loaded_as: str) -> str:
        tokens, channels = self.shape
        parameters = sum(p.numel() for p in self.parameters()) / 1e6
        summary = (
            f"A {type(self).__name__} that makes latents of {tokens} tokens × {channels} numbers, "
            f"{self.classes or 'no'} classes; {parameters:.2f}M parameters. "
            f"Configuration: {json.dumps(configs.to_dict(self.config))}."
        )
        usage = (
            f'from softvq import Generator\n\ngenerator = Generator.from_pretrained("{loaded_as}")\n'
            f"# or, in a shell: softvq sample --model {loaded_as}"
        )
        return hub.card(f"softvq {self.about.get('recipe', {}).get('name', 'generator')}", summary, usage, self.about)
