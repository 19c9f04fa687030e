"""`softvq evaluate` as a user meets it: figures are those of the pieces, whatever the batch, whoever stopped it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import Tokenizer
from softvq.data.arrays import ArrayFile
from softvq.data.images import fit, to_bytes
from softvq.evaluation import reconstruction
from softvq.evaluation.distribution import inception_score, precision_recall
from softvq.evaluation.frechet import frechet_distance, moments_of
from softvq.evaluation.images import CROPS
from softvq.evaluation.reconstruction import score
from softvq.evaluation.results import Protocol
from softvq.pipeline import Pipeline
from softvq.pretrained import lpips
from softvq.pretrained.features import FeatureNetwork
from tests.cli.running import softvq
from tests.evaluation.images import COUNT, SIZE, close, lay, pixels

pytestmark = pytest.mark.usefixtures("small")
DRAWN = ["generation", "-n", 11, "--steps", 2]  # fewer than ten have no Inception Score


def run(out: Path, *words: object) -> tuple[int, str, str]:
    own = () if "--features" in words else ("--features", "tiny_inception")
    return softvq("evaluate", *words, *own, "--workers", 0, "--out", out)


def done(out: Path, *words: object) -> dict[str, Any]:
    code, told, errors = run(out, *words, "--json")
    assert code == 0, errors
    return json.loads(told)


@pytest.fixture(scope="module")
def reconstructed(real: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return done(tmp_path_factory.mktemp("reconstructed"), "reconstruction", "--data", real)


@pytest.fixture(scope="module")
def drawn(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return done(tmp_path_factory.mktemp("drawn"), *DRAWN, "--reference", reference)


# Reconstruction


@torch.no_grad()
def test_a_reconstructions_figures_are_those_of_the_pieces(real: Path, reconstructed: dict[str, Any]):
    tokenizer, network = Tokenizer.from_pretrained("softvq-emoji-64"), FeatureNetwork.load("tiny_inception")
    images = pixels(real)
    whole = tokenizer(images)
    expected = score(lambda x: tokenizer(x).images, [images], features=network).summary()
    spatial = [network(to_bytes(side))["spatial"] for side in (whole.images, images)]
    scores = reconstructed["scores"]
    for name in ("psnr", "ssim", "rfid"):
        assert scores[name] == pytest.approx(expected[name], rel=1e-4)
    assert scores["rsfid"] == pytest.approx(frechet_distance(*map(moments_of, spatial)), rel=1e-4)
    assert scores["reliable"] is False
    groups = whole.quantized.indices.view(COUNT, 4, 16).transpose(0, 1).reshape(4, -1)  # four codebooks, 16 tokens each
    K = len(tokenizer.quantizer.inner[0].codebook)
    assert scores["codebook_usage"] == pytest.approx(np.mean([len(set(g.tolist())) / K for g in groups]), rel=1e-12)
    perplexities = []
    for group in groups:
        shares = np.bincount(group.numpy(), minlength=K) / group.numel()
        perplexities.append(np.exp(-sum(p * np.log(p) for p in shares if p > 0)))
    assert scores["codebook_perplexity"] == pytest.approx(np.mean(perplexities), rel=1e-6)
    entropy = float(whole.quantized.statistics["entropy"])
    assert scores["posterior_entropy"] == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 7])
def test_the_batch_changes_no_figure_of_a_reconstruction(real: Path, reconstructed, tmp_path: Path, batch: int):
    found = done(tmp_path, "reconstruction", "--data", real, "--batch-size", batch)
    close(found["scores"], reconstructed["scores"])
    for name in ("codebook_usage", "codebook_perplexity"):
        assert found["scores"][name] == reconstructed["scores"][name]
    assert found["protocol"] == reconstructed["protocol"]


def test_a_result_says_what_it_rests_on(real: Path, reference: Path, reconstructed, drawn):
    network = FeatureNetwork.load("tiny_inception").protocol
    for result in (reconstructed, drawn):
        protocol = Protocol.from_dict(result["protocol"])
        assert {name: getattr(protocol, name) for name in network} == network
        assert (protocol.size, protocol.precision) == (SIZE, "float32")
        stored = json.loads(Path(result["file"]).read_text())
        assert stored == {key: value for key, value in result.items() if key != "file"}
        assert stored["softvq"] == "evaluation"
        assert list(Path(result["file"]).parent.iterdir()) == [Path(result["file"])]  # the parts are gone
    ours, theirs = reconstructed["protocol"], drawn["protocol"]
    assert (ours["images"], ours["reference_images"], theirs["images"], theirs["reference_images"]) == (12, 12, 11, 12)
    assert (ours["reference"], theirs["reference"]) == (str(real), str(reference))
    assert (ours["crop"], theirs["crop"]) == ("ADM's centre crop", "none")
    assert theirs["reference_checksum"] == ArrayFile(reference).checksum
    assert drawn["sampling"]["steps"] == 2
    assert (reconstructed["kind"], drawn["kind"]) == ("reconstruction", "generation")
    assert reconstructed["model"]["fingerprint"] == Tokenizer.from_pretrained("softvq-emoji-64").fingerprint


def test_unreadable_images_are_named_and_left_out(real: Path, tmp_path: Path, reconstructed: dict[str, Any]):
    """One beside good ones, and a whole part of them."""
    folder = lay(tmp_path / "images", range(COUNT))
    for name in ("0a", *(f"02{letter}" for letter in "abcdefghij")):
        (folder / f"{name}.png").write_bytes(b"no image")
    found = done(tmp_path / "out", "reconstruction", "--data", folder)
    assert sorted(found["unreadable"]) == sorted(path.name for path in folder.iterdir() if path.stat().st_size < 20)
    assert all(reason.startswith(name) for name, reason in found["unreadable"].items())
    close(found["scores"], reconstructed["scores"])
    assert (found["protocol"]["images"], found["protocol"]["reference_images"]) == (12, 12)
    told = run(tmp_path / "out", "reconstruction", "--data", folder)[1]
    assert "11 unreadable images left out; the first: 02a.png" in told


def test_lpips_is_measured_where_it_is_asked_for(real: Path, tmp_path: Path, reconstructed, monkeypatch):
    assert "lpips" not in reconstructed["scores"]  # a model for the bundled images
    monkeypatch.setattr(lpips, "NAME", lpips.TINY)
    found = done(tmp_path, "reconstruction", "--data", real, "--lpips")["scores"]
    tokenizer, judge = Tokenizer.from_pretrained("softvq-emoji-64"), lpips.LPIPS.load(lpips.TINY)
    expected = score(lambda x: tokenizer(x).images, [pixels(real)], perceptual=judge).summary()
    assert found["lpips"] == pytest.approx(expected["lpips"], rel=1e-4)
    close({k: v for k, v in found.items() if k != "lpips"}, reconstructed["scores"])


def test_an_lpips_that_is_not_finite_is_refused_and_not_kept(real: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lpips, "NAME", lpips.TINY)
    monkeypatch.setattr(lpips.LPIPS, "forward", lambda self, made, real: torch.full((len(made),), torch.nan))
    words = ("--data", real, "--lpips", "--workers", 0, "--out", tmp_path)
    code, _, err = softvq("evaluate", "reconstruction", *words)
    assert (code, err.splitlines()[-1][:30]) == (1, "softvq: LPIPS is not finite: t")
    assert not list(tmp_path.rglob("*.safetensors"))


# Generation


def test_a_reference_stands_for_its_images_and_samples_for_theirs(real: Path, other: Path, reference, tmp_path: Path):
    """A folder on either side, ADM's arrays of images, and statistics: the same figures."""
    first = done(tmp_path, "generation", "--samples", other, "--reference", reference)
    assert first["scores"]["gfid"] > 1e-3
    assert set(first["scores"]) == {
        *("gfid", "gsfid", "inception_score", "inception_score_std", "kid", "kid_std", "precision", "recall"),
        *("nearest", "reliable", "nearly_blank", "gradient_energy"),
        *("blockiness", "blockiness_real", "blockiness_4", "blockiness_8", "blockiness_16"),
    }
    images = {path: to_bytes(pixels(path)).permute(0, 2, 3, 1).numpy() for path in (real, other)}
    np.savez(tmp_path / "real.npz", images[real])
    np.savez_compressed(tmp_path / "other.npz", images[other], np.arange(len(images[other])))
    for samples, against in ((other, real), (tmp_path / "other.npz", tmp_path / "real.npz")):
        found = done(tmp_path, "generation", "--samples", samples, "--reference", against, "--batch-size", 7)
        close(found["scores"], first["scores"])
        assert found["protocol"]["images"] == COUNT + 1
    statistics = {name: array for name, array in np.load(reference).items() if name != "arr_0"}
    np.savez(tmp_path / "statistics.npz", **statistics)
    found = done(tmp_path, "generation", "--samples", other, "--reference", tmp_path / "statistics.npz")
    seen = ("nearly_blank", "blockiness", "blockiness_4", "blockiness_8", "blockiness_16")
    few = ("gfid", "gsfid", "inception_score", "inception_score_std", "reliable", *seen)
    close(found["scores"], {name: first["scores"][name] for name in few})
    assert any("no KID" in note for note in found["notes"])


