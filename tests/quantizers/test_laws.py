"""What must hold between quantizers, at their limits and in their gradients, whatever the numbers."""

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from softvq.quantizers.base import Quantizer, assign
from softvq.quantizers.compose import ProductConfig, ResidualConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from tests.quantizers import reference
from tests.quantizers.reference import draw

DISTANCES = ("euclidean", "cosine")
B, L, D, K = 2, 4, 4, 6

LEAVES = {
    "SoftVQ": SoftVQConfig(K, tau=0.4),
    "SoftVQ cosine": SoftVQConfig(K, "cosine", 0.4, learn_tau=True, kl_tau=0.1),
    "GMMVQ token": GMMVQConfig(K),
    "GMMVQ codeword": GMMVQConfig(K, "codeword"),
    "VQ": VQConfig(K),
    "VQ cosine": VQConfig(K, "cosine"),
    "KL": KLConfig(),
    "AE": AEConfig(),
}
VQ = VQConfig(K)
# Nestings of VQ with the axes that their indices have after B L.
SOFT_LEAVES = [name for name in LEAVES if not name.startswith(("VQ", "KL", "AE"))]
NESTS = {
    "VQ": (VQ, []),
    "VQ cosine": (VQConfig(K, "cosine"), []),
    "token": (ProductConfig(VQ, 4, "token"), []),
    "channel": (ProductConfig(VQ, 2, "channel"), [2]),
    "residual": (ResidualConfig(VQ, 3), [3]),
    "token of residual": (ProductConfig(ResidualConfig(VQ, 3), 2, "token"), [3]),
    "channel of residual": (ProductConfig(ResidualConfig(VQ, 3), 2, "channel"), [2, 3]),
    "residual of token": (ResidualConfig(ProductConfig(VQ, 2, "token"), 3), [3]),
    "residual of channel": (ResidualConfig(ProductConfig(VQ, 2, "channel"), 3), [3, 2]),
    "token of channel": (ProductConfig(ProductConfig(VQ, 4, "channel"), 2, "token"), [4]),
    "channel of token": (ProductConfig(ProductConfig(VQ, 4, "token"), 2, "channel"), [2]),
    "residual of channel of residual": (
        ResidualConfig(ProductConfig(ResidualConfig(VQ, 3), 2, "channel"), 2),
        [2, 2, 3],
    ),
}


def leaf(name: str) -> Quantizer:
    torch.manual_seed(3)
    return LEAVES[name].build(D).double()


def with_codebook(config, codebook: Tensor) -> Quantizer:
    quantizer = config.build(codebook.shape[1]).double()
    quantizer.codebook.data = codebook.double().clone()
    return quantizer


# ---- Limits


@pytest.mark.parametrize("distance", DISTANCES)
def test_softvq_becomes_vq_as_tau_goes_to_zero(distance):
    codebook, z = draw(K, D), draw(B, 16, D, seed=1)
    hard = with_codebook(VQConfig(K, distance), codebook)(z)
    gaps = []
    for tau in (1.0, 0.1, 0.01, 1e-5):
        soft = with_codebook(SoftVQConfig(K, distance, tau), codebook)(z)
        gaps.append((soft.latent - hard.latent).norm().item())
        assert torch.equal(soft.indices, hard.indices)  # the most likely codeword is the nearest at every τ
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-9
    torch.testing.assert_close(soft.losses["kl"].exp(), 1 / hard.statistics["perplexity"].double())


@pytest.mark.parametrize("distance", DISTANCES)
def test_softvq_becomes_the_mean_codeword_as_tau_grows(distance):
    quantizer = with_codebook(SoftVQConfig(K, distance, 1e9), draw(K, D))
    quantized = quantizer(draw(B, L, D, seed=1))
    codes = (
        quantizer.codebook if distance == "euclidean" else torch.stack([reference.unit(c) for c in quantizer.codebook])
    )
    torch.testing.assert_close(quantized.latent, codes.mean(0).expand(B, L, D))
    assert abs(quantized.losses["kl"]) < 1e-9


