"""diffusers' autoencoders as tokenizers: the same numbers as diffusers gives, folded; what cannot be one is a sentence;
and the chain encode → train generator → sample with one."""

import json
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from softvq import Generator
from softvq.autoencoders import FoldedAutoencoder
from softvq.cli.main import main
from softvq.data.latents import Latents
from softvq.errors import ModelError
from tests.later import Later

pytestmark = pytest.mark.skipif(find_spec("diffusers") is None, reason="pip install 'softvq[autoencoders]'")
diffusers = Later("diffusers")

WEIGHTS = "diffusion_pytorch_model.safetensors"
MEANS, STDS = [0.1, -0.2, 0.3, 0.0], [0.5, 2.0, 1.0, 0.25]
# Configuration → its mean and deviation of a channel
STATISTICS = {
    "plain": ({}, [0.0] * 4, [1 / 0.18215] * 4),
    "shifted": ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, [0.1159] * 4, [1 / 0.3611] * 4),
    "by channel": ({"latents_mean": MEANS, "latents_std": STDS, "scaling_factor": 1.0}, MEANS, STDS),
}


def kl(folder: Path, seed: int = 0, **more) -> Path:
    """A random AutoencoderKL that halves images; its posterior is far from its mean."""
    torch.manual_seed(seed)
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        sample_size=64,
        **more,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def kls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("kl")
    return {name: kl(where / name.replace(" ", "-"), **more) for name, (more, *_) in STATISTICS.items()}


