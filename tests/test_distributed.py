"""Two processes (gloo) with half the batch each see the expectation, and give the gradient, of the whole batch; and
work is shared out in parts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from softvq import distributed
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import SoftVQConfig

CONFIGS = {
    "eq4": SoftVQConfig(6),
    "released": ProductConfig(SoftVQConfig.released(6), 2, "token", "pooled"),
    "vq": VQConfig(6),
}


def answer(name: str, rows: slice) -> dict[str, torch.Tensor]:
    """KL term, statistics and the codebooks' gradient on these rows of the batch."""
    torch.manual_seed(0)
    quantizer = CONFIGS[name].build(3).double()
    z = torch.randn(4, 4, 3, dtype=torch.float64)
    result = quantizer(z[rows], None, distributed.mean)
    (sum(result.losses.values()) + result.latent.square().mean()).backward()
    gradient = torch.cat([p.grad.flatten() for p in quantizer.parameters()])
    kl = {"kl": result.losses["kl"].detach()} if "kl" in result.losses else {}
    return {"gradient": distributed.mean(gradient), **result.statistics, **kl}


class Parts:
    """Files that say which numbers they were made of, and by whom; `made` are those of this process."""

    def __init__(self, folder: Path, by: str = ""):
        folder.mkdir(exist_ok=True)
        self.folder, self.by = folder, by
        self.made: list[range] = []

    def path(self, first: int) -> Path:
        return self.folder / f"{first:03d}.txt"

    def make(self, numbers: range, done: Callable[[int], object]) -> None:
        self.made.append(numbers)
        for _ in numbers:
            done(1)
        self.path(numbers.start).write_text(f"{self.by}{numbers.start} to {numbers.stop - 1}")

    def found(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.iterdir())]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    answers = {name: answer(name, slice(2 * rank, 2 * rank + 2)) for name in CONFIGS}
    torch.save(answers, f"{folder}/{rank}.pt")
    for name, kept in (("new", ()), ("gone on", (0, 5))):
        parts = Parts(Path(folder, name), f"rank {rank}: ")
        for first in kept if rank == 0 else ():
            parts.path(first).write_text("kept")
        distributed.barrier()
        distributed.in_parts(13, 5, parts.path, parts.make, show=False)
        assert all(parts.path(first).is_file() for first in (0, 5, 10))  # those of the other process too
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, dict[str, torch.Tensor]]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_equal_one(ranks, name: str):
    whole = answer(name, slice(None))
    for rank in ranks:
        assert rank[name].keys() == whole.keys()
        for key, value in whole.items():
            assert torch.allclose(rank[name][key].double(), value.double(), atol=1e-6 if name == "vq" else 1e-12), key


def test_alone_nothing_is_reduced():
    x = torch.arange(3.0)
    assert distributed.rank() == 0
    assert distributed.world_size() == 1
    assert distributed.mean(x) is x
    assert distributed.maximum(x) is x
    assert distributed.total(x) is x


# Work in parts


@pytest.mark.parametrize(
    ("count", "size", "parts"),
    [
        (13, 5, ["0 to 4", "5 to 9", "10 to 12"]),
        (10, 5, ["0 to 4", "5 to 9"]),
        (3, 5, ["0 to 2"]),
        (2, 1, ["0 to 0", "1 to 1"]),
        (0, 5, []),
    ],
)
def test_each_part_is_made_once(tmp_path: Path, count: int, size: int, parts: list[str]):
    work = Parts(tmp_path)
    distributed.in_parts(count, size, work.path, work.make)
    assert work.found() == parts
    assert [number for numbers in work.made for number in numbers] == list(range(count))
    assert max(map(len, work.made), default=0) <= size


def test_parts_that_are_there_are_not_made_again(tmp_path: Path):
    work = Parts(tmp_path)
    work.path(5).write_text("kept")
    distributed.in_parts(13, 5, work.path, work.make)
    assert work.found() == ["0 to 4", "kept", "10 to 12"]
    assert work.made == [range(5), range(10, 13)]
    work.path(0).unlink()
    work.made.clear()
    distributed.in_parts(13, 5, work.path, work.make)
    assert work.made == [range(5)]
    work.made.clear()
    distributed.in_parts(13, 5, work.path, work.make)
    assert work.made == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_stops_a_part_leaves_those_that_are_finished(tmp_path: Path, error: type[BaseException]):
    work = Parts(tmp_path)

    def stopped(numbers: range, done: Callable[[int], object]) -> None:
        if numbers.start == 10:
            raise error
        work.make(numbers, done)

    with pytest.raises(error):
        distributed.in_parts(20, 5, work.path, stopped)
    assert work.found() == ["0 to 4", "5 to 9"]
    work.made.clear()
    distributed.in_parts(20, 5, work.path, work.make)
    assert work.made == [range(10, 15), range(15, 20)]
    assert work.found() == ["0 to 4", "5 to 9", "10 to 14", "15 to 19"]


def test_two_processes_share_out_the_missing_parts(folder: Path):
    assert Parts(folder / "new").found() == ["rank 0: 0 to 4", "rank 1: 5 to 9", "rank 0: 10 to 12"]
    assert Parts(folder / "gone on").found() == ["kept", "kept", "rank 0: 10 to 12"]


@pytest.mark.parametrize(("show", "shown"), [(True, True), (False, False), (None, False)])
def test_the_bar_is_of_what_is_still_to_be_done(tmp_path: Path, capsys, show: bool | None, shown: bool):
    work = Parts(tmp_path)
    work.path(5).write_text("kept")
    distributed.in_parts(13, 5, work.path, work.make, "counting", show=show)
    told = capsys.readouterr().err
    assert ("counting" in told) == ("8/8" in told) == shown
    distributed.in_parts(13, 5, work.path, work.make, "counting", show=show)
    assert capsys.readouterr().err == ""
