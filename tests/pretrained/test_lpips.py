"""LPIPS without the package `lpips` (parity with it is in tests/reference): its formula, and how files are refused."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from softvq import files
from softvq.errors import ModelError
from softvq.pretrained.lpips import LINEAR, LPIPS, NAME, TINY, VGG16, unit

CONVS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # features.N of torchvision's VGG16
TAPS = [3, 8, 15, 22, 29]  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


@pytest.fixture(scope="module")
def tiny() -> LPIPS:
    """The stand-in, with linear layers that differ from each other and from channel to channel."""
    lpips = LPIPS.load(TINY)
    generator = torch.Generator().manual_seed(0)
    for stage in range(5):
        linear = getattr(lpips, f"lin{stage}")
        linear.copy_(torch.rand(linear.shape, generator=generator) * (stage + 1))
    return lpips


def pictures(seed: int, count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def reference(lpips: LPIPS, image: torch.Tensor, target: torch.Tensor) -> float:
    """Of one pair (3, H, W), in float64: VGG16 by layer numbers, then the sums place by place."""
    activations = []
    for x in (image, target):
        x = x.double()
        shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
        x = ((x - shift) / scale)[None]
        weights, found = {k: v.double() for k, v in lpips.vgg.state_dict().items()}, []
        for number in range(30):
            if number in CONVS:
                x = F.conv2d(x, weights[f"features.{number}.weight"], weights[f"features.{number}.bias"], padding=1)
            elif number - 1 in CONVS:
                x = x.clamp(min=0)
            else:
                x = F.max_pool2d(x, 2)
            if number in TAPS:
                found.append(x[0])
        activations.append(found)
    distance = 0.0
    for stage, (a, b) in enumerate(zip(*activations, strict=True)):
        w, places = getattr(lpips, f"lin{stage}").tolist(), []
        for p, q in zip(a.flatten(1).T.tolist(), b.flatten(1).T.tolist(), strict=True):
            lengths = [math.sqrt(math.fsum(v * v for v in vector)) + 1e-10 for vector in (p, q)]
            terms = (c * (s / lengths[0] - t / lengths[1]) ** 2 for c, s, t in zip(w, p, q, strict=True))
            places.append(math.fsum(terms))
        distance += math.fsum(places) / len(places)
    return distance


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_the_sum_over_stages_of_the_mean_over_places(tiny: LPIPS, size: tuple[int, int]):
    images, targets = pictures(1, 2, 40)[..., : size[0], : size[1]], pictures(2, 2, 40)[..., : size[0], : size[1]]
    found = tiny(images, targets)
    assert found.shape == (2,)
    for distance, image, target in zip(found.tolist(), images, targets, strict=True):
        assert distance == pytest.approx(reference(tiny, image, target), rel=2e-5)


@torch.no_grad()
def test_0_for_equal_images_positive_otherwise_the_same_both_ways(tiny: LPIPS):
    a, b = pictures(1), pictures(2)
    assert tiny(a, a).tolist() == [0, 0, 0]
    assert (tiny(a, b) > 0).all()
    torch.testing.assert_close(tiny(a, b), tiny(b, a))
    nearer = tiny(a, a + 0.1 * (b - a))
    assert (nearer < tiny(a, b)).all()


@torch.no_grad()
def test_each_image_has_a_distance_of_its_own(tiny: LPIPS):
    a, b = pictures(1), pictures(2)
    together = tiny(a, b)
    alone = torch.cat([tiny(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    mixed = tiny(a, torch.stack([a[0], b[1], a[2]]))
    assert [value > 0 for value in mixed.tolist()] == [False, True, False]


@pytest.mark.parametrize("bias", [-0.05, -100.0])
@pytest.mark.parametrize("grey", [-1.0, 0.0, 1.0, None])
def test_no_gradient_is_nan_where_all_channels_are_0(bias: float, grey: float | None):
    """Black, grey and white images, and a network that says nothing of some places, or of all."""
    lpips = LPIPS.load(TINY)
    with torch.no_grad():
        for layer in lpips.vgg.features:
            if isinstance(layer, nn.Conv2d):
                layer.bias.fill_(bias)
    images = pictures(3, 2) if grey is None else torch.full((2, 3, 32, 32), grey)
    images.requires_grad_()
    assert any((x.abs().sum(1) == 0).any() for x in lpips.vgg(images))
    distances = lpips(images, pictures(1, 2))
    distances.sum().backward()
    assert distances.isfinite().all()
    assert images.grad.isfinite().all()
    if bias == -100:
        assert distances.tolist() == [0, 0]


def test_the_gradient_of_a_length_of_0_is_0():
    """The ReLU in front of it hides a NaN there today."""
    features = pictures(0, 1)
    features[..., :5] = 0
    features.requires_grad_()
    unit(features).square().sum(1).mean().backward()
    assert features.grad.isfinite().all()
    assert not features.grad[..., :5].any()


def test_gradients_reach_the_images_not_the_targets_and_nothing_is_trained(tiny: LPIPS):
    images, targets = pictures(1).requires_grad_(), pictures(2).requires_grad_()
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    tiny(images, targets).sum().backward()
    assert all(gradient.abs().sum() > 0 for gradient in images.grad)
    assert targets.grad is None
    assert not any(p.requires_grad or p.grad is not None for p in tiny.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    assert not any(module.training for module in tiny.modules())


def test_the_gradient_is_the_formulas(tiny: LPIPS):
    image, target = pictures(1, 1, 16).requires_grad_(), pictures(2, 1, 16)
    (gradient,) = torch.autograd.grad(tiny(image, target).sum(), image)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (reference(tiny, (image + s * direction)[0], target[0]) for s in (1e-3, -1e-3))
    assert (ahead - behind) / 2e-3 == pytest.approx(gradient.norm().item(), rel=1e-2)


def test_distances_are_float32_under_autocast(tiny: LPIPS):
    exact = tiny(pictures(1), pictures(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = tiny(pictures(1), pictures(2))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.05, atol=1e-3)


def test_vgg16_is_numbered_as_torchvisions():
    with torch.device("meta"):
        vgg = VGG16()
    kinds = {number: type(layer).__name__ for number, layer in enumerate(vgg.features)}
    assert [number for number, kind in kinds.items() if kind == "Conv2d"] == CONVS
    assert [number for number, kind in kinds.items() if kind == "ReLU"] == [number + 1 for number in CONVS]
    assert [number for number, kind in kinds.items() if kind == "MaxPool2d"] == [4, 9, 16, 23]
    assert vgg.taps == TAPS
    expected = zip(CONVS, WIDTHS, [3, *WIDTHS], strict=False)
    shapes = {f"features.{n}.weight": (width, channels, 3, 3) for n, width, channels in expected}
    shapes |= {f"features.{n}.bias": (width,) for n, width in zip(CONVS, WIDTHS, strict=True)}
    assert {name: tuple(tensor.shape) for name, tensor in vgg.state_dict().items()} == shapes
    assert sum(p.numel() for p in vgg.parameters()) == 14_714_688  # VGG16's convolutions


def test_the_stages_are_the_activations_behind_the_relus():
    torch.manual_seed(0)
    vgg, images = VGG16(1 / 8), pictures(1, 1)
    found = vgg(images)
    assert [tuple(x.shape) for x in found] == [
        (1, width // 8, side, side) for width, side in ((64, 32), (128, 16), (256, 8), (512, 4), (512, 2))
    ]
    assert all((x >= 0).all() and (x == 0).any() for x in found)
    for tap, x in zip(TAPS, found, strict=True):
        assert torch.equal(vgg.features[: tap + 1](images), x)


def test_the_bundled_linear_layers():
    linear = files.read_tensors(LINEAR)
    assert {name: tuple(w.shape) for name, w in linear.items()} == {
        f"lin{i}": (width,) for i, width in enumerate((64, 128, 256, 512, 512))
    }
    assert sum(w.numel() for w in linear.values()) == 1472
    assert all((w >= 0).all() for w in linear.values())  # so that no distance is negative


def test_the_stand_in_is_the_same_every_time_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = LPIPS.load(TINY), LPIPS.load(TINY)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_local_file_with_its_classifier(tmp_path: Path):
    torch.manual_seed(0)
    vgg = VGG16()
    file = tmp_path / "vgg.safetensors"
    save_file(vgg.state_dict() | {"classifier.6.bias": torch.zeros(3), "head.fc.bias": torch.zeros(3)}, file)
    lpips = LPIPS.load(NAME, file)
    assert all(torch.equal(t, lpips.vgg.state_dict()[name]) for name, t in vgg.state_dict().items())
    assert all(torch.equal(w, getattr(lpips, name)) for name, w in files.read_tensors(LINEAR).items())
    assert not any(p.requires_grad for p in lpips.parameters())
    assert lpips(pictures(1, 1), pictures(2, 1)).item() > 0


def small_file(tmp_path: Path, **changes) -> Path:
    """Every tensor's name, with numbers of no use: what is wrong is found before they are looked at."""
    names = [f"features.{n}.{kind}" for n in CONVS for kind in ("bias", "weight")]
    tensors = {name: torch.zeros(1) for name in names} | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "vgg.safetensors")
    return tmp_path / "vgg.safetensors"


