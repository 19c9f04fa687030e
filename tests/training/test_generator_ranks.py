"""torchrun: two processes train the generator that one trains, DDP and FSDP2; and share out encoding and sampling."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_generator import latents  # noqa: F401
from tests.training.test_run_ranks import FSDP, TORCHRUN, assert_same, begin, data, run, state  # noqa: F401

SMALL = ["--model.network.width", "16", "--model.network.heads", "2", "--model.network.depth", "2"]


def command(*words: object) -> list[str]:
    return [*map(str, words), "--device", "cpu", "--precision", "float32"]


def training(out: Path, latents: Path, *more: str) -> list[str]:  # noqa: F811
    own = [
        "--out",
        out,
        "--data",
        latents,
        "--log-every",
        "1",
        "--checkpoint-every",
        "3",
        "--steps",
        "8",
        "--batch_size",
        "8",
    ]
    return command("train", "generator", "emoji-sit", *own, *SMALL, "--optimizer", "AdamW", *more)


@pytest.fixture(scope="module")
def one(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("ranks") / "one"
    run(1, training(out, latents))
    return out


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=FSDP)])
def test_two_ranks_make_the_generator_that_one_makes(parallel: str, one: Path, latents: Path, tmp_path: Path):  # noqa: F811
    run(2, training(tmp_path / "two", latents, "--parallel", parallel))
    assert_same(state(tmp_path / "two", 8), state(one, 8))


def test_two_ranks_draw_the_images_that_one_draws(one: Path, tmp_path: Path):
    for ranks in (1, 2):
        words = ["sample", "--model", one, "-n", 12, "--steps", 2, "--npz", tmp_path / f"{ranks}.npz"]
        run(ranks, command(*words))
    first, second = (np.load(tmp_path / f"{ranks}.npz")["arr_0"].astype(int) for ranks in (1, 2))
    assert np.abs(first - second).max() <= 1


def test_two_ranks_encode_what_one_encodes(data: Path, tmp_path: Path):  # noqa: F811
    for ranks in (1, 2):
        words = ["encode", data, "--out", tmp_path / str(ranks), "--shard", 5, "--workers", 0]
        run(ranks, command(*words))
    from softvq.data.latents import Latents

    first, second = (Latents(tmp_path / str(ranks)) for ranks in (1, 2))
    assert first.index == second.index
    assert first.index.shards == [5, 5, 5, 3]
    for mirror in (0, 1):
        found, expected = (torch.stack([one.read(i, mirror) for i in range(len(one))]) for one in (second, first))
        torch.testing.assert_close(found, expected, atol=4e-3, rtol=1e-3)


def test_a_missing_cache_is_a_sentence_on_two_ranks(tmp_path: Path):
    process = begin([*TORCHRUN, *training(tmp_path / "run", tmp_path / "none")])
    _, errors = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "holds no latents" in errors
