"""A recipe as a file: shown, edited, trained; and a model's recipe trained again."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from softvq.cli.main import main
from softvq.errors import ConfigError
from softvq.files import read_json, read_tensors
from softvq.recipes.opening import open_recipe, recipe_text
from tests.pictures import few_emoji

SMALL = {
    "batch_size": "2",
    "steps": "2",
    "val": "null",
    "image_size": "32",
    "perceptual": "null",
    "alignment": "null",
    "adversarial": "null",
}
WORDS = ["--workers", "0", "--device", "cpu", "--precision", "float32"]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`softvq recipes softvq-s-64-tiny > mine.yaml`, edited as one would."""
    import contextlib
    import io

    folder, out = tmp_path_factory.mktemp("recipes"), io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["recipes", "softvq-s-64-tiny"]) == 0
    text = out.getvalue()
    for field in ("perceptual", "alignment", "adversarial"):  # blocks, and their weights and schedules
        text = re.sub(rf"^  {field}:.*\n(    .*\n)*", "", text, flags=re.M)
        text = re.sub(rf"^{field}:.*\n(  .*\n)*", f"{field}: null\n", text, flags=re.M)
    text = re.sub(r"^schedules:.*\n(  .*\n)*", "schedules: {}\n", text, flags=re.M)
    for field, value in {**SMALL, "data": str(few_emoji(folder / "emoji"))}.items():
        text = re.sub(rf"^( *){field}: .*$", rf"\g<1>{field}: {value}", text, flags=re.M)
    (folder / "mine.yaml").write_text(text.replace("encoder_weights: tiny_", "encoder_weights: null # tiny_"))
    return folder / "mine.yaml"


@pytest.fixture(scope="module")
def trained(mine: Path) -> Path:
    assert main(["train", "tokenizer", str(mine), "--out", str(mine.parent / "one"), *WORDS]) == 0
    return mine.parent / "one"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "model" / "model.safetensors")


def test_an_edited_file_is_trained(trained: Path):
    recipe = read_json(trained / "model" / "config.json")["about"]["recipe"]
    assert (recipe["steps"], recipe["batch_size"], recipe["tokenizer"]["image_size"]) == (2, 2, 32)
    assert recipe["perceptual"] is None
    assert recipe["encoder_weights"] is None


@pytest.mark.parametrize("given", ["one", "one/model", "one/model/config.json"])
def test_a_models_recipe_is_trained_again_and_makes_the_same_model(given: str, trained: Path, tmp_path: Path):
    assert main(["train", "tokenizer", str(trained.parent / given), "--out", str(tmp_path), *WORDS]) == 0
    again = weights(tmp_path)
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(trained).items())


def test_a_models_recipe_is_shown_and_read_again(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["recipes", str(trained)]) == 0
    (tmp_path / "again.yml").write_text(capsys.readouterr().out)
    words = ["--out", str(tmp_path / "run"), *WORDS, "--seed", "3"]
    assert main(["train", "tokenizer", str(tmp_path / "again.yml"), *words]) == 0
    again = weights(tmp_path / "run")  # options come after the file
    assert not all(torch.equal(tensor, again[name]) for name, tensor in weights(trained).items())


def test_a_file_names_its_run(mine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tokenizer", str(mine), *WORDS]) == 0
    assert (tmp_path / "runs" / "mine" / "model").is_dir()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nabout: b\nbatch_sise: 3\n", "unknown key 'batch_sise'; did you mean batch_size"),
        ("name: a\nabout: b\n", "lacks the key 'tokenizer'"),
        ("- 1\n", "must hold an object"),
        ("name: [\n", "cannot be read"),
        ("{}\n", "lacks the key 'name'"),
    ],
)
def test_what_is_wrong_in_a_file_is_a_sentence(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "odd.yaml").write_text(text)
    assert main(["train", "tokenizer", str(tmp_path / "odd.yaml")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "odd.yaml" in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there_is_a_sentence(capsys: pytest.CaptureFixture):
    assert main(["train", "tokenizer", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "softvq: there is no file 'nowhere.yaml'.\n"


def test_a_recipes_name_comes_before_a_folder_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji-64").mkdir()
    assert open_recipe("emoji-64").name == "emoji-64"
    with pytest.raises(ConfigError, match="holds no model, whose recipe could be told"):
        open_recipe("./emoji-64")


def test_a_slip_in_a_generators_file_is_not_called_a_tokenizers(tmp_path: Path):
    text = recipe_text(open_recipe("emoji-sit")).replace("model:", "modle:")
    (tmp_path / "slip.yaml").write_text(text)
    with pytest.raises(ConfigError, match="unknown key 'modle'; did you mean model"):
        open_recipe(tmp_path / "slip.yaml", "generator")


def test_a_models_recipe_has_its_own_name_as_its_run(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tokenizer", str(trained / "model" / "config.json"), *WORDS]) == 0
    assert (tmp_path / "runs" / "softvq-s-64-tiny" / "model").is_dir()


def test_a_run_inside_its_own_images_is_refused(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture):
    """Its sample grids would be training images from the next start on."""
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "link").symlink_to(tmp_path)
    for data, out in ((tmp_path, tmp_path / "runs" / "x"), (tmp_path / "link", tmp_path / "runs" / "x")):
        assert main(["train", "tokenizer", str(mine), "--data", str(data), "--out", str(out), *WORDS]) == 2
        assert "would become images of the run; use another folder (--out)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
