"""One step of the two players: who moves when, what is drawn from what, and what is carried from step to step."""

import gc
import math
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softvq import hub
from softvq.data.loader import Batch
from softvq.losses import adversarial
from softvq.losses.alignment import alignment
from softvq.losses.augment import augmented, viewed
from softvq.losses.discriminators import PatchGANDiscriminatorConfig
from softvq.losses.total import ScheduleConfig, total, weights_at
from softvq.optim import AdamWConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.recipes.all import find
from softvq.training import step as steps
from softvq.training.recipe import TokenizerRecipe
from softvq.training.state import Checkpoints, TrainState
from softvq.training.step import Frozen, looks, make_step, standing_still, tokenizer_terms
from softvq.training.tokenizer import RunOptions, new_state

CPU = torch.device("cpu")
SIZE = 48
FAST = AdamWConfig(lr=1e-3, warmup_steps=1)
PATCHGAN = PatchGANDiscriminatorConfig(4, 1)
START = ScheduleConfig(start=2)


def recipe_of(quantizer=None, judged: dict | None = None, **changes) -> TokenizerRecipe:
    """The tiny twin of softvq-s-64, smaller still; every term from the first step on. `judged`: fields of the
    adversarial term."""
    twin = find("softvq-s-64-tiny")
    quantizer = quantizer or twin.tokenizer.quantizer
    weights = {name: weight for name, weight in twin.weights.items() if name != "kl" or quantizer != AEConfig()}
    dino = replace(twin.adversarial.discriminator, image_size=32)
    recipe = replace(
        twin,
        tokenizer=replace(twin.tokenizer, image_size=SIZE, tokens=8, latent_dim=4, quantizer=quantizer),
        optimizer=FAST,
        weights=weights,
        schedules={},
        adversarial=replace(twin.adversarial, **{"discriminator": dino, "optimizer": FAST, **(judged or {})}),
        batch_size=4,
    )
    return replace(recipe, **changes)


def without_adversarial(recipe: TokenizerRecipe) -> TokenizerRecipe:
    weights = {name: weight for name, weight in recipe.weights.items() if name != "adversarial"}
    schedules = {name: s for name, s in recipe.schedules.items() if name != "adversarial"}
    return replace(recipe, adversarial=None, weights=weights, schedules=schedules)


def batch_of(positions: list[int], step: int = 0) -> Batch:
    """Each image a function of its sample number."""
    images = [
        torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1000 * step + p)) * 2 - 1 for p in positions
    ]
    return Batch(
        torch.stack(images), torch.zeros(len(images), dtype=torch.long), [str(p) for p in positions], positions, {}
    )


class Run:
    """A state and its step. `gradients` are what the optimizers saw last, by player and parameter."""

    def __init__(self, recipe: TokenizerRecipe):
        self.recipe, self.frozen = recipe, Frozen.of(recipe, CPU)
        self.state = new_state(recipe, self.frozen, RunOptions(Path("nowhere"), CPU))
        self.make = make_step(recipe, "float32", self.frozen)
        self.gradients: dict[str, dict[str, Tensor]] = {}
        self.before("optimizers", lambda: self.gradients.update(tokenizer=gradients_of(self.state.trained)))
        self.before("judge_optimizers", lambda: self.gradients.update(discriminator=gradients_of(self.state.judge)))

    def before(self, which: str, call: Callable[[], object]) -> None:
        """Call this whenever these optimizers are about to step."""
        for optimizer in getattr(self.state, which):
            optimizer.register_step_pre_hook(lambda *_: call() and None)

    def step(self, batch: Batch | None = None) -> dict[str, float]:
        number = self.state.step
        values = self.make(self.state, batch or batch_of([4 * number + i for i in range(4)]))
        self.state.step += 1
        return {name: float(value) for name, value in values.items()}


def gradients_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def copied(state: TrainState) -> dict[str, dict[str, Tensor]]:
    return {part: {k: t.detach().clone() for k, t in some.items()} for part, some in state.tensors().items()}


def moved(before: dict, after: dict, *parts: str) -> list[str]:
    """The tensors of these parts that are not bitwise what they were."""
    found = []
    for part in parts:
        assert before[part].keys() <= after[part].keys()
        found += [
            f"{part}.{k}"
            for k, t in after[part].items()
            if k not in before[part] or not torch.equal(t, before[part][k])
        ]
    return found


