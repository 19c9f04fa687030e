"""SiT and DiT: the numbers of a training step, the loss, and that it teaches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from softvq.generators.base import Noise, Sampling
from softvq.generators.dit import DiTConfig
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.transports.paths import mix, times
from tests.generators.models import draws_of, made, rngs

NETWORK = TransformerConfig.named("tiny", tokens=4, channels=3, classes=5)
CONFIGS = {
    "SiT": SiTConfig(NETWORK),
    "SiT linear": SiTConfig(NETWORK, "linear", "uniform"),
    "SiT data": SiTConfig(NETWORK, predict="data"),
    "SiT noise": SiTConfig(NETWORK, "linear", predict="noise"),
    "DiT": DiTConfig(NETWORK),
    "DiT linear": DiTConfig(NETWORK, "linear"),
}
LATENTS = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize("kind", ["SiT", "DiT"])
def test_what_is_drawn_is_a_function_of_each_samples_generator(kind):
    model = made(CONFIGS[kind])
    together = model.draw(rngs(0, 1, 2), np.random.default_rng(1))
    alone = model.draw(rngs(2), np.random.default_rng(99))  # another batch: another shared generator
    assert together["noise"].shape == (3, 4, 3)
    for name, values in together.items():
        assert torch.equal(values[2:], alone[name]), name
        assert not torch.equal(values[0], values[1]), name
    assert together["noise"].dtype == torch.float32


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_loss_of_a_batch_is_the_losses_one_by_one(name):
    model = made(CONFIGS[name])
    draws = draws_of(model, *range(6))
    together = model.loss(LATENTS, LABELS, draws)
    for i in range(6):
        alone = model.loss(LATENTS[i : i + 1], LABELS[i : i + 1], draws_of(model, i))
        for part, values in together.items():
            torch.testing.assert_close(values[i : i + 1], alone[part], rtol=1e-4, atol=1e-6)
    assert together["loss"].unique().numel() == 6


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("SiT")])
@torch.no_grad()
def test_sits_loss_is_the_squared_error_of_what_it_predicts(name):
    config = CONFIGS[name]
    model = made(replace(config, dropout=0.0))
    draws = draws_of(model, *range(6))
    loss = model.loss(LATENTS, LABELS, draws)["loss"]
    t = times(config.times, config.path, draws["normal"])
    for i in range(6):
        a, s = (
            (1 - t[i], t[i])
            if config.path == "linear"
            else (torch.cos(t[i] * math.pi / 2), torch.sin(t[i] * math.pi / 2))
        )
        da, ds = (-1, 1) if config.path == "linear" else (-s * math.pi / 2, a * math.pi / 2)
        x, noise = LATENTS[i], draws["noise"][i]
        said = model((a * x + s * noise)[None], t[i : i + 1], LABELS[i : i + 1])[0]
        target = {"velocity": da * x + ds * noise, "data": x, "noise": noise}[config.predict]
        assert loss[i].item() == pytest.approx((said - target).square().mean().item(), rel=1e-4)


@torch.no_grad()
def test_dits_loss_is_the_error_of_the_noise_plus_the_bound_at_a_uniform_step():
    model = made(replace(CONFIGS["DiT"], dropout=0.0))
    draws = draws_of(model, *range(6))
    found = model.loss(LATENTS, LABELS, draws)
    torch.testing.assert_close(found["loss"], found["mse"] + found["bound"])
    step = (draws["time"] * 1000).floor().long()
    chain = model.diffusion
    point = chain.mix(LATENTS, draws["noise"], step)
    output = model(point, step, LABELS)
    noise, logits = output[..., :3], output[..., 3:]
    torch.testing.assert_close(found["mse"], (noise - draws["noise"]).square().mean((1, 2)))
    torch.testing.assert_close(found["bound"], chain.bound(LATENTS, point, noise, logits, step))


def test_steps_of_the_chain_are_uniform_from_0_to_999():
    model = made(CONFIGS["DiT"])
    time = draws_of(model, *range(4000))["time"]
    step = (time * 1000).long()
    assert step.min() >= 0
    assert step.max() <= 999
    counts = torch.bincount(step // 100, minlength=10).double()
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # χ² of 9 degrees at 1 in 1,000
    ends = {"time": torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)}
    ends |= {"drop": torch.ones(2), "noise": torch.zeros(2, 4, 3)}
    with torch.no_grad():
        assert model.loss(LATENTS[:2], LABELS[:2], ends)["loss"].isfinite().all()


def test_the_bound_trains_the_variance_alone():
    model = made(CONFIGS["DiT"])
    draws = draws_of(model, *range(6))
    last = model.network.final_layer.linear
    model.loss(LATENTS, LABELS, draws)["bound"].sum().backward()
    assert (last.weight.grad[:3] == 0).all()
    assert (last.weight.grad[3:] != 0).any()
    model.zero_grad()
    model.loss(LATENTS, LABELS, draws)["mse"].sum().backward()
    assert (last.weight.grad[:3] != 0).any()
    assert (last.weight.grad[3:] == 0).all()


@pytest.mark.parametrize("kind", ["SiT", "DiT"])
def test_labels_are_dropped_at_the_configured_rate_and_the_network_sees_the_null_class(kind):
    model = made(replace(CONFIGS[kind], dropout=0.2))
    drop = draws_of(model, *range(3000))["drop"]
    labels = torch.arange(3000) % 5
    kept = model.dropped(labels, drop)
    assert torch.equal(kept == 5, drop < 0.2)
    assert torch.equal(kept[kept != 5], labels[kept != 5])
    assert abs((kept == 5).double().mean() - 0.2) < 4.5 * math.sqrt(0.2 * 0.8 / 3000)
    seen = []
    model.network.y_embedder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].tolist()))
    draws = draws_of(model, *range(6)) | {"drop": torch.tensor([0.1, 0.9, 0.1999, 0.2, 0.0, 1.0])}
    with torch.no_grad():
        model.loss(LATENTS, LABELS, draws)
    assert seen == [[5, 1, 5, 3, 5, 0]]


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
@pytest.mark.parametrize("kind", [SiTConfig, DiTConfig])
def test_an_impossible_dropout_is_an_error_with_its_number(kind, dropout):
    with pytest.raises(ValueError, match=str(dropout)):
        kind(NETWORK, dropout=dropout)


def test_mix_takes_one_time_a_sample():
    """The point of each sample of a batch is that of its own time."""
    t = torch.linspace(0, 1, 6)
    point, velocity = mix("linear", LATENTS, LATENTS.flip(0), t)
    for i in range(6):
        torch.testing.assert_close(point[i], (1 - t[i]) * LATENTS[i] + t[i] * LATENTS[5 - i])
        torch.testing.assert_close(velocity[i], LATENTS[5 - i] - LATENTS[i])


def test_sit_learns_two_points():
    """The smallest proof that loss, network and sampler mean the same by a velocity."""
    torch.manual_seed(0)
    model = SiTConfig(TransformerConfig(2, 2, 2, 64, 2, 2), dropout=0.0).build()
    points = torch.tensor([[[1.0, -1.0], [0.5, 1.0]], [[-1.0, 0.5], [1.0, -0.5]]])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    labels = torch.arange(64) % 2
    for step in range(150):
        draws = draws_of(model, *range(64 * step, 64 * (step + 1)))
        optimizer.zero_grad()
        model.loss(points[labels], labels, draws)["loss"].mean().backward()
        optimizer.step()
    found = model.eval().sample(torch.tensor([0, 1, 0, 1]), Noise(0, range(4), (2, 2)), Sampling("heun", 10))
    assert (found - points[[0, 1, 0, 1]]).abs().max() < 0.3
