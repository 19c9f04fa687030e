"""What the command line does where standard output is closed or full, or the environment says half of a group."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softvq import distributed, progress
from softvq.cli.main import main
from softvq.errors import ConfigError
from tests.cli.running import refusal


def shell(line: str) -> tuple[int, str]:
    """Run a line of a shell in which `softvq` is the command; gives its exit code and what it says of errors."""
    command = line.replace("softvq", f'"{sys.executable}" -m softvq')
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("softvq recipes >&-", "softvq: standard output is closed; redirect it, to a file or /dev/null.\n"),
        ("softvq --help >&-", "softvq: standard output is closed; redirect it, to a file or /dev/null.\n"),
        ("softvq recipes >&- 2>&-", ""),
        ("softvq recipes > /dev/full", "softvq: standard output cannot be written (No space left on device).\n"),
        ("softvq recipes --json > /dev/full", "softvq: standard output cannot be written (No space left on device).\n"),
        ("softvq --help > /dev/full", "softvq: standard output cannot be written (No space left on device).\n"),
    ],
)
def test_output_that_cannot_be_written_is_said(line: str, said: str):
    assert shell(line) == (1, said)


def test_closed_errors_are_no_error():
    assert shell("softvq recipes 2>&- > /dev/null")[0] == 0


def test_control_characters_of_a_name_reach_no_terminal(tmp_path: Path):
    """A file's name may hold escapes that clear the screen, or lines of its own."""
    said = refusal(1, "encode", tmp_path / "a\x1b[2J\x07b\rc", "--out", tmp_path / "out")
    assert "a\\x1b[2J\\x07b\\rc" in said


GROUP = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "4"}, "has WORLD_SIZE=4 but no RANK, MASTER_ADDR, MASTER_PORT: start several processes with"),
        ({"RANK": "1"}, "has RANK=1 but no WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start"),
        (GROUP | {"MASTER_PORT": ""}, "has WORLD_SIZE=2 but no MASTER_PORT: start several processes with torchrun"),
        (GROUP | {"WORLD_SIZE": "two"}, "has WORLD_SIZE='two', which is no number"),
        (GROUP | {"RANK": "-1"}, "has RANK='-1', which is no number"),
        (GROUP | {"RANK": "2"}, "has RANK=2, of WORLD_SIZE=2 processes: start several processes with torchrun"),
    ],
)
def test_half_a_group_of_processes_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
):
    for name in GROUP:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert said in refusal(2, "encode", "emoji-val", "--out", tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": ""}])
def test_one_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]):
    for name in GROUP:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.start(torch.device("cpu")) == torch.device("cpu")
    assert not distributed.active()
    assert not progress.is_quiet()


def test_a_gpu_of_a_group_is_the_one_that_it_names(monkeypatch: pytest.MonkeyPatch):
    """All processes would share the first."""
    for name, value in (GROUP | {"LOCAL_RANK": ""}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="has WORLD_SIZE=2 but no LOCAL_RANK"):
        distributed.start(torch.device("cuda"))


def test_a_group_that_cannot_be_joined_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    for name, value in (GROUP | {"MASTER_PORT": "99999999"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"the group of processes cannot be joined \(.+\); start them with torchrun"):
        distributed.start(torch.device("cpu"))


def test_a_process_whose_peer_has_ended_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def fail(*_, **__):
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:554] Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setattr("softvq.recipes.all.listing", fail)
    assert main(["recipes"]) == 1
    assert capsys.readouterr().err == "softvq: another process of this group has ended, and this one with it.\n"


def test_what_an_encoding_has_not_is_escaped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", output := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["recipes", "softvq-l-64"]) == 0
    assert main(["recipes"]) == 0
    output.flush()
    text = output.buffer.getvalue().decode("ascii")
    assert "softvq-l-64" in text
