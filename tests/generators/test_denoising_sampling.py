"""SiT and DiT: sampling whatever the network predicts and whatever the batch, labels and guidance."""

import math

import pytest
import torch
from torch import Tensor

from softvq.generators.base import Noise, Sampling
from softvq.generators.dit import DiT
from softvq.generators.sit import SiT, SiTConfig
from softvq.transports import samplers
from softvq.transports.guidance import Guidance
from tests.generators.models import made
from tests.generators.test_denoising import CONFIGS, LABELS, LATENTS, NETWORK

SAMPLERS = [*(("SiT", name) for name in SiT.samplers), *(("DiT", name) for name in DiT.samplers)]


# ---- What a network predicts


class Exact(SiT):
    """Knows the Gaussian N(mean, 0.6²), and says of it what its configuration predicts."""

    mean = 0.0

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        t = t.double()[:, None, None]
        linear, k = self.config.path == "linear", math.pi / 2
        a, s = (1 - t, t) if linear else (torch.cos(k * t), torch.sin(k * t))
        white = (x - a * self.mean) / (a**2 * 0.36 + s**2)
        data, noise = self.mean + a * 0.36 * white, s * white
        velocity = noise - data if linear else k * (a * noise - s * data)
        return {"data": data, "noise": noise, "velocity": velocity}[self.config.predict]


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", SiT.samplers)
def test_whatever_is_predicted_the_samples_are_the_same(path, sampler):
    found = {}
    for predict in ("velocity", "data", "noise"):
        model = Exact(SiTConfig(NETWORK, path, predict=predict))
        found[predict] = model.sample(LABELS[:3], Noise(0, range(3), (4, 3)), Sampling(sampler, 12))
    torch.testing.assert_close(found["data"], found["velocity"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["noise"], found["velocity"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_fields_agree_where_neither_data_nor_noise_is_all(path):
    x, t = torch.randn(50, 4, 3, dtype=torch.float64), torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    fields = []
    for predict in ("velocity", "data", "noise"):
        model = Exact(SiTConfig(NETWORK, path, predict=predict))
        model.mean = 0.8
        fields.append(model.field(torch.zeros(50, dtype=torch.long))(x, t, t))
    torch.testing.assert_close(fields[1], fields[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(fields[2], fields[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("sampler", "steps"), [("heun", 40), ("dopri5", 1), ("dpm", 120)])
def test_sampling_ends_where_the_ode_does(sampler, steps):
    model = Exact(SiTConfig(NETWORK))
    model.mean = 0.8
    found = model.sample(LABELS, Noise(3, range(6), (4, 3)), Sampling(sampler, steps))
    wanted = 0.8 + 0.6 * Noise(3, range(6), (4, 3))()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-3)


# ---- What is sampled


@pytest.mark.parametrize(("kind", "sampler"), SAMPLERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_image_is_the_same_in_any_batch_and_a_function_of_its_seed(kind, sampler, dtype):
    model = made(CONFIGS[kind])
    sampling = Sampling(sampler, 6, Guidance(1.5, (0.0, 0.7)), dtype)

    def sample(seed: int, *images: int) -> Tensor:
        return model.sample(LABELS[list(images)], Noise(seed, images, (4, 3)), sampling)

    whole = sample(0, 0, 1, 2, 3)
    assert whole.dtype == torch.float32
    # An adaptive solver's steps are of other lengths where rounding differs: equal to its tolerance, not to rounding.
    scale = max(1.0, whole.abs().max().item()) * (1e-4 if sampler == "dopri5" and dtype == "float32" else 1e-5)
    for part in ((0, 1), (2,), (3, 0)):
        torch.testing.assert_close(sample(0, *part), whole[list(part)], rtol=0, atol=scale)
    torch.testing.assert_close(sample(0, 0, 1, 2, 3), whole, rtol=0, atol=0)
    assert (sample(1, 0, 1, 2, 3) - whole).abs().amax((1, 2)).min() > 100 * scale
    assert (whole[0] - whole[1]).abs().max() > 100 * scale


@pytest.mark.parametrize(("kind", "sampler"), SAMPLERS)
def test_labels_and_guidance_change_what_is_sampled(kind, sampler):
    model = made(CONFIGS[kind], std=0.2)
    noise = lambda: Noise(0, [0], (4, 3))  # noqa: E731
    plain = model.sample(LABELS[:1], noise(), Sampling(sampler, 6))
    other = model.sample(LABELS[1:2], noise(), Sampling(sampler, 6))
    guided = model.sample(LABELS[:1], noise(), Sampling(sampler, 6, Guidance(2.0)))
    null = torch.tensor([5])
    assert (plain - other).abs().max() > 1e-3
    assert (plain - guided).abs().max() > 1e-3
    same = model.sample(null, noise(), Sampling(sampler, 6, Guidance(2.0)))  # the null class is guided to itself
    unguided = model.sample(null, noise(), Sampling(sampler, 6))
    torch.testing.assert_close(same, unguided, rtol=0, atol=1e-5 * max(1.0, unguided.abs().max().item()))


@pytest.mark.parametrize(("kind", "sampler"), SAMPLERS)
def test_guidance_1_costs_one_evaluation_of_the_batch_a_step(kind, sampler):
    model, rows = made(CONFIGS[kind]), []
    model.network.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    model.sample(LABELS[:3], Noise(0, range(3), (4, 3)), Sampling(sampler, 5))
    assert set(rows) == {3}
    if sampler != "dopri5":
        assert len(rows) == (9 if sampler == "heun" else 5)
        rows.clear()
        model.sample(LABELS[:3], Noise(0, range(3), (4, 3)), Sampling(sampler, 5, Guidance(1.5)))
        assert set(rows) == {6}


def test_dits_variance_is_not_guided():
    model = made(CONFIGS["DiT"])
    x, t = LATENTS.double(), torch.full((6,), 400.0, dtype=torch.float64)
    found = model.field(LABELS, Guidance(3.0))(x, t, t / 999)
    with_ = model(x, t.float(), LABELS)
    without = model(x, t.float(), torch.full_like(LABELS, 5))
    torch.testing.assert_close(found[..., 3:], with_[..., 3:])
    torch.testing.assert_close(found[..., :3], without[..., :3] + 3 * (with_ - without)[..., :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "sampler"), [("SiT", "ddpm"), ("SiT", "mar"), ("DiT", "euler"), ("DiT", "mar")])
def test_a_sampler_of_another_model_is_an_error_that_names_the_right_ones(kind, sampler):
    model = made(CONFIGS[kind])
    with pytest.raises(ValueError, match=rf"a {kind} is sampled with {', '.join(model.samplers)}, not '{sampler}'"):
        model.sample(LABELS[:1], Noise(0, [0], (4, 3)), Sampling(sampler))


def test_more_steps_than_the_chain_has_are_all_of_its_steps(monkeypatch):
    told = []
    monkeypatch.setattr(samplers, "ddim", lambda field, x, chain, progress: told.extend(chain.timesteps.tolist()) or x)
    made(CONFIGS["DiT"]).sample(LABELS[:1], Noise(0, [0], (4, 3)), Sampling("ddim", 1200))
    assert told == list(range(1000))
