"""What every generator is sampled with: an image's own noise, and at least one step."""

import math

import pytest
import torch

from softvq.generators.base import Noise, Sampling


def test_noise_is_a_function_of_seed_image_and_how_many_were_drawn():
    shape = (4, 3)
    together, alone = Noise(0, [3, 8], shape), Noise(0, [8], shape)
    first, second = together(), together()
    assert first.shape == (2, 4, 3)
    assert torch.equal(first[1:], alone())
    assert torch.equal(second[1:], alone())
    values = torch.stack([first[0], first[1], second[0], Noise(1, [3], shape)()[0]]).flatten(1)
    assert len(values.unique(dim=0)) == 4
    many = Noise(0, range(200), (10, 10))().flatten()
    assert abs(many.mean()) < 4.5 / math.sqrt(len(many))
    assert abs(many.var() - 1) < 4.5 * math.sqrt(2 / len(many))
    uniform = Noise(0, [3, 8], shape).uniform(500)
    assert torch.equal(uniform[1:], Noise(0, [8], shape).uniform(500))
    assert 0 <= uniform.min() < 0.02 < 0.98 < uniform.max() < 1


def test_no_steps_are_an_error():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Sampling("euler", 0)
