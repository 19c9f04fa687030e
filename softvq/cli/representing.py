"""Latents (and features of a generator) with their classes, of a data set or of a cache: what `probe` and `latents`
look at."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softvq.cli.main import Failure
from softvq.data.latents import INDEX, Latents
from softvq.data.loader import NoneReadable, listing, ordered_batches
from softvq.data.sources import identity
from softvq.evaluation.parts import Part, Parts
from softvq.quantizers.base import Quantized, Quantizer
from softvq.runtime import autocast

Represent = Callable[[Tensor, list[int]], dict[str, Tensor]]  # latents (or images), their numbers → rows


@dataclass(frozen=True)
class Side:
    """A data set: how many images, their classes' names, what they are, and batches of (inputs, labels, numbers,
    unreadable)."""

    name: str
    count: int
    classes: list[str]
    identity: Any
    encoded: bool
    read: Callable[[range], Iterator[tuple[Tensor, Tensor, list[int], dict[str, str]]]]


def open_side(data: str, tokenizer: Any, options: argparse.Namespace) -> Side:
    """Images, or a folder that `softvq encode` made with this tokenizer."""
    if (Path(data) / INDEX).is_file():
        cache = Latents(data)
        if not tokenizer.makes(cache.index.fingerprint):
            raise Failure(f"{data} holds latents of another tokenizer than {options.model}'s.")

        def cached(numbers: range):
            for first in range(numbers.start, numbers.stop, options.batch):
                chosen = list(range(first, min(numbers.stop, first + options.batch)))
                yield torch.stack([cache.read(n, 0) for n in chosen]), cache.labels[chosen], chosen, {}

        return Side(data, len(cache), cache.index.classes, cache.index.identity, True, cached)
    source = listing(data)

    def images(numbers: range):
        size = tokenizer.config.image_size
        batches = ordered_batches(source, size=size, batch_size=options.batch, chosen=numbers, workers=options.workers)
        for batch in batches:
            yield batch.images, batch.labels, batch.positions, batch.bad

    return Side(data, len(source.names), source.classes, identity(source), False, images)


@torch.no_grad()
def represented(side: Side, represent: Represent, folder: Path, device: torch.device, precision: str) -> Parts:
    """Rows of every image, and their `labels`, in parts."""
    parts = Parts(folder, side.count)

    def make(numbers: range, done: Callable[[int], object]) -> Part:
        rows: list[dict[str, Tensor]] = []
        bad: dict[str, str] = {}
        try:
            for inputs, labels, positions, unreadable in side.read(numbers):
                bad |= unreadable
                with autocast(device, precision):
                    found = represent(inputs.to(device), positions)
                rows.append({**{name: tensor.float().cpu() for name, tensor in found.items()}, "labels": labels.cpu()})
                done(len(labels))
        except NoneReadable as error:  # of this part; others may hold some
            bad |= error.bad
        return Part({name: torch.cat([row[name] for row in rows]) for name in (rows[0] if rows else {})}, bad)

    parts.fill(make, side.name)
    return parts


class CodebookCounts:
    """How often each codeword of each codebook was a token's most likely one, and the tokens' posterior entropy, of
    all images that go through a quantizer."""

    def __init__(self, quantizer: Quantizer | None):
        self.counts: dict[int, Tensor] = {}
        self.entropy: list[Tensor] = []
        self.handles = [
            one.register_forward_hook(lambda module, _, result, number=number: self._add(number, module, result))
            for number, one in enumerate([] if quantizer is None else quantizer.leaves)
            if hasattr(one, "codebook")
        ]

    def _add(self, number: int, module: nn.Module, result: Quantized) -> None:
        if result.indices is None or "entropy" not in result.statistics:  # a quantizer of one's own, without them
            return
        size = len(module.codebook)
        found = torch.bincount(result.indices.flatten().cpu(), minlength=size)
        self.counts[number] = self.counts.get(number, torch.zeros(size, dtype=torch.int64)) + found
        tokens = result.indices.numel()
        self.entropy.append(torch.tensor([float(result.statistics["entropy"]) * tokens, tokens], dtype=torch.float64))

    def tensors(self) -> dict[str, Tensor]:
        """`counts` (1, codebooks, K) and `entropy` (1, 2): its sum over tokens, and how many; {} without codebooks."""
        for handle in self.handles:
            handle.remove()
        if not self.counts:
            return {}
        return {"counts": torch.stack(list(self.counts.values()))[None], "entropy": sum(self.entropy)[None]}