def near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Gradients alike, in units of the largest of all."""
    assert found.keys() == expected.keys()
    scale = max(t.abs().max().item() for t in expected.values())
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max().item() <= tolerance * scale, name


# Who moves when


def test_before_its_start_the_discriminator_stands_still_and_its_term_is_0():
    run = Run(recipe_of(schedules={"adversarial": START}))
    start = copied(run.state)
    for _ in range(2):
        values = run.step()
        assert values["loss/adversarial"] == values["weight/adversarial"] == 0
        assert not [name for name in values if "discriminator" in name]
        assert not moved(start, copied(run.state), "judge", "judge_optimizer")
    values = run.step()
    assert values["weight/adversarial"] == pytest.approx(0.2)
    assert values["loss/adversarial"] != 0
    parameters = {f"judge.{name}" for name, _ in run.state.judge.named_parameters()}
    assert parameters <= set(moved(start, copied(run.state), "judge"))
    assert run.state.judge["lecam"].real != 0 != run.state.judge["lecam"].fake


def test_before_its_start_a_run_is_that_of_the_recipe_without_it():
    recipe = recipe_of(schedules={"adversarial": START})
    one, other = Run(recipe), Run(without_adversarial(recipe))
    for _ in range(2):
        values = one.step(), other.step()
        assert values[0]["loss/total"] == values[1]["loss/total"]
    assert not moved(copied(one.state), copied(other.state), "model", "ema", "heads")
    one.step()
    other.step()
    assert moved(copied(one.state), copied(other.state), "model")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fields", [{}, {"adaptive": True}, {"discriminator": PATCHGAN}])
def test_each_half_leaves_the_other_player_alone(accumulate: int, fields: dict):
    run = Run(recipe_of(judged=fields, accumulate=accumulate))
    run.step()  # so that the optimizers have a state
    start, seen = copied(run.state), {}
    run.before("optimizers", lambda: seen.update(at_tokenizer=(copied(run.state), gradients_of(run.state.judge))))
    run.before("judge_optimizers", lambda: seen.update(at_judge=(copied(run.state), gradients_of(run.state.trained))))
    run.step()
    end = copied(run.state)
    parts, gradients = seen["at_tokenizer"]
    assert not gradients
    assert not moved(start, parts, *start)  # parameters and buffers, spectral norms and LeCAM's among them
    parts, gradients = seen["at_judge"]
    assert not gradients
    assert not moved(parts, end, "model", "ema", "heads", "optimizer")
    parameters = {f"judge.{name}" for name, _ in run.state.judge.named_parameters()}
    assert not parameters & set(moved(start, parts, "judge"))
    assert parameters <= set(moved(start, end, "judge"))
    assert all(moved(start, end, part) for part in ("model", "heads", "ema"))


def test_no_gradient_is_left_and_every_weight_can_be_trained_again():
    run = Run(recipe_of())
    run.step()
    for player in (run.state.trained, run.state.judge):
        assert not gradients_of(player)
        assert all(p.requires_grad for p in player.parameters())
        assert all(module.training for module in player.modules())
    assert not any(p.requires_grad for p in run.state.ema.parameters())


def test_a_module_is_thawed_after_an_error_too():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))

    def fail():
        assert not module[0].training
        assert not any(p.requires_grad for p in module.parameters())
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), standing_still(module):
        fail()
    assert module[0].training
    assert all(p.requires_grad for p in module.parameters())


def test_frozen_networks_never_change_and_are_in_no_checkpoint():
    run = Run(recipe_of(judged={"adaptive": True}))
    networks = {name: getattr(run.frozen, name) for name in ("teacher", "perceptual", "readouts")}
    before = {name: {k: t.clone() for k, t in net.state_dict().items()} for name, net in networks.items()}
    theirs = {t.data_ptr() for net in networks.values() for t in net.state_dict().values()}
    assert all(before.values())
    for _ in range(2):
        run.step()
    for name, net in networks.items():
        assert all(torch.equal(t, before[name][k]) for k, t in net.state_dict().items()), name
        assert not any(p.grad is not None or p.requires_grad for p in net.parameters())
        assert not any(module.training for module in net.modules())
    tensors = run.state.tensors()
    assert not theirs & {t.data_ptr() for some in tensors.values() for t in some.values()}
    assert all(name.startswith("projector.") for name in tensors["heads"])
    assert all(name.startswith(("discriminator.heads.", "lecam.")) for name in tensors["judge"])
    trained = sum(p.numel() for player in (run.state.trained, run.state.judge) for p in player.parameters())
    moments = [
        t for part in ("optimizer", "judge_optimizer") for k, t in tensors[part].items() if k.endswith("exp_avg")
    ]
    assert sum(t.numel() for t in moments) == trained


# What is minimised


def test_weights_start_and_warm_up():
    schedules = {
        "rising": ScheduleConfig(warmup=4),
        "late": ScheduleConfig(start=3),
        "both": ScheduleConfig(start=2, warmup=2),
    }
    weights = {"rising": 1.0, "late": 0.2, "both": 4.0, "always": 0.1}
    expected = {
        "rising": [0.25, 0.5, 0.75, 1, 1, 1],
        "late": [0, 0, 0, 0.2, 0.2, 0.2],
        "both": [0, 0, 2, 4, 4, 4],
        "always": [0.1] * 6,
    }
    for step in range(6):
        found = weights_at(step, weights, schedules)
        assert found == pytest.approx({name: values[step] for name, values in expected.items()})
    paper = find("softvq-l-64")
    found = [weights_at(step, paper.weights, paper.schedules) for step in (0, 4_999, 9_999, 19_999, 20_000)]
    assert [w["perceptual"] for w in found] == pytest.approx([1e-4, 0.5, 1, 1, 1])
    assert [w["adversarial"] for w in found] == [0, 0, 0, 0, 0.2]
    for fields in ({"start": -1}, {"warmup": -1}):
        with pytest.raises(ValueError, match="must not be negative"):
            ScheduleConfig(**fields)


def test_the_steps_weights_are_the_schedules_and_the_total_is_their_sum():
    schedules = {"adversarial": ScheduleConfig(start=1, warmup=2), "perceptual": ScheduleConfig(warmup=3)}
    run = Run(recipe_of(schedules=schedules, accumulate=2))
    for number in range(3):
        values = run.step()
        expected = weights_at(number, run.recipe.weights, schedules)
        assert {name: values[f"weight/{name}"] for name in expected} == pytest.approx(expected)
        found = math.fsum(values[f"loss/{name}"] * weight for name, weight in expected.items())
        assert values["loss/total"] == pytest.approx(found, rel=1e-5)


def test_missing_and_extra_names_are_errors():
    terms = {"a": torch.ones(()), "b": torch.ones(())}
    for weights in ({"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "c": 1.0}):
        with pytest.raises(ValueError, match=f"terms are a, b, but the weights name {', '.join(weights)};"):
            total(terms, weights)
    run = Run(recipe_of())
    for weights in ({"reconstruction": 1.0}, {**run.recipe.weights, "codebook": 1.0}):
        with pytest.raises(ValueError, match="the loss terms are adversarial, alignment, kl, perceptual, recon"):
            make_step(replace(run.recipe, weights=weights), "float32", run.frozen)(run.state, batch_of([0]))


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_every_term_is_what_its_name_says(augment: float):
    run = Run(recipe_of(judged={"discriminator": PATCHGAN, "augment": augment}))
    batch, net = batch_of([0, 1]), run.state.judge["discriminator"]
    ((draws, _),) = looks(run.recipe, batch, (steps._GENERATOR,))
    with torch.no_grad():
        terms, outputs, _ = tokenizer_terms(run.state, run.recipe, "float32", run.frozen, batch, True)
        *_, projected = run.state.trained(batch.images, torch.zeros(2, 8, 4))
        expected = {
            "reconstruction": (outputs - batch.images).square().mean(),
            "perceptual": run.frozen.perceptual(outputs, batch.images).mean(),
            "alignment": alignment(projected, run.frozen.teacher(batch.images)),
            "adversarial": -net([augmented(outputs, draws)]).mean(),
        }
    assert not outputs.requires_grad
    assert terms.keys() == run.recipe.weights.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loss", "augment"), [("hinge", 0.0), ("hinge", 1.0), ("non_saturating", 0.0)])
def test_the_discriminators_loss_is_of_appendix_c1(loss: str, augment: float):
    """λ2 · (½ E[relu(1 − real)] + ½ E[relu(1 + fake)] + 0.001 LeCAM) + 4 consistency, of the right images each."""
    run = Run(recipe_of(judged={"discriminator": PATCHGAN, "augment": augment, "loss": loss}))
    batch, fakes = batch_of([0, 1]), batch_of([0, 1], step=7).images * 0.3 + 0.5
    net, lecam = run.state.judge["discriminator"], run.state.judge["lecam"]
    with torch.no_grad():
        for parameter in net.parameters():  # so that logits have a say
            parameter.mul_(3)
        lecam.real.fill_(0.4)
        lecam.fake.fill_(-0.6)
        streams = (steps._FAKE, steps._REAL, steps._STRONG_FAKE, steps._STRONG_REAL)
        shown = zip((fakes, batch.images) * 2, looks(run.recipe, batch, streams), strict=True)
        fake, real, *strong = (net([augmented(images, draws)]) for images, (draws, _) in shown)
    weights = {"adversarial": 0.2}
    found, values = steps.discriminator_loss(run.state, run.recipe, "float32", run.frozen, batch, fakes, weights)
    averages = 0.999 * 0.4 + 0.001 * real.mean(), 0.999 * -0.6 + 0.001 * fake.mean()
    torch.testing.assert_close(torch.stack([lecam.real, lecam.fake]), torch.stack(averages))
    expected = {
        "discriminator/loss": adversarial.discriminator_loss(real, fake, loss),
        "discriminator/lecam": (real - averages[1]).relu().square().mean()
        + (averages[0] - fake).relu().square().mean(),
        "discriminator/real": real.mean(),
        "discriminator/fake": fake.mean(),
        "discriminator/consistency": 0.5 * (fake - strong[0]).square().mean()
        + 0.5 * (real - strong[1]).square().mean(),
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=1e-4, atol=1e-5)
    parts = [values[f"discriminator/{name}"].item() for name in ("loss", "lecam", "consistency")]
    assert found.item() == pytest.approx(0.2 * (parts[0] + 0.001 * parts[1]) + 4 * parts[2], rel=1e-5)
    assert all(gradient is not None for gradient in torch.autograd.grad(found, list(net.parameters())))


def test_without_consistency_no_stronger_view_is_taken():
    run = Run(recipe_of(judged={"discriminator": PATCHGAN, "consistency": 0.0}))
    assert "discriminator/consistency" not in run.step()


def test_the_dino_discriminator_reads_augmented_images_at_its_own_size():
    run = Run(recipe_of(judged={"augment": 1.0}))
    batch, net = batch_of(list(range(8))), run.state.judge["discriminator"].eval()
    ((draws, views),) = looks(run.recipe, batch, (steps._GENERATOR,))
    assert {True, False} == set(views.cropped.tolist())
    with torch.no_grad():
        terms, outputs, _ = tokenizer_terms(run.state, run.recipe, "float32", run.frozen, batch, True)
        shown = viewed(augmented(outputs, draws), views, 32)
        logits = net(run.frozen.readouts(shown))
    assert logits.shape == (8, 3 * 4)
    torch.testing.assert_close(terms["adversarial"], -logits.mean())


def test_each_look_has_numbers_of_its_own_and_the_strong_ones_all_of_diffaug():
    recipe, batch = recipe_of(judged={"augment": 0.0}), batch_of(list(range(32)))
    streams = (steps._GENERATOR, steps._FAKE, steps._REAL, steps._STRONG_FAKE, steps._STRONG_REAL)
    found = looks(recipe, batch, streams)
    for draws, _ in found[:3]:
        assert draws.kept.all()
        assert not draws.shift.any()
    for draws, _ in found[3:]:
        assert (~draws.kept).any(1).sum(1).max() == (~draws.kept).any(2).sum(1).max() == SIZE // 2
        assert (~draws.kept).flatten(1).any(1).all()
    recipe = replace(recipe, adversarial=replace(recipe.adversarial, augment=1.0))
    colours = [draws.brightness.tolist() for draws, _ in looks(recipe, batch, streams)]
    assert len({value for some in colours for value in some}) == 5 * 32
    weak, _ = looks(recipe, batch, streams)[0]
    assert (~weak.kept).any(1).sum(1).max() == int(0.2 * SIZE + 0.5)
    corners = [tuple(views.corner.flatten().tolist()) for _, views in found]
    assert len(set(corners)) == 5


def test_the_adaptive_weight_balances_gradients_at_the_last_layer():
    fields = {"discriminator": PATCHGAN}
    plain, adaptive = Run(recipe_of(judged=fields)), Run(recipe_of(judged={**fields, "adaptive": True}))
    batch, weights = batch_of([0, 1, 2, 3]), plain.recipe.weights
    terms, *_ = tokenizer_terms(plain.state, plain.recipe, "float32", plain.frozen, batch, True)
    last = plain.state.model.decoder.to_pixel.weight
    pixels = weights["reconstruction"] * terms["reconstruction"] + weights["perceptual"] * terms["perceptual"]
    norms = [torch.autograd.grad(t, last, retain_graph=True)[0].norm().item() for t in (pixels, terms["adversarial"])]
    expected = norms[0] / (norms[1] + 1e-4)
    values = plain.step(batch), adaptive.step(batch)
    assert values[1]["loss/adversarial"] == pytest.approx(expected * values[0]["loss/adversarial"], rel=1e-4)
    assert values[1]["loss/reconstruction"] == values[0]["loss/reconstruction"]


# Randomness and batches


@pytest.mark.parametrize("fields", [{}, {"discriminator": PATCHGAN, "augment": 1.0}])
def test_a_step_does_not_depend_on_the_order_of_its_batch(fields: dict):
    recipe = recipe_of(KLConfig(), judged=fields)
    one, other = Run(recipe), Run(recipe)
    values = one.step(batch_of([5, 6, 7, 8])), other.step(batch_of([7, 5, 8, 6]))
    assert values[0] == pytest.approx(values[1], rel=2e-4, abs=1e-6)
    for player in ("tokenizer", "discriminator"):
        near(one.gradients[player], other.gradients[player], 2e-4)


def test_a_step_is_a_function_of_seed_and_sample_numbers_and_of_no_other_generator():
    recipe, outcomes = recipe_of(KLConfig(), judged={"augment": 1.0}), []
    for seed, positions, torch_seed in (
        (0, [0, 1, 2, 3], 1),
        (0, [0, 1, 2, 3], 2),
        (0, [4, 5, 6, 7], 1),
        (1, [0, 1, 2, 3], 1),
    ):
        run = Run(recipe)
        run.make = make_step(replace(recipe, seed=seed), "float32", run.frozen)
        torch.manual_seed(torch_seed)
        state = torch.get_rng_state()
        values = run.step(replace(batch_of([0, 1, 2, 3]), positions=positions))  # the same images
        assert torch.equal(torch.get_rng_state(), state)
        outcomes.append((values, copied(run.state)))
    (values, first), (again, second), (other, _), (third, _) = outcomes
    assert values == again
    assert not moved(first, second, *first)
    for different in (other, third):
        assert different["loss/alignment"] != values["loss/alignment"]  # the latents' noise
        assert different["discriminator/real"] != values["discriminator/real"]  # the views


@pytest.mark.parametrize("count", [2, 4])
def test_accumulating_gives_the_gradient_of_one_pass(count: int):
    """Where every term is a mean over samples."""
    recipe = without_adversarial(recipe_of(AEConfig()))
    whole, parts = Run(recipe), Run(replace(recipe, accumulate=count))
    for step in range(2):
        values = whole.step(batch_of([0, 1, 2, 3], step)), parts.step(batch_of([0, 1, 2, 3], step))
        assert values[0] == pytest.approx(values[1], rel=1e-4)
        near(parts.gradients["tokenizer"], whole.gradients["tokenizer"], 1e-4 if step == 0 else 1e-2)


def test_accumulating_equal_parts_gives_both_players_the_gradient_of_one():
    """Statistics of a part are those of the batch here."""
    fields = {"discriminator": PATCHGAN, "lecam": 0.0, "adaptive": True}
    one, two = Run(recipe_of(judged=fields, batch_size=2)), Run(recipe_of(judged=fields, accumulate=2))
    values = one.step(batch_of([5, 6])), two.step(batch_of([5, 6, 5, 6]))
    for name, value in values[0].items():
        if name != "discriminator/lecam":  # its averages move with every part
            assert values[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for player in ("tokenizer", "discriminator"):
        near(two.gradients[player], one.gradients[player])


def test_the_discriminator_sees_each_part_with_its_own_reconstructions(monkeypatch):
    made, judged = [], []
    terms, loss = steps.tokenizer_terms, steps.discriminator_loss

    def noted_terms(state, recipe, precision, frozen, batch, playing):
        found = terms(state, recipe, precision, frozen, batch, playing)
        made.append((batch.positions, batch.images.clone(), found[1].clone()))
        return found

    def noted_loss(state, recipe, precision, frozen, batch, fakes, weights):
        judged.append((batch.positions, batch.images.clone(), fakes.clone()))
        return loss(state, recipe, precision, frozen, batch, fakes, weights)

    monkeypatch.setattr(steps, "tokenizer_terms", noted_terms)
    monkeypatch.setattr(steps, "discriminator_loss", noted_loss)
    batch = batch_of([3, 4, 5, 6])
    Run(recipe_of(accumulate=2)).step(batch)
    assert [positions for positions, *_ in judged] == [[3, 4], [5, 6]] == [positions for positions, *_ in made]
    assert torch.equal(torch.cat([images for _, images, _ in judged]), batch.images)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(made, judged, strict=True))


# Optimizers, spikes and checkpoints


def test_each_player_has_its_own_rate_and_its_own_bound_on_the_gradient():
    slow = AdamWConfig(lr=3e-4, warmup_steps=10, grad_clip=None)
    run = Run(recipe_of(optimizer=replace(FAST, grad_clip=1e-3), judged={"optimizer": slow}))
    values = run.step()
    assert {g["lr"] for o in run.state.optimizers for g in o.param_groups} == {1e-3}
    assert [g["lr"] for o in run.state.judge_optimizers for g in o.param_groups] == pytest.approx([3e-5, 3e-5])
    assert values["optimizer/lr"] == pytest.approx(1e-3)
    norms = {
        player: math.sqrt(math.fsum(g.double().square().sum().item() for g in gradients.values()))
        for player, gradients in run.gradients.items()
    }
    assert values["optimizer/gradient_norm"] > 1e-3 == pytest.approx(norms["tokenizer"], rel=1e-2)
    assert values["optimizer/discriminator_gradient_norm"] == pytest.approx(norms["discriminator"], rel=1e-4)


def test_a_spike_is_left_out_reported_and_all_but_forgotten():
    run = Run(recipe_of(skip_above=3.0))
    first = run.step()
    norms = {
        "tokenizer": first["optimizer/gradient_norm"],
        "discriminator": first["optimizer/discriminator_gradient_norm"],
    }
    assert run.state.norms == norms
    assert first["optimizer/tokenizer_skipped"] == first["optimizer/discriminator_skipped"] == 0
    run.state.norms = {"tokenizer": 1e-9, "discriminator": norms["discriminator"]}
    before = copied(run.state)
    values = run.step()
    assert (values["optimizer/tokenizer_skipped"], values["optimizer/discriminator_skipped"]) == (1, 0)
    assert not moved(before, copied(run.state), "model", "heads", "optimizer")
    assert moved(before, copied(run.state), "judge_optimizer")
    assert run.state.norms["tokenizer"] == pytest.approx(1e-9 * (0.99 + 0.01 * 3))
    assert not gradients_of(run.state.trained)
    expected = 0.99 * norms["discriminator"] + 0.01 * values["optimizer/discriminator_gradient_norm"]
    assert run.state.norms["discriminator"] == pytest.approx(expected)
    run.state.norms = {"tokenizer": 1e9, "discriminator": 1e-9}
    before = copied(run.state)
    values = run.step()
    assert (values["optimizer/tokenizer_skipped"], values["optimizer/discriminator_skipped"]) == (0, 1)
    assert moved(before, copied(run.state), "model")
    assert not moved(before, copied(run.state), "judge_optimizer")
    parameters = {f"judge.{name}" for name, _ in run.state.judge.named_parameters()}
    assert not parameters & set(moved(before, copied(run.state), "judge"))
    assert run.state.norms["discriminator"] == pytest.approx(1e-9 * (0.99 + 0.01 * 3))
    assert run.state.norms["tokenizer"] == pytest.approx(0.99e9, rel=1e-3)


def test_a_spike_is_more_than_so_many_times_the_average_of_the_others():
    state = Run(without_adversarial(recipe_of())).state
    assert not state.is_spike("a", 2.0, 1.5)  # nothing to compare with
    assert state.norms == {"a": 2.0}
    assert not state.is_spike("a", 3.0, 1.5)  # not more
    assert state.norms["a"] == pytest.approx(0.99 * 2 + 0.01 * 3)
    average = state.norms["a"]
    for _ in range(3):  # each enters as what would just be none
        assert state.is_spike("a", 1.6 * average, 1.5)
    assert state.norms["a"] == pytest.approx(average * (0.99 + 0.01 * 1.5) ** 3)
    followed = sum(state.is_spike("a", 10 * average, 1.5) for _ in range(1000))
    assert 100 < followed < 1000  # a lasting change is no spike in the end
    norms = dict(state.norms)
    assert not any(state.is_spike("a", value, 1.5) for value in (float("nan"), float("inf")))
    assert state.norms == norms
    assert not state.is_spike("b", 100.0, 1.5)  # each name has its own


def test_without_a_guard_nothing_is_skipped_or_averaged():
    run = Run(recipe_of())
    assert not [name for name in run.step() if "skipped" in name]
    assert run.state.norms == {}


def test_the_averages_of_norms_survive_a_checkpoint(tmp_path: Path):
    run = Run(recipe_of(skip_above=10.0))
    run.step()
    Checkpoints(tmp_path).save(run.state, {"bad_files": {"a": "b"}})
    other = Run(run.recipe)
    meta = Checkpoints(tmp_path).load(other.state)
    assert other.state.norms == run.state.norms
    assert other.state.norms.keys() == {"tokenizer", "discriminator"}
    assert (other.state.step, meta["bad_files"]) == (1, {"a": "b"})


@pytest.mark.parametrize("cut", [1, 2, 3], ids=["before_the_start", "at_the_start", "after_the_start"])
def test_resumed_the_next_steps_are_bitwise_those_of_the_uninterrupted_run(tmp_path: Path, cut: int):
    """Also from a checkpoint that was written before the discriminator's first step."""
    recipe = recipe_of(KLConfig(), schedules={"adversarial": START}, skip_above=100.0, accumulate=2)
    run = Run(recipe)
    for _ in range(cut):
        run.step()
    Checkpoints(tmp_path).save(run.state, {})
    resumed = Run(recipe)
    Checkpoints(tmp_path).load(resumed.state)
    assert resumed.state.step == cut
    loaded = resumed.state.tensors()
    assert not moved(copied(run.state), loaded, *loaded)
    for _ in range(2):
        assert run.step() == resumed.step()
        found = resumed.state.tensors()
        assert not moved(copied(run.state), found, *found)
        assert run.state.norms == resumed.state.norms


