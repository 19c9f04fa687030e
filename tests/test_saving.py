"""What loading a model takes besides its name: type, device, a run that has not ended; and one image in one line."""

import io
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import softvq
from softvq import Generator, Tokenizer
from softvq.data.images import center_crop, fit, to_tensor
from softvq.errors import ImageError, ModelError, Notice
from softvq.files import read_tensors
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.quantizers.base import QuantizerConfig
from softvq.quantizers.compose import ProductConfig, ResidualConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from softvq.saving import card
from softvq.tokenizer import TokenizerConfig
from softvq.training.options import Intervals, RunOptions
from softvq.training.run import train
from softvq.training.tokenizer import TokenizerTask
from tests.training.test_run import VIT, tiny_recipe

BUNDLED = "softvq-emoji-64"
QUANTIZERS = {
    "SoftVQ": SoftVQConfig(8),
    "SoftVQ as released": SoftVQConfig.released(8),
    "GMMVQ": GMMVQConfig(8, component_std=0.1),
    "VQ": VQConfig(8),
    "KL": KLConfig(),
    "AE": AEConfig(),
    "Product": ProductConfig(SoftVQConfig.released(8), 2, kl="pooled"),
    "Residual": ResidualConfig(SoftVQConfig(8)),
}


def pictures(count: int = 2, side: int = 64) -> torch.Tensor:
    numbers = np.random.default_rng(0).uniform(-1, 1, (count, 3, side, side))
    return torch.from_numpy(numbers.astype(np.float32))


