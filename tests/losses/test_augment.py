"""DiffAug and the discriminator's views, against pixels moved one by one."""

import math

import numpy as np
import pytest
import torch

from softvq.losses.augment import Draws, Views, augmented, draw, draw_views, viewed

SIZES = [(16, 16), (24, 40), (9, 13)]


def rngs(count: int, start: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([start + i]) for i in range(count)]


def pictures(count: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def values(draws: Draws | Views) -> dict[str, torch.Tensor]:
    return vars(draws)


def changed(draws: Draws) -> dict[str, torch.Tensor]:
    """Which of the three each image has."""
    colour = (draws.brightness != 0) | (draws.saturation != 1) | (draws.contrast != 1)
    return {"colour": colour, "shift": (draws.shift != 0).any(1), "cutout": ~draws.kept.flatten(1).all(1)}


def reference(image: np.ndarray, brightness, saturation, contrast, shift, kept) -> np.ndarray:
    """One image (3, H, W) in float64, pixel by pixel: colour, then translation, then cutout."""
    _, H, W = image.shape
    x = image.astype(np.float64) + brightness
    coloured = np.empty_like(x)
    for i in range(H):
        for j in range(W):
            grey = math.fsum(x[:, i, j]) / 3
            for c in range(3):
                coloured[c, i, j] = grey + saturation * (x[c, i, j] - grey)
    mean = math.fsum(coloured.flatten()) / (3 * H * W)
    coloured = mean + contrast * (coloured - mean)
    moved = np.zeros_like(x)
    for i in range(H):
        for j in range(W):
            row, column = i + shift[0], j + shift[1]
            if 0 <= row < H and 0 <= column < W:
                moved[:, row, column] = coloured[:, i, j]
    for i in range(H):
        for j in range(W):
            if not kept[i, j]:
                moved[:, i, j] = 0
    return moved


@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_is_where_it_was_drawn_to_be(size: tuple[int, int]):
    images, draws = pictures(8, size), draw(rngs(8), size, 1.0)
    found = augmented(images, draws)
    for i in range(8):
        one = [values(draws)[name][i].numpy() for name in ("brightness", "saturation", "contrast", "shift", "kept")]
        expected = reference(images[i].numpy(), *one)
        np.testing.assert_allclose(found[i].numpy(), expected, atol=3e-6)


def test_a_shift_is_down_and_right_and_what_comes_in_is_0():
    nothing = draw(rngs(1), (8, 8), 0.0)
    shifted = Draws(**{**values(nothing), "shift": torch.tensor([[2, -3]])})
    images = pictures(1, (8, 8))
    found = augmented(images, shifted)
    torch.testing.assert_close(found[:, :, 2:, :5], images[:, :, :6, 3:], atol=1e-6, rtol=0)
    assert found[:, :, :2].count_nonzero() == found[:, :, :, 5:].count_nonzero() == 0


def test_probability_0_changes_nothing():
    images = pictures(16, (16, 24))
    draws = draw(rngs(16), (16, 24), 0.0)
    assert not any(which.any() for which in changed(draws).values())
    torch.testing.assert_close(augmented(images, draws), images, atol=1e-6, rtol=0)


def test_each_of_the_three_is_chosen_half_of_the_time_on_its_own():
    count = 2000
    found = changed(draw(rngs(count), (32, 32), 0.5))
    share = {"colour": 0.5, "shift": 0.5 * (1 - 1 / 81), "cutout": 0.5}  # one shift in 81 is (0, 0)
    for name, which in found.items():
        assert which.float().mean().item() == pytest.approx(share[name], abs=0.045), name  # four deviations
    for one, other in (("colour", "shift"), ("colour", "cutout"), ("shift", "cutout")):
        both = (found[one] & found[other]).float().mean().item()
        assert both == pytest.approx(0.25, abs=0.045), (one, other)


def test_all_three_are_always_chosen_with_probability_1():
    found = changed(draw(rngs(500), (32, 32), 1.0))
    assert found["colour"].all()
    assert found["cutout"].all()
    assert found["shift"].float().mean() > 0.95


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_a_sample_is_augmented_alike_in_every_batch_and_place(probability: float):
    images, size = pictures(6, (16, 24)), (16, 24)
    together = draw(rngs(6), size, probability)
    views = draw_views([np.random.default_rng([i]) for i in range(6)], size, 12)
    for order in ([3], [5, 3], [3, 1, 0, 4]):
        alone = draw([rngs(6)[i] for i in order], size, probability)
        for name, tensor in values(alone).items():
            assert torch.equal(tensor, values(together)[name][order]), name
        assert torch.equal(augmented(images[order], alone), augmented(images, together)[order])
        again = draw_views([np.random.default_rng([i]) for i in order], size, 12)
        for name, tensor in values(again).items():
            assert torch.equal(tensor, values(views)[name][order]), name
        assert torch.equal(viewed(images[order], again, 12), viewed(images, views, 12)[order])


def test_later_numbers_do_not_depend_on_what_was_chosen():
    """So that the view, drawn next from the same generator, is that of the same sample without augmentation."""
    generators = rngs(3), rngs(3)
    for some, probability in zip(generators, (0.0, 1.0), strict=True):
        draw(some, (16, 16), probability)
    assert [a.random() for a in generators[0]] == [b.random() for b in generators[1]]


def test_the_generators_are_used_and_differ():
    draws = draw(rngs(50), (32, 32), 1.0)
    assert len(set(draws.brightness.tolist())) == 50
    some = rngs(1)
    assert not torch.equal(draw(some, (32, 32), 1.0).brightness, draw(some, (32, 32), 1.0).brightness)


def test_the_ranges_of_the_colours():
    draws = draw(rngs(2000), (8, 8), 1.0)
    for name, low, high in (("brightness", -0.5, 0.5), ("saturation", 0.0, 2.0), ("contrast", 0.5, 1.5)):
        found, width = values(draws)[name], high - low
        assert low <= found.min() < low + 0.01 * width, name
        assert high - 0.01 * width < found.max() <= high, name
        assert found.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * width), name
        assert found.std().item() == pytest.approx(width / math.sqrt(12), rel=0.06), name


