"""`softvq latents` as a user meets it: pictures, figures that are those of the tokenizer's own latents, sentences."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import Tokenizer
from softvq.data.loader import ordered_batches
from softvq.data.sources import Folder
from softvq.evaluation import latent_space
from softvq.layers import ViTConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.tokenizer import Reconstruction, TokenizerConfig
from tests.cli.running import instead, refusal, softvq
from tests.evaluation.images import draw

VIT = ViTConfig(width=16, depth=1, heads=1, patch_size=8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 images of three classes."""
    return draw(tmp_path_factory.mktemp("latents") / "pictures", 9, 0)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What UMAP is given; two numbers of it stand for what it makes, which takes long to compile and is tested in
    tests/evaluation/test_latent_space.py."""
    found: list[torch.Tensor] = []

    class StandIn:
        def __init__(self, random_state: int):
            self.seed = random_state

        def fit_transform(self, vectors: np.ndarray) -> np.ndarray:
            found.append(torch.from_numpy(vectors))
            return vectors[:, [self.seed, -1]]

    monkeypatch.setattr("umap.UMAP", StandIn)
    return found


def looked_at(folder: Path, name: str = "softvq-emoji-64") -> Reconstruction:
    batch = next(ordered_batches(Folder(folder), size=64, batch_size=32))
    with torch.no_grad():
        return Tokenizer.from_pretrained(name)(batch.images)


def are_pngs(paths: list[str]) -> bool:
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            if picture.format != "PNG" or min(picture.size) < 200:
                return False
    return True


def test_pictures_and_figures_of_the_bundled_tokenizer(pictures: Path, tmp_path: Path, placed):
    from matplotlib import pyplot

    arguments = ("latents", "--data", pictures, "--workers", 0, "--batch-size", 7, "--json")
    code, out, err = softvq(*arguments, "--out", tmp_path / "a")
    assert code == 0, err
    result = json.loads(out)
    file = Path(result.pop("file"))
    assert (file.parent, file.name[:24]) == (tmp_path / "a", "latents-softvq-emoji-64-")
    assert json.loads(file.read_text()) == result
    drawn = [str(tmp_path / "a" / f"{file.stem}-{name}.png") for name in ("channels", "codebooks", "umap")]
    assert result["pictures"] == drawn
    assert are_pngs(result["pictures"])
    assert pyplot.get_fignums() == []  # none is left open
    assert result["protocol"]["images"] == 27

    own = looked_at(pictures)
    latents, encoded = own.quantized.latent, own.encoded
    flat = latents.flatten(0, 1).double()
    assert result["channels"]["mean"] == pytest.approx(flat.mean(0).tolist(), rel=1e-3, abs=1e-5)
    assert result["channels"]["std"] == pytest.approx(flat.std(0).tolist(), rel=1e-3)
    assert len(result["channels"]["kurtosis"]) == 16
    cosines = torch.nn.functional.cosine_similarity(encoded, latents, dim=-1)
    assert result["scores"]["cosine"] == pytest.approx(cosines.mean().item(), rel=1e-4)
    assert 0 < result["scores"]["unexplained"] < 1
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    codebooks = [inner.codebook for inner in tokenizer.quantizer.inner]
    parts = own.quantized.indices.chunk(len(codebooks), dim=1)
    used = sum(len(part.unique()) for part in parts) / sum(len(codebook) for codebook in codebooks)
    assert result["scores"]["codebook_usage"] == pytest.approx(used)
    nearest = [latent_space.nearest_cosines(codebook).mean().item() for codebook in codebooks]
    assert result["scores"]["nearest_cosine"] == pytest.approx(sum(nearest) / len(nearest), rel=1e-5)
    assert result["scores"]["posterior_entropy"] == pytest.approx(float(own.quantized.statistics["entropy"]), rel=1e-3)

    for folder, seed in (("b", 0), ("c", 1)):
        assert softvq(*arguments, "--seed", seed, "--out", tmp_path / folder)[0] == 0
    umaps = [path.read_bytes() for folder in "abc" for path in (tmp_path / folder).glob("*-umap.png")]
    assert umaps[0] == umaps[1] != umaps[2]


def test_images_are_taken_evenly_of_the_first_classes(pictures: Path, tmp_path: Path, placed):
    more = ("--classes", 2, "-n", 16, "--workers", 0, "--out", tmp_path)
    code, out, err = softvq("latents", "--data", pictures, *more)
    assert code == 0, err
    own = looked_at(pictures)
    chosen = [number for number in range(18) if number not in (4, 13)]  # 16 of the 18, 17/15 apart
    assert len(placed) == 2  # ẑ and z, an image a point, its tokens beside each other
    torch.testing.assert_close(placed[0], own.encoded[chosen].flatten(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(placed[1], own.quantized.latent[chosen].flatten(1), rtol=1e-3, atol=1e-3)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["cosine", "unexplained"]
    (file,) = tmp_path.glob("*.json")
    drawn = [f"picture: {file.with_suffix('')}-{name}.png" for name in ("channels", "codebooks", "umap")]
    assert lines[-4:] == [*drawn, str(file)]


@pytest.mark.parametrize("config", [AEConfig(), KLConfig()])
def test_without_codewords_there_is_no_picture_of_them(pictures: Path, tmp_path: Path, placed, config):
    Tokenizer(TokenizerConfig(64, 4, 4, VIT, VIT, config)).save_pretrained(tmp_path / "model")
    arguments = ("--model", tmp_path / "model", "--data", pictures, "--workers", 0, "--out", tmp_path / "out", "--json")
    code, out, err = softvq("latents", *arguments)
    assert code == 0, err
    result = json.loads(out)
    stem = Path(result["file"]).stem
    assert [Path(path).name for path in result["pictures"]] == [f"{stem}-channels.png", f"{stem}-umap.png"]
    assert "codebook_usage" not in result["scores"]
    if isinstance(config, AEConfig):
        assert result["scores"] == pytest.approx({"cosine": 1, "unexplained": 0}, abs=1e-6)
    else:
        assert result["scores"] == {}  # ẑ is mean and variance: twice as wide


def test_unreadable_images_are_left_out(pictures: Path, tmp_path: Path, placed):
    folder = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    (folder / "green" / "2.png").write_bytes(b"no image")
    arguments = ("--data", folder, "--workers", 0, "--out", tmp_path / "out", "--json")
    code, out, err = softvq("latents", *arguments)
    assert code == 0, err
    assert json.loads(out)["protocol"]["images"] == 26


@pytest.mark.parametrize("package", ["matplotlib", "umap"])
def test_what_is_not_installed_is_said_before_the_work_begins(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(
        "softvq.evaluation.latent_space.load_tokenizer", lambda name: pytest.fail("the tokenizer was loaded")
    )
    code, out, err = softvq("latents", "--data", pictures, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.startswith("softvq: ")
    assert err.endswith("pip install 'softvq[plots]'.\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--num", "0"], 2, "must be at least 1"),
        (["--classes", "0"], 2, "must be at least 1"),
        (["--workers", "-1"], 2, "workers must be at least 0, not -1 (--workers)"),
        (["--data", "nowhere"], 1, "there is no folder 'nowhere'"),
        (["--model", "nowhere"], 1, "no model folder 'nowhere'"),
        (["--model", "emoji-sit"], 1, "holds a 'generator', not a 'tokenizer'"),
        (["--num", "15"], 1, "UMAP needs at least 16 images, not 15"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence(
    pictures: Path, tmp_path: Path, placed, arguments: list[str], code: int, sentence: str
):
    filled = instead(["--data", pictures, "--workers", 0], *arguments)
    assert sentence in refusal(code, "latents", *filled, "--out", tmp_path / "out", "--json")


def test_the_report_shows_them(pictures: Path, tmp_path: Path, placed):
    out = tmp_path / "evaluations" / "of mine"
    assert softvq("latents", "--data", pictures, "--workers", 0, "--out", out)[0] == 0
    assert softvq("report", tmp_path / "evaluations")[0] == 0
    text = (tmp_path / "evaluations" / "report.md").read_text()
    (file,) = out.glob("*.json")
    cosine = json.loads(file.read_text())["scores"]["cosine"]
    assert f"| {cosine:.3f} |" in text
    assert f"(of%20mine/{file.stem}-umap.png)" in text


def test_results_of_two_models_stand_beside_each_other(pictures: Path, tmp_path: Path, placed):
    """In one folder, as by default; the same command replaces its own."""
    own = ("latents", "--data", pictures, "--workers", 0, "--out", tmp_path / "out")
    for seed in (0, 1, 0):
        assert softvq(*own, "--seed", seed)[0] == 0
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json"] * 2 + [".png"] * 6
