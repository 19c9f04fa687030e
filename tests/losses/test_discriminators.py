"""Discriminators: the DINO heads, PatchGAN, their batch norm, and what the DINO one reads of its frozen backbone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from softvq.errors import ModelError
from softvq.layers import ViTConfig
from softvq.losses.discriminators import (
    BatchNorm,
    DinoDiscriminatorConfig,
    DinoHeads,
    PatchGAN,
    PatchGANDiscriminatorConfig,
)
from softvq.pretrained.vit import Readouts, load

NAME = "tiny_vit_small_patch16_224"  # two blocks


@pytest.fixture
def heads() -> DinoHeads:
    """Three heads of width 6 and kernel 5 with batch norms that are not at their start."""
    torch.manual_seed(0)
    heads = DinoDiscriminatorConfig(after=(1, 2), kernel=5).build(6)
    for module in heads.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return heads


def tokens(count: int = 3, places: int = 9) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, places, 6, generator=generator) * 2 + 1 for _ in range(count)]


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def convolved(x: np.ndarray, conv: nn.Conv1d) -> np.ndarray:
    """x (B, C, T) along a ring of T places, the kernel's middle at the place itself."""
    weight = numbers(conv.weight)
    bias = 0.0 if conv.bias is None else numbers(conv.bias)  # none in front of a batch norm
    B, _, T = x.shape
    width, k = weight.shape[0], weight.shape[2]
    y = np.zeros((B, width, T))
    for t in range(T):
        y[:, :, t] = bias
        for i in range(k):
            y[:, :, t] += x[:, :, (t + i - k // 2) % T] @ weight[:, :, i].T
    return y


def normalised(x: np.ndarray, norm: BatchNorm, eps: float) -> np.ndarray:
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c].flatten()
        mean = math.fsum(values) / len(values)
        variance = math.fsum((values - mean) ** 2) / len(values)
        y[:, c] = (x[:, c] - mean) / math.sqrt(variance + eps) * norm.weight[c].item() + norm.bias[c].item()
    return y


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x)


def head_reference(readout: torch.Tensor, head: nn.Module) -> np.ndarray:
    x = numbers(readout).transpose(0, 2, 1)
    x = leaky(normalised(convolved(x, head.first.conv), head.first.norm, 1e-6))
    y = leaky(normalised(convolved(x, head.second.conv), head.second.norm, 1e-6))
    return convolved((y + x) / math.sqrt(2), head.last)[:, 0]


def test_a_head_is_three_convolutions_on_a_ring_of_tokens(heads: DinoHeads):
    heads.eval()
    found = heads(tokens())
    expected = [head_reference(x, head) for x, head in zip(tokens(), heads.heads, strict=True)]
    assert found.shape == (4, 3 * 9)
    np.testing.assert_allclose(numbers(found), np.concatenate(expected, axis=1), atol=2e-5)
    assert [head.second.conv.kernel_size for head in heads.heads] == [(5,)] * 3
    assert [head.first.conv.kernel_size for head in heads.heads] == [(1,)] * 3
    assert [(head.last.kernel_size, head.last.out_channels) for head in heads.heads] == [((1,), 1)] * 3


def test_turning_the_ring_turns_the_logits(heads: DinoHeads):
    heads.eval()
    turned = heads([x.roll(4, dims=1) for x in tokens()])
    torch.testing.assert_close(turned, heads(tokens()).unflatten(1, (3, 9)).roll(4, dims=2).flatten(1))


def test_every_readout_has_a_head_of_its_own_and_must_be_there(heads: DinoHeads):
    heads.eval()
    one, two, three = tokens()
    before, after = heads([one, two, three]).split(9, dim=1), heads([one, three, three]).split(9, dim=1)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]
    with pytest.raises(ValueError, match="zip"):
        heads([one, two])


def test_the_papers_heads():
    heads = DinoDiscriminatorConfig().build(384)
    assert len(heads.heads) == 5
    assert {head.second.conv.kernel_size for head in heads.heads} == {(9,)}
    assert heads([torch.zeros(1, 196, 384)] * 5).shape == (1, 5 * 196)


def test_the_largest_singular_value_of_every_convolution_becomes_1(heads: DinoHeads):
    convs = [module for module in heads.modules() if isinstance(module, nn.Conv1d)]
    assert len(convs) == 9
    with torch.no_grad():
        for conv in convs:
            conv.parametrizations.weight.original.mul_(7)
        for _ in range(200):
            heads(tokens())
    for conv in heads.eval().modules():
        if isinstance(conv, nn.Conv1d):
            assert torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() == pytest.approx(1, abs=2e-3)


