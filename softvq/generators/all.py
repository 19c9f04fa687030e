"""Every generator there is, and how a saved one is found and loaded."""

from dataclasses import dataclass
from pathlib import Path

from softvq import config as configs
from softvq import hub, released
from softvq.generators.base import Generator
from softvq.generators.denoising import DiTConfig, SiTConfig
from softvq.generators.mar import MARConfig

GeneratorConfig = SiTConfig | DiTConfig | MARConfig


@dataclass(frozen=True)
class _Stored:
    """`config.json`'s `config`: which of the models, and its configuration."""

    model: GeneratorConfig


def load_generator(name_or_folder: str | Path) -> Generator:
    """`Generator.from_pretrained`."""
    saved = hub.load(name_or_folder, Generator.kind, released.generator)
    config = configs.from_dict(_Stored, {"model": saved.config}, "config").model
    if "source" in saved.about:  # the authors' own: the name says which tokenizer it goes with
        name = Path(name_or_folder).name if Path(name_or_folder).is_dir() else str(name_or_folder).rpartition("/")[2]
        if (parts := name.partition("_"))[2]:
            saved.about["tokenizer"] = {"name": f"SoftVQVAE/{parts[2]}"}
    return hub.build(lambda: config.build(saved.about), config.network.depth, saved).eval()
