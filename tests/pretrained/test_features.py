"""Feature networks: how images are resized, what features are, and what a figure that rests on them says of them."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from softvq.errors import ModelError
from softvq.pretrained import inception, lite, vit
from softvq.pretrained.features import DINOV2, FeatureNetwork

TINY_VIT = "tiny_vit_large_patch14_dinov2"


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise over black and white: where bicubic kernels overshoot most."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (count, 3, height, width))
    noise[:, :, : height // 2] = np.where(noise[:, :, : height // 2] > 127, 255, 0)
    return torch.from_numpy(noise.astype(np.uint8))


@pytest.fixture(scope="module")
def tiny() -> FeatureNetwork:
    return FeatureNetwork.load(inception.TINY)


@pytest.fixture(scope="module")
def tiny_vit() -> FeatureNetwork:
    """Its layer scales at 1: as they begin, an image changes a class token in the sixth digit."""
    network = FeatureNetwork.load(TINY_VIT)
    for name, parameter in network.named_parameters():
        if name.endswith(".gamma"):
            parameter.fill_(1.0)
    return network


class Seen(nn.Module):
    """Keeps what it is given."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return images.mean((2, 3))


def resized(network: FeatureNetwork, images: torch.Tensor) -> torch.Tensor:
    """What its network would be given of these images, from [-1, 1] back to [0, 255]."""
    seen = Seen()
    FeatureNetwork(network.name, seen, network.side, 3, network.resizing)(images)
    return (seen.images + 1) * 127.5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 50), (224, 224), (256, 256), (500, 300), (1, 1)])
def test_clean_resizing_is_pillows_in_floats(tiny_vit: FeatureNetwork, height: int, width: int):
    """Bicubic with antialiasing, enlarging and shrinking: each channel as an image of floats, cut to [0, 255], not
    rounded."""
    images = pictures(2, height, width)
    found = resized(tiny_vit, images)
    assert found.shape == (2, 3, 224, 224)
    for image, result in zip(images, found, strict=True):
        for channel, values in zip(image, result, strict=True):
            expected = Image.fromarray(channel.float().numpy()).resize((224, 224), Image.Resampling.BICUBIC)
            np.testing.assert_allclose(values.numpy(), np.asarray(expected).clip(0, 255), rtol=0, atol=1e-3)


def test_resizing_is_the_networks_or_as_asked(tiny: FeatureNetwork, tiny_vit: FeatureNetwork):
    clean = FeatureNetwork.load(inception.TINY, "clean")
    images = pictures(2, 64, 64)
    expected, _ = tiny.network.activations(inception.resized(images.float(), 299))
    assert torch.equal(tiny(images)["pool"], expected)
    torch.testing.assert_close(resized(tiny, images), inception.resized(images.float(), 299), rtol=0, atol=1e-3)
    assert resized(clean, images).shape == (2, 3, 299, 299)
    expected, _ = clean.network.activations(resized(clean, images))
    torch.testing.assert_close(clean(images)["pool"], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(resized(clean, images), resized(tiny, images), atol=1)
    assert not torch.allclose(clean(images)["pool"], tiny(images)["pool"], rtol=1e-3)
    told = [network.protocol["resizing"] for network in (tiny, clean, tiny_vit)]
    assert told[0].startswith("299 px, bilinear as TensorFlow 1")
    assert told[1].startswith("299 px, bicubic with antialiasing")
    assert told[2].startswith("224 px, bicubic with antialiasing")


@pytest.mark.parametrize("name", [DINOV2, TINY_VIT, *lite.NAMES])
def test_tf1_is_inceptions_alone(name: str):
    """Said before weights are looked for."""
    with pytest.raises(ModelError, match=rf"{name} has only the resizing 'clean'; 'tf1' is Inception's\."):
        FeatureNetwork.load(name, "tf1")


def test_unknown_names_are_a_sentence():
    with pytest.raises(ModelError, match="there is no feature network 'resnet50'; there are") as error:
        FeatureNetwork.load("resnet50")
    assert all(name in str(error.value) for name in (inception.NAME, DINOV2, *lite.NAMES))
    assert "\n" not in str(error.value)


def test_eight_bit_rgb_alone_is_taken(tiny_vit: FeatureNetwork):
    """The check of our own: in tests jaxtyping's is before it."""
    images, forward = pictures(2, 16, 16), inspect.unwrap(FeatureNetwork.forward)
    for other in (images.float(), images.to(torch.int32), images[0], images[:, :1], images.permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"images must be 8-bit \(B, 3, H, W\), not torch\.\w+ of \(.*\)\.$"):
            forward(tiny_vit, other)
    assert tiny_vit(images)["pool"].shape == (2, 128)


def test_each_image_has_features_of_its_own(tiny: FeatureNetwork, tiny_vit: FeatureNetwork):
    """In float32, whatever the batch, without gradients; and different images have different ones."""
    images = pictures(4, 40, 40)
    for network in (tiny, tiny_vit):
        found = network(images)
        assert found["pool"].shape == (4, network.width)
        for name, features in found.items():
            alone = torch.cat([network(images[i : i + 1])[name] for i in range(4)])
            torch.testing.assert_close(alone, features, rtol=1e-4, atol=1e-4 * float(features.abs().max()))
            assert features.dtype == torch.float32
            assert not features.requires_grad
            assert float((features[0] - features[1]).norm()) > 1e-3 * float(features[0].norm())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not any(module.training for module in network.modules())


def test_the_spatial_features_are_seven_channels_of_mixed_6d_in_tensorflows_order(tiny: FeatureNetwork):
    """Rows, columns, channels: so `mu_s` and `sigma_s` lie in ADM's files."""
    seen = []
    handle = tiny.network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, result: seen.append(result))
    found = tiny(pictures(3, 50, 50))
    handle.remove()
    assert set(found) == {"pool", "spatial"}
    assert found["spatial"].shape == (3, 7 * 17 * 17)
    expected = [[x[c, i, j] for i in range(17) for j in range(17) for c in range(7)] for x in seen[0]]
    assert torch.equal(found["spatial"], torch.tensor(expected))


