"""Blockiness, gradient energy and blank pictures, against straight-line references."""

import numpy as np
import pytest
import torch
from torch import Tensor

from softvq.evaluation.appearance import appearance, appearance_scores, blockiness, periods_for


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def mosaic(count: int, size: int, patch: int, inside: int, seed: int = 0) -> Tensor:
    """Squares of one colour each, with noise of up to `inside` grey levels in them."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 200, (count, 3, size // patch, size // patch))
    whole = squares.repeat(patch, 2).repeat(patch, 3) + rng.integers(0, inside + 1, (count, 3, size, size))
    return torch.from_numpy(whole.astype(np.uint8))


def straight_blockiness(images: Tensor, period: int) -> float:
    """Pixel by pixel."""
    x, border, elsewhere = images.double().numpy(), [], []
    size = x.shape[-1]
    for i in range(1, size):
        side = border if i % period == 0 else elsewhere
        side.append(np.abs(x[:, :, i, :] - x[:, :, i - 1, :]))
        side.append(np.abs(x[:, :, :, i] - x[:, :, :, i - 1]))
    return np.concatenate(border).mean() / np.concatenate(elsewhere).mean()


@pytest.mark.parametrize("period", [4, 7, 8, 16])
def test_blockiness_is_differences_across_borders_over_those_elsewhere(period: int):
    images = torch.cat([pictures(2, 32), mosaic(3, 32, 8, 40)])
    found = blockiness(appearance(images, (period,)), 32, (period,))
    assert found == pytest.approx({period: straight_blockiness(images, period)}, rel=1e-9)


def test_a_mosaic_is_blocky_at_its_period_and_noise_is_not():
    periods = periods_for(64)
    noise = blockiness(appearance(pictures(8, 64), periods), 64, periods)
    assert all(value == pytest.approx(1, abs=0.05) for value in noise.values())
    scores = appearance_scores(appearance(mosaic(8, 64, 8, 20), periods), None, 64, periods)
    assert scores["blockiness"] == scores["blockiness_8"] > 5
    assert scores["blockiness_8"] > scores["blockiness_4"] > 2  # every second border
    assert "blockiness_real" not in scores
    assert "gradient_energy" not in scores


def test_the_worst_period_is_compared_with_real_images_at_the_same():
    periods = periods_for(64)
    made, real = appearance(mosaic(4, 64, 8, 20), periods), appearance(mosaic(4, 64, 4, 20), periods)
    scores = appearance_scores(made, real, 64, periods)
    assert scores["blockiness_real"] == blockiness(real, 64, periods)[8]


def test_periods_are_those_that_images_have_and_the_models_patch():
    assert periods_for(64) == (4, 8, 16)
    assert periods_for(64, 14) == (4, 8, 14, 16)
    assert periods_for(64, 8) == (4, 8, 16)
    assert periods_for(8, 2) == (2, 4)
    assert periods_for(64, 1) == (4, 8, 16)
    assert periods_for(4) == ()
    rows = appearance(pictures(2, 4), ())
    assert appearance_scores(rows, rows, 4, ()).keys() == {"gradient_energy", "nearly_blank"}


def test_gradient_energy_against_its_definition_and_relative_to_real_images():
    images = pictures(3, 12)
    x = images.double().numpy() / 127.5 - 1
    y = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    wanted = np.square(np.diff(y, axis=1)).mean((1, 2)) + np.square(np.diff(y, axis=2)).mean((1, 2))
    rows = appearance(images, (4,))
    torch.testing.assert_close(rows["gradient_energy"], torch.from_numpy(wanted))
    pale = appearance((images.float() / 2).round().to(torch.uint8), (4,))
    assert appearance_scores(pale, rows, 12, (4,))["gradient_energy"] == pytest.approx(0.25, rel=0.02)


def test_a_picture_with_hardly_any_ink_is_nearly_blank():
    """Ink is darker than 0.95 in some channel, that is at most 242; 3 % of 20 × 20 pixels are 12."""
    images = torch.full((4, 3, 20, 20), 255, dtype=torch.uint8)
    images[0, 1].view(-1)[:12] = 242
    images[1, 1].view(-1)[:11] = 242
    images[2] = 243
    images[3, 2] = 0
    rows = appearance(images, (4,))
    assert (rows["ink"] < 0.03).tolist() == [False, True, True, False]
    assert appearance_scores(rows, None, 20, (4,))["nearly_blank"] == 0.5


def test_pictures_without_any_difference_have_no_blockiness():
    rows = appearance(torch.full((2, 3, 16, 16), 9, dtype=torch.uint8), (4, 8))
    assert appearance_scores(rows, rows, 16, (4, 8)) == {"nearly_blank": 0.0}


def test_rows_do_not_depend_on_what_else_is_in_the_batch():
    images = pictures(4, 32)
    whole = appearance(images, (4, 8))
    for name, rows in appearance(images[2:3], (4, 8)).items():
        assert torch.equal(rows, whole[name][2:3])
