"""Latent noise: what the decoder gets in training, against straight-line numpy, and where it is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from softvq import Tokenizer, distributed, hub
from softvq.data.loader import Batch
from softvq.optim import AdamWConfig, MuonConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.training.options import RunOptions
from softvq.training.recipe import TokenizerRecipe
from softvq.training.state import Players
from softvq.training.step import deviation, disturbances, posterior_noise, tokenizer_terms
from softvq.training.task import Hook
from softvq.training.tokenizer import TokenizerTask, new_tokenizer
from tests.training.test_run import ALIGNED, CPU, pictures, run, tiny_recipe  # noqa: F401 (a fixture)

PLAIN = {"quantizer": AEConfig(), "weights": {"reconstruction": 1.0}}  # latents are what the encoder says


def batch_of(positions: list[int], size: int = 16) -> Batch:
    """Each image a function of its sample number."""
    images = [torch.rand(3, size, size, generator=torch.Generator().manual_seed(p)) * 2 - 1 for p in positions]
    labels = torch.zeros(len(images), dtype=torch.long)
    return Batch(torch.stack(images), labels, [str(p) for p in positions], positions)


def players_of(recipe: TokenizerRecipe) -> Players:
    task = TokenizerTask(recipe)
    task.options = RunOptions(Path("nowhere"), CPU, "float32").settled()
    players = task.build()
    for player in players.values():
        player.place(CPU)
    return players


def passed(recipe: TokenizerRecipe, positions: list[int], scale: float = 1.0) -> dict[str, Tensor]:
    """What goes through a training step's forward pass: the quantizer's `latent`, the `decoder`'s and the `projector`'s
    inputs. `scale`: of the encoder's last layer."""
    players = players_of(recipe)
    model, projector = players["model"].followed, players["model"].module.projector
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        model.to_quantizer.weight *= scale
    model.quantizer.register_forward_hook(lambda _, __, result: seen.update(latent=result.latent))
    model.from_quantizer.register_forward_hook(lambda _, inputs, __: seen.update(decoder=inputs[0]))
    if projector is not None:
        projector.register_forward_hook(lambda _, inputs, __: seen.update(projector=inputs[0]))
    model.train()
    tokenizer_terms(players, recipe, "float32", batch_of(positions), False)
    return seen


def numbers(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def deviations(z: np.ndarray) -> np.ndarray:
    """Over images and tokens, channel by channel."""
    images, tokens, channels = z.shape
    found = []
    for channel in range(channels):
        values = [z[image, token, channel] for image in range(images) for token in range(tokens)]
        average = sum(values) / len(values)
        found.append((sum((value - average) ** 2 for value in values) / len(values)) ** 0.5)
    return np.array(found)


# What the decoder gets


@pytest.mark.parametrize("fields", [{}, PLAIN, {"quantizer": KLConfig()}], ids=["softvq", "plain", "kl"])
def test_the_decoder_gets_latents_with_noise_in_units_of_their_deviation(fields: dict):
    recipe, positions = tiny_recipe(latent_noise=0.7, **fields), [5, 0, 9]
    seen = passed(recipe, positions)
    z = numbers(seen["latent"])
    expected = z + numbers(disturbances(recipe, positions)) * deviations(z)
    assert np.abs(expected - z).max() > 0.1 * deviations(z).min()
    np.testing.assert_allclose(numbers(seen["decoder"]), expected, rtol=1e-5, atol=1e-5 * np.abs(z).max())


def test_the_deviation_is_over_all_images_and_tokens_of_a_channel():
    z = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 6.0) + 2
    np.testing.assert_allclose(numbers(deviation(z)), deviations(numbers(z)), rtol=1e-6)
    assert deviation(z.bfloat16()).dtype == torch.float32
    constant = torch.full((2, 3, 1), 0.5, requires_grad=True)
    deviation(constant).sum().backward()
    assert deviation(constant).item() <= 1e-6
    assert constant.grad.tolist() == torch.zeros(2, 3, 1).tolist()  # no NaN


