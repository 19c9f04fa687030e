"""Inception Score, KID, precision and recall, nearest distances: each written out in plain Python beside ours."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from softvq.errors import ConfigError, MetricError
from softvq.evaluation.distribution import inception_score, kernel_distance, nearest_distances, precision_recall


def made(count: int, width: int = 3, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, width)) + shift)


def isc(logits: torch.Tensor, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) of each part of the permuted images, term by term."""
    rows = [logits[n].tolist() for n in np.random.RandomState(2020).permutation(len(logits))]
    ps = []
    for row in rows:
        weights = [math.exp(value - max(row)) for value in row]
        ps.append([weight / sum(weights) for weight in weights])
    scores = []
    for part in range(splits):
        chunk = ps[part * len(ps) // splits : (part + 1) * len(ps) // splits]
        marginal = [sum(column) / len(chunk) for column in zip(*chunk, strict=True)]
        kls = [sum(q * math.log(q / m) for q, m in zip(p, marginal, strict=True) if q > 0) for p in chunk]
        scores.append(math.exp(sum(kls) / len(chunk)))
    mean = sum(scores) / splits
    return mean, math.sqrt(sum((score - mean) ** 2 for score in scores) / splits)


@pytest.mark.parametrize(("count", "splits"), [(10, 10), (37, 10), (64, 10), (20, 1), (23, 4)])
def test_the_inception_score_is_its_definition_over_permuted_parts(count: int, splits: int):
    logits = made(count, 7) * 3
    assert inception_score(logits, splits) == pytest.approx(isc(logits, splits), rel=1e-10)


def test_the_images_are_permuted_before_they_are_parted():
    """In the order of their classes each part would be of one class, and the score 1."""
    logits = torch.eye(10, dtype=torch.float64).repeat_interleave(20, 0) * 50
    mean, deviation = inception_score(logits)
    assert mean == pytest.approx(isc(logits)[0], rel=1e-10)
    assert mean > 6
    assert deviation > 0.1


def test_scores_of_no_and_of_full_certainty():
    assert inception_score(torch.zeros(40, 8)) == pytest.approx((1.0, 0.0), abs=1e-12)
    certain = torch.eye(8).repeat(5, 1) * 1000  # p is 0 but for one class: 0 · log 0 is 0
    assert inception_score(certain, 1)[0] == pytest.approx(8.0, rel=1e-9)


def test_the_inception_score_is_computed_in_float64():
    logits = (made(40, 7) * 3).float()
    assert inception_score(logits) == pytest.approx(isc(logits.double()), rel=1e-12)


def mmd(xs: list[list[float]], ys: list[list[float]]) -> float:
    """The unbiased squared MMD: within the sides over pairs of different images, between them over all."""

    def kernel(x: list[float], y: list[float]) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def within(side: list[list[float]]) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(side) for j, b in enumerate(side) if i != j]
        return sum(pairs) / len(pairs)

    return within(xs) + within(ys) - 2 * sum(kernel(x, y) for x in xs for y in ys) / (len(xs) * len(ys))


@pytest.mark.parametrize(("counts", "subsets", "size"), [((20, 30), 4, 8), ((9, 14), 3, 9), ((12, 5), 2, 1000)])
def test_kid_is_its_definition_over_drawn_subsets(counts: tuple[int, int], subsets: int, size: int):
    samples, reference = made(counts[0]), made(counts[1], seed=1, shift=0.4)
    rng, values, taken = np.random.RandomState(2020), [], min(size, *counts)
    for _ in range(subsets):
        x = samples[rng.choice(counts[0], taken, replace=False)].tolist()
        y = reference[rng.choice(counts[1], taken, replace=False)].tolist()
        values.append(mmd(x, y))
    found = kernel_distance(samples, reference, subsets, size)
    assert found == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)


