"""`softvq decode`: latents of a file, and of a folder that encode wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from softvq import Tokenizer
from softvq.data.images import to_bytes
from softvq.data.latents import Latents
from softvq.files import read_tensors, write_tensors
from tests.cli.running import refusal, result, softvq

NAMES = ["cat/0.png", "cat/1.png", "cat/7.png", "cat/tabby.png", "dog/0.png", "dog/2.png", "dog/hound.png"]


@pytest.fixture(scope="module")
def cache(tiny: Path, gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "latents"
    words = ("encode", gallery, "--model", tiny / "tokenizer", "--out", folder, "--shard", 3, "--workers", 0)
    assert result(*words)["images"] == len(NAMES)
    return folder


def decoded(out: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(out.iterdir())}


def expected(tiny: Path, cache: Path, number: int) -> np.ndarray:
    with torch.no_grad():
        image = Tokenizer.from_pretrained(tiny / "tokenizer").decode(Latents(cache).read(number, 0)[None])
    return to_bytes(image)[0].permute(1, 2, 0).numpy()


# ---- Of a folder


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (["cat/1.png"], [1]),  # its whole name
        (["tabby.png"], [3]),  # its file's name
        (["hound"], [6]),  # without the ending
        (["4"], [4]),  # a number
        (["7"], None),  # not the image called 7.png: there are seven images, 0 to 6
        (["7.png"], [2]),
        (["5", "tabby", "cat/0.png"], [5, 3, 0]),
    ],
)
def test_images_by_name_or_number(
    tiny: Path, cache: Path, tmp_path: Path, wanted: list[str], numbers: list[int] | None
):
    words = ["decode", cache, "--out", tmp_path, *(word for one in wanted for word in ("--image", one))]
    if numbers is None:
        assert refusal(1, *words) == f"{cache} holds the images 0 to 6, and none 7 (--image)."
        return
    files = result(*words)["images"]
    names = [f"{number:06}-{Path(NAMES[number]).stem}.png" for number in numbers]
    assert [Path(file).name for file in files] == names
    found = decoded(tmp_path)
    assert len(found) == len(names)
    for name, number in zip(names, numbers, strict=True):
        assert np.abs(found[name].astype(int) - expected(tiny, cache, number)).max() <= 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("0.png", "{cache} holds 2 images called '0.png': write cat/0.png or dog/0.png (--image)."),
        ("taby", "{cache} holds no image 'taby'; did you mean tabby"),
        ("zebra", "{cache} holds no image 'zebra'; valid: "),
        ("70", "{cache} holds the images 0 to 6, and none 70 (--image)."),
    ],
)
def test_an_image_that_is_not_there_or_more_than_one_is_a_sentence(cache: Path, tmp_path: Path, wanted: str, said: str):
    found = refusal(1, "decode", cache, "--image", wanted, "--out", tmp_path / "out")
    assert found.startswith(said.format(cache=cache))
    assert not (tmp_path / "out").exists()


def test_without_names_the_first_sixteen_or_so_many(tiny: Path, cache: Path, tmp_path: Path):
    code, out, err = softvq("decode", cache, "--out", tmp_path / "all")
    assert (code, out, err) == (0, f"7 images in {tmp_path / 'all'}\n", "")
    assert list(decoded(tmp_path / "all")) == [f"{n:06}-{Path(name).stem}.png" for n, name in enumerate(NAMES)]
    assert softvq("decode", cache, "--out", tmp_path / "one", "-n", 1)[1] == f"1 image in {tmp_path / 'one'}\n"
    assert list(decoded(tmp_path / "one")) == ["000000-0.png"]
    many = {"latents": torch.zeros(40, 4, 4)}
    write_tensors(tmp_path / "many.safetensors", many, {"model": str(tiny / "tokenizer")})
    words = ("decode", tmp_path / "many.safetensors", "--out", tmp_path / "many")
    assert len(result(*words)["images"]) == 40  # of a file all


def test_a_folder_of_more_images_gives_sixteen(tiny: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()
    for number in range(18):
        Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(tmp_path / "images" / f"{number:02}.png")
    words = ("--model", tiny / "tokenizer", "--out", tmp_path / "latents", "--workers", 0)
    assert softvq("encode", tmp_path / "images", *words)[0] == 0
    assert len(result("decode", tmp_path / "latents", "--out", tmp_path / "out")["images"]) == 16
    assert len(result("decode", tmp_path / "latents", "--out", tmp_path / "out", "-n", 17)["images"]) == 17


def test_latents_of_another_tokenizer_are_refused(tiny: Path, cache: Path, tmp_path: Path, monkeypatch):
    other = Tokenizer.from_pretrained(tiny / "tokenizer")
    with torch.no_grad():
        other.to_quantizer.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    monkeypatch.setattr(Tokenizer, "decode", lambda *_: pytest.fail("latents were decoded"))
    words = ("decode", cache, "--out", tmp_path / "out")
    found = refusal(1, *words, "--model", tmp_path / "other")
    own = Tokenizer.from_pretrained(tiny / "tokenizer").latent_fingerprint
    assert f"holds latents of another tokenizer ({tiny / 'tokenizer'}, {own}) than {tmp_path / 'other'}" in found
    assert found.endswith("(--model).")
    found = refusal(1, *words, "--model", "softvq-emoji-64")
    assert "holds latents of 4 × 4, but softvq-emoji-64 decodes 64 × 16; give the model that made them" in found
    assert not (tmp_path / "out").exists()


def test_a_cache_of_an_earlier_version_knows_no_names(cache: Path, tmp_path: Path):
    old = Path(shutil.copytree(cache, tmp_path / "old"))
    for path in old.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = {key: value for key, value in file.metadata().items() if key != "names"}
        write_tensors(path, read_tensors(path), metadata)
    assert Latents(old).names == []
    found = refusal(1, "decode", old, "--image", "tabby")
    assert found == f"{old} does not say its images' names; give numbers, 0 to 6 (--image)."
    files = result("decode", old, "--image", 3, "--out", tmp_path / "out")["images"]
    assert [Path(file).name for file in files] == ["000003.png"]


# ---- Of a file


def test_latents_go_through_a_file(emoji: Path, photo: Path, tmp_path: Path):
    latents, decoded = tmp_path / "l.safetensors", tmp_path / "decoded"
    picture = tmp_path / "r.png"
    assert softvq("reconstruct", emoji, photo, "--save-latents", latents, "--out", picture)[0] == 0
    assert read_tensors(latents)["latents"].shape == (2, 64, 16)
    code, out, _ = softvq("decode", latents, "--out", decoded, "--json")
    assert code == 0
    names = [Path(path).name for path in json.loads(out)["images"]]
    assert names == ["000000-emoji.png", "000001-photo.png"]
    assert Image.open(decoded / names[0]).size == (64, 64)
    assert [Path(path).name for path in result("decode", latents, "--out", decoded, "--image", "photo")["images"]] == [
        "000001-photo.png"
    ]


def test_decoding_another_models_latents_is_refused(tmp_path: Path):
    write_tensors(tmp_path / "l.safetensors", {"latents": torch.zeros(1, 32, 64)})
    words = ("decode", tmp_path / "l.safetensors", "--out", tmp_path / "out")
    assert "does not say which tokenizer made it; name one (--model)." in refusal(2, *words)
    found = refusal(1, *words, "--model", "softvq-emoji-64")
    assert "32 × 64, but softvq-emoji-64 decodes 64 × 16" in found


def test_damaged_latents_are_refused_and_odd_names_are_numbers(tiny: Path, tmp_path: Path):
    path, own = tmp_path / "l.safetensors", {"model": str(tiny / "tokenizer")}
    write_tensors(path, {"latents": torch.full((1, 4, 4), torch.nan)}, own)
    assert refusal(1, "decode", path).endswith("the file is damaged.")
    write_tensors(path, {"tokens": torch.zeros(1, 4, 4)}, own)
    assert "holds no tensor 'latents' of shape (N, L, D)" in refusal(1, "decode", path)
    for names in ("[", "3", '["one", "two"]'):
        write_tensors(path, {"latents": torch.zeros(1, 4, 4)}, {"names": names, **own})
        files = result("decode", path, "--out", tmp_path / "d")["images"]
        assert Path(files[0]).name == "000000.png"
