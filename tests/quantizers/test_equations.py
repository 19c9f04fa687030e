"""Every quantizer against the paper's equation, written out by loops in `reference`; values and gradients, float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from softvq.quantizers.base import Quantized, Quantizer
from softvq.quantizers.compose import Product, ProductConfig, Residual, ResidualConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from tests.quantizers import reference
from tests.quantizers.reference import Answer, Quantize, draw

DISTANCES = ("euclidean", "cosine")
B, L, D, K = 2, 4, 4, 5


def built(config, dim: int = D) -> Quantizer:
    """In float64, with codewords of any length, so that a missing (or an extra) normalisation shows."""
    quantizer = config.build(dim).double()
    for seed, (name, parameter) in enumerate(quantizer.named_parameters()):
        if name.endswith("codebook"):
            parameter.data = draw(*parameter.shape, seed=100 + seed)
    return quantizer


def straight(quantizer: Quantizer) -> Quantize:
    """The reference with this quantizer's codebooks: only its structure and its numbers are read."""
    if isinstance(quantizer, Product):
        parts = [straight(inner) for inner in quantizer.inner]
        return lambda z: reference.product(z, parts, quantizer.config.axis)
    if isinstance(quantizer, Residual):
        layers = [straight(inner) for inner in quantizer.inner]
        return lambda z: reference.residual(z, layers)
    config, codebook = quantizer.config, quantizer.codebook
    tau = config.tau if quantizer.log_tau is None else quantizer.log_tau.exp()
    return lambda z: reference.soft_vq(z, codebook, tau, config.distance, config.detach_codebook)


def gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of a scalar, with zeros for what it does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    grads = torch.autograd.grad(value, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]


def assert_same(got: Quantized, answer: Answer, kl: Tensor, inputs: list[Tensor]) -> None:
    """Latent, indices, KL term, and the gradients of a random function of z and of the KL term."""
    torch.testing.assert_close(got.latent, answer.latent)
    assert torch.equal(got.indices, answer.indices)
    torch.testing.assert_close(got.losses["kl"], kl)
    weights = draw(*answer.latent.shape, seed=7)
    pairs = [((got.latent * weights).sum(), (answer.latent * weights).sum()), (got.losses["kl"], kl)]
    for mine, theirs in pairs:
        for a, b in zip(gradients(mine, inputs), gradients(theirs, inputs), strict=True):
            torch.testing.assert_close(a, b)


# ---- SoftVQ (Eq. 4)


@pytest.mark.parametrize(
    ("distance", "learn_tau", "detach", "kl_tau"),
    list(itertools.product(DISTANCES, (False, True), (False, True), (None, 0.1))),
)
def test_softvq_is_equation_4(distance, learn_tau, detach, kl_tau):
    quantizer = built(SoftVQConfig(K, distance, 0.4, learn_tau, detach, kl_tau))
    z = draw(B, L, D, seed=1).requires_grad_()
    tau = quantizer.log_tau.exp() if learn_tau else 0.4
    answer = reference.soft_vq(z, quantizer.codebook, tau, distance, detach)
    kl = answer.kl
    if kl_tau is not None:
        kl = reference.kl_term(reference.soft_posterior(z, quantizer.codebook, kl_tau, distance, detach))
    inputs = [z, quantizer.codebook, *([quantizer.log_tau] if learn_tau else [])]
    assert_same(quantizer(z), answer, kl, inputs)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_temperature_is_007_where_nothing_is_said(distance):
    quantizer = built(SoftVQConfig(K, distance))
    z = draw(B, L, D, seed=2)
    latent = reference.soft_vq(z, quantizer.codebook, 0.07, distance).latent
    torch.testing.assert_close(quantizer(z).latent, latent)


def test_the_released_form_is_cosine_detached_with_its_own_kl_temperature():
    quantizer = built(SoftVQConfig.released(K))
    z = draw(B, L, D, seed=3).requires_grad_()
    answer = reference.soft_vq(z, quantizer.codebook, 0.07, "cosine", detach=True)
    kl = reference.kl_term(reference.soft_posterior(z, quantizer.codebook, 0.01, "cosine", detach=True))
    assert_same(quantizer(z), answer, kl, [z, quantizer.codebook])


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_learnt_temperature_starts_at_tau_and_gets_gradient(distance):
    quantizer = built(SoftVQConfig(K, distance, 0.3, learn_tau=True))
    assert math.isclose(quantizer.tau.item(), 0.3, rel_tol=1e-6)
    quantized = quantizer(draw(B, L, D))
    for value in (quantized.latent.square().sum(), quantized.losses["kl"]):
        (gradient,) = gradients(value, [quantizer.log_tau])
        assert gradient.abs() > 1e-6


