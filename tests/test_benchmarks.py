"""Every script in benchmarks/ as a user runs it, on a few images, in seconds; what it writes stays out of the
repository."""

import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image

from softvq import Generator, Tokenizer, files, hub
from softvq.data.opening import open_source
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
BUNDLED = "softvq-emoji-64"


def run(script: str, *words: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a script as `python benchmarks/SCRIPT` does, but in this process, which has imported what takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setattr("sys.argv", [str(BENCHMARKS / script), *map(str, words)])
        try:
            runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    assert code == 0, err.getvalue()
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two of the validation images of each of the nine classes."""
    root, source = tmp_path_factory.mktemp("images") / "emoji", open_source("emoji-val")
    for label, name in enumerate(source.classes):
        (root / name).mkdir(parents=True)
        for index in [i for i, found in enumerate(source.labels) if found == label][:2]:
            (root / source.names[index]).write_bytes(source.read(index))
    return root


@pytest.fixture(autouse=True)
def untouched_repository() -> Iterator[None]:
    """What scripts write by default is what it was."""

    def state() -> dict[Path, int]:
        places = (BENCHMARKS / "results", ROOT / "softvq" / "assets")
        return {path: path.stat().st_mtime_ns for place in places for path in place.rglob("*")}

    before = state()
    yield
    assert state() == before


def test_every_script_has_a_test():
    """Of its own name."""
    scripts = [path.stem for path in BENCHMARKS.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()]
    assert "objective" in scripts
    assert [name for name in scripts if f"test_{name}" not in globals()] == []


def test_ablate(tmp_path: Path, emoji: Path):
    """A variant in one step of two images."""
    small = ["--steps", 1, "--data", emoji, "--val", emoji, "--batch-size", 2]
    told = run("ablate.py", "--only", "eq4", "--runs", "mine", "--out", "told.json", *small, cwd=tmp_path).stdout
    result = read(tmp_path / "told.json")
    assert result["command"].startswith("python benchmarks/ablate.py --only eq4")
    (row,) = result["rows"]
    assert (row["variant"], row["steps"]) == ("eq4", 1)
    assert 5 < row["psnr"] < 25
    assert re.search(rf"eq4 .* {row['psnr']:.2f}  {row['ssim']:.4f}", told)
    assert {"date", "machine", "torch"} <= result.keys()
    told = read(tmp_path / "mine" / "eq4-1" / "run.json")
    recipe = told["recipe"]
    assert (told["steps"], recipe["batch_size"], recipe["data"]) == (1, 2, str(emoji))
    assert recipe["tokenizer"]["quantizer"]["inner"]["distance"] == "euclidean"


def test_bit_for_bit(tmp_path: Path):
    """A checkout equals itself, and no other with another sampler."""
    told = run("bit_for_bit.py", ROOT, ROOT, "--only", "heun", cwd=tmp_path).stdout
    assert re.fullmatch(r"heun +\d+ values and files: equal\n", told)
    shutil.copytree(ROOT / "softvq", tmp_path / "softvq", ignore=shutil.ignore_patterns("__pycache__"))
    samplers = tmp_path / "softvq" / "transports" / "samplers.py"
    text = samplers.read_text(encoding="utf-8")
    assert text.count("0.5 * (first + second)") == 1
    samplers.write_text(text.replace("0.5 * (first + second)", "0.4 * (first + second)"), encoding="utf-8")
    words = [sys.executable, BENCHMARKS / "bit_for_bit.py", ROOT, tmp_path, "--only", "heun"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "differ: heun.npz" in done.stdout


def test_domain(tmp_path: Path, emoji: Path):
    """Emoji are known, noise is not; the limits are the bundled model's own."""
    noise = tmp_path / "noise"
    noise.mkdir()
    for number in range(2):
        Image.effect_noise((64, 64), 60 + number).convert("RGB").save(noise / f"{number}.png")
    words = ["--known", emoji, "--unknown", f"noise={noise}", "--other", f"more={noise}", "--hard", 2]
    told = run("domain.py", *words, "--out", "told.json", cwd=tmp_path).stdout
    written = read(tmp_path / "told.json")
    assert written["limits"] == Tokenizer.from_pretrained(BUNDLED).about["domain_limits"]
    rows = {row["data"]: (row["wanted"], row["images"], row["named"]) for row in written["rows"]}
    assert rows[str(emoji)] == ("none", 18, 0)
    assert rows["noise"] == rows["noise, night"] == ("all", 2, 2)
    assert rows["more"] == ("either", 2, 2)
    assert rows["emoji-val, padded"][1] == 2
    assert "noise, cut out on white" in told


def test_bundle(tmp_path: Path, emoji: Path):
    """The bundled tokenizer as a finished run gives the bundled tokenizer."""
    shipped = hub.BUNDLED / BUNDLED
    shutil.copytree(shipped, tmp_path / "run" / "model")
    shutil.copy(shipped / "log.jsonl", tmp_path / "run")
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 4999, "loss/total": 1.0}\n')
    told = run("bundle.py", "run", "again", "--val", emoji, "--into", "models", cwd=tmp_path).stdout
    folder = tmp_path / "models" / "again"
    assert (folder / "model.safetensors").stat().st_size < 8_000_000
    stored = Tokenizer.from_pretrained(folder)
    assert stored.fingerprint == Tokenizer.from_pretrained(BUNDLED).fingerprint
    figures = stored.about["figures"]
    assert figures["images"] == 18
    assert stored.about["domain"] == figures["data"] == str(emoji)
    assert 27 < figures["psnr"] < 32
    assert 27 < figures["train_psnr"] < 32
    assert (folder / "log.jsonl").read_text() == (shipped / "log.jsonl").read_text()  # every 100th step
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card in told
    assert f"| again | {figures['psnr']:.2f} | {figures['ssim']:.4f} |" in card
    assert "| PCA | 29.22 | 0.8336 |" in card
    assert "weights: reconstruction 1, kl 0.01." in card


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, emoji: Path) -> Path:
    """The folder of a tiny generator with random weights, `run`, and of what generators.py wrote of it, `told.json`."""
    folder, network = tmp_path_factory.mktemp("judged"), TransformerConfig.named("tiny", 64, 16, 9)
    about = {
        "recipe": {"name": "tiny-sit", "steps": 3},
        "tokenizer": {"name": BUNDLED},
        "sampling": {"sampler": "dpm", "steps": 2},
    }
    SiTConfig(network).build(about).save_pretrained(folder / "run" / "model")
    run("generators.py", "run", "--each", 2, "--data", emoji, "--val", emoji, "--out", "told.json", cwd=folder)
    return folder


