"""Parts: figures are the same for any batch, any size of parts, one rank or two, stopped or not; each image once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from softvq import progress
from softvq.evaluation import generation, parts, references
from softvq.evaluation.distribution import kernel_distance
from softvq.evaluation.frechet import frechet_distance, moments_of
from softvq.evaluation.generation import generation_scores, over_seeds
from softvq.evaluation.parts import Part, Parts, moments
from softvq.evaluation.references import Reference, chosen

N, COUNTS = 103, (103, 1, 2, 7, 20)  # of images; parts of 10 divide neither the one nor most of the others
WEIGHT = torch.from_numpy(np.random.default_rng(5).standard_normal((6, 4))).float()


def table(seed: int, count: int = N) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    pool, spatial = rng.standard_normal((count, 6)) + 0.3 * seed, rng.standard_normal((count, 11)) * 2
    return {"pool": torch.from_numpy(pool).float(), "spatial": torch.from_numpy(spatial).float()}


def maker(features: dict[str, torch.Tensor], batch: int = 7, made: list[int] | None = None) -> Callable[..., Part]:
    """Features of each image, that come in batches; `made` is told which images were asked for."""

    def make(numbers: range, done: Callable[[int], object]) -> Part:
        found = []
        for first in range(numbers.start, numbers.stop, batch):
            rows = range(first, min(numbers.stop, first + batch))
            found.append({name: tensor[rows.start : rows.stop] for name, tensor in features.items()})
            done(len(rows))
            if made is not None:
                made.extend(rows)
        return Part({k: torch.cat([one[k] for one in found]) for k in features}, {}, f"{numbers.start}")

    return make


def filled(folder: Path, features: dict[str, torch.Tensor], batch: int = 7, size: int = 10) -> Parts:
    found = Parts(folder, len(features["pool"]), size)
    found.fill(maker(features, batch), "images")
    return found


def logits(pool: torch.Tensor) -> torch.Tensor:
    return pool @ WEIGHT


def scores(folder: Path, **how: int) -> dict[str, Any]:
    """Every figure there is, through parts on both sides."""
    reference = Reference.of_parts(filled(folder / "reference", table(1), **how))
    return generation_scores(filled(folder / "samples", table(0), **how), reference, logits)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All images at once."""
    return scores(tmp_path_factory.mktemp("whole"), batch=1000, size=1000)


FIGURES = ("fd", "spatial_fd", "inception_score", "inception_score_std", "kid", "kid_std", "precision", "recall")


def test_the_figures_are_those_of_the_features_themselves(expected: dict[str, Any]):
    samples, reference = table(0), table(1)
    assert set(expected) == {*FIGURES, "nearest", "reliable"}
    for name, figure in (("pool", "fd"), ("spatial", "spatial_fd")):
        alone = frechet_distance(moments_of(samples[name]), moments_of(reference[name]))
        assert expected[figure] == pytest.approx(alone, rel=1e-9)
    pools = samples["pool"], reference["pool"]
    score = generation.inception_score(logits(pools[0]))
    assert (expected["inception_score"], expected["inception_score_std"]) == pytest.approx(score, rel=1e-9)
    assert (expected["kid"], expected["kid_std"]) == pytest.approx(generation.kernel_distance(*pools), rel=1e-9)
    assert (expected["precision"], expected["recall"]) == generation.precision_recall(*pools)
    assert expected["nearest"] == pytest.approx(float(generation.nearest_distances(*pools).median()), rel=1e-9)
    assert expected["reliable"] is True


@pytest.mark.parametrize(("batch", "size"), [(1, 10), (7, 10), (64, 10), (7, 1), (7, 64), (64, 103), (1, 102)])
def test_neither_the_batch_nor_the_size_of_parts_changes_a_figure(tmp_path: Path, expected, batch: int, size: int):
    assert scores(tmp_path, batch=batch, size=size) == pytest.approx(expected, rel=1e-9)