def test_in_evaluation_mode_the_spectral_norms_stand_still(heads: DinoHeads):
    with torch.no_grad():  # far from converged
        for name, parameter in heads.named_parameters():
            if name.endswith("original"):
                parameter.normal_()
    before = {name: buffer.clone() for name, buffer in heads.named_buffers()}
    assert len(before) == 18  # two vectors a convolution
    heads.eval()
    first = heads(tokens())
    assert torch.equal(heads(tokens()), first)
    assert all(torch.equal(buffer, before[name]) for name, buffer in heads.named_buffers())
    heads.train()
    heads(tokens())
    moved = [name for name, buffer in heads.named_buffers() if not torch.equal(buffer, before[name])]
    assert len(moved) > 9


def test_every_parameter_of_the_heads_gets_a_gradient(heads: DinoHeads):
    images = [x.requires_grad_() for x in tokens()]
    heads(images).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 1e-6 for p in heads.parameters())
    assert all(x.grad.abs().sum() > 0 for x in images)


@pytest.mark.parametrize("shape", [(5, 4, 7), (3, 4, 5, 6), (8, 4)])
@pytest.mark.parametrize("eps", [1e-5, 1e-1])
def test_batch_norm_is_torchs_in_training_mode(shape: tuple[int, ...], eps: float):
    torch.manual_seed(0)
    norm = BatchNorm(4, eps)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    x = (torch.randn(shape) * 3 + 20).requires_grad_()
    direction = torch.randn(shape, dtype=torch.float64)
    exact = [t.detach().double().requires_grad_() for t in (x, norm.weight, norm.bias)]
    expected = F.batch_norm(exact[0], None, None, exact[1], exact[2], training=True, eps=eps)
    found = norm(x)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)
    gradients = torch.autograd.grad((found * direction).sum(), (x, norm.weight, norm.bias))
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * direction).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=5e-5, rtol=1e-4)


def test_batch_norm_keeps_no_running_statistics_and_knows_no_mode():
    norm = BatchNorm(3, 1e-5)
    assert sorted(norm.state_dict()) == ["bias", "weight"]
    x = torch.randn(4, 3, 5)
    first = norm(x)
    norm(x * 9 + 4)
    assert torch.equal(norm(x), first)
    assert torch.equal(norm.eval()(x), first)
    assert torch.equal(norm(x.bfloat16()), norm(x.bfloat16().float()))  # in float32


def test_no_discriminator_has_running_statistics_in_its_state():
    for discriminator in (DinoHeads(2, 6, 3), PatchGAN(PatchGANDiscriminatorConfig(8))):
        assert not [name for name in discriminator.state_dict() if "running" in name or "num_batches" in name]


# PatchGAN


