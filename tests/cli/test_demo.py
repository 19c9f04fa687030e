"""`softvq demo`: the bundled tokenizer beside plain methods; or one that is trained first."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from softvq import Tokenizer
from tests.cli.running import PROGRESS, softvq


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """What is told as JSON and for people, and the folder."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        told: list[Any] = []

        def remember(*arguments: Any) -> Any:
            told.append(demonstrate(*arguments))
            return told[-1]

        from softvq.evaluation import demonstration

        demonstrate = demonstration.demonstrate
        patch.setattr(demonstration, "demonstrate", remember)
        code, text, errors = softvq("demo")
    assert code == 0, errors
    assert all(PROGRESS.match(line) for line in errors.splitlines()), errors
    return told[0].to_dict(), text, folder


def test_demo_prints_the_table_and_writes_the_picture(shown):
    result, text, folder = shown
    assert [row["method"] for row in result["rows"]] == ["softvq (softvq-emoji-64)", "PCA", "box-downsampling"]
    assert result["rows"][0]["images"] == 280
    assert "280 bundled validation images" in text
    for row in result["rows"]:
        assert f"{row['psnr']:.2f}  {row['ssim']:.4f}" in text
    with Image.open(folder / "softvq-demo" / "reconstruction.png") as picture:
        assert min(picture.size) > 300
    assert text.endswith("picture: softvq-demo/reconstruction.png\n")


def test_the_demos_figures_are_those_stored_with_the_model(shown):
    about = Tokenizer.from_pretrained("softvq-emoji-64").about
    assert shown[0]["rows"][0]["psnr"] == pytest.approx(about["figures"]["psnr"], abs=0.02)


def test_one_that_is_trained_first_is_shown(tmp_path: Path, monkeypatch):
    """--steps are those of the recipe emoji-64-quick; the model that was trained is the one that is shown."""
    from softvq.evaluation import demonstration
    from softvq.training import run

    seen: list[Any] = []

    def train(task: Any, options: Any) -> Path:
        seen.extend([task.recipe.name, task.recipe.steps, options.out])
        Tokenizer.from_pretrained("softvq-emoji-64").save_pretrained(options.out / "model")
        return options.out / "model"

    def demonstrate(coder: Any, name: str) -> None:
        seen.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(demonstration, "demonstrate", demonstrate)
    assert softvq("demo", "--train", "--steps", 3, "--out", tmp_path)[0] == 130
    assert seen == ["emoji-64-quick", 3, tmp_path / "run", f"softvq ({tmp_path / 'run' / 'model'})"]