def test_bad_files_are_sentences(tmp_path: Path):
    with pytest.raises(ModelError, match=r"nowhere\.safetensors does not exist"):
        LPIPS.load(NAME, tmp_path / "nowhere.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="truncated or not a safetensors file"):
        LPIPS.load(NAME, tmp_path / "broken.safetensors")
    with pytest.raises(ModelError, match=r"vgg\.safetensors lacks the tensor features\.28\.bias"):
        LPIPS.load(NAME, small_file(tmp_path, **{"features.28.bias": None}))
    with pytest.raises(ModelError, match=r"has the tensor features\.30\.weight, which the model has not"):
        LPIPS.load(NAME, small_file(tmp_path, **{"features.30.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"features\.\d+\.\w+ has shape \(1,\), expected \("):
        LPIPS.load(NAME, small_file(tmp_path))
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"other\.safetensors has only 0 tensors"):
        LPIPS.load(NAME, tmp_path / "other.safetensors")


def test_unknown_names_are_told_those_there_are():
    with pytest.raises(ModelError, match=f"there is no perceptual network 'alex'; there are {NAME} and {TINY}"):
        LPIPS.load("alex")


def test_weights_that_are_not_here_are_a_sentence(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=f"'timm/{NAME}' is no folder here"):
        LPIPS.load()
