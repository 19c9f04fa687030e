"""Model folders: written whole, read back to the bit, and refused with a sentence when something is wrong."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from softvq import Tokenizer, files, hub
from softvq.errors import ConfigError, ModelError
from softvq.layers import ViTConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.tokenizer import TokenizerConfig

VIT = ViTConfig(width=16, depth=1, heads=1, patch_size=8)
CONFIG = TokenizerConfig(16, 4, 2, VIT, VIT, SoftVQConfig(8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(CONFIG, {"figures": {"psnr": 20.5}})
    tokenizer.set_statistics(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.6]))
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_save_load_save_is_byte_identical(folder: Path, tmp_path: Path):
    loaded = Tokenizer.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "again")
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_loaded_model_is_ready(folder: Path):
    loaded = Tokenizer.from_pretrained(str(folder))
    assert not loaded.training
    assert loaded.about["figures"] == {"psnr": 20.5}
    assert torch.equal(loaded.latent_std, torch.tensor([0.5, 0.6]))
    assert all(p.device.type == "cpu" and p.requires_grad for p in loaded.parameters())
    image = torch.zeros(1, 3, 16, 16)
    assert torch.equal(loaded.decode(loaded.encode(image)), loaded.decode(loaded.encode(image)))


def test_the_bundled_tokenizer_loads():
    assert "softvq-emoji-64" in hub.bundled()
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    latents = tokenizer.encode(torch.ones(1, 3, 64, 64))
    assert latents.shape == (1, tokenizer.config.tokens, tokenizer.config.latent_dim)
    size = (hub.BUNDLED / "softvq-emoji-64" / hub.WEIGHTS).stat().st_size
    assert size <= 15_000_000


def test_half_precision_halves_the_file_and_loads_as_float32(folder: Path, tmp_path: Path):
    whole = Tokenizer.from_pretrained(folder)
    whole.save_pretrained(tmp_path / "half", torch.float16)
    half = Tokenizer.from_pretrained(tmp_path / "half")
    assert (tmp_path / "half" / hub.WEIGHTS).stat().st_size < 0.7 * (folder / hub.WEIGHTS).stat().st_size
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == torch.float32
        expected = whole.state_dict()[name]
        assert torch.equal(tensor, expected if name.startswith("latent_") else expected.half().float())
    half.save_pretrained(tmp_path / "again", torch.float16)
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_what_could_not_be_loaded_again_is_not_saved(folder: Path, tmp_path: Path):
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.from_quantizer.bias.data[0] = 1e5  # beyond float16
    with pytest.raises(
        ModelError, match=r"from_quantizer\.bias holds NaN or Inf as torch\.float16; nothing was written"
    ):
        tokenizer.save_pretrained(tmp_path / "new", torch.float16)
    with pytest.raises(ValueError, match=r"floating-point type, not torch\.int8"):
        tokenizer.save_pretrained(tmp_path / "new", torch.int8)
    tokenizer.about["odd"] = object()
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(TypeError):
        tokenizer.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_readme_of_ones_own_stays(folder: Path):
    (folder / "README.md").write_text("# Mine\n")
    Tokenizer.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_text() == "# Mine\n"


def edit(folder: Path, change) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


def rewrite(folder: Path, change) -> None:
    tensors = files.read_tensors(folder / hub.WEIGHTS)
    change(tensors)
    files.write_tensors(folder / hub.WEIGHTS, tensors)


def poison(tensors: dict) -> None:
    tensors["latent_mean"][0] = float("nan")


def nested(depth: int) -> dict:
    inner: dict = {"type": "AE"}
    for _ in range(depth):
        inner = {"type": "Residual", "inner": inner, "depth": 1}
    return inner


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json does not exist"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors does not exist"),
    "broken json": (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
    "json list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "other format": (lambda f: edit(f, lambda d: d.update(format=99)), "not a softvq model configuration"),
    "other kind": (lambda f: edit(f, lambda d: d.update(kind="generator")), "holds a 'generator', not a 'tokenizer'"),
    "unknown key": (
        lambda f: edit(f, lambda d: d["config"].update(tokns=3)),
        "unknown key 'tokns'; did you mean tokens",
    ),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "truncated",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated or not a safetensors"),
    "missing": (lambda f: rewrite(f, lambda t: t.pop("decoder.mask_token")), "lacks the tensor decoder.mask_token"),
    "extra": (lambda f: rewrite(f, lambda t: t.update(teacher=torch.zeros(1))), "has the tensor teacher"),
    "shape": (
        lambda f: rewrite(f, lambda t: t.update({"to_quantizer.weight": torch.zeros(3, 16)})),
        r"to_quantizer.weight has shape \(3, 16\), expected \(2, 16\)",
    ),
    "nan": (lambda f: rewrite(f, poison), "latent_mean holds NaN"),
    "whole numbers": (
        lambda f: rewrite(f, lambda t: t.update(latent_mean=torch.zeros(2, dtype=torch.int32))),
        r"latent_mean is torch\.int32, expected a floating-point type",
    ),
    "beyond float32": (
        lambda f: rewrite(f, lambda t: t.update(latent_mean=torch.full((2,), 1e300, dtype=torch.float64))),
        "latent_mean holds NaN or Inf",
    ),
    "odd recipe": (lambda f: edit(f, lambda d: d["about"].update(recipe=5)), "is not a softvq model configuration"),
    "odd figures": (lambda f: edit(f, lambda d: d["about"].update(figures=[1])), "is not a softvq model configuration"),
    "odd floor": (
        lambda f: edit(f, lambda d: d["about"]["figures"].update(psnr_floor="x")),
        "is not a softvq model configuration",
    ),
    "odd limits": (
        lambda f: edit(f, lambda d: d["about"].update(domain_limits={"white": [0.1, "x"]})),
        "is not a softvq model configuration",
    ),
    "half a character": (
        lambda f: edit(f, lambda d: d["about"].update(note="\ud800")),
        "is not a softvq model configuration",
    ),
    "two lines": (lambda f: edit(f, lambda d: d.update(kind="a\nb")), r"holds a 'a\\nb', not a 'tokenizer'"),
    "no hidden unit": (lambda f: edit(f, lambda d: d["config"]["encoder"].update(mlp_ratio=0.01)), "one hidden unit"),
    "groups": (
        lambda f: edit(f, lambda d: d["config"].update(quantizer={"type": "Product", "groups": 3})),
        "4 tokens cannot be split into the 3 equal groups",
    ),
    "a million codebooks": (
        lambda f: edit(f, lambda d: d["config"].update(quantizer={"type": "Residual", "depth": 10**6})),
        "1000000 codebooks, more than 1024",
    ),
    "somebody else's weights": (
        lambda f: files.write_tensors(f / hub.WEIGHTS, {f"t{i}": torch.zeros(1) for i in range(60)}),
        "holds another model: none of its 60 tensors",
    ),
    "no deviation": (lambda f: rewrite(f, lambda t: t["latent_std"].zero_()), "latent_std must be positive"),
    "unknown outer key": (lambda f: edit(f, lambda d: d.update(knd="x")), "unknown key 'knd'"),
    "a million blocks": (
        lambda f: edit(f, lambda d: d["config"]["encoder"].update(depth=200)),
        r"has only 51 tensors, but the model it is for has 202 blocks and codebooks",
    ),
    "too wide": (
        lambda f: edit(f, lambda d: d["config"].update(latent_dim=10**30)),
        "is for a model that is too large",
    ),
    "quantizers without end": (
        lambda f: edit(f, lambda d: d["config"].update(quantizer=nested(400))),
        "nests quantizers too deeply",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_sentence(folder: Path, damage: str):
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises((ModelError, ConfigError), match=message) as caught:
        Tokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_unknown_names():
    with pytest.raises(ModelError, match=r"no model folder 'nothing'.*softvq-emoji-64"):
        Tokenizer.from_pretrained("nothing")
    with pytest.raises(ModelError, match="can be no model's name or folder"):
        Tokenizer.from_pretrained("a" * 5000)


def test_a_local_folder_named_like_the_owner_does_not_hide_the_hub(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SoftVQVAE" / "softvq-l-32").mkdir(parents=True)
    with pytest.raises(ModelError, match="could not be had from the hub"):
        Tokenizer.from_pretrained("SoftVQVAE/softvq-l-64")


def test_without_a_network_a_hub_name_is_refused_at_once():
    start = time.perf_counter()
    with pytest.raises(
        ModelError, match=r"'SoftVQVAE/softvq-l-64' is no folder here .*HF_HUB_OFFLINE is set"
    ) as caught:
        Tokenizer.from_pretrained("SoftVQVAE/softvq-l-64")
    assert time.perf_counter() - start < 5  # no rounds of retries; importing the hub's client is most of it
    assert "download its config.json and model.safetensors" in str(caught.value)


def test_a_model_downloaded_before_is_found_without_a_network(folder: Path, tmp_path: Path):
    """In a process of its own, with a cache as the hub's client lays it out."""
    repository = tmp_path / "cache" / "models--me--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    code = "from softvq import Tokenizer; print(Tokenizer.from_pretrained('me/tiny').about['figures']['psnr'])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "20.5", result.stderr


