"""What commands share: progress, quiet, where they write, and what they say to try next."""

import contextlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from softvq import Pipeline, Tokenizer, progress
from softvq.cli.main import main
from softvq.evaluation import comparison, cost, demonstration, generation, latent_space, probe, reconstruction
from softvq.evaluation.measuring import Measuring
from softvq.training.generator import GeneratorTask
from softvq.training.tokenizer import TokenizerTask
from tests.cli.running import PROGRESS, refusal, softvq
from tests.test_progress import Terminal

THIN = [
    *("--tokenizer.encoder", '{"width": 16, "depth": 1, "heads": 1, "patch_size": 8}', "--tokenizer.decoder"),
    *('{"width": 16, "depth": 1, "heads": 1, "patch_size": 8}', "--batch-size", "2", "--workers", "0", "--steps", "1"),
]
SLIGHT = [
    *("--model.network.width", "12", "--model.network.depth", "1", "--model.network.heads", "1"),
    *("--batch-size", "2", "--workers", "0", "--steps", "1"),
]


# ---- Progress


def short(tiny: Path, gallery: Path, out: Path) -> dict[str, list[object]]:
    """Commands that take some steps."""
    own = ("--model", tiny / "tokenizer", "--out", out)
    draw = ("sample", "--model", tiny / "generator", "-n", 3, "--batch-size", 2)
    return {
        "encode": ["encode", gallery, *own, "--workers", 0, "--batch-size", 4],
        "reconstruct": ["reconstruct", gallery, "--model", tiny / "tokenizer", "--out", out / "r.png"],
        "sample": [*draw, "--out", out / "s.png"],
        "separate": [*draw, "--separate", "--out", out],
        "array": [*draw, "--npz", out / "s.npz"],
        "statistics": ["statistics", tiny / "tokenizer", "--data", gallery, "--out", out],
    }


SAID = {  # in which words, the first line and the last
    "encode": ("encoding: 4 of 7 images, ", "encoding: 7 of 7 images, 0 s left"),
    "reconstruct": ("reconstructing: 7 of 7 images, ", "reconstructing: 7 of 7 images, 0 s left"),
    "sample": ("images 1 to 2: 1 of 2 steps, ", "images 3 to 3: 2 of 2 steps, 0 s left"),
    "separate": ("sampling: 2 of 3 images, ", "sampling: 3 of 3 images, 0 s left"),
    "array": ("sampling: 3 of 3 images, ", "sampling: 3 of 3 images, 0 s left"),
    "statistics": ("encoding: 7 of 7 images, ", "encoding: 7 of 7 images, 0 s left"),
}


@pytest.mark.parametrize("name", SAID)
def test_lines_where_there_is_no_terminal_and_none_where_it_is_quiet(
    tiny: Path, gallery: Path, tmp_path: Path, monkeypatch, name: str
):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    code, _, err = softvq(*short(tiny, gallery, tmp_path / "loud")[name])
    assert code == 0, err
    lines = err.splitlines()
    assert all(PROGRESS.match(line) for line in lines), err
    assert lines[0].startswith(SAID[name][0])
    assert lines[-1] == SAID[name][1]
    code, out, err = softvq(*short(tiny, gallery, tmp_path / "quiet")[name], "--quiet")
    assert (code, err) == (0, "")
    assert out


@pytest.mark.parametrize("name", ["encode", "sample", "separate"])
def test_bars_on_a_terminal_and_none_where_it_is_quiet(tiny: Path, gallery: Path, tmp_path: Path, name: str):
    told = {}
    for how in ([], ["--quiet"]):
        words = [str(word) for word in (*short(tiny, gallery, tmp_path / str(len(how)))[name], *how)]
        with contextlib.redirect_stderr(Terminal()) as terminal, contextlib.redirect_stdout(Terminal()):
            assert main(words) == 0
        told[len(how)] = terminal.getvalue()
    assert SAID[name][1].split(":")[0] in told[0]
    assert re.search(r"\r.*\d/\d", told[0])
    assert told[1] == ""


def test_short_commands_say_nothing_on_standard_error(tiny: Path, gallery: Path, tmp_path: Path):
    """Lines are ten seconds apart."""
    for name in ("encode", "sample"):
        assert softvq(*short(tiny, gallery, tmp_path / name)[name])[2] == ""


def test_one_command_that_is_quiet_does_not_silence_the_next():
    assert softvq("recipes", "emoji-64", "--quiet")[0] == 0
    assert not progress.is_quiet()


# ---- Where results are written


def fails(*_: Any, **__: Any) -> None:
    pytest.fail("the work was begun")


