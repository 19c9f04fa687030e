"""One step of the two players: who moves when, what is drawn from what, in which precision and in how much memory."""

import gc
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softvq.data.loader import Batch
from softvq.losses.discriminators import PatchGANDiscriminatorConfig
from softvq.losses.total import ScheduleConfig
from softvq.optim import AdamWConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.recipes.all import find
from softvq.tokenizer import Tokenizer
from softvq.training import tokenizer as tokenizers
from softvq.training.options import RunOptions
from softvq.training.player import Player
from softvq.training.recipe import TokenizerRecipe
from softvq.training.state import TrainState
from softvq.training.step import Discriminating, Tokenizing
from softvq.training.tokenizer import TokenizerTask

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
        torch.stack(images), torch.zeros(len(images), dtype=torch.long), [str(p) for p in positions], positions
    )


class Run:
    """A task and its players, placed; `options`: of where it runs. `gradients` are what the optimizers saw last, by
    player and parameter."""

    def __init__(self, recipe: TokenizerRecipe, precision: str = "float32", **options):
        self.task = TokenizerTask(recipe)
        self.task.options = RunOptions(Path("nowhere"), CPU, precision, **options).settled()
        self.state = TrainState(self.task.build())
        self.players = self.state.players
        for player in self.players.values():
            player.place(CPU)
        self.gradients: dict[str, dict[str, Tensor]] = {}
        for name, player in self.state.trained.items():
            self.before(name, lambda name=name, of=player: self.gradients.update({name: gradients_of(of.module)}))

    @property
    def recipe(self) -> TokenizerRecipe:
        return self.task.recipe

    @property
    def model(self) -> Tokenizer:
        return self.players["model"].followed

    @property
    def tokenizing(self) -> Tokenizing:
        return self.players["model"].module

    @property
    def discriminating(self) -> Discriminating:
        return self.players["discriminator"].module

    def before(self, which: str, call: Callable[[], object]) -> None:
        """Call this whenever this player's optimizers are about to step."""
        for optimizer in self.players[which].optimizers:
            optimizer.register_step_pre_hook(lambda *_: call() and None)

    def tensors(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """Make a step; return what it says, as it says it."""
        number = self.state.step
        batch = batch or batch_of([4 * number + i for i in range(4)])
        values = self.task.step(self.players, replace(batch, step=number))
        self.state.step += 1
        return values

    def step(self, batch: Batch | None = None) -> dict[str, float]:
        return {name: float(value) for name, value in self.tensors(batch).items()}


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
        assert not moved(start, copied(run.state), "discriminator", "discriminator-optimizer")
    values = run.step()
    assert values["weight/adversarial"] == pytest.approx(0.2)
    assert values["loss/adversarial"] != 0
    parameters = {f"discriminator.{name}" for name, _ in run.discriminating.named_parameters()}
    assert parameters <= set(moved(start, copied(run.state), "discriminator"))
    assert run.discriminating.lecam.real != 0 != run.discriminating.lecam.fake


def test_before_its_start_a_run_is_that_of_the_recipe_without_it():
    recipe = recipe_of(schedules={"adversarial": START})
    one, other = Run(recipe), Run(without_adversarial(recipe))
    for _ in range(2):
        values = one.step(), other.step()
        assert values[0]["loss/total"] == values[1]["loss/total"]
    assert not moved(copied(one.state), copied(other.state), "model", "model-average")
    one.step()
    other.step()
    assert moved(copied(one.state), copied(other.state), "model")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fields", [{}, {"adaptive": True}, {"discriminator": PATCHGAN}])
def test_each_half_leaves_the_other_player_alone(accumulate: int, fields: dict):
    run = Run(recipe_of(judged=fields, accumulate=accumulate))
    run.step()  # so that the optimizers have a state
    start, seen = copied(run.state), {}
    run.before("model", lambda: seen.update(first=(copied(run.state), gradients_of(run.discriminating))))
    run.before("discriminator", lambda: seen.update(second=(copied(run.state), gradients_of(run.tokenizing))))
    run.step()
    end = copied(run.state)
    parts, gradients = seen["first"]
    assert not gradients
    assert not moved(start, parts, *start)  # parameters and buffers, spectral norms and LeCAM's among them
    parts, gradients = seen["second"]
    assert not gradients
    assert not moved(parts, end, "model", "model-average", "model-optimizer")
    parameters = {f"discriminator.{name}" for name, _ in run.discriminating.named_parameters()}
    assert not parameters & set(moved(start, parts, "discriminator"))
    assert parameters <= set(moved(start, end, "discriminator"))
    changed = moved(start, end, "model", "model-average")
    for part in ("model.model.", "model.projector.", "model-average."):
        assert [name for name in changed if name.startswith(part)]


def test_no_gradient_is_left_and_every_weight_can_be_trained_again():
    run = Run(recipe_of())
    run.step()
    for side in (run.tokenizing, run.discriminating):
        assert not gradients_of(side)
        assert all(p.requires_grad for p in side.parameters())
        assert all(module.training for module in side.modules())
    assert not any(p.requires_grad for p in run.players["model"].average.parameters())


def test_a_module_is_thawed_after_an_error_too():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))

    def fail():
        assert not module[0].training
        assert not any(p.requires_grad for p in module.parameters())
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), Player(module, FAST).frozen():
        fail()
    assert module[0].training
    assert all(p.requires_grad for p in module.parameters())