@pytest.fixture(scope="session")
def dc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderDC: 8 times smaller a side."""
    torch.manual_seed(0)
    blocks = {f"{side}_block_out_channels": (16, 32, 32, 32) for side in ("encoder", "decoder")}
    layers = {f"{side}_layers_per_block": (1, 1, 1, 1) for side in ("encoder", "decoder")}
    scales = {f"{side}_qkv_multiscales": ((), (), (), ()) for side in ("encoder", "decoder")}
    folder = tmp_path_factory.mktemp("dc")
    diffusers.AutoencoderDC(latent_channels=8, **blocks, **layers, **scales, scaling_factor=0.41).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def copied(kls: dict[str, Path], tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(kls["plain"], tmp_path / "copied"))


def load(folder: Path, size: int | str = 64) -> FoldedAutoencoder:
    return FoldedAutoencoder.load(f"diffusers:{folder}@{size}")


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def folded(latents: Tensor, patch: int) -> Tensor:
    """Token by token, row by row; of each the numbers by place and then channel."""
    tokens = []
    for row in range(0, latents.shape[2], patch):
        for column in range(0, latents.shape[3], patch):
            places = [latents[:, :, row + i, column + j] for i in range(patch) for j in range(patch)]
            tokens.append(torch.cat(places, dim=1))
    return torch.stack(tokens, dim=1)


# ---- The same numbers


@pytest.mark.parametrize("name", STATISTICS)
@torch.no_grad()
def test_latents_are_the_posteriors_mean_shifted_scaled_and_folded_and_decode_undoes_it(kls, name: str):
    theirs, x = diffusers.AutoencoderKL.from_pretrained(kls[name]), images(64)
    _, mean, std = STATISTICS[name]
    latents = theirs.encode(x).latent_dist.mean
    expected = folded((latents - torch.tensor(mean).view(4, 1, 1)) / torch.tensor(std).view(4, 1, 1), 2)
    tokenizer = load(kls[name])
    torch.testing.assert_close(tokenizer.encode(x), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tokenizer.decode(expected), theirs.decode(latents).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dc_ae_latents_are_scaled_and_its_images_are_diffusers_own(dc: Path):
    theirs, x, tokenizer = diffusers.AutoencoderDC.from_pretrained(dc), images(64), load(dc)
    latents = theirs.encode(x).latent
    torch.testing.assert_close(tokenizer.encode(x), folded(latents * 0.41, 1), rtol=1e-4, atol=1e-5)
    decoded = tokenizer.decode(tokenizer.encode(x))
    torch.testing.assert_close(decoded, theirs.decode(latents).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_spec("transformers") is None, reason="diffusers' RAE needs transformers")
@torch.no_grad()
def test_an_rae_takes_and_gives_0_to_1_and_divides_out_its_own_statistics(tmp_path: Path):
    torch.manual_seed(0)
    sizes = {"encoder_hidden_size": 64, "encoder_num_hidden_layers": 1, "encoder_patch_size": 14, "patch_size": 16}
    decoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    statistics = {"latents_mean": torch.randn(64, 1, 1), "latents_std": torch.rand(64, 1, 1) + 0.5}
    diffusers.AutoencoderRAE(
        encoder_input_size=56,
        scaling_factor=0.5,
        **sizes,
        **{f"decoder_{name}": value for name, value in decoder.items()},
        **statistics,
    ).save_pretrained(tmp_path)
    theirs, x, tokenizer = diffusers.AutoencoderRAE.from_pretrained(tmp_path), images(64), load(tmp_path)
    assert (tokenizer.config.tokens, tokenizer.config.latent_dim) == (16, 64)
    latents = theirs.encode((x + 1) / 2).latent
    torch.testing.assert_close(tokenizer.encode(x), folded(latents, 1))
    torch.testing.assert_close(tokenizer.decode(folded(latents, 1)), theirs.decode(latents).sample * 2 - 1)
    with pytest.raises(ModelError, match="makes 64 px of 56 px"):  # its encoder takes any size, its decoder gives one
        load(tmp_path, 56)


@pytest.mark.parametrize(
    ("which", "size", "tokens", "width"),
    [
        ("kl", 64, 256, 16),  # a grid of 32, by two
        ("kl", 32, 256, 4),  # of 16: DiT's tokens as they are
        ("kl", 36, 81, 16),  # of 18
        ("kl", 34, 289, 4),  # of 17, which two does not divide
        ("dc", 64, 64, 8),
        ("dc", 144, 81, 32),
    ],
)
@torch.no_grad()
def test_fine_grids_are_folded_by_two(kls, dc: Path, which: str, size: int, tokens: int, width: int):
    tokenizer, x = load(kls["plain"] if which == "kl" else dc, size), images(size)
    assert (tokenizer.config.tokens, tokenizer.config.latent_dim) == (tokens, width)
    latents = tokenizer.encode(x)
    assert latents.shape == (2, tokens, width)
    assert tokenizer.decode(latents).shape == x.shape
    torch.testing.assert_close(tokenizer.encode(x[1:]), latents[1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=rf"must be \(B, 3, {size}, {size}\)"):
        tokenizer.encode(x[:, :, :, :-2])
    with pytest.raises(ValueError, match=rf"must be \(B, {tokens}, {width}\)"):
        tokenizer.decode(latents[:, :-1])


@torch.no_grad()
def test_without_a_size_images_are_of_256_px(dc: Path):
    tokenizer = FoldedAutoencoder.load(f"diffusers:{dc}")
    assert (tokenizer.config.image_size, tokenizer.config.tokens) == (256, 256)


@torch.no_grad()
def test_it_stands_where_a_tokenizer_stands(kls):
    tokenizer, x = load(kls["shifted"]), images(64)
    assert tokenizer.kind == "tokenizer"
    assert not tokenizer.training
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    result = tokenizer(x)
    assert torch.equal(result.encoded, tokenizer.encode(x))
    assert torch.equal(result.quantized.latent, result.encoded)
    assert torch.equal(result.images, tokenizer.decode(result.encoded))
    assert result.quantized.indices is None


@torch.no_grad()
def test_it_is_a_program_of_torch_export_for_any_batch(kls):
    """Of fewer than 64 images: from there on diffusers' decoder takes another way."""
    tokenizer = load(kls["shifted"])
    sizes = {"images": {0: torch.export.Dim("batch", max=63)}}
    program = torch.export.export(tokenizer, (images(64),), dynamic_shapes=sizes, strict=False).module()
    for batch in (1, 2, 5):
        given = images(64, batch)
        torch.testing.assert_close(program(given).images, tokenizer(given).images)
        torch.testing.assert_close(program(given).quantized.latent, tokenizer.encode(given))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def reconfigure(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_the_fingerprint_is_of_weights_scale_and_size_not_of_the_place(kls, copied: Path):
    first = load(kls["plain"]).fingerprint
    assert load(copied).fingerprint == first
    assert load(copied, 32).fingerprint != first
    reconfigure(copied, scaling_factor=0.2)
    scaled = load(copied).fingerprint
    rewrite(copied, lambda tensors: tensors["decoder.conv_out.bias"].add_(1e-3))
    assert len({first, scaled, load(copied).fingerprint}) == 3


@torch.no_grad()
def test_diffusers_older_names_and_half_precision_are_read(kls, copied: Path):
    """sd-vae-ft-mse still calls its attention's layers query, key, value and proj_attn."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            for new, old in older.items():
                if f".{new}." in name:
                    tensors[name.replace(f".{new}.", f".{old}.")] = tensors.pop(name)

    rewrite(copied, rename)
    assert any(".proj_attn." in name for name in load_file(copied / WEIGHTS))
    assert load(copied).fingerprint == load(kls["plain"]).fingerprint
    rewrite(copied, lambda tensors: tensors.update({name: one.half() for name, one in tensors.items()}))
    torch.testing.assert_close(
        load(copied).encode(images(64)), load(kls["plain"]).encode(images(64)), atol=0.01, rtol=0
    )


# ---- What cannot be one


def without_safetensors(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: reconfigure(f, _class_name="VQModel"), "holds a 'VQModel'; of diffusers, AutoencoderKL, "),
        (lambda f: (f / "config.json").write_text("{}"), "holds a None; of diffusers"),
        (lambda f: (f / "config.json").unlink(), r"config\.json does not exist"),
        (lambda f: (f / "config.json").write_text("{"), "is not readable JSON"),
        (without_safetensors, rf"{WEIGHTS} does not exist; other formats are not read"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1000]), "cannot be loaded by diffusers"),
        (lambda f: (f / WEIGHTS).write_bytes(b"no tensors"), "cannot be loaded by diffusers"),
        (
            lambda f: rewrite(f, lambda t: t.pop("decoder.conv_out.bias")),
            "lacks 1 of the model's tensors, decoder.conv_",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({"decoder.conv_out.bias": torch.zeros(4)})),
            r"cannot be loaded by diffusers .*decoder\.conv_out\.bias",
        ),
        (lambda f: rewrite(f, lambda t: t["quant_conv.bias"].fill_(np.nan)), r"quant_conv\.bias holds NaN or Inf"),
        (lambda f: reconfigure(f, latents_mean=[0.0] * 3), "statistics do not fit 4 channels"),
        (lambda f: reconfigure(f, latents_std=[1.0, 1.0, 0.0, 1.0]), "must be positive, not 0"),
    ],
)
def test_a_damaged_folder_is_one_sentence(copied: Path, monkeypatch, damage: Callable, sentence: str):
    damage(copied)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(ModelError, match=sentence) as error:
        load(copied)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ("large", "the size behind @ must be a number of pixels, not 'large'"),
        ("-64", "not '-64'"),
        (63, "makes 62 px of 63 px; give a size that fits"),
        (1, "cannot encode 1 px"),
        (0, "cannot encode 0 px"),
    ],
)
def test_a_size_that_is_none_or_does_not_fit_is_one_sentence(kls, size: int | str, sentence: str):
    with pytest.raises(ModelError, match=sentence):
        load(kls["plain"], size)


def test_a_dc_ae_refuses_what_its_blocks_do_not_divide(dc: Path):
    with pytest.raises(ModelError, match="this AutoencoderDC cannot encode 62 px"):
        load(dc, 62)


def test_a_hub_name_without_a_network_says_what_to_give():
    with pytest.raises(ModelError, match=rf"'owner/vae' is no folder here .* config\.json and {WEIGHTS} and give diff"):
        FoldedAutoencoder.load("diffusers:owner/vae@512")


def test_without_diffusers_it_is_said_what_to_install(kls, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModelError, match=r"pip install 'softvq\[autoencoders\]'"):
        load(kls["plain"])


# ---- The chain


def softvq(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "pictures" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 64, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


def test_encode_train_sample_with_an_autoencoder_and_refuse_another(capsys, kls, pictures: Path, tmp_path: Path):
    name, latents, run = f"diffusers:{kls['shifted']}@36", tmp_path / "latents", tmp_path / "run"
    code, _, err = softvq(capsys, "encode", pictures, "--model", name, "--out", latents, "--workers", 0)
    assert code == 0, err
    cache = Latents(latents)
    assert (cache.index.tokens, cache.index.channels, cache.index.classes) == (81, 16, ["class0", "class1"])
    assert cache.index.fingerprint == load(kls["shifted"], 36).fingerprint
    train = ("train", "generator", "sit-xl-2-kl-tiny", "--data", latents, "--out", run, "--batch-size", 2)
    code, _, err = softvq(capsys, *train, "--steps", 2, "--tokenizer", f"diffusers:{kls['plain']}@36")
    assert code == 2
    assert "were made with another tokenizer" in err
    code, _, err = softvq(capsys, *train, "--steps", 2, "--sample-every", 2)
    assert code == 0, err
    assert (run / "samples" / "step-0000002.png").is_file()
    generator = Generator.from_pretrained(run)
    network = generator.config.network
    assert (network.positions, network.tokens, network.channels, network.classes) == ("2d", 81, 16, 2)
    assert generator.about["tokenizer"] == {"name": name, "fingerprint": cache.index.fingerprint}

    sample = ("sample", "--model", run, "-n", 2, "--steps", 2, "--out", tmp_path / "s.png", "--json")
    code, out, err = softvq(capsys, *sample)
    assert code == 0, err
    assert json.loads(out)["tokenizer"] == cache.index.fingerprint
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.format == "PNG"
    code, _, err = softvq(capsys, *sample, "--tokenizer", f"diffusers:{kls['plain']}@36")
    assert code == 1
    assert f"was trained with another tokenizer ({cache.index.fingerprint})" in err
    code, _, err = softvq(capsys, *sample, "--tokenizer", f"diffusers:{kls['plain']}@32")
    assert code == 2
    assert "has latents of 256 × 4" in err

    probe = ("probe", "--model", name, "--data", latents, "--val", pictures, "--quick", "--workers", 0, "--json")
    code, out, err = softvq(capsys, *probe, "--out", tmp_path / "out")
    assert code == 0, err
    assert json.loads(out)["scores"]["knn_top1"] == 1.0  # the same images, which k-NN finds
    code, _, err = softvq(capsys, "sample", "--model", name)
    assert code == 1
    assert err.count("\n") == 1


def test_a_damaged_one_is_a_sentence_of_the_command(capsys, copied: Path, pictures: Path, tmp_path: Path):
    (copied / WEIGHTS).unlink()
    code, out, err = softvq(capsys, "encode", pictures, "--model", f"diffusers:{copied}", "--out", tmp_path / "latents")
    assert (code, out) == (1, "")
    assert err == f"softvq: {copied / WEIGHTS} does not exist; other formats are not read.\n"
