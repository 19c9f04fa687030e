"""LPIPS against the real package, with the same random VGG16: `make test-reference`."""

from pathlib import Path

import lpips
import pytest
import torch
from safetensors.torch import save_file

from softvq import files
from softvq.pretrained.lpips import LINEAR, LPIPS


@pytest.fixture(scope="module")
def theirs() -> lpips.LPIPS:
    torch.manual_seed(0)
    return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def ours(theirs: lpips.LPIPS, tmp_path_factory) -> LPIPS:
    file = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    layers = {k.split(".", 1)[1]: v for k, v in theirs.net.state_dict().items()}  # slice2.7.weight -> 7.weight
    save_file({f"features.{name}": v.contiguous() for name, v in layers.items()}, file)
    return LPIPS.load(file=file)


@pytest.mark.parametrize("size", [64, 96])
def test_the_same_distances_and_gradients(theirs: lpips.LPIPS, ours: LPIPS, size: int):
    images = (torch.rand(3, 3, size, size) * 2 - 1).requires_grad_()
    targets = torch.rand(3, 3, size, size) * 2 - 1
    expected, found = theirs(images, targets).flatten(), ours(images, targets)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), images)[0] for value in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-7, rtol=1e-4)


def test_the_linear_layers_are_the_packages():
    weights = torch.load(Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", weights_only=True, map_location="cpu")
    for stage in range(5):
        expected = weights[f"lin{stage}.model.1.weight"].flatten()
        assert torch.equal(files.read_tensors(LINEAR)[f"lin{stage}"], expected)
