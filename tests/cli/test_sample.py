"""`softvq sample`: a picture with a row a class, single files, an array; what goes on, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import softvq as library
from softvq import Pipeline, pipeline
from tests.cli.conftest import CLASSES
from tests.cli.running import refusal, result, softvq

SIDE, GAP = 128, 4  # of an image of 16 px in a picture, eightfold; between images


@pytest.fixture(scope="module")
def own(tiny: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny / "generator", device="cpu")


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is made."""
    monkeypatch.setattr(Pipeline, "images", lambda *_, **__: pytest.fail("images were made"))


def sample(tiny: Path, *words: object) -> tuple[int, str, str]:
    return softvq("sample", "--model", tiny / "generator", *words)


def tile(picture: Image.Image, left: int, top: int) -> np.ndarray:
    """The pixels of an image in a picture, before they were made eight times as large."""
    found = np.asarray(picture.convert("RGB"))[top : top + SIDE, left : left + SIDE]
    small = found[::8, ::8]
    assert np.array_equal(small.repeat(8, 0).repeat(8, 1), found)
    return small


def expected(own: Pipeline, classes: list[str] | None, num: int, **settings) -> np.ndarray:
    return own.tensors(classes, num, progress=False, **settings).permute(0, 2, 3, 1).numpy()


# ---- A picture


def test_a_row_a_class_in_the_order_that_was_asked_for(tiny: Path, own: Pipeline, tmp_path: Path):
    words = ("--class", "dog", "--class", "cat", "-n", 6, "--seed", 3, "--out", tmp_path / "a.png")
    code, out, err = sample(tiny, *words)
    assert (code, err) == (0, "")
    assert out == f"6 images in {tmp_path / 'a.png'}\n"
    images = expected(own, ["dog", "cat"], 6, seed=3)
    picture = Image.open(tmp_path / "a.png")
    margin = picture.width - 3 * (SIDE + GAP)
    assert picture.height == 2 * (SIDE + GAP) + GAP
    assert 20 < margin < 200
    for row in range(2):
        top = GAP + row * (SIDE + GAP)
        assert np.asarray(picture)[top : top + SIDE, :margin].min() < 100  # the class's name
        for column in range(3):
            found = tile(picture, margin + column * (SIDE + GAP), top)
            assert np.array_equal(found, images[2 * column + row])  # 0 2 4 are dogs, 1 3 5 cats
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["labels"] == [1, 0, 1, 0, 1, 0]
    assert (told["seed"], told["steps"], told["sampler"]) == (3, 2, "euler")
    assert (told["softvq"], told["torch"]) == (library.__version__, torch.__version__)


def test_images_of_a_class_each_have_their_captions_in_reading_order(tiny: Path, own: Pipeline, tmp_path: Path):
    words = [word for name in ("10 o'clock", "cat", "dog") for word in ("--class", name)]
    code, _, err = sample(tiny, *words, "-n", 3, "--out", tmp_path / "a.png")
    assert code == 0, err
    images, picture = expected(own, ["10 o'clock", "cat", "dog"], 3), Image.open(tmp_path / "a.png")
    header = (picture.height - 2 * (SIDE + GAP)) // 2
    assert picture.width == 2 * (SIDE + GAP)
    for number in range(3):
        left, top = number % 2 * (SIDE + GAP), number // 2 * (header + SIDE + GAP)
        assert np.asarray(picture)[top : top + header, left : left + SIDE].min() < 100
        assert np.array_equal(tile(picture, left, top + header), images[number])
    assert np.asarray(picture)[header + SIDE + GAP :, SIDE + GAP :].min() == 255  # there is no fourth


def test_each_of_few_classes_gets_as_many_by_default(tiny: Path, tmp_path: Path):
    """Sixteen images or a few more: three classes get six each, two eight."""
    for words, counts in (((), [6, 6, 6]), (("--class", 0, "--class", 2), [8, 0, 8]), (("--class", 1), [0, 16, 0])):
        path = tmp_path / f"{len(words)}.npz"
        assert sample(tiny, *words, "--steps", 1, "--npz", path)[0] == 0
        assert np.bincount(np.load(path)["arr_1"], minlength=3).tolist() == counts
    assert softvq("sample", "--model", tiny / "none", "--npz", tmp_path / "none.npz")[0] == 0
    assert len(np.load(tmp_path / "none.npz")["arr_0"]) == 16


def test_the_bundled_generator_draws_offline_by_default(tmp_path: Path):
    picture = tmp_path / "samples.png"
    told = result("sample", "-n", 2, "--class", "flags", "--steps", 8, "--out", picture)
    assert json.loads(picture.with_suffix(".json").read_text()) == {
        **{key: value for key, value in told.items() if key != "images"},
        "labels": [2, 2],
    }
    assert (told["model"], told["images"]) == ("emoji-sit", str(picture))
    assert np.asarray(Image.open(picture)).std() > 20


