"""Quantizers: the bottleneck between encoder and decoder. Importing this package registers the built-in ones."""

from softvq.quantizers.base import Assignment, Quantized, Quantizer, QuantizerConfig
from softvq.quantizers.compose import Product, ProductConfig, Residual, ResidualConfig
from softvq.quantizers.gaussian import AE, KL, AEConfig, KLConfig
from softvq.quantizers.hard import VQ, VQConfig
from softvq.quantizers.soft import GMMVQ, GMMVQConfig, SoftVQ, SoftVQConfig

__all__ = [
    "AE",
    "GMMVQ",
    "KL",
    "VQ",
    "AEConfig",
    "Assignment",
    "GMMVQConfig",
    "KLConfig",
    "Product",
    "ProductConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "Residual",
    "ResidualConfig",
    "SoftVQ",
    "SoftVQConfig",
    "VQConfig",
]
