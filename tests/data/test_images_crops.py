"""Views of an image are ADM's crops, always of the size asked for, and functions of the random numbers given."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from softvq.data.images import Augment, center_crop, fit, random_crop

few = settings(max_examples=25, deadline=None, derandomize=True)
sides = st.integers(1, 90)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def adm_resized(image: Image.Image, short_side: int) -> np.ndarray:
    """guided-diffusion's `image_datasets.py`, up to the cut."""
    while min(*image.size) >= 2 * short_side:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = short_side / min(*image.size)
    return np.array(image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC))


@few
@given(width=sides, height=sides, size=st.integers(1, 24), seed=st.integers(0, 99))
def test_center_crop_is_adms(width, height, size, seed):
    image = noise(width, height, seed)
    pixels = adm_resized(image, size)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    np.testing.assert_array_equal(np.asarray(center_crop(image, size)), pixels[top : top + size, left : left + size])


def test_a_large_picture_is_averaged_not_sampled():
    """Twice halved is the mean over 4 × 4 pixels, up to Pillow's roundings: after each halving, of each direction."""
    image = noise(64, 64)
    means = np.asarray(image).reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(np.asarray(center_crop(image, 16)) - means).max() <= 2


def test_random_crops_are_adms_and_all_of_them_occur():
    """Which of ADM's views each draw is: noise makes all views different, so a view's pixels tell it."""
    size, min_scale, image = 6, 0.8, noise(17, 13)
    views = {}
    for side in range(size, math.ceil(size / min_scale) + 1):
        pixels = adm_resized(image, side)
        for top in range(pixels.shape[0] - size + 1):
            for left in range(pixels.shape[1] - size + 1):
                views[pixels[top : top + size, left : left + size].tobytes()] = (side, top, left)
    rng, draws = np.random.default_rng(0), 1500
    drawn = Counter(views[random_crop(image, size, rng, min_scale).tobytes()] for _ in range(draws))
    assert set(drawn) == set(views.values())
    of_side = Counter()
    for (side, _, _), count in drawn.items():
        of_side[side] += count
    assert sorted(of_side) == [6, 7, 8]
    for count in of_side.values():  # five standard deviations of a fair die's third
        assert abs(count - draws / 3) < 5 * (draws * 2 / 9) ** 0.5


@few
@given(width=sides, height=sides, size=st.integers(1, 40), min_scale=st.floats(0.1, 1.0), seed=st.integers(0, 99))
def test_every_view_has_the_size_asked_for(width, height, size, min_scale, seed):
    image, rng = Image.new("RGB", (width, height)), np.random.default_rng(seed)
    for crop in ("center", "random"):
        assert Augment(crop=crop, min_scale=min_scale)(image, size, rng).size == (size, size)
    for how in ("crop", "resize", "pad"):
        assert fit(image, size, how).size == (size, size)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (900, 1), (1, 900), (901, 7)])
def test_tiny_and_elongated_pictures_have_views(width, height):
    image = Image.new("RGB", (width, height), (10, 200, 30))
    views = [fit(image, 17, "crop"), fit(image, 17, "resize"), random_crop(image, 17, np.random.default_rng(0))]
    for view in views:
        np.testing.assert_array_equal(np.asarray(view), np.broadcast_to([10, 200, 30], (17, 17, 3)))
    assert fit(image, 17, "pad").size == (17, 17)


def test_an_elongated_picture_makes_no_enormous_one_on_the_way(monkeypatch):
    """A 1 × 4000 line enlarged whole to a short side of 64 would be 16 million pixels, for a view of 4,096."""
    sizes, resize = [], Image.Image.resize

    def spy(image, size, *arguments, **options):
        sizes.append(size[0] * size[1])
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    center_crop(Image.new("RGB", (1, 4000)), 64)
    assert max(sizes, default=0) <= 1_000_000


def test_half_of_the_views_are_mirrored_and_the_rng_says_which():
    image = noise(32, 32)
    mirror = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    augment = Augment(crop="center", flip=True)
    mirrored = 0
    for seed in range(400):
        view = augment(image, 32, np.random.default_rng(seed))
        assert view.tobytes() == augment(image, 32, np.random.default_rng(seed)).tobytes()
        assert view.tobytes() in (image.tobytes(), mirror.tobytes())
        mirrored += view.tobytes() == mirror.tobytes()
    assert abs(mirrored - 200) < 50  # five standard deviations
    for seed in range(20):
        unmirrored = Augment(crop="center", flip=False)(image, 32, np.random.default_rng(seed))
        assert unmirrored.tobytes() == image.tobytes()


@pytest.mark.parametrize("min_scale", [0.0, -0.5, 1.01])
def test_an_impossible_scale_is_refused_with_its_number(min_scale):
    with pytest.raises(ValueError, match=str(min_scale)):
        Augment(min_scale=min_scale)


def test_fit_cuts_stretches_or_pads():
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    red, blue, white = [255, 0, 0], [0, 0, 255], [255, 255, 255]
    crop, resized, pad = (np.asarray(fit(image, 20, how)) for how in ("crop", "resize", "pad"))
    np.testing.assert_array_equal(crop, np.asarray(image)[:, 10:30])
    assert (resized[:, :6] == red).all()
    assert (resized[:, 14:] == blue).all()
    assert (pad[[0, 4, 15, 19]] == white).all()
    assert (pad[5:15, :6] == red).all()
    assert (pad[5:15, 14:] == blue).all()
    assert fit(image, 20).tobytes() == center_crop(image, 20).tobytes()
