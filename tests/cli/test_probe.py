"""`softvq probe` as a user meets it: images or latents, a tokenizer or a generator, and what cannot be probed."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from softvq import Generator, Tokenizer
from softvq.data.loader import ordered_batches
from softvq.data.sources import Folder
from softvq.errors import MetricError
from softvq.evaluation import probe
from softvq.evaluation.classifiers import Labelled
from softvq.evaluation.parts import Parts
from softvq.generators.base import Noise
from softvq.generators.dit import DiTConfig
from softvq.generators.mar import MARConfig, MARNetworkConfig
from softvq.generators.transformer import TransformerConfig
from softvq.layers import ViTConfig
from softvq.quantizers.gaussian import AEConfig
from softvq.tokenizer import TokenizerConfig
from tests.cli.running import instead, refusal, softvq
from tests.evaluation.images import draw

VIT = ViTConfig(width=16, depth=1, heads=1, patch_size=8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train (18 images), val (9), and what the bundled tokenizer makes of them."""
    where = tmp_path_factory.mktemp("probe")
    for name, each, seed in (("train", 6, 0), ("val", 3, 1)):
        folder = draw(where / name, each, seed)
        assert softvq("encode", folder, "--out", where / f"{name}-latents", "--workers", 0)[0] == 0
    return where


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MAR, and a tokenizer that made no latents here."""
    where = tmp_path_factory.mktemp("models")
    network = MARNetworkConfig(64, 16, 3, width=32, depth=1, heads=2, head_width=16, head_depth=1, buffer=2)
    MARConfig(network).build().save_pretrained(where / "mar")
    Tokenizer(TokenizerConfig(64, 64, 16, VIT, VIT, AEConfig())).save_pretrained(where / "other")
    return where


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Labelled, Labelled]]:
    """What is probed."""
    found: list[tuple[Labelled, Labelled]] = []
    measure = probe.linear_probe

    def spy(train: Labelled, val: Labelled, *more):
        found.append((train, val))
        return measure(train, val, *more)

    monkeypatch.setattr(probe, "linear_probe", spy)
    return found


def images_of(where: Path, latents: bool = False) -> list[object]:
    end = "-latents" if latents else ""
    return ["--data", where / f"train{end}", "--val", where / f"val{end}", "--workers", 0]


def of(where: Path, latents: bool = False) -> list[object]:
    return [*images_of(where, latents), "--epochs", 3]


def vectors(folder: Path, tokenizer: Tokenizer) -> torch.Tensor:
    batches = ordered_batches(Folder(folder), size=64, batch_size=32)
    with torch.no_grad():
        return torch.cat([tokenizer.encode(batch.images) for batch in batches])


# ---- Latents


def test_a_tokenizers_latents_of_images_or_as_encode_stored_them(pictures: Path, tmp_path: Path, sides):
    training = ("--epochs", 20, "--lr", 0.05, "--probe-batch", 6)
    arguments = ["probe", *instead(of(pictures), *training), "--out", tmp_path, "--json"]
    code, out, err = softvq(*arguments)
    assert code == 0, err
    result = json.loads(out)
    assert result["scores"].keys() == {"probe_top1", "probe_balanced", "knn_top1", "knn_balanced"}
    assert min(result["scores"].values()) > 0.6, result["scores"]  # chance is a third
    told = {name: result["protocol"][name] for name in ("images", "val_images", "classes", "width", "pool", "epochs")}
    assert told == {"images": 18, "val_images": 9, "classes": 3, "width": 1024, "pool": "flatten", "epochs": 20}
    assert "layer" not in result["protocol"]
    file = Path(result.pop("file"))
    assert json.loads(file.read_text()) == result
    assert list(tmp_path.iterdir()) == [file]  # no parts are left
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    assert result["model"]["fingerprint"] == tokenizer.fingerprint
    for side, name, each in zip(sides[0], ("train", "val"), (6, 3), strict=True):
        torch.testing.assert_close(side.features, vectors(pictures / name, tokenizer).flatten(1), rtol=1e-4, atol=1e-4)
        assert side.labels.tolist() == [label for label in range(3) for _ in range(each)]

    code, out, err = softvq(*instead(arguments, *of(pictures, latents=True)[:4]))
    assert code == 0, err
    assert json.loads(out)["scores"] == pytest.approx(result["scores"], abs=1 / 9 + 1e-6)  # an image at most
    assert json.loads(out)["protocol"]["images"] == 18
    for images, stored in zip(*sides, strict=True):
        torch.testing.assert_close(stored.features, images.features, rtol=2e-3, atol=2e-3)  # of float16
        assert torch.equal(stored.labels, images.labels)


def test_tokens_can_be_averaged_and_the_figures_are_printed(pictures: Path, tmp_path: Path, sides):
    arguments = ("probe", *of(pictures, latents=True), "--pool", "mean", "--out", tmp_path)
    code, out, err = softvq(*arguments)
    assert code == 0, err
    *lines, file = out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["probe_top1", "probe_balanced", "knn_top1", "knn_balanced"]
    assert all(line.endswith(" %") for line in lines[:4])
    assert lines[4] == (
        "note: the accuracy of 9 images has a standard error of up to 16.7 percentage points (balanced: 16.7)."
    )
    assert all(line.startswith("note: ") for line in lines[4:])
    assert Path(file).is_file()
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    expected = vectors(pictures / "val", tokenizer).mean(1)
    torch.testing.assert_close(sides[0][1].features, expected, rtol=2e-3, atol=2e-3)


def test_quick_is_neighbours_alone(pictures: Path, tmp_path: Path, sides):
    code, out, _ = softvq("probe", *images_of(pictures, latents=True), "--quick", "--out", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["scores"].keys() == {"knn_top1", "knn_balanced"}
    assert "optimizer" not in json.loads(out)["protocol"]
    assert sides == []


# ---- Features of a generator


def test_a_generators_features_of_images_or_latents(pictures: Path, tmp_path: Path, sides):
    """After 5/7 of nine blocks, at time 0.5, with noise that is a function of the seed and the image's number."""
    arguments = ("probe", "--model", "emoji-sit", "--out", tmp_path, "--seed", 4, "--json")
    code, out, err = softvq(*arguments, *of(pictures), "--batch-size", 5)
    assert code == 0, err
    protocol = json.loads(out)["protocol"]
    told = {name: protocol[name] for name in ("layer", "time", "width", "pool")}
    assert told == {"layer": 6, "time": 0.5, "width": 192, "pool": "mean"}
    generator, tokenizer = Generator.from_pretrained("emoji-sit"), Tokenizer.from_pretrained("softvq-emoji-64")
    for side, name, numbers in zip(sides[0], ("train", "val"), (range(18), range(18, 27)), strict=True):
        latents = vectors(pictures / name, tokenizer)
        noise = Noise(4, numbers, generator.shape)().float()
        expected = generator.features(latents, noise, 0.5, 6).mean(1)
        torch.testing.assert_close(side.features, expected, rtol=1e-3, atol=1e-3)
    code, out, err = softvq(*arguments, *of(pictures, latents=True), "--batch-size", 7)
    assert code == 0, err
    for images, stored in zip(*sides, strict=True):
        torch.testing.assert_close(stored.features, images.features, rtol=0.02, atol=0.02)
        assert torch.equal(stored.labels, images.labels)