def test_the_figures_of_samples_are_those_of_their_features(real: Path, other: Path, reference: Path, tmp_path: Path):
    network = FeatureNetwork.load("tiny_inception")
    found = done(tmp_path, "generation", "--samples", other, "--reference", reference)["scores"]
    features = [network(to_bytes(pixels(folder))) for folder in (other, real)]
    for name, figure in (("pool", "gfid"), ("spatial", "gsfid")):
        expected = frechet_distance(*(moments_of(side[name]) for side in features))
        assert found[figure] == pytest.approx(expected, rel=1e-4)
    logits = network.logits(features[0]["pool"])
    assert found["inception_score"] == pytest.approx(inception_score(logits)[0], rel=1e-6)
    pools = [side["pool"] for side in features]
    assert (found["precision"], found["recall"]) == precision_recall(*pools)


def test_samples_of_the_same_names_are_not_each_other(real: Path, tmp_path: Path, reference: Path):
    """Two runs' folders: results of their own, and fingerprints that are of the pixels."""
    found = []
    for name, numbers in (("a", range(11)), ("b", range(11))):
        folder = lay(tmp_path / name / "samples", numbers, SIZE)
        if name == "b":
            Image.new("RGB", (SIZE, SIZE), "red").save(folder / "10.png")
        found.append(done(tmp_path / "out", "generation", "--samples", folder, "--reference", reference))
    assert found[0]["model"]["fingerprint"] != found[1]["model"]["fingerprint"]
    assert found[0]["file"] != found[1]["file"]
    assert found[0]["scores"]["gfid"] != found[1]["scores"]["gfid"]


