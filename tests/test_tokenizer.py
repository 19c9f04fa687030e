"""The tokenizer of Figure 2."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from softvq.errors import ConfigError, ImageError, ModelError
from softvq.layers import PatchEmbed, ViTConfig, resample_positions
from softvq.quantizers.compose import ProductConfig, ResidualConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from softvq.tokenizer import SIZES, Tokenizer, TokenizerConfig

TINY = ViTConfig(width=32, depth=2, heads=2, patch_size=8, layer_scale=1.0)
SOFT = SoftVQConfig(16)
QUANTIZERS = [
    SOFT,
    SoftVQConfig.released(16),
    GMMVQConfig(16),
    VQConfig(16),
    KLConfig(),
    AEConfig(),
    ProductConfig(SOFT, 2, "token"),
    ProductConfig(VQConfig(16), 2, "channel"),
    ResidualConfig(VQConfig(16), 2),
    ResidualConfig(ProductConfig(SOFT, 2, "token"), 2),
]


def tiny(quantizer=SOFT, **fields) -> Tokenizer:
    torch.manual_seed(0)
    config = {"image_size": 32, "tokens": 8, "latent_dim": 4, "encoder": TINY, "decoder": TINY, **fields}
    return Tokenizer(TokenizerConfig(quantizer=quantizer, **config)).eval()


def images(batch: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Section 4.1's sizes at 256 px and 64 tokens, in millions, as counted from the released checkpoints: these hold a patch
# embedding in the decoder that nothing uses (ours has none), and a projector MLP to the alignment teacher's width.
@pytest.mark.parametrize(
    ("size", "teacher", "without", "with_projector"),
    [("S", 384, 44.84, 46.32), ("B", 768, 173.56, 175.43), ("BL", 768, 391.33, 393.21), ("L", 1024, 608.92, 611.06)],
)
def test_parameter_counts_of_the_paper(size: str, teacher: int, without: float, with_projector: float):
    with torch.device("meta"):
        tokenizer = Tokenizer(TokenizerConfig.of_size(size))
        decoder = tokenizer.config.decoder
        unused = PatchEmbed(decoder.patch_size, decoder.width)
        projector = nn.Sequential(nn.Linear(32, 1024), nn.Linear(1024, 1024), nn.Linear(1024, teacher))
    assert (count(tokenizer) + count(unused)) / 1e6 == pytest.approx(without, rel=0.002)
    assert (count(tokenizer) + count(unused) + count(projector)) / 1e6 == pytest.approx(with_projector, rel=0.002)


def test_parameter_names_are_timms():
    names = {name for name, _ in tiny().encoder.vit.named_parameters()}
    outside = {name for name in names if not name.startswith("blocks.")}
    inside = {name.split(".", 2)[2] for name in names if name.startswith("blocks.")}
    assert outside == {
        *("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias")
    }
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert inside == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | {"ls1.gamma", "ls2.gamma"}


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: type(q).__name__)
def test_every_quantizer_goes_through(quantizer):
    tokenizer = tiny(quantizer)
    result = tokenizer(images())
    assert result.images.shape == (2, 3, 32, 32)
    assert result.quantized.latent.shape == (2, 8, 4)
    assert result.encoded.shape == (2, 8, tokenizer.quantizer.in_dim)
    assert torch.allclose(tokenizer.decode(tokenizer.encode(images())), result.images, atol=1e-6)


@pytest.mark.parametrize("tokens", [32, 64, 128, 256])
@pytest.mark.parametrize("size", [256, 512])
def test_the_papers_tokens_and_sizes(tokens: int, size: int):
    thin = ViTConfig(width=16, depth=1, heads=1, patch_size=16)
    tokenizer = tiny(image_size=size, tokens=tokens, latent_dim=8, encoder=thin, decoder=thin)
    latents = tokenizer.encode(images(1, size, size))
    assert latents.shape == (1, tokens, 8)
    assert tokenizer.decode(latents).shape == (1, 3, size, size)


def test_sizes_and_an_unknown_one():
    assert TokenizerConfig.of_size("BL").encoder == SIZES["B"][0]
    assert TokenizerConfig.of_size("BL").decoder == SIZES["L"][1]
    with pytest.raises(ConfigError, match="sizes are tiny, S, B, BL, L"):
        TokenizerConfig.of_size("XL")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (16, 40), (8, 8)])
def test_any_patch_divisible_size(height: int, width: int):
    tokenizer = tiny()
    latents = tokenizer.encode(images(1, height, width))
    assert latents.shape == (1, 8, 4)
    assert tokenizer.decode(latents, (height, width)).shape == (1, 3, height, width)
    assert tokenizer(images(1, height, width)).images.shape == (1, 3, height, width)


@pytest.mark.parametrize("size", [(30, 32), (32, 33), (4, 8)])
def test_other_sizes_are_refused_with_both_numbers(size: tuple[int, int]):
    with pytest.raises(ValueError, match=f"{size[0]}×{size[1]}.*multiples of the patch size 8"):
        tiny().encode(images(1, *size))
    with pytest.raises(ValueError, match="multiples of the patch size 8"):
        tiny().decode(torch.zeros(1, 8, 4), size)


def test_positions_on_their_own_grid_are_untouched_and_constants_stay():
    grid = torch.randn(1, 1 + 12, 6)
    assert resample_positions(grid, (3, 4), (3, 4)) is grid
    flat = torch.full((1, 13, 6), 0.7)
    assert torch.allclose(resample_positions(flat, (3, 4), (7, 5)), torch.full((1, 36, 6), 0.7), atol=1e-6)
    assert torch.equal(resample_positions(grid, (3, 4), (6, 8))[:, 0], grid[:, 0])


def test_rows_and_columns_are_not_mixed_up():
    """Positions that grow along rows only must still do so on a larger grid."""
    rows = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 16, 1)
    grown = resample_positions(torch.cat([torch.zeros(1, 1, 1), rows], dim=1), (4, 4), (8, 6))[0, 1:, 0].view(8, 6)
    assert torch.allclose(grown, grown[:, :1].expand(8, 6), atol=1e-5)
    assert (grown[1:, 0] > grown[:-1, 0]).all()


def test_pixels_of_a_patch_stand_row_by_row_colour_last():
    tokenizer = tiny()
    with torch.no_grad():
        tokenizer.decoder.to_pixel.weight.zero_()
        tokenizer.decoder.to_pixel.bias.copy_(torch.arange(8 * 8 * 3.0))
    image = tokenizer.decode(torch.zeros(1, 8, 4))[0]
    for row, column, colour in [(0, 0, 0), (0, 1, 2), (3, 5, 1), (11, 13, 2)]:
        assert image[colour, row, column] == (row % 8 * 8 + column % 8) * 3 + colour


def test_the_decoder_sees_latents_and_positions_only():
    """x̂ = D([m; z]): equal latents give equal images; a changed latent changes the image."""
    tokenizer = tiny()
    latents = torch.randn(1, 8, 4)
    one, two = tokenizer.decode(latents.expand(2, -1, -1))
    assert torch.allclose(one, two, atol=1e-6)
    assert not torch.allclose(tokenizer.decode(latents + torch.eye(8, 4)), one[None], atol=1e-6)


def test_encode_normalises_by_the_stored_statistics_and_decode_inverts():
    tokenizer = tiny()
    raw = tokenizer(images()).quantized.latent
    tokenizer.set_statistics(0.00097, 0.0726)  # softvq-l-64's
    latents = tokenizer.encode(images())
    assert torch.allclose(latents, (raw - 0.00097) / 0.0726, atol=1e-5)
    assert torch.allclose(tokenizer.decode(latents), tokenizer(images()).images, atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(math.nan, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, math.inf)])
def test_statistics_that_cannot_be_divided_out(mean: float, std: float):
    with pytest.raises(ValueError, match="statistics must be finite"):
        tiny().set_statistics(mean, std)


def test_wrong_latents_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 9, 4\).*\(B, 8, 4\)"):
        tiny().decode(torch.zeros(1, 9, 4))


@pytest.mark.parametrize("quantizer", [VQConfig(16), ProductConfig(VQConfig(16), 2, "channel")])
def test_indices_carry_the_image(quantizer):
    tokenizer = tiny(quantizer)
    tokenizer.set_statistics(0.3, 2.0)
    indices = tokenizer.encode_indices(images())
    assert indices.dtype == torch.int64
    assert torch.allclose(tokenizer.decode_indices(indices), tokenizer(images()).images, atol=1e-6)


def test_continuous_latents_have_no_indices_to_decode():
    with pytest.raises(ValueError, match="continuous"):
        tiny().encode_indices(images())
    with pytest.raises(ValueError, match="continuous"):
        tiny().decode_indices(torch.zeros(1, 8, dtype=torch.long))


def test_kl_encodes_the_mean_and_trains_on_samples():
    tokenizer = tiny(KLConfig())
    mean = tokenizer.encode(images())
    assert torch.equal(mean, tokenizer.train().encode(images()))
    assert torch.allclose(mean, tokenizer(images()).encoded[..., :4], atol=1e-6)
    assert not torch.allclose(tokenizer(images()).quantized.latent, mean, atol=1e-3)
    noise = torch.randn(2, 8, 4)
    assert torch.equal(tokenizer(images(), noise).images, tokenizer(images(), noise).images)


def test_gradients_reach_every_parameter():
    tokenizer = tiny().train()
    result = tokenizer(images())
    (result.images.square().mean() + result.quantized.losses["kl"]).backward()
    without = [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_an_image_does_not_depend_on_its_batch():
    tokenizer = tiny()
    together = tokenizer(images(4)).images
    alone = torch.cat([tokenizer(image[None]).images for image in images(4)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("bad", [{"image_size": 30}, {"tokens": 0}, {"latent_dim": 0}])
def test_impossible_configurations(bad: dict):
    with pytest.raises(ValueError, match=r"at least 1|not a multiple"):
        tiny(**bad)


def test_images_of_another_range_are_refused_and_decoded_ones_are_not():
    tokenizer = tiny()
    with pytest.raises(ImageError, match=r"images must be in \[-1, 1\], not from 0 to 255"):
        tokenizer.encode(torch.linspace(0, 255, 3 * 32 * 32).view(1, 3, 32, 32))
    with pytest.raises(ImageError, match="not from nan to nan"):
        tokenizer.encode(images() * math.nan)
    assert tokenizer.encode(images() * 1.5).isfinite().all()  # what a decoder gives is not clamped


def test_a_size_to_decode_to_may_be_one_number():
    tokenizer = tiny()
    latents = tokenizer.encode(images())
    assert torch.equal(tokenizer.decode(latents, 48), tokenizer.decode(latents, (48, 48)))
    assert tokenizer.decode(latents, 48).shape == (2, 3, 48, 48)


@pytest.mark.parametrize("size", [True, (True, 32)])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ImageError, match=r"size must be a whole number of pixels, or \(height, width\), not"):
        tiny().decode(torch.zeros(1, 8, 4), size)


@pytest.mark.parametrize("size", [0, -8, (0, 32), (32, -8)])
def test_a_size_of_no_pixels_is_refused(size):
    with pytest.raises(ImageError, match="multiples of the patch size 8"):
        tiny().decode(torch.zeros(1, 8, 4), size)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"encoder": replace(TINY, layer_scale=math.nan)}, "encoder.layer_scale must be a finite number, not nan"),
        ({"decoder": replace(TINY, norm_eps=math.inf)}, "decoder.norm_eps must be a finite number, not inf"),
        ({"quantizer": ProductConfig(SoftVQConfig(16, tau=math.inf), 2)}, "quantizer.inner.tau must be a finite"),
        ({"tokens": True, "quantizer": SOFT}, "tokens must be a whole number, not true"),
    ],
)
def test_a_configuration_that_no_file_could_hold_makes_no_model(fields: dict, name: str):
    with pytest.raises(ConfigError, match=f"TokenizerConfig.{name}"):
        tiny(**{"quantizer": SOFT, **fields})


def test_statistics_of_another_width_are_refused():
    with pytest.raises(ModelError, match="latent statistics must be one number or 4"):
        tiny().set_statistics(torch.zeros(3), torch.ones(3))


def test_the_indices_of_what_is_not_finite_are_refused():
    """NaN is near to any codeword, the first for one."""
    tokenizer = tiny(VQConfig(16))
    with torch.no_grad():
        tokenizer.to_quantizer.bias.fill_(math.nan)
    with pytest.raises(ModelError, match="the encoder's outputs are not finite"):
        tokenizer.encode_indices(images())
