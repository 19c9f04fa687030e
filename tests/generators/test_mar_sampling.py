"""MAR: the order of unmasking, each token made once, sampling whatever the batch, and guidance."""

import math

import pytest
import torch
from torch import Tensor

from softvq.generators.base import Noise, Sampling
from softvq.generators.mar import MAR, unmasking
from softvq.transports import samplers
from softvq.transports.guidance import Guidance, guided
from tests.generators.models import made
from tests.generators.test_mar import CONFIG, LABELS


@pytest.mark.parametrize("tokens", [1, 2, 7, 32, 64])
@pytest.mark.parametrize("steps", [1, 2, 5, 32, 64, 100])
def test_unmasking_goes_strictly_down_to_zero_in_no_more_steps_than_there_are_tokens(tokens, steps):
    plan = unmasking(tokens, steps)
    assert len(plan) == min(tokens, steps)
    assert plan[-1] == 0
    assert all(before > after for before, after in zip([tokens, *plan], plan, strict=False))


def test_unmasking_follows_the_cosine_where_it_can():
    assert unmasking(64, 4) == [math.floor(64 * math.cos(math.pi / 2 * i / 4)) for i in (1, 2, 3)] + [0]
    assert unmasking(8, 8) == [7, 6, 5, 4, 3, 2, 1, 0]
    plan = unmasking(64, 16)  # the cosine's first steps are of less than a token: they take one
    assert plan[0] == 63
    assert all(abs(left - 64 * math.cos(math.pi / 2 * i / 16)) <= 1 for i, left in enumerate(plan, start=1))


class Drawn(Noise):
    """Keeps what was drawn last."""

    def __call__(self, number: int = 0) -> Tensor:
        self.last = super().__call__(number)
        return self.last


def recording(model: MAR, noise: Drawn, monkeypatch) -> tuple[list[Tensor], list[Tensor]]:
    """The visible tokens that the network was given, and those that were then made; both as masks. Which are made is
    known by the noise that their chain begins with."""
    masks, chosen = [], []
    places, ddpm = model.places, samplers.ddpm

    def made_from(field, x: Tensor, *rest) -> Tensor:
        same = (noise.last.to(x)[:, :, None] == x).all(-1)
        assert (same.sum((0, 1)) == 1).all()
        chosen.append(same.any(-1))
        return ddpm(field, x, *rest)

    monkeypatch.setattr(model, "places", lambda x, v, y: masks.append(as_mask(v)) or places(x, v, y))
    monkeypatch.setattr(samplers, "ddpm", made_from)
    return masks, chosen


def as_mask(visible: Tensor) -> Tensor:
    assert (visible.diff(dim=1) > 0).all()  # each once, rising
    return torch.zeros(len(visible), 8, dtype=torch.bool).scatter(1, visible, True)


@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_each_token_is_made_exactly_once_and_stays(steps, monkeypatch):
    model = made(CONFIG)
    noise = Drawn(0, range(3), (8, 3))
    visible, chosen = recording(model, noise, monkeypatch)
    found = model.sample(LABELS[:3], noise, Sampling("mar", steps))
    assert found.shape == (3, 8, 3)
    assert len(chosen) == min(steps, 8)
    assert torch.equal(torch.stack(chosen).sum(0), torch.ones(3, 8, dtype=torch.long))
    done = torch.zeros(3, 8, dtype=torch.bool)
    for seen, now in zip(visible, chosen, strict=True):
        assert torch.equal(seen, done)  # what is not made yet, and only that, is hidden
        assert not (now & done).any()
        assert len(now.sum(1).unique()) == 1
        done |= now
    if steps > 1:
        assert not torch.equal(chosen[0][0], chosen[0][1]) or not torch.equal(chosen[0][0], chosen[0][2])


def test_tokens_that_were_made_are_what_the_next_step_sees(monkeypatch):
    model, seen = made(CONFIG), []
    places = model.places
    monkeypatch.setattr(model, "places", lambda x, v, y: seen.append((x.clone(), as_mask(v))) or places(x, v, y))
    found = model.sample(LABELS[:2], Noise(0, range(2), (8, 3)), Sampling("mar", 4))
    for x, visible in seen:
        assert torch.equal(x[visible], found[visible])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_image_is_the_same_in_any_batch_and_a_function_of_its_seed(dtype):
    model = made(CONFIG)
    sampling = Sampling("mar", 5, Guidance(2.0, schedule="linear"), dtype)

    def sample(seed: int, *images: int) -> Tensor:
        return model.sample(LABELS[list(images)], Noise(seed, images, (8, 3)), sampling)

    whole = sample(0, 0, 1, 2, 3)
    scale = max(1.0, whole.abs().max().item()) * 1e-5
    for part in ((0, 1), (2,), (3, 0)):
        torch.testing.assert_close(sample(0, *part), whole[list(part)], rtol=0, atol=scale)
    assert torch.equal(sample(0, 0, 1, 2, 3), whole)
    assert (sample(1, 0, 1, 2, 3) - whole).abs().amax((1, 2)).min() > 100 * scale


def test_guidance_grows_from_the_first_tokens_to_the_last_and_1_costs_nothing(monkeypatch):
    model, labels, scales = made(CONFIG), [], []
    places = model.places

    def guided_by(network, z, other, guidance: Guidance, *rest):
        scales.append(guidance.scale)
        return guided(network, z, other, guidance, *rest)

    monkeypatch.setattr(model, "places", lambda x, v, y: labels.append(y.tolist()) or places(x, v, y))
    monkeypatch.setattr("softvq.generators.mar.guided", guided_by)
    rows = []
    model.head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    plain = model.sample(LABELS[:2], Noise(0, range(2), (8, 3)), Sampling("mar", 4))
    assert labels == [[0, 1]] * 4
    made_now = [8 - 7, 7 - 5, 5 - 3, 3]  # ⌊8 cos⌋ = 7, 5, 3, 0
    assert rows == [2 * now for now in made_now for _ in range(4)]
    labels.clear()
    scales.clear()
    guidance = Guidance(3.0, schedule="linear")
    steered = model.sample(LABELS[:2], Noise(0, range(2), (8, 3)), Sampling("mar", 4, guidance))
    assert scales == pytest.approx([1 + 2 * (1 - left / 8) for left in (7, 5, 3, 0)])
    assert labels == [[0, 1], [5, 5]] * 4
    assert (plain - steered).abs().max() > 1e-3


def test_another_sampler_is_an_error_that_names_the_right_one():
    with pytest.raises(ValueError, match="a MAR is sampled with mar, not 'ddpm'"):
        made(CONFIG).sample(LABELS[:1], Noise(0, [0], (8, 3)), Sampling("ddpm"))