def test_generators(judged: Path):
    """The validation images are the training images here: every one is known, and is its own nearest."""
    rows = read(judged / "told.json")["rows"]
    assert list(rows) == ["validation images", "their reconstructions", "run"]
    same, again, tiny = rows.values()
    assert (same["images"], again["images"], tiny["images"]) == (18, 18, 18)
    assert same["balanced_accuracy"] == 1.0
    assert same["nearest"] < 0.01 < again["nearest"] < tiny["nearest"]
    assert same["frechet"] < again["frechet"] < tiny["frechet"]
    assert (tiny["recipe"], tiny["steps"], tiny["sampling"]["steps"]) == ("tiny-sit", 3, 2)
    with Image.open(judged / "tiny-sit.png") as picture:
        assert picture.height > 9 * 128  # a row a class
        assert 2 * 128 < picture.width < 3 * 128


def test_bundle_of_a_generator(tmp_path: Path, judged: Path):
    """Its figures, and the command that gave them, are what generators.py wrote."""
    words = ("run", "tiny-sit", "--results", "told.json", "--into", tmp_path / "models")
    run("bundle.py", *words, cwd=judged)
    rows, stored = read(judged / "told.json")["rows"], Generator.from_pretrained(tmp_path / "models" / "tiny-sit")
    figures = stored.about["figures"]
    assert figures["balanced_accuracy"] == rows["run"]["balanced_accuracy"]
    assert figures["validation_frechet"] == rows["validation images"]["frechet"]
    assert figures["command"].startswith("python benchmarks/generators.py run --each 2")
    weights = files.read_tensors(tmp_path / "models" / "tiny-sit" / hub.WEIGHTS)
    assert {weights[name].dtype for name, _ in stored.named_parameters()} == {torch.float16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, emoji: Path) -> Path:
    """The folder of objective.py's two runs of one step each."""
    folder = tmp_path_factory.mktemp("objective")
    run("objective.py", "train", "--steps", 1, "--data", emoji, "--val", emoji, "--out", "runs", cwd=folder)
    return folder / "runs"