@pytest.fixture
def other_defaults() -> Iterator[None]:
    """PyTorch's defaults as a caller may have set them."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def outputs() -> list[torch.Tensor]:
    tokenizer, generator = Tokenizer.from_pretrained(BUNDLED), Generator.from_pretrained("emoji-sit")
    latents = tokenizer.encode(pictures())
    pipeline = softvq.Pipeline(generator, tokenizer)
    drawn = [pipeline.latents(num=1, steps=2, sampler=name, progress=False) for name in generator.samplers]
    return [latents, tokenizer.decode(latents), tokenizer(pictures()).images, *drawn]


def test_the_callers_defaults_change_nothing(request):
    expected = outputs()
    request.getfixturevalue("other_defaults")
    for found, wanted in zip(outputs(), expected, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_half_precision_goes_there_and_back(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    config = TokenizerConfig(16, 4, 4, VIT, VIT, QUANTIZERS[name])
    tokenizer = Tokenizer(config).eval()
    tokenizer.set_statistics(0.3, 0.5)
    images = pictures(2, 16)
    whole = tokenizer.decode(tokenizer.encode(images))
    half = tokenizer.to(dtype)
    assert (half.dtype, half.device.type) == (dtype, "cpu")
    latents = half.encode(images)  # float32 images, as they come
    decoded, again = half.decode(latents), half(images)
    assert latents.dtype == decoded.dtype == again.images.dtype == dtype
    assert torch.isfinite(decoded).all()
    assert float((decoded.float() - whole.float()).detach().abs().mean()) < (0.02 if dtype == torch.bfloat16 else 0.003)
    assert half.decode(latents.float(), (32, 32)).shape == (2, 3, 32, 32)  # positions interpolate


def test_distances_stay_float32_in_half_precision():
    quantizer = SoftVQConfig(8).build(4).to(torch.bfloat16)
    assert quantizer.latent(torch.ones(1, 2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_type_is_asked_for_when_loading(tmp_path: Path):
    loaded = Tokenizer.from_pretrained(BUNDLED, torch_dtype=torch.bfloat16, device="cpu")
    assert loaded.dtype == torch.bfloat16
    with pytest.raises(ModelError, match=r"torch_dtype must be a floating-point type of torch, not torch\.int8"):
        Tokenizer.from_pretrained(BUNDLED, torch_dtype=torch.int8)


def test_a_bundled_model_has_no_revisions():
    with pytest.raises(ModelError, match="on this machine and has no revisions"):
        Tokenizer.from_pretrained(BUNDLED, revision="v1")


def test_another_kind_of_generator_is_refused(tmp_path: Path):
    from softvq.generators.dit import DiT

    SiTConfig(TransformerConfig(4, 4, 2, 16, 1, 1)).build().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds a SiT, not a DiT"):
        DiT.from_pretrained(tmp_path)


def test_a_run_that_has_not_ended_gives_its_average_and_says_so(tmp_path: Path):
    from softvq.training.task import Hook

    def stop(state, log) -> None:
        raise KeyboardInterrupt

    recipe = tiny_recipe(steps=6)
    options = RunOptions(tmp_path / "run", torch.device("cpu"), "float32", workers=0, intervals=Intervals(1, 2))
    with pytest.raises(KeyboardInterrupt):
        train(TokenizerTask(recipe), options, hooks=[Hook(5, stop)])
    assert not (tmp_path / "run" / "model").exists()
    with pytest.warns(Notice, match=r"not ended: this is the average of its weights at step 4, whose latents are not"):
        average = Tokenizer.from_pretrained(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained = Tokenizer.from_pretrained(tmp_path / "run", average=False)
    last = tmp_path / "run" / "checkpoints" / "step-0000004"
    for model, part, prefix in ((average, "model-average", ""), (trained, "model", "model.")):
        stored = read_tensors(last / f"{part}.safetensors")
        assert all(torch.equal(tensor, stored[prefix + name]) for name, tensor in model.state_dict().items())
    assert average.about["recipe"]["name"] == "tiny"
    assert average.about["step"] == 4
    assert average.fingerprint != trained.fingerprint
    (last / "model-average.safetensors").write_bytes(b"cut")
    with pytest.warns(Notice, match="at step 2"):
        Tokenizer.from_pretrained(tmp_path / "run")


def test_no_run_has_no_trained_weights():
    with pytest.raises(ModelError, match="is no run's folder with checkpoints"):
        Tokenizer.from_pretrained(BUNDLED, average=False)


def test_a_card_is_read_by_the_hubs_own_reader():
    from huggingface_hub import ModelCard

    text = card("softvq x", "A model.", "use()", {"license": "mit", "figures": {"psnr": 29.71}, "command": "train"})
    read = ModelCard(text)
    assert (read.data.library_name, read.data.license) == ("softvq", "mit")
    assert "| psnr | 29.7100 |" in read.content


# ---- One image in one line


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(BUNDLED)


def photo(mode: str = "RGB", size: tuple[int, int] = (100, 80)) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("how", ["crop", "resize", "pad"])
def test_a_picture_is_fitted_as_the_command_does(tokenizer: Tokenizer, tmp_path: Path, how: str):
    photo().save(tmp_path / "photo.png")
    expected = to_tensor(fit(photo(), 64, how))[None]
    for given in (photo(), tmp_path / "photo.png", str(tmp_path / "photo.png"), np.asarray(photo())):
        assert torch.equal(tokenizer.prepare(given, how), expected)
    expected = tokenizer.decode(tokenizer.encode(expected)).detach()
    found = tokenizer.reconstruct(tmp_path / "photo.png", how)
    assert (found.size, found.mode) == ((64, 64), "RGB")
    assert float((to_tensor(found) - expected[0].clamp(-1, 1)).abs().max()) <= 1 / 255 + 1e-6


def test_a_turned_photo_is_turned_whoever_opens_it(tokenizer: Tokenizer, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photo().save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        assert torch.equal(tokenizer.prepare(opened), tokenizer.prepare(tmp_path / "turned.jpg"))
    assert not torch.equal(tokenizer.prepare(tmp_path / "turned.jpg"), tokenizer.prepare(photo()))


def test_what_goes_in_as_a_sequence_comes_out_as_a_list(tokenizer: Tokenizer):
    found = tokenizer.reconstruct([photo(), photo("L"), photo("P")])
    assert [image.size for image in found] == [(64, 64)] * 3
    assert len(tokenizer.reconstruct(pictures(3))) == 3
    assert tokenizer.reconstruct(pictures(1)[0]).size == (64, 64)
    alone = tokenizer.reconstruct(photo())
    assert np.abs(np.asarray(found[0]).astype(int) - np.asarray(alone)).max() <= 1


def test_tensors_of_the_models_size_are_not_rounded(tokenizer: Tokenizer):
    assert torch.equal(tokenizer.prepare(pictures()), pictures())
    eight = torch.randint(0, 256, (3, 100, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cropped = center_crop(Image.fromarray(eight.permute(1, 2, 0).numpy()), 64)
    assert torch.equal(tokenizer.prepare(eight)[0], to_tensor(cropped))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (pictures(1)[0] * 255, r"must be in \[-1, 1\]"),
        (pictures(1)[0] * float("nan"), r"must be in \[-1, 1\]"),
        (torch.zeros(3, 64, 64, dtype=torch.int64), "must be 8-bit, .*, not int64 of"),
        (pictures(1)[0, :1], r"must be an image \(3, H, W\)"),
        (np.zeros((8, 8, 3)), "of floating-point numbers, .* give 8-bit images"),
        (np.zeros((8, 8, 2), np.uint8), "must be 8-bit, .*, not uint8 of"),
        (3, "not a int"),
        ([], "there are no images"),
        ("nothing.png", r"nothing\.png"),
    ],
)
def test_what_is_no_image_is_a_sentence(tokenizer: Tokenizer, given, reason: str):
    with pytest.raises(ImageError, match=reason):
        tokenizer.prepare(given)


def test_what_the_types_forbid_is_a_sentence_too():
    """Asked in a process of its own, where arguments are not checked against their annotations."""
    code = """if True:
        import softvq
        import torch
        from PIL import Image
        from softvq.training.options import Intervals
        tokenizer, image = softvq.Tokenizer.from_pretrained("softvq-emoji-64"), Image.new("RGB", (64, 64))
        pipeline = softvq.Pipeline.from_pretrained("emoji-sit")
        for call in (
            lambda: tokenizer.encode(image),
            lambda: tokenizer.reconstruct(image, "stretch"),
            lambda: tokenizer.decode(image),
            lambda: softvq.Tokenizer.from_pretrained(None),
            lambda: softvq.register("Round"),
            *(lambda one=one: pipeline(num=1, **one) for one in (
                {"precision": "fp16"}, {"seed": 1.5}, {"steps": 2.5}, {"guidance": "two"}, {"batch_size": "8"},
                {"steps": float("nan")}, {"interval": ()},
            )),
            lambda: pipeline(num=2.0),
            *(lambda size=size: tokenizer.decode(torch.zeros(1, 64, 16), size) for size in (32.5, (64,), "64")),
            lambda: softvq.cost(["softvq-s-64"], steps=float("nan"), timed=False),
            lambda: Intervals(log=float("nan")),
        ):
            try:
                call()
            except softvq.SoftVQError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first, *others = done.stdout.splitlines()
    assert first.startswith("encode takes a batch of images as a tensor (B, 3, H, W) in [-1, 1], not a PIL image: ")
    assert "tokenizer.reconstruct(image) gives the reconstruction at once." in first
    assert others == [
        "images are fitted by crop, resize or pad, not 'stretch'.",
        "decode takes latents as a tensor (B, L, D), not a PIL image.",
        "a model's name or folder is wanted, not None.",
        "register takes a class, not 'Round': write @softvq.register without brackets.",
        "precision must be auto, float32 or bfloat16, not 'fp16'.",
        "seed must be a whole number, not 1.5.",
        "steps must be a whole number, not 2.5.",
        "guidance must be a finite number, not 'two'.",
        "batch_size must be a whole number, not '8'.",
        "steps must be a whole number, not nan.",
        "the guidance interval must be a lower and a higher time, not [].",
        "num must be a whole number, not 2.0.",
        "size must be a whole number of pixels, or (height, width), not 32.5.",
        "size must be a whole number of pixels, or (height, width), not (64,).",
        "size must be a whole number of pixels, or (height, width), not '64'.",
        "steps must be a whole number, not nan.",
        "log must be every so many steps, at least 1, not nan.",
    ], done.stderr