def test_cosine_is_squared_distance_of_unit_vectors_at_twice_the_temperature():
    """−‖a − b‖² / τ = (2⟨a, b⟩ − 2) / τ, so that the softmaxes of squared L2 at τ and of the cosine at τ/2 agree."""
    codebook, z, tau = draw(K, D), draw(B, L, D, seed=1), 0.3
    codes = [reference.unit(c) for c in codebook]

    def squared(token: Tensor) -> Tensor:
        return reference.softmax([-(reference.euclidean(reference.unit(token), c) ** 2) / tau for c in codes])

    q = reference.each_token(z, squared)
    torch.testing.assert_close(reference.soft_posterior(z, codebook, tau / 2, "cosine"), q)
    quantized = with_codebook(SoftVQConfig(K, "cosine", tau / 2), codebook)(z)
    torch.testing.assert_close(quantized.latent, reference.mix(q, torch.stack(codes)))
    assert not torch.allclose(reference.soft_posterior(z, codebook, tau, "cosine"), q)


@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize(
    ("name", "kl"), [*((name, "group") for name in LEAVES), *((name, "pooled") for name in SOFT_LEAVES)]
)
def test_product_of_one_group_is_its_inner(name, axis, kl):
    inner = leaf(name)
    product = ProductConfig(LEAVES[name], 1, axis, kl).build(D).double()
    product.inner[0].load_state_dict(inner.state_dict())
    z, noise = draw(B, L, inner.in_dim), draw(B, L, D, seed=1)
    assert (product.in_dim, product.dim, product.discrete) == (inner.in_dim, D, inner.discrete)
    alone, one = inner(z, noise), product(z, noise)
    torch.testing.assert_close(one.latent, alone.latent)
    torch.testing.assert_close(one.losses, alone.losses)
    torch.testing.assert_close(one.statistics, alone.statistics)
    if alone.indices is not None:
        assert torch.equal(one.indices, alone.indices if axis == "token" else alone.indices[..., None])


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in SOFT_LEAVES])
def test_pooling_needs_a_soft_posterior(name):
    with pytest.raises(ValueError, match="needs soft posteriors"):
        ProductConfig(LEAVES[name], 1, kl="pooled").build(D)


@pytest.mark.parametrize("name", [name for name in LEAVES if LEAVES[name].build(D).in_dim == D])
def test_residual_of_depth_one_is_its_inner(name):
    inner = leaf(name)
    residual = ResidualConfig(LEAVES[name], 1).build(D).double()
    residual.inner[0].load_state_dict(inner.state_dict())
    z = draw(B, L, D)
    assert (residual.in_dim, residual.dim, residual.discrete) == (D, D, inner.discrete)
    alone, one = inner(z), residual(z)
    torch.testing.assert_close(one.latent, alone.latent)
    torch.testing.assert_close(one.losses, alone.losses)
    torch.testing.assert_close(one.statistics, alone.statistics)
    assert alone.indices is None or torch.equal(one.indices, alone.indices[..., None])


@pytest.mark.parametrize(("name", "wanted"), [("KL", 2 * D), ("GMMVQ token", D + 1), ("GMMVQ codeword", D + K)])
def test_residual_refuses_quantizers_that_want_more_than_they_give(name, wanted):
    with pytest.raises(ValueError, match=rf"{wanted} numbers a token and gives {D}"):
        ResidualConfig(LEAVES[name], 2).build(D)


def test_kl_of_the_standard_normal_is_zero_and_never_negative():
    quantizer = KLConfig().build(D)
    assert quantizer(torch.zeros(B, L, 2 * D)).losses["kl"] == 0
    encoded = draw(B, 64, 2 * D, scale=0.1)
    for token in encoded.flatten(0, 1):
        assert quantizer(token[None, None]).losses["kl"] > 0
    mean, std = encoded[..., :D], (encoded[..., D:] / 2).exp()
    normals = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normals(mean, std), normals(0.0, 1.0))
    torch.testing.assert_close(quantizer(encoded).losses["kl"], exact.sum(-1).mean())


# ---- Indices


@pytest.mark.parametrize("name", NESTS)
def test_indices_determine_the_latent_of_vq_and_all_its_nestings(name):
    config, axes = NESTS[name]
    torch.manual_seed(0)
    quantizer = config.build(D).double()
    quantized = quantizer(draw(B, L, D))
    assert quantizer.discrete
    assert list(quantized.indices.shape) == [B, L, *axes]
    assert len(quantized.indices.unique()) > 1
    torch.testing.assert_close(quantizer.lookup(quantized.indices), quantized.latent, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        *(config for config in LEAVES.values() if not isinstance(config, VQConfig)),
        *(ProductConfig(SoftVQConfig(K), 2, axis) for axis in ("token", "channel")),
        ResidualConfig(SoftVQConfig(K), 2),
        ResidualConfig(ProductConfig(SoftVQConfig(K), 2, "channel"), 2),
    ],
    ids=lambda config: type(config).__name__,
)
def test_continuous_quantizers_cannot_be_looked_up(config):
    quantizer = config.build(D).double()
    assert not quantizer.discrete
    indices = quantizer(draw(B, L, quantizer.in_dim)).indices
    with pytest.raises(ValueError, match="continuous latents"):
        quantizer.lookup(torch.zeros(B, L, dtype=torch.long) if indices is None else indices)


