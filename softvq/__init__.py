"""SoftVQ-VAE: images to 32 or 64 continuous tokens and back, and new images from such tokens.

from softvq import Tokenizer, Pipeline
Tokenizer.from_pretrained("softvq-emoji-64").reconstruct("photo.png").save("reconstruction.png")
images = Pipeline.from_pretrained("emoji-sit")(["flags", "food-drink"], num=16, seed=0)

train(TokenizerTask(open_recipe("emoji-64-quick"), data=my_dataset), "runs/mine")
encode("runs/mine", my_dataset, "latents"); evaluate_reconstruction("runs/mine", my_dataset).scores
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softvq.autoencoders import FoldedAutoencoder
    from softvq.config import register
    from softvq.data.sources import Source
    from softvq.decoding import decode
    from softvq.encoding import encode
    from softvq.errors import SoftVQError
    from softvq.evaluation.cost import cost
    from softvq.evaluation.generation import evaluate_generation, frechet
    from softvq.evaluation.latent_space import latent_space
    from softvq.evaluation.probe import probe
    from softvq.evaluation.reconstruction import evaluate_reconstruction
    from softvq.evaluation.report import report
    from softvq.generators.base import Generator, GeneratorConfig, Noise, Sampling
    from softvq.losses.discriminators import DiscriminatorConfig
    from softvq.optim import OptimizerConfig
    from softvq.pipeline import Pipeline
    from softvq.plugins import load as load_plugin
    from softvq.quantizers.base import Quantized, Quantizer, QuantizerConfig
    from softvq.recipes.opening import open_recipe
    from softvq.statistics import fit_latent_statistics
    from softvq.tokenizer import Tokenizer, TokenizerConfig
    from softvq.training.generator import GeneratorTask
    from softvq.training.options import RunOptions
    from softvq.training.plan import plan
    from softvq.training.player import Player
    from softvq.training.run import train
    from softvq.training.task import Task
    from softvq.training.tokenizer import TokenizerTask

__version__ = "0.1.0"

# Name -> where it is, and what it is called there. Nothing is imported before it is asked for.
_HOMES = {
    "DiscriminatorConfig": ("softvq.losses.discriminators", "DiscriminatorConfig"),
    "FoldedAutoencoder": ("softvq.autoencoders", "FoldedAutoencoder"),
    "Generator": ("softvq.generators.base", "Generator"),
    "GeneratorConfig": ("softvq.generators.base", "GeneratorConfig"),
    "GeneratorTask": ("softvq.training.generator", "GeneratorTask"),
    "Noise": ("softvq.generators.base", "Noise"),
    "OptimizerConfig": ("softvq.optim", "OptimizerConfig"),
    "Pipeline": ("softvq.pipeline", "Pipeline"),
    "Player": ("softvq.training.player", "Player"),
    "Quantized": ("softvq.quantizers.base", "Quantized"),
    "Quantizer": ("softvq.quantizers.base", "Quantizer"),
    "QuantizerConfig": ("softvq.quantizers.base", "QuantizerConfig"),
    "RunOptions": ("softvq.training.options", "RunOptions"),
    "Sampling": ("softvq.generators.base", "Sampling"),
    "SoftVQError": ("softvq.errors", "SoftVQError"),
    "Source": ("softvq.data.sources", "Source"),
    "Task": ("softvq.training.task", "Task"),
    "Tokenizer": ("softvq.tokenizer", "Tokenizer"),
    "TokenizerConfig": ("softvq.tokenizer", "TokenizerConfig"),
    "TokenizerTask": ("softvq.training.tokenizer", "TokenizerTask"),
    "cost": ("softvq.evaluation.cost", "cost"),
    "decode": ("softvq.decoding", "decode"),
    "encode": ("softvq.encoding", "encode"),
    "evaluate_generation": ("softvq.evaluation.generation", "evaluate_generation"),
    "evaluate_reconstruction": ("softvq.evaluation.reconstruction", "evaluate_reconstruction"),
    "fit_latent_statistics": ("softvq.statistics", "fit_latent_statistics"),
    "frechet": ("softvq.evaluation.generation", "frechet"),
    "latent_space": ("softvq.evaluation.latent_space", "latent_space"),
    "load_plugin": ("softvq.plugins", "load"),
    "open_recipe": ("softvq.recipes.opening", "open_recipe"),
    "plan": ("softvq.training.plan", "plan"),
    "probe": ("softvq.evaluation.probe", "probe"),
    "register": ("softvq.config", "register"),
    "report": ("softvq.evaluation.report", "report"),
    "train": ("softvq.training.run", "train"),
}
__all__ = [
    "DiscriminatorConfig",
    "FoldedAutoencoder",
    "Generator",
    "GeneratorConfig",
    "GeneratorTask",
    "Noise",
    "OptimizerConfig",
    "Pipeline",
    "Player",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "RunOptions",
    "Sampling",
    "SoftVQError",
    "Source",
    "Task",
    "Tokenizer",
    "TokenizerConfig",
    "TokenizerTask",
    "__version__",
    "cost",
    "decode",
    "encode",
    "evaluate_generation",
    "evaluate_reconstruction",
    "fit_latent_statistics",
    "frechet",
    "latent_space",
    "load_plugin",
    "open_recipe",
    "plan",
    "probe",
    "register",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'softvq' has no attribute {name!r}")
    module, own = _HOMES[name]
    return getattr(import_module(module), own)


def __dir__() -> list[str]:
    return sorted(__all__)
