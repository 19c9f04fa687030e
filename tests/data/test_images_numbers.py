"""Images of numbers that are none, or whose black and white are none."""

import math

import numpy as np
import pytest
import torch

from softvq.data.images import as_image, to_bytes, to_image
from softvq.errors import ConfigError, ImageError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_no_colours(bad: float, dtype: torch.dtype):
    images = torch.zeros(2, 3, 4, 4, dtype=dtype)
    images[1, 2, 3, 3] = bad
    with pytest.raises(ImageError, match="the images are not finite"):
        to_bytes(images)
    with pytest.raises(ImageError, match="not finite"):
        to_image(images[1])
    assert to_bytes(images[:1]).unique().tolist() == [128]


def test_opposite_infinities_do_not_cancel():
    images = torch.zeros(1, 3, 2, 2)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = math.inf, -math.inf
    with pytest.raises(ImageError, match="not finite"):
        to_bytes(images)


def test_large_numbers_are_clamped_though_their_sum_overflows():
    images = torch.full((1, 3, 8, 8), 1e36)
    images[0, 0] = -1e36
    assert to_bytes(images).unique().tolist() == [0, 255]
    assert not images.sub(1).mul(-127.5).sum().isfinite()


def test_without_images_there_is_nothing_to_refuse():
    assert to_bytes(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("ends", [(0.0, 0.0), (0.0, math.nan), (-math.inf, 1.0), (1.0, math.inf), (False, 1.0)])
def test_black_and_white_are_two_numbers(ends: tuple[float, float]):
    with pytest.raises(ConfigError, match="value_range must be two numbers that differ, black and white"):
        as_image(np.zeros((4, 4, 3), dtype=np.float32), "the image", ends)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_of_an_image_must_be_finite(bad: float):
    image = np.zeros((4, 4, 3), dtype=np.float32)
    image[0, 0, 0] = bad
    with pytest.raises(ImageError, match=r"the image has numbers from .* outside of 0 to 1"):
        as_image(image, "the image", (0, 1))
