"""Properties over random shapes, the precision of the arithmetic, and the configurations' way to JSON and back."""

import json
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from softvq import config as configs
from softvq.quantizers.base import MOST_CODEBOOKS, Quantizer
from softvq.quantizers.compose import ProductConfig, ResidualConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from softvq.tokenizer import TokenizerConfig
from tests.quantizers.reference import draw

small = st.integers(1, 4)
sizes = st.integers(1, 7)
seeds = st.integers(0, 10_000)
scales = st.sampled_from([1e-3, 1.0, 20.0])
distances = st.sampled_from(["euclidean", "cosine"])
axes = st.sampled_from(["token", "channel"])
taus = st.sampled_from([0.01, 0.07, 1.0])
quick = settings(max_examples=25, deadline=None)
ROUNDING = 1e-6  # codewords are made of unit length, and hard assignments counted, in float32


def built(config, dim: int, seed: int) -> Quantizer:
    torch.manual_seed(seed)
    return config.build(dim).double()


def soft_configs(K: int) -> st.SearchStrategy:
    return st.one_of(
        st.builds(SoftVQConfig, st.just(K), distances, taus, st.booleans(), st.booleans(), st.none() | taus),
        st.builds(GMMVQConfig, st.just(K), st.sampled_from(["token", "codeword"])),
    )


def categorical_configs(K: int) -> st.SearchStrategy:
    return soft_configs(K) | st.builds(VQConfig, st.just(K), distances)


# ---- Shapes and ranges


@quick
@given(B=small, L=small, D=small, K=sizes, seed=seeds, scale=scales, data=st.data())
def test_a_mixture_stays_in_the_hull_of_its_codewords(B, L, D, K, seed, scale, data):
    quantizer = built(data.draw(categorical_configs(K)), D, seed)
    quantized = quantizer(draw(B, L, quantizer.in_dim, seed=seed, scale=scale))
    assert quantized.latent.shape == (B, L, D)
    assert quantized.indices.shape == (B, L)
    assert 0 <= quantized.indices.min() <= quantized.indices.max() < K
    codes = quantizer.codebook.detach()  # of unit length as built, so also as the cosine mixes them
    assert (quantized.latent.norm(dim=-1) <= codes.norm(dim=-1).max() + ROUNDING).all()
    direction = draw(D, seed=seed + 1)
    along = quantized.latent @ direction
    assert (along <= (codes @ direction).max() + ROUNDING).all()
    assert (along >= (codes @ direction).min() - ROUNDING).all()


@quick
@given(B=small, L=small, D=small, K=sizes, seed=seeds, scale=scales, data=st.data())
def test_statistics_stay_in_their_ranges(B, L, D, K, seed, scale, data):
    quantizer = built(data.draw(categorical_configs(K)), D, seed)
    quantized = quantizer(draw(B, L, quantizer.in_dim, seed=seed, scale=scale))
    values = {name: value.item() for name, value in quantized.statistics.items()}
    assert 1 / K - ROUNDING <= values["usage"] <= min(1, B * L / K) + ROUNDING
    assert math.isclose(values["usage"] * K, len(quantized.indices.unique()), rel_tol=1e-5)
    assert 1 - ROUNDING <= values["perplexity"] <= K + ROUNDING
    assert -ROUNDING <= values["entropy"] <= math.log(K) + ROUNDING
    assert 1 / K - ROUNDING <= values["largest_weight"] <= 1 + ROUNDING
    assert -math.log(K) - ROUNDING <= quantized.assignment.kl <= ROUNDING
    assert not any(value.requires_grad for value in quantized.statistics.values())


@quick
@given(D=small, K=sizes, seed=seeds, scale=scales, data=st.data())
def test_a_posterior_sums_to_one(D, K, seed, scale, data):
    """Of a single token, E q is q itself."""
    quantizer = built(data.draw(soft_configs(K)), D, seed)
    quantized = quantizer(draw(1, 1, quantizer.in_dim, seed=seed, scale=scale))
    q = quantized.assignment.mean
    assert q.shape == (K,)
    assert (q >= 0).all()
    assert math.isclose(q.sum().item(), 1, abs_tol=1e-12)
    assert q.argmax() == quantized.indices
    assert abs(quantized.losses["kl"].item()) < 1e-12


