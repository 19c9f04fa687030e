"""Dropout whose masks are functions of each sample's seed; attention with and without it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from softvq.layers import Attention, Block, Dropout, ViTConfig


def seeded(dropout: Dropout, seeds: list[int], layer: int = 0) -> Dropout:
    dropout.seeds, dropout.layer = torch.tensor(seeds), layer
    return dropout.train()


def splitmix(x: int) -> int:
    """The reference, in Python's whole numbers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


@given(seed=st.integers(0, 2**31 - 1), layer=st.integers(0, 500))
def test_a_mask_is_that_of_splitmix(seed: int, layer: int):
    found = seeded(Dropout(0.5), [seed], layer)(torch.ones(1, 5))[0]
    first = splitmix(seed * 2**20 + layer)
    kept = [splitmix((first + place) % 2**64) % 2**24 / 2**24 >= 0.5 for place in range(5)]
    assert found.tolist() == [2.0 if one else 0.0 for one in kept]


def test_a_sample_has_its_mask_in_every_batch():
    x = torch.randn(4, 7, 16)
    whole = seeded(Dropout(0.3), [3, 1, 4, 5])(x)
    assert torch.equal(seeded(Dropout(0.3), [4, 3])(x[[2, 0]]), whole[[2, 0]])
    assert not torch.equal(seeded(Dropout(0.3), [3, 1, 4, 5], layer=1)(x) == 0, whole == 0)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_the_share_and_the_mean_are_right_and_places_do_not_hang_together(share: float):
    out = seeded(Dropout(share), list(range(200)))(torch.ones(200, 50, 40))
    dropped = (out == 0).double()
    assert dropped.mean() == pytest.approx(share, abs=0.004)
    assert out.mean() == pytest.approx(1, abs=0.01)
    centred = dropped - share
    for shift in ((1, 0), (0, 1), (0, 2)):  # neighbouring samples, neighbouring places
        moved = centred.roll(shift, (0, 2))
        assert abs((centred * moved).mean()) < 0.005


def test_nothing_is_dropped_in_evaluation_or_with_no_share():
    x = torch.randn(2, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_attention_written_out_is_that_of_the_kernel():
    torch.manual_seed(0)
    attention, x = Attention(16, 2, norm_eps=1e-6, dropout=0.5), torch.randn(3, 5, 16)
    for dropout in (attention.drop_weights, attention.drop):
        seeded(dropout, [0, 1, 2])
    attention.drop_weights.share, attention.drop.share = 1e-9, 0.0  # the written-out form, and next to no dropout
    written = attention.train()(x)
    attention.drop_weights.share = 0.0
    torch.testing.assert_close(written, attention(x))


def test_a_block_evaluated_once_more_for_its_gradients_drops_the_same():
    torch.manual_seed(0)
    block = Block(ViTConfig(16, 1, 2, layer_scale=None), query_key_norm=True, dropout=0.4)
    for number, dropout in enumerate(module for module in block.modules() if isinstance(module, Dropout)):
        seeded(dropout, [5, 6], number)
    x = torch.randn(2, 4, 16, requires_grad=True)
    gradients = []
    for through in (block, lambda x: checkpoint(block, x, use_reentrant=False)):
        (gradient,) = torch.autograd.grad(through(x).square().sum(), x)
        gradients.append(gradient)
    assert torch.equal(*gradients)