@pytest.mark.parametrize("part", ["judge", "judge_optimizer"])
def test_a_checkpoint_without_the_other_player_is_refused(tmp_path: Path, part: str):
    run = Run(recipe_of())
    run.step()
    folder = Checkpoints(tmp_path).save(run.state, {})
    tensors = hub.read_tensors(folder / f"{part}.safetensors")
    hub.write_tensors(folder / f"{part}.safetensors", dict(list(tensors.items())[:-4]))
    with pytest.raises(hub.ModelError, match="no checkpoint can be read"):
        Checkpoints(tmp_path).load(Run(run.recipe).state)


def test_bfloat16_steps_keep_float32_weights_and_terms():
    run = Run(recipe_of())
    values = make_step(run.recipe, "bfloat16", run.frozen)(run.state, batch_of([0, 1, 2, 3]))
    assert all(value.isfinite() for value in values.values())
    assert all(value.dtype == torch.float32 for name, value in values.items() if name.startswith(("loss", "discrim")))
    assert all(t.dtype == torch.float32 for some in run.state.tensors().values() for t in some.values())
    exact = Run(run.recipe).step(batch_of([0, 1, 2, 3]))
    for name in ("loss/reconstruction", "loss/perceptual", "loss/alignment", "discriminator/loss"):
        assert float(values[name]) == pytest.approx(exact[name], rel=0.05, abs=0.02), name


def test_recomputing_in_the_backward_pass_changes_no_bit():
    runs = [Run(recipe_of()) for _ in range(2)]
    for side in (runs[1].state.model.encoder, runs[1].state.model.decoder):
        side.vit.recompute = True
    for _ in range(2):
        for run in runs:
            run.step()
    assert not moved(copied(runs[0].state), copied(runs[1].state), "model", "heads", "judge", "optimizer")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory as Linux tells it")
def test_memory_does_not_grow_over_500_steps():
    """Of this process, after the first 50 steps, with every term on."""
    run = Run(recipe_of())

    def resident() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    for _ in range(50):
        run.step()
    before = resident()
    for _ in range(450):
        run.step()
    assert resident() - before < 30  # MB