def test_over_seeds_there_is_a_mean_and_a_deviation(reference: Path, tmp_path: Path, drawn):
    found = done(tmp_path, *DRAWN, "--reference", reference, "--seed", 0, 1)
    second = done(tmp_path, *DRAWN, "--reference", reference, "--seed", 1)
    assert found["sampling"]["seed"] == [0, 1]
    assert second["scores"]["gfid"] != drawn["scores"]["gfid"]
    for name, first in drawn["scores"].items():
        if name != "reliable":
            pair = [first, second["scores"][name]]
            assert found["scores"][name] == pytest.approx(np.mean(pair), rel=1e-6)
            assert found["scores"][f"{name}_over_seeds"] == pytest.approx(np.std(pair, ddof=1), rel=1e-6, abs=1e-9)
    told = run(tmp_path, *DRAWN, "--reference", reference, "--seed", 0, 1)[1]
    line = next(line for line in told.splitlines() if line.startswith("gfid"))
    assert line.split() == ["gfid", f"{found['scores']['gfid']:.4f}", "±", f"{found['scores']['gfid_over_seeds']:.4f}"]


def test_a_sweep_measures_each_scale_in_each_interval_and_draws_them(reference: Path, tmp_path: Path, drawn):
    pytest.importorskip("matplotlib")
    sweep = ["--guidance", 1, 3.5, "--interval", 0, 1, "--interval", 0, 0.5]
    found = done(tmp_path, *DRAWN, "--reference", reference, *sweep)
    assert [(cell["guidance"], cell["interval"]) for cell in found["sweep"]] == [
        (scale, interval) for interval in ([0, 1], [0, 0.5]) for scale in (1, 3.5)
    ]
    close(found["scores"], drawn["scores"])
    close(found["sweep"][1]["scores"], drawn["scores"])  # the model's own guidance
    distances = [cell["scores"]["gfid"] for cell in found["sweep"]]
    assert distances[0] == pytest.approx(distances[2], rel=1e-6)  # no guidance, wherever
    assert len({round(value, 9) for value in distances}) == 3
    (name,) = found["pictures"]
    assert Path(name) == Path(found["file"]).with_suffix(".png")
    picture = Image.open(name)
    assert min(picture.size) > 400
    assert np.asarray(picture.convert("RGB")).std() > 5


