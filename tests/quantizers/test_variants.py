"""Variants that the paper names and does not use: GMMVQ with its components sampled, RQ of a normalised ẑ."""

import math

import pytest
import torch
import torch.nn.functional as F

from softvq import config as configs
from softvq.quantizers.base import Quantized, Quantizer, quantize
from softvq.quantizers.compose import ProductConfig, ResidualConfig
from softvq.quantizers.gaussian import KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from softvq.tokenizer import TokenizerConfig

K, D = 6, 3
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(math.prod(shape)))


@pytest.mark.parametrize("weights", ["token", "codeword"])
def test_sampled_components_against_a_straight_line(weights: str):
    """z = Σ q_k c_k + σ √(Σ q_k²) ε, token by token."""
    quantizer = GMMVQConfig(K, weights, component_std=0.7).build(D).double()
    z, noise = draw(2, 4, quantizer.in_dim), draw(2, 4, D)
    found = quantizer(z, noise).latent
    codebook = quantizer.codebook.detach()
    for b in range(2):
        for t in range(4):
            encoded, raw = z[b, t, :D], z[b, t, D:]
            omega = torch.log1p(torch.exp(raw + math.log(math.e - 1))) / 0.07
            q = torch.softmax(-omega * (encoded - codebook).square().sum(1).sqrt(), 0)
            wanted = q @ codebook + 0.7 * q.square().sum().sqrt() * noise[b, t]
            torch.testing.assert_close(found[b, t], wanted, rtol=1e-7, atol=1e-9)


def test_the_noise_is_that_of_independent_components():
    """Σ q_k (c_k + σ ε_k) with an ε_k of its own for every component, many times over: mean and deviation."""
    quantizer = GMMVQConfig(K, component_std=0.5).build(D).double()
    z = draw(1, 1, D + 1)
    z[..., D:] = -3.0  # a small ω: a soft posterior
    omega = F.softplus(z[0, 0, D:] + math.log(math.e - 1)) / 0.07
    codebook = quantizer.codebook.detach()
    q = torch.softmax(-omega * (z[0, 0, :D] - codebook).square().sum(1).sqrt(), 0)
    components = codebook + 0.5 * torch.randn(20_000, K, D, dtype=torch.float64, generator=GENERATOR)
    one_by_one = (q[:, None] * components).sum(1)
    noise = torch.randn(1, 20_000, D, dtype=torch.float64, generator=GENERATOR)
    at_once = quantizer(z.expand(1, 20_000, -1), noise).latent[0].detach()
    torch.testing.assert_close(at_once.mean(0), one_by_one.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(at_once.std(0), one_by_one.std(0), rtol=0.03, atol=0)


def test_sampling_is_for_training_and_off_by_default():
    plain, sampled = GMMVQConfig(K).build(D), GMMVQConfig(K, component_std=0.5).build(D)
    sampled.load_state_dict(plain.state_dict())
    z, noise = draw(1, 4, D + 1).float(), draw(1, 4, D).float()
    assert torch.equal(plain.train()(z, noise).latent, plain(z).latent)
    assert torch.equal(sampled.eval()(z).latent, plain(z).latent)
    assert not torch.equal(sampled.train()(z).latent, plain(z).latent)
    assert not torch.equal(sampled.eval()(z, noise).latent, plain(z).latent)
    assert torch.equal(sampled(z, noise).losses["kl"], plain(z).losses["kl"])


def test_gradients_pass_the_sampling_to_encoder_and_codebook():
    quantizer = GMMVQConfig(3, component_std=0.5).build(2).double()
    z, noise = draw(1, 2, 3).requires_grad_(), draw(1, 2, 2)
    assert torch.autograd.gradcheck(lambda z, c: _with_codebook(quantizer, z, c, noise), (z, quantizer.codebook))


def _with_codebook(quantizer, z, codebook, noise):
    return torch.func.functional_call(quantizer, {"codebook": codebook}, (z, noise)).latent


@pytest.mark.parametrize("std", [-0.1, math.inf, math.nan])
def test_an_impossible_deviation_is_refused(std: float):
    with pytest.raises(ValueError, match="component_std must not be negative, and finite"):
        GMMVQConfig(K, component_std=std)


def test_normalising_divides_by_the_length_before_the_first_layer():
    plain = ResidualConfig(SoftVQConfig(K, "cosine"), 2).build(D).double()
    normalised = ResidualConfig(SoftVQConfig(K, "cosine"), 2, normalise=True).build(D).double()
    normalised.load_state_dict(plain.state_dict())
    z = 5 * draw(2, 4, D)
    torch.testing.assert_close(normalised(z).latent, plain(z / z.norm(dim=-1, keepdim=True)).latent)
    torch.testing.assert_close(normalised(3 * z).latent, normalised(z).latent)  # the length is free
    assert (plain(z).latent - normalised(z).latent).abs().max() > 1e-3


def test_new_fields_leave_the_identity_of_old_configurations():
    config = TokenizerConfig(64, 4, 4, quantizer=ResidualConfig(GMMVQConfig(8), 1))
    plain = configs.identity(config)
    assert plain["quantizer"] == {
        **{"type": "Residual", "depth": 1},
        "inner": {"type": "GMMVQ", "codebook_size": 8, "weights": "token"},
    }
    changed = TokenizerConfig(64, 4, 4, quantizer=ResidualConfig(GMMVQConfig(8, component_std=0.1), 1, normalise=True))
    found = configs.identity(changed)["quantizer"]
    assert found["normalise"] is True
    assert found["inner"]["component_std"] == 0.1


@pytest.mark.parametrize(
    "config",
    [
        SoftVQConfig(K, learn_tau=True),
        SoftVQConfig.released(K),
        GMMVQConfig(K),
        VQConfig(K),
        KLConfig(),
        ProductConfig(SoftVQConfig.released(K), 2, "token", "pooled"),
        ProductConfig(KLConfig(), 3, "channel"),
        ResidualConfig(SoftVQConfig(K), 2),
    ],
    ids=lambda config: type(config).__name__,
)
@pytest.mark.parametrize("with_noise", [True, False])
def test_latent_alone_is_that_of_the_whole_answer(config, with_noise: bool):
    """To the bit, in both modes: `encode` stores it."""
    quantizer = config.build(D).eval()
    z, noise = draw(2, 4, quantizer.in_dim).float(), draw(2, 4, D).float() if with_noise else None
    assert torch.equal(quantizer.latent(z, noise), quantizer(z, noise).latent)


def test_a_quantizer_whose_forward_takes_no_reduction_is_called_without():
    class Round(Quantizer):
        def __init__(self):
            super().__init__()
            self.dim = self.in_dim = D

        def forward(self, z, noise=None):
            return Quantized(z.round())

    def fails(x):
        raise AssertionError("a quantizer that takes no reduction was given one")

    z = draw(2, 4, D)
    assert torch.equal(quantize(Round(), z, None, fails).latent, z.round())
    assert torch.equal(Round().latent(z), z.round())
    seen = []
    quantize(SoftVQConfig(K).build(D).double(), z, None, lambda x: seen.append(x) or x)
    assert len(seen) == 4  # entropy, E q, which were used, largest weight
