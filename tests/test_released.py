"""The released format: names, quantizers, and a sentence for what is not built here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from softvq import Tokenizer, layers
from softvq.errors import ConfigError, ModelError
from softvq.layers import VITS, ViTConfig
from softvq.quantizers.compose import ProductConfig, QuantizerConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.released import BUILT
from softvq.tokenizer import TokenizerConfig
from tests.released import released_config, released_folder, released_tensors

SOFT = ProductConfig(SoftVQConfig.released(16), 2, axis="token", kl="pooled")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """The known architectures, small."""
    for name, config in VITS.items():
        monkeypatch.setitem(layers.VITS, name, config.tiny())


def made(
    quantizer: QuantizerConfig = SOFT, encoder: str = "vit_base_patch14_dinov2", tokens: int = 4, dim: int = 6
) -> Tokenizer:
    torch.manual_seed(0)
    vit = replace(layers.VITS["vit_base_patch14_dinov2"], patch_size=8)
    return Tokenizer(TokenizerConfig(32, tokens, dim, ViTConfig.named(encoder, 8), vit, quantizer)).eval()


@pytest.mark.parametrize(
    "quantizer",
    [
        SOFT,
        ProductConfig(SoftVQConfig.released(16, tau=0.2), 1, axis="token", kl="pooled"),
        VQConfig(16, "cosine"),
        VQConfig(16),
        KLConfig(),
        AEConfig(),
    ],
    ids=["SoftVQ", "one codebook", "VQ", "VQ euclidean", "KL", "AE"],
)
@torch.no_grad()
def test_every_quantizer_of_the_format(quantizer: QuantizerConfig, tmp_path: Path):
    ours = made(quantizer)
    l2_norm = getattr(quantizer, "distance", "cosine") == "cosine"
    folder = released_folder(ours, "vit_base_patch14_dinov2", tmp_path, codebook_l2_norm=l2_norm)
    theirs = Tokenizer.from_pretrained(folder)
    assert theirs.config == ours.config
    assert torch.equal(theirs(IMAGES).images, ours(IMAGES).images)


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_clip_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_224"]
)
@torch.no_grad()
def test_every_encoder_of_the_format(name: str, tmp_path: Path):
    ours = made(encoder=name)
    folder = released_folder(ours, "vit_base_patch14_dinov2", tmp_path, encoder_model=f"{name}.some_tag")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.model.head.weight"] = torch.randn(5, ours.config.encoder.width)  # CLIP's own, which nothing uses
    save_file(tensors, folder / "model.safetensors")
    theirs = Tokenizer.from_pretrained(folder)
    assert theirs.config.encoder == ours.config.encoder
    assert torch.equal(theirs.encode(IMAGES), ours.encode(IMAGES))


@torch.no_grad()
def test_maetok_without_its_rotary_positions(tmp_path: Path):
    """A plain AE with 128 tokens whose encoder dropped patches in training."""
    ours = made(AEConfig(), tokens=128)
    folder = released_folder(
        ours, "vit_base_patch14_dinov2", tmp_path, enc_token_drop=0.4, vq_mean=-0.1, vq_std=2.5, aux_hog_dec=True
    )
    tensors = load_file(folder / "model.safetensors") | {"encoder.mask_token": torch.randn(1, 1, 96)}
    save_file(tensors, folder / "model.safetensors")
    theirs = Tokenizer.from_pretrained(folder)
    torch.testing.assert_close(theirs.encode(IMAGES), (ours.encode(IMAGES) + 0.1) / 2.5)
    assert theirs.encode(IMAGES).shape == (2, 128, 6)


REFUSED = {
    "enc_type": "cnn",
    "dec_type": "cnn",
    "to_pixel": "siren",
    "enc_tuning_method": "lora",
    "dec_tuning_method": "lora",
    "use_ape": False,
    "use_rope": True,
    "dec_cls_token": False,
}


def test_each_option_with_limits_is_tried():
    assert REFUSED.keys() == BUILT.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[
            ({option: value}, f"config.json has {option} = {value!r}: .*not built here")
            for option, value in REFUSED.items()
        ],
        ({"codebook_l2_norm": False}, "codebook_l2_norm = False"),
        (
            {"encoder_model": "samvit_base_patch16.sa1b"},
            "encoder_model = 'samvit_base_patch16.sa1b'.*built are vit_small",
        ),
        ({"encoder_model": "eva02_base_patch16_clip_224.merged2b"}, "encoder_model = 'eva02.*not built here"),
        ({"vq_std": 0.0}, "vq_std = 0.0; the mean must be finite"),
        ({"num_codebooks": 4}, r"quantize.embedding has shape \(2, 16, 6\), but config.json has 4 codebooks of 16 × 6"),
        ({"num_codebooks": 3}, "has 4 latent tokens, which cannot be split over its 3 codebooks"),
        ({"vq_mean": 1e300}, r"vq_mean = 1e\+300 and vq_std = 1.0; the mean must be finite"),
        ({"use_rope": True, "rope_kind": "new"}, "use_rope = True: rotary positions inside the tokenizer, not built"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"enc_patch_size": 0}, "patch size of 0"),
        ({"rope_thet": 1.0}, "unknown key 'rope_thet'; did you mean rope_theta"),
        ({"image_size": "256"}, "image_size must be a whole number"),
        ({"num_latent_tokens": 8}, r"has shape \(1, 4, 96\), expected \(1, 8, 96\)"),
    ],
)
def test_what_is_not_built_here_gets_a_sentence(options: dict, message: str, tmp_path: Path):
    folder = released_folder(made(), "vit_base_patch14_dinov2", tmp_path, **options)
    with pytest.raises((ConfigError, ModelError), match=message) as caught:
        Tokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_extra_tensors_are_named(tmp_path: Path):
    ours = made()
    folder = released_folder(ours, "vit_base_patch14_dinov2", tmp_path)
    tensors = released_tensors(ours)
    without = {k: v.contiguous() for k, v in tensors.items() if k != "encoder.model.cls_token"}
    save_file(without, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks the tensor encoder\.vit\.cls_token"):
        Tokenizer.from_pretrained(folder)
    extra = {k: v.contiguous() for k, v in tensors.items()} | {"decoder.freqs": torch.ones(3)}
    save_file(extra, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"has the tensor decoder\.freqs, which the model has not"):
        Tokenizer.from_pretrained(folder)


def test_a_missing_key_and_somebody_elses_configuration(tmp_path: Path):
    ours = made()
    folder = released_folder(ours, "vit_base_patch14_dinov2", tmp_path)
    config = released_config(ours, "vit_base_patch14_dinov2")
    del config["image_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="lacks the key 'image_size'"):
        Tokenizer.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"architectures": ["AutoencoderKL"]}))
    with pytest.raises(ModelError, match="is not a softvq model configuration"):
        Tokenizer.from_pretrained(folder)
