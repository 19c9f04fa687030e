"""Probing of images and latents: which are taken, how their classes are found, and what is said of them."""

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from softvq import Generator, Tokenizer
from softvq.data.images import to_tensor
from softvq.data.latents import LatentIndex, Latents, shard_path
from softvq.data.opening import open_source
from softvq.data.sources import UNLABELLED, Source
from softvq.errors import ConfigError, DataError, MetricError, Notice, counted
from softvq.evaluation import probe
from softvq.evaluation.classifiers import Labelled, ProbeConfig, nearest_neighbours
from softvq.evaluation.results import Result
from softvq.files import write_tensors
from softvq.generators.dit import DiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.layers import ViTConfig
from softvq.quantizers.gaussian import AEConfig
from softvq.tokenizer import TokenizerConfig
from tests.later import Later

datasets, linear_model, model_selection = (
    Later(f"sklearn.{name}") for name in ("datasets", "linear_model", "model_selection")
)


# ---- Sets of images, whatever they are


class Squares(Source):
    """Images of 16 px, a colour for each class, each a little different; those in `bad` are no images."""

    def __init__(self, labels: list[int], classes: Sequence[str] = "abc", bad: Sequence[int] = (), seed: int = 0):
        self.labels, self.classes, self.bad, self.seed = labels, list(classes), bad, seed
        self.names = [f"{seed}-{number}.png" for number in range(len(labels))]

    def read(self, index: int) -> bytes:
        if index in self.bad:
            return b"no image"
        colour = "abcdefgh".find((self.classes[self.labels[index]] if self.labels[index] >= 0 else "h")[:1])
        pixels = np.random.default_rng([self.seed, index]).integers(0, 60, (16, 16, 3), np.uint8)
        pixels[..., colour % 3] += np.uint8(60 + 20 * colour)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        return file.getvalue()


def square(labels: list[int], *more, **settings) -> Squares:
    return Squares(labels, *more, **{"seed": 1, **settings})  # of validation


VIT = ViTConfig(width=16, depth=1, heads=1, patch_size=8)
TRAIN = [0, 1, 2] * 10


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(16, 4, 4, VIT, VIT, AEConfig()))


