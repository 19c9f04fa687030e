"""What is said of a latent space: channels, what the quantizer changes, codewords and how often each is used, UMAP."""

import io
import math
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from softvq.data.loader import NoneReadable
from softvq.data.sources import UNLABELLED, Source
from softvq.errors import ConfigError, MetricError
from softvq.evaluation import latent_space as room
from softvq.evaluation.latent_space import (
    CodebookCounts,
    change,
    channel_statistics,
    codebook_scores,
    latent_space,
    nearest_cosines,
    umap,
)
from softvq.layers import ViTConfig
from softvq.quantizers.compose import ProductConfig, ResidualConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from softvq.tokenizer import Tokenizer, TokenizerConfig

VIT = ViTConfig(width=16, depth=1, heads=1, patch_size=8, layer_scale=1.0)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- Channels


def test_channel_statistics_are_numpys_over_images_and_tokens():
    latents = noise(30, 4, 3) * torch.tensor([0.1, 1.0, 20.0]) + torch.tensor([1000.0, 0.0, -3.0])
    latents[:, :, 1] = latents[:, :, 1] ** 3  # heavy tails
    flat = latents.numpy().astype(np.float64).reshape(120, 3)
    mean, std = flat.mean(0), flat.std(0, ddof=1)
    found = channel_statistics(latents)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(found["std"], std, rtol=1e-9)  # float32 would lose 0.1 beside 1,000
    np.testing.assert_allclose(found["kurtosis"], (((flat - mean) / std) ** 4).mean(0), rtol=1e-9)


def test_a_gaussian_has_kurtosis_three_a_coin_one_and_a_constant_none():
    latents = noise(5000, 4, 3)
    latents[:, :, 1] = latents[:, :, 1].sign()
    latents[:, :, 2] = 7
    found = channel_statistics(latents)
    assert found["kurtosis"][0].item() == pytest.approx(3, abs=4.5 * math.sqrt(24 / 20_000))
    assert found["kurtosis"][1].item() == pytest.approx(1, abs=1e-2)
    assert (found["mean"][2], found["std"][2], found["kurtosis"][2]) == (7, 0, 0)


# ---- What the quantizer changes


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0])
def test_a_multiple_changes_nothing(factor: float):
    encoded = noise(10, 4, 3) + 2
    assert change(encoded, factor * encoded) == pytest.approx({"cosine": 1, "unexplained": 0}, abs=1e-6)


def test_a_shift_turns_the_tokens_but_explains_their_variance():
    encoded = noise(10, 4, 3)
    found = change(encoded, 0.5 * encoded + torch.tensor([3.0, -1.0, 0.0]))
    assert found["unexplained"] == pytest.approx(0, abs=1e-6)
    assert found["cosine"] < 0.5


def test_change_is_the_mean_cosine_and_what_least_squares_leaves():
    encoded = noise(10, 4, 3) + 1
    latents = 0.4 * encoded + 0.5 * noise(10, 4, 3, seed=1)
    a, b = (x.numpy().astype(np.float64).reshape(40, 3) for x in (encoded, latents))
    cosines = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    a, b = a - a.mean(0), b - b.mean(0)
    _, left, *_ = np.linalg.lstsq(b.reshape(-1, 1), a.reshape(-1), rcond=None)
    expected = {"cosine": np.mean(cosines), "unexplained": left[0] / (a**2).sum()}
    assert change(encoded, latents) == pytest.approx(expected, rel=1e-5)
    assert 0.2 < expected["unexplained"] < 0.8
    unrelated = change(noise(5000, 4, 3), noise(5000, 4, 3, seed=1))
    assert unrelated["cosine"] == pytest.approx(0, abs=0.02)
    assert unrelated["unexplained"] == pytest.approx(1, abs=0.01)


# ---- Codewords


def nearest_by_hand(codebook: Tensor) -> np.ndarray:
    words = codebook.detach().numpy().astype(np.float64)
    words = words / np.linalg.norm(words, axis=1, keepdims=True)
    found = []
    for number, word in enumerate(words):
        cosines = words @ word
        found.append(np.delete(cosines, number).max())
    return np.array(found)


