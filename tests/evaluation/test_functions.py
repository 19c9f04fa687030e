"""The evaluations as a notebook calls them: whatever holds the images the figures are the same, and the commands'; a
result is written where it is asked for, and nothing else is."""

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from softvq import (
    Pipeline,
    Tokenizer,
    cost,
    evaluate_generation,
    evaluate_reconstruction,
    frechet,
    latent_space,
    probe,
    report,
)
from softvq.errors import ConfigError, DataError, MetricError, StorageError
from softvq.evaluation.references import write_reference
from softvq.files import locked
from softvq.layers import ViTConfig
from softvq.pretrained.features import FeatureNetwork
from softvq.quantizers.gaussian import KLConfig
from softvq.tokenizer import TokenizerConfig
from tests.cli.running import softvq
from tests.cli.test_evaluate import done
from tests.evaluation.images import COUNT, SIZE, close, draw

TOKENIZER = "softvq-emoji-64"
VIT = ViTConfig(width=16, depth=1, heads=1, patch_size=8, layer_scale=1.0)


@pytest.fixture(scope="module")
def settings(small: None) -> dict[str, Any]:
    return {"features": FeatureNetwork.load("tiny_inception"), "workers": 0}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(TOKENIZER)


class Pictures(Dataset):
    """As people have them: 8-bit tensors and labels. How many were read is counted."""

    def __init__(self, images: np.ndarray):
        self.images, self.reads = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return torch.from_numpy(self.images[index]).permute(2, 0, 1), index % 3


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())])


