"""The cache of latents: what it holds, in which order it is read, what it refuses."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import distributed
from softvq.data.latents import LatentIndex, Latents, shard_path
from softvq.data.sources import Folder
from softvq.encoding import encode
from softvq.errors import DataError
from softvq.layers import ViTConfig
from softvq.quantizers.gaussian import AEConfig
from softvq.tokenizer import Tokenizer, TokenizerConfig

TOKENS, CHANNELS = 4, 3


class Sides(Tokenizer):
    """Which image, and whether it is mirrored, can be read off its latents: the left half's and the right half's mean.
    `print` is its fingerprint."""

    def __init__(self, print: str = "f"):
        vit = ViTConfig(width=8, depth=1, heads=1, patch_size=8)
        super().__init__(TokenizerConfig(16, TOKENS, CHANNELS, vit, vit, AEConfig()))
        self.name, self.print = "t", print

    @property
    def latent_fingerprint(self) -> str:
        return self.print

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        sides = torch.stack([images[..., :8].mean((1, 2, 3)), images[..., 8:].mean((1, 2, 3))], 1)
        return torch.cat([sides, torch.ones(len(images), TOKENS * CHANNELS - 2)], 1).view(-1, TOKENS, CHANNELS)


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    for number in range(10):
        path = tmp_path / "images" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 16, 3), 10 * number, dtype=np.uint8)
        pixels[:, 8:] += 5
        Image.fromarray(pixels).save(path)
    return Folder(tmp_path / "images")


def made(images, out: Path, tokenizer: Tokenizer | None = None, **changes) -> Latents:
    settings = {"shard": 4, "batch_size": 3, "workers": 0, "progress": False} | changes
    index = encode(tokenizer or Sides(), images, out, **settings)
    cache = Latents(out)
    assert index == cache.index
    return cache


def expected(name: str, mirror: int) -> list[float]:
    number = int(Path(name).stem)
    sides = [10 * number / 127.5 - 1, (10 * number + 5) / 127.5 - 1]
    return sides[::-1] if mirror else sides


def test_every_image_and_its_mirror_with_its_class(source: Folder, tmp_path: Path):
    cache = made(source, tmp_path / "latents")
    assert cache.index.shards == [4, 4, 2]
    assert cache.index.classes == ["cat", "dog"]
    assert cache.labels.tolist() == source.labels
    for index, name in enumerate(source.names):
        for mirror in (0, 1):
            found = cache.read(index, mirror).flatten()[:2]
            np.testing.assert_allclose(found, expected(name, mirror), atol=1e-3)


def written(folder: Path, tokens: int, channels: int) -> Latents:
    """A cache of eight shards of 120 images, all zero but two numbers of each image and mirror; the zeros are holes,
    which need no room on disk."""
    each = tokens * channels * 2  # bytes
    header = {
        "latents": {"dtype": "F16", "shape": [120, 2, tokens, channels], "data_offsets": [0, 240 * each]},
        "labels": {"dtype": "I32", "shape": [120], "data_offsets": [240 * each, 240 * each + 480]},
    }
    begin = json.dumps(header).encode()
    begin += b" " * (-len(begin) % 8)
    folder.mkdir()
    for shard in range(8):
        with shard_path(folder, shard).open("wb") as file:
            file.write(len(begin).to_bytes(8, "little") + begin)
            for number in range(240):
                file.seek(8 + len(begin) + number * each)
                file.write(np.float16([shard, number]).tobytes())
            file.seek(8 + len(begin) + 240 * each)
            file.write(np.arange(120, dtype=np.int32).tobytes())
    LatentIndex("t", "f", "made up", {}, tokens, channels, [], [120] * 8).write(folder)
    return Latents(folder)


def test_from_disk_as_from_memory(tmp_path: Path):
    """More than 8 GB are read as they are needed: what changes on disk is seen, but not in what is held."""
    held, mapped = written(tmp_path / "held", 1, 2), written(tmp_path / "mapped", 1024, 2048)
    for a, b in itertools.islice(zip(held.batches(4, seed=1), mapped.batches(4, seed=1), strict=True), 5):
        assert b.latents.shape == (4, 1024, 2048)
        assert torch.equal(a.latents, b.latents[:, :1, :2])
        assert not b.latents[:, 1:].any()
        assert torch.equal(a.labels, b.labels)
    for cache, seen in ((held, [7, 239]), (mapped, [-1, -2])):
        assert cache.read(959, 1)[0, :2].tolist() == [7, 239]
        path = shard_path(cache.folder, 7)
        offset = path.stat().st_size - 480 - cache.index.tokens * cache.index.channels * 2
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(np.float16([-1, -2]).tobytes())
        assert cache.read(959, 1)[0, :2].tolist() == seen


def test_batches_are_epochs_of_either_mirror_and_resume_at_any_step(source: Folder, tmp_path: Path):
    cache = made(source, tmp_path / "latents")
    batches = list(itertools.islice(cache.batches(5, seed=3), 200))
    for epoch in range(100):
        names = [name for batch in batches[2 * epoch : 2 * epoch + 2] for name in batch.names]
        assert sorted(names) == sorted({f"image {i}" for i in range(10)})
    sides = torch.cat([batch.latents[:, 0, 0] - batch.latents[:, 0, 1] for batch in batches])
    assert 0.4 < float((sides > 0).float().mean()) < 0.6  # the mirrored are brighter on the left
    again = list(itertools.islice(cache.batches(5, seed=3, start_step=7), 3))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(again, batches[7:10], strict=True))


def test_two_ranks_read_what_one_does(source: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = made(source, tmp_path / "latents")
    whole = next(cache.batches(6, seed=0)).latents
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        halves.append(next(cache.batches(6, seed=0)).latents)
    assert torch.equal(torch.cat(halves), whole)


def test_each_part_of_a_batch_is_the_same_for_any_number_of_ranks(
    source: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = made(source, tmp_path / "latents")
    whole = next(cache.batches(8, seed=0, start_step=3, parts=2))
    assert torch.equal(whole.latents, next(cache.batches(8, seed=0, start_step=3)).latents)
    assert whole.step == 3
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(next(cache.batches(8, seed=0, start_step=3, parts=2)))
    for part in range(2):
        mine, expected = slice(2 * part, 2 * part + 2), whole.part(slice(4 * part, 4 * part + 4))
        assert torch.equal(torch.cat([share.part(mine).latents for share in shares]), expected.latents)
        assert [name for share in shares for name in share.part(mine).names] == expected.names
    with pytest.raises(DataError, match=r"batch_size 6 .* 2 processes × 2 parts .* a multiple of 4") as error:
        next(cache.batches(6, seed=0, parts=2))
    assert error.value.setting == "batch_size"


def test_a_stopped_encoding_goes_on_with_the_missing_shards(source: Folder, tmp_path: Path):
    out = tmp_path / "latents"
    whole = made(source, out)
    expected = [whole.read(i, m) for i in range(10) for m in (0, 1)]
    (out / "latents-00001.safetensors").unlink()
    (out / "index.json").unlink()
    kept = (out / "latents-00000.safetensors").stat().st_mtime_ns
    again = made(source, out)
    assert (out / "latents-00000.safetensors").stat().st_mtime_ns == kept
    assert all(
        torch.equal(a, b) for a, b in zip(expected, (again.read(i, m) for i in range(10) for m in (0, 1)), strict=True)
    )


def test_other_latents_are_not_mixed_in(source: Folder, tmp_path: Path):
    images, out = str(source.root), tmp_path / "latents"
    made(images, out)
    with pytest.raises(DataError, match=r"fingerprint was 'f', and is 'g' now"):
        made(images, out, Sides("g"))


def test_bad_images_are_left_out_and_named(source: Folder, tmp_path: Path):
    (tmp_path / "images" / "dog" / "2.png").write_bytes(b"no image")
    cache = made(Folder(tmp_path / "images"), tmp_path / "latents")
    assert len(cache) == 9
    assert list(cache.index.bad) == ["dog/2.png"]
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 10 images can be read"):
        made(Folder(tmp_path / "images"), tmp_path / "other")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda out: (out / "index.json").unlink(), "holds no latents"),
        (lambda out: (out / "index.json").write_text("{"), "is not an index of latents"),
        (lambda out: (out / "latents-00001.safetensors").unlink(), "missing or damaged"),
        (lambda out: (out / "latents-00001.safetensors").write_bytes(b"0" * 50), "missing or damaged"),
        (
            lambda out: (out / "latents-00001.safetensors").write_bytes(
                (out / "latents-00002.safetensors").read_bytes()
            ),
            r"shape \(2, 2, 4, 3\), expected \(4, 2, 4, 3\)",
        ),
    ],
)
def test_damage_is_a_sentence(source: Folder, tmp_path: Path, damage, reason: str):
    made(source, tmp_path / "latents")
    damage(tmp_path / "latents")
    with pytest.raises(DataError, match=reason):
        Latents(tmp_path / "latents")
