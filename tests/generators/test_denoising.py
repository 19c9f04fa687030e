"""SiT and DiT: the numbers of a training step, the loss, sampling whatever the batch, 2-D latents, saving."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softvq import hub
from softvq.config import ConfigError
from softvq.generators.all import load_generator
from softvq.generators.base import Noise, Sampling
from softvq.generators.denoising import DiT, DiTConfig, SiT, SiTConfig, fold, unfold
from softvq.generators.transformer import TransformerConfig
from softvq.hub import ModelError
from softvq.transports import samplers
from softvq.transports.guidance import Guidance
from softvq.transports.paths import mix, times

NETWORK = TransformerConfig.named("tiny", tokens=4, channels=3, classes=5)
CONFIGS = {
    "SiT": SiTConfig(NETWORK),
    "SiT linear": SiTConfig(NETWORK, "linear", "uniform"),
    "SiT data": SiTConfig(NETWORK, predict="data"),
    "SiT noise": SiTConfig(NETWORK, "linear", predict="noise"),
    "DiT": DiTConfig(NETWORK),
    "DiT linear": DiTConfig(NETWORK, "linear"),
}
SAMPLERS = [*(("SiT", name) for name in SiT.samplers), *(("DiT", name) for name in DiT.samplers)]
LATENTS = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def made(config: SiTConfig | DiTConfig, std: float = 0.15) -> SiT | DiT:
    model = config.build().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return model


def rngs(*samples: int) -> list[np.random.Generator]:
    return [np.random.default_rng([7, sample]) for sample in samples]


def draws_of(model: SiT | DiT, *samples: int) -> dict[str, Tensor]:
    return model.draw(rngs(*samples), np.random.default_rng(1))


# ---- Training


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
        fields.append(model.velocity(torch.zeros(50, dtype=torch.long))(x, t, t))
    torch.testing.assert_close(fields[1], fields[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(fields[2], fields[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("sampler", "steps"), [("heun", 40), ("dopri5", 1), ("dpm", 120)])
def test_sampling_ends_where_the_ode_does(sampler, steps):
    model = Exact(SiTConfig(NETWORK))
    model.mean = 0.8
    found = model.sample(LABELS, Noise(3, range(6), (4, 3)), Sampling(sampler, steps))
    wanted = 0.8 + 0.6 * Noise(3, range(6), (4, 3))()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-3)


# ---- Sampling


@pytest.mark.parametrize(("kind", "sampler"), SAMPLERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_image_is_the_same_in_any_batch_and_a_function_of_its_seed(kind, sampler, dtype):
    model = made(CONFIGS[kind])
    sampling = Sampling(sampler, 6, Guidance(1.5, (0.0, 0.7)), dtype)

    def sample(seed: int, *images: int) -> Tensor:
        return model.sample(LABELS[list(images)], Noise(seed, images, (4, 3)), sampling)

    whole = sample(0, 0, 1, 2, 3)
    assert whole.dtype == torch.float32
    scale = max(1.0, whole.abs().max().item()) * 1e-5
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
    found = model.noise_field(LABELS, Guidance(3.0))(x, t, t / 999)
    with_ = model(x, t.float(), LABELS)
    without = model(x, t.float(), torch.full_like(LABELS, 5))
    torch.testing.assert_close(found[..., 3:], with_[..., 3:])
    torch.testing.assert_close(found[..., :3], without[..., :3] + 3 * (with_ - without)[..., :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "sampler"), [("SiT", "ddpm"), ("SiT", "mar"), ("DiT", "euler"), ("DiT", "mar")])
def test_a_sampler_of_another_model_is_an_error_that_names_the_right_ones(kind, sampler):
    model = made(CONFIGS[kind])
    with pytest.raises(ValueError, match=rf"a {kind} is sampled with {', '.join(model.samplers)}, not '{sampler}'"):
        model.sample(LABELS[:1], Noise(0, [0], (4, 3)), Sampling(sampler))


def test_no_steps_are_an_error():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Sampling("euler", 0)


def test_more_steps_than_the_chain_has_are_all_of_its_steps(monkeypatch):
    told = []
    monkeypatch.setattr(samplers, "ddim", lambda field, x, chain, progress: told.extend(chain.timesteps.tolist()) or x)
    made(CONFIGS["DiT"]).sample(LABELS[:1], Noise(0, [0], (4, 3)), Sampling("ddim", 1200))
    assert told == list(range(1000))


# ---- Noise


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


# ---- 2-D latents


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


# ---- Saved and loaded


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(name, tmp_path: Path):
    model = made(CONFIGS[name])
    model.about["classes"] = ["a", "b", "c", "d", "e"]
    model.save_pretrained(tmp_path)
    again = load_generator(tmp_path)
    assert type(again) is type(model)
    assert again.config == model.config
    assert again.about == model.about
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())
    draws = draws_of(model, *range(6))
    torch.testing.assert_close(again.loss(LATENTS, LABELS, draws), model.loss(LATENTS, LABELS, draws))


@pytest.mark.parametrize("kind", ["SiT", "DiT"])
def test_a_loaded_generator_samples_as_the_one_that_was_saved(kind, tmp_path: Path):
    model = made(CONFIGS[kind])
    model.save_pretrained(tmp_path)
    again = load_generator(tmp_path)
    for sampler in model.samplers:
        sampling = Sampling(sampler, 4)
        one, other = (m.sample(LABELS[:2], Noise(0, range(2), (4, 3)), sampling) for m in (model, again))
        assert torch.equal(one, other)


def test_half_precision_is_saved_as_such_but_for_the_positions(tmp_path: Path):
    model = made(CONFIGS["SiT"])
    model.save_pretrained(tmp_path, torch.bfloat16)
    saved = hub.read_tensors(tmp_path / hub.WEIGHTS)
    assert {name for name, tensor in saved.items() if tensor.dtype == torch.float32} == {"network.pos_embed"}
    again = load_generator(tmp_path)
    for key, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[key], rtol=2**-8, atol=0)
    with pytest.raises(ValueError, match=r"floating-point type, not torch\.int8"):
        model.save_pretrained(tmp_path, torch.int8)


def edit(folder: Path, change) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


def rewrite(folder: Path, change) -> None:
    tensors = hub.read_tensors(folder / hub.WEIGHTS)
    change(tensors)
    hub.write_tensors(folder / hub.WEIGHTS, tensors)


DAMAGE = {
    "missing": (
        lambda f: rewrite(f, lambda t: t.pop("network.x_embedder.bias")),
        ModelError,
        "lacks the tensor network.x_embedder.bias",
    ),
    "extra": (
        lambda f: rewrite(f, lambda t: t.update(ema=torch.zeros(1))),
        ModelError,
        "has the tensor ema, which the model has not",
    ),
    "shape": (
        lambda f: rewrite(f, lambda t: t.update({"network.x_embedder.bias": torch.zeros(3)})),
        ModelError,
        r"network.x_embedder.bias has shape \(3,\), expected \(32,\)",
    ),
    "deep": (
        lambda f: edit(f, lambda d: d["config"]["network"].update(depth=200)),
        ModelError,
        "has 200 blocks",
    ),
    "kind": (lambda f: edit(f, lambda d: d.update(kind="tokenizer")), ModelError, "not a 'generator'"),
    "type": (
        lambda f: edit(f, lambda d: d["config"].update(type="GiT")),
        ConfigError,
        'must be one of SiT, DiT, MAR, not "GiT"',
    ),
    "path": (
        lambda f: edit(f, lambda d: d["config"].update(path="edm")),
        ConfigError,
        "must be one of 'linear', 'cosine', not \"edm\"",
    ),
    "key": (
        lambda f: edit(f, lambda d: d["config"]["network"].update(width_=3)),
        ConfigError,
        "unknown key 'width_'; did you mean width",
    ),
    "size": (
        lambda f: edit(f, lambda d: d["config"]["network"].update(heads=5)),
        ConfigError,
        "must be a multiple of 4 and of heads 5",
    ),
    "nothing": (lambda f: (f / "model.safetensors").unlink(), ModelError, "does not exist"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_loaded_is_a_sentence(name, tmp_path: Path):
    damage, error, sentence = DAMAGE[name]
    made(CONFIGS["SiT"]).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=sentence) as caught:
        load_generator(tmp_path)
    assert "\n" not in str(caught.value)


# ---- Learning


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


def test_mix_takes_one_time_a_sample():
    """The point of each sample of a batch is that of its own time."""
    t = torch.linspace(0, 1, 6)
    point, velocity = mix("linear", LATENTS, LATENTS.flip(0), t)
    for i in range(6):
        torch.testing.assert_close(point[i], (1 - t[i]) * LATENTS[i] + t[i] * LATENTS[5 - i])
        torch.testing.assert_close(velocity[i], LATENTS[5 - i] - LATENTS[i])


def test_the_front_door_leads_to_saved_generators(tmp_path):
    from softvq import Generator

    saved = SiTConfig(TransformerConfig.named("tiny", 4, 3, 2)).build()
    saved.save_pretrained(tmp_path)
    found = Generator.from_pretrained(tmp_path)
    assert type(found) is SiT
    assert not found.training
    assert "Generator.from_pretrained" in (tmp_path / "README.md").read_text()
