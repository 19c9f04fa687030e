"""What a network costs: multiply-accumulates of its linear layers, as the paper counts them, by module."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def linear_macs(model: nn.Module, call: Callable[[], Any]) -> dict[str, int]:
    """Multiply-accumulates of every linear layer while `call` runs, by the layer's name; attention's own products are
    not among them. Works on the meta device, where nothing is computed."""
    counts: Counter[str] = Counter()

    def hook(name: str) -> Callable:
        def count(layer: nn.Linear, _: Any, output: torch.Tensor) -> None:
            counts[name] += output.numel() * layer.in_features

        return count

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return dict(counts)


def grouped(counts: dict[str, int]) -> dict[str, int]:
    """The same by kind of layer: numbers of blocks taken out of the names."""
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[".".join(part for part in name.split(".") if not part.isdecimal())] += count
    return dict(found)
