"""The linear probe and the nearest neighbours: their protocols written out, what they count, and what they refuse."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softvq.errors import ConfigError, MetricError
from softvq.evaluation import classifiers
from softvq.evaluation.classifiers import Labelled, ProbeConfig, accuracies, linear_probe, nearest_neighbours
from softvq.optim import LAMB
from tests.later import Later

datasets, linear_model, model_selection = (
    Later(f"sklearn.{name}") for name in ("datasets", "linear_model", "model_selection")
)


@cache
def digits() -> tuple[Labelled, Labelled]:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels, two thirds to train on, standardised."""
    images, labels = datasets.load_digits(return_X_y=True)
    train, val, train_labels, val_labels = model_selection.train_test_split(
        images, labels, test_size=597, random_state=0, stratify=labels
    )
    mean, std = train.mean(0), train.std(0)
    std[std == 0] = 1  # pixels that are always black
    return tuple(
        Labelled(torch.from_numpy((x - mean) / std).float(), torch.from_numpy(y))
        for x, y in ((train, train_labels), (val, val_labels))
    )


def clouds(count: int, seed: int, classes: int = 3, width: int = 6, spread: float = 1.0) -> Labelled:
    """Gaussian clouds, one a class, that overlap; neither centred nor of one scale."""
    centres = 4 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    scale = torch.logspace(-1, 1, width)
    noise = 4 * spread * torch.randn(count, width, generator=generator)
    return Labelled((centres[labels] + noise) * scale + 5, labels)