@pytest.mark.parametrize("size", [(32, 16), (24, 40), (20, 12)])
def test_shifts_are_whole_pixels_up_to_an_eighth_of_each_side_both_ways(size: tuple[int, int]):
    shifts = draw(rngs(3000), size, 1.0).shift
    for axis, side in enumerate(size):
        furthest = int(side / 8 + 0.5)
        counts = np.bincount(shifts[:, axis].numpy() + furthest, minlength=2 * furthest + 1)
        assert len(counts) == 2 * furthest + 1
        assert (abs(counts - 3000 / len(counts)) < 5 * math.sqrt(3000 / len(counts))).all()


@pytest.mark.parametrize("cutout", [0.2, 0.5])
@pytest.mark.parametrize("size", [(32, 32), (30, 20), (25, 40)])
def test_cutouts_are_rectangles_of_their_share_that_may_reach_over_the_border(size: tuple[int, int], cutout: float):
    kept = draw(rngs(1500), size, 1.0, cutout).kept
    assert kept.shape == (1500, *size)
    for axis, side in enumerate(size):
        cut = (~kept).any(2 - axis).numpy()  # B side
        length = int(side * cutout + 0.5)
        lengths, firsts = cut.sum(1), cut.argmax(1)
        assert lengths.max() == length
        assert lengths.min() in (length // 2, length - length // 2)  # the centre is inside
        inside = lengths == length
        assert inside.mean() > 1 - cutout - 0.06
        assert 0.8 < (lengths < length)[firsts == 0].sum() / (lengths < length)[firsts > 0].sum() < 1.25  # both borders
        assert set(firsts[inside]) == set(range(side - length + 1))
        covered = cut.mean(0)
        assert covered[side // 2] == pytest.approx(length / side, abs=0.05)
    area = (~kept).flatten(1).sum(1)
    assert torch.equal(area, (~kept).any(1).sum(1) * (~kept).any(2).sum(1))  # a full rectangle


def test_gradients_reach_the_images_and_not_what_was_cut():
    images, draws = pictures(3, (16, 16)).requires_grad_(), draw(rngs(3), (16, 16), 1.0)
    plain = Draws(torch.zeros(3), torch.ones(3), torch.ones(3), draws.shift, draws.kept)
    augmented(images, plain).sum().backward()
    for i in range(3):
        expected = torch.zeros(16, 16)
        for row in range(16):
            for column in range(16):
                to = row + int(draws.shift[i, 0]), column + int(draws.shift[i, 1])
                if min(to) >= 0 and max(to) < 16 and draws.kept[i, to[0], to[1]]:
                    expected[row, column] = 1
        torch.testing.assert_close(images.grad[i], expected.expand(3, -1, -1))
    images.grad = None
    (augmented(images, draws).square().sum()).backward()
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in images.grad)


@pytest.mark.parametrize("size", [(32, 32), (20, 37), (17, 16)])
def test_views_are_crops_or_all_of_the_image_averaged_over_areas(size: tuple[int, int]):
    target = 15
    images, views = pictures(40, size), draw_views(rngs(40), size, target)
    found = viewed(images, views, target)
    areas = torch.nn.functional.interpolate(images, size=(target, target), mode="area")
    assert {True, False} == set(views.cropped.tolist())
    for i in range(40):
        row, column = views.corner[i].tolist()
        expected = images[i, :, row : row + target, column : column + target] if views.cropped[i] else areas[i]
        assert expected.shape == (3, target, target)
        assert torch.equal(found[i], expected)


def test_an_area_is_the_mean_of_its_pixels():
    images = pictures(1, (6, 9))
    whole = Views(torch.tensor([False]), torch.zeros(1, 2, dtype=torch.long))
    expected = images.unflatten(2, (3, 2)).unflatten(4, (3, 3)).mean((3, 5))
    torch.testing.assert_close(viewed(images, whole, 3), expected)


def test_half_of_the_views_are_crops_at_every_place_alike():
    views = draw_views(rngs(3000), (20, 18), 16)
    assert views.cropped.float().mean().item() == pytest.approx(0.5, abs=0.04)
    for axis, places in enumerate((5, 3)):
        counts = np.bincount(views.corner[:, axis].numpy(), minlength=places)
        assert len(counts) == places
        assert (abs(counts - 3000 / places) < 5 * math.sqrt(3000 / places)).all()


def test_images_of_the_right_size_are_untouched():
    images = pictures(4, (16, 16))
    assert torch.equal(viewed(images, draw_views(rngs(4), (16, 16), 16), 16), images)


@pytest.mark.parametrize("size", [(8, 8), (12, 7)])
def test_smaller_images_are_enlarged_bicubically(size: tuple[int, int]):
    images = pictures(4, size)
    expected = torch.nn.functional.interpolate(images, size=(16, 16), mode="bicubic")
    assert torch.equal(viewed(images, draw_views(rngs(4), size, 16), 16), expected)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (24, 20)])
def test_gradients_reach_the_images_through_every_view(size: tuple[int, int]):
    images = pictures(8, size).requires_grad_()
    viewed(images, draw_views(rngs(8), size, 16), 16).sum().backward()
    assert all(gradient.abs().sum() > 0 for gradient in images.grad)
