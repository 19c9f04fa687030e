"""MAR: what is hidden, what the encoder may see, the loss of the masked tokens alone, sizes and saving."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from softvq import files, hub
from softvq.errors import ConfigError, ModelError
from softvq.generators.base import Generator, Noise, Sampling
from softvq.generators.mar import MARConfig, MARNetworkConfig, truncated_normal
from softvq.layers import Dropout
from tests.generators.models import draws_of, made

NETWORK = MARNetworkConfig.named("tiny", tokens=8, channels=3, classes=5)
CONFIG = MARConfig(NETWORK, head_steps=4)
LATENTS = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])


# ---- What is hidden


def test_the_mask_ratio_is_a_normal_between_07_and_1():
    rng = np.random.default_rng(0)
    ratios = torch.tensor([truncated_normal(rng) for _ in range(4000)], dtype=torch.float64).sort().values
    assert ratios[0] >= 0.7
    assert ratios[-1] <= 1
    normal = torch.distributions.Normal(1.0, 0.25)
    low, high = (normal.cdf(torch.tensor(value, dtype=torch.float64)) for value in (0.7, 1.0))
    cdf = (normal.cdf(ratios) - low) / (high - low)
    grid = torch.arange(4001, dtype=torch.float64) / 4000
    gap = torch.maximum((cdf - grid[1:]).abs().max(), (cdf - grid[:-1]).abs().max())
    assert gap < 1.95 / math.sqrt(4000)  # Kolmogorov and Smirnov at 1 in 1,000


def test_as_many_tokens_are_hidden_as_the_ratio_says_in_an_order_of_each_samples_own():
    model = made(CONFIG)
    hidden = Counter()
    for batch in range(40):
        draws = draws_of(model, 0, 1, batch=batch)
        ratio = truncated_normal(np.random.default_rng(batch))
        assert draws["masked"] == math.ceil(8 * ratio)
        hidden[int(draws["masked"])] += 1
    assert set(hidden) == {6, 7, 8}
    orders = draws_of(model, *range(400))["order"]
    assert torch.equal(orders.sort(1).values, torch.arange(8).expand(400, 8))
    counts = torch.stack([torch.bincount(orders[:, i], minlength=8) for i in range(8)]).double()
    assert ((counts - 50) ** 2 / 50).sum() < 95  # χ² of 49 degrees at about 1 in 10,000


def test_what_is_drawn_is_a_function_of_each_samples_generator_but_for_the_ratio():
    model = made(CONFIG)
    together, alone = draws_of(model, 0, 1, 2), draws_of(model, 2)
    for name in ("drop", "time", "order", "noise", "seed"):
        assert torch.equal(together[name][2:], alone[name]), name
        assert not torch.equal(together[name][0], together[name][1]), name
    assert together["noise"].shape == (3, 4, 8, 3)
    assert torch.equal(together["masked"], alone["masked"])  # of the same shared generator
    many = {int(draws_of(model, 0, batch=batch)["masked"]) for batch in range(20)}
    assert len(many) > 1


# ---- Who sees what


def all_but(*hidden: int) -> Tensor:
    """The numbers of the tokens that are visible where these are hidden."""
    return torch.tensor([[token for token in range(8) if token not in hidden]], dtype=torch.long)


@torch.no_grad()
def test_masked_tokens_never_reach_the_network_and_visible_ones_do():
    model = made(CONFIG)
    hidden = (1, 3, 4, 6, 7)
    visible = all_but(*hidden)
    x = LATENTS[:1].clone()
    said = model.places(x, visible, LABELS[:1])
    for token in range(8):
        other = x.clone()
        other[0, token] += 1
        again = model.places(other, visible, LABELS[:1])
        if token in hidden:
            assert torch.equal(again, said)
        else:
            assert (again - said).abs().amax(-1).min() > 1e-5  # at every place
    x[:, list(hidden)] = torch.nan
    assert torch.equal(model.places(x, visible, LABELS[:1]), said)


@torch.no_grad()
def test_the_encoder_is_given_the_buffer_and_the_visible_tokens_alone():
    model, shapes = made(CONFIG), []
    for block in (model.encoder[0], model.decoder[0]):
        block.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[1]))
    model.places(LATENTS[:1], all_but(1, 3, 4, 6, 7), LABELS[:1])
    assert shapes == [4 + 3, 4 + 8]
    shapes.clear()
    model.places(LATENTS[:1], all_but(*range(8)), LABELS[:1])  # nothing but the class
    assert shapes == [4, 4 + 8]


@torch.no_grad()
def test_places_depend_on_the_class_and_on_where_a_token_stands():
    model = made(CONFIG)
    visible = all_but(1, 3, 4, 6, 7).expand(2, -1)
    said = model.places(LATENTS[:1].expand(2, -1, -1), visible, torch.tensor([0, 5]))
    assert (said[0] - said[1]).abs().amax(-1).min() > 1e-5
    assert len(said[0].unique(dim=0)) == 8
    swapped = LATENTS[:1, [2, 1, 0, *range(3, 8)]]
    assert (model.places(swapped, visible[:1], LABELS[:1])[0, 1] - said[0, 1]).abs().max() > 1e-5


@torch.no_grad()
def test_each_sample_of_a_batch_has_its_own_mask():
    model = made(CONFIG)
    visible = torch.cat([all_but(0, 1, 2, 3, 4, 5), all_but(2, 3, 4, 5, 6, 7)])
    together = model.places(LATENTS[:2], visible, LABELS[:2])
    for i in range(2):
        alone = model.places(LATENTS[i : i + 1], visible[i : i + 1], LABELS[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


# ---- The loss


@torch.no_grad()
def test_the_loss_of_a_batch_is_the_losses_one_by_one():
    model = made(CONFIG)
    together = model.loss(LATENTS, LABELS, draws_of(model, 0, 1, 2, 3))
    for i in range(4):
        alone = model.loss(LATENTS[i : i + 1], LABELS[i : i + 1], draws_of(model, i))
        for part, values in together.items():
            torch.testing.assert_close(values[i : i + 1], alone[part], rtol=1e-4, atol=1e-6)
    assert together["loss"].unique().numel() == 4


@torch.no_grad()
def test_the_loss_is_the_heads_at_the_masked_tokens_averaged_over_them_and_the_repeats():
    model = made(MARConfig(NETWORK, dropout=0.0, repeats=2))
    draws = draws_of(model, 0, 1)
    found = model.loss(LATENTS[:2], LABELS[:2], draws)
    count = int(draws["masked"])
    for i in range(2):
        hidden = draws["order"][i, :count].tolist()
        z = model.places(LATENTS[i : i + 1], all_but(*hidden), LABELS[i : i + 1])[0]
        mse, bound = [], []
        for token in hidden:
            for repeat in range(2):
                noise, x = draws["noise"][i, repeat, token][None], LATENTS[i, token][None]
                step = (draws["time"][i, repeat, token] * 1000).long()[None]
                point = model.diffusion.mix(x, noise, step)
                said = model.head(point, step, z[token][None])
                mse.append((said[:, :3] - noise).square().mean())
                bound.append(model.diffusion.bound(x, point, said[:, :3], said[:, 3:], step)[0])
        assert found["mse"][i].item() == pytest.approx(torch.stack(mse).mean().item(), rel=1e-4)
        assert found["bound"][i].item() == pytest.approx(torch.stack(bound).mean().item(), rel=1e-4)
    torch.testing.assert_close(found["loss"], found["mse"] + found["bound"])


@torch.no_grad()
def test_the_loss_counts_no_visible_token():
    """A visible token's noise and time change nothing, a masked one's do."""
    model = made(CONFIG)
    draws = draws_of(model, 0) | {"masked": torch.tensor(6)}
    loss = model.loss(LATENTS[:1], LABELS[:1], draws)["loss"]
    for place, matters in ((0, True), (5, True), (6, False), (7, False)):
        noise, token = draws["noise"].clone(), int(draws["order"][0, place])
        noise[:, :, token] += 1
        again = model.loss(LATENTS[:1], LABELS[:1], draws | {"noise": noise})["loss"]
        assert torch.equal(again, loss) != matters


def test_dropout_of_activations_is_a_function_of_each_samples_seed_and_leaves_torchs_generator_alone():
    model = made(CONFIG).train()
    draws = draws_of(model, 0, 1)

    def loss(*seeds: int) -> Tensor:
        return model.loss(LATENTS[:2], LABELS[:2], draws | {"seed": torch.tensor(seeds)})["loss"].detach()

    state = torch.get_rng_state()
    first = loss(3, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(loss(3, 5), first)
    other = loss(4, 5)
    assert other[0] != first[0]
    assert other[1] == first[1]
    model.eval()
    assert torch.equal(loss(3, 5), loss(4, 6))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_neighbouring_seeds_layers_and_places_agree_no_more_than_by_chance(share: float):
    layers = [Dropout(share).train() for _ in range(2)]
    for number, layer in enumerate(layers):
        layer.layer, layer.seeds = number, torch.tensor([7, 8, 2**31 - 1])
    x = torch.ones(3, 100, 100)
    kept = torch.stack([layer(x) for layer in layers])
    assert set(kept.unique().tolist()) == {0.0, x[0, 0, 0].div(1 - share).item()}
    masks = (kept > 0).double().flatten(2).flatten(0, 1)  # of two layers and three seeds
    chance = 4.5 / math.sqrt(10_000)
    assert ((masks.mean(1) - (1 - share)).abs() < chance * math.sqrt(share * (1 - share))).all()
    shifted = torch.stack([mask.roll(1) for mask in masks])
    correlations = torch.corrcoef(torch.cat([masks, shifted]))
    assert (correlations - torch.eye(12)).abs().max() < chance


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_dropout_of_activations_is_the_same_in_any_batch(share: float):
    model = made(MARConfig(NETWORK, hidden_dropout=share)).train()
    together = model.loss(LATENTS, LABELS, draws_of(model, 0, 1, 2, 3))["loss"].detach()
    for i in range(4):
        alone = model.loss(LATENTS[i : i + 1], LABELS[i : i + 1], draws_of(model, i))["loss"].detach()
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-6)
    still = model.eval().loss(LATENTS, LABELS, draws_of(model, 0, 1, 2, 3))["loss"].detach()
    assert (still - together).abs().min() > 1e-4


def test_labels_are_dropped_before_the_network_sees_them():
    model, seen = made(CONFIG), []
    model.label_embedder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].tolist()))
    draws = draws_of(model, 0, 1, 2, 3) | {"drop": torch.tensor([0.0, 0.5, 0.0999, 0.1])}
    model.loss(LATENTS, LABELS, draws)
    assert seen == [[5, 1, 5, 3]]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_recomputing_gives_the_same_loss_and_gradients(mode):
    model = getattr(made(CONFIG), mode)()
    draws = draws_of(model, 0, 1)
    calls, found = [], []
    model.encoder[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        calls.clear()
        loss = model.loss(LATENTS[:2], LABELS[:2], draws)["loss"]
        loss.sum().backward()
        assert len(calls) == 1 + recompute
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_every_parameter_is_trained():
    model = made(CONFIG)
    model.loss(LATENTS, LABELS, draws_of(model, 0, 1, 2, 3) | {"masked": torch.tensor(6)})["loss"].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_at_the_start_the_head_says_zero():
    torch.manual_seed(0)
    model = CONFIG.build().eval()
    assert (model.head(torch.randn(5, 3), torch.arange(5), torch.randn(5, 32)) == 0).all()
    x = torch.randn(5, 32)
    assert torch.equal(model.head.layers[0](x, torch.randn(5, 32)), x)


# ---- Query-key normalisation


@torch.no_grad()
def test_query_key_norm_bounds_the_logits_that_grow_without_it(monkeypatch):
    largest = {}
    original = torch.nn.functional.scaled_dot_product_attention
    for normed in (True, False):
        model = MARConfig(MARNetworkConfig(8, 3, 5, 32, 2, 2, 32, 2, 4, query_key_norm=normed)).build().eval()
        attention = model.encoder[0].attn
        attention.qkv.weight *= 1000
        seen = []

        def recorded(q, k, v, seen=seen, **options):
            seen.append((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).abs().max().item())
            return original(q, k, v, **options)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
        attention(torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0)))
        largest[normed] = seen[0]
        has_norms = any("q_norm" in name for name, _ in model.named_parameters())
        assert has_norms == normed
    assert largest[True] <= math.sqrt(16) * 1.001  # ‖q‖ ‖k‖ / √d with 16 channels a head
    assert largest[False] > 1e4


# ---- Sizes, saving


@pytest.mark.parametrize(("size", "millions"), [("B", 208), ("L", 479), ("H", 943)])
def test_sizes_are_mars(size, millions):
    """Li et al.'s Table of MAR-B, L and H; ours have no more than the norms of queries and keys besides."""
    with torch.device("meta"):
        model = MARConfig(MARNetworkConfig.named(size, 256, 16, 1000)).build()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path: Path):
    model = made(CONFIG)
    model.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    assert again.config == model.config
    assert not again.training
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())
    draws = draws_of(model, 0, 1, 2, 3)
    torch.testing.assert_close(again.loss(LATENTS, LABELS, draws), model.loss(LATENTS, LABELS, draws))


