"""Our figures equal torch-fidelity's own on the features that its own network gives (of random weights: they cannot be
downloaded here): `make test-reference`."""

from pathlib import Path

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from softvq.evaluation.distribution import inception_score, kernel_distance, precision_recall
from softvq.evaluation.frechet import frechet_distance, moments_of
from softvq.evaluation.generation import generation_scores
from softvq.evaluation.parts import Part, Parts
from softvq.evaluation.references import Reference
from softvq.pretrained.features import FeatureNetwork
from softvq.pretrained.inception import Inception, _Norm

COUNTS = (28, 25)  # generated and reference images
OPTIONS = {"rng_seed": 2020, "samples_shuffle": True, "verbose": False, "kid_subsets": 100}


def pictures(count: int, seed: int, brightness: float) -> torch.Tensor:
    """Coarse noise, fine noise and a tint: two sets of other brightness are unlike but overlap."""
    generator = torch.Generator().manual_seed(seed)
    coarse, fine, share, tint = (
        torch.rand(count, channels, side, side, generator=generator)
        for channels, side in ((3, 6), (3, 64), (1, 1), (3, 1))
    )
    noise = torch.nn.functional.interpolate(coarse, 64, mode="bilinear") * (1 - 0.5 * share) + 0.5 * share * fine
    return ((0.4 * noise + 0.6 * tint) * brightness * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureNetwork, FeatureExtractorInceptionV3]:
    """Ours and theirs, of the same weights."""
    torch.manual_seed(0)
    ours = Inception()
    for module in ours.modules():  # activations of a sensible size, and batch norms that do something
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, _Norm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.25)
            module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(0, 0.1)
    ours.fc.weight.normal_(0, 0.6)
    counts = {f"{n}.num_batches_tracked": torch.tensor(0) for n, m in ours.named_modules() if isinstance(m, _Norm)}
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({**ours.state_dict(), **counts}, file)
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(file))
    return FeatureNetwork("inception-2015-12-05", ours, 299, 2048, "tf1"), theirs


@pytest.fixture(scope="module")
def features(networks) -> list[dict[str, torch.Tensor]]:
    """Of both sets: our `pool`, and their `pool` and `logits`."""
    ours, theirs = networks
    found = []
    for images in (pictures(COUNTS[0], 1, 1.0), pictures(COUNTS[1], 2, 0.5)):
        pairs = [(ours(part)["pool"], *theirs(part)) for part in images.split(16)]
        found.append(dict(zip(("ours", "pool", "logits"), map(torch.cat, zip(*pairs, strict=True)), strict=True)))
    return found


@pytest.fixture(scope="module")
def expected(features) -> dict[str, float]:
    """torch-fidelity's own figures. KID of float64: in float32 its sums of cubes cancel to three digits."""
    samples, reference = features
    statistics = [fid_features_to_statistics(side["pool"].double()) for side in features]
    pools = samples["pool"].double(), reference["pool"].double()
    found = {
        **fid_statistics_to_metric(*statistics, False),
        **isc_features_to_metric(samples["logits"], 10, OPTIONS["samples_shuffle"], OPTIONS["rng_seed"]),
        **kid_features_to_metric(*pools, **OPTIONS, kid_subset_size=15),
        **prc_features_to_metric(*pools, **OPTIONS, prc_neighborhood=3),
    }
    return {name: float(value) for name, value in found.items()}


def names(found: dict[str, float]) -> dict[str, float]:
    """As torch-fidelity calls them."""
    pairs = {name: found[name] for name in ("precision", "recall")}
    for ours, theirs in (("inception_score", "inception_score"), ("kid", "kernel_inception_distance")):
        pairs |= {f"{theirs}_mean": found[ours], f"{theirs}_std": found[f"{ours}_std"]}
    return {**pairs, "frechet_inception_distance": found["fd"]}


def test_the_figures_mean_something(expected: dict[str, float]):
    """Two sets that are apart and overlap: no figure is at the end of its range."""
    assert expected["frechet_inception_distance"] > 1
    assert expected["inception_score_mean"] > 1.005
    assert expected["kernel_inception_distance_mean"] > expected["kernel_inception_distance_std"] > 0
    assert 0.05 < expected["precision"] < 0.95
    assert 0.05 < expected["recall"] < 0.95


def test_on_its_features_our_figures_are_torch_fidelitys(features, expected: dict[str, float]):
    samples, reference = (side["pool"] for side in features)
    kid = kernel_distance(samples, reference, 100, 15)
    score = inception_score(features[0]["logits"])
    precision, recall = precision_recall(samples, reference)
    found = {
        "fd": frechet_distance(moments_of(samples), moments_of(reference)),
        **dict(zip(("inception_score", "inception_score_std"), score, strict=True)),
        **dict(zip(("kid", "kid_std"), kid, strict=True)),
        **{"precision": precision, "recall": recall},
    }
    for name, value in names(found).items():  # the roots of what should be 0 are in their Fréchet distance, not in ours
        assert value == pytest.approx(expected[name], rel=1e-4 if name.startswith("frechet") else 1e-6), name


def test_from_images_on_our_figures_are_torch_fidelitys(tmp_path: Path, networks, features, expected, monkeypatch):
    """Our network, our resizing, parts, logits without the bias. KID's subsets are of 15 here, as there."""
    from softvq.evaluation import generation

    monkeypatch.setattr(generation, "kernel_distance", lambda a, b: kernel_distance(a, b, 100, 15))
    sides = []
    for name, side in zip(("samples", "reference"), features, strict=True):
        parts = Parts(tmp_path / name, len(side["ours"]), 17)
        parts.fill(lambda n, _, rows=side["ours"]: Part({"pool": rows[n.start : n.stop]}), name)
        sides.append(parts)
    found = generation_scores(sides[0], Reference.of_parts(sides[1]), networks[0].logits)
    for name, value in names(found).items():
        assert value == pytest.approx(expected[name], rel=1e-4), name
    assert found["reliable"] is False
