"""Generators of latents. Importing this package registers the built-in ones."""

from softvq.generators.base import Generator, GeneratorConfig, Noise, Sampling
from softvq.generators.dit import DiT, DiTConfig
from softvq.generators.mar import MAR, MARConfig, MARNetworkConfig
from softvq.generators.sit import SiT, SiTConfig
from softvq.generators.transformer import TransformerConfig

__all__ = [
    "MAR",
    "DiT",
    "DiTConfig",
    "Generator",
    "GeneratorConfig",
    "MARConfig",
    "MARNetworkConfig",
    "Noise",
    "Sampling",
    "SiT",
    "SiTConfig",
    "TransformerConfig",
]