@pytest.mark.parametrize("size", [3, 1024, 1025, 2100])
def test_each_codewords_nearest_other_one(size: int):
    codebook = torch.nn.Parameter(noise(size, 6) * torch.logspace(-2, 2, size)[:, None])
    found = nearest_cosines(codebook)
    assert found.shape == (size,)
    np.testing.assert_allclose(found, nearest_by_hand(codebook), atol=1e-5)


def test_a_codeword_twice_is_its_own_nearest_and_a_lone_pair_may_be_opposite():
    codebook = noise(1100, 6)
    codebook[1090] = 3 * codebook[5]
    found = nearest_cosines(codebook)
    assert found[[5, 1090]].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert nearest_cosines(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).tolist() == [-1, -1]
    with pytest.raises(MetricError, match="one word has no distances"):
        nearest_cosines(noise(1, 6))


def test_scores_of_uniform_and_of_single_use():
    nothing = torch.tensor([0.0, 1.0], dtype=torch.float64)
    uniform = codebook_scores(torch.full((2, 8), 5), nothing)
    assert uniform == pytest.approx({"codebook_usage": 1, "codebook_perplexity": 8, "posterior_entropy": 0})
    single = torch.zeros(1, 8, dtype=torch.int64)
    single[0, 3] = 40
    expected = {"codebook_usage": 1 / 8, "codebook_perplexity": 1, "posterior_entropy": 0}
    assert codebook_scores(single, nothing) == pytest.approx(expected)


def test_scores_are_means_over_codebooks_of_any_use():
    """Half of a codebook evenly: K / 2. Three to one: exp of 0.5623 nats."""
    counts = torch.tensor([[1, 1, 0, 0], [300, 0, 100, 0]])  # once is used
    found = codebook_scores(counts, torch.tensor([90.0, 60.0], dtype=torch.float64))
    uneven = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert found["codebook_usage"] == 0.5
    assert found["codebook_perplexity"] == pytest.approx((2 + uneven) / 2)
    assert found["posterior_entropy"] == 1.5


# ---- Counting


@torch.no_grad()
def tokenizer_of(quantizer) -> Tokenizer:
    """With every parameter drawn anew, and ẑ then standardised, so that images and tokens are of many codewords."""
    tokenizer = Tokenizer(TokenizerConfig(16, 4, 4, VIT, VIT, quantizer)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    tokenizer.encoder.latent_tokens.mul_(0.3)
    tokenizer.encoder.latent_pos_embed.mul_(0.3)
    encoded = tokenizer(images(20, 9)).encoded.flatten(0, 1)
    mean, std, last = encoded.mean(0), encoded.std(0), tokenizer.to_quantizer
    last.weight.div_(std[:, None])
    last.bias.sub_(mean).div_(std)
    return tokenizer


def images(count: int, seed: int) -> Tensor:
    return noise(count, 3, 16, 16, seed=seed).clamp(-1, 1)


# Quantizer → of indices, those of each codebook in turn
QUANTIZERS = {
    "VQ": (VQConfig(6), lambda i: [i]),
    "SoftVQ": (SoftVQConfig(6), lambda i: [i]),
    "GMMVQ": (GMMVQConfig(6), lambda i: [i]),
    "Product over tokens": (ProductConfig(SoftVQConfig(6), 2, "token"), lambda i: [i[:, :2], i[:, 2:]]),
    "Product over channels": (ProductConfig(SoftVQConfig(6), 2, "channel"), lambda i: [i[:, :, 0], i[:, :, 1]]),
    "Residual": (ResidualConfig(VQConfig(6), 3), lambda i: [i[:, :, layer] for layer in range(3)]),
    "Residuals of Products": (
        ResidualConfig(ProductConfig(VQConfig(6), 2, "token"), 2),
        lambda i: [i[:, :2, 0], i[:, 2:, 0], i[:, :2, 1], i[:, 2:, 1]],
    ),
}


@pytest.mark.parametrize("name", QUANTIZERS)
@torch.no_grad()
def test_codewords_are_counted_by_codebook_over_all_batches(name: str):
    config, by_codebook = QUANTIZERS[name]
    tokenizer = tokenizer_of(config)
    expected: list[Tensor] = []
    for seed, count in enumerate((9, 4)):
        parts = by_codebook(tokenizer(images(count, seed)).quantized.indices)
        expected.append(torch.stack([torch.bincount(part.flatten(), minlength=6) for part in parts]))
    assert (sum(expected) > 0).sum(1).min() > 1  # a codebook is more than one word
    counts = CodebookCounts(tokenizer.quantizer)
    for seed, count in enumerate((9, 4)):
        tokenizer(images(count, seed))
    told = counts.tensors()
    assert torch.equal(told["counts"], sum(expected)[None])
    assert len(told["counts"][0].unique(dim=0)) == len(told["counts"][0])  # no two codebooks could be confused
    assert told["entropy"].shape == (1, 2)
    assert told["entropy"][0, 1] == told["counts"].sum()


@torch.no_grad()
def test_the_entropy_is_a_mean_over_tokens_whatever_the_batches():
    tokenizer = tokenizer_of(SoftVQConfig(6, tau=0.5))
    counts = CodebookCounts(tokenizer.quantizer)
    entropies = []
    for seed, count in enumerate((9, 2)):
        encoded = tokenizer(images(count, seed)).encoded.double()
        distances = (encoded[:, :, None] - tokenizer.quantizer.codebook.double()).norm(dim=-1)
        q = (-distances / 0.5).softmax(-1)
        entropies.append(-(q * q.log()).sum(-1))
    total, tokens = counts.tensors()["entropy"][0].tolist()
    assert tokens == 44
    assert total / tokens == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-5)
    assert entropies[0].mean().item() != pytest.approx(entropies[1].mean().item(), rel=1e-3)