@pytest.mark.parametrize(("low", "high"), [(-1, 2), (0, K)])
def test_indices_outside_the_codebook_are_an_error_with_the_numbers(low, high):
    with pytest.raises(ValueError, match=rf"from {low} to {high}.*{K} codewords"):
        VQ.build(D).lookup(torch.tensor([[low, high]]))


@pytest.mark.parametrize("config", [ProductConfig(VQ, 2, "channel"), ResidualConfig(VQ, 2)])
@pytest.mark.parametrize("shape", [(B, L), (B, L, 3)])
def test_indices_without_their_axis_are_an_error_with_the_numbers(config, shape):
    with pytest.raises(ValueError, match=rf"{shape[-1]}\).* 2 "):
        config.build(D).lookup(torch.zeros(shape, dtype=torch.long))


# ---- Statistics and the KL term by hand


def statistics(quantized) -> tuple[float, ...]:
    return tuple(quantized.statistics[name].item() for name in ("usage", "perplexity", "entropy", "largest_weight"))


@pytest.mark.parametrize("distance", DISTANCES)
def test_statistics_of_a_uniform_posterior(distance):
    """A token as far from all codewords: q = 1/K."""
    quantizer = with_codebook(SoftVQConfig(D - 1, distance, 0.01), torch.eye(D)[: D - 1])
    quantized = quantizer(torch.eye(D, dtype=torch.float64)[D - 1].expand(B, L, D))
    assert statistics(quantized)[1:] == pytest.approx((D - 1, math.log(D - 1), 1 / (D - 1)))
    assert abs(quantized.losses["kl"]) < 1e-12


@pytest.mark.parametrize(
    "config",
    [SoftVQConfig(D, tau=1e-3), SoftVQConfig(D, "cosine", 1e-3), VQConfig(D)],
    ids=["euclidean", "cosine", "VQ"],
)
def test_statistics_of_collapsed_and_of_perfectly_spread_tokens(config):
    quantizer = with_codebook(config, torch.eye(D))
    collapsed = quantizer(torch.eye(D, dtype=torch.float64)[1].expand(B, L, D))
    assert statistics(collapsed) == pytest.approx((1 / D, 1, 0, 1))
    assert (collapsed.indices == 1).all()
    spread = quantizer(torch.eye(D, dtype=torch.float64).expand(B, D, D))
    assert statistics(spread) == pytest.approx((1, D, 0, 1))
    assert spread.assignment.kl.item() == pytest.approx(-math.log(D))
    if "kl" in spread.losses:
        assert abs(collapsed.losses["kl"]) < 1e-12
        assert spread.losses["kl"].item() == pytest.approx(-math.log(D))


def test_statistics_of_a_posterior_written_by_hand():
    q = torch.tensor([[[0.75, 0.2, 0.05], [0.15, 0.8, 0.05]]], dtype=torch.float64)
    assignment = assign(q.log(), q.argmax(-1))
    mean_entropy = -(q * q.log()).sum().item() / 2
    marginal = -(0.45 * math.log(0.45) + 0.5 * math.log(0.5) + 0.05 * math.log(0.05))
    expected = {"usage": 2 / 3, "perplexity": math.exp(marginal), "entropy": mean_entropy, "largest_weight": 0.775}
    assert {name: value.item() for name, value in assignment.statistics.items()} == pytest.approx(expected)
    assert assignment.kl.item() == pytest.approx(mean_entropy - marginal)


def test_statistics_describe_the_posterior_that_made_z_not_the_one_of_the_kl_term():
    z, codebook = draw(B, L, D), draw(K, D)
    plain = with_codebook(SoftVQConfig(K, tau=0.5), codebook)(z)
    other = with_codebook(SoftVQConfig(K, tau=0.5, kl_tau=0.01), codebook)(z)
    torch.testing.assert_close(other.statistics, plain.statistics)
    assert other.losses["kl"] < plain.losses["kl"] - 0.1


