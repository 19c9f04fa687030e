"""`softvq statistics`: fitted on one's images, stored with the model or beside it."""

import shutil
from pathlib import Path

import pytest
import torch

from softvq import Tokenizer
from softvq.data.sources import Folder
from softvq.statistics import fit_statistics, statistics_batches
from tests.cli.running import refusal, result, softvq


def fitted(tiny: Path, gallery: Path, num: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    batches = statistics_batches(Folder(gallery), 16, num, 32)
    return fit_statistics(Tokenizer.from_pretrained(tiny / "tokenizer"), [batch.images for batch in batches])


def test_statistics_are_stored_in_another_folder(tiny: Path, gallery: Path, tmp_path: Path):
    before = (tiny / "tokenizer" / "model.safetensors").read_bytes()
    words = ("statistics", tiny / "tokenizer", "--data", gallery, "--out", tmp_path / "fitted")
    told = result(*words)
    mean, std = fitted(tiny, gallery)
    assert told["mean"] == pytest.approx(mean.tolist(), rel=1e-5)
    assert told["std"] == pytest.approx(std.tolist(), rel=1e-5)
    assert (told["images"], told["unreadable"], told["model"]) == (7, {}, str(tmp_path / "fitted"))
    stored = Tokenizer.from_pretrained(tmp_path / "fitted")
    assert stored.latent_mean.tolist() == told["mean"]
    assert stored.latent_std.tolist() == told["std"]
    assert (tiny / "tokenizer" / "model.safetensors").read_bytes() == before
    code, out, err = softvq(*words, "--batch-size", 2)
    assert (code, err) == (0, "")
    assert out == (
        f"latent mean {mean.mean():.4g}, standard deviation {std.mean():.4g} (over channels), of 7 images; "
        f"stored in {tmp_path / 'fitted'}\n"
    )


def test_or_in_the_models_own(tiny: Path, gallery: Path, tmp_path: Path):
    """The largest number that is asked for; twice gives the same, not the statistics of what is normalised already."""
    model = Path(shutil.copytree(tiny / "tokenizer", tmp_path / "mine"))
    told = [result("statistics", model, "--data", gallery, "-n", 4) for _ in range(2)]
    assert told[0]["images"] == 4
    assert told[0]["std"] == pytest.approx(fitted(tiny, gallery, 4)[1].tolist(), rel=1e-5)
    assert told[1]["std"] == pytest.approx(told[0]["std"], rel=1e-4)
    assert Tokenizer.from_pretrained(model).latent_std.tolist() == told[1]["std"]


def test_unreadable_images_are_said_and_left_out(tiny: Path, gallery: Path, tmp_path: Path):
    folder = Path(shutil.copytree(gallery, tmp_path / "images"))
    (folder / "cat" / "bad.png").write_bytes(b"no image")
    words = ("statistics", tiny / "tokenizer", "--data", folder, "--out", tmp_path / "out")
    code, out, err = softvq(*words)
    assert code == 0
    assert err.startswith("skipped: cat/bad.png")
    assert err.count("\n") == 1
    assert ", of 7 images; " in out
    assert list(result(*words)["unreadable"]) == ["cat/bad.png"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("{tiny}/tokenizer", "-n", 1), 2, "num must be at least 2"),
        (("{tiny}/tokenizer", "--batch-size", 0), 2, "batch_size must be at least 1, not 0"),
        (("softvq-emoji-64",), 2, "softvq-emoji-64 is no finished model's folder to write to; name one (--out)."),
        (("nowhere",), 2, "nowhere is no finished model's folder to write to"),
        (("{tiny}/generator", "--out", "x"), 1, "holds a 'generator', not a 'tokenizer'"),
    ],
)
def test_what_cannot_be_fitted_is_a_sentence(tiny: Path, gallery: Path, tmp_path, monkeypatch, words, code, said: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("an image was encoded"))
    filled = [str(word).format(tiny=tiny) for word in words]
    assert said in refusal(code, "statistics", *filled, "--data", gallery)
