"""Tokenizers at work: what they give is finite, or it is said."""

import math

import pytest
import torch

from softvq.errors import ModelError
from softvq.models import Coder, check_finite
from softvq.statistics import fit_statistics
from tests.test_tokenizer import images, tiny


@pytest.fixture
def coder() -> Coder:
    return Coder(tiny(), "float32")


def test_sound_numbers_go_through(coder: Coder):
    latents = coder.encode(images())
    assert torch.equal(latents, coder.tokenizer.encode(images()))
    assert torch.equal(coder.decode(latents), coder.tokenizer.decode(latents))
    assert check_finite(latents, "the latents") is latents


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latents_that_are_not_finite_are_refused(coder: Coder, bad: float):
    with torch.no_grad():
        coder.tokenizer.to_quantizer.bias.fill_(bad)
    with pytest.raises(ModelError, match="the tokenizer's latents are not finite") as error:
        coder.encode(images())
    assert error.value.setting == "precision"
    with pytest.raises(ModelError, match="the tokenizer's latents are not finite"):  # and not: they are all the same
        fit_statistics(coder.tokenizer, [images()])


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_images_that_are_not_finite_are_refused(coder: Coder, bad: float):
    with torch.no_grad():
        coder.tokenizer.decoder.to_pixel.bias[5] = bad
    with pytest.raises(ModelError, match="the tokenizer's images are not finite"):
        coder.decode(torch.zeros(1, 8, 4))
