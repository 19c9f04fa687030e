"""Which samples are whose: the parts of a batch hold the same images for any number of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softvq import distributed
from softvq.data.order import check_batch, positions_of
from softvq.errors import DataError
from softvq.files import read_tensors
from tests.pictures import few_emoji
from tests.sessions import ROOT, environment


@given(ranks=st.integers(1, 5), parts=st.integers(1, 5), own=st.integers(1, 4), step=st.integers(0, 10**9))
def test_a_part_holds_the_same_samples_at_any_number_of_ranks(ranks: int, parts: int, own: int, step: int):
    batch = ranks * parts * own
    alone = positions_of(step, batch, parts)
    assert alone == list(range(step * batch, (step + 1) * batch))
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: ranks)
        for rank in range(ranks):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            check_batch(batch, parts)
            shares.append(positions_of(step, batch, parts))
    for part in range(parts):
        together = [p for share in shares for p in share[part * own : (part + 1) * own]]
        assert together == alone[part * ranks * own : (part + 1) * ranks * own]


@pytest.mark.parametrize(("batch", "parts", "ranks"), [(12, 4, 2), (10, 1, 3), (8, 3, 1), (2, 1, 4)])
def test_what_does_not_divide_is_refused(batch: int, parts: int, ranks: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    with pytest.raises(DataError, match=f"multiple of {parts * ranks}"):
        check_batch(batch, parts)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `images` and their `latents`."""
    from softvq.encoding import encode

    folder = tmp_path_factory.mktemp("shares")
    encode("softvq-emoji-64", str(few_emoji(folder / "images")), folder / "latents", workers=0, progress=False)
    return folder


def run(ranks: int, data: Path, out: Path) -> Path:
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    command = [*start, "tests.training.shares", str(data / "images"), str(data / "latents"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_two_ranks_equal_one_for_every_task_and_accumulation(data: Path, tmp_path: Path):
    one, two = run(1, data, tmp_path / "one"), run(2, data, tmp_path / "two")
    names = sorted(os.listdir(one))
    assert len(names) == 12
    for name in names:
        states = []
        for side in (two, one):
            folder = side / name / "checkpoints" / "step-0000003"
            states.append(
                {f"{p.stem}/{k}": t for p in folder.glob("*.safetensors") for k, t in read_tensors(p).items()}
            )
        torch.testing.assert_close(*states, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert any(bool(t.ne(0).any()) for k, t in states[0].items() if k.endswith("momentum_buffer")), name