def test_frozen_networks_never_change_and_are_in_no_checkpoint():
    run = Run(recipe_of(judged={"adaptive": True}))
    networks = {name: player.module for name, player in run.players.items() if player.is_frozen}
    assert networks.keys() == {"teacher", "perceptual", "readouts"}
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
    assert tensors.keys() == {
        *("model", "model-optimizer", "model-average", "discriminator", "discriminator-optimizer")
    }
    assert all(name.startswith(("model.", "projector.")) for name in tensors["model"])
    assert all(name.startswith(("discriminator.heads.", "lecam.")) for name in tensors["discriminator"])
    trained = sum(p.numel() for side in (run.tokenizing, run.discriminating) for p in side.parameters())
    moments = [
        t
        for part in ("model-optimizer", "discriminator-optimizer")
        for k, t in tensors[part].items()
        if k.endswith("exp_avg")
    ]
    assert sum(t.numel() for t in moments) == trained


# Randomness and batches


@pytest.mark.parametrize("fields", [{}, {"discriminator": PATCHGAN, "augment": 1.0}])
def test_a_step_does_not_depend_on_the_order_of_its_batch(fields: dict):
    recipe = recipe_of(KLConfig(), judged=fields)
    one, other = Run(recipe), Run(recipe)
    values = one.step(batch_of([5, 6, 7, 8])), other.step(batch_of([7, 5, 8, 6]))
    assert values[0] == pytest.approx(values[1], rel=2e-4, abs=1e-6)
    for player in ("model", "discriminator"):
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
        run.task.recipe = replace(recipe, seed=seed)  # of the same first weights
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
        near(parts.gradients["model"], whole.gradients["model"], 1e-4 if step == 0 else 1e-2)


def test_accumulating_equal_parts_gives_both_players_the_gradient_of_one():
    """Statistics of a part are those of the batch here."""
    fields = {"discriminator": PATCHGAN, "lecam": 0.0, "adaptive": True}
    one, two = Run(recipe_of(judged=fields, batch_size=2)), Run(recipe_of(judged=fields, accumulate=2))
    values = one.step(batch_of([5, 6])), two.step(batch_of([5, 6, 5, 6]))
    for name, value in values[0].items():
        if name != "discriminator/lecam":  # its averages move with every part
            assert values[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for player in ("model", "discriminator"):
        near(two.gradients[player], one.gradients[player])


def test_the_discriminator_sees_each_part_with_its_own_reconstructions(monkeypatch):
    made, judged = [], []
    terms, loss = tokenizers.tokenizer_terms, tokenizers.discriminator_loss

    def noted_terms(players, recipe, precision, batch, is_adversarial):
        found = terms(players, recipe, precision, batch, is_adversarial)
        made.append((batch.positions, batch.images.clone(), found[1].clone()))
        return found

    def noted_loss(players, recipe, precision, batch, fakes, weights):
        judged.append((batch.positions, batch.images.clone(), fakes.clone()))
        return loss(players, recipe, precision, batch, fakes, weights)

    monkeypatch.setattr(tokenizers, "tokenizer_terms", noted_terms)
    monkeypatch.setattr(tokenizers, "discriminator_loss", noted_loss)
    batch = batch_of([3, 4, 5, 6])
    Run(recipe_of(accumulate=2)).step(batch)
    assert [positions for positions, *_ in judged] == [[3, 4], [5, 6]] == [positions for positions, *_ in made]
    assert torch.equal(torch.cat([images for _, images, _ in judged]), batch.images)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(made, judged, strict=True))


# Precision and memory


def test_bfloat16_steps_keep_float32_weights_and_terms():
    run = Run(recipe_of(), "bfloat16")
    values = run.tensors(batch_of([0, 1, 2, 3]))
    assert all(value.isfinite() for value in values.values())
    assert all(value.dtype == torch.float32 for name, value in values.items() if name.startswith(("loss", "discrim")))
    assert all(t.dtype == torch.float32 for some in run.state.tensors().values() for t in some.values())
    exact = Run(run.recipe).step(batch_of([0, 1, 2, 3]))
    for name in ("loss/reconstruction", "loss/perceptual", "loss/alignment", "discriminator/loss"):
        assert float(values[name]) == pytest.approx(exact[name], rel=0.05, abs=0.02), name


def test_recomputing_in_the_backward_pass_changes_no_bit():
    runs = [Run(recipe_of(), recompute=recompute) for recompute in (False, True)]
    for run, recompute in zip(runs, (False, True), strict=True):
        assert {side.vit.recompute for side in (run.model.encoder, run.model.decoder)} == {recompute}
    for _ in range(2):
        for run in runs:
            run.step()
    assert not moved(copied(runs[0].state), copied(runs[1].state), "model", "discriminator", "model-optimizer")


def grown() -> float:
    """MB by which this process grows in 450 steps with every term on, after 50."""
    torch.set_num_threads(1)
    run = Run(recipe_of(batch_size=2))

    def resident() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    for _ in range(50):
        run.step()
    before = resident()
    for _ in range(450):
        run.step()
    return resident() - before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory as Linux tells it")
def test_memory_does_not_grow_over_500_steps():
    """In a process of its own: what other tests hold neither hides growth nor slows it down."""
    code = "from tests.training.test_step import grown; print(grown())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < 30
