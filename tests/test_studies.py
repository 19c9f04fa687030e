"""The runner of long trainings: what is missing is run, what was stopped goes on, hand-overs are enough."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from softvq import Tokenizer
from softvq.cli import train
from softvq.cli.main import app, main
from softvq.recipes.opening import open_recipe
from tests.pictures import few_emoji

ROOT = Path(__file__).parent.parent
RUNNER = ROOT / "studies" / "run.py"
SMALL = ("--tokenizer.encoder.width", "64", "--tokenizer.decoder.width", "64", "--tokenizer.encoder.heads", "2")
TRAIN = (
    *(
        "train",
        "tokenizer",
        "emoji-64-quick",
        "--out",
        "{run}",
        "--data",
        "IMAGES",
        "--val",
        "null",
        "--workers",
        "0",
    ),
    *(*SMALL, "--tokenizer.decoder.heads", "2", "--batch_size", "4"),
)


def write_list(folder: Path, *runs: dict) -> Path:
    """A list of runs on a few images, which lie beside it."""
    path, images = folder / "list.json", few_emoji(folder / "images")
    told = json.dumps({"runs": [{"hours": 0.1, **run} for run in runs]})
    path.write_text(told.replace('"IMAGES"', json.dumps(str(images))))
    return path


def run(folder: Path, list_: Path, *more: str, wait: bool = True) -> subprocess.Popen:
    places = ("--runs", str(folder / "runs"), "--handovers", str(folder / "handovers"), "--log", str(folder / "log"))
    process = subprocess.Popen(
        [sys.executable, RUNNER, list_, *places, *more],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if wait:
        assert process.wait(120) == 0, (folder / "log").read_text()
    return process


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Tokenizer.from_pretrained(folder).state_dict()


def test_stages_follow_each_other_and_what_is_done_is_not_run_again(tmp_path: Path):
    stages = write_list(
        tmp_path,
        {"name": "one", "command": [*TRAIN, "--steps", "2"]},
        {"name": "two", "command": [*TRAIN, "--steps", "1", "--init", "{handovers}/one"]},
        {"name": "seen", "command": ["decode", "--help"], "result": "{runs}/one/model/config.json"},
    )
    run(tmp_path, stages, "--only", "one")
    assert {path.name for path in (tmp_path / "handovers").iterdir()} == {"one"}
    whole, half = weights(tmp_path / "runs" / "one" / "model"), weights(tmp_path / "handovers" / "one")
    parameters = dict(Tokenizer.from_pretrained(tmp_path / "handovers" / "one").named_parameters())
    for name, tensor in half.items():
        assert torch.equal(tensor, whole[name].half().float() if name in parameters else whole[name])
    # Elsewhere, with the hand-over alone: the second stage starts from it, the first is not run.
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "handovers").mkdir(parents=True)
    (tmp_path / "handovers" / "one").rename(elsewhere / "handovers" / "one")
    run(elsewhere, stages, "--only", "one", "two")
    assert not (elsewhere / "runs" / "one").exists()
    told = (elsewhere / "log").read_text()
    assert told.count("softvq train") == 1
    assert "nothing is missing" in told
    made = json.loads((elsewhere / "handovers" / "two" / "config.json").read_text())
    assert made["about"]["recipe"]["init"] == str(elsewhere / "handovers" / "one")


def test_a_stopped_stage_goes_on_and_ends_as_if_it_had_not_been_stopped(tmp_path: Path):
    runs = {"name": "one", "command": [*TRAIN, "--steps", "12", "--checkpoint-every", "3", "--log-every", "1"]}
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    for folder in (stopped, straight):
        folder.mkdir()
    process = run(stopped, write_list(stopped, runs), "--every", "0.1", wait=False)
    checkpoints = stopped / "runs" / "one" / "checkpoints"
    deadline = time.monotonic() + 100
    while not any(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    part = stopped / "handovers" / "one-part"
    step = max(int(path.name[5:]) for path in checkpoints.glob("step-*"))
    assert json.loads((part / "config.json").read_text())["about"]["step"] == step
    lost = tmp_path / "lost"  # another machine, which has the part alone
    shutil.copytree(stopped / "handovers", lost / "handovers")
    told = (stopped / "log").read_text()
    assert "one: ended with 143: " in told
    assert "the run is saved" in told
    run(stopped, stopped / "list.json")
    assert not part.exists()
    places = {"{run}": str(straight / "run"), "IMAGES": str(few_emoji(straight / "images"))}
    assert main([places.get(word, word) for word in runs["command"]]) == 0
    found, wanted = weights(stopped / "runs" / "one" / "model"), weights(straight / "run" / "model")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    run(lost, write_list(lost, runs))
    assert {path.name for path in (lost / "handovers").iterdir()} == {"one"}
    recipe = json.loads((lost / "handovers" / "one" / "config.json").read_text())["about"]["recipe"]
    assert (recipe["init"], recipe["steps"]) == (str(lost / "handovers" / "one-part"), 12 - step)


def test_a_stage_that_takes_too_long_is_stopped_and_says_where_it_stands(tmp_path: Path):
    list_ = write_list(tmp_path, {"name": "one", "command": [*TRAIN, "--steps", "100000", "--log-every", "1"]})
    process = run(tmp_path, list_, "--hours", "0.002", "--every", "1", wait=False)
    assert process.wait(100) == 143
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d one: 0\.00 h, ", (tmp_path / "log").read_text(), re.MULTILINE)


def test_a_dry_run_says_what_is_missing_and_an_unknown_name_is_refused(tmp_path: Path):
    list_ = write_list(tmp_path, {"name": "one", "command": [*TRAIN]}, {"name": "two", "command": [*TRAIN]})
    (tmp_path / "handovers" / "one").mkdir(parents=True)
    (tmp_path / "handovers" / "one" / "config.json").write_text("{}")
    told = run(tmp_path, list_, "--dry-run").stdout.read().splitlines()
    assert [line.split()[:2] for line in told] == [["one", "done"], ["two", "missing"]]
    assert run(tmp_path, list_, "--only", "three", wait=False).wait(60) == 2
    assert run(tmp_path, tmp_path / "none.json", wait=False).wait(60) == 2


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.json")), ids=lambda path: path.name)
def test_every_command_of_a_list_is_understood(path: Path):
    """Recipes and fields exist and fit each other; runs come after those that they go on from."""
    seen: set[str] = set()
    for entry in json.loads(path.read_text())["runs"]:
        what, *words = entry["command"]
        for word in words:
            for earlier in re.findall(r"\{(?:handovers|runs)\}/([\w-]+)", word):
                assert earlier in seen, f"{entry['name']} needs {earlier}, which does not stand before it"
        seen.add(entry["name"])
        assert 0 < entry["hours"] <= 2.5
        if what == "train":
            words = [re.sub(r"\{\w+\}/", "", word) for word in entry["command"]]
            command, bound, _ = app().parse_args(words, exit_on_error=False, print_error=False)
            assert command in (train.tokenizer, train.generator)
            open_recipe(
                *train.recipe_and_fields(bound.args)[:1], command.__name__, train.recipe_and_fields(bound.args)[1]
            )


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_what_is_handed_over_names_no_folder_of_a_machine(name: str):
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "studies" / "handovers").glob(f"*/{name}")]
    assert texts
    assert [place for text in texts for place in re.findall(r"[\s\"'=`]/\w[^\s\"'`]*", text)] == []