@quick
@given(
    B=small,
    L=small,
    D=small,
    K=sizes,
    groups=small,
    depth=small,
    axis=axes,
    swap=st.booleans(),
    seed=seeds,
    data=st.data(),
)
def test_products_and_residuals_keep_shape_and_bound(B, L, D, K, groups, depth, axis, swap, seed, data):
    leaf = data.draw(st.builds(SoftVQConfig, st.just(K), distances, taus) | st.builds(VQConfig, st.just(K), distances))
    inside, outside = ResidualConfig(leaf, depth), ProductConfig(leaf, groups, axis)
    config = ResidualConfig(outside, depth) if swap else ProductConfig(inside, groups, axis)
    L, D = (L * groups, D) if axis == "token" else (L, D * groups)
    quantized = built(config, D, seed)(draw(B, L, D, seed=seed))
    assert quantized.latent.shape == (B, L, D)
    extra = [depth] if axis == "token" else [depth, groups] if swap else [groups, depth]
    assert list(quantized.indices.shape) == [B, L, *extra]
    # Codewords have unit length: a sum of `depth` of them for each of the groups of a token's channels.
    bound = depth * (math.sqrt(groups) if axis == "channel" else 1)
    assert (quantized.latent.norm(dim=-1) <= bound + ROUNDING).all()
    for value in (*quantized.losses.values(), *quantized.statistics.values()):
        assert value.shape == ()
        assert value.isfinite()


@quick
@given(B=small, L=small, D=small, seed=seeds, config=st.sampled_from([KLConfig(), AEConfig()]))
def test_gaussians_keep_shape_and_are_finite(B, L, D, seed, config):
    """Where exp(log σ²) would overflow too."""
    quantizer = built(config, D, seed)
    quantized = quantizer(draw(B, L, quantizer.in_dim, seed=seed, scale=1e4))
    assert quantized.latent.shape == (B, L, D)
    for value in (quantized.latent, *quantized.losses.values(), *quantized.statistics.values()):
        assert value.isfinite().all()


# ---- Symmetries


def assert_moves(quantizer: Quantizer, z: Tensor, order: Tensor, dim: int) -> None:
    plain, moved = quantizer(z), quantizer(z.index_select(dim, order))
    torch.testing.assert_close(moved.latent, plain.latent.index_select(dim, order))
    assert torch.equal(moved.indices, plain.indices.index_select(dim, order))
    torch.testing.assert_close(moved.losses, plain.losses)
    torch.testing.assert_close(moved.statistics, plain.statistics)


@quick
@given(B=small, L=small, D=small, K=sizes, groups=small, axis=axes, seed=seeds, data=st.data())
def test_permuting_images_or_tokens_permutes_the_answer(B, L, D, K, groups, axis, seed, data):
    leaf = data.draw(categorical_configs(K))
    quantizer = built(leaf, D, seed)
    z = draw(B, L, quantizer.in_dim, seed=seed)
    random = torch.Generator().manual_seed(seed)
    assert_moves(quantizer, z, torch.randperm(L, generator=random), 1)
    product = built(ProductConfig(leaf, groups, axis), D * groups, seed)
    z = draw(B, L * groups, product.in_dim, seed=seed)
    assert_moves(product, z, torch.randperm(B, generator=random), 0)


@quick
@given(L=small, D=small, K=sizes, seed=seeds, distance=distances)
def test_the_order_of_the_codewords_does_not_matter(L, D, K, seed, distance):
    quantizer = built(SoftVQConfig(K, distance), D, seed)
    z = draw(2, L, D, seed=seed)
    before = quantizer(z)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
    quantizer.codebook.data = quantizer.codebook.data[order]
    after = quantizer(z)
    torch.testing.assert_close(after.latent, before.latent)
    torch.testing.assert_close(after.losses, before.losses)
    torch.testing.assert_close(after.assignment.mean, before.assignment.mean[order])