@pytest.mark.parametrize("config", [KLConfig(), AEConfig(), ProductConfig(AEConfig(), 2, "token")])
@torch.no_grad()
def test_without_codewords_nothing_is_counted(config):
    tokenizer = tokenizer_of(config)
    counts = CodebookCounts(tokenizer.quantizer)
    tokenizer(images(2, 0))
    assert counts.tensors() == {}


@torch.no_grad()
def test_counting_leaves_nothing_behind():
    tokenizer = tokenizer_of(QUANTIZERS["Product over tokens"][0])
    with pytest.raises(KeyboardInterrupt), CodebookCounts(tokenizer.quantizer) as counts:  # noqa: PT012
        assert any(module._forward_hooks for module in tokenizer.modules())
        tokenizer(images(2, 0))
        raise KeyboardInterrupt
    told = counts.tensors()
    assert not any(module._forward_hooks for module in tokenizer.modules())
    tokenizer(images(5, 1))
    assert torch.equal(counts.tensors()["counts"], told["counts"])


# ---- UMAP


def test_umap_is_a_function_of_the_vectors_and_the_seed_and_keeps_neighbours():
    vectors = noise(24, 50)
    vectors[12:] += 10
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first = umap(vectors, seed=1)
    assert not [one for one in told if "n_jobs" in str(one.message)]
    assert first.shape == (24, 2)
    assert torch.equal(first, umap(vectors, seed=1))
    assert not torch.allclose(first, umap(vectors, seed=2), atol=0.1)
    between = torch.cdist(first, first).fill_diagonal_(math.inf).argmin(1)
    assert torch.equal(between >= 12, torch.arange(24) >= 12)


def test_umap_of_few_images_is_refused():
    with pytest.raises(MetricError, match="at least 16 images, not 15"):
        umap(noise(15, 50))


def test_without_umap_learn_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MetricError, match=r"pip install 'softvq\[plots\]'"):
        umap(noise(24, 50))


# ---- Sets of images, whatever they are


