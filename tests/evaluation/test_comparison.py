"""Which images a model does not know: by what its validation images look like, whatever its reconstructions."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from softvq import Tokenizer
from softvq.data.images import to_tensor
from softvq.data.loader import spread
from softvq.data.opening import open_source
from softvq.evaluation.comparison import compare, domain_limits, joined, looks, outside_of_domain
from softvq.models import Coder

RNG = np.random.default_rng(0)


def grey(levels: np.ndarray) -> Tensor:
    """An image of these levels in all channels, in [-1, 1]."""
    return to_tensor(Image.fromarray(levels.astype(np.uint8)).convert("RGB"))[None]


def numbers(image: Tensor) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in looks(image).items()}


def photograph(path: Path) -> Path:
    """What photographs have and emoji have not: no white, and texture up to the border."""
    pixels = RNG.normal(110, 40, (64, 64, 3)).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return to_tensor(Image.open(file))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained("softvq-emoji-64")


@pytest.fixture(scope="module")
def emoji() -> Tensor:
    """150 of the validation images."""
    return spread(open_source("emoji-val"), 64, 150)


def test_white_and_flat_are_shares_of_pixels_and_of_neighbours():
    levels = np.full((16, 16), 250)
    levels[4:8, 4:8] = 100
    assert numbers(grey(levels)) == {
        "white": 240 / 256,
        "border": 1.0,
        "flat": round(1 - 16 / 480, 4),  # 16 of 480 pairs of neighbours lie across the square's sides
        "edges": round(16 / 480, 4),
        "texture": 0.0,
    }
    assert numbers(grey(levels - 10))["white"] == 0  # 240


@pytest.mark.parametrize(("difference", "flat", "edges"), [(16, 1, 0), (17, 0.5, 0), (64, 0.5, 0), (65, 0.5, 0.5)])
def test_neighbours_are_equal_to_16_levels_and_sharply_different_beyond_64(difference, flat, edges):
    found = numbers(grey(np.tile([100, 100 + difference], (16, 8))))  # as many pairs down as across
    assert (found["flat"], found["edges"]) == (flat, edges)


def test_the_border_is_as_even_as_it_is_near_its_median():
    levels = np.full((32, 32), 100)
    levels[:8] = 117  # a quarter of the border's rows: 2 × 32 + 2 × 2 × 6 of 240 pixels
    assert numbers(grey(levels))["border"] == round(1 - (2 * 32 + 2 * 2 * 6) / 240, 4)


def test_texture_is_how_often_changes_turn():
    stripes, ramp = np.tile([100, 140], (16, 8)), np.tile(np.arange(16) * 17, (16, 1))
    assert numbers(grey(stripes))["texture"] == round(0.5 / (0.5 + 0.02), 4)  # across, at every place
    assert numbers(grey(ramp))["texture"] == 0
    assert numbers(grey(np.tile([100, 110], (16, 8))))["texture"] == 0  # JPEG's noise


def test_limits_hold_nearly_all_of_the_images_that_they_are_of(emoji: Tensor):
    described = looks(emoji)
    limits = domain_limits(described)
    assert list(limits) == ["white", "border", "flat", "edges", "texture"]
    assert sum(map(bool, outside_of_domain(limits, described))) <= 2  # beyond a range's margin
    outlier = {name: torch.cat([values.repeat(20), torch.tensor([9.0])]) for name, values in described.items()}
    assert domain_limits(outlier)["white"][1] < 1.1  # one of 3,001 images does not widen them


def test_few_images_have_no_limits(emoji: Tensor):
    assert domain_limits(looks(emoji[:99])) == {}
    assert domain_limits(looks(emoji[:100])) != {}


def test_limits_follow_the_images_of_the_model(emoji: Tensor):
    """A model of noise does not know emoji, and the other way round."""
    noise = torch.cat([grey(RNG.normal(110, 40, (64, 64)).clip(0, 255)) for _ in range(100)])
    assert all(outside_of_domain(domain_limits(looks(noise)), looks(emoji)))
    assert all(outside_of_domain(domain_limits(looks(emoji)), looks(noise)))


def test_reasons_say_on_which_side_an_image_is():
    described = {"white": torch.tensor([0.1, 0.5, 0.9]), "texture": torch.tensor([0.0, 0.0, 0.4])}
    limits = {"white": [0.2, 0.8], "texture": [-0.1, 0.3], "of a later version": [0.0, 0.0]}
    assert outside_of_domain(limits, described) == [["less white"], [], ["more white", "more fine texture"]]


def test_jpeg_alone_is_no_reason(tokenizer: Tokenizer, emoji: Tensor):
    found = looks(torch.stack([jpeg(image, 75) for image in emoji]))
    assert sum(map(bool, outside_of_domain(tokenizer.about["domain_limits"], found))) <= 10  # in 64 px; 7 % of all


def test_the_bundled_models_limits_are_those_of_its_validation_images(tokenizer: Tokenizer):
    source = open_source(tokenizer.about["domain"])
    described = joined([looks(image) for image in spread(source, 64, len(source.names)).split(50)])
    for name, ends in domain_limits(described).items():
        assert tokenizer.about["domain_limits"][name] == pytest.approx(ends, abs=1e-6)


def test_images_that_a_model_does_not_know_are_named(tokenizer: Tokenizer, tmp_path: Path):
    paths = [photograph(tmp_path / f"{number}.png") for number in range(5)]
    known = tmp_path / "known.webp"
    known.write_bytes(open_source("emoji-val").read(3))
    compared = compare(Coder(tokenizer), [known, *paths], progress=False)
    assert compared.outside == compared.to_dict()["outside"] == [str(path) for path in paths]
    assert compared.warning.startswith(
        f"softvq-emoji-64 does not know images like {paths[0]}, {paths[1]}, {paths[2]} and 2 more: they have "
        "less white, a busier border, fewer even areas than nearly all of emoji-val, which it was validated on. "
    )
    assert str(known) not in compared.warning
    alone = compare(Coder(tokenizer), [known], progress=False)
    assert (alone.outside, alone.warning) == ([], None)


def test_a_model_without_limits_says_nothing(tokenizer: Tokenizer, tmp_path: Path):
    """Not even that it knows an image."""
    stranger = Tokenizer(tokenizer.config, {"figures": {"psnr_floor": 99.0}})
    compared = compare(Coder(stranger), [photograph(tmp_path / "a.png")], progress=False)
    assert (compared.outside, compared.warning) == (None, None)


def test_photographs_are_recommended_another_model_by_the_emoji_model_alone(tokenizer: Tokenizer, tmp_path: Path):
    other = Tokenizer(tokenizer.config, {"domain": "pictures", "domain_limits": {"white": [0.5, 1.0]}})
    path = photograph(tmp_path / "a.png")
    assert "SoftVQVAE/softvq-l-64" in compare(Coder(tokenizer), [path], progress=False).warning
    assert compare(Coder(other), [path], progress=False).warning == (
        f"the model does not know images like {path}: they have less white than nearly all of pictures, which it was "
        "validated on. Such images may come back badly."
    )