@quick
@given(L=small, D=small, K=sizes, seed=seeds, factor=st.sampled_from([0.1, 3.0, 100.0]))
def test_what_each_distance_does_not_see(L, D, K, seed, factor):
    """The cosine: lengths. The Euclidean distance: where the origin is, so that z moves along."""
    z, shift = draw(2, L, D, seed=seed), draw(D, seed=seed + 1)
    cosine = built(SoftVQConfig(K, "cosine"), D, seed)
    expected = cosine(z).latent
    cosine.codebook.data *= factor
    torch.testing.assert_close(cosine(z / factor).latent, expected)
    euclidean = built(SoftVQConfig(K, "euclidean"), D, seed)
    expected = euclidean(z).latent + shift
    euclidean.codebook.data += shift
    torch.testing.assert_close(euclidean(z + shift).latent, expected)


# ---- Wrong group counts


@quick
@given(groups=st.integers(2, 9), whole=st.integers(0, 5), data=st.data())
def test_groups_that_do_not_divide_are_an_error_with_both_numbers(groups, whole, data):
    size = groups * whole + data.draw(st.integers(1, groups - 1))
    with pytest.raises(ValueError, match=rf"\b{size} tokens\b.*\b{groups} "):
        ProductConfig(AEConfig(), groups, "token").build(3)(draw(1, size, 3))
    with pytest.raises(ValueError, match=rf"\bwidth {size}\b.*\b{groups} "):
        ProductConfig(AEConfig(), groups, "channel").build(size)
    with pytest.raises(ValueError, match=rf"\b{size} tokens\b.*\b{groups} "):
        ProductConfig(VQConfig(2), groups, "token").build(3).lookup(torch.zeros(1, size, dtype=torch.long))


# ---- Precision

