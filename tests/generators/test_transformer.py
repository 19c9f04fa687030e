"""The adaLN-Zero transformer: its start, its positions, its conditions, its sizes."""

import math

import pytest
import torch
from torch import Tensor, nn

from softvq.generators.dit import DiT, DiTConfig
from softvq.generators.sit import SiT, SiTConfig
from softvq.generators.transformer import Transformer, TransformerConfig, positions, waves

TINY = TransformerConfig.named("tiny", tokens=4, channels=3, classes=5)
X = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0, 1, 6)
LABELS = torch.arange(6)


def made(config: TransformerConfig = TINY, out_channels: int = 3) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config, out_channels)


def shaken(network: nn.Module, std: float = 0.2) -> nn.Module:
    """With every parameter drawn anew: none is zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return network


def test_at_the_start_each_block_is_the_identity_and_the_output_zero():
    network = made()
    x, condition = torch.randn(2, 4, 32), torch.randn(2, 32)
    for block in network.blocks:
        assert torch.equal(block(x, condition), x)
    assert (network(X, T, LABELS) == 0).all()
    shaken(network)
    assert not torch.allclose(network.blocks[0](x, condition), x, atol=0.1)
    assert network(X, T, LABELS).abs().min() > 0


def test_what_does_not_modulate_starts_random():
    for name, parameter in made().named_parameters():
        modulates = "adaLN_modulation" in name or name.startswith("final_layer.linear")
        assert (parameter == 0).all() == (modulates or name.endswith("bias")), name


def step_of_training(network: Transformer) -> None:
    """Two, as the first reaches the last layer alone."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        (network(X, T, LABELS) - X).square().mean().backward()
        optimizer.step()


def test_time_class_and_place_matter_after_training_has_begun():
    network = made()
    step_of_training(network)
    with torch.no_grad():
        x, t, labels = X[:1].expand(2, -1, -1), T[1:2].expand(2), LABELS[:1].expand(2)
        differences = {
            "time": network(x, torch.tensor([0.2, 0.9]), labels),
            "class": network(x, t, torch.tensor([0, 5])),
            "place": torch.stack([network(x, t, labels)[0], network(x[:, [1, 0, 2, 3]], t, labels)[0, [1, 0, 2, 3]]]),
        }
        for name, (one, other) in differences.items():
            assert (one - other).abs().max() > 1e-5, name
        same = network(x, t, labels)
        torch.testing.assert_close(same[0], same[1])


def test_every_parameter_is_trained():
    network = shaken(made())
    (network(X, T, LABELS) - X).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("model", [SiT(SiTConfig(TINY)), DiT(DiTConfig(TINY))], ids=["SiT", "DiT"])
def test_recomputing_gives_the_same_output_and_gradients(model):
    network = shaken(model.network)
    calls = []
    network.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    found = []
    for recompute in (False, True):
        network.recompute = recompute
        network.zero_grad()
        calls.clear()
        output = network(X, T, LABELS)
        output.square().sum().backward()
        found.append([output.detach(), *(p.grad.clone() for p in network.parameters())])
        assert len(calls) == 1 + recompute
    torch.testing.assert_close(found[1], found[0])


# ---- Positions and times


def test_1d_positions_are_sines_and_cosines_side_by_side():
    table = positions(TransformerConfig(7, 3, 5, 12, 1, 2))
    assert table.shape == (1, 7, 12)
    for place in range(7):
        for i in range(6):
            angle = place / 10_000 ** (2 * i / 12)
            assert table[0, place, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[0, place, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_2d_positions_of_a_small_grid_written_out():
    """Width 8: of the column, then of the row, two sines and two cosines, of frequencies 1 and 1/100."""
    table = positions(TransformerConfig(4, 3, 5, 8, 1, 2, positions="2d"))[0]

    def half(place: int) -> list[float]:
        return [math.sin(place), math.sin(place / 100), math.cos(place), math.cos(place / 100)]

    wanted = [half(0) + half(0), half(1) + half(0), half(0) + half(1), half(1) + half(1)]  # row by row
    torch.testing.assert_close(table, torch.tensor(wanted))
    assert positions(TransformerConfig(9, 3, 5, 8, 1, 2, positions="2d"))[0, 5, :4].tolist() == pytest.approx(half(2))


def test_times_are_cosines_then_sines_of_frequencies_down_to_one_in_ten_thousand():
    t = torch.tensor([0.0, 0.37, 999.0])
    found = waves(t, 8)
    wanted = [
        [f(value / 10_000 ** (i / 4)) for f in (math.cos, math.sin) for i in range(4)] for value in t.double().tolist()
    ]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=1e-4)


# ---- Sizes


def on_meta(size: str, tokens: int = 64, channels: int = 32, kind=SiT, config=SiTConfig):
    with torch.device("meta"):
        return kind(config(TransformerConfig.named(size, tokens, channels, 1000)))


@pytest.mark.parametrize(("size", "millions"), [("XL", 675), ("L", 458), ("B", 130), ("S", 33)])
def test_sizes_are_the_papers(size, millions):
    network = on_meta(size)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def multiply_accumulates(network: nn.Module, *inputs: Tensor) -> int:
    """Of the linear layers, as the paper counts: attention's own products are left out."""
    total = 0

    def count(module: nn.Linear, _, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.in_features

    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    network(*inputs)
    return total


@pytest.mark.parametrize(("tokens", "channels", "billions"), [(32, 64, 14.52), (64, 32, 28.81)])
def test_dit_xl_multiplies_as_often_as_the_paper_says(tokens, channels, billions):
    network = on_meta("XL", tokens, channels, DiT, DiTConfig).network
    with torch.device("meta"):
        inputs = torch.empty(1, tokens, channels), torch.empty(1), torch.empty(1, dtype=torch.long)
    assert multiply_accumulates(network, *inputs) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 30}, "width 30 must be a multiple of 4 and of heads 2"),
        ({"heads": 3}, "width 32 must be a multiple of 4 and of heads 3"),
        ({"tokens": 0}, "must be at least 1"),
        ({"classes": -1}, "classes at least 0"),
        ({"depth": 257}, "at most 256, not 257"),
        ({"positions": "3d"}, "'1d' or '2d', not '3d'"),
        ({"positions": "2d", "tokens": 5}, "square number of tokens, not 5"),
    ],
)
def test_impossible_sizes_are_errors_with_the_numbers(change, sentence):
    plain = {"tokens": 4, "channels": 3, "classes": 5, "width": 32, "depth": 2, "heads": 2}
    with pytest.raises(ValueError, match=sentence):
        TransformerConfig(**(plain | change))
