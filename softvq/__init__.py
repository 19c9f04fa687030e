"""SoftVQ-VAE: images to 32 or 64 tokens and back, and new images. `from softvq import Tokenizer, Generator`."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Generator", "Tokenizer", "__version__"]

if TYPE_CHECKING:
    from softvq.generators.base import Generator
    from softvq.tokenizer import Tokenizer


def __getattr__(name: str):
    """Load the model classes when they are first asked for, so that importing the package costs nothing."""
    if name == "Tokenizer":
        from softvq.tokenizer import Tokenizer

        return Tokenizer
    if name == "Generator":
        from softvq.generators.base import Generator

        return Generator
    raise AttributeError(f"module 'softvq' has no attribute {name!r}")
