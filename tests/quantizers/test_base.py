"""The contract of a quantizer of one's own: what is not kept is said in the library's words, before a run begins."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from softvq.errors import ConfigError, ModelError
from softvq.losses.total import total
from softvq.memory import without_contents
from softvq.quantizers.base import Quantized, Quantizer, QuantizerConfig
from softvq.quantizers.compose import ProductConfig, ResidualConfig
from softvq.quantizers.gaussian import KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from softvq.training.tokenizer import new_tokenizer
from tests.training.test_run import tiny_recipe


class Kept(Quantizer):
    """A quantizer that keeps the contract."""

    discrete = True

    def __init__(self, dim: int):
        super().__init__()
        self.dim = self.in_dim = dim

    def forward(self, z):  # neither noise nor reduction
        return Quantized(z, indices=z.argmax(-1))


class NoWidth(Kept):
    def __init__(self, dim: int):
        Quantizer.__init__(self)
        self.dim = dim


class Tensors(Kept):
    def forward(self, z, noise=None):
        return z


class Narrow(Kept):
    def forward(self, z, noise=None):
        return Quantized(z[..., :2])


MADE: dict[str, Any] = {
    "kept": Kept,
    "no width": NoWidth,
    "tensors": Tensors,
    "narrow": Narrow,
    "another": lambda dim: Kept(dim + 1),
    "nothing": lambda dim: None,
}


@dataclass(frozen=True)
class ContractConfig(QuantizerConfig):
    made: str = "kept"

    def build(self, dim: int):
        return MADE[self.made](dim)


def recipe(made: str):
    return replace(tiny_recipe(quantizer=ContractConfig(made)), weights={"reconstruction": 1.0})


def test_a_quantizer_that_takes_latents_alone_is_enough():
    tokenizer = new_tokenizer(recipe("kept"))
    images = torch.zeros(1, 3, 16, 16)
    assert torch.equal(tokenizer.encode(images), tokenizer(images).quantized.latent)
    with pytest.raises(ModelError, match="says that it is discrete, but defines no lookup"):
        tokenizer.decode_indices(tokenizer.encode_indices(images))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("no width", r"NoWidth must set self\.in_dim"),
        ("tensors", r"Tensors\.forward must return Quantized\(latent\) with latents of \(1, 4, 4\), not Tensor"),
        ("narrow", r"with latents of \(1, 4, 4\), not latents of \(1, 4, 2\)"),
        ("another", "Kept has latents of 5 numbers a token, but was asked for 4"),
        ("nothing", "build must return a Quantizer, not a NoneType"),
    ],
)
def test_what_breaks_the_contract_is_a_sentence(made: str, reason: str):
    with pytest.raises(ConfigError, match=reason):
        new_tokenizer(recipe(made))


def test_weights_of_terms_that_are_not_there_are_told_what_to_leave_out():
    zero = torch.zeros(())
    with pytest.raises(ValueError, match=r'leave kl out of the weights: {"reconstruction": 2}'):
        total({"reconstruction": zero}, {"reconstruction": 2, "kl": 0})
    with pytest.raises(ValueError, match="give every term a weight, 0 to leave it out"):
        total({"reconstruction": zero, "kl": zero}, {"reconstruction": 2})


def test_indices_that_are_none_are_a_sentence():
    tokenizer = new_tokenizer(recipe("kept"))
    for wrong in (torch.zeros(1, 4), torch.zeros(4, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)):
        with pytest.raises((ModelError, TypeError), match=r"indices must be whole numbers|Type-check"):
            tokenizer.decode_indices(wrong)


@pytest.mark.parametrize("config", [VQConfig(16), ResidualConfig(ProductConfig(SoftVQConfig(16), 2, "token"), 2)])
def test_a_quantizer_can_be_counted_on_tensors_without_contents(config: QuantizerConfig):
    """Which codewords are taken is a matter of numbers, and the plan of a run has none."""
    with without_contents():
        quantized = config.build(4)(torch.randn(2, 8, 4))
        assert quantized.latent.shape == (2, 8, 4)
        assert {value.shape for value in quantized.statistics.values()} == {torch.Size([])}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "config",
    [
        *(
            SoftVQConfig(16),
            SoftVQConfig.released(16),
            GMMVQConfig(16),
            VQConfig(16),
            VQConfig(16, "cosine"),
            KLConfig(),
        ),
        *(ProductConfig(SoftVQConfig(16), 2, "token"), ResidualConfig(VQConfig(16), 2)),
    ],
)
def test_what_is_not_finite_becomes_no_sound_latent(config: QuantizerConfig, bad: float):
    """NaN is at no distance, which must not be read as the distance 0: the mixture would be of all codewords alike."""
    quantizer = config.build(4).eval()
    z = torch.randn(2, 8, quantizer.in_dim)
    z[1, 3, 0] = bad
    for latent in (quantizer(z).latent, quantizer.latent(z)):
        assert not latent[1].isfinite().all()
        assert latent[0].isfinite().all()