def test_the_spatial_features_are_those_that_go_on_through_the_network(tiny: FeatureNetwork):
    """Behind the activation: no value is negative, some are 0."""
    spatial = tiny(pictures(3, 50, 50))["spatial"]
    assert (spatial >= 0).all()
    assert (spatial > 0).any()
    seen = []
    handle = tiny.network.Mixed_6d.register_forward_hook(lambda _, __, result: seen.append(result))
    spatial = tiny(pictures(3, 50, 50))["spatial"]
    handle.remove()
    assert torch.equal(spatial.view(3, 17, 17, 7), seen[0][:, :7].permute(0, 2, 3, 1))


def test_the_vit_gives_its_class_token_of_images_in_its_own_range(tiny_vit: FeatureNetwork):
    images, net = pictures(2, 224, 224), tiny_vit.network
    found = tiny_vit(images)
    assert set(found) == {"pool"}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in vit.describe(TINY_VIT).statistics)
    with torch.no_grad():
        expected = net.vit.features((images.float() / 255 - mean) / std)[:, 0]
    torch.testing.assert_close(found["pool"], expected, rtol=1e-4, atol=1e-5)


def test_logits_are_inceptions_without_the_bias(tiny: FeatureNetwork, tiny_vit: FeatureNetwork):
    pool = torch.randn(9, tiny.width)
    torch.testing.assert_close(tiny.logits(pool), pool @ tiny.network.fc.weight.T, rtol=1e-5, atol=1e-6)
    assert tiny_vit.logits(torch.randn(9, 128)) is None


def test_the_protocol_names_network_weights_and_resizing(tiny: FeatureNetwork, tiny_vit: FeatureNetwork):
    assert tiny.protocol == FeatureNetwork.load(inception.TINY).protocol
    assert set(tiny.protocol) == {"features", "weights", "resizing"}
    assert tiny.protocol["features"] == inception.TINY
    assert len({network.protocol["weights"] for network in (tiny, tiny_vit)}) == 2


def test_the_weights_checksum_is_of_the_numbers_not_of_their_file(tmp_path: Path):
    """Numbers that float16 and bfloat16 hold exactly, in files of each type; and one number changed."""
    generator = torch.Generator().manual_seed(0)
    known = vit.load(TINY_VIT, 518)  # as its real file: at the native size
    plain = {k: torch.randint(-8, 9, v.shape, generator=generator) / 64 for k, v in known.state_dict().items()}

    def checksum(tensors: dict[str, torch.Tensor], name: str) -> str:
        save_file(tensors, tmp_path / f"{name}.safetensors")
        return FeatureNetwork.load(TINY_VIT, file=tmp_path / f"{name}.safetensors").protocol["weights"]

    first = checksum(plain, "float32")
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert checksum({k: v.to(kind) for k, v in plain.items()}, "other") == first
    for name in ("norm.bias", "blocks.0.attn.qkv.weight"):
        changed = {**plain, name: plain[name].clone()}
        changed[name].view(-1)[3] += 1 / 64
        assert checksum(changed, "changed") != first
    assert FeatureNetwork.load(TINY_VIT).protocol["weights"] != first


def test_inceptions_checksum_changes_with_a_running_mean(tiny: FeatureNetwork):
    other = FeatureNetwork.load(inception.TINY)
    assert other.protocol == tiny.protocol
    other.network.Mixed_5b.branch1x1.bn.running_mean[0] += 0.5
    assert other.protocol["weights"] != tiny.protocol["weights"]