def test_a_fixed_temperature_is_no_parameter():
    assert [name for name, _ in built(SoftVQConfig(K)).named_parameters()] == ["codebook"]


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_detached_codebook_learns_from_the_mixture_only(distance):
    """With the posterior held fixed, dz/dC is q itself; the KL term sees C through the logits alone."""
    detached = built(SoftVQConfig(K, distance, 0.4, detach_codebook=True))
    attached = built(SoftVQConfig(K, distance, 0.4))
    z = draw(B, L, D)
    assert not gradients(detached(z).losses["kl"], [detached.codebook])[0].any()
    assert gradients(attached(z).losses["kl"], [attached.codebook])[0].abs().max() > 1e-4
    (mixture_only,) = gradients(detached(z).latent.sum(), [detached.codebook])
    (both,) = gradients(attached(z).latent.sum(), [attached.codebook])
    assert mixture_only.abs().max() > 1e-4
    assert not torch.allclose(mixture_only, both)


@pytest.mark.parametrize("kl_tau", [None, 0.01])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_kl_term_is_minus_a_mutual_information(distance, kl_tau, scale):
    kl = built(SoftVQConfig(K, distance, kl_tau=kl_tau))(draw(B, 16, D, scale=scale)).losses["kl"]
    assert -math.log(K) - 1e-12 <= kl <= 1e-12


# ---- GMMVQ (Eq. 11)


@pytest.mark.parametrize("weights", ["token", "codeword"])
def test_gmmvq_is_equation_11(weights):
    quantizer = built(GMMVQConfig(K, weights))
    assert quantizer.in_dim == D + (1 if weights == "token" else K)
    encoded = draw(B, L, quantizer.in_dim, seed=4)
    encoded[..., D:] -= 3.0  # soft enough for gradients of every codeword
    encoded.requires_grad_()
    answer = reference.gmm_vq(encoded[..., :D], encoded[..., D:], quantizer.codebook)
    assert_same(quantizer(encoded), answer, answer.kl, [encoded, quantizer.codebook])
    omega_gradient = gradients(answer.latent.sum(), [encoded])[0][..., D:]
    assert omega_gradient.abs().max() > 1e-4


@pytest.mark.parametrize("weights", ["token", "codeword"])
def test_gmmvq_starts_as_softvq(weights):
    """Raw 0 is ω = 1/0.07."""
    gmm, soft = built(GMMVQConfig(K, weights)), built(SoftVQConfig(K))
    z = draw(B, L, D)
    encoded = torch.cat([z, z.new_zeros(B, L, gmm.in_dim - D)], -1)
    torch.testing.assert_close(gmm(encoded).latent, soft(z).latent)
    torch.testing.assert_close(gmm(encoded).losses["kl"], soft(z).losses["kl"])


# ---- VQ (Eq. 2)


def test_vq_takes_the_nearest_codeword():
    quantizer = built(VQConfig(K))
    z = draw(B, 16, D)
    indices = reference.nearest(z, quantizer.codebook)
    assert len(indices.unique()) > 1
    quantized = quantizer(z)
    assert torch.equal(quantized.indices, indices)
    assert torch.equal(quantized.latent, quantizer.codebook[indices])


def test_vq_with_the_cosine_compares_and_gives_unit_vectors():
    quantizer = built(VQConfig(K, "cosine"))
    z = draw(B, 16, D)
    codes = torch.stack([reference.unit(c) for c in quantizer.codebook])
    indices = reference.nearest(reference.each_token(z, reference.unit), codes)
    assert not torch.equal(indices, reference.nearest(z, quantizer.codebook))
    assert torch.equal(quantizer(z).indices, indices)
    torch.testing.assert_close(quantizer(z).latent, codes[indices])


@pytest.mark.parametrize("distance", DISTANCES)
def test_vq_copies_the_gradient_of_z_straight_through(distance):
    quantizer = built(VQConfig(K, distance))
    z, weights = draw(B, L, D).requires_grad_(), draw(B, L, D, seed=1)
    compared = z if distance == "euclidean" else reference.each_token(z, reference.unit)
    got = gradients((quantizer(z).latent * weights).sum(), [z, quantizer.codebook])
    torch.testing.assert_close(got[0], gradients((compared * weights).sum(), [z])[0])
    assert not got[1].any()  # the reconstruction does not move the codebook


@pytest.mark.parametrize("distance", DISTANCES)
def test_vq_losses_are_mean_squares_that_each_pull_one_side(distance):
    quantizer = built(VQConfig(K, distance))
    z = draw(B, L, D).requires_grad_()
    as_compared = (lambda x: x) if distance == "euclidean" else reference.unit
    token, codes = (reference.each_token(z, as_compared), torch.stack([as_compared(c) for c in quantizer.codebook]))
    nearest = codes[reference.nearest(token, codes)]
    expected = {
        "codebook": sum(reference.dot(d, d) for d in (token.detach() - nearest).flatten(0, 1)) / (B * L * D),
        "commitment": sum(reference.dot(d, d) for d in (token - nearest.detach()).flatten(0, 1)) / (B * L * D),
    }
    losses = quantizer(z).losses
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
        for mine, theirs in zip(
            gradients(losses[name], [z, quantizer.codebook]), gradients(value, [z, quantizer.codebook]), strict=True
        ):
            torch.testing.assert_close(mine, theirs)
    assert not gradients(losses["codebook"], [z])[0].any()
    assert not gradients(losses["commitment"], [quantizer.codebook])[0].any()


# ---- KL (Eq. 1) and AE


