"""The convolutional refinement behind the decoder, and what a later field leaves of earlier models' fingerprints."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from softvq import Tokenizer, hub
from softvq import config as configs
from softvq.errors import ConfigError
from softvq.layers import Refinement
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.tokenizer import TokenizerConfig
from softvq.training.initialise import model_start
from softvq.training.tokenizer import new_tokenizer
from tests.test_tokenizer import images, tiny
from tests.training.test_run import tiny_recipe


def filled(refinement: Refinement) -> Refinement:
    """With no weight at 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in refinement.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return refinement


def pair(channels: int = 6) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer without refinement, and one that starts as it."""
    plain, refined = tiny(), tiny(refine=channels)
    model_start(refined, plain)
    return plain, refined


# What it computes


def test_it_starts_as_the_identity():
    plain, refined = pair()
    assert torch.equal(plain(images()).images, refined(images()).images)
    latents = plain.encode(images())
    assert torch.equal(plain.decode(latents, (64, 16)), refined.decode(latents, (64, 16)))
    fresh = Refinement(5)
    assert torch.equal(fresh(images()), images())
    assert all(p.abs().sum() > 0 for p in fresh.conv1.parameters())  # else it would stay so


def convolved(x: list, weight: list, bias: list) -> list:
    """A 3 × 3 convolution of (C, H, W) nested lists, with zeros around."""
    height, width = len(x[0]), len(x[0][0])
    found = []
    for kernels, b in zip(weight, bias, strict=True):
        plane = [[b] * width for _ in range(height)]
        for row in range(height):
            for column in range(width):
                for channel, kernel in enumerate(kernels):
                    for i in range(3):
                        for j in range(3):
                            r, c = row + i - 1, column + j - 1
                            if 0 <= r < height and 0 <= c < width:
                                plane[row][column] += kernel[i][j] * x[channel][r][c]
        found.append(plane)
    return found


@torch.no_grad()
def test_it_adds_two_convolutions_with_a_gelu_between():
    """Against loops over pixels, in float64."""
    refinement = filled(Refinement(4)).double()
    image = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layers = [(conv.weight.tolist(), conv.bias.tolist()) for conv in (refinement.conv1, refinement.conv2)]
    hidden = convolved(image.tolist(), *layers[0])
    hidden = [[[0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in plane] for plane in hidden]
    expected = image + torch.tensor(convolved(hidden, *layers[1]), dtype=torch.float64)
    torch.testing.assert_close(refinement(image[None])[0], expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_it_is_done_to_the_decoders_images_and_reads_across_patches():
    plain, refined = pair()
    filled(refined.decoder.refine)
    latents = plain.encode(images())
    torch.testing.assert_close(refined.decode(latents), refined.decoder.refine(plain.decode(latents)))
    image = torch.zeros(1, 3, 16, 16)
    image[..., 7] = 1  # the last column of the first patch
    moved = refined.decoder.refine(image) - refined.decoder.refine(torch.zeros_like(image))
    assert moved[..., 8:10].abs().min() > 0
    assert not moved[..., 10:].any()  # two pixels, and no more


def test_from_its_start_on_it_learns():
    """To soften an image, which the identity does not."""
    refinement, image = Refinement(8), images(1)
    target = F.avg_pool2d(F.pad(image, (1, 1, 1, 1)), 3, 1)
    optimizer, losses = torch.optim.Adam(refinement.parameters(), 0.01), []
    for step in range(150):
        loss = F.mse_loss(refinement(image), target)
        loss.backward()
        if step < 2:
            gradients = {name: p.grad.abs().sum().item() for name, p in refinement.named_parameters()}
            assert gradients["conv2.weight"] > 0
            assert (gradients["conv1.weight"] > 0) == (step == 1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_in_a_tokenizer_gradients_reach_it_and_go_on_to_the_decoder():
    _, refined = pair()
    filled(refined.decoder.refine)
    refined(images()).images.square().mean().backward()
    for part in (refined.decoder.refine, refined.decoder.to_pixel, refined.encoder.vit.blocks):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())


# Configurations and saved models


def test_negative_channels_are_refused():
    with pytest.raises(ValueError, match="refine must not be negative, not -1"):
        tiny(refine=-1)


def test_by_default_there_is_none():
    assert TokenizerConfig().refine == 0
    assert not [name for name in tiny().state_dict() if "refine" in name]


@torch.no_grad()
def test_a_saved_model_keeps_it(tmp_path: Path):
    _, refined = pair()
    filled(refined.decoder.refine)
    refined.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.config.refine == 6
    assert torch.equal(loaded(images()).images, refined(images()).images)
    assert loaded.fingerprint == refined.fingerprint


def test_a_configuration_from_before_the_field_is_read(tmp_path: Path):
    tiny().save_pretrained(tmp_path)
    written = json.loads((tmp_path / hub.CONFIG).read_text())
    assert written["config"].pop("refine") == 0
    (tmp_path / hub.CONFIG).write_text(json.dumps(written))
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.config == tiny().config
    assert loaded.fingerprint == tiny().fingerprint


def test_a_recipe_goes_on_from_a_model_without_one_not_the_other_way_round(tmp_path: Path):
    torch.manual_seed(5)
    recipe = tiny_recipe()
    refined = replace(recipe, tokenizer=replace(recipe.tokenizer, refine=6))
    for name, one in (("plain", recipe), ("refined", refined)):
        model = Tokenizer(one.tokenizer)
        if name == "refined":
            filled(model.decoder.refine)
        model.save_pretrained(tmp_path / name)
    given = Tokenizer.from_pretrained(tmp_path / "plain")
    started = new_tokenizer(replace(refined, init=str(tmp_path / "plain"))).eval()
    assert all(torch.equal(started.state_dict()[name], tensor) for name, tensor in given.state_dict().items())
    with torch.no_grad():
        assert torch.equal(started(images(2, 16, 16)).images, given(images(2, 16, 16)).images)
    same = new_tokenizer(replace(refined, init=str(tmp_path / "refined")))
    expected = Tokenizer.from_pretrained(tmp_path / "refined").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in same.state_dict().items())
    with pytest.raises(ConfigError, match=r"another model: decoder\.refine\.conv1\.bias is not in both"):
        new_tokenizer(replace(recipe, init=str(tmp_path / "refined")))
    other = replace(refined, tokenizer=replace(refined.tokenizer, refine=4), init=str(tmp_path / "refined"))
    with pytest.raises(ConfigError, match=r"decoder\.refine\.conv1\.weight of shape \(6, 3, 3, 3\), .* has \(4, "):
        new_tokenizer(other)


# Fingerprints


def test_the_bundled_models_fingerprint_is_what_it_was_before_the_field():
    assert Tokenizer.from_pretrained("softvq-emoji-64").fingerprint == "5fa9decc358a4a05"


def test_a_refinement_makes_another_model_of_the_same_latents():
    plain, refined = pair()
    other = tiny(refine=4)
    model_start(other, plain)
    assert len({plain.fingerprint, refined.fingerprint, other.fingerprint}) == 3
    assert len({plain.latent_fingerprint, refined.latent_fingerprint, other.latent_fingerprint}) == 1


@configs.family
class PartConfig:
    """The base of parts."""


@configs.register
@dataclass(frozen=True)
class InnerConfig(PartConfig):
    width: int = 3
    added: int = configs.later(7)


@configs.register
@dataclass(frozen=True)
class OtherConfig(PartConfig):
    inner: InnerConfig = field(default_factory=InnerConfig)
    flag: bool = False


@dataclass(frozen=True)
class OuterConfig:
    inner: PartConfig = field(default_factory=InnerConfig)
    plain: InnerConfig = field(default_factory=InnerConfig)
    maybe: InnerConfig | None = None
    added: float = configs.later(0.5)


def test_identity_leaves_out_later_fields_at_their_defaults_only():
    assert configs.identity(InnerConfig()) == {"width": 3}
    assert configs.identity(InnerConfig(added=8)) == {"width": 3, "added": 8}
    assert configs.identity(InnerConfig(width=7)) == {"width": 7}  # another field at that value stays
    assert configs.to_dict(InnerConfig()) == {"width": 3, "added": 7}  # what is stored is whole


def test_identity_does_so_inside_too():
    assert configs.identity(OuterConfig()) == {
        "inner": {"type": "Inner", "width": 3},
        "plain": {"width": 3},
        "maybe": None,
    }
    config = OuterConfig(OtherConfig(InnerConfig(added=1), True), InnerConfig(added=2), InnerConfig(), 0.25)
    assert configs.identity(config) == {
        "inner": {"type": "Other", "inner": {"width": 3, "added": 1}, "flag": True},
        "plain": {"width": 3, "added": 2},
        "maybe": {"width": 3},
        "added": 0.25,
    }


@pytest.mark.parametrize(
    "quantizer",
    [SoftVQConfig(16), ProductConfig(VQConfig(16), 2, "channel"), ProductConfig(ProductConfig(SoftVQConfig(4), 2), 2)],
)
def test_a_tokenizers_identity_is_its_configuration_without_the_field(quantizer):
    config = tiny(quantizer).config
    whole = configs.to_dict(config)
    assert configs.identity(config) == {name: value for name, value in whole.items() if name != "refine"}
    assert configs.identity(replace(config, refine=2)) == {**whole, "refine": 2}
    assert configs.from_dict(TokenizerConfig, configs.identity(config)) == config