def test_layer_time_and_pool_are_as_asked(pictures: Path, tmp_path: Path, sides):
    more = ("--layer", 9, "--time", 0.2, "--pool", "flatten", "--out", tmp_path, "--json")
    code, out, err = softvq("probe", "--model", "emoji-sit", *of(pictures, latents=True), *more)
    assert code == 0, err
    protocol = json.loads(out)["protocol"]
    assert (protocol["layer"], protocol["time"], protocol["width"]) == (9, 0.2, 64 * 192)
    generator, tokenizer = Generator.from_pretrained("emoji-sit"), Tokenizer.from_pretrained("softvq-emoji-64")
    latents = vectors(pictures / "val", tokenizer)
    noise = Noise(0, range(18, 27), generator.shape)().float()  # after those of the 18 training images
    expected = generator.features(latents, noise, 0.2, 9).flatten(1)
    assert (sides[0][1].features - expected).square().mean().sqrt() < 0.02 * expected.std()  # of float16


def test_a_dit_that_names_no_tokenizer_is_told_one(pictures: Path, models: Path, tmp_path: Path):
    DiTConfig(TransformerConfig.named("tiny", 64, 16, 3)).build().save_pretrained(tmp_path / "dit")
    settings = ("--quick", "--json", "--out", tmp_path / "out")
    arguments = ("probe", "--model", tmp_path / "dit", *images_of(pictures), *settings)
    code, _, err = softvq(*arguments)
    assert code == 2
    assert "does not say which tokenizer it was trained with; name it (--tokenizer)" in err
    files = set()
    for tokenizer in ("softvq-emoji-64", models / "other"):
        code, out, err = softvq(*arguments, "--tokenizer", tokenizer)
        assert code == 0, err
        assert json.loads(out)["protocol"]["layer"] == 1  # of two: 10/7
        files.add(json.loads(out)["file"])
    assert len(files) == 2  # nor do they share parts


