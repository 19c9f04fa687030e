"""`softvq reconstruct`: a picture, scores, latents in a file; and what cannot be reconstructed."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from softvq import Tokenizer
from softvq.data.opening import open_source
from softvq.evaluation import comparison
from softvq.files import read_tensors
from softvq.models import Coder
from tests.cli.running import refusal, result, softvq


def test_reconstruct_writes_the_picture_and_prints_the_scores(emoji: Path, tmp_path: Path):
    code, out, err = softvq("reconstruct", emoji, "--out", tmp_path / "r.png")
    assert (code, err) == (0, "")
    (row,) = result("reconstruct", emoji, "--out", tmp_path / "r.png")["images"]
    lines = out.splitlines()
    assert lines[0].split() == ["image", "PSNR", "dB", "SSIM"]
    assert lines[1].split() == [str(emoji), f"{row['psnr']:.2f}", f"{row['ssim']:.4f}"]
    assert "1,024 numbers an image, 12.0 times fewer than its 64×64 pixels have" in out
    assert lines[-1] == f"picture: {tmp_path / 'r.png'}"
    width, height = Image.open(tmp_path / "r.png").size
    assert width >= 3 * 128
    assert height >= 128


def test_of_several_images_the_mean_is_told_too(tiny: Path, gallery: Path, tmp_path: Path):
    hound, own = gallery / "dog" / "hound.png", ("--model", tiny / "tokenizer", "--out", tmp_path / "r.png")
    words = ("reconstruct", gallery / "cat", hound, *own)
    told = result(*words)
    names = [*(f"cat/{name}.png" for name in ("0", "1", "7", "tabby")), "dog/hound.png"]
    assert [row["image"] for row in told["images"]] == [str(gallery / name) for name in names]
    assert told["psnr"] == pytest.approx(sum(row["psnr"] for row in told["images"]) / 5)
    *_, last, _, _ = softvq(*words)[1].splitlines()
    assert last.split() == ["mean", f"{told['psnr']:.2f}", f"{told['ssim']:.4f}"]
    one = result(
        "reconstruct", gallery / "dog" / "hound.png", "--model", tiny / "tokenizer", "--out", tmp_path / "r.png"
    )
    assert told["images"][-1]["psnr"] == pytest.approx(one["psnr"], rel=1e-4)


def test_data_by_name_and_some_of_it_evenly(tiny: Path, gallery: Path, tmp_path: Path):
    own = ("--model", tiny / "tokenizer", "--out", tmp_path / "r.png")
    names = open_source("emoji-val").names
    told = result("reconstruct", "emoji-val", "-n", 3, *own)
    assert [row["image"] for row in told["images"]] == [names[0], names[round((len(names) - 1) / 2)], names[-1]]
    assert len(result("reconstruct", gallery, "-n", 100, *own)["images"]) == 7


def test_reconstruct_warns_about_what_the_model_does_not_know(photo: Path, tmp_path: Path):
    code, out, err = softvq("reconstruct", photo, "--out", tmp_path / "r.png", "--json")
    assert code == 0
    assert "SoftVQVAE/softvq-l-64" in err
    told = json.loads(out)
    assert told["warning"] in err
    assert told["outside"] == [str(photo)]


def test_one_bad_image_does_not_stop_the_others(emoji: Path, tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, out, err = softvq("reconstruct", tmp_path, "--out", tmp_path / "out" / "r.png", "--json")
    told = json.loads(out)
    assert code == 0
    assert [Path(row["image"]).name for row in told["images"]] == ["emoji.webp"]
    assert list(told["unreadable"]) == [str(tmp_path / "bad.png")]
    assert err.startswith("skipped: ")
    assert "bad.png" in err


@pytest.mark.parametrize("fit", ["crop", "resize", "pad"])
def test_other_sizes_are_fitted_by_choice(photo: Path, tmp_path: Path, fit: str):
    assert result("reconstruct", photo, "--fit", fit, "--out", tmp_path / "r.png")["fit"] == fit


def test_latents_are_saved_as_they_are(tiny: Path, gallery: Path, tmp_path: Path):
    own = ("--model", tiny / "tokenizer", "--out", tmp_path / "r.png", "--save-latents", tmp_path / "l.safetensors")
    code, out, err = softvq("reconstruct", gallery, *own, "--batch-size", 3)
    assert (code, err) == (0, "")
    assert f"latents: {tmp_path / 'l.safetensors'}; try: softvq decode {tmp_path / 'l.safetensors'}" in out
    found = read_tensors(tmp_path / "l.safetensors")["latents"]
    tokenizer = Tokenizer.from_pretrained(tiny / "tokenizer")
    files = sorted(str(path) for path in gallery.rglob("*.png"))
    expected = comparison.compare(Coder(tokenizer), files, latents=True).latents
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("ending", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_the_picture_is_of_the_kind_that_its_name_says(tiny: Path, gallery: Path, tmp_path: Path, ending, kind: str):
    result("reconstruct", gallery, "--model", tiny / "tokenizer", "--out", tmp_path / f"r.{ending}")
    with Image.open(tmp_path / f"r.{ending}") as picture:
        assert picture.format == kind


def test_no_space_is_a_sentence(emoji: Path, tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "r.png"))

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refusal(1, "reconstruct", emoji, "--out", tmp_path / "r.png")
    assert not (tmp_path / "r.png").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--out", "r.gif"), 2, "r.gif: a picture is written as .png, .jpg, .jpeg, .webp (--out)."),
        (("--out", "r"), 2, "r: a picture is written as .png, .jpg, .jpeg, .webp (--out)."),
        (("--num", 0), 2, "num must be at least 1, not 0 (--num)."),
        (("--batch-size", 0), 2, "batch_size must be at least 1, not 0 (--batch-size)."),
        (("--shown", 0), 2, "shown must be at least 1, not 0 (--shown)."),
        (("nowhere",), 1, "nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(
    tiny: Path, gallery: Path, tmp_path, monkeypatch, words, code, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("an image was encoded"))
    images = () if words == ("nowhere",) else (gallery,)
    assert said in refusal(code, "reconstruct", *images, "--model", tiny / "tokenizer", *words)
    assert not list(tmp_path.iterdir())


def test_an_image_is_never_overwritten_by_its_picture(tiny: Path, gallery: Path):
    own = sorted(path for path in gallery.rglob("*") if path.is_file())[0]
    before = own.read_bytes()
    for words in ((own, "--out", own), (gallery, "--out", own), (own, "--save-latents", own)):
        said = refusal(2, "reconstruct", *words, "--model", tiny / "tokenizer")
        assert f"{own} is one of the images; name another file to write." in said or ".png, .jpg" in said
    assert own.read_bytes() == before


def test_data_of_ones_own_is_reconstructed_by_its_name(tmp_path: Path):
    plugin = Path(__file__).parents[1] / "extension" / "source.py"
    found = result("reconstruct", "Stripes", "--plugin", plugin, "--num", 2, "--out", tmp_path / "a.png")
    assert [row["image"] for row in found["images"]] == ["stripes-0.png", "stripes-11.png"]
