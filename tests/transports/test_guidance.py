"""Guidance: its formula, what it costs, and where it does nothing."""

import pytest
import torch
from torch import Tensor

from softvq.transports.guidance import Guidance, guided
from softvq.transports.samplers import euler, heun

NULL = 9
B = 4
X = torch.randn(B, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS, NULLS = torch.arange(B), torch.full((B,), NULL)


class Counting:
    """A network that says something of every input, and remembers what it was asked."""

    def __init__(self):
        self.rows: list[int] = []
        self.labels: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        assert len(x) == len(t) == len(labels)
        self.rows.append(len(x))
        self.labels += labels.tolist()
        return x * labels.view(-1, 1, 1) + t.view(-1, 1, 1)

    @property
    def nulls(self) -> int:
        return self.labels.count(NULL)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def alone(t: Tensor, labels: Tensor) -> Tensor:
    return X * labels.view(-1, 1, 1) + t.view(-1, 1, 1)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.75, -2.0])
def test_guidance_is_null_plus_scale_times_the_difference(scale):
    network, t = Counting(), times(0.1, 0.4, 0.9, 1.0)
    found = guided(network, LABELS, NULLS, Guidance(scale))(X, t, t)
    with_, without = alone(t, LABELS), alone(t, NULLS)
    torch.testing.assert_close(found, without + scale * (with_ - without))
    assert network.rows == [2 * B]
    assert network.nulls == B


def test_scale_1_is_the_network_at_the_cost_of_one_evaluation_a_step():
    network = Counting()
    field = guided(network, LABELS, NULLS, Guidance(1.0))
    t = times(0.1, 0.4, 0.9, 1.0)
    assert torch.equal(field(X, t, t), alone(t, LABELS))
    network.rows.clear()
    euler(field, X, 5)
    assert network.rows == [B] * 5
    network.rows.clear()
    heun(field, X, 5)
    assert network.rows == [B] * 9
    assert network.nulls == 0


def test_outside_the_interval_no_null_branch_is_computed():
    network = Counting()
    euler(guided(network, LABELS, NULLS, Guidance(2.0, (0.25, 0.75))), X, 8)
    # Steps begin at 1, 7/8, 6/8, …, 1/8; both ends of the interval count.
    assert network.rows == [B, B, 2 * B, 2 * B, 2 * B, 2 * B, 2 * B, B]


def test_both_evaluations_of_a_heun_step_are_guided_as_the_step_began():
    network = Counting()
    heun(guided(network, LABELS, NULLS, Guidance(2.0, (0.0, 0.5))), X, 4)
    # Steps begin at 1, 3/4 (whose second evaluation is at 1/2), 1/2, and 1/4, which is Euler's.
    assert network.rows == [B, B, B, B, 2 * B, 2 * B, 2 * B]


def test_of_a_mixed_batch_the_null_branch_is_computed_for_the_guided_rows_alone():
    network = Counting()
    begun = times(0.9, 0.3, 0.8, 0.5)
    t = times(0.05, 0.15, 0.25, 0.35)  # the network sees these, the interval does not
    found = guided(network, LABELS, NULLS, Guidance(3.0, (0.2, 0.6)))(X, t, begun)
    assert network.rows == [B + 2]
    assert network.labels == [0, 1, 2, 3, NULL, NULL]
    with_, without = alone(t, LABELS), alone(t, NULLS)
    for i, scale in enumerate((1, 3, 1, 3)):
        torch.testing.assert_close(found[i], without[i] + scale * (with_[i] - without[i]))


def test_each_row_has_its_own_null_condition():
    network, nulls = Counting(), torch.tensor([5, 6, 7, 8])
    t = times(0.1, 0.9, 0.2, 0.95)
    guided(network, LABELS, nulls, Guidance(2.0, (0.0, 0.5)))(X, t, t)
    assert network.labels == [0, 1, 2, 3, 5, 7]


def test_only_the_first_channels_are_guided_when_told():
    t = times(0.1, 0.9, 0.2, 0.3)
    found = guided(Counting(), LABELS, NULLS, Guidance(2.0, (0.0, 0.5)), channels=1)(X, t, t)
    with_, without = alone(t, LABELS), alone(t, NULLS)
    torch.testing.assert_close(found[..., 1:], with_[..., 1:])
    inside = torch.tensor([True, False, True, True])
    torch.testing.assert_close(found[inside][..., :1], (2 * with_ - without)[inside][..., :1])
    torch.testing.assert_close(found[~inside], with_[~inside])
    assert not torch.allclose(found[inside][..., :1], with_[inside][..., :1])


def test_the_linear_schedule_rises_from_1_at_the_noise_to_the_scale_at_the_data():
    t = times(1, 0.75, 0.5, 0.25, 0)
    guidance = Guidance(3.0, schedule="linear")
    torch.testing.assert_close(guidance.at(t), times(1, 1.5, 2, 2.5, 3))
    torch.testing.assert_close(Guidance(3.0, (0.2, 0.6), "linear").at(t), times(1, 1, 2, 2.5, 1))
    torch.testing.assert_close(Guidance(3.0).at(t), times(3, 3, 3, 3, 3))
    network = Counting()
    euler(guided(network, LABELS, NULLS, guidance), X, 4)
    assert network.rows == [B, 2 * B, 2 * B, 2 * B]  # the first step begins at the noise, where the scale is 1


@pytest.mark.parametrize("interval", [(-0.1, 0.5), (0.5, 1.1), (0.7, 0.3)])
def test_an_interval_outside_0_to_1_is_an_error_with_its_numbers(interval):
    with pytest.raises(ValueError, match=rf"\[{interval[0]}, {interval[1]}\]"):
        Guidance(2.0, interval)