# ---- What is left out, and what goes on


def test_unreadable_images_are_left_out_even_where_they_fill_a_part(pictures: Path, tmp_path: Path, monkeypatch, sides):
    monkeypatch.setattr("softvq.evaluation.measuring.Parts", partial(Parts, size=2))
    folder = Path(shutil.copytree(pictures / "train", tmp_path / "train"))
    for bad in ("blue/0", "blue/1", "red/5"):
        (folder / f"{bad}.png").write_bytes(b"no image")
    arguments = ("--val", pictures / "val", "--workers", 0, "--epochs", 1, "--out", tmp_path / "out", "--json")
    code, out, err = softvq("probe", "--data", folder, *arguments)
    assert code == 0, err
    result = json.loads(out)
    assert result["protocol"]["images"] == 15
    assert list(result["unreadable"]) == ["train/blue/0.png", "train/blue/1.png", "train/red/5.png"]
    assert all(name.removeprefix("train/") in reason for name, reason in result["unreadable"].items())
    assert sides[0][0].labels.tolist() == [0] * 4 + [1] * 6 + [2] * 5


def test_none_readable_is_a_sentence_and_the_next_command_looks_again(pictures: Path, tmp_path: Path):
    folder = Path(shutil.copytree(pictures / "val", tmp_path / "train"))
    kept = {path: path.read_bytes() for path in folder.rglob("*.png")}
    for path in kept:
        path.write_bytes(b"no image")
    arguments = ("probe", "--data", folder, "--val", pictures / "val", "--workers", 0, "--quick", "--json")
    code, _, err = softvq(*arguments, "--out", tmp_path / "out")
    assert code == 1
    assert f"none of the 9 images of {folder} can be read" in err
    assert "Traceback" not in err
    for path, content in kept.items():
        path.write_bytes(content)
    code, out, err = softvq(*arguments, "--out", tmp_path / "out")
    assert code == 0, err
    assert json.loads(out)["protocol"]["images"] == 9


def test_a_stopped_command_encodes_no_image_again(pictures: Path, tmp_path: Path, monkeypatch):
    arguments = ("probe", *of(pictures), "--out", tmp_path, "--json")

    def stop(*_):
        raise MetricError("stopped here.")

    with monkeypatch.context() as patch:
        patch.setattr(probe, "linear_probe", stop)
        assert softvq(*arguments)[0] == 1
    monkeypatch.setattr("softvq.evaluation.probe.ordered_batches", lambda *_, **__: pytest.fail("images were read"))
    code, out, err = softvq(*arguments)
    assert code == 0, err
    assert json.loads(out)["protocol"]["images"] == 18


