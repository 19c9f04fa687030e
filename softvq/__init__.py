"""SoftVQ-VAE: images to 32 or 64 continuous tokens and back, and new images from such tokens.

from softvq import Tokenizer, Pipeline
Tokenizer.from_pretrained("softvq-emoji-64").reconstruct("photo.png").save("reconstruction.png")
images = Pipeline.from_pretrained("emoji-sit")(["flags", "food-drink"], num=16, seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softvq.autoencoders import FoldedAutoencoder
    from softvq.config import register
    from softvq.data.sources import Source
    from softvq.errors import SoftVQError
    from softvq.generators.base import Generator, GeneratorConfig, Noise, Sampling
    from softvq.losses.discriminators import DiscriminatorConfig
    from softvq.optim import OptimizerConfig
    from softvq.pipeline import Pipeline
    from softvq.plugins import load as load_plugin
    from softvq.quantizers.base import Quantized, Quantizer, QuantizerConfig
    from softvq.tokenizer import Tokenizer, TokenizerConfig

__version__ = "0.1.0"

# Name -> where it is, and what it is called there. Nothing is imported before it is asked for.
_HOMES = {
    "DiscriminatorConfig": ("softvq.losses.discriminators", "DiscriminatorConfig"),
    "FoldedAutoencoder": ("softvq.autoencoders", "FoldedAutoencoder"),
    "Generator": ("softvq.generators.base", "Generator"),
    "GeneratorConfig": ("softvq.generators.base", "GeneratorConfig"),
    "Noise": ("softvq.generators.base", "Noise"),
    "OptimizerConfig": ("softvq.optim", "OptimizerConfig"),
    "Pipeline": ("softvq.pipeline", "Pipeline"),
    "Quantized": ("softvq.quantizers.base", "Quantized"),
    "Quantizer": ("softvq.quantizers.base", "Quantizer"),
    "QuantizerConfig": ("softvq.quantizers.base", "QuantizerConfig"),
    "Sampling": ("softvq.generators.base", "Sampling"),
    "SoftVQError": ("softvq.errors", "SoftVQError"),
    "Source": ("softvq.data.sources", "Source"),
    "Tokenizer": ("softvq.tokenizer", "Tokenizer"),
    "TokenizerConfig": ("softvq.tokenizer", "TokenizerConfig"),
    "load_plugin": ("softvq.plugins", "load"),
    "register": ("softvq.config", "register"),
}
__all__ = [
    "DiscriminatorConfig",
    "FoldedAutoencoder",
    "Generator",
    "GeneratorConfig",
    "Noise",
    "OptimizerConfig",
    "Pipeline",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "Sampling",
    "SoftVQError",
    "Source",
    "Tokenizer",
    "TokenizerConfig",
    "__version__",
    "load_plugin",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'softvq' has no attribute {name!r}")
    module, own = _HOMES[name]
    return getattr(import_module(module), own)


def __dir__() -> list[str]:
    return sorted(__all__)
