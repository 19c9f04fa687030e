"""What each player minimises: the terms, their weights step by step, and the views that the discriminator is shown."""

import math
from dataclasses import replace

import pytest
import torch

from softvq.losses import adversarial
from softvq.losses.alignment import alignment
from softvq.losses.augment import augmented, viewed
from softvq.losses.total import ScheduleConfig, total, weights_at
from softvq.randomness import Stream
from softvq.recipes.all import find
from softvq.training import step as steps
from softvq.training.step import augmentations, tokenizer_terms
from tests.training.test_step import PATCHGAN, SIZE, Run, batch_of, recipe_of


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
    run, recipe = Run(recipe_of()), recipe_of()
    for weights in ({"reconstruction": 1.0}, {**recipe.weights, "codebook": 1.0}):
        run.task.recipe = replace(recipe, weights=weights)
        with pytest.raises(ValueError, match="the loss terms are adversarial, alignment, kl, perceptual, recon"):
            run.step(batch_of([0]))


@pytest.mark.parametrize("augment", [0.0, 1.0])
def test_every_term_is_what_its_name_says(augment: float):
    run = Run(recipe_of(judged={"discriminator": PATCHGAN, "augment": augment}))
    batch, net = batch_of([0, 1]), run.discriminating.discriminator
    ((draws, _),) = augmentations(run.recipe, batch, (Stream.GENERATOR_FAKE,))
    with torch.no_grad():
        terms, outputs, _ = tokenizer_terms(run.players, run.recipe, "float32", batch, True)
        *_, projected = run.tokenizing(batch.images, torch.zeros(2, 8, 4))
        expected = {
            "reconstruction": (outputs - batch.images).square().mean(),
            "perceptual": run.players["perceptual"](outputs, batch.images).mean(),
            "alignment": alignment(projected, run.players["teacher"](batch.images)),
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
    net, lecam = run.discriminating.discriminator, run.discriminating.lecam
    with torch.no_grad():
        for parameter in net.parameters():  # so that logits have a say
            parameter.mul_(3)
        lecam.real.fill_(0.4)
        lecam.fake.fill_(-0.6)
        streams = (Stream.FAKE, Stream.REAL, Stream.STRONG_FAKE, Stream.STRONG_REAL)
        shown = zip((fakes, batch.images) * 2, augmentations(run.recipe, batch, streams), strict=True)
        fake, real, *strong = (net([augmented(images, draws)]) for images, (draws, _) in shown)
    weights = {"adversarial": 0.2}
    found, values = steps.discriminator_loss(run.players, run.recipe, "float32", batch, fakes, weights)
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
    batch, net = batch_of(list(range(8))), run.discriminating.discriminator.eval()
    ((draws, views),) = augmentations(run.recipe, batch, (Stream.GENERATOR_FAKE,))
    assert {True, False} == set(views.cropped.tolist())
    with torch.no_grad():
        terms, outputs, _ = tokenizer_terms(run.players, run.recipe, "float32", batch, True)
        shown = viewed(augmented(outputs, draws), views, 32)
        logits = net(run.players["readouts"](shown))
    assert logits.shape == (8, 3 * 4)
    torch.testing.assert_close(terms["adversarial"], -logits.mean())


def test_each_augmentation_has_numbers_of_its_own_and_the_strong_ones_all_of_diffaug():
    recipe, batch = recipe_of(judged={"augment": 0.0}), batch_of(list(range(32)))
    streams = (Stream.GENERATOR_FAKE, Stream.FAKE, Stream.REAL, Stream.STRONG_FAKE, Stream.STRONG_REAL)
    found = augmentations(recipe, batch, streams)
    for draws, _ in found[:3]:
        assert draws.kept.all()
        assert not draws.shift.any()
    for draws, _ in found[3:]:
        assert (~draws.kept).any(1).sum(1).max() == (~draws.kept).any(2).sum(1).max() == SIZE // 2
        assert (~draws.kept).flatten(1).any(1).all()
    recipe = replace(recipe, adversarial=replace(recipe.adversarial, augment=1.0))
    colours = [draws.brightness.tolist() for draws, _ in augmentations(recipe, batch, streams)]
    assert len({value for some in colours for value in some}) == 5 * 32
    weak, _ = augmentations(recipe, batch, streams)[0]
    assert (~weak.kept).any(1).sum(1).max() == int(0.2 * SIZE + 0.5)
    corners = [tuple(views.corner.flatten().tolist()) for _, views in found]
    assert len(set(corners)) == 5


def test_the_adaptive_weight_balances_gradients_at_the_last_layer():
    fields = {"discriminator": PATCHGAN}
    plain, adaptive = Run(recipe_of(judged=fields)), Run(recipe_of(judged={**fields, "adaptive": True}))
    batch, weights = batch_of([0, 1, 2, 3]), plain.recipe.weights
    terms, *_ = tokenizer_terms(plain.players, plain.recipe, "float32", batch, True)
    last = plain.model.decoder.to_pixel.weight
    pixels = weights["reconstruction"] * terms["reconstruction"] + weights["perceptual"] * terms["perceptual"]
    norms = [torch.autograd.grad(t, last, retain_graph=True)[0].norm().item() for t in (pixels, terms["adversarial"])]
    expected = norms[0] / (norms[1] + 1e-4)
    values = plain.step(batch), adaptive.step(batch)
    assert values[1]["loss/adversarial"] == pytest.approx(expected * values[0]["loss/adversarial"], rel=1e-4)
    assert values[1]["loss/reconstruction"] == values[0]["loss/reconstruction"]
