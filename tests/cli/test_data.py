"""What is in the data is what is used, at the command line: names of any bytes, any terminal, columns, no labels."""

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import Tokenizer
from softvq.data.latents import Latents
from softvq.generators.base import Generator
from tests.cli.running import refusal, result, softvq
from tests.data.test_shards import write

ODD = os.fsdecode(b"caf\xe9")  # in Latin-1, as old archives have it
needs_bytes = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Six images of two classes, one of which has a name that is no text, and so have its images."""
    folder = tmp_path / ODD
    for number in range(6):
        path = folder / (ODD if number % 2 else "b\na\x1b[31m") / f"{number}{ODD}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


@needs_bytes
def test_names_that_are_no_text_are_encoded(odd: Path, tiny: Path, tmp_path: Path):
    own = ("--model", tiny / "tokenizer", "--workers", 0)
    assert result("encode", odd, "--out", tmp_path / "latents", *own)["images"] == 6
    cache = Latents(tmp_path / "latents")
    assert cache.names == sorted(str(path.relative_to(odd)) for path in odd.rglob("*.png"))
    assert cache.index.classes == ["b\na\x1b[31m", ODD]
    assert cache.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert Path(cache.index.source) == odd
    again = result("encode", odd, "--out", tmp_path / "latents", *own)  # which knows its own work
    assert again["images"] == 6


@needs_bytes
def test_names_that_are_no_text_are_reconstructed(odd: Path, tiny: Path, tmp_path: Path):
    first = min(odd.rglob("*.png"))
    for data in (odd, first):
        code, out, err = softvq("reconstruct", data, "--model", tiny / "tokenizer", "--out", tmp_path / f"{ODD}.png")
        assert (code, err) == (0, "")
        assert (tmp_path / f"{ODD}.png").is_file()
        (tmp_path / f"{ODD}.png").unlink()
    out.encode("utf-8", "surrogateescape")


@needs_bytes
def test_a_run_on_names_that_are_no_text_writes_checkpoints_and_a_model_that_loads(odd: Path, tmp_path: Path):
    (odd / "bad.png").write_bytes(b"no image")
    (odd / f"bad{ODD}.png").write_bytes(b"no image")
    run = tmp_path / "run"
    words = ("train", "tokenizer", "emoji-64-quick", "--data", odd, "--out", run, "--workers", 0, "--batch-size", 8)
    assert result(*words, "--most-bad", 1, "--steps", 1)["model"] == str(run / "model")
    assert result(*words, "--most-bad", 1, "--steps", 2)["model"] == str(run / "model")  # from its checkpoint
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-0000001", "step-0000002"}
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert ODD in json.dumps(told, ensure_ascii=False)
    model = Tokenizer.from_pretrained(run / "model")
    assert model.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 16)


@needs_bytes
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_terminal_shows_any_name(encoding: str, odd: Path, tiny: Path, tmp_path: Path):
    """In processes of their own: the standard streams are made as they start."""
    image = min(odd.rglob(f"*{ODD}.png"))
    commands = [
        ["recipes"],
        ["report", "--help"],
        ["reconstruct", str(image), "--model", str(tiny / "tokenizer"), "--out", str(tmp_path / f"é→{ODD}.png")],
        ["reconstruct", str(odd / f"none{ODD}→\x1b[31m.png")],
    ]
    script = f"from softvq.cli.main import main\nprint([main(words) for words in {commands!r}])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert out.splitlines()[-1] == "[0, 0, 0, 1]", err
    assert "Traceback" not in err
    assert "emoji-64-quick" in out
    assert "softvq report evaluations --out results.md" in out
    assert r"caf\udce9" in out
    [said] = err.splitlines()[-1:]
    assert said.startswith("softvq: ")
    assert r"none" in said
    assert "\x1b" not in said


# Which part of a sample is its image, and which its label


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    files = {}
    for number in range(4):
        files |= {f"{number}.before.png": picture(number), f"{number}.after.png": picture(number + 4)}
        files |= {f"{number}.cls": str(number).encode(), f"{number}.coarse": str(number // 2).encode()}
    return write(tmp_path / "a.tar", files)


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if find_spec("datasets") is None:
        pytest.skip("pip install 'softvq[data]'")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    classes = {"cls": datasets.ClassLabel(num_classes=4), "coarse": datasets.ClassLabel(num_classes=2)}
    features = datasets.Features({"before.png": datasets.Image(), "after.png": datasets.Image(), **classes})
    images = [{"bytes": picture(number), "path": None} for number in range(8)]
    rows = {"before.png": images[:4], "after.png": images[4:], "cls": [0, 1, 2, 3], "coarse": [0, 0, 1, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


@pytest.mark.parametrize("kind", ["shard", "parquet"])
def test_images_and_labels_are_those_that_are_named(kind: str, tiny: Path, tmp_path: Path, request):
    data = request.getfixturevalue(kind)
    own = ("--model", tiny / "tokenizer", "--workers", 0, "--no-mirror")
    for columns, named in ((), "before.png, after.png"), (("--image-column", "after.pn"), "after.png"):
        code, out, err = softvq("encode", data, "--out", tmp_path / "refused", *own, *columns)
        said = err.splitlines()[-1]  # after what the library of datasets says of its progress
        assert (code, out) == (1, ""), err
        assert named in said
        assert said.endswith("(--image-column).")
    plain = tmp_path / "plain"
    for number in range(4):
        (plain / f"{number}.png").parent.mkdir(exist_ok=True)
        (plain / f"{number}.png").write_bytes(picture(number + 4))
    result("encode", plain, "--out", tmp_path / "plain-latents", *own)
    for label, labels in (("cls", [0, 1, 2, 3]), ("coarse", [0, 0, 1, 1]), ("none", [0, 0, 0, 0])):
        out = tmp_path / label
        columns = ("--image-column", "after.png", "--label-column", label)
        assert result("encode", data, "--out", out, *own, *columns)["images"] == 4
        assert Latents(out).labels.tolist() == labels
        for index in range(4):
            expected = Latents(tmp_path / "plain-latents").read(index, 0)
            assert (Latents(out).read(index, 0) == expected).all()
    assert not (tmp_path / "refused").exists()


# Images without a label


def test_a_generator_of_classes_refuses_unlabelled_images_and_one_without_takes_them(tiny: Path, tmp_path: Path):
    files = {f"{number}.png": picture(number) for number in range(4)} | {"0.cls": b"1", "1.cls": b"0", "2.cls": b"-1"}
    data, latents = write(tmp_path / "a.tar", files), tmp_path / "latents"
    code, _, err = softvq("encode", data, "--model", tiny / "tokenizer", "--out", latents, "--workers", 0)
    assert code == 0
    assert err.endswith("a.tar: 2 images of 4 have no label, the first a.tar/2.png: unlabelled.\n")
    assert Latents(latents).labels.tolist() == [1, 0, -1, -1]
    words = ("train", "generator", "emoji-sit", "--data", latents, "--out", tmp_path / "run", "--steps", 1)
    words = (*words, "--batch-size", 4)
    said = refusal(2, *words)
    assert said.startswith(f"2 images of 4 in {latents} have no label, and the generator is trained on classes; ")
    setting = said.partition("train without classes (")[2].partition(")")[0]
    key, _, value = setting.partition(": ")
    model = result(*words, f"--{key}", value)["model"]  # what the sentence says is what helps
    assert Generator.from_pretrained(model).config.sizes.classes == 0
