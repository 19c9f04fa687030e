"""Multiply-accumulates against products written out, time by a clock that the test winds, memory against sums."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from softvq.evaluation import cost
from softvq.evaluation.cost import call_memory, grouped, macs, timed
from softvq.memory import without_contents

CPU = torch.device("cpu")


def test_each_linear_layer_counts_its_products():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(7, 2)))
    found = macs(model, lambda: model(torch.zeros(4, 6, 3)))
    assert found == {"0": 24 * 3 * 5, "2.0": 24 * 5 * 7, "2.1": 24 * 7 * 2}
    assert macs(model, lambda: (model(torch.zeros(1, 3)), model(torch.zeros(1, 3))))["0"] == 2 * 15
    assert not model[0]._forward_hooks


def test_each_convolution_counts_the_products_of_its_places():
    """Places × kernel × channels of a group × outputs; biases are sums, not products."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 9 × 7 → 5 × 4
        nn.Conv2d(8, 12, (1, 2), groups=4),  # → 5 × 3
        nn.Conv2d(12, 12, 3, groups=12),  # → 3 × 1
        nn.Flatten(),
        nn.Linear(36, 10),
    )
    found = macs(model, lambda: model(torch.zeros(2, 3, 9, 7)))
    assert found == {
        "0": 2 * (5 * 4) * (3 * 3) * 3 * 8,
        "1": 2 * (5 * 3) * (1 * 2) * 2 * 12,
        "2": 2 * (3 * 1) * (3 * 3) * 1 * 12,
        "4": 2 * 36 * 10,
    }


def test_a_call_that_fails_leaves_nothing_behind():
    model = nn.Linear(3, 5)
    with pytest.raises(RuntimeError):
        macs(model, lambda: model(torch.zeros(1, 4)))
    assert not model._forward_hooks


def test_on_the_meta_device_and_by_kind():
    with torch.device("meta"):
        model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(1000, 1000), nn.Linear(1000, 10)])})
        found = macs(model, lambda: model["blocks"][1](model["blocks"][0](torch.zeros(100_000, 1000))))
    assert grouped(found) == {"blocks": 100_000 * (1000 * 1000 + 1000 * 10)}


class Machine:
    """Calls that take as long as is said, on a clock that nothing else moves; a device's work is done only when it is
    waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seconds: float):
        self.now, self.queued, self.calls, self.seconds = 100.0, 0.0, 0, seconds
        monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def call(self) -> None:
        self.now += self.seconds[self.calls]
        self.calls += 1

    def queue(self) -> None:
        self.queued += self.seconds[self.calls]
        self.calls += 1

    def wait(self, *_: object) -> None:
        self.now, self.queued = self.now + self.queued, 0.0


def test_the_time_is_the_fastest_calls_after_one_that_warms_up(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(monkeypatch, 0.5, 4.0, 2.0, 3.0)  # the first is never it
    assert timed(machine.call, CPU, repeats=3) == 2.0
    assert machine.calls == 4


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_what_a_device_still_has_to_do_is_waited_for(monkeypatch: pytest.MonkeyPatch, kind: str):
    machine = Machine(monkeypatch, 9.0, 5.0, 3.0)
    monkeypatch.setattr(getattr(torch, kind), "synchronize", machine.wait)
    assert timed(machine.queue, torch.device(kind), repeats=2) == 3.0
    assert machine.queued == 0


def test_calls_are_measured_without_gradients():
    seen: list[bool] = []
    call = lambda: seen.append(torch.is_grad_enabled())  # noqa: E731
    timed(call, CPU, 1)
    call_memory(nn.Identity(), call)
    macs(nn.Identity(), call)
    assert seen == [False] * 4


def test_memory_is_the_weights_and_what_lives_at_once():
    model = nn.Linear(10, 100, bias=False)  # 4,000 bytes
    model.register_buffer("scale", torch.zeros(50))  # 200

    def chain() -> None:
        x = torch.zeros(1000)  # 4,000; the one before is freed when the next is there
        for _ in range(5):
            x = x + 1

    def kept() -> None:
        found = [torch.zeros(1000)]
        for _ in range(5):
            found.append(found[-1] + 1)

    def in_place() -> None:
        x = torch.zeros(1000)
        x.add_(1).view(10, 100).T.mul_(2)

    def large_first() -> None:
        torch.zeros(7000)
        chain()

    def halves() -> None:
        torch.zeros(1000, dtype=torch.bfloat16)

    def weight_again() -> None:
        model.weight.view(-1)

    expected = {chain: 8000, kept: 24_000, in_place: 4000, large_first: 28_000, halves: 2000, weight_again: 0}
    assert {call.__name__: call_memory(model, call) - 4200 for call in expected} == {
        call.__name__: size for call, size in expected.items()
    }


def test_memory_of_a_small_network():
    """Two hidden activations of 16 × 1,000 at once, before and after the ReLU; the output comes when one is gone."""
    model = nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 10))
    weights = 4 * (10 * 1000 + 1000 + 1000 * 10 + 10)
    images = torch.zeros(16, 10)
    assert call_memory(model, lambda: model(images)) == weights + 2 * 4 * 16 * 1000


def test_memory_of_tensors_without_contents():
    """A terabyte and another, where there are not as many."""
    with without_contents():
        assert call_memory(nn.Identity(), lambda: torch.zeros(10**12) + 1) == 2 * 4 * 10**12