def test_alignment_and_the_quantizers_own_losses_are_of_latents_without_noise():
    recipe = tiny_recipe(latent_noise=0.7, **ALIGNED)
    seen = passed(recipe, [0, 1])
    assert torch.equal(seen["projector"], seen["latent"])
    assert not torch.equal(seen["decoder"], seen["latent"])
    losses = []
    for noise in (0.0, 0.7):
        one = replace(recipe, latent_noise=noise)
        terms, *_ = tokenizer_terms(players_of(one), one, "float32", batch_of([0, 1]), False)
        losses.append({name: value.item() for name, value in terms.items()})
    for name in ("kl", "alignment"):
        assert losses[0][name] == losses[1][name]
    assert losses[0]["reconstruction"] != losses[1]["reconstruction"]


def test_larger_latents_get_as_much_larger_noise():
    """So that growing does not help against it."""
    recipe = tiny_recipe(latent_noise=0.7, **PLAIN)
    one, ten = (passed(recipe, [0, 1, 2], scale) for scale in (1.0, 10.0))
    noise = [seen["decoder"] - seen["latent"] for seen in (one, ten)]
    torch.testing.assert_close(ten["latent"], 10 * one["latent"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(noise[1], 10 * noise[0], rtol=1e-3, atol=1e-4 * noise[1].abs().max().item())


def test_the_gradient_goes_through_the_deviation_too():
    """Of Σ w (z + n s): w + n-weighted Σ w n times ∂s/∂z = (z − mean) / (N s), in numpy."""
    recipe = tiny_recipe(latent_noise=0.7, **PLAIN)
    seen, n = passed(recipe, [0, 1, 2]), numbers(disturbances(recipe, [0, 1, 2]))
    w = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((w * seen["decoder"]).sum(), seen["latent"])
    z, w = numbers(seen["latent"]), numbers(w)
    s, mean = deviations(z), z.mean((0, 1))
    expected = w + (w * n).sum((0, 1)) * (z - mean) / (12 * s)
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected - w).max() > 0.05


def test_the_encoder_gets_a_gradient_through_the_noise():
    recipe = tiny_recipe(latent_noise=0.7)
    players = players_of(recipe)
    terms, *_ = tokenizer_terms(players, recipe, "float32", batch_of([0, 1]), False)
    terms["reconstruction"].backward()
    assert all(p.grad.abs().sum() > 0 for p in players["model"].followed.encoder.vit.blocks.parameters())


# The noise itself

WIDE = tiny_recipe(latent_noise=0.4)
WIDE = replace(WIDE, tokenizer=replace(WIDE.tokenizer, tokens=32, latent_dim=32, quantizer=AEConfig()))


def distance(values: np.ndarray, expected: np.ndarray) -> float:
    """Kolmogorov's, of values to the quantiles that are expected of as many."""
    ranks = np.searchsorted(np.sort(values), np.sort(expected), side="right") / len(values)
    return float(np.abs(ranks - (np.arange(len(expected)) + 0.5) / len(expected)).max())


def test_an_images_noise_is_normal_of_a_size_uniform_up_to_the_given_one():
    found = numbers(disturbances(WIDE, list(range(600)))).reshape(600, -1)
    sizes = np.sqrt((found**2).mean(1))  # to 2 %
    assert sizes.max() < 0.4 * 1.1
    assert distance(sizes, 0.4 * (np.arange(600) + 0.5) / 600) < 0.07  # 1.63 / √600 is met 99 times of 100
    normal = (found / sizes[:, None]).ravel()
    assert normal.mean() == pytest.approx(0, abs=0.01)
    assert (normal**3).mean() == pytest.approx(0, abs=0.02)
    assert (normal**4).mean() == pytest.approx(3, abs=0.03)
    halves = (found / sizes[:, None]).reshape(600, 2, -1)
    assert abs(np.corrcoef(halves[:, 0].ravel(), halves[:, 1].ravel())[0, 1]) < 0.01  # each number its own


def test_it_is_a_function_of_seed_and_sample_number_alone():
    whole = disturbances(WIDE, [3, 4, 5])
    assert whole.dtype == torch.float32
    assert torch.equal(disturbances(WIDE, [5, 9, 3])[[2, 0]], whole[[0, 2]])
    other = replace(WIDE, steps=9, batch_size=2, augment=replace(WIDE.augment, flip=False))
    assert torch.equal(disturbances(other, [3, 4, 5]), whole)
    assert not torch.isclose(disturbances(replace(WIDE, seed=1), [3, 4, 5]), whole).all(2).any()
    torch.testing.assert_close(disturbances(replace(WIDE, latent_noise=0.8), [3, 4, 5]), 2 * whole)
    posterior = posterior_noise(WIDE, [3, 4, 5])
    assert abs(np.corrcoef(numbers(posterior).ravel(), numbers(whole).ravel())[0, 1]) < 0.06


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_sizes_that_are_none(value: float):
    with pytest.raises(ValueError, match="latent_noise must not be negative, and finite"):
        tiny_recipe(latent_noise=value)


# Where it is not


def test_by_default_there_is_none():
    assert tiny_recipe().latent_noise == 0
    assert disturbances(tiny_recipe(), [0, 1]) is None
    seen = passed(tiny_recipe(), [0, 1])
    assert seen["decoder"] is seen["latent"]


def test_outside_of_training_steps_there_is_none(pictures: Path, tmp_path: Path):  # noqa: F811
    recipe, images = tiny_recipe(data=str(pictures), latent_noise=0.7), batch_of([0, 1]).images
    noisy, plain = new_tokenizer(recipe), new_tokenizer(replace(recipe, latent_noise=0.0))
    for mode in (True, False):
        assert torch.equal(noisy.train(mode)(images).images, plain.train(mode)(images).images)
    trained = Tokenizer.from_pretrained(run(recipe, tmp_path / "run"))
    with torch.no_grad():
        found = [trained(images).images for _ in range(2)]
        assert torch.equal(*found)
        torch.testing.assert_close(trained.decode(trained.encode(images)), found[0])


# Runs


@pytest.mark.parametrize("optimizer", [AdamWConfig(1e-3, warmup_steps=2), MuonConfig()])
def test_a_resumed_run_equals_an_uninterrupted_one(pictures: Path, tmp_path: Path, optimizer):  # noqa: F811
    recipe = tiny_recipe(data=str(pictures), optimizer=optimizer, latent_noise=0.5)
    whole = run(recipe, tmp_path / "whole")

    def stop(state, log):
        if state.step == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(recipe, tmp_path / "cut", hooks=[Hook(1, stop)])
    resumed = run(recipe, tmp_path / "cut")
    assert (whole / hub.WEIGHTS).read_bytes() == (resumed / hub.WEIGHTS).read_bytes()
    other = run(replace(recipe, latent_noise=0.0), tmp_path / "other")
    assert (whole / hub.WEIGHTS).read_bytes() != (other / hub.WEIGHTS).read_bytes()


RANKED = tiny_recipe(latent_noise=0.7, **PLAIN)


def answer(positions: list[int]) -> dict[str, Tensor]:
    """What the decoder gets of these samples, and the gradients of the whole batch's reconstruction."""
    players = players_of(RANKED)
    model, seen = players["model"].followed, []
    model.from_quantizer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    terms, *_ = tokenizer_terms(players, RANKED, "float32", batch_of(positions), False)
    terms["reconstruction"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"decoder": torch.cat(distributed.gathered(seen[0].detach())), **gradients}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(answer([2 * rank, 2 * rank + 1]), f"{folder}/{rank}.pt")
    dist.barrier()  # a rank that leaves while the other still talks to it may be aborted
    dist.destroy_process_group()


def test_two_ranks_with_half_the_batch_each_equal_one(tmp_path: Path):
    """The deviation is the whole batch's, and so are the gradients through it."""
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    whole = answer([0, 1, 2, 3])
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