# ---- The front door


def test_the_front_door_shows_what_there_is():
    assert set(softvq.__all__) <= set(dir(softvq))
    assert all(getattr(softvq, name) is not None for name in softvq.__all__)
    assert (Path(softvq.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'Tokeniser'"):
        _ = softvq.Tokeniser


def test_looking_costs_nothing():
    code = "import sys, softvq; dir(softvq); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_every_built_in_is_known_by_name():
    from softvq.config import variants

    assert set(variants(QuantizerConfig)) >= {"SoftVQ", "GMMVQ", "VQ", "KL", "AE", "Product", "Residual"}


def test_a_picture_in_memory_is_no_path(tokenizer: Tokenizer):
    buffer = io.BytesIO()
    photo().save(buffer, "PNG")
    with Image.open(buffer) as opened:  # not read yet
        assert tokenizer.reconstruct(opened).size == (64, 64)


def test_any_character_may_stand_in_what_a_model_says_of_itself(tmp_path: Path):
    """Beyond the first 65,536 too, which JSON may write as two halves; one half alone is a damaged file."""
    tokenizer = Tokenizer.from_pretrained("softvq-emoji-64")
    tokenizer.about = {**tokenizer.about, "domain": "😀 and \\ud"}
    tokenizer.save_pretrained(tmp_path / "model")
    assert Tokenizer.from_pretrained(tmp_path / "model").about["domain"] == "😀 and \\ud"
    config = tmp_path / "model" / "config.json"
    name = b"caf\xe9".decode("utf-8", "surrogateescape")  # as of a folder of images
    written = config.read_text(encoding="utf-8")
    config.write_text(written.replace("😀", "caf\\udce9"), encoding="utf-8")
    assert Tokenizer.from_pretrained(tmp_path / "model").about["domain"] == f"{name} and \\ud"
    config.write_text(written.replace("😀", "\\ud83d"), encoding="utf-8")
    with pytest.raises(ModelError, match="is not a softvq model configuration"):
        Tokenizer.from_pretrained(tmp_path / "model")
