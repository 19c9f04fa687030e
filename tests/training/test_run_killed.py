"""Runs in processes of their own: killed at random, told to stop, and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

STEPS, INTERVAL = 40, 7
VIT = json.dumps({"width": 16, "depth": 1, "heads": 1, "patch_size": 8, "layer_scale": None})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def command(pictures: Path, out: Path, *more: str) -> list[str]:
    fields = {
        **{"tokenizer.encoder": VIT, "tokenizer.decoder": VIT, "tokenizer.image_size": "16", "tokenizer.tokens": "4"},
        **{"tokenizer.latent_dim": "4", "tokenizer.quantizer.inner.codebook_size": "8", "batch_size": "8"},
        **{"data": str(pictures), "val": "null", "steps": str(STEPS), "init": "vit"},
    }
    words = [word for name, value in fields.items() for word in (f"--{name}", value)]
    own = ["--out", str(out), "--workers", "1", "--log-every", "1", "--checkpoint-every", str(INTERVAL)]
    return [sys.executable, "-m", "softvq", "train", "tokenizer", "emoji-64", "--device", "cpu", *own, *words, *more]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def finish(arguments: list[str]) -> subprocess.CompletedProcess:
    process = start(arguments)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def logged_steps(out: Path) -> int:
    """The last step whose line is whole in the log."""
    path = out / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    deadline = time.monotonic() + 200
    while logged_steps(out) < step and process.poll() is None:
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.01)


def newest(out: Path) -> Path:
    return max((out / "checkpoints").glob("step-*"))


def test_killed_at_random_and_resumed_is_bitwise_the_uninterrupted_run(pictures: Path, tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finish(command(pictures, whole)).returncode == 0
    rng = random.Random(0)
    for first, last in ((2, 6), (10, 18), (24, 36)):  # 30 images, 8 a step: mid-epoch every time
        process = start(command(pictures, cut))
        wait_for_step(process, cut, rng.randint(first, last))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = logged_steps(cut)
        saved = max([0, *(int(path.name.split("-")[1]) for path in (cut / "checkpoints").glob("step-*"))])
        assert done - saved <= INTERVAL
    assert finish(command(pictures, cut, "--resume")).returncode == 0
    for part in ("model", "model-average", "model-optimizer"):
        assert newest(whole).name == newest(cut).name == f"step-{STEPS:07d}"
        files = [newest(out) / f"{part}.safetensors" for out in (whole, cut)]
        assert files[0].read_bytes() == files[1].read_bytes(), part
    assert (whole / "model" / "model.safetensors").read_bytes() == (cut / "model" / "model.safetensors").read_bytes()
    assert (whole / "log.jsonl").read_text() == (cut / "log.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_and_exits(pictures: Path, tmp_path: Path, number: int):
    out = tmp_path / "run"
    process = start(command(pictures, out, "--steps", "100000"))
    wait_for_step(process, out, 3)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do: the workers get it too
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name}" in errors
    assert "Traceback" not in errors
    assert int(newest(out).name.split("-")[1]) == logged_steps(out)


def test_resume_where_there_is_nothing(pictures: Path, tmp_path: Path):
    result = finish(command(pictures, tmp_path / "none", "--resume"))
    assert result.returncode == 2
    assert "holds no run" in result.stderr
