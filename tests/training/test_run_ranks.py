"""torchrun: several processes make the run that one makes, whole or killed, with the full objective."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import psutil
import pytest
import torch

from softvq.cli.main import main
from softvq.files import read_json, read_tensors
from tests.pictures import few_emoji

STEPS = 10
OLD = torch.__version__.startswith("2.6.")  # whose convolutions round by the size of their batch
ROUNDING = 1e-4 if OLD else 2e-6
FSDP = pytest.mark.skipif(OLD, reason="PyTorch 2.6 shares no parameters out between CPUs")
PARTS = {f"{player}{part}" for player in ("model", "discriminator") for part in ("", "-optimizer")} | {"model-average"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "softvq"]
RECIPE = "softvq-s-64-tiny"  # perceptual, adversarial and alignment terms, the discriminator from its second step on


def command(out: Path, data: Path, *more: str, checkpoint_every: int = 3) -> list[str]:
    fields = ["--steps", str(STEPS), "--data", str(data), "--val", "null"]
    fields += ["--tokenizer.image_size", "64", "--batch_size", "4"]
    own = ["--device", "cpu", "--precision", "float32", "--workers", "0", "--log-every", "1"]
    own += ["--checkpoint-every", str(checkpoint_every)]
    return ["train", "tokenizer", RECIPE, "--out", str(out), *own, *fields, *more]


def begin(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def kill_with_children(process: subprocess.Popen) -> None:
    """torchrun's workers have sessions of their own and would go on without it."""
    torchrun = psutil.Process(process.pid)
    for one in [*torchrun.children(recursive=True), torchrun]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


def complete(arguments: list[str]) -> str:
    process = begin(arguments)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return out


def run(ranks: int, words: list[str]) -> str:
    """A command on one rank, which is this process, or on two; what it printed."""
    if ranks == 2:
        return complete([*TORCHRUN, *words])
    with redirect_stdout(StringIO()) as printed:
        assert main(words) == 0
    return printed.getvalue()


def state(out: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Every tensor of a run's last checkpoint."""
    folder = out / "checkpoints" / f"step-{steps:07d}"
    assert (folder / "state.json").is_file()
    return {f"{file.stem}/{k}": v for file in folder.glob("*.safetensors") for k, v in read_tensors(file).items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        close = torch.allclose(found[name], tensor, atol=ROUNDING, rtol=1e-4)
        assert close, (name, (found[name] - tensor).abs().max())


def lines_of(out: Path) -> int:
    path = out / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_lines(process: subprocess.Popen, out: Path, wanted: int) -> None:
    deadline = time.monotonic() + 300
    while lines_of(out) < wanted:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_emoji(tmp_path_factory.mktemp("images") / "emoji")


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(1, command(out, data))
    return out


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=FSDP)])
def test_two_processes_equal_one(alone: Path, data: Path, tmp_path: Path, parallel: str):
    out = run(2, command(tmp_path / "run", data, "--parallel", parallel, "--json"))
    assert out.count('"model"') == 1  # one answer, not two
    assert_same(state(tmp_path / "run"), state(alone))
    assert lines_of(alone) == lines_of(tmp_path / "run") == STEPS
    models = [read_tensors(folder / "model" / "model.safetensors") for folder in (alone, tmp_path / "run")]
    assert_same(models[1], models[0])


@pytest.mark.parametrize(("parallel", "ranks"), [("ddp", 1), ("ddp", 2), pytest.param("fsdp", 1, marks=FSDP)])
def test_both_killed_and_resumed_as_one_or_two(alone: Path, data: Path, tmp_path: Path, parallel: str, ranks: int):
    """Both optimizers, the averages and LeCAM go on where the last checkpoint stands, at any number of ranks."""
    out = tmp_path / "run"
    process = begin([*TORCHRUN, *command(out, data, "--parallel", parallel)])
    wait_for_lines(process, out, random.Random(ranks).randint(4, 7))
    kill_with_children(process)
    run(ranks, command(out, data, "--parallel", parallel, "--resume"))
    assert_same(state(out), state(alone))
    meta = read_json(out / "checkpoints" / f"step-{STEPS:07d}" / "state.json")
    assert meta["step"] == STEPS


def test_told_to_stop_all_ranks_stop_after_the_same_step_and_the_run_is_saved(data: Path, tmp_path: Path):
    out = tmp_path / "run"
    process = begin([*TORCHRUN, *command(out, data, "--steps", "5000", checkpoint_every=5000)])
    wait_for_lines(process, out, 3)
    os.kill(process.pid, signal.SIGTERM)  # torchrun hands it on
    _, errors = process.communicate(timeout=200)
    assert "stopped by SIGTERM" in errors
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert int(checkpoint.name.split("-")[1]) == lines_of(out)
    assert {path.stem for path in checkpoint.glob("*.safetensors")} == PARTS