def test_objective(trained: Path):
    """One run has pixel and KL terms alone, the other all of Eq. 7."""
    runs = [read(trained / name / "run.json") for name in ("pixels", "whole")]
    pixels, whole = ({**told["recipe"], "steps": told["steps"]} for told in runs)
    assert whole["perceptual"] == whole["alignment"]["teacher"] == "efficientnet-lite0"
    assert pixels["perceptual"] is pixels["alignment"] is pixels["adversarial"] is None
    same = ("data", "batch_size", "steps", "seed", "optimizer", "init", "tokenizer")
    assert [pixels[name] for name in same] == [whole[name] for name in same]
    log = (trained / "whole" / "log.jsonl").read_text()
    assert all(f'"loss/{term}"' in log for term in ("perceptual", "alignment", "adversarial"))


def test_objective_measures_both_runs(tmp_path: Path, trained: Path, emoji: Path):
    """Beside the tokenizer that they go on from."""
    run("objective.py", "measure", "--val", emoji, "--out", trained, "--results", "figures", cwd=tmp_path)
    rows = read(tmp_path / "figures" / "objective.json")["rows"]
    assert list(rows) == ["real", "bundled", "pixels", "whole"]
    for name in ("pixels", "whole"):
        assert rows[name]["psnr"] == pytest.approx(rows["bundled"]["psnr"], abs=0.1)  # after one step of a warm-up
        assert rows[name] != rows["bundled"]
    assert (tmp_path / "figures" / "objective.png").is_file()


def test_objective_measures_what_is_there(tmp_path: Path, emoji: Path):
    """Without runs the bundled tokenizer alone; a measurement that lacks rows is written beside the runs."""
    told = run("objective.py", "measure", "--val", emoji, "--out", "runs", cwd=tmp_path)
    rows = read(tmp_path / "runs" / "objective.json")["rows"]
    assert f"{rows['bundled']['psnr']:.4f}" in told.stdout
    assert list(rows) == ["real", "bundled"]
    assert 27 < rows["bundled"]["psnr"] < 32
    assert 0 < rows["bundled"]["frechet_random_vgg"] < 0.2
    assert 0 < rows["bundled"]["frechet_patches"] < 0.2
    assert rows["bundled"]["gradient_energy"] < rows["real"]["gradient_energy"]
    for name in ("pixels", "whole"):
        assert f"{name}: not measured, there is no model in {Path('runs') / name}" in told.stderr


def test_yardsticks(tmp_path: Path, emoji: Path):
    """As many components as images give those images back; box-downsampling never does."""
    words = ["--sizes", 64, "--floats", 6, 17, "--data", emoji, "--val", emoji, "--out", "told.json"]
    told = run("yardsticks.py", *words, cwd=tmp_path).stdout
    result = read(tmp_path / "told.json")
    assert (result["data"], result["fit"]) == (str(emoji), "crop")
    rows = {(row["method"], row["floats"]): row for row in result["rows"]}
    assert list(rows) == [(method, n) for n in (6, 17) for method in ("PCA", "box-downsampling")]
    assert all(row["images"] == 18 and row["size"] == 64 for row in result["rows"])
    assert rows["PCA", 17]["psnr"] > 50 > rows["PCA", 6]["psnr"] > rows["box-downsampling", 6]["psnr"]
    assert f"{rows['PCA', 6]['psnr']:.2f}" in told