def mmd_of_numbers(x: np.ndarray, y: np.ndarray) -> float:
    """`mmd` of features of width 1, where (x · y + 1)³ is a polynomial: sums over pairs are products of moments."""

    def total(a: np.ndarray, b: np.ndarray) -> float:
        return sum(math.comb(3, power) * (a**power).sum() * (b**power).sum() for power in range(4))

    def within(side: np.ndarray) -> float:
        return (total(side, side) - ((side**2 + 1) ** 3).sum()) / (len(side) * (len(side) - 1))

    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))


def test_kid_takes_100_subsets_of_1000_unless_told():
    samples, reference = made(1003, 1), made(1005, 1, seed=1, shift=0.4)
    rng, values = np.random.RandomState(2020), []
    for _ in range(100):
        x = samples[rng.choice(1003, 1000, replace=False)].flatten().numpy()
        y = reference[rng.choice(1005, 1000, replace=False)].flatten().numpy()
        values.append(mmd_of_numbers(x, y))
    assert kernel_distance(samples, reference) == pytest.approx((np.mean(values), np.std(values)), rel=1e-9)


def test_kid_of_two_halves_is_nothing_and_of_another_set_much():
    """Unbiased: around 0, on either side of it."""
    halves = [kernel_distance(made(200, seed=s), made(200, seed=s + 50), 1)[0] for s in range(20)]
    assert min(halves) < 0 < max(halves)
    assert abs(np.mean(halves)) < 0.05 < kernel_distance(made(200), made(200, seed=1, shift=1.0), 1)[0]


BORDER = 2048  # distances are computed in blocks of that many images


def prc(samples: torch.Tensor, reference: torch.Tensor, k: int) -> tuple[float, float]:
    """By the differences of all pairs, never their squares' expansion."""
    a, b = samples.double().numpy(), reference.double().numpy()

    def share(points: np.ndarray, centres: np.ndarray) -> float:
        others = cdist(centres, centres)
        np.fill_diagonal(others, np.inf)
        reach = np.partition(others, k - 1, axis=1)[:, k - 1]
        return (cdist(points, centres) <= reach).any(1).mean()

    return share(a, b), share(b, a)


CASES = {
    "overlapping": (made(40), made(33, seed=1, shift=1.0)),
    "far from zero": (made(40, shift=1e4), made(33, seed=1, shift=1e4 + 0.8)),
    "float32": (made(40).float(), made(33, seed=1, shift=0.8).float()),
    "wide": (made(30, 40), made(30, 40, seed=1) * 1.1),
    "apart": (made(20), made(20, seed=1, shift=50.0)),
    "one inside the other": (made(30) * 0.01, made(25, seed=1)),
    "as few as can be": (made(4), made(4, seed=1)),
}


def across_the_border(side: torch.Tensor, seed: int) -> torch.Tensor:
    """These images with others around them before, so many that the border of the first block is among these."""
    before = BORDER - len(side) // 2
    around = torch.from_numpy(np.random.default_rng(seed).standard_normal((before, side.shape[1])))
    return torch.cat([(side.mean(0) + 4 * around * side.std(0)).to(side), side])