def run_alone(folder: Path) -> None:
    code = (
        "from pathlib import Path\nfrom softvq.evaluation.parts import Parts\n"
        "from tests.evaluation.test_parts import maker, table\n"
        f"Parts(Path({str(folder)!r}), 30, 10).fill(maker(table(0)), 'images')"
    )
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    subprocess.run([sys.executable, "-c", code], check=True, env=alone)


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    made: dict[int, list[int]] = {}
    for count in COUNTS:
        found = Parts(Path(folder) / f"{count}", count, 10)
        found.fill(maker(table(0, count), made=made.setdefault(count, [])), "images")
        assert torch.equal(found.all("pool"), table(0, count)["pool"])  # both ranks read all of it
    if rank == 0:
        run_alone(Path(folder) / "resumed")  # as a stopped command of one rank left it
    dist.barrier()
    Parts(Path(folder) / "resumed", N, 10).fill(maker(table(0), made=made.setdefault(-1, [])), "images")
    told = {"made": made, "scores": scores(Path(folder))}
    Path(folder, f"{rank}.json").write_text(json.dumps(told))
    found.remove()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=2)
    assert not (folder / f"{COUNTS[-1]}").exists()  # removed, once all had read
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_find_the_figures_that_one_finds(ranks: list[dict[str, Any]], expected: dict[str, Any]):
    for rank in ranks:
        assert rank["scores"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [*COUNTS, -1])
