"""`softvq encode`: what is told and tried next; what the cache holds is in tests/test_encoding.py."""

import shutil
from pathlib import Path

import pytest
import torch

from softvq import Tokenizer
from softvq.data.latents import Latents
from softvq.data.loader import ordered_batches
from softvq.data.sources import Folder
from tests.cli.running import refusal, result, softvq


def test_the_command_encodes_with_the_bundled_tokenizer(gallery: Path, tmp_path: Path):
    out = tmp_path / "latents"
    assert result("encode", gallery, "--out", out, "--workers", 0) == {
        **{"latents": str(out), "images": 7, "shards": 1, "unreadable": 0}
    }
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    cache = Latents(out)
    assert cache.index.fingerprint == tokenizer.latent_fingerprint != tokenizer.fingerprint
    [batch] = ordered_batches(Folder(gallery), size=64, batch_size=10)
    with torch.no_grad():
        for mirror, images in enumerate((batch.images, batch.images.flip(-1))):
            latents = torch.stack([cache.read(i, mirror) for i in range(7)])
            torch.testing.assert_close(latents, tokenizer.encode(images), atol=4e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("images", "bad", "more", "told"),
    [
        (1, 0, (), "1 image in 1 shard; try: "),
        (2, 0, (), "2 images in 1 shard; try: "),
        (3, 1, ("--shard", 2), "3 images in 2 shards, 1 unreadable image left out; try: "),
        (1, 2, (), "1 image in 1 shard, 2 unreadable images left out; try: "),
    ],
)
def test_what_is_made_is_told(tiny: Path, gallery: Path, tmp_path: Path, images: int, bad: int, more: tuple, told: str):
    (tmp_path / "images").mkdir()
    for number, path in enumerate(sorted(gallery.rglob("*.png"))[:images]):
        shutil.copy(path, tmp_path / "images" / f"{number}.png")
    for number in range(bad):
        (tmp_path / "images" / f"bad{number}.png").write_bytes(b"no image")
    own = ("--model", tiny / "tokenizer", "--out", tmp_path / "latents", "--workers", 0, *more)
    code, out, err = softvq("encode", tmp_path / "images", *own)
    assert (code, err) == (0, "")
    assert out.startswith(told)
    assert len(Latents(tmp_path / "latents").index.bad) == bad


def test_names_are_kept_and_mirrors_may_be_left_out(tiny: Path, gallery: Path, tmp_path: Path):
    own = ("--model", tiny / "tokenizer", "--workers", 0, "--no-mirror", "--shard", 3)
    assert result("encode", gallery, "--out", tmp_path, *own)["shards"] == 3
    cache = Latents(tmp_path)
    assert cache.names == Folder(gallery).names
    assert cache.index.mirrored is False


def test_the_generator_that_fits_is_tried_next(tiny: Path, gallery: Path, tmp_path: Path, monkeypatch):
    """The paper's for the paper's tokenizers, else one that takes any latents; with the same plugins."""
    from softvq import encoding, plugins

    index = encoding.encode(tiny / "tokenizer", str(gallery), tmp_path / "made", workers=0, progress=False)
    monkeypatch.setattr(encoding, "encode", lambda *_, **__: index)
    monkeypatch.setattr(plugins, "load", lambda file: None)
    for name, recipe in (("SoftVQVAE/softvq-l-64", "sit-xl-softvq-l-64"), (tiny / "tokenizer", "emoji-sit")):
        out = softvq("encode", gallery, "--model", name, "--out", "my latents", "--plugin", "a b.py")[1]
        assert out.endswith(f"try: softvq train generator {recipe} --data 'my latents' --plugin 'a b.py'\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--batch-size", 0), 2, "batch_size must be at least 1, not 0 (--batch-size)."),
        (("--shard", 0), 2, "shard must be at least 1, not 0 (--shard)."),
        (("--workers", -1), 2, "workers must be at least 0, not -1 (--workers)."),
        (("--model", "nowhere"), 1, "no model folder 'nowhere'"),
        (("--model", "{tiny}/generator"), 1, "holds a 'generator', not a 'tokenizer'"),
    ],
)
def test_what_cannot_be_encoded_is_one_sentence(tiny: Path, gallery: Path, tmp_path: Path, words, code: int, said: str):
    filled = [str(word).format(tiny=tiny) for word in words]
    own = [] if "--model" in filled else ["--model", tiny / "tokenizer"]
    assert said in refusal(code, "encode", gallery, "--out", tmp_path / "out", *own, *filled)
    assert not (tmp_path / "out").exists()
