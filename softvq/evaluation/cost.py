"""What a network costs: multiply-accumulates as the paper counts them, time and memory of a call."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from softvq.memory import Memory


@torch.no_grad()
def macs(model: nn.Module, call: Callable[[], Any]) -> dict[str, int]:
    """Multiply-accumulates of every linear and convolutional layer while `call` runs, by the layer's name; attention's
    own products are not among them. Works on the meta device, where nothing is computed."""
    counts: Counter[str] = Counter()

    def hook(name: str) -> Callable:
        def count(layer: nn.Linear | nn.Conv2d, _: Any, output: torch.Tensor) -> None:
            counts[name] += output.numel() * layer.weight[0].numel()

        return count

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
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


@torch.no_grad()
def timed(call: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Seconds of a call: the fastest of `repeats`, after one that warms up."""
    found = []
    for _ in range(1 + repeats):
        _wait(device)
        begun = time.perf_counter()
        call()
        _wait(device)
        found.append(time.perf_counter() - begun)
    return min(found[1:])


@torch.no_grad()
def call_memory(model: nn.Module, call: Callable[[], Any]) -> int:
    """The largest number of bytes that tensors hold at once while a call runs, the model's own included."""
    memory = Memory()
    with memory:
        memory.hold([*model.parameters(), *model.buffers()])
        call()
    return memory.peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