@pytest.mark.parametrize(("ending", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP")])
def test_the_file_is_of_the_kind_that_its_name_says(tiny: Path, tmp_path: Path, ending: str, kind: str):
    code, _, err = sample(tiny, "-n", 1, "--out", tmp_path / f"a.{ending}")
    assert code == 0, err
    with Image.open(tmp_path / f"a.{ending}") as picture:
        assert picture.format == kind


def test_one_image_is_not_called_images(tiny: Path, tmp_path: Path):
    for words, path in ((("--out",), "a.png"), (("--separate", "--out"), "a"), (("--npz",), "a.npz")):
        for number, told in ((1, "1 image"), (2, "2 images")):
            where = tmp_path / str(number) / path
            assert sample(tiny, "-n", number, *words, where)[1] == f"{told} in {where}\n"


def test_the_command_and_the_pipeline_make_the_same(tmp_path: Path):
    words = ["-n", 3, "--class", "flags", "--steps", 2, "--seed", 4]
    assert softvq("sample", *words, "--npz", tmp_path / "a.npz")[0] == 0
    images = Pipeline.from_pretrained("emoji-sit")("flags", num=3, steps=2, seed=4, progress=False)
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], np.stack([np.asarray(image) for image in images]))


# ---- Single files


def test_single_files_are_named_by_number_and_class(tiny: Path, own: Pipeline, tmp_path: Path):
    code, _, err = sample(tiny, "-n", 4, "--separate", "--out", tmp_path / "some")
    assert (code, err) == (0, "")
    images = expected(own, None, 4)
    names = ["000000-cat.png", "000001-dog.png", "000002-10-o-clock.png", "000003-cat.png"]
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == [*names, "settings.json"]
    for name, pixels in zip(names, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "some" / name)), pixels)
    told = json.loads((tmp_path / "some" / "settings.json").read_text())
    assert told["labels"] == [0, 1, 2, 0]
    assert (told["softvq"], told["torch"]) == (library.__version__, torch.__version__)


@pytest.mark.parametrize("lost", [3, 5, 6])
def test_a_lost_file_is_made_again_as_it_was(tiny: Path, tmp_path: Path, monkeypatch, lost: int):
    """In the middle of a part, at its end, and at the end of all."""
    monkeypatch.setattr(pipeline, "PART", 3)
    words = ("-n", 7, "--separate", "--batch-size", 2, "--out", tmp_path)
    assert sample(tiny, *words)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (path,) = tmp_path.glob(f"{lost:06}-*.png")
    path.unlink()
    images, made = Pipeline.images, []
    monkeypatch.setattr(Pipeline, "images", lambda self, r, n, *more: made.extend(n) or images(self, r, n, *more))
    assert sample(tiny, *words)[0] == 0
    assert lost in made
    assert len(made) <= 3  # of seven
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_whole_is_not_made_again_by_whatever_version(tiny: Path, tmp_path: Path, unasked, monkeypatch):
    monkeypatch.undo()
    words = {"files": ("-n", 3, "--separate", "--out", tmp_path / "a"), "array": ("-n", 3, "--npz", tmp_path / "a.npz")}
    for one in words.values():
        assert sample(tiny, *one)[0] == 0
    for path in (tmp_path / "a" / "settings.json", tmp_path / "a.json"):
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "softvq": "0.1", "torch": "1.0"}))
    monkeypatch.setattr(Pipeline, "images", lambda *_, **__: pytest.fail("images were made"))
    for one in words.values():
        assert sample(tiny, *one)[0] == 0
    for one, said in ((words["files"], "holds images of other settings"), (words["array"], "is there already, with")):
        assert said in refusal(1, "sample", "--model", tiny / "generator", *one, "--seed", 1)


def test_a_stopped_command_goes_on_with_the_part_that_it_was_at(tiny: Path, own: Pipeline, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pipeline, "PART", 2)
    images, made = Pipeline.images, []

    def stopping(self, request, numbers, *more):
        made.extend(numbers)
        if made == [0, 1, 2]:
            raise KeyboardInterrupt
        return images(self, request, numbers, *more)

    monkeypatch.setattr(Pipeline, "images", stopping)
    words = ("-n", 5, "--separate", "--batch-size", 1, "--out", tmp_path)
    code, _, err = sample(tiny, *words)
    assert (code, err) == (130, "softvq: stopped.\n")
    assert "holds images of other settings" in refusal(1, "sample", "--model", tiny / "generator", *words, "--seed", 1)
    assert sample(tiny, *words)[0] == 0
    assert made == [0, 1, 2, 2, 3, 4]
    monkeypatch.undo()
    found = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]).astype(int)
    assert np.abs(found - expected(own, None, 5)).max() <= 1


# ---- An array


