"""`softvq train` as a user meets it: fields and options, runs, what is validated, logged and told."""

import json
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from softvq import Generator
from softvq.cli import train
from softvq.errors import ConfigError
from softvq.files import read_json
from softvq.training.tokenizer import TokenizerTask
from tests.cli.conftest import CLASSES
from tests.cli.running import refusal, result, softvq
from tests.cli.test_output import SLIGHT, THIN


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 30, 0)).save(folder / f"{number}.png")
    return folder


def about(run: Path) -> dict[str, Any]:
    return read_json(run / "model" / "config.json")["about"]


# ---- A recipe's name and fields


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["emoji-64"], {}),
        (["emoji-64", "--steps", "3", "--optimizer.lr=1e-3"], {"steps": "3", "optimizer.lr": "1e-3"}),
        (["--steps", "3", "--optimizer.lr=1e-3", "emoji-64"], {"steps": "3", "optimizer.lr": "1e-3"}),
        (["--steps", "3", "emoji-64", "--batch-size", "-2"], {"steps": "3", "batch_size": "-2"}),
        (["emoji-64", "--weights={}", "--note=a=b"], {"weights": "{}", "note": "a=b"}),
        (["emoji-64", "--steps", "3", "--steps", "4"], {"steps": "4"}),
    ],
)
def test_fields_stand_before_or_behind_the_recipe(words: list[str], fields: dict[str, str]):
    assert train.recipe_and_fields(words) == ("emoji-64", fields)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which recipe"),
        (["--steps", "3"], "which recipe"),
        (["emoji-64", "--steps"], "--steps needs a value"),
        (["emoji-64", "--steps", "--seed", "3"], "--steps needs a value"),
        (["emoji-64", "emoji-128"], "'emoji-128' is one word too many"),
    ],
)
def test_odd_words_are_a_sentence(words: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        train.recipe_and_fields(words)


# ---- Runs


def test_a_run_on_own_images_is_not_validated_on_emoji(images: Path, emoji: Path, tmp_path: Path):
    words = ("train", "tokenizer", "emoji-64-quick", "--data", images, "--out", tmp_path / "run", *THIN, "--json")
    code, out, err = softvq(*words)
    assert code == 0
    assert "validating on nothing: give --val FOLDER (or --val emoji-val) to measure as it goes" in err
    assert json.loads(out) == {"model": str(tmp_path / "run" / "model"), "steps": 1, "figures": None}
    assert about(tmp_path / "run")["recipe"]["val"] is None
    assert about(tmp_path / "run")["command"].startswith("softvq train tokenizer emoji-64-quick --data")
    assert softvq("reconstruct", emoji, "--model", tmp_path / "run", "--out", tmp_path / "r.png")[0] == 0


@pytest.mark.parametrize("more", [("--val", "null"), ("--val", "{images}"), ("--data", "emoji-dev")])
def test_it_is_said_where_nothing_was_said_of_it_alone(images: Path, tmp_path: Path, monkeypatch, more: tuple):
    """Who names validation images, or none, need not be told; nor who trains on the bundled images' own."""
    monkeypatch.setattr(TokenizerTask, "describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    filled = [word.format(images=images) for word in more]
    data = () if "--data" in more else ("--data", images)
    err = softvq("train", "tokenizer", "emoji-64-quick", *data, *filled, "--out", tmp_path / "run")[2]
    assert ("validating on nothing" in err) == ("--data" in more)


def test_the_same_command_goes_on_and_more_steps_are_longer(images: Path, tmp_path: Path):
    words = [
        "train",
        "tokenizer",
        "emoji-64-quick",
        "--data",
        images,
        "--val",
        "null",
        "--out",
        tmp_path / "run",
        *THIN,
    ]
    assert refusal(2, *words, "--resume") == (
        f"--resume: {tmp_path / 'run'} holds no run to resume; leave --resume out to start one."
    )
    assert result(*words)["steps"] == 1
    assert result(*words, "--resume", "--steps", 2)["steps"] == 2  # the last --steps counts
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss/total" in line][-1] == 2


def test_a_dry_run_tells_and_makes_nothing(images: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("train", "tokenizer", "emoji-64-quick", "--data", images, "--val", "null", *THIN, "--dry-run")
    code, out, err = softvq(*words)
    assert code == 0, err
    assert re.match(r"emoji-64-quick: 1 step of 2 images; nothing was started\.\n", out)
    assert result(*words)
    assert not list(tmp_path.iterdir())


def test_a_generator_is_trained_and_draws(tiny: Path, gallery: Path, tmp_path: Path):
    own = ("--model", tiny / "tokenizer", "--workers", 0)
    assert softvq("encode", gallery, "--out", tmp_path / "latents", *own)[0] == 0
    words = ("train", "generator", *SLIGHT, "emoji-sit", "--data", tmp_path / "latents", "--out", tmp_path / "run")
    told = result(*words)
    assert told["model"] == str(tmp_path / "run" / "model")
    assert (tmp_path / "run" / "samples" / "step-0000001.png").is_file()
    generator = Generator.from_pretrained(tmp_path / "run")
    assert generator.about["tokenizer"]["name"] == str(tiny / "tokenizer")
    assert generator.about["classes"] == ["cat", "dog"] != CLASSES
    picture = tmp_path / "s.png"
    assert softvq("sample", "--model", told["model"], "-n", 3, "--class", "dog", "--seed", 5, "--out", picture)[0] == 0
    assert read_json(picture.with_suffix(".json"))["labels"] == [1, 1, 1]
    found = refusal(1, *words[:-1], tmp_path / "other", "--init", "no-such-model")
    assert "no-such-model" in found


def test_a_tiny_twin_trains_offline_and_its_model_loads(tmp_path: Path):
    own = ["--out", tmp_path / "run", "--workers", "0", "--steps", "2", "--data", "emoji-dev", "--val", "null"]
    model = result("train", "tokenizer", "softvq-l-64-tiny", *own)["model"]
    assert "softvq train tokenizer softvq-l-64-tiny" in (Path(model) / "README.md").read_text()
    Image.new("RGB", (128, 128), "red").save(tmp_path / "e.png")
    assert softvq("reconstruct", tmp_path / "e.png", "--model", model, "--out", tmp_path / "r.png")[0] == 0


def test_pretrained_weights_that_cannot_be_had_say_what_to_do(images: Path, tmp_path: Path):
    words = ("train", "tokenizer", "softvq-s-64", "--data", images, "--val", "null", "--out", tmp_path / "run")
    assert "'timm/vit_small_patch14_dinov2.lvd142m' is no folder here" in refusal(1, *words)


def test_validation_measures_lpips_and_rfid_too(photo: Path, tmp_path: Path):
    (tmp_path / "val").mkdir()
    for number in range(3):
        (tmp_path / "val" / f"{number}.png").write_bytes(photo.read_bytes())
    words = ("train", "tokenizer", "softvq-s-64-tiny", "--data", tmp_path / "val", "--val", tmp_path / "val")
    options = ("--out", tmp_path / "run", "--steps", 1, "--workers", 0, "--rfid", "tiny_inception")
    figures = result(*words, *options)["figures"]
    assert figures["lpips"] > 0
    assert figures["rfid"] > 0
    assert figures["rfid_reliable"] is False  # three images
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = next(line for line in lines if "val/rfid" in line)
    assert scores["val/lpips"] == pytest.approx(figures["lpips"], rel=1e-3)


def test_weights_and_biases_gets_what_the_log_does(images: Path, tmp_path: Path, monkeypatch):
    began, logged = [], []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            logged.append("finished")

    def init(**options):
        began.append(options)
        return Run()

    fake = types.SimpleNamespace(init=init, Image=lambda image: image, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    every = ("--log-every", 1, "--checkpoint-every", 2, "--sample-every", 4, "--wandb", "project")
    words = ("train", "tokenizer", "emoji-64-quick", "--data", images, "--val", "null", *THIN, "--steps", 4, *every)
    assert softvq(*words, "--out", tmp_path / "run")[0] == 0
    assert began[0]["project"] == "project"
    assert began[0]["config"]["recipe"]["batch_size"] == 2
    assert [entry[0] for entry in logged[:-1] if "loss/total" in entry[1]] == [1, 2, 3, 4]
    assert logged[-1] == "finished"
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    assert softvq(*words, "--out", tmp_path / "run")[0] == 0
    assert began[1]["id"] == began[0]["id"]  # a resumed run goes on in the same one
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'softvq[wandb]'" in refusal(1, *words, "--out", tmp_path / "other")


def test_a_runs_options_reach_it(images: Path, tmp_path: Path, monkeypatch):
    from softvq.training import run

    seen: list[Any] = []

    def stop(task: Any, options: Any) -> None:
        seen.append((task, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", stop)
    words = ("--workers", 3, "--parallel", "fsdp", "--most-bad", 0.5, "--recompute", "--compile", "--wandb", "p")
    every = ("--log-every", 1, "--checkpoint-every", 2, "--sample-every", 3)
    named = ("--pretrained", f"vgg16={__file__}", "--plugin", "a.py", "--rfid", "tiny_inception")
    where = ("--device", "cpu", "--precision", "float32")
    monkeypatch.setattr("softvq.plugins.load", lambda file: None)
    code, _, err = softvq("train", "tokenizer", "emoji-64-quick", *words, *every, *named, *where, "--steps", 7)
    assert (code, err) == (130, "softvq: stopped.\n")
    ((task, options),) = seen
    assert (task.recipe.steps, task.rfid) == (7, "tiny_inception")
    assert options.out == Path("runs/emoji-64-quick")
    assert (options.workers, options.parallel, options.most_bad) == (3, "fsdp", 0.5)
    assert (options.recompute, options.compile, options.wandb) == (True, True, "p")
    assert (options.intervals.log, options.intervals.checkpoint, options.intervals.samples) == (1, 2, 3)
    assert (str(options.device), options.precision) == ("cpu", "float32")
    assert options.pretrained == {"vgg16": Path(__file__)}
    assert options.command == "softvq train tokenizer emoji-64-quick --steps 7 --plugin a.py"
    assert isinstance(task, TokenizerTask)