PRECISE = {
    "SoftVQ": SoftVQConfig(32),
    "SoftVQ released": SoftVQConfig.released(32),
    "GMMVQ": GMMVQConfig(32),
    "VQ": VQConfig(32),
    "VQ cosine": VQConfig(32, "cosine"),
    "KL": KLConfig(),
    "Product": ProductConfig(SoftVQConfig.released(32), 4, "token", "pooled"),
    "Residual": ResidualConfig(SoftVQConfig(32), 3),
    "R-PQ": ResidualConfig(ProductConfig(SoftVQConfig(32), 2, "channel"), 2),
}


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", PRECISE)
def test_distances_and_softmax_run_in_float32(name, dtype, autocast):
    """The answer is that of float32 for the inputs as they are already rounded."""
    torch.manual_seed(0)
    quantizer = PRECISE[name].build(8).eval()
    z = draw(2, 8, quantizer.in_dim).to(dtype)
    expected = quantizer(z.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = quantizer(z)
    assert got.latent.dtype == torch.float32
    torch.testing.assert_close(got.latent, expected.latent, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.losses, expected.losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.statistics, expected.statistics, rtol=1e-6, atol=1e-6)
    assert expected.indices is None or torch.equal(got.indices, expected.indices)


# ---- Configurations

positive = st.floats(1e-4, 1e4)
leaf_configs = st.one_of(
    st.builds(
        SoftVQConfig, st.integers(1, 9999), distances, positive, st.booleans(), st.booleans(), st.none() | positive
    ),
    st.builds(GMMVQConfig, st.integers(1, 9999), st.sampled_from(["token", "codeword"])),
    st.builds(VQConfig, st.integers(1, 9999), distances),
    st.just(KLConfig()),
    st.just(AEConfig()),
)
any_config = st.recursive(
    leaf_configs,
    lambda inner: (
        st.builds(ProductConfig, inner, st.integers(1, 64), axes, st.sampled_from(["group", "pooled"]))
        | st.builds(ResidualConfig, inner, st.integers(1, 16))
    ),
    max_leaves=4,
)


def tokens_for(config) -> int:
    """A number of tokens that every product over tokens can split."""
    if not isinstance(config, ProductConfig | ResidualConfig):
        return 1
    splits = isinstance(config, ProductConfig) and config.axis == "token"
    return tokens_for(config.inner) * (config.groups if splits else 1)


@quick
@given(any_config)
def test_every_quantizer_goes_to_json_and_back(quantizer):
    assume(quantizer.codebooks <= MOST_CODEBOOKS)
    before = TokenizerConfig(tokens=tokens_for(quantizer), quantizer=quantizer)
    text = json.dumps(configs.to_dict(before), allow_nan=False)
    assert json.loads(text)["quantizer"]["type"] == type(quantizer).__name__.removesuffix("Config")
    assert configs.from_dict(TokenizerConfig, json.loads(text)) == before


@pytest.mark.parametrize("name", ["SoftVQ", "GMMVQ", "VQ", "KL", "AE", "Product", "Residual"])
def test_a_bare_name_is_the_variant_with_its_defaults(name):
    config = configs.from_dict(TokenizerConfig, {"quantizer": name}).quantizer
    assert config == type(config)()
    assert type(config).__name__ == f"{name}Config"
    assert configs.override(TokenizerConfig(), {"quantizer": name}).quantizer == config


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ({"type": "SoftVQ", "tau": 0}, "tau must be positive, not 0"),
        ({"type": "SoftVQ", "tau": -0.1}, "tau must be positive, not -0.1"),
        ({"type": "SoftVQ", "tau": math.nan}, "finite"),
        ({"type": "SoftVQ", "tau": math.inf}, "finite"),
        ({"type": "SoftVQ", "tau": "0.07"}, "quantizer.tau must be a number"),
        ({"type": "SoftVQ", "tau": 10**400}, "tau"),
        ({"type": "SoftVQ", "kl_tau": 0.0}, "kl_tau must be positive"),
        ({"type": "SoftVQ", "learn_tau": 1}, "true or false"),
        ({"type": "SoftVQ", "codebook_size": 0}, "at least 1, not 0"),
        ({"type": "SoftVQ", "codebook_size": 8.5}, "whole number"),
        ({"type": "SoftVQ", "codebook_size": True}, "whole number"),
        ({"type": "SoftVQ", "distance": "manhattan"}, "'euclidean', 'cosine'"),
        ({"type": "SoftVQ", "codebok_size": 8}, "did you mean codebook_size"),
        ({"type": "GMMVQ", "codebook_size": -1}, "at least 1, not -1"),
        ({"type": "GMMVQ", "weights": "component"}, "'token', 'codeword'"),
        ({"type": "VQ", "codebook_size": 0}, "at least 1, not 0"),
        ({"type": "VQ", "distance": None}, "'euclidean', 'cosine'"),
        ({"type": "KL", "dim": 4}, "unknown key 'dim'"),
        ({"type": "AE", "dim": 4}, "unknown key 'dim'"),
        ({"type": "Product", "groups": 0}, "groups must be at least 1, not 0"),
        ({"type": "Product", "axis": "height"}, "'token', 'channel'"),
        ({"type": "Product", "kl": "sum"}, "'group', 'pooled'"),
        ({"type": "Product", "inner": {"type": "SQ"}}, "quantizer.inner.type must be one of AE, GMMVQ"),
        ({"type": "Product", "inner": {"type": "VQ", "codebook_size": 0}}, "quantizer.inner: codebook_size"),
        ({"type": "Residual", "depth": 0}, "depth must be at least 1, not 0"),
        ({"type": "Residual", "inner": None}, "quantizer.inner"),
        ({"type": []}, "AE, GMMVQ, KL, Product, Residual, SoftVQ, VQ"),
        ({"codebook_size": 8}, "config.quantizer has the unknown key 'codebook_size'; valid: inner, groups, axis, kl"),
        ("PQ", "AE, GMMVQ, KL, Product, Residual, SoftVQ, VQ"),
        (None, "quantizer"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_values_are_errors_that_say_what_is_valid(quantizer, message):
    with pytest.raises(configs.ConfigError) as error:
        configs.from_dict(TokenizerConfig, {"quantizer": quantizer})
    assert message in str(error.value)
