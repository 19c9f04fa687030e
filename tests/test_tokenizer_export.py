"""Tokenizers as programs of torch.export: the eager numbers, at any batch size."""

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from softvq.layers import ViTConfig
from softvq.quantizers.base import Quantized, QuantizerConfig
from softvq.quantizers.compose import ProductConfig, ResidualConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from softvq.tokenizer import Reconstruction, Tokenizer, TokenizerConfig

VIT = ViTConfig(width=16, depth=1, heads=2, patch_size=8)
EVA = ViTConfig(width=16, depth=1, heads=2, patch_size=8, layer_scale=None, block="eva02")
REGISTERS = ViTConfig(width=16, depth=1, heads=2, patch_size=8, registers=2)
QUANTIZERS = {
    "released": ProductConfig(SoftVQConfig.released(8), 2, kl="pooled"),
    "Eq. 4": SoftVQConfig(8, learn_tau=True),
    "Eq. 11": GMMVQConfig(8),
    "VQ": ProductConfig(VQConfig(8), 2, "channel"),
    "KL": KLConfig(),
    "AE": AEConfig(),
    "residual": ResidualConfig(SoftVQConfig.released(8), 2, normalise=True),
}
BATCHES = (1, 2, 5)


def tiny(quantizer: QuantizerConfig, **fields) -> Tokenizer:
    torch.manual_seed(0)
    config = {"image_size": 16, "tokens": 4, "latent_dim": 4, "encoder": VIT, "decoder": VIT, **fields}
    tokenizer = Tokenizer(TokenizerConfig(quantizer=quantizer, **config)).eval()
    tokenizer.set_statistics(0.1, 0.5)
    return tokenizer


def images(batch: int) -> Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch)) * 2 - 1


def latents(batch: int) -> Tensor:
    return torch.randn(batch, 4, 4, generator=torch.Generator().manual_seed(batch))


class All(nn.Module):
    """Everything that a tokenizer does, in one program."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Reconstruction]:
        return self.tokenizer.encode(images), self.tokenizer.decode(latents), self.tokenizer(images)


class Indices(nn.Module):
    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        indices = self.tokenizer.encode_indices(images)
        return indices, self.tokenizer.decode_indices(indices)


def stored(module: nn.Module, **inputs: Tensor) -> Callable:
    """The module as a program for any batch, saved and loaded again."""
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in inputs}
    program = torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize("name", QUANTIZERS)
@torch.no_grad()
def test_a_program_gives_the_eager_numbers_at_any_batch_size(name: str):
    module = All(tiny(QUANTIZERS[name]))
    program = stored(module, images=images(2), latents=latents(2))
    for batch in BATCHES:
        given = {"images": images(batch), "latents": latents(batch)}
        whole = program(**given)[2]
        assert type(whole) is Reconstruction
        assert type(whole.quantized) is Quantized
        torch.testing.assert_close(pytree.tree_leaves(program(**given)), pytree.tree_leaves(module(**given)))


@torch.no_grad()
def test_other_architectures_and_sizes_are_programs_too():
    tokenizer = tiny(SoftVQConfig(8), image_size=32, encoder=EVA, decoder=REGISTERS, refine=2)  # 16 px: resampled
    program = stored(tokenizer, images=images(3))
    for batch in BATCHES:
        torch.testing.assert_close(program(images=images(batch)).images, tokenizer(images(batch)).images)


@torch.no_grad()
def test_indices_are_a_programs_too():
    module = Indices(tiny(VQConfig(8)))
    program = stored(module, images=images(2))
    for batch in BATCHES:
        torch.testing.assert_close(program(images=images(batch)), module(images(batch)))


def test_results_are_taken_apart_and_put_together_by_their_fields():
    result = tiny(SoftVQConfig(8))(images(2))
    leaves, spec = pytree.tree_flatten(result)
    same = pytree.tree_unflatten(leaves, pytree.treespec_loads(pytree.treespec_dumps(spec)))
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    for one, other in ((same, result), (same.quantized, result.quantized)):
        assert type(one) is type(other)
    assert same.encoded is result.encoded
    assert same.quantized.indices is result.quantized.indices
    assert same.quantized.losses == result.quantized.losses
    assert same.quantized.assignment == result.quantized.assignment