@pytest.fixture(scope="module")
def generator(tokenizer: Tokenizer) -> Generator:
    torch.manual_seed(1)
    made = DiTConfig(TransformerConfig.named("tiny", 4, 4, 3)).build()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.1)
    return made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images are encoded at a time."""
    found: list[int] = []
    encode = Tokenizer.encode

    def spy(self: Tokenizer, images: Tensor) -> Tensor:
        found.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Tokenizer, "encode", spy)
    return found


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Labelled, Labelled]]:
    """What is looked at."""
    found: list[tuple[Labelled, Labelled]] = []

    def spy(train: Labelled, val: Labelled, classes: int) -> dict[str, float]:
        found.append((train, val))
        return nearest_neighbours(train, val, classes)

    monkeypatch.setattr(probe, "nearest_neighbours", spy)
    return found


def probed(model, train, val, quick: bool = True, **more) -> Result:
    return probe.probe(model, train, val, quick=quick, workers=0, **more)


@pytest.mark.parametrize(
    ("train", "val", "error", "balanced"),
    [
        ([0, 1], [0], 50.0, 50.0),
        ([0, 1, 2], [0, 1], 35.4, 35.4),
        ([0, 1, 2], [0, 1, 2], 28.9, 28.9),  # one a class
        ([0, 1, 1, 2, 2], [0, 1, 1, 1], 25.0, 28.9),  # 50 / 2 · √(1 + 1/3)
        (TRAIN[:20], TRAIN[:20], 11.2, 11.2),
    ],
)
def test_few_images_are_probed_and_it_is_said_how_little_that_says(
    tokenizer: Tokenizer, train: list[int], val: list[int], error: float, balanced: float
):
    result = probed(tokenizer, Squares(train), square(val), quick=False)
    assert {"probe_top1", "probe_balanced", "knn_top1", "knn_balanced"} == result.scores.keys()
    assert (result.protocol["images"], result.protocol["val_images"]) == (len(train), len(val))
    assert result.protocol["batch"] == min(16, len(train))
    for name in ("probe_top1", "knn_top1"):
        assert result.scores[name] * len(val) == pytest.approx(round(result.scores[name] * len(val)))
    of = f"the accuracy of {counted(len(val), 'image')} has a standard error"
    expected = f"{of} of up to {error} percentage points (balanced: {balanced})"
    assert expected in result.notes
    assert f"k-NN: all {len(train)} training images vote on each, where otherwise 20 do" in result.notes
    assert f"note: {expected}." in str(result)


def latents(folder: Path, tokenizer: Tokenizer, labels: list[int], **more) -> Path:
    """A folder of them, with a mean for each class."""
    values = torch.randn(len(labels), 1, 4, 4, generator=torch.Generator().manual_seed(len(labels)))
    values += 3 * torch.tensor(labels)[:, None, None, None]
    write_tensors(shard_path(folder, 0), {"latents": values.half(), "labels": torch.tensor(labels)})
    told = {"tokenizer": "tiny", "fingerprint": tokenizer.fingerprint, "source": "", "identity": {"count": len(labels)}}
    more = {"classes": ["a", "b", "c"], "shards": [len(labels)], "mirrored": False, **more}
    LatentIndex(**told, tokens=4, channels=4, **more).write(folder)
    return folder


def test_many_images_of_all_classes_need_no_note(tokenizer: Tokenizer, tmp_path: Path):
    train, few, many = (latents(tmp_path / str(n), tokenizer, TRAIN * n) for n in (1, 83, 84))
    assert probed(tokenizer, train, many).notes == ()  # 2,520 images
    (note,) = probed(tokenizer, train, few).notes  # 2,490: more than a point
    assert note.startswith("the accuracy of 2,490 images has a standard error of up to 1.0 percentage points")


def test_what_latents_leave_out_is_in_the_result_too(tokenizer: Tokenizer, tmp_path: Path, sides):
    """What could not be read when they were made, and images without a label."""
    train = latents(tmp_path / "train", tokenizer, TRAIN, bad={"x.png": "x.png is not an image."})
    val = latents(tmp_path / "val", tokenizer, [0, UNLABELLED, 2, 0])
    result = probed(tokenizer, train, val)
    assert result.unreadable == {"train/x.png": "x.png is not an image."}
    assert sides[0][1].labels.tolist() == [0, 2, 0]
    assert "1 of the 4 validation images has no label and is left out" in result.notes
    cache = Latents(val)
    torch.testing.assert_close(sides[0][1].features, torch.stack([cache.read(n, 0) for n in (0, 2, 3)]).flatten(1))


def test_classes_without_training_or_validation_images_are_counted(tokenizer: Tokenizer):
    notes = probed(tokenizer, Squares([0, 1] * 20, "abcd"), square([0, 2, 2, 3], "abcd")).notes
    chance = "of those can be right by chance alone"
    assert f"2 of 4 classes have no training image; the 3 validation images {chance}" in notes
    assert "balanced: the mean over 3 of 4 classes, those of the validation images" in notes
    notes = probed(tokenizer, Squares([0, 1] * 20), square([0, 1])).notes
    assert "1 of 3 classes has no training image" in notes
    many = [str(number) for number in range(1000)]
    result = probed(tokenizer, Squares([0, 1, 999], many), square([0, 5], many), quick=False)
    assert f"997 of 1,000 classes have no training image; the 1 validation image {chance}" in result.notes
    assert result.scores["probe_top5"] <= 1


@pytest.mark.parametrize(
    ("train", "val", "kind", "sentence"),
    [
        (Squares([0]), square([0, 1]), MetricError, "are all of 'a'"),
        (Squares([1, 1, 1]), square([0, 1]), MetricError, "training images of at least two classes, .* are all of 'b'"),
        (Squares([0, -1, -1]), square([0, 1]), MetricError, "are all of 'a'"),
        (Squares([-1] * 4), square([0, 1]), DataError, "none of the 4 images of .* has a label"),
        (Squares([0, 1]), square([-1]), DataError, "none of the 1 image of .* has a label"),
        (Squares([0, 1]), square([0, 3]), DataError, "labels of .* must be in 0 to 2"),
        (Squares([0, 1]), square([0, -2]), DataError, "labels of .* must be in 0 to 2"),
        (Squares([0, 0], "a"), square([0], "a"), MetricError, "at least two classes, and .* has 1"),
        (Squares([0, 1]), square([0, 1], "ax"), DataError, r"has classes that .* has not: 'x'\.$"),
        (Squares([0, 1]), square([0, 1, 2, 3, 4], "vwxyz"), DataError, r"has not: 'v', 'w', 'x' and 2 more\.$"),
        (Squares([0, 1]), square([0, 0], [""]), DataError, "have no classes, and those of .* have"),
        (Squares([0, 1], ["a", "b", "a"]), square([0], "ab"), DataError, "'a' is the name of two"),
        (Squares([0, 1], "ab"), square([0, 2], ["a", "b", "a"]), DataError, "'a' is the name of two"),
    ],
)
def test_what_cannot_be_probed_is_said_before_anything_is_encoded(
    tokenizer: Tokenizer, encoded, train: Squares, val: Squares, kind: type, sentence: str
):
    with pytest.raises(kind, match=sentence):
        probed(tokenizer, train, val)
    assert encoded == []


@pytest.mark.parametrize(
    ("classes", "labels"),
    [("abc", [0, 1, 2, 2]), ("cab", [1, 2, 0, 0]), (["b", "c", "a", "not there"], [2, 0, 1, 1])],
)
def test_classes_are_found_by_their_names(tokenizer: Tokenizer, sides, classes: Sequence[str], labels: list[int]):
    result = probed(tokenizer, Squares(TRAIN), square(labels, classes))
    assert sides[0][1].labels.tolist() == [0, 1, 2, 2]
    assert result.scores == {"knn_top1": 1, "knn_balanced": 1}  # by their colours
    assert result.protocol["classes"] == 3


def test_a_subset_of_the_classes_keeps_their_numbers(tokenizer: Tokenizer, sides):
    result = probed(tokenizer, Squares(TRAIN), square([0, 1, 1], "bc"))
    assert sides[0][1].labels.tolist() == [1, 2, 2]
    assert result.scores["knn_top1"] == 1
    twice = ["a", "crane", "crane"]  # as ImageNet's: of the same classes in the same order there is nothing to find
    probed(tokenizer, Squares(TRAIN, twice), square([0, 1, 2], twice))
    assert sides[1][1].labels.tolist() == [0, 1, 2]


def test_unlabelled_images_are_left_out_and_counted(tokenizer: Tokenizer, sides, encoded):
    result = probed(tokenizer, Squares([0, 1, UNLABELLED, 2] * 10), square([UNLABELLED, 0, 1, 2]))
    train, val = sides[0]
    assert train.labels.tolist() == [0, 1, 2] * 10
    assert val.labels.tolist() == [0, 1, 2]
    assert sum(encoded) == 33
    assert (result.protocol["images"], result.protocol["val_images"]) == (30, 3)
    assert "10 of the 40 training images have no label and are left out" in result.notes
    assert "1 of the 4 validation images has no label and is left out" in result.notes
    other_order = probed(tokenizer, Squares(TRAIN), square([UNLABELLED, 1, 2, 0], "cab"))
    assert other_order.protocol["val_images"] == 3
    assert sides[1][1].labels.tolist() == [0, 1, 2]
    own = tokenizer.encode(torch.stack([to_tensor(square([UNLABELLED, 0, 1, 2]).image(n)[0]) for n in (1, 2, 3)]))
    torch.testing.assert_close(val.features, own.flatten(1).detach(), rtol=1e-4, atol=1e-5)


def test_unreadable_images_are_in_the_result(tokenizer: Tokenizer, sides):
    result = probed(tokenizer, Squares(TRAIN, bad=[4, 7]), square([0, 1, 2, 0], bad=[3]))
    assert list(result.unreadable) == ["train/0-4.png", "train/0-7.png", "val/1-3.png"]
    assert all(name.partition("/")[2] in reason for name, reason in result.unreadable.items())
    assert (result.protocol["images"], result.protocol["val_images"]) == (28, 3)
    assert sides[0][0].labels.tolist() == [label for n, label in enumerate(TRAIN) if n not in (4, 7)]
    assert str(result).splitlines()[-1].startswith("3 unreadable images left out; the first: 0-4.png ")
    assert result.to_dict()["unreadable"] == result.unreadable
    with pytest.raises(MetricError, match=r"none of the 2 images of .* can be read; the first: 1-0\.png "):
        probed(tokenizer, Squares(TRAIN), square([0, 1, UNLABELLED], bad=[0, 1]))
    with pytest.raises(MetricError, match="training images of at least two classes"):
        probed(tokenizer, Squares([0, 0, 1], bad=[2]), square([0, 1]))


def test_the_same_images_on_both_sides_are_said_in_the_result(tokenizer: Tokenizer):
    with pytest.warns(Notice, match="are the same: the figures say nothing"):
        result = probed(tokenizer, Squares(TRAIN), Squares(TRAIN))
    assert "training and validation images are the same: the figures say nothing" in result.notes
    emoji = open_source("emoji")
    names = emoji.names[::100]
    train, val = (replace(emoji, only=frozenset(some)) for some in (names[:20], names[15:22]))
    assert "training images too: 5 of the 7 validation images" in probed("softvq-emoji-64", train, val).notes


# ---- Settings that nothing would read


@pytest.mark.parametrize("given", [{"layer": 1}, {"time": 0.5}, {"time": 0.0}, {"tokenizer": "softvq-emoji-64"}])
def test_settings_of_generators_are_refused_for_tokenizers(tokenizer: Tokenizer, given: dict):
    (name,) = given
    with pytest.raises(ConfigError, match=f"{name} is for a generator, and .* is a tokenizer") as error:
        probe.probe(tokenizer, Squares(TRAIN), square(TRAIN), **given)
    assert error.value.setting == name


def test_settings_of_the_linear_layer_are_refused_without_one(tokenizer: Tokenizer, generator: Generator):
    for given, setting in (
        ({"epochs": 90}, "epochs"),  # even the default's
        ({"batch_size": 16}, "probe_batch"),
        ({"lr": 0.003}, "lr"),
        ({"seed": 0}, "seed"),
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(given))} is for the linear layer") as error:
            probed(tokenizer, Squares(TRAIN), square(TRAIN), config=ProbeConfig(**given))
        assert error.value.setting == setting
    more = {"tokenizer": tokenizer, "config": ProbeConfig(seed=5)}  # of its noise
    assert probed(generator, Squares(TRAIN), square(TRAIN), **more).protocol["seed"] == 5
    assert probed(generator, Squares(TRAIN), square(TRAIN), tokenizer=tokenizer).protocol["time"] == 0.5


@pytest.mark.parametrize("time", [math.nan, -0.1, math.inf])
def test_times_that_are_none_are_refused(time: float):
    with pytest.raises(ConfigError, match=f"not {time}") as error:
        probe.probe("emoji-sit", "nowhere", time=time)
    assert error.value.setting == "time"


@pytest.mark.parametrize("layer", [0, -1, 3])
def test_layers_that_are_none_are_refused(generator: Generator, layer: int):
    with pytest.raises(ConfigError, match=f"has layers 1 to 2, and none {layer}") as error:
        probe.probe(generator, "nowhere", layer=layer)
    assert error.value.setting == "layer"


# ---- Features


def test_no_two_images_have_the_same_noise(tokenizer: Tokenizer, generator: Generator, sides):
    """Else at time 1, where there is noise alone, each image has the one of its number as its nearest: of its class."""
    labels = [0] * 20 + [1] * 20 + [2] * 20
    result = probed(generator, Squares(labels), square(labels), tokenizer=tokenizer, time=1.0)
    assert result.scores["knn_top1"] == pytest.approx(1 / 3, abs=0.25)  # 4 standard errors
    assert "at time 1 the latents are noise, and the figures of chance" in result.notes
    train, val = sides[0]
    assert torch.cdist(train.features, val.features).min() > 0.01 * train.features.std()


def test_the_result_is_named_by_all_that_its_features_depend_on(tokenizer: Tokenizer, generator: Generator):
    other = Tokenizer(tokenizer.config)
    base = {"model": generator, "train": Squares(TRAIN), "val": square(TRAIN), "tokenizer": tokenizer}
    changes = [
        *({}, {"tokenizer": other}, {"precision": "bfloat16"}, {"layer": 2}, {"time": 0.4}, {"pool": "flatten"}),
        *({"config": ProbeConfig(seed=1)}, {"train": Squares(TRAIN, "abd")}, {"train": Squares(TRAIN, seed=2)}),
        *({"val": square([*TRAIN, 1])}, {"val": square([1, *TRAIN[1:]])}, {"val": square([-1, *TRAIN[1:]])}),
        {"train": Squares(TRAIN), "val": Squares([*TRAIN, 0])},
    ]
    changes[7]["val"] = square(TRAIN, "abd")
    names = [probed(**{**base, **change}).name for change in changes]
    assert len(set(names)) == len(changes)
    assert probed(**base).name == names[0]


def test_too_short_a_training_is_said(tokenizer: Tokenizer):
    """Of the batch norm's running statistics, 0.9 a step are kept of zeros and ones."""
    short = "1 step of training: the batch norm's statistics are 90% what they began with"
    for epochs, told in ((1, short), (44, None)):
        notes = probed(tokenizer, Squares(TRAIN[:9]), square(TRAIN), quick=False, config=ProbeConfig(epochs)).notes
        assert [note for note in notes if "batch norm" in note] == ([told] if told else [])


def test_another_pooling_is_refused_before_the_work():
    with pytest.raises(ConfigError, match="pool must be 'flatten' or 'mean', not 'max'"):
        probe.probe("softvq-emoji-64", "nowhere", pool="max")