@pytest.mark.parametrize("larger", ["neither", "samples", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_precision_and_recall_are_their_definition(case: str, larger: str):
    """Whatever the blocks that distances are computed in."""
    samples, reference = CASES[case]
    samples = across_the_border(samples, 2) if larger == "samples" else samples
    reference = across_the_border(reference, 3) if larger == "reference" else reference
    for k in (1, 2, 3):
        assert precision_recall(samples, reference, k) == pytest.approx(prc(samples, reference, k), abs=1e-12)


def test_precision_and_recall_take_three_neighbours_and_are_not_each_other():
    samples, reference = CASES["overlapping"]
    assert precision_recall(samples, reference) == precision_recall(samples, reference, 3)
    precision, recall = precision_recall(samples, reference)
    assert precision_recall(reference, samples) == (recall, precision)
    assert precision != recall
    assert min(precision, recall) > 0
    assert max(precision, recall) < 1


@pytest.mark.parametrize("count", [4, BORDER + 9])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_duplicates_are_at_distance_zero_and_count(count: int, shift: float):
    """Copies reach nowhere (their third neighbour is a copy), but as far as an image that equals them; in one block,
    and on both sides of the border of two."""
    point = made(1, 5, shift=shift)
    copies = point.repeat(count, 1)
    samples = torch.cat([point, made(5, 5, seed=3, shift=shift)])
    found = precision_recall(samples, copies)
    assert found == (1 / 6, 1.0)
    assert found == prc(samples, copies, 3)
    mixed = torch.cat([copies, made(6, 5, seed=4, shift=shift)])
    assert precision_recall(mixed, samples) == pytest.approx(prc(mixed, samples, 3), abs=1e-12)
    assert precision_recall(mixed, mixed) == (1.0, 1.0)


def test_rounding_makes_no_duplicate_distant():
    """Copies that differ in their last digits, as another processor's features do: what is computed as their distance
    is rounding alone, and another for each pair."""
    rng = np.random.default_rng(0)
    point, others = made(1, 500), made(6, 500, seed=4)

    def copies(count: int) -> torch.Tensor:
        return point * (1 + 1e-15 * torch.from_numpy(rng.standard_normal((count, 500))))

    for count, neighbours in 20 * [(6, 3), (2, 1)]:
        reference = torch.cat([copies(count), others[:count]])
        assert precision_recall(copies(6), reference, neighbours) == (1.0, 0.5)


@pytest.mark.parametrize("counts", [(23, 17), (BORDER + 23, 17)])
def test_nearest_distances_are_the_smallest(counts: tuple[int, int]):
    for shift in (0.0, 1e4):
        samples, reference = made(counts[0], 6, shift=shift), made(counts[1], 6, seed=1, shift=shift)
        expected = [min(math.dist(a, b) for b in reference.tolist()) for a in samples.tolist()]
        assert nearest_distances(samples, reference).tolist() == pytest.approx(expected, rel=1e-9)
        assert nearest_distances(reference[:5], reference).max() < 1e-6


def test_too_few_images_are_a_sentence():
    with pytest.raises(MetricError, match=r"an Inception Score of 10 parts needs as many images, not 9\.$"):
        inception_score(torch.zeros(9, 4))
    for pair in ((made(1), made(30)), (made(30), made(1)), (made(0), made(30))):
        with pytest.raises(MetricError, match=rf"KID needs at least 2 images of each side, not {min(map(len, pair))}"):
            kernel_distance(*pair)
    for pair, name in (((made(3), made(30)), "generated"), ((made(30), made(3)), "reference")):
        with pytest.raises(MetricError, match=f"with 3 neighbours need at least 4 {name} images, not 3"):
            precision_recall(*pair)
    assert precision_recall(made(2), made(2), 1) == prc(made(2), made(2), 1)  # k + 1 are enough


def test_a_class_without_any_probability_counts_nothing():
    """Logits hundreds apart underflow to a probability of 0 in float64 too."""
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    absent = torch.cat([logits, torch.full((20, 1), -2000.0, dtype=torch.float64)], dim=1)
    assert inception_score(absent, 2) == pytest.approx(inception_score(logits, 2), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("measure", [kernel_distance, precision_recall, nearest_distances])
@pytest.mark.parametrize("side", [0, 1])
def test_features_that_are_not_finite_are_refused(measure, side: int, bad: float):
    """NaN is near to nothing: precision would be 0 and no error."""
    sides = [made(8), made(8, seed=1)]
    sides[side][3, 1] = bad
    with pytest.raises(MetricError, match="the features hold NaN or Inf"):
        measure(*sides)
    with pytest.raises(MetricError, match="the features hold NaN or Inf"):
        inception_score(sides[side], 2)


@pytest.mark.parametrize("number", [0, -1, True])
def test_counts_of_a_measure_are_whole_and_positive(number: int):
    for call in (
        lambda: inception_score(made(20), number),
        lambda: kernel_distance(made(8), made(8), number),
        lambda: precision_recall(made(8), made(8), number),
    ):
        with pytest.raises(ConfigError, match=r"(splits|subsets|neighbours) must be "):
            call()