@pytest.mark.parametrize("batch", [1, 4])
def test_the_batch_changes_no_figure_of_a_generator(reference: Path, tmp_path: Path, drawn, batch: int):
    found = done(tmp_path, *DRAWN, "--reference", reference, "--batch-size", batch)
    close(found["scores"], drawn["scores"])
    assert found["protocol"] == drawn["protocol"]


@pytest.mark.parametrize("fit_as", ["crop", "resize", "pad"])
def test_samples_of_several_sizes_are_made_squares(tmp_path: Path, reference: Path, fit_as: str):
    """Of the reference's side, whatever their own; what is measured is what was made of them."""
    folder = lay(tmp_path / "mixed", range(11), SIZE)
    wide = Image.new("RGB", (2 * SIZE, SIZE), "red")
    wide.paste((0, 0, 255), (SIZE, 0, 2 * SIZE, SIZE))
    wide.save(folder / "wide.png")
    words = ("generation", "--reference", reference)
    found = done(tmp_path / "out", *words, "--samples", folder, "--fit", fit_as)
    assert found["protocol"]["size"] == SIZE
    assert found["protocol"]["crop"] == CROPS[fit_as]
    fit(wide, SIZE, fit_as).save(folder / "wide.png")
    assert done(tmp_path / "out", *words, "--samples", folder)["scores"] == found["scores"]


def test_samples_are_cut_to_the_side_that_is_asked_for(tmp_path: Path, real: Path):
    found = done(tmp_path, "generation", "--samples", real, "--reference", real, "--size", 48)
    assert (found["protocol"]["size"], found["protocol"]["crop"]) == (48, CROPS["crop"])
    assert found["scores"]["gfid"] == pytest.approx(0, abs=1e-3)


# Interrupted


def test_a_stopped_generation_goes_on_where_it_was(reference: Path, tmp_path: Path, drawn, monkeypatch):
    asked: list[int] = []
    images = Pipeline.images

    def stopping(self: Pipeline, request: Any, numbers: range) -> torch.Tensor:
        if list(numbers) == [9]:
            raise KeyboardInterrupt
        asked.extend(numbers)
        return images(self, request, numbers)

    words = (*DRAWN, "--reference", reference, "--batch-size", 4)  # of parts of 5: 4 and 1, 4 and 1, 1
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "images", stopping)
        code, _, errors = run(tmp_path, *words)
    assert code == 130
    assert errors.splitlines()[-1] == "softvq: stopped."
    again: list[int] = []
    monkeypatch.setattr(Pipeline, "images", lambda self, r, n: again.extend(n) or images(self, r, n))
    found = done(tmp_path, *words)
    assert (asked, again) == (list(range(9)), list(range(5, 11)))  # the part that was begun is made again
    close(found["scores"], drawn["scores"])
    assert [one.suffix for one in tmp_path.iterdir()] == [".json"]


def test_a_stopped_reconstruction_goes_on_where_it_was(real: Path, tmp_path: Path, reconstructed, monkeypatch):
    psnr, seen = reconstruction.psnr, []

    def stopping(*sides: torch.Tensor) -> torch.Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        return psnr(*sides)

    words = ("reconstruction", "--data", real)
    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "psnr", stopping)
        assert run(tmp_path, *words)[0] == 130
    again = []
    monkeypatch.setattr(reconstruction, "psnr", lambda *sides: again.append(1) or psnr(*sides))
    assert done(tmp_path, *words)["scores"] == reconstructed["scores"]
    assert len(again) == 1  # of three parts