# ---- What cannot be probed


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (
            ["--data", "{pictures}/other-classes", "--val", "{pictures}/val"],
            1,
            "{pictures}/val has classes that {pictures}/other-classes has not: 'blue'.",
        ),
        (
            ["--data", "{pictures}/flat", "--val", "{pictures}/flat"],
            1,
            "probing needs at least two classes, and {pictures}/flat has 1: one sub-folder a class.",
        ),
        (["--model", "{models}/other"], 1, "train-latents holds latents of another tokenizer than"),
        (["--data", "nowhere"], 1, "there is no folder 'nowhere'"),
        (["--model", "nowhere"], 1, "no model folder 'nowhere'"),
        (["--model", "{models}/mar"], 2, "is a MAR; a SiT or DiT is probed"),
        (["--model", "emoji-sit", "--layer", "10"], 2, "emoji-sit has layers 1 to 9, and none 10 (--layer)"),
        (["--model", "emoji-sit", "--layer", "0"], 2, "emoji-sit has layers 1 to 9, and none 0 (--layer)"),
        (["--model", "emoji-sit", "--time", "1.5"], 2, "time must be from 0 (data) to 1 (noise), not 1.5 (--time)"),
        (["--model", "emoji-sit", "--time", "nan"], 2, "(noise), not nan (--time)"),
        (["--layer", "3"], 2, "layer is for a generator, and softvq-emoji-64 is a tokenizer (--layer)"),
        (["--time", "0.5"], 2, "time is for a generator, and softvq-emoji-64 is a tokenizer (--time)"),
        (["--tokenizer", "emoji"], 2, "tokenizer is for a generator, and softvq-emoji-64 is a tokenizer (--tokenizer)"),
        (["--epochs", "0"], 2, "epochs must be at least 1, not 0 (--epochs)"),
        (["--lr", "nan"], 2, "lr must be positive and finite, not nan (--lr)"),
        (["--probe-batch", "1"], 2, "batch_size must be at least 2, not 1 (--probe-batch)"),
        (["--batch-size", "0"], 2, "must be at least 1, not 0 (--batch-size)"),
    ],
)
def test_what_cannot_be_probed_is_one_sentence(
    pictures: Path, models: Path, tmp_path: Path, arguments: list[str], code: int, sentence: str
):
    if not (pictures / "flat").exists():
        shutil.copytree(pictures / "val" / "red", pictures / "flat")
        shutil.copytree(pictures / "val", pictures / "other-classes")
        shutil.rmtree(pictures / "other-classes" / "blue")
    filled = [word.format(pictures=pictures, models=models) for word in arguments]
    words = instead(of(pictures, latents=True), *filled)
    found = refusal(code, "probe", *words, "--out", tmp_path, "--json")
    assert sentence.format(pictures=pictures) in found


@pytest.mark.parametrize("given", [("--epochs", 90), ("--probe-batch", 16), ("--lr", 0.003), ("--seed", 0)])
def test_options_of_the_linear_layer_are_refused_beside_quick(pictures: Path, tmp_path: Path, given: tuple):
    words = ("probe", *images_of(pictures, latents=True), "--quick", *given, "--out", tmp_path)
    assert refusal(2, *words).endswith(f"the neighbours alone are measured (quick) ({given[0]}).")


def test_one_class_and_other_classes_are_refused_before_the_work(pictures: Path, tmp_path: Path, monkeypatch):
    """No image is read, and nothing encoded: a data set takes hours."""
    one = draw(tmp_path / "one", 2, 0)
    for colour in ("green", "red"):
        shutil.rmtree(one / colour)
    monkeypatch.setattr("softvq.evaluation.probe.ordered_batches", lambda *_, **__: pytest.fail("images were read"))
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("an image was encoded"))
    words = ("probe", "--workers", 0, "--out", tmp_path / "out", "--data", one)
    assert "needs at least two classes" in refusal(1, *words, "--val", one)
    assert "one has not: 'green', 'red'." in refusal(1, *words, "--val", pictures / "val")
    assert not (tmp_path / "out").exists()