class FakeHub:
    """Stands in for `huggingface_hub.HfApi`."""

    def __init__(self):
        self.uploaded: dict[str, bytes] = {}

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
        if name == "else/model":
            raise RuntimeError("403 Forbidden: you may not write there\nRequest ID: 1")
        self.private = private
        return f"hub/{name}"

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> None:
        self.uploaded = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        assert set(self.uploaded) <= set(allow_patterns)


@pytest.fixture
def fake_hub(monkeypatch) -> FakeHub:
    import huggingface_hub

    api = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    return api


def test_push_uploads_what_loads_again(folder: Path, tmp_path: Path, fake_hub: FakeHub):
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.push_to_hub("me/model", private=True) == "hub/me/model"
    assert fake_hub.private
    for name, content in fake_hub.uploaded.items():
        (tmp_path / name).write_bytes(content)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.about == tokenizer.about
    assert all(torch.equal(tensor, tokenizer.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_push_refusals_are_sentences(folder: Path, fake_hub: FakeHub):
    tokenizer = Tokenizer.from_pretrained(folder)
    with pytest.raises(ModelError, match="'model' is not a hub name; write owner/name"):
        tokenizer.push_to_hub("model")
    with pytest.raises(ModelError, match=r"'else/model' could not be uploaded to the hub \(403 Forbidden.*\)\.$"):
        tokenizer.push_to_hub("else/model")


def test_the_card_says_what_the_model_is_and_how_good(tmp_path: Path):
    recipe = {"name": "mine", "data": "photos"}
    about = {"recipe": recipe, "command": "softvq train tokenizer mine", "figures": {"psnr": 20.123456, "images": 7}}
    Tokenizer(CONFIG, {**about, "license": "mit"}).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: softvq\n")
    for part in (
        *("license: mit", "# softvq mine", "16×16 images ↔ 4 tokens of 2 numbers", "`softvq train tokenizer mine`"),
        *("Training images: `photos`", "| psnr | 20.1235 |", "| images | 7 |", "Tokenizer.from_pretrained"),
    ):
        assert part in card


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
