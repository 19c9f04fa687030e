"""2-D latents: folded into tokens and back."""

import pytest
import torch

from softvq.layers import fold, unfold


@pytest.mark.parametrize(("height", "width", "patch"), [(4, 4, 2), (6, 4, 2), (3, 5, 1), (6, 9, 3)])
def test_unfold_is_the_inverse_of_fold(height, width, patch):
    latents = torch.randn(2, 5, height, width)
    tokens = fold(latents, patch)
    assert tokens.shape == (2, height // patch * (width // patch), patch * patch * 5)
    assert torch.equal(unfold(tokens, patch, (height // patch, width // patch)), latents)


def test_fold_goes_row_by_row_and_a_tokens_numbers_by_place_and_then_channel():
    tokens = fold(torch.arange(2 * 4 * 6).view(1, 2, 4, 6).float(), 2)[0]
    assert tokens[0].tolist() == [0, 24, 1, 25, 6, 30, 7, 31]
    assert tokens[1].tolist() == [2, 26, 3, 27, 8, 32, 9, 33]
    assert tokens[3].tolist() == [12, 36, 13, 37, 18, 42, 19, 43]


def test_what_cannot_be_folded_is_an_error_with_the_numbers():
    with pytest.raises(ValueError, match="4 × 5 cannot be folded in squares of 2"):
        fold(torch.zeros(1, 2, 4, 5), 2)
