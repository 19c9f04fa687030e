"""The `softvq` command as a user meets it: in a process of its own where that matters, else through `main`."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq.cli.main import COMMANDS, main
from softvq.files import read_tensors


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A noisy picture, unlike any emoji."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    """One of the validation images, as a file."""
    from softvq.data.opening import open_source

    path = tmp_path / "emoji.webp"
    path.write_bytes(open_source("emoji-val").read(3))
    return path


def softvq(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def in_a_process(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "softvq", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_no_torch_and_teaches(arguments: list[str]):
    code = (
        "import sys\nfrom softvq.cli.main import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) > 10


def test_every_command_shares_its_common_options(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        text = capsys.readouterr().out
        assert all(option in text for option in ("--device", "--precision", "--json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["recontruct"], "no command 'recontruct'; did you mean reconstruct"),
        (["demo", "--trian"], "unknown option --trian; did you mean --train"),
        (["reconstruct"], "required: IMAGE"),
        (["recipes", "emoji-65"], "no recipe 'emoji-65'; did you mean emoji-64"),
        (["train", "tokenizer", "emoji-64", "--stpes", "3"], "unknown option --stpes; did you mean --steps"),
        (["train", "tokenizer", "emoji-64", "--steps"], "--steps needs a value"),
        (["train", "tokenizer", "emoji-64", "steps"], "'steps' stands where an option was expected"),
        (["train", "tokenizer", "emoji-64", "--steps", "many"], 'steps must be a whole number, not "many"'),
        (["train", "tokenizer", "emoji-64", "--tokenizer.tokens", "63"], "63 tokens cannot be split into the 4"),
        (["train", "tokenizer", "emoji-64", "--optimizer.lr", "-1"], "lr must be positive"),
        (["train", "tokenizer", "emoji-64", "--log-every", "0"], "--log-every must be at least 1"),
        (["--device", "cpu", "demo"], "--device stands before the command"),
        (["demo", "--steps", "3"], "--steps goes with --train"),
        (["train", "tokenizer", "emoji-64", "--seed", "-1"], "seed must not be negative"),
        (["train", "tokenizer", "softvq-l-64", "--pretrained", "x"], "--pretrained x: write NAME=FILE"),
        (["train", "tokenizer", "softvq-l-64", "--alignment.teachr", "x"], "did you mean --alignment.teacher"),
        (["train", "tokenizer", "emoji-64", "--workers", "-1"], "workers must not be negative, not -1 (--workers)"),
        (["train", "tokenizer", "emoji-64", "--augment.min-scale", "0.001"], "min_scale must be in [0.1, 1]"),
        (["train", "tokenizer", "emoji-64", "--tokenizer.quantizer", "VQ"], "leave kl out of the weights"),
        (["demo", "--device", "meta"], "softvq runs on cpu, cuda and mps"),
        (["demo", "--device", "tpu"], "the device 'tpu' cannot be used here"),
        (["reconstruct", "a.png", "--out", "a.txt"], "written as .png or .jpg"),
        (["statistics", "softvq-emoji-64", "--data", "emoji"], "name one with --out"),
    ],
)
def test_misunderstood_commands_say_what_to_do(capsys, arguments: list[str], message: str):
    code, out, err = softvq(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("softvq: ")
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "missing.png"], "missing.png does not exist"),
        (["reconstruct", "."], "holds no images"),
        (["reconstruct", "x.png", "--model", "nowhere"], "no model folder 'nowhere'"),
        (["reconstruct", "x.png", "--model", "./nowhere"], "no model folder './nowhere'"),
        (["decode", "missing.safetensors"], "missing.safetensors does not exist"),
        (["train", "tokenizer", "emoji-64", "--data", "nowhere"], "no folder 'nowhere'"),
        (["train", "tokenizer", "softvq-l-64"], "no folder 'imagenet/train'"),
        (["reconstruct", "x.png", "--model", "SoftVQVAE/softvq-l-64"], "'SoftVQVAE/softvq-l-64' is no folder here"),
        (["push", "softvq-emoji-64", "name-without-owner"], "is not a hub name; write owner/name"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(capsys, tmp_path, monkeypatch, arguments: list[str], message: str):
    monkeypatch.chdir(tmp_path)
    code, _, err = softvq(capsys, *arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_reconstruct_writes_the_picture_and_prints_the_scores(capsys, emoji: Path, tmp_path: Path):
    code, out, err = softvq(capsys, "reconstruct", emoji, "--out", tmp_path / "r.png")
    assert code == 0
    assert "1024 latent floats an image, 12.0 times fewer" in out
    assert err == ""
    width, height = Image.open(tmp_path / "r.png").size
    assert width >= 3 * 128
    assert height >= 128


def test_reconstruct_warns_about_what_the_model_does_not_know(capsys, photo: Path, tmp_path: Path):
    code, out, err = softvq(capsys, "reconstruct", photo, "--out", tmp_path / "r.png", "--json")
    assert code == 0
    assert "SoftVQVAE/softvq-l-64" in err
    assert json.loads(out)["warning"] in err


def test_one_bad_image_does_not_stop_the_others(capsys, emoji: Path, tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, out, err = softvq(capsys, "reconstruct", tmp_path, "--out", tmp_path / "out" / "r.png", "--json")
    result = json.loads(out)
    assert code == 0
    assert [Path(row["image"]).name for row in result["images"]] == ["emoji.webp"]
    assert list(result["skipped"]) == [str(tmp_path / "bad.png")]
    assert "bad.png" in err


def test_latents_go_through_a_file(capsys, emoji: Path, photo: Path, tmp_path: Path):
    latents, decoded = tmp_path / "l.safetensors", tmp_path / "decoded"
    picture = tmp_path / "r.png"
    assert softvq(capsys, "reconstruct", emoji, photo, "--save-latents", latents, "--out", picture)[0] == 0
    assert read_tensors(latents)["latents"].shape == (2, 64, 16)
    code, out, _ = softvq(capsys, "decode", latents, "--out", decoded, "--json")
    assert code == 0
    names = [Path(path).name for path in json.loads(out)["images"]]
    assert names == ["000000-emoji.png", "000001-photo.png"]
    assert Image.open(decoded / names[0]).size == (64, 64)


def test_decoding_another_models_latents_is_refused(capsys, tmp_path: Path):
    from softvq.files import write_tensors

    write_tensors(tmp_path / "l.safetensors", {"latents": torch.zeros(1, 32, 64)})
    code, _, err = softvq(capsys, "decode", tmp_path / "l.safetensors")
    assert code == 1
    assert "32 × 64, but softvq-emoji-64 decodes 64 × 16" in err


def test_damaged_latents_are_refused_and_odd_names_are_numbers(capsys, tmp_path: Path):
    from softvq.files import write_tensors

    path = tmp_path / "l.safetensors"
    write_tensors(path, {"latents": torch.full((1, 64, 16), torch.nan)})
    assert softvq(capsys, "decode", path)[2].endswith("the file is damaged.\n")
    for names in ("[", "3", '["one", "two"]'):
        write_tensors(path, {"latents": torch.zeros(1, 64, 16)}, {"names": names})
        code, out, _ = softvq(capsys, "decode", path, "--out", tmp_path / "d", "--json")
        assert code == 0
        assert Path(json.loads(out)["images"][0]).name == "000000.png"


def test_a_run_on_own_images_is_not_validated_on_emoji(capsys, emoji: Path, tmp_path: Path):
    thin = json.dumps({"width": 16, "depth": 1, "heads": 1, "patch_size": 8, "layer_scale": None})
    fields = ["--tokenizer.encoder", thin, "--tokenizer.decoder", thin, "--batch-size", "2", "--steps", "2"]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / emoji.name).write_bytes(emoji.read_bytes())
    own = ["--data", tmp_path / "images", "--out", tmp_path / "run", "--workers", "0", "--json"]
    code, out, err = softvq(capsys, "train", "tokenizer", "emoji-64-quick", *own, *fields)
    assert code == 0
    assert "validating on nothing" in err
    assert json.loads(out)["figures"] is None
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["about"]
    assert about["recipe"]["val"] is None
    assert about["command"].startswith("softvq train tokenizer emoji-64-quick --data")
    assert softvq(capsys, "reconstruct", emoji, "--model", tmp_path / "run", "--out", tmp_path / "r.png")[0] == 0


@pytest.mark.parametrize("fit", ["crop", "resize", "pad"])
def test_other_sizes_are_fitted_by_choice(capsys, photo: Path, tmp_path: Path, fit: str):
    code, out, _ = softvq(capsys, "reconstruct", photo, "--fit", fit, "--out", tmp_path / "r.png", "--json")
    assert code == 0
    assert json.loads(out)["fit"] == fit


def test_statistics_are_stored_in_another_folder(capsys, emoji: Path, tmp_path: Path):
    from softvq import Tokenizer

    data = emoji.parent
    (data / "second.webp").write_bytes(emoji.read_bytes())
    out = tmp_path / "fitted"
    code, text, _ = softvq(capsys, "statistics", "softvq-emoji-64", "--data", data, "--out", out, "--json")
    assert code == 0
    fitted = Tokenizer.from_pretrained(out)
    assert json.loads(text)["std"] == pytest.approx(fitted.latent_std.tolist())
    assert not torch.allclose(fitted.latent_std, Tokenizer.from_pretrained("softvq-emoji-64").latent_std)


def test_recipes_lists_and_shows(capsys):
    code, out, _ = softvq(capsys, "recipes")
    assert code == 0
    assert "softvq-l-64              0.61  SoftVQ-L: 64 tokens × 32, 256 px (Table 1)." in out
    code, out, _ = softvq(capsys, "recipes", "emoji-64", "--json")
    assert json.loads(out)["tokenizer"]["tokens"] == 64


def test_demo_prints_the_table_and_writes_the_picture(tmp_path: Path):
    result = in_a_process("demo", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    table = json.loads(result.stdout)
    assert [row["method"] for row in table["rows"]][1:] == ["PCA", "box-downsampling"]
    assert table["rows"][0]["images"] == 280
    assert (tmp_path / "softvq-demo" / "reconstruction.png").is_file()


def test_the_demos_figures_are_those_stored_with_the_model(tmp_path: Path):
    from softvq import Tokenizer

    about = Tokenizer.from_pretrained("softvq-emoji-64").about
    result = json.loads(in_a_process("demo", "--json", cwd=tmp_path).stdout)
    assert result["rows"][0]["psnr"] == pytest.approx(about["figures"]["psnr"], abs=0.02)


def test_no_space_is_a_sentence(capsys, emoji: Path, tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "r.png"))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = softvq(capsys, "reconstruct", emoji, "--out", tmp_path / "r.png")
    assert code == 1
    assert "No space left on device" in err
    assert not (tmp_path / "r.png").exists()


def test_a_tiny_twin_trains_offline_and_its_model_loads(capsys, tmp_path: Path):
    own = ["--out", tmp_path / "run", "--workers", "0", "--steps", "2", "--val", "null", "--json"]
    code, out, err = softvq(capsys, "train", "tokenizer", "softvq-l-64-tiny", *own)
    assert code == 0, err
    model = json.loads(out)["model"]
    assert "softvq train tokenizer softvq-l-64-tiny" in (Path(model) / "README.md").read_text()
    picture = tmp_path / "r.png"
    emoji = tmp_path / "e.png"
    Image.new("RGB", (128, 128), "red").save(emoji)
    assert softvq(capsys, "reconstruct", emoji, "--model", model, "--out", picture)[0] == 0


def test_pretrained_weights_that_cannot_be_had_say_what_to_do(capsys, emoji: Path):
    code, _, err = softvq(capsys, "train", "tokenizer", "softvq-s-64", "--data", emoji.parent)
    assert code == 1
    assert "'timm/vit_small_patch14_dinov2.lvd142m' is no folder here" in err


def test_validation_measures_lpips_and_rfid_too(capsys, photo: Path, tmp_path: Path):
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
    code, out, err = softvq(capsys, *arguments, *options, "--json")
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