@pytest.mark.parametrize("config", [SoftVQConfig(K, tau=0.4), VQConfig(K)], ids=["SoftVQ", "VQ"])
def test_expectations_run_over_the_batches_of_all_ranks(config):
    """Two ranks in turn: each mean over ranks takes in what the other one gave at the same place."""
    codebook, whole = draw(K, D), draw(2, L, D, seed=2)
    quantizer, given = with_codebook(config, codebook), []

    def recorded(x: Tensor) -> Tensor:
        given.append(x)
        return x

    first = quantizer(whole[:1], reduce=recorded)
    second = quantizer(whole[1:], reduce=lambda x: (x + given.pop(0)) / 2)
    assert not given
    together = quantizer(whole)
    torch.testing.assert_close(second.statistics, together.statistics)
    torch.testing.assert_close(second.assignment.kl, together.assignment.kl)
    assert first.statistics["usage"] < together.statistics["usage"]  # else one rank alone would know as much
    assert quantizer(whole[1:]).statistics["usage"] < together.statistics["usage"]


# ---- Gradients

GRADCHECKED = {
    "SoftVQ": SoftVQConfig(3, tau=0.5),
    "SoftVQ cosine": SoftVQConfig(3, "cosine", 0.5),
    "SoftVQ learnt": SoftVQConfig(3, "cosine", 0.5, learn_tau=True, kl_tau=0.3),
    "GMMVQ token": GMMVQConfig(3),
    "GMMVQ codeword": GMMVQConfig(3, "codeword"),
    "KL": KLConfig(),
    "Product token": ProductConfig(SoftVQConfig(3, tau=0.5), 2, "token"),
    "Product channel": ProductConfig(SoftVQConfig(3, tau=0.5), 2, "channel", "pooled"),
    "Residual": ResidualConfig(SoftVQConfig(3, tau=0.5), 3),
    "Residual of Product": ResidualConfig(ProductConfig(SoftVQConfig(2, tau=0.5), 2, "channel"), 2),
}


@pytest.mark.parametrize("name", GRADCHECKED)
def test_gradients_are_those_of_finite_differences(name):
    torch.manual_seed(1)
    quantizer = GRADCHECKED[name].build(2).double()
    names, parameters = zip(*quantizer.named_parameters(), strict=True) if name != "KL" else ((), ())
    z = draw(1, 2, quantizer.in_dim, seed=2, scale=0.5)
    noise = draw(1, 2, 2, seed=3)

    def outputs(z: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        quantized = functional_call(quantizer, dict(zip(names, values, strict=True)), (z, noise))
        return quantized.latent, quantized.losses["kl"]

    inputs = [z.requires_grad_(), *(p.detach().clone().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(outputs, inputs)


@pytest.mark.parametrize("name", [name for name in GRADCHECKED if name != "KL"])
def test_the_reconstruction_reaches_the_encoder_and_every_codeword(name):
    torch.manual_seed(1)
    quantizer = GRADCHECKED[name].build(D).double()
    z = draw(B, L, quantizer.in_dim).requires_grad_()
    before = copy.deepcopy(quantizer.state_dict())
    (quantizer(z).latent * draw(B, L, D, seed=1)).sum().backward()
    assert z.grad.abs().flatten(0, 1).amax(0).min() > 1e-6  # every number the encoder gives
    for parameter in quantizer.parameters():
        gradient = parameter.grad.reshape(parameter.shape[0] if parameter.ndim else 1, -1)
        assert gradient.abs().amax(-1).min() > 1e-6
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("config", [SoftVQConfig.released(64), SoftVQConfig(64, tau=1e-3)], ids=["cosine", "euclidean"])
def test_the_kl_gradient_is_finite_where_codewords_get_no_weight(config):
    """Collapsed tokens at a small temperature: E q of far codewords underflows to 0 in float32, where the derivative
    of −q log q is infinite but that of q is 0, so that their product must not become a NaN."""
    torch.manual_seed(0)
    quantizer = config.build(8)
    z = torch.randn(1, 1, 8).repeat(B, L, 1) + 0.01 * torch.randn(B, L, 8)
    z.requires_grad_()
    quantized = quantizer(z)
    assert (quantized.assignment.mean == 0).any()
    quantized.losses["kl"].backward()
    assert z.grad.isfinite().all()


def test_a_token_on_a_codeword_has_finite_gradients():
    """The norm has no derivative at 0; it is taken as 0."""
    quantizer = with_codebook(SoftVQConfig(D, tau=0.5), torch.eye(D))
    z = torch.eye(D, dtype=torch.float64)[None].requires_grad_()
    quantized = quantizer(z)
    (quantized.latent.square().sum() + quantized.losses["kl"]).backward()
    assert z.grad.isfinite().all()
    assert quantizer.codebook.grad.isfinite().all()
