"""`softvq train` as a user meets it: fields, runs, what is validated and logged."""

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from softvq.cli.main import main
from tests.cli.running import softvq


def test_a_run_on_own_images_is_not_validated_on_emoji(emoji: Path, tmp_path: Path):
    thin = json.dumps({"width": 16, "depth": 1, "heads": 1, "patch_size": 8, "layer_scale": None})
    fields = ["--tokenizer.encoder", thin, "--tokenizer.decoder", thin, "--batch-size", "2", "--steps", "2"]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / emoji.name).write_bytes(emoji.read_bytes())
    own = ["--data", tmp_path / "images", "--out", tmp_path / "run", "--workers", "0", "--json"]
    code, out, err = softvq("train", "tokenizer", "emoji-64-quick", *own, *fields)
    assert code == 0
    assert "validating on nothing" in err
    assert json.loads(out)["figures"] is None
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["about"]
    assert about["recipe"]["val"] is None
    assert about["command"].startswith("softvq train tokenizer emoji-64-quick --data")
    assert softvq("reconstruct", emoji, "--model", tmp_path / "run", "--out", tmp_path / "r.png")[0] == 0


def test_a_tiny_twin_trains_offline_and_its_model_loads(tmp_path: Path):
    own = ["--out", tmp_path / "run", "--workers", "0", "--steps", "2", "--val", "null", "--json"]
    code, out, err = softvq("train", "tokenizer", "softvq-l-64-tiny", *own)
    assert code == 0, err
    model = json.loads(out)["model"]
    assert "softvq train tokenizer softvq-l-64-tiny" in (Path(model) / "README.md").read_text()
    picture = tmp_path / "r.png"
    emoji = tmp_path / "e.png"
    Image.new("RGB", (128, 128), "red").save(emoji)
    assert softvq("reconstruct", emoji, "--model", model, "--out", picture)[0] == 0


def test_pretrained_weights_that_cannot_be_had_say_what_to_do(emoji: Path):
    code, _, err = softvq("train", "tokenizer", "softvq-s-64", "--data", emoji.parent)
    assert code == 1
    assert "'timm/vit_small_patch14_dinov2.lvd142m' is no folder here" in err


def test_validation_measures_lpips_and_rfid_too(photo: Path, tmp_path: Path):
    for number in range(3):
        (tmp_path / "val").mkdir(exist_ok=True)
        (tmp_path / "val" / f"{number}.png").write_bytes(photo.read_bytes())
    arguments = [
        "train",
        "tokenizer",
        "softvq-s-64-tiny",
        "--data",
        str(tmp_path / "val"),
        "--val",
        str(tmp_path / "val"),
    ]
    options = ["--out", str(tmp_path / "run"), "--steps", "1", "--workers", "0", "--rfid", "tiny_inception"]
    code, out, err = softvq(*arguments, *options, "--json")
    assert code == 0, err
    figures = json.loads(out)["figures"]
    assert figures["lpips"] > 0
    assert figures["rfid"] > 0
    assert figures["rfid_reliable"] is False  # three images
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = next(line for line in lines if "val/rfid" in line)
    assert scores["val/lpips"] == pytest.approx(figures["lpips"], rel=1e-3)


def test_weights_and_biases_gets_what_the_log_does(
    capsys, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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
    arguments = [
        "train",
        "tokenizer",
        "emoji-64-quick",
        "--out",
        str(tmp_path / "run"),
        "--workers",
        "0",
        "--val",
        "null",
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photo.png").write_bytes(photo.read_bytes())
    arguments += ["--data", str(tmp_path / "data")]
    small = ["--batch_size", "2", "--steps", "4", "--log-every", "1", "--checkpoint-every", "2", "--sample-every", "4"]
    assert main([*arguments, *small, "--wandb", "project"]) == 0
    assert began[0]["project"] == "project"
    assert began[0]["config"]["recipe"]["batch_size"] == 2
    assert [entry[0] for entry in logged[:-1] if "loss/total" in entry[1]] == [1, 2, 3, 4]
    assert logged[-1] == "finished"
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    assert main([*arguments, *small, "--wandb", "project"]) == 0
    assert began[1]["id"] == began[0]["id"]  # a resumed run goes on in the same one
    monkeypatch.setitem(sys.modules, "wandb", None)
    arguments[arguments.index("--out") + 1] = str(tmp_path / "other")
    assert main([*arguments, *small, "--wandb", "project"]) == 1
    assert "pip install 'softvq[wandb]'" in capsys.readouterr().err