def noise(seed: int, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


HOLDERS: dict[str, Callable[[Path], Any]] = {
    "name": str,
    "array": pixels,
    "tensor": lambda folder: torch.from_numpy(pixels(folder)).permute(0, 3, 1, 2),
    "dataset": lambda folder: Pictures(pixels(folder)),
    "paths": lambda folder: sorted(folder.iterdir()),
    "pictures": lambda folder: [Image.open(path) for path in sorted(folder.iterdir())],
}


def same(protocol: dict[str, Any], expected: dict[str, Any]) -> None:
    """But for what the reference is called."""
    assert {**protocol, "reference": ""} == {**expected, "reference": ""}


# ---- Whatever holds the images


@pytest.fixture(scope="module")
def reconstruction(tokenizer: Tokenizer, settings: dict[str, Any], real: Path) -> Any:
    return evaluate_reconstruction(tokenizer, real, **settings)


@pytest.fixture(scope="module")
def generation(settings: dict[str, Any], real: Path, other: Path) -> Any:
    return evaluate_generation(other, real, **settings)


@pytest.mark.parametrize("holder", HOLDERS)
def test_reconstructions_of_the_same_images_have_the_same_figures(
    tokenizer: Tokenizer,
    settings,
    reconstruction,
    real: Path,
    holder: str,
):
    found = evaluate_reconstruction(tokenizer, HOLDERS[holder](real), **settings)
    assert found.scores == reconstruction.scores
    same(found.protocol, reconstruction.protocol)
    assert found.protocol["images"] == COUNT
    assert found.model == reconstruction.model
    assert found.unreadable == {}


@pytest.mark.parametrize("holder", HOLDERS)
def test_generated_images_have_the_same_figures(
    settings,
    generation,
    real: Path,
    other: Path,
    holder: str,
):
    """On both sides; those of the reference are cut to the size of the others."""
    found = evaluate_generation(HOLDERS[holder](other), HOLDERS[holder](real), **settings)
    assert found.scores == generation.scores
    same(found.protocol, generation.protocol)
    assert found.model["fingerprint"] == generation.model["fingerprint"]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_distance_is_the_same(settings, generation, real: Path, other: Path, holder: str):
    found = frechet(HOLDERS[holder](other), HOLDERS[holder](real), **settings)
    assert found.scores == {"fid": generation.scores["gfid"], "reliable": False}
    same(found.protocol, generation.protocol)


def test_a_reference_is_the_same(settings, real: Path, tmp_path: Path):
    for name, images in (("folder", real), ("array", pixels(real))):
        told = write_reference(images, tmp_path / f"{name}.npz", SIZE, **settings)
        assert told["images"] == COUNT
    first, second = (np.load(tmp_path / f"{name}.npz") for name in ("folder", "array"))
    for name in ("mu", "sigma", "mu_s", "sigma_s", "arr_0"):
        np.testing.assert_array_equal(first[name], second[name])


def test_unreadable_images_are_named_and_left_out(tokenizer, settings, reconstruction, real: Path):
    found = evaluate_reconstruction(tokenizer, ["nowhere.png", *sorted(real.iterdir()), "lost.png"], **settings)
    assert list(found.unreadable) == ["nowhere.png", "lost.png"]
    close(found.scores, reconstruction.scores)  # of other batches
    counts = [found.protocol[name] for name in ("images", "reference_images")]
    assert counts == [COUNT, COUNT]


def test_a_pipeline_is_measured_against_images_that_are_held(settings, real: Path):
    pipeline, asked = Pipeline.from_pretrained("emoji-sit"), {"num": 11, "sampling": {"steps": 1}}
    found = [evaluate_generation(pipeline, HOLDERS[name](real), **asked, **settings) for name in ("name", "dataset")]
    assert found[0].scores == found[1].scores
    same(found[1].protocol, found[0].protocol)
    assert found[1].more["sampling"]["steps"] == 1
    drawn = pipeline.images(pipeline.request(num=11, steps=1), range(11)).permute(0, 2, 3, 1).numpy()
    close({"fid": frechet(drawn, real, **settings).scores["fid"]}, {"fid": found[0].scores["gfid"]})


def test_images_by_default_are_those_that_the_model_knows(tokenizer: Tokenizer):
    with pytest.raises(ConfigError, match="does not say which images it is for; name some"):
        evaluate_reconstruction(Tokenizer(TokenizerConfig(64, 4, 4, VIT, VIT, KLConfig())))
    assert tokenizer.about["domain"] == "emoji-val"


def test_a_model_of_ones_own_has_no_name_and_is_measured(settings):
    """Whatever mode it is in: a posterior's noise is drawn in training alone; and it is left as it was."""
    torch.manual_seed(0)
    model = Tokenizer(TokenizerConfig(64, 4, 4, VIT, VIT, KLConfig()))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = {}
    for training in (False, True):
        model.train(training)
        found[training] = evaluate_reconstruction(model, noise(0), lpips=False, **settings)
        assert all(module.training is training for module in model.modules())
    assert found[False].model == {"name": "Tokenizer", "fingerprint": model.fingerprint, "recipe": None}
    assert "codebook_usage" not in found[False].scores
    assert found[True].scores == found[False].scores


def test_a_stopped_call_leaves_the_model_as_it_was(tokenizer: Tokenizer, settings):
    class Stopping(Pictures):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            if index == 4:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        evaluate_reconstruction(tokenizer, Stopping(noise(0)), batch_size=2, **settings)
    assert not any(module._forward_hooks for module in tokenizer.modules())


# ---- Distances


def test_a_set_has_no_distance_to_itself(settings, real: Path, other: Path):
    own = frechet(other, other, **settings)
    assert own.scores["fid"] == pytest.approx(0, abs=1e-4)
    assert own.protocol["reference_images"] == own.protocol["images"] == COUNT + 1
    assert frechet(other, real, **settings).scores["fid"] > 0.1
    assert frechet(noise(0), noise(1), **settings).scores["fid"] > 1e-3


def test_a_distance_is_that_of_an_evaluation(settings, generation, real: Path, other: Path):
    found = frechet(other, real, **settings)
    assert found.scores["fid"] == generation.scores["gfid"]
    assert (found.kind, found.model) == (generation.kind, generation.model)
    assert found.protocol == generation.protocol


def test_a_distance_in_other_features_is_no_fid(real: Path, other: Path):
    found = frechet(other, real, features="tiny_vit_large_patch14_dinov2", workers=0)
    assert set(found.scores) == {"fd", "reliable"}
    assert any("not comparable with FID" in note for note in found.notes)


# ---- Results


def test_a_result_is_frozen(reconstruction):
    with pytest.raises(FrozenInstanceError):
        reconstruction.scores = {}
    with pytest.raises(FrozenInstanceError):
        reconstruction.kind = "generation"


@pytest.mark.parametrize(("which", "title"), [("reconstruction", "rFID"), ("generation", "gFID")])
def test_what_is_written_is_what_the_report_reads(request, tmp_path: Path, which: str, title: str):
    result = request.getfixturevalue(which)
    whole = result.write(tmp_path)
    (file,) = tmp_path.iterdir()
    assert file == tmp_path / f"{result.name}.json" == Path(whole.pop("file"))
    assert json.loads(file.read_text()) == whole == result.to_dict()
    assert (whole["softvq"], whole["kind"]) == ("evaluation", which)
    assert (whole["scores"], whole["protocol"], whole["model"]) == (result.scores, result.protocol, result.model)
    assert whole["notes"] == list(result.notes)
    made = report(tmp_path)
    assert (made.file, made.results, made.left_out) == (tmp_path / "report.md", 1, ())
    text = made.file.read_text(encoding="utf-8")
    assert f"| {title} |" in text
    assert f"| {result.scores[title.lower()]:.2f} |" in text


def test_a_distance_is_in_the_report(settings, real: Path, other: Path, tmp_path: Path):
    result = frechet(other, real, **settings)
    result.write(tmp_path)
    made = report(tmp_path)
    assert made.results == 1
    assert f"{result.scores['fid']:.2f}" in made.file.read_text(encoding="utf-8")


def test_pictures_are_written_beside_the_result(settings, real: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    pipeline = Pipeline.from_pretrained("emoji-sit")
    result = evaluate_generation(pipeline, real, num=11, scales=(1, 2), sampling={"steps": 1}, **settings)
    assert list(result.pictures) == [result.name]
    whole = result.write(tmp_path / "out")
    assert whole["pictures"] == [str(tmp_path / "out" / f"{result.name}.png")]
    with Image.open(whole["pictures"][0]) as stored:
        assert np.array_equal(np.asarray(stored), np.asarray(result.pictures[result.name]))
    assert [cell["guidance"] for cell in whole["sweep"]] == [1, 2]


# ---- What is left on disk


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where the calls are, and their temporary files."""
    for name in ("here", "temporary"):
        (tmp_path / "place" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "place" / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "place" / "temporary"))
    return tmp_path / "place"


def test_without_a_folder_nothing_is_left_on_disk(
    tokenizer: Tokenizer,
    settings,
    real: Path,
    other: Path,
    elsewhere: Path,
):
    evaluate_reconstruction(tokenizer, real, **settings)
    evaluate_generation(other, real, **settings)
    frechet(other, real, **settings)
    probe(tokenizer, Pictures(noise(0)), Pictures(noise(1)), quick=True, workers=0)
    cost(["softvq-s-64"], timed=False)
    with pytest.raises(DataError):
        evaluate_generation(real, "nowhere", **settings)
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["here", "temporary"]


def test_with_a_folder_the_second_call_makes_nothing_again(tokenizer: Tokenizer, settings, tmp_path: Path):
    images = Pictures(noise(0))
    first = evaluate_reconstruction(tokenizer, images, folder=tmp_path, **settings)
    assert images.reads == 2 * COUNT  # to know which images these are, and to measure them
    assert list(tmp_path.iterdir()) == [first.parts]
    second = evaluate_reconstruction(tokenizer, images, folder=tmp_path, **settings)
    assert images.reads == 3 * COUNT
    assert (second.scores, second.name, second.protocol) == (first.scores, first.name, first.protocol)
    second.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{first.name}.json"]
    evaluate_reconstruction(tokenizer, images, folder=tmp_path, **settings)
    assert images.reads == 5 * COUNT


def test_a_stopped_call_goes_on_where_it_was(tokenizer: Tokenizer, settings, tmp_path: Path):
    """With a folder, of parts of five: the part that was begun is made again."""
    images = noise(0)

    class Stopping(Pictures):
        stops = True

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            if index == 7 and self.stops and self.reads > COUNT:  # after looking which images these are
                raise KeyboardInterrupt
            return super().__getitem__(index)

    held = Stopping(images)
    with pytest.raises(KeyboardInterrupt):
        evaluate_reconstruction(tokenizer, held, folder=tmp_path, **settings)
    held.stops, held.reads = False, 0
    found = evaluate_reconstruction(tokenizer, held, folder=tmp_path, **settings)
    assert held.reads == COUNT + COUNT - 5
    assert found.scores == evaluate_reconstruction(tokenizer, images, **settings).scores


HELD: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda images: images,
    "dataset": Pictures,
    "pictures": lambda images: [Image.fromarray(image) for image in images],
}


@pytest.mark.parametrize("holder", HELD)
def test_other_images_are_not_given_the_figures_of_the_first(tokenizer, settings, tmp_path: Path, holder: str):
    """With the same folder, as many of them and of the same kind, before the first result is written."""
    for seed in (0, 1):
        held = HELD[holder](noise(seed))
        found = evaluate_reconstruction(tokenizer, held, folder=tmp_path, **settings)
        assert found.scores == evaluate_reconstruction(tokenizer, held, **settings).scores
        found = frechet(held, noise(2), folder=tmp_path, **settings)
        assert found.scores == frechet(held, noise(2), **settings).scores


@pytest.mark.parametrize("function", ["reconstruction", "generation", "probe"])
def test_files_that_change_between_two_calls_are_measured_again(
    tokenizer, settings, real: Path, other: Path, tmp_path: Path, function: str
):
    """In place and as large, between a call that was stopped, or whose result was not written, and the next one."""
    folder = Path(shutil.copytree(real, tmp_path / "images"))
    for number, path in enumerate(sorted(folder.iterdir())):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.open(path).convert("RGB").save(folder / "ab"[number % 2] / f"{path.stem}.bmp")
        path.unlink()
    changed = folder / "a" / f"{sorted(folder.glob('a/*'))[0].name}"

    def measured(place: Path) -> Any:
        if function == "reconstruction":
            return evaluate_reconstruction(tokenizer, str(folder), folder=place, **settings)
        if function == "generation":
            return evaluate_generation(str(folder), str(other), size=80, folder=place, **settings)
        return probe(tokenizer, str(folder), str(folder), quick=True, workers=0, folder=place)

    first, size = measured(tmp_path / "place"), changed.stat().st_size
    Image.open(changed).transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(180).save(changed)
    assert changed.stat().st_size == size
    second = measured(tmp_path / "place")
    assert second.scores == measured(tmp_path / "fresh").scores
    assert second.name == first.name
    if function != "probe":  # whose accuracies may be the same
        assert second.scores != first.scores


def test_parts_that_another_process_works_on_are_left_to_it(tokenizer, settings, real: Path, tmp_path: Path):
    first = evaluate_reconstruction(tokenizer, real, folder=tmp_path, **settings)
    with (
        locked(first.parts),
        pytest.raises(StorageError, match=r"is in use by .*; wait until it has ended, or use another folder"),
    ):
        evaluate_reconstruction(tokenizer, real, folder=tmp_path, **settings)
    with locked(first.parts):
        first.write(tmp_path)
        assert list(first.parts.glob("*.safetensors"))
    second = evaluate_reconstruction(tokenizer, real, folder=tmp_path, **settings)
    assert second.scores == first.scores
    second.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{first.name}.json"]


# ---- The commands


def test_the_command_and_the_function_agree_on_a_reconstruction(
    tokenizer: Tokenizer,
    settings,
    reconstruction,
    real: Path,
    tmp_path: Path,
):
    told = done(tmp_path, "reconstruction", "--data", real)
    assert {name: told[name] for name in reconstruction.to_dict()} == reconstruction.to_dict()
    assert Path(told["file"]).name == f"{reconstruction.name}.json"  # and so it goes on where the other was


def test_the_command_and_the_function_agree_on_generated_images(generation, real, other, tmp_path: Path):
    told = done(tmp_path, "generation", "--samples", other, "--reference", real)
    assert {name: told[name] for name in generation.to_dict()} == generation.to_dict()
    assert Path(told["file"]).name == f"{generation.name}.json"


def test_the_command_and_the_function_agree_on_a_generator(settings, real: Path, tmp_path: Path):
    words = ("-n", 11, "--steps", 1, "--guidance", 2, "--seed", 3, 4, "--reference", real)
    told = done(tmp_path, "generation", *words)
    sampling, pipeline = {"steps": 1, "guidance": 2}, Pipeline.from_pretrained("emoji-sit")
    found = evaluate_generation(pipeline, real, num=11, seeds=(3, 4), sampling=sampling, **settings)
    assert {name: told[name] for name in found.to_dict()} == found.to_dict()
    assert Path(told["file"]).name == f"{found.name}.json"


def test_the_command_and_the_function_agree_on_a_probe(tmp_path: Path):
    train, val = draw(tmp_path / "train", 6, 0), draw(tmp_path / "val", 3, 1)
    words = ("--data", train, "--val", val, "--workers", 0, "--quick", "--out", tmp_path / "out", "--json")
    code, out, err = softvq("probe", *words)
    assert code == 0, err
    found, told = probe(TOKENIZER, str(train), str(val), quick=True, workers=0), json.loads(out)
    assert Path(told.pop("file")).name == f"{found.name}.json"
    assert told == found.to_dict()


def test_the_command_and_the_function_agree_on_a_latent_space(tmp_path: Path, monkeypatch):
    pytest.importorskip("matplotlib")

    class StandIn:
        """Two numbers for what takes long."""

        def __init__(self, random_state: int):
            pass

        def fit_transform(self, vectors: np.ndarray) -> np.ndarray:
            return vectors[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=StandIn))  # the real one takes ten seconds to import
    images = draw(tmp_path / "images", 6, 0)
    words = ("--data", images, "--workers", 0, "--out", tmp_path / "out", "--json")
    code, out, err = softvq("latents", *words)
    assert code == 0, err
    told = json.loads(out)
    found = latent_space(TOKENIZER, str(images), workers=0)
    assert [Path(name).stem for name in told.pop("pictures")] == [f"{found.name}-{one}" for one in found.pictures]
    assert told.pop("file") == str(tmp_path / "out" / f"{found.name}.json")
    assert told == found.to_dict()
    held = latent_space(TOKENIZER, [str(path) for path in sorted(images.rglob("*.png"))], workers=0)
    assert held.scores == found.scores


def test_the_command_and_the_function_agree_on_a_cost(tmp_path: Path):
    words = ("bench", "cost", "softvq-s-64", "--no-time", "--device", "cpu", "--out", tmp_path, "--json")
    code, out, err = softvq(*words)
    assert code == 0, err
    found, told = cost(["softvq-s-64"], timed=False, device="cpu"), json.loads(out)
    assert Path(told.pop("file")).name == f"{found.name}.json"
    assert told == found.to_dict()
    assert math.isclose(found.more["rows"]["softvq-s-64"]["parameters"], 45, abs_tol=0.6)


# ---- What is refused


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"workers": -1}, "workers must be at least 0, not -1"),
        ({"batch_size": True}, "batch_size must be a whole number, not True"),
        ({"fit": "crop", "size": True}, "size must be a whole number, not True"),
        ({"num": 4}, "is for a generator's"),
        ({"scales": (2,)}, "is for a generator's"),
        ({"sampling": {"steps": 2}}, "is for a generator's"),
        ({"reference": None}, "need a reference to be compared with"),
        ({"fit": "crop", "size": 0}, "size must be at least 1, not 0"),
        ({"device": "tpu"}, "the device 'tpu' cannot be used here"),
    ],
)
def test_what_cannot_be_measured_is_said(settings, real: Path, other: Path, asked, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        evaluate_generation(other, **{"reference": real, **settings, **asked})
    assert "\n" not in str(error.value)


def test_another_reference_than_the_one_meant_is_refused(settings, generation, real, other):
    known = generation.protocol["reference_checksum"]
    assert evaluate_generation(other, real, checksum=known, **settings).scores == generation.scores
    with pytest.raises(DataError, match=f"has the checksum {known}, not 0123456789abcdef"):
        evaluate_generation(other, real, checksum="0123456789abcdef", **settings)


def test_the_precision_is_that_of_the_sampling_too(other: Path):
    result = evaluate_generation(
        Pipeline.from_pretrained("emoji-sit"),
        other,
        num=10,
        precision="bfloat16",
        features="tiny_inception",
        workers=0,
        sampling={"steps": 1},
    )
    assert result.protocol["precision"] == result.more["sampling"]["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet("a", "b", size=0), "size must be at least 1, not 0"),
        (lambda: write_reference("a", "b.npz", True), "size must be a whole number, not True"),
        (lambda: cost(["softvq-s-64"], guidance=math.nan), "guidance must be a finite number, not nan"),
        (lambda: cost(["softvq-s-64"], guidance=-1.0), "guidance must be at least 0, not -1"),
        (lambda: cost(["softvq-s-64"], steps=True), "steps must be a whole number, not True"),
        (lambda: cost(["softvq-s-64"], batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: latent_space("softvq-emoji-64", num=0), "num must be at least 1, not 0"),
        (lambda: latent_space("softvq-emoji-64", classes=True), "classes must be a whole number, not True"),
    ],
)
def test_a_number_is_refused_before_the_work(call: Callable, message: str):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("guidance", [{"scales": (1.0, math.nan)}, {"sampling": {"guidance": math.nan}}])
def test_a_guidance_that_is_no_number_is_refused_before_the_work(guidance: dict):
    with pytest.raises(ConfigError, match="guidance must be a finite number, not nan"):
        evaluate_generation(Pipeline.from_pretrained("emoji-sit"), "no/such/place", num=10, **guidance)


def test_features_that_are_not_finite_stop_with_the_networks_name(other: Path, real: Path):
    network = FeatureNetwork.load("tiny_inception")
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    with pytest.raises(MetricError, match=r"^the features of .*tiny.* are not finite"):
        frechet(other, real, features=network, workers=0)


@pytest.mark.parametrize("function", [probe, latent_space])
def test_settings_that_nothing_would_read_are_refused(function):
    with pytest.raises(TypeError, match="features"):
        function("softvq-emoji-64", features="tiny_inception")