def joined(one: Labelled, times: int) -> Labelled:
    return Labelled(one.features.repeat(times, 1), one.labels.repeat(times))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Logits or votes on their way to being counted."""
    found: list[Tensor] = []

    def spy(logits: Tensor, labels: Tensor) -> dict[str, float]:
        found.append(logits)
        return accuracies(logits, labels)

    monkeypatch.setattr(classifiers, "accuracies", spy)
    return found


# ---- What it reaches


def test_the_probe_reaches_what_logistic_regression_reaches(seen: list[Tensor]):
    """Of the same features: on unseen digits within 2 points (a standard error is 0.8), on its own within 1."""
    train, val = digits()
    model = linear_model.LogisticRegression(max_iter=1000).fit(train.features.numpy(), train.labels.numpy())
    theirs = [model.score(side.features.numpy(), side.labels.numpy()) for side in (train, val)]
    assert theirs[1] > 0.96
    both = Labelled(torch.cat([train.features, val.features]), torch.cat([train.labels, val.labels]))
    linear_probe(train, both, 10)
    right = (seen[0].argmax(1) == both.labels).double()
    assert right[: len(train)].mean().item() == pytest.approx(theirs[0], abs=0.01)
    assert right[len(train) :].mean().item() == pytest.approx(theirs[1], abs=0.02)


def test_shuffled_labels_give_chance():
    train, val = digits()
    shuffled = train.labels[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    found = linear_probe(Labelled(train.features, shuffled), val, 10, ProbeConfig(10))
    assert found["probe_top1"] == pytest.approx(0.1, abs=0.05)  # 4 standard errors
    assert found["probe_balanced"] == pytest.approx(0.1, abs=0.05)
    assert found["probe_top5"] == pytest.approx(0.5, abs=0.09)
    assert linear_probe(train, val, 10, ProbeConfig(10))["probe_top1"] > 0.7  # as quickly, of the right ones


# ---- What it does


def by_hand(train: Labelled, val: Labelled, classes: int, config: ProbeConfig, batch: int) -> np.ndarray:
    """Logits of `val` in numpy: a batch norm without parameters and a linear layer, cross-entropy, LAMB, a cosine."""
    x, y = train.features.double().numpy(), train.labels.numpy()
    generator = torch.Generator().manual_seed(config.seed)
    weight = torch.empty(classes, x.shape[1]).normal_(std=0.01, generator=generator).double().numpy()
    layers = {"weight": weight, "bias": np.zeros(classes)}
    moments = {name: (np.zeros_like(values), np.zeros_like(values)) for name, values in layers.items()}
    mean, variance, t = np.zeros(x.shape[1]), np.ones(x.shape[1]), 0
    steps = config.epochs * (len(x) // batch)
    for _ in range(config.epochs):
        order = torch.randperm(len(x), generator=generator).numpy()
        for first in range(0, len(x) - batch + 1, batch):
            chosen = order[first : first + batch]
            own, spread = x[chosen].mean(0), x[chosen].var(0)
            mean, variance = 0.9 * mean + 0.1 * own, 0.9 * variance + 0.1 * spread * batch / (batch - 1)
            normal = (x[chosen] - own) / np.sqrt(spread + 1e-6)
            logits = normal @ layers["weight"].T + layers["bias"]
            q = np.exp(logits - logits.max(1, keepdims=True))
            error = (q / q.sum(1, keepdims=True) - np.eye(classes)[y[chosen]]) / batch
            rate = config.lr * 0.5 * (1 + math.cos(math.pi * t / steps))
            t += 1
            for name, gradient in (("weight", error.T @ normal), ("bias", error.sum(0))):
                m, v = moments[name]
                m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
                moments[name] = m, v
                u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
                length = np.linalg.norm(layers[name])
                layers[name] = layers[name] - rate * (length / np.linalg.norm(u) if length else 1.0) * u
    normal = (val.features.double().numpy() - mean) / np.sqrt(variance + 1e-6)
    return normal @ layers["weight"].T + layers["bias"]


def test_the_probe_is_the_protocol_written_out(seen: list[Tensor]):
    train, val = clouds(50, 0), clouds(7, 1)
    config = ProbeConfig(epochs=4, batch_size=16, lr=0.1, seed=3)
    linear_probe(train, val, 3, config)
    expected = by_hand(train, val, 3, config, batch=16)
    np.testing.assert_allclose(seen[0].numpy(), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected).max() > 0.1  # it has learned, from weights of 0.01


@pytest.mark.parametrize(
    ("images", "batch_size", "steps", "batch"),
    [(50, 16, 3, 16), (48, 16, 3, 16), (20, None, 1, 16), (9, None, 1, 9), (9, 100, 1, 9)],
)
def test_an_epoch_takes_every_image_at_most_once_and_leaves_a_last_small_batch_out(
    monkeypatch: pytest.MonkeyPatch, images: int, batch_size: int | None, steps: int, batch: int
):
    rates: list[float] = []
    batches: list[list[int]] = []
    normed = nn.BatchNorm1d.forward

    class Spy(LAMB):
        def step(self, closure: None = None) -> None:
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    def forward(self: nn.BatchNorm1d, x: Tensor) -> Tensor:
        if self.training:
            batches.append(x[:, 0].int().tolist())
        return normed(self, x)

    monkeypatch.setattr(classifiers, "LAMB", Spy)
    monkeypatch.setattr(nn.BatchNorm1d, "forward", forward)
    train = clouds(images, 0)
    train.features[:, 0] = torch.arange(images)  # its own number
    config = ProbeConfig(5, batch_size, lr=0.02)
    linear_probe(train, clouds(3, 1), 3, config)
    assert len(rates) == 5 * steps
    expected = [0.02 * (1 + math.cos(math.pi * i / (5 * steps))) / 2 for i in range(5 * steps)]
    assert rates == pytest.approx(expected)
    assert rates[0] == 0.02
    epochs = [batches[first : first + steps] for first in range(0, len(batches), steps)]
    assert [len(one) for one in batches] == [batch] * (5 * steps)
    for epoch in epochs:
        numbers = [number for one in epoch for number in one]
        assert len(set(numbers)) == steps * batch
    assert epochs[0] != epochs[1]  # another order each


def test_an_epoch_of_a_small_set_has_as_many_steps_as_imagenets():
    config = ProbeConfig().filled()
    assert (config.epochs, config.lr) == (90, 0.003)  # the paper's
    assert config.batch_of(1_281_167) == 16_384
    assert 1_281_167 // 16_384 == 78
    for images in (1300, 5000, 50_000, 126_689, 1_000_000):
        assert images // config.batch_of(images) == pytest.approx(78, abs=4)
    assert config.batch_of(100) == 16  # less would be no batch norm
    assert ProbeConfig(batch_size=100).batch_of(10**7) == 100


@pytest.mark.parametrize(
    ("bad", "sentence", "setting"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0", "epochs"),
        ({"batch_size": 1}, "batch_size must be at least 2, not 1", "probe_batch"),
        ({"seed": -1}, "seed must be at least 0, not -1", "seed"),
        ({"seed": 2**63}, r"seed must be below 2\^63", "seed"),
        *(({"lr": lr}, f"lr must be positive and finite, not {lr}", "lr") for lr in (0.0, -0.1, math.nan, math.inf)),
    ],
)
def test_impossible_settings(bad: dict, sentence: str, setting: str):
    with pytest.raises(ConfigError, match=sentence) as error:
        ProbeConfig(**bad)
    assert error.value.setting == setting


def test_the_largest_seed_is_one():
    assert linear_probe(clouds(20, 0), clouds(8, 1), 3, ProbeConfig(1, seed=2**63 - 1))


def test_a_probe_that_diverges_is_no_figure():
    with pytest.raises(MetricError, match=r"NaN or Inf at lr 1e\+38; take a smaller one") as error:
        linear_probe(clouds(40, 0), clouds(8, 1), 3, ProbeConfig(9, lr=1e38))
    assert error.value.setting == "lr"


def test_the_seed_alone_decides(seen: list[Tensor]):
    train, val = clouds(60, 0), clouds(9, 1)
    for seed, surroundings in ((0, 1), (0, 2), (1, 2)):
        torch.manual_seed(surroundings)
        linear_probe(train, val, 3, ProbeConfig(2, seed=seed))
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2], rtol=0.01)


def test_half_precision_features_are_probed_in_single(seen: list[Tensor]):
    train, val = clouds(60, 0), clouds(9, 1)
    halves = [Labelled(side.features.half(), side.labels) for side in (train, val)]
    linear_probe(*halves, 3, ProbeConfig(2))
    linear_probe(*[Labelled(side.features.float(), side.labels) for side in halves], 3, ProbeConfig(2))
    assert seen[0].dtype == torch.float32
    assert torch.equal(*seen)


def test_an_image_is_judged_alone(seen: list[Tensor]):
    """By the running statistics: neither the rest of the validation set nor its size matters."""
    train, val = clouds(60, 0), clouds(6, 1)
    config = ProbeConfig(3, lr=0.1)
    found = linear_probe(train, joined(val, 700), 3, config)  # 4,200: more than one part
    for i in range(6):
        alone = linear_probe(train, Labelled(val.features[i : i + 1], val.labels[i : i + 1]), 3, config)
        torch.testing.assert_close(seen[-1][0], seen[0][i], rtol=1e-4, atol=1e-5)
        assert alone["probe_top1"] == float(seen[0][i].argmax() == val.labels[i])
    whole = linear_probe(train, val, 3, config)
    assert found == pytest.approx(whole)
    assert len(seen[0]) == 4200


def test_progress_is_told_by_epochs():
    told: list[int] = []
    linear_probe(clouds(40, 0), clouds(5, 1), 3, ProbeConfig(4), lambda epochs: (told.append(e) or e for e in epochs))
    assert told == [0, 1, 2, 3]


# ---- Nearest neighbours


def votes_by_hand(train: Labelled, val: Labelled, classes: int, neighbours: int, temperature: float) -> np.ndarray:
    known = train.features.double().numpy()
    mean = known.mean(0)
    votes = np.zeros((len(val), classes))
    for row, image in enumerate(val.features.double().numpy()):
        cosines = []
        for other in known:
            a, b = image - mean, other - mean
            cosines.append(float(a @ b / np.sqrt((a @ a) * (b @ b))))
        for nearest in sorted(range(len(known)), key=lambda i: -cosines[i])[:neighbours]:
            votes[row, int(train.labels[nearest])] += math.exp(cosines[nearest] / temperature)
    return votes


@pytest.mark.parametrize(
    ("count", "settings"), [(60, {}), (60, {"neighbours": 5, "temperature": 0.5}), (12, {"neighbours": 20})]
)
def test_neighbours_vote_as_written_out(seen: list[Tensor], count: int, settings: dict):
    train, val = clouds(count, 0), clouds(40, 1)
    found = nearest_neighbours(train, val, 3, **settings)
    votes = votes_by_hand(train, val, 3, settings.get("neighbours", 20), settings.get("temperature", 0.07))
    shares = [one / one.sum(1, keepdims=True) for one in (seen[0].numpy(), votes)]
    np.testing.assert_allclose(*shares, rtol=1e-3, atol=1e-6)
    right = votes.argmax(1) == val.labels.numpy()
    assert 0.4 < right.mean() < 1
    assert found == {
        "knn_top1": pytest.approx(right.mean()),
        "knn_balanced": pytest.approx(np.mean([right[val.labels.numpy() == c].mean() for c in range(3)])),
    }
    many = nearest_neighbours(train, joined(val, 14), 3, **settings)  # 560: more than one part
    assert many == pytest.approx(found)


def test_a_small_temperature_leaves_the_nearest_image_alone():
    """Not numbers beyond float32, of which the first class would win."""
    train, val = clouds(60, 0), clouds(40, 1)
    one = nearest_neighbours(train, val, 3, neighbours=1)
    assert nearest_neighbours(train, val, 3, temperature=1e-6) == one
    for bad in ({"neighbours": 0}, {"temperature": 0.0}, {"temperature": math.nan}):
        with pytest.raises(ConfigError, match="neighbours and temperature must be positive"):
            nearest_neighbours(train, val, 3, **bad)


# ---- What is counted


def test_accuracies_are_shares_of_images_and_means_over_the_classes_that_are_there():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 8, generator=generator)
    labels = torch.randint(7, (200,), generator=generator)  # none of class 7
    labels[:80] = 2
    logits[torch.arange(0, 200, 2), labels[::2]] += 2
    found = accuracies(logits, labels)
    first = five = 0
    by_class: dict[int, list[bool]] = {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranked = sorted(range(8), key=lambda c: -row[c])
        first += ranked[0] == label
        five += label in ranked[:5]
        by_class.setdefault(label, []).append(ranked[0] == label)
    balanced = sum(sum(own) / len(own) for own in by_class.values()) / 7
    assert found == pytest.approx({"top1": first / 200, "top5": five / 200, "balanced": balanced})
    assert len({round(value, 3) for value in found.values()}) == 3


def test_five_of_five_say_nothing():
    labels = torch.arange(4)
    assert accuracies(torch.eye(5)[:4], labels) == {"top1": 1.0, "balanced": 1.0}
    assert accuracies(torch.eye(6)[:4], labels) == {"top1": 1.0, "balanced": 1.0, "top5": 1.0}


# ---- What cannot be probed


def with_value(one: Labelled, value: float) -> Labelled:
    features = one.features.clone()
    features[3, 1] = value
    return Labelled(features, one.labels)


def with_label(one: Labelled, label: int) -> Labelled:
    labels = one.labels.clone()
    labels[2] = label
    return Labelled(one.features, labels)


@pytest.mark.parametrize("measure", [linear_probe, nearest_neighbours])
@pytest.mark.parametrize(
    ("change", "classes", "sentence"),
    [
        (lambda t, v: (t, Labelled(v.features[:, :4], v.labels)), 3, "6 and 4 numbers cannot be probed together"),
        (lambda t, v: (with_label(t, 3), v), 3, "labels must be in 0 to 2"),
        (lambda t, v: (t, with_label(v, 3)), 3, "labels must be in 0 to 2"),
        (lambda t, v: (t, with_label(v, -1)), 3, "labels must be in 0 to 2"),
        (lambda t, v: (with_value(t, math.nan), v), 3, "the features hold NaN or Inf"),
        (lambda t, v: (t, with_value(v, math.inf)), 3, "the features hold NaN or Inf"),
        (lambda t, v: (Labelled(t.features[:1], t.labels[:1]), v), 3, "3, 1 training and 8 images"),
        (lambda t, v: (t, Labelled(v.features[:0], v.labels[:0])), 3, "3, 20 training and 0 images"),
        (lambda t, v: (t, v), 1, "needs classes: there are 1, 20 training"),
        (lambda t, v: (Labelled(t.features, t.labels * 0), v), 3, "training images of at least two classes"),
    ],
)
def test_what_cannot_be_probed_is_one_sentence(measure: Callable, change: Callable, classes: int, sentence: str):
    with pytest.raises(MetricError, match=sentence):
        measure(*change(clouds(20, 0), clouds(8, 1)), classes)