def test_a_loaded_generator_samples_as_the_one_that_was_saved(tmp_path: Path):
    model = made(CONFIG)
    model.save_pretrained(tmp_path)
    sampling = Sampling("mar", 3)
    one, other = (
        m.sample(LABELS[:2], Noise(0, range(2), (8, 3)), sampling) for m in (model, Generator.from_pretrained(tmp_path))
    )
    assert torch.equal(one, other)


def test_what_cannot_be_loaded_is_a_sentence(tmp_path: Path):
    made(CONFIG).save_pretrained(tmp_path)
    tensors = files.read_tensors(tmp_path / hub.WEIGHTS)
    files.write_tensors(tmp_path / hub.WEIGHTS, {name: t for name, t in tensors.items() if name != "mask_token"})
    with pytest.raises(ModelError, match="lacks the tensor mask_token"):
        Generator.from_pretrained(tmp_path)
    files.write_tensors(tmp_path / hub.WEIGHTS, tensors)
    config = files.read_json(tmp_path / hub.CONFIG)
    config["config"]["repeats"] = 0
    files.write_json(tmp_path / hub.CONFIG, config)
    with pytest.raises(ConfigError, match="repeats must be at least 1"):
        Generator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 33}, "width 33 is not a multiple of heads 2"),
        ({"buffer": 0}, "buffer must be at least 1"),
        ({"classes": -1}, "classes at least 0"),
        ({"head_depth": 257}, "at most 256"),
        ({"tokens": 0}, "must be at least 1"),
    ],
)
def test_impossible_sizes_are_errors(change, sentence):
    plain = {"tokens": 8, "channels": 3, "classes": 5, "width": 32, "depth": 2, "heads": 2}
    with pytest.raises(ValueError, match=sentence):
        MARNetworkConfig(**(plain | change))


@pytest.mark.parametrize("change", [{"dropout": 1.0}, {"hidden_dropout": -0.1}, {"head_steps": 1001}, {"repeats": 0}])
def test_impossible_settings_are_errors(change):
    with pytest.raises(ValueError, match=r"must be (in|at least)"):
        MARConfig(NETWORK, **change)