@pytest.mark.parametrize("training", [True, False])
def test_kl_is_equation_1(training):
    quantizer = built(KLConfig()).train(training)
    encoded, noise = draw(B, L, 2 * D).requires_grad_(), draw(B, L, D, seed=1)
    mean, log_var = encoded[..., :D], encoded[..., D:]
    quantized = quantizer(encoded, noise)
    torch.testing.assert_close(quantized.latent, mean + log_var.exp().sqrt() * noise)
    torch.testing.assert_close(quantized.losses["kl"], reference.gaussian_kl(mean, log_var))
    torch.testing.assert_close(quantized.statistics["posterior_std"], log_var.exp().sqrt().mean().detach())
    assert quantized.indices is None


def test_kl_draws_noise_in_training_and_gives_the_mean_in_evaluation():
    quantizer = built(KLConfig(), 8)
    encoded = torch.cat([draw(4, 64, 8), torch.full((4, 64, 8), 2 * math.log(3.0))], -1)
    torch.manual_seed(0)
    first, second = quantizer(encoded).latent, quantizer(encoded).latent
    assert not torch.equal(first, second)
    noise = (first - encoded[..., :8]) / 3.0  # of 2048 draws: the standard errors are 0.022 and 0.016
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1
    assert torch.equal(quantizer.eval()(encoded).latent, encoded[..., :8])


def test_ae_passes_what_it_gets():
    z = draw(B, L, D)
    quantized = built(AEConfig())(z)
    assert torch.equal(quantized.latent, z)
    assert quantized.indices is None
    assert quantized.losses == {}


# ---- Product (Eq. 12) and Residual (Eq. 13)


@pytest.mark.parametrize("kl", ["group", "pooled"])
@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_product_is_equation_12(axis, kl, distance):
    quantizer = built(ProductConfig(SoftVQConfig(K, distance, 0.4), 2, axis, kl))
    assert not torch.equal(quantizer.inner[0].codebook, quantizer.inner[1].codebook)
    z = draw(B, L, D, seed=5).requires_grad_()
    answer = straight(quantizer)(z)
    expected = answer.kl if kl == "group" else answer.pooled_kl
    assert_same(quantizer(z), answer, expected, [z, *quantizer.parameters()])


def test_pooled_product_uses_the_kl_temperature():
    quantizer = built(ProductConfig(SoftVQConfig.released(K), 2, "token", "pooled"))
    z = draw(B, L, D, seed=5)
    halves = [
        reference.soft_posterior(part, inner.codebook, 0.01, "cosine")
        for part, inner in zip(z.split(2, 1), quantizer.inner, strict=True)
    ]
    torch.testing.assert_close(quantizer(z).losses["kl"], reference.kl_term(torch.cat(halves, 1)))


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("distance", DISTANCES)
def test_residual_is_equation_13_as_meant(depth, distance):
    """Depth 3 is where the printed r_l = r_{l−1} − z_l (the running sum) would give another latent."""
    quantizer = built(ResidualConfig(SoftVQConfig(K, distance, 0.4), depth))
    assert len({id(inner.codebook) for inner in quantizer.inner}) == depth
    z = draw(B, L, D, seed=6).requires_grad_()
    answer = straight(quantizer)(z)
    assert_same(quantizer(z), answer, answer.kl, [z, *quantizer.parameters()])


@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("order", ["residual of product", "product of residual"])
def test_product_and_residual_nest(order, axis):
    """R-PQ, in both orders; indices are B L (groups and depth from the outside in)."""
    leaf = SoftVQConfig(K, tau=0.4)
    if order == "residual of product":
        quantizer = built(ResidualConfig(ProductConfig(leaf, 2, axis), 3))
        groups = [3, 2]
    else:
        quantizer = built(ProductConfig(ResidualConfig(leaf, 3), 2, axis))
        groups = [2, 3]
    z = draw(B, L, D, seed=8).requires_grad_()
    answer = straight(quantizer)(z)
    assert len(answer.posteriors) == 6
    assert_same(quantizer(z), answer, answer.kl, [z, *quantizer.parameters()])
    assert list(quantizer(z).indices.shape) == [B, L, *([3] if axis == "token" else groups)]


@pytest.mark.parametrize("inner", [KLConfig(), GMMVQConfig(K)], ids=["KL", "GMMVQ"])
@pytest.mark.parametrize("axis", ["token", "channel"])
def test_product_hands_each_group_what_its_quantizer_wants(inner, axis):
    """Groups that want more numbers than they give, and their share of the noise."""
    quantizer = built(ProductConfig(inner, 2, axis))
    dim = 1 if axis == "token" else 2
    z, noise = draw(B, L, quantizer.in_dim), draw(B, L, D, seed=1)
    halves = zip(quantizer.inner, z.chunk(2, dim), noise.chunk(2, dim), strict=True)
    parts = [part(z_g, noise_g) for part, z_g, noise_g in halves]
    torch.testing.assert_close(quantizer(z, noise).latent, torch.cat([part.latent for part in parts], dim))
    mean = sum(part.losses["kl"] for part in parts) / 2
    torch.testing.assert_close(quantizer(z, noise).losses["kl"], mean)
