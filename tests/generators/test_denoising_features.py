"""What a SiT or DiT knows inside: the tokens after so many blocks (`hidden`), and those of noised latents (`features`),
which linear probing reads."""

import math

import pytest
import torch
from torch import Tensor

from softvq.generators.denoising import Denoiser
from softvq.generators.dit import DiTConfig
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import Transformer, TransformerConfig
from tests.generators.models import made

NETWORK = TransformerConfig(tokens=4, channels=3, classes=5, width=16, depth=4, heads=2)
CONFIGS = {
    "SiT linear": SiTConfig(NETWORK, "linear", "uniform"),
    "SiT cosine": SiTConfig(NETWORK, "cosine"),
    "DiT linear": DiTConfig(NETWORK, "linear"),
    "DiT cosine": DiTConfig(NETWORK, "cosine"),
}
GENERATOR = torch.Generator().manual_seed(0)
LATENTS = torch.randn(6, 4, 3, generator=GENERATOR)
NOISE = torch.randn(6, 4, 3, generator=GENERATOR)
TIMES = torch.linspace(0, 1, 6)
LABELS = torch.arange(6)  # the last is the null class


@pytest.fixture(scope="module")
def network() -> Transformer:
    return made(CONFIGS["SiT linear"], std=0.3).network


@torch.no_grad()
def test_the_last_layer_and_what_follows_it_are_the_whole_network(network: Transformer):
    last = network.hidden(LATENTS, TIMES, LABELS, 4)
    condition = network.t_embedder(TIMES) + network.y_embedder(LABELS)
    assert torch.equal(network.final_layer(last, condition), network(LATENTS, TIMES, LABELS))


@torch.no_grad()
def test_each_layer_is_what_its_block_gives(network: Transformer):
    given: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, output: given.append(output)) for block in network.blocks]
    network(LATENTS, TIMES, LABELS)
    for handle in handles:
        handle.remove()
    assert len(given) == 4
    for layer, expected in enumerate(given, start=1):
        assert torch.equal(network.hidden(LATENTS, TIMES, LABELS, layer), expected)
    assert all((one - other).abs().max() > 0.1 for one, other in zip(given[1:], given[:-1], strict=True))


@torch.no_grad()
def test_no_block_is_computed_in_vain(network: Transformer):
    called: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda _, __, number=number: called.append(number))
        for number, block in enumerate(network.blocks)
    ]
    network.hidden(LATENTS, TIMES, LABELS, 2)
    for handle in handles:
        handle.remove()
    assert called == [0, 1]


@pytest.mark.parametrize("layer", [-1, 0, 5])
def test_a_layer_that_is_not_there_is_an_error_with_the_numbers(network: Transformer, layer: int):
    with pytest.raises(ValueError, match=f"layers 1 to 4, not {layer}"):
        network.hidden(LATENTS, TIMES, LABELS, layer)
    with pytest.raises(ValueError, match=f"layers 1 to 4, not {layer}"):
        made(CONFIGS["DiT cosine"]).features(LATENTS, NOISE, 0.5, layer)


def null() -> Tensor:
    return torch.full((6,), 5)


@pytest.mark.parametrize("time", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("path", "alpha", "sigma"),
    [
        ("linear", lambda t: 1 - t, lambda t: t),
        ("cosine", lambda t: math.cos(math.pi * t / 2), lambda t: math.sin(math.pi * t / 2)),
    ],
)
@torch.no_grad()
def test_sits_features_are_of_a_point_of_its_path_at_that_time_without_a_class(path, alpha, sigma, time: float):
    model = made(CONFIGS[f"SiT {path}"], std=0.3)
    point = alpha(time) * LATENTS + sigma(time) * NOISE
    for layer in (1, 3):
        expected = model.network.hidden(point, torch.full((6,), time), null(), layer)
        found = model.features(LATENTS, NOISE, time, layer)
        assert found.shape == (6, 4, 16)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("time", "step"), [(0.0, 0), (0.3, 300), (0.5, round(0.5 * 999)), (0.7, 699), (1.0, 999)])
@pytest.mark.parametrize("betas", ["linear", "cosine"])
@torch.no_grad()
def test_dits_features_are_at_the_nearest_step_of_the_chain(betas: str, time: float, step: int):
    """0.3 · 999 = 299.7 is nearest to 300, 0.7 · 999 = 699.3 to 699."""
    model = made(CONFIGS[f"DiT {betas}"], std=0.3)
    bar = torch.cumprod(1 - model.diffusion.betas, 0)[step]
    point = (bar.sqrt() * LATENTS + (1 - bar).sqrt() * NOISE).float()
    expected = model.network.hidden(point, torch.full((6,), float(step)), null(), 2)
    torch.testing.assert_close(model.features(LATENTS, NOISE, time, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_time_noise_and_layer_matter(name: str):
    """Else the parities above would hold of a network that sees nothing."""
    model: Denoiser = made(CONFIGS[name], std=0.3)
    usual = model.features(LATENTS, NOISE, 0.5, 2)
    for other in (
        model.features(LATENTS, NOISE, 0.49, 2),
        model.features(LATENTS, NOISE.flip(0), 0.5, 2),
        model.features(LATENTS, NOISE, 0.5, 3),
    ):
        assert (usual - other).abs().amax((1, 2)).min() > 1e-3  # of every sample


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_float32_without_a_graph_whatever_the_weights_are(name: str):
    model = made(CONFIGS[name]).bfloat16()
    found = model.features(LATENTS, NOISE, 0.5, 2)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    whole = made(CONFIGS[name]).features(LATENTS, NOISE, 0.5, 2)
    torch.testing.assert_close(found, whole, rtol=0.1, atol=0.1)