WRITING = {  # what a command is asked, with a folder or file below a file to write to, and what its work is
    "demo": ("demo --out {out}", (demonstration, "demonstrate")),
    "reconstruct": ("reconstruct {gallery} --out {out}/r.png", (comparison, "compare")),
    "reconstruct latents": ("reconstruct {gallery} --save-latents {out}/l.st", (comparison, "compare")),
    "encode": ("encode {gallery} --model {tiny}/tokenizer --out {out}", (Tokenizer, "encode")),
    "decode": ("decode {latents} --out {out}", (Tokenizer, "decode")),
    "sample": ("sample --model {tiny}/generator --out {out}/a.png", (Pipeline, "images")),
    "sample separate": ("sample --model {tiny}/generator --separate --out {out}", (Pipeline, "images")),
    "sample npz": ("sample --model {tiny}/generator --npz {out}/a.npz", (Pipeline, "images")),
    "train tokenizer": ("train tokenizer emoji-64-quick --out {out}", (TokenizerTask, "build")),
    "train generator": ("train generator emoji-sit --data {latents} --out {out}", (GeneratorTask, "build")),
    "statistics": ("statistics {tiny}/tokenizer --data {gallery} --out {out}", (Tokenizer, "encode")),
    "evaluate reconstruction": ("evaluate reconstruction --out {out}", (reconstruction, "evaluate_reconstruction")),
    "evaluate generation": ("evaluate generation --out {out}", (generation, "evaluate_generation")),
    "evaluate reference": (
        "evaluate reference --data {gallery} --size 16 --to {out}/ref.npz --features tiny_inception",
        (Measuring, "parts"),
    ),
    "evaluate reference out": (
        "evaluate reference --data {gallery} --to r.npz --out {out}",
        (Measuring, "parts"),
    ),
    "probe": ("probe --out {out}", (probe, "probe")),
    "latents": ("latents --out {out}", (latent_space, "latent_space")),
    "bench cost": ("bench cost emoji-64 --out {out}", (cost, "cost")),
}


@pytest.fixture(scope="module")
def latents(tiny: Path, gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "latents"
    assert softvq("encode", gallery, "--model", tiny / "tokenizer", "--out", folder, "--workers", 0)[0] == 0
    return folder


@pytest.mark.parametrize("name", WRITING)
def test_where_nothing_can_be_written_it_is_said_before_the_work(
    tiny: Path, gallery: Path, latents: Path, tmp_path: Path, monkeypatch, name: str
):
    text, (where, work) = WRITING[name]
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    monkeypatch.setattr(where, work, fails)
    filled = text.format(out="file/out", gallery=gallery, tiny=tiny, latents=latents)
    found = refusal(1, *shlex.split(filled))
    assert re.fullmatch(r"file/out.* cannot be written: file is a file\.", found)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_no_file_and_a_file_no_folder(tiny: Path, gallery: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("file").write_text("")
    own = ("--model", tiny / "tokenizer")
    assert refusal(1, "reconstruct", gallery, *own, "--out", "folder.png") == "folder.png is a folder; name a file."
    assert refusal(1, "encode", gallery, *own, "--out", "file") == "file is a file; name a folder."


# ---- What is tried next


def tried(out: str) -> list[str]:
    """The words of the command behind `try: `."""
    (line,) = re.findall(r"try: (softvq .*)$", out, re.MULTILINE)
    return shlex.split(line)[1:]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images whose name needs quotes."""
    folder = tmp_path_factory.mktemp("own") / "my images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_what_is_tried_next_runs_as_it_is_printed(images: Path, tmp_path: Path, monkeypatch):
    """From images to a tokenizer, its latents, a generator, and what it draws: each command as the one before says."""
    monkeypatch.chdir(tmp_path)
    code, out, err = softvq("train", "tokenizer", "emoji-64-quick", "--data", images, "--out", "my run", *THIN)
    assert code == 0, err
    words = tried(out)
    assert words[:2] == ["reconstruct", str(images)]
    code, out, err = softvq(*words)
    assert code == 0, err
    assert "picture: reconstruction.png" in out
    code, out, err = softvq("encode", images, "--model", "my run", "--out", "my latents", "--workers", 0)
    assert code == 0, err
    words = tried(out)
    assert words == ["train", "generator", "emoji-sit", "--data", "my latents"]
    code, out, err = softvq(*words, *SLIGHT)  # which is shorter
    assert code == 0, err
    words = tried(out)
    assert words == ["sample", "--model", "runs/emoji-sit/model"]
    code, out, err = softvq(*words)
    assert code == 0, err
    assert Path("samples.png").is_file()


def test_a_tokenizer_of_the_bundled_images_is_tried_on_them(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = softvq("train", "tokenizer", "emoji-64-quick", "--data", "emoji-dev", "--val", "emoji-dev", *THIN)
    assert code == 0, err
    words = tried(out)
    assert words == ["reconstruct", "emoji-dev", "--num", "16", "--model", "runs/emoji-64-quick/model"]
    code, out, err = softvq(*words)
    assert code == 0, err
    assert len(out.splitlines()) > 16


def test_latents_that_were_saved_are_decoded_next(tiny: Path, images: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = ("--model", tiny / "tokenizer", "--save-latents", "my latents.safetensors")
    code, out, err = softvq("reconstruct", images, *own)
    assert code == 0, err
    assert tried(out) == ["decode", "my latents.safetensors"]
    code, out, err = softvq(*tried(out))
    assert (code, out) == (0, "3 images in decoded\n"), err