def patchgan(layers: int, width: int = 2) -> PatchGAN:
    torch.manual_seed(0)
    return PatchGANDiscriminatorConfig(width, layers).build(0)


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_as_many_pixels_as_pix2pix_says(layers: int, side: int):
    net = patchgan(layers)
    for number, layer in enumerate(net.layers):
        if isinstance(layer, BatchNorm):  # it couples all places
            net.layers[number] = nn.Identity()
    size = 3 * side - side % 2 + 32
    images = torch.rand(1, 3, size, size, requires_grad=True)
    logits = net([images])
    grid = math.isqrt(logits.shape[1])
    middle = (grid // 2) * grid + grid // 2
    seen = torch.autograd.grad(logits[0, middle], images)[0][0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == side
    assert rows.min() > 0
    assert rows.max() < size - 1
    assert seen.sum() == side * side


@pytest.mark.parametrize(("layers", "grid"), [(3, 30), (2, 62)])
def test_the_grid_of_logits_of_256_px(layers: int, grid: int):
    assert patchgan(layers)([torch.rand(1, 3, 256, 256)]).shape == (1, grid * grid)
    assert patchgan(layers)([torch.rand(2, 3, 64, 96)]).shape == (2, (64 // 2**layers - 2) * (96 // 2**layers - 2))


def test_patchgans_layers():
    net = PatchGANDiscriminatorConfig().build(0)
    convs = [layer for layer in net.layers if isinstance(layer, nn.Conv2d)]
    shape = [(c.in_channels, c.out_channels, c.stride[0], c.bias is not None) for c in convs]
    assert shape == [
        (3, 64, 2, True),
        (64, 128, 2, False),
        (128, 256, 2, False),
        (256, 512, 1, False),
        (512, 1, 1, True),
    ]
    assert {(c.kernel_size, c.padding) for c in convs} == {((4, 4), (1, 1))}
    assert [len(layer.weight) for layer in net.layers if isinstance(layer, BatchNorm)] == [128, 256, 512]
    kinds = [type(layer).__name__ for layer in net.layers]
    inner = ["Conv2d", "BatchNorm", "LeakyReLU"]
    assert kinds == ["Conv2d", "LeakyReLU", *inner, *inner, *inner, "Conv2d"]
    assert {layer.negative_slope for layer in net.layers if isinstance(layer, nn.LeakyReLU)} == {0.2}
    for conv in convs:
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_widths_double_up_to_eight_times_the_first():
    net = PatchGANDiscriminatorConfig(4, 5).build(0)
    widths = [layer.out_channels for layer in net.layers if isinstance(layer, nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


def test_patchgans_logits_row_by_row_against_torchs_own_layers():
    net, images = patchgan(2, 4), torch.rand(3, 3, 32, 24) * 2 - 1
    layers = list(net.layers)
    x = F.leaky_relu(F.conv2d(images, layers[0].weight, layers[0].bias, 2, 1), 0.2)
    for number, stride in ((2, 2), (5, 1)):
        x = F.conv2d(x, layers[number].weight, None, stride, 1)
        x = F.leaky_relu(F.batch_norm(x, None, None, training=True, eps=1e-5), 0.2)
    x = F.conv2d(x, layers[8].weight, layers[8].bias, 1, 1)
    found = net([images])
    torch.testing.assert_close(found, x.reshape(3, -1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"kernel": 4},
        {"kernel": 0},
        {"kernel": -1},
        {"image_size": 0},
        {"after": (0, 3)},
        {"after": (-1,)},
        {"after": (3, 3)},
    ],
)
def test_dino_discriminators_that_cannot_be(fields: dict):
    with pytest.raises(ValueError, match=r"kernel must be odd|after must be increasing"):
        DinoDiscriminatorConfig(**fields)


@pytest.mark.parametrize("fields", [{"width": 0}, {"layers": 0}])
def test_patchgans_that_cannot_be(fields: dict):
    with pytest.raises(ValueError, match="must be at least 1"):
        PatchGANDiscriminatorConfig(**fields)


# Readouts


@pytest.fixture
def readouts() -> Readouts:
    """Of the tiny network with weights large enough for every block to matter, and a final norm that would show."""
    readouts = Readouts.load(NAME, 48, (1, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in readouts.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return readouts


def pictures(size: int = 48) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def by_hand(readouts: Readouts, images: torch.Tensor) -> list[torch.Tensor]:
    vit = readouts.vit
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    patches = vit.patch_embed(((images + 1) / 2 - mean) / std)
    x = torch.cat([vit.cls_token.expand(len(images), -1, -1), patches], dim=1) + vit.pos_embed
    found = [x]
    for block in vit.blocks:
        x = block(x)
        found.append(x)
    return [x[:, 1:] + x[:, 0].unsqueeze(1) for x in found]


def test_readouts_are_patch_plus_class_token_after_the_embedding_and_the_blocks(readouts: Readouts):
    expected = by_hand(readouts, pictures())
    found = readouts(pictures())
    assert [tuple(x.shape) for x in found] == [(2, 9, readouts.width)] * 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    normed = readouts.vit.norm(readouts.vit.readouts(pictures(), (2,))[-1])
    assert not torch.allclose(found[-1], normed[:, 1:] + normed[:, :1], atol=0.1)


def test_only_the_blocks_that_are_asked_for():
    net = Readouts.load(NAME, 32, (2,))
    assert len(net(pictures(32))) == 2
    torch.testing.assert_close(net(pictures(32)), [Readouts.load(NAME, 32, (1, 2))(pictures(32))[i] for i in (0, 2)])


def test_the_papers_five_readouts():
    """After the embedding and blocks 3, 6, 9 and 12, of a network that is deep and narrow here."""
    from softvq.layers import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(8, 12, 2, 16, layer_scale=None), (2, 2))
    net = Readouts(vit, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), DinoDiscriminatorConfig().after)
    with torch.no_grad():
        expected = [by_hand(net, pictures(32))[i] for i in (0, 3, 6, 9, 12)]
        torch.testing.assert_close(net(pictures(32)), expected)
    assert len(net(pictures(32))) == len(DinoDiscriminatorConfig().build(8).heads)


def test_the_backbone_is_frozen_and_gradients_pass_through_it(readouts: Readouts):
    assert not any(p.requires_grad for p in readouts.parameters())
    readouts.train()
    assert not any(module.training for module in readouts.modules())
    images = pictures().requires_grad_()
    for x in readouts(images):
        (gradient,) = torch.autograd.grad(x.square().sum(), images, retain_graph=True)
        assert all(g.abs().sum() > 0 for g in gradient.flatten(0, 1))
    assert all(p.grad is None for p in readouts.parameters())


def test_the_backbone_is_in_float32_under_autocast(readouts: Readouts):
    expected = readouts(pictures())
    with torch.autocast("cpu", torch.bfloat16):
        found = readouts(pictures())
        half = readouts(pictures().bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert {x.dtype for x in half} == {torch.float32}


def test_more_blocks_than_the_network_has_are_a_sentence():
    with pytest.raises(ModelError, match=f"{NAME} has 2 blocks, but readouts were asked for after 3"):
        Readouts.load(NAME, 32, (1, 3))
    with pytest.raises(ModelError, match="image size 40 is not a multiple"):
        Readouts.load(NAME, 40, (1, 2))
    with pytest.raises(ModelError, match="there is no pretrained ViT 'dino'"):
        Readouts.load("dino", 32, (1, 2))
    assert len(load(NAME, 32).blocks) == 2