class Greys(Source):
    """Images of 16 px; those in `bad` are none."""

    def __init__(self, labels: list[int], classes: list[str], bad: range = range(0)):
        self.labels, self.classes, self.bad = labels, classes, bad
        self.names = [f"{number}.png" for number in range(len(labels))]

    def read(self, index: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (8 * index % 256, index, 99)).save(file, "png")
        return b"no image" if index in self.bad else file.getvalue()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures; UMAP is the first two numbers."""
    pytest.importorskip("matplotlib")
    stand_in = SimpleNamespace(UMAP=lambda random_state: SimpleNamespace(fit_transform=lambda vectors: vectors[:, :2]))
    monkeypatch.setitem(sys.modules, "umap", stand_in)
    figures: list[Any] = []
    render = room.rendered

    def spied(figure) -> Image.Image:
        figures.append(figure)
        return render(figure)

    monkeypatch.setattr(room, "rendered", spied)
    return figures


def points(figure) -> dict[str, int]:
    """The number of points of each name in the legend."""
    axis = figure.axes[-1]
    shown = [text.get_text() for text in axis.get_legend().get_texts()]
    found = {points.get_label(): len(points.get_offsets()) for points in axis.collections}
    assert shown == list(found)
    return found


def test_images_without_a_label_are_points_of_their_own(drawn):
    source = Greys([0, 1, UNLABELLED, 2] * 6, ["a", "b", "last"])
    result = latent_space(tokenizer_of(AEConfig()), source, classes=2, workers=0)
    assert points(drawn[-1]) == {"no label": 6, "a": 6, "b": 6}  # none is taken for the last class
    assert result.protocol["images"] == 18
    assert result.notes == ("6 of the 18 images have no label",)
    latent_space(tokenizer_of(AEConfig()), Greys([UNLABELLED] * 16, [""]), workers=0)
    assert drawn[-1].axes[-1].get_legend() is None


def test_unreadable_images_are_in_the_result_of_a_latent_space(drawn):
    result = latent_space(tokenizer_of(AEConfig()), Greys([0, 1] * 10, ["a", "b"], range(3, 6)), workers=0)
    assert list(result.unreadable) == ["3.png", "4.png", "5.png"]
    assert result.protocol["images"] == 17
    assert points(drawn[-1]) == {"a": 9, "b": 8}
    assert str(result).splitlines()[-1].startswith("3 unreadable images left out; the first: 3.png ")
    with pytest.raises(MetricError, match="at least 16 images, not 15"):
        latent_space(tokenizer_of(AEConfig()), Greys([0, 1] * 10, ["a", "b"], range(5)), workers=0)
    with pytest.raises(NoneReadable, match="none of the 20 images can be read"):
        latent_space(tokenizer_of(AEConfig()), Greys([0, 1] * 10, ["a", "b"], range(20)), workers=0)


def test_a_legend_names_each_class_once(drawn):
    long = "a name of more than two dozen letters, "
    names = [long + "one", long + "two", "_hidden", "$x^$"] + [f"class {number}" for number in range(4, 22)]
    latent_space(tokenizer_of(AEConfig()), Greys(list(range(22)), names), classes=22, workers=0)
    assert list(points(drawn[-1]))[:5] == [
        *("a name of more than two  (0)", "a name of more than two  (1)", "\u200b_hidden", r"\$x^\$", "class 4")
    ]
    looks = [(str(c.get_facecolor()), str(c.get_paths())) for c in drawn[-1].axes[-1].collections]
    assert len(set(looks)) == 22  # of twenty colours


def test_too_few_images_and_seeds_that_are_none_are_refused_before_anything_is_encoded(drawn, monkeypatch):
    monkeypatch.setattr(Tokenizer, "forward", lambda *_: pytest.fail("an image was encoded"))
    tokenizer = Tokenizer(TokenizerConfig(16, 4, 4, VIT, VIT, AEConfig()))
    with pytest.raises(MetricError, match="at least 16 images, not 15"):
        latent_space(tokenizer, Greys([0] * 15, ["a"]), workers=0)
    for seed, within in ((-1, "at least 0"), (2**32, r"below 2\^32")):
        with pytest.raises(ConfigError, match=f"seed must be {within}, not {seed}") as error:
            latent_space(tokenizer, Greys([0] * 16, ["a"]), seed=seed, workers=0)
        assert error.value.setting == "seed"
