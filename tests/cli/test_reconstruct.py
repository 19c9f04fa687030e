"""`softvq reconstruct`: a picture, scores, latents in a file; and what cannot be reconstructed."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.running import softvq


def test_reconstruct_writes_the_picture_and_prints_the_scores(emoji: Path, tmp_path: Path):
    code, out, err = softvq("reconstruct", emoji, "--out", tmp_path / "r.png")
    assert code == 0
    assert "1024 latent floats an image, 12.0 times fewer" in out
    assert err == ""
    width, height = Image.open(tmp_path / "r.png").size
    assert width >= 3 * 128
    assert height >= 128


def test_reconstruct_warns_about_what_the_model_does_not_know(photo: Path, tmp_path: Path):
    code, out, err = softvq("reconstruct", photo, "--out", tmp_path / "r.png", "--json")
    assert code == 0
    assert "SoftVQVAE/softvq-l-64" in err
    assert json.loads(out)["warning"] in err


def test_one_bad_image_does_not_stop_the_others(emoji: Path, tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, out, err = softvq("reconstruct", tmp_path, "--out", tmp_path / "out" / "r.png", "--json")
    result = json.loads(out)
    assert code == 0
    assert [Path(row["image"]).name for row in result["images"]] == ["emoji.webp"]
    assert list(result["skipped"]) == [str(tmp_path / "bad.png")]
    assert "bad.png" in err


@pytest.mark.parametrize("fit", ["crop", "resize", "pad"])
def test_other_sizes_are_fitted_by_choice(photo: Path, tmp_path: Path, fit: str):
    code, out, _ = softvq("reconstruct", photo, "--fit", fit, "--out", tmp_path / "r.png", "--json")
    assert code == 0
    assert json.loads(out)["fit"] == fit


def test_no_space_is_a_sentence(emoji: Path, tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "r.png"))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = softvq("reconstruct", emoji, "--out", tmp_path / "r.png")
    assert code == 1
    assert "No space left on device" in err
    assert not (tmp_path / "r.png").exists()
