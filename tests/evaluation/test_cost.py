"""Multiply-accumulates against products written out."""

import torch
from torch import nn

from softvq.evaluation.cost import grouped, macs


def test_each_linear_layer_counts_its_products():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(7, 2)))
    found = macs(model, lambda: model(torch.zeros(4, 6, 3)))
    assert found == {"0": 24 * 3 * 5, "2.0": 24 * 5 * 7, "2.1": 24 * 7 * 2}
    assert macs(model, lambda: (model(torch.zeros(1, 3)), model(torch.zeros(1, 3))))["0"] == 2 * 15
    assert not model[0]._forward_hooks


def test_on_the_meta_device_and_by_kind():
    with torch.device("meta"):
        model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(1000, 1000), nn.Linear(1000, 10)])})
        found = macs(model, lambda: model["blocks"][1](model["blocks"][0](torch.zeros(100_000, 1000))))
    assert grouped(found) == {"blocks": 100_000 * (1000 * 1000 + 1000 * 10)}