def test_two_ranks_make_each_image_once_and_share_them(ranks: list[dict[str, Any]], count: int):
    """-1: where three parts were there already."""
    made = [rank["made"][str(count)] for rank in ranks]
    assert sorted(made[0] + made[1]) == (list(range(count)) if count > 0 else list(range(30, N)))
    numbers_of_parts = [{n // 10 for n in one} for one in made]
    assert not numbers_of_parts[0] & numbers_of_parts[1]
    assert abs(len(numbers_of_parts[0]) - len(numbers_of_parts[1])) <= 1


class Stop(Exception):
    """As a killed process: nothing of ours catches it."""


def test_a_stopped_command_makes_only_what_is_missing(tmp_path: Path, expected: dict[str, Any]):
    features, found = table(0), Parts(tmp_path / "parts", N, 10)
    first, second = [], []

    def stopped(numbers: range, done: Callable[[int], object]) -> Part:
        if numbers.start == 40:
            raise Stop
        return maker(features, made=first)(numbers, done)

    with pytest.raises(Stop):
        found.fill(stopped, "images")
    assert first == list(range(40))
    (tmp_path / "parts" / "00000030.safetensors").unlink()  # as if another rank had not got there
    told: list[int] = []
    make = maker(features, made=second)
    found.fill(lambda numbers, done: make(numbers, lambda n: told.append(n)), "images")
    assert second == list(range(30, N))
    assert sum(told) == N - 30
    assert torch.equal(found.all("pool"), features["pool"])
    reference = Reference.of_parts(filled(tmp_path / "reference", table(1)))
    assert generation_scores(found, reference, logits) == pytest.approx(expected, rel=1e-9)
    third: list[int] = []
    found.fill(maker(features, made=third), "images")
    assert third == []


def test_a_part_that_was_half_written_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    features, found = table(0), Parts(tmp_path, N, 10)
    write = Path.write_bytes

    def half(path: Path, data: bytes) -> None:
        if "00000020" in path.name:
            write(path, data[:50])
            raise Stop
        write(path, data)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_bytes", half)
        with pytest.raises(Stop):
            found.fill(maker(features), "images")
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "00000000.safetensors",
        "00000010.safetensors",
    ]
    made: list[int] = []
    found.fill(maker(features, made=made), "images")
    assert made == list(range(20, N))
    assert torch.equal(found.all("pool"), features["pool"])


def test_a_part_without_readable_images_leaves_the_others(tmp_path: Path):
    """Its images are named, and there is nothing else of it."""
    features, found = table(0, 25), Parts(tmp_path, 25, 10)

    def make(numbers: range, done: Callable[[int], object]) -> Part:
        if numbers.start == 10:
            return Part({}, {f"{n}.png": "no image" for n in numbers}, "")
        return maker(features)(numbers, done)

    found.fill(make, "images")
    assert list(found.bad) == [f"{n}.png" for n in range(10, 20)]
    assert set(found.bad.values()) == {"no image"}
    kept = torch.cat([features["pool"][:10], features["pool"][20:]])
    assert torch.equal(found.all("pool"), kept)
    torch.testing.assert_close(moments(found, "pool").mean, kept.double().mean(0))
    assert moments(found, "pool").count == 15


def test_what_there_is_none_of_is_none(tmp_path: Path):
    found = filled(tmp_path, {"pool": table(0)["pool"]})
    assert found.all("spatial") is None
    assert moments(found, "spatial") is None
    assert len(list(found.each("pool"))) == 11
    with_spatial = Reference.of_parts(filled(tmp_path / "other", table(1)))
    assert "spatial_fd" not in generation_scores(found, with_spatial)
    statistics = Reference(with_spatial.pool, with_spatial.spatial, None)
    assert set(generation_scores(filled(tmp_path / "third", table(0)), statistics)) == {"fd", "spatial_fd", "reliable"}


def test_few_images_on_either_side_are_said(tmp_path: Path):
    many, few = filled(tmp_path / "many", table(0)), filled(tmp_path / "few", table(1, 5))
    found = [generation_scores(a, Reference.of_parts(b)) for a, b in ((many, many), (many, few), (few, many))]
    assert [one["reliable"] for one in found] == [True, False, False]


def test_the_checksum_is_of_all_parts_in_order(tmp_path: Path):
    def of(*checksums: str) -> str:
        found = Parts(tmp_path / "-".join(checksums), len(checksums), 1)
        found.fill(lambda numbers, done: Part({}, {}, checksums[numbers.start]), "images")
        return found.checksum

    sums = {of("a", "b"), of("b", "a"), of("a", "b", "c"), of("a")}
    assert len(sums) == 4
    assert all(len(one) == 16 for one in sums)
    assert of("a", "b") in sums


def test_precision_takes_a_fixed_choice_of_the_reference_and_fid_all_of_it(tmp_path: Path, monkeypatch):
    assert chosen(5) == list(range(5)) == chosen(5, 5)
    some = chosen(1000, 100)
    assert some == sorted(set(some))
    assert len(some) == 100
    assert max(some) > 900  # of all, not the first
    assert some == chosen(1000, 100)
    monkeypatch.setattr(references, "chosen", lambda count: chosen(count, 20))
    reference = Reference.of_parts(filled(tmp_path, table(1)))
    assert torch.equal(reference.features, table(1)["pool"][chosen(N, 20)])
    assert reference.pool.count == N


def test_kid_draws_from_the_samples_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The subsets are torch-fidelity's only in that order."""
    monkeypatch.setattr(generation, "kernel_distance", lambda a, b: kernel_distance(a, b, 5, 20))
    samples, reference = table(0), table(1, 60)
    sides = filled(tmp_path / "samples", samples), Reference.of_parts(filled(tmp_path / "reference", reference))
    found = generation_scores(*sides)
    assert (found["kid"], found["kid_std"]) == kernel_distance(samples["pool"], reference["pool"], 5, 20)
    assert found["kid"] != kernel_distance(reference["pool"], samples["pool"], 5, 20)[0]


def test_over_seeds_figures_are_means_with_the_deviation_of_a_sample():
    runs = [{"fd": 1.0, "kid": 0.5, "reliable": True}, {"fd": 4.0, "kid": 0.7, "reliable": False}]
    found = over_seeds(runs)
    assert found == {
        **{"fd": 2.5, "fd_over_seeds": pytest.approx(np.std([1.0, 4.0], ddof=1))},
        **{"kid": pytest.approx(0.6), "kid_over_seeds": pytest.approx(np.std([0.5, 0.7], ddof=1))},
        "reliable": False,
    }
    assert over_seeds(runs[:1]) == runs[0]


def test_progress_is_of_the_images_that_are_left(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    filled(tmp_path, table(0, 25))
    assert "25 of 25 images" in capsys.readouterr().err
    (tmp_path / "00000020.safetensors").unlink()
    filled(tmp_path, table(0, 25))
    assert "5 of 5 images" in capsys.readouterr().err
    filled(tmp_path, table(0, 25))
    assert capsys.readouterr().err == ""


def test_a_part_is_made_from_its_own_range(tmp_path: Path):
    def ranges(count: int, size: int) -> Iterator[range]:
        seen: list[range] = []
        name = f"{count}-{size}"
        Parts(tmp_path / name, count, size).fill(lambda numbers, done: seen.append(numbers) or Part({}), "images")
        yield from seen

    assert list(ranges(25, 10)) == [range(0, 10), range(10, 20), range(20, 25)]
    assert list(ranges(20, 10)) == [range(0, 10), range(10, 20)]
    assert list(ranges(3, parts.SIZE)) == [range(0, 3)]