def test_an_array_is_the_same_for_any_batch(tiny: Path, own: Pipeline, tmp_path: Path):
    for size in (1, 10):
        words = ("-n", 10, "--guidance", 2, "--batch-size", size, "--npz", tmp_path / f"{size}.npz")
        assert sample(tiny, *words)[0] == 0
    one, ten = (np.load(tmp_path / f"{size}.npz") for size in (1, 10))
    assert one["arr_0"].shape == (10, 16, 16, 3)
    assert one["arr_0"].dtype == np.uint8
    assert one["arr_1"].tolist() == [number % 3 for number in range(10)]
    assert np.abs(one["arr_0"].astype(int) - ten["arr_0"]).max() <= 1
    assert np.array_equal(ten["arr_0"], expected(own, None, 10, guidance=2.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.json", "1.npz", "10.json", "10.npz"]


def test_a_stopped_array_goes_on_and_its_parts_are_of_one_setting(tiny: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pipeline, "PART", 4)
    common = ("-n", 10, "--guidance", 2, "--npz")
    assert sample(tiny, *common, tmp_path / "whole.npz")[0] == 0
    images, made = Pipeline.images, []

    def stopping(self, request, numbers, *more):
        made.append(list(numbers))
        if len(made) == 2:
            raise KeyboardInterrupt
        return images(self, request, numbers, *more)

    monkeypatch.setattr(Pipeline, "images", stopping)
    assert sample(tiny, *common, tmp_path / "cut.npz")[0] == 130
    found = refusal(1, "sample", "--model", tiny / "generator", *common, tmp_path / "cut.npz", "--seed", 1)
    assert "holds part of an array with other settings" in found
    assert sample(tiny, *common, tmp_path / "cut.npz")[0] == 0
    assert made == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7], [8, 9]]
    whole, cut = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("whole", "cut"))
    assert np.array_equal(whole, cut)
    assert not (tmp_path / "cut.npz.parts").exists()


# ---- Without images


def test_classes_are_listed_and_nothing_is_made(tiny: Path, tmp_path: Path, unasked, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = sample(tiny, "--list-classes")
    assert (code, err) == (0, "")
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [[str(n), name] for n, name in enumerate(CLASSES)]
    assert result("sample", "--model", tiny / "generator", "--list-classes") == {"classes": CLASSES}
    assert softvq("sample", "--model", tiny / "none", "--list-classes")[1] == f"{tiny / 'none'} knows no classes\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--class", "dgo"), 2, "there is no class 'dgo'; did you mean dog? (--class)"),
        (("--class", "3"), 2, "there is no class '3'"),
        (("--class", "zzzz"), 2, "there is no class 'zzzz'; valid: cat, dog, hound, 10 o'clock (--class)."),
        (("--sampler", "ddpm"), 2, "a SiT is sampled with euler, heun"),
        (("-n", "0"), 2, "num must be at least 1, not 0 (--num)"),
        (("--batch-size", "0"), 2, "batch_size must be at least 1, not 0 (--batch-size)"),
        (("--steps", "0"), 2, "steps must be at least 1, not 0"),
        (("--seed", "-1"), 2, "seed must not be negative and be below 2^63, not -1 (--seed)"),
        (("-n", "2000"), 2, "a picture holds at most 1,024 images"),
        (("--interval", "0.5", "0.2"), 2, "interval must be a lower and a higher time"),
        (("--guidance", "nan"), 2, "guidance must be a finite number, not nan"),
        (("--out", "a.gif"), 2, "a.gif: a picture is written as .png, .jpg, .jpeg, .webp (--out)."),
        (("--out", "a"), 2, "a: a picture is written as .png, .jpg, .jpeg, .webp (--out)."),
        (("--npz", "a.np"), 2, "a.np: an array is written as .npz (--npz)."),
        (("--out", "file/a.png"), 1, "file/a.png cannot be written: file is a file."),
        (("--out", "file", "--separate"), 1, "file is a file; name a folder."),
        (("--npz", "file/a.npz"), 1, "file/a.npz cannot be written: file is a file."),
        (("--tokenizer", "nowhere"), 1, "no model folder 'nowhere'"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence_before_the_work(
    tiny: Path, tmp_path: Path, unasked, monkeypatch, words: tuple, code: int, said: str
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert said in refusal(code, "sample", "--model", tiny / "generator", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_tokenizer_is_refused(tiny: Path, tmp_path: Path, unasked):
    other = library.Tokenizer.from_pretrained(tiny / "tokenizer")
    with torch.no_grad():
        other.decoder.mask_token.add_(1)
    other.save_pretrained(tmp_path / "other")
    # What decodes may be trained again: `softvq train tokenizer --trains decoder` keeps the latents as they were.
    assert sample(tiny, "--tokenizer", tmp_path / "other", "--list-classes")[0] == 0
    with torch.no_grad():
        other.to_quantizer.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    found = refusal(1, "sample", "--model", tiny / "generator", "--tokenizer", tmp_path / "other")
    assert "was trained with another tokenizer" in found


def test_a_model_without_classes_takes_none(tiny: Path):
    found = refusal(2, "sample", "--model", tiny / "none", "--class", "dog")
    assert found == "there is no class 'dog'; the model knows no classes (--class)."
