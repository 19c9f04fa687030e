"""torchrun: two processes train the generator that one trains, DDP and FSDP2; and share out encoding and sampling."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_generator import latents  # noqa: F401
from tests.training.test_ranks import assert_same, begin, complete, state

SMALL = ["--model.network.width", "16", "--model.network.heads", "2", "--model.network.depth", "2"]


def command(ranks: int, *words: object) -> list[str]:
    import sys

    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    python = [sys.executable, "-m"] if ranks == 1 else start
    return [*python, "softvq", *map(str, words), "--device", "cpu", "--precision", "float32"]


def training(out: Path, data: Path, ranks: int, *more: str) -> list[str]:
    own = [
        "--out",
        out,
        "--data",
        data,
        "--log-every",
        "1",
        "--checkpoint-every",
        "3",
        "--steps",
        "8",
        "--batch_size",
        "8",
    ]
    return command(ranks, "train", "generator", "emoji-sit", *own, *SMALL, "--optimizer", "AdamW", *more)


@pytest.fixture(scope="module")
def one(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("ranks") / "one"
    complete(training(out, latents, 1))
    return out


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_make_the_generator_that_one_makes(parallel: str, one: Path, latents: Path, tmp_path: Path):  # noqa: F811
    complete(training(tmp_path / "two", latents, 2, "--parallel", parallel))
    assert_same(state(tmp_path / "two", 8), state(one, 8))


def test_two_ranks_draw_the_images_that_one_draws(one: Path, tmp_path: Path):
    for ranks in (1, 2):
        words = ["sample", "--model", one, "-n", 12, "--steps", 2, "--npz", tmp_path / f"{ranks}.npz"]
        complete(command(ranks, *words))
    first, second = (np.load(tmp_path / f"{ranks}.npz")["arr_0"].astype(int) for ranks in (1, 2))
    assert np.abs(first - second).max() <= 1


def test_two_ranks_encode_what_one_encodes(tmp_path: Path):
    for ranks in (1, 2):
        words = ["encode", "emoji-val", "--out", tmp_path / str(ranks), "--shard", 100, "--workers", 0]
        complete(command(ranks, *words))
    from softvq.data.latents import Latents

    first, second = (Latents(tmp_path / str(ranks)) for ranks in (1, 2))
    assert first.index == second.index
    torch.testing.assert_close(second._whole, first._whole, atol=4e-3, rtol=1e-3)


def test_a_missing_cache_is_a_sentence_on_two_ranks(tmp_path: Path):
    process = begin(training(tmp_path / "run", tmp_path / "none", 2))
    _, errors = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "holds no latents" in errors
