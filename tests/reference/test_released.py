"""Released checkpoints of every size, built of timm's networks and evaluated line by line: `make test-reference`."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from softvq import Tokenizer
from tests.reference.networks import random_timm
from tests.released import FIXED

DINOV2 = {size: f"vit_{size}_patch14_dinov2.lvd142m" for size in ("small", "base", "large")}
CLIP = "vit_base_patch16_clip_224.openai"
# name: encoder, decoder, image size, tokens, numbers a token
CASES = {
    "bl-32": (DINOV2["base"], DINOV2["large"], 256, 32, 64),
    "l-64": (DINOV2["large"], DINOV2["large"], 256, 64, 32),
    "b-64-512": (DINOV2["base"], DINOV2["base"], 512, 64, 32),
    "clip-b-64": (CLIP, DINOV2["base"], 256, 64, 32),
    "clip-b-decoder": (DINOV2["small"], CLIP, 256, 64, 32),
    "registers": ("vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m", 128, 32, 64),
}
G, K, TAU, PATCH = 4, 128, 0.07, 16


def through(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model.norm(model.blocks(model.norm_pre(tokens)))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_released_checkpoint_line_by_line(case: str, tmp_path: Path):
    encoder_name, decoder_name, size, L, D = CASES[case]
    torch.manual_seed(0)
    encoder, decoder = (random_timm(name, img_size=size, patch_size=PATCH) for name in (encoder_name, decoder_name))
    E, W, N = encoder.embed_dim, decoder.embed_dim, (size // PATCH) ** 2
    own = {
        "encoder.latent_tokens": torch.randn(1, L, E) * 0.5,
        "encoder.latent_pos_embed": torch.randn(1, L, E) * 0.5,
        "quant_conv.weight": torch.randn(D, E) / E**0.5,
        "quant_conv.bias": torch.randn(D) * 0.1,
        "quantize.embedding": torch.randn(G, K, D),
        "post_quant_conv.weight": torch.randn(W, D) / D**0.5,
        "post_quant_conv.bias": torch.randn(W) * 0.1,
        "decoder.mask_token": torch.randn(1, 1, W) * 0.5,
        "decoder.latent_pos_embed": torch.randn(1, L, W) * 0.5,
        "decoder.to_pixel.model.weight": torch.randn(3 * PATCH**2, W) / W**0.5,
        "decoder.to_pixel.model.bias": torch.randn(3 * PATCH**2) * 0.1,
    }
    networks = {
        f"{side}.model.{k}": v
        for side, m in (("encoder", encoder), ("decoder", decoder))
        for k, v in m.state_dict().items()
    }
    save_file({**own, **networks}, tmp_path / "model.safetensors")
    options = {
        **{"encoder_model": encoder_name, "decoder_model": decoder_name, "image_size": size, "num_latent_tokens": L},
        **{"codebook_embed_dim": D, "codebook_size": K, "num_codebooks": G, "tau": TAU},
    }
    (tmp_path / "config.json").write_text(json.dumps(FIXED | options | {"vq_mean": 0.00097, "vq_std": 0.0726}))
    images = torch.rand(1, 3, size, size) * 2 - 1

    tokens = encoder._pos_embed(encoder.patch_embed(images))
    tokens = torch.cat([tokens, own["encoder.latent_tokens"] + own["encoder.latent_pos_embed"]], dim=1)
    encoded = F.linear(through(encoder, tokens)[:, -L:], own["quant_conv.weight"], own["quant_conv.bias"])
    groups = F.normalize(encoded, dim=-1).view(G, L // G, D)
    codebooks = F.normalize(own["quantize.embedding"], dim=-1)
    z = (torch.einsum("gld,gkd->glk", groups, codebooks) / TAU).softmax(-1) @ codebooks
    z = z.reshape(1, L, D)
    hidden = F.linear(z, own["post_quant_conv.weight"], own["post_quant_conv.bias"]) + own["decoder.latent_pos_embed"]
    masks = decoder._pos_embed(own["decoder.mask_token"].expand(1, N, -1))
    first = decoder.num_prefix_tokens
    patches = through(decoder, torch.cat([masks, hidden], dim=1))[:, first : first + N]
    pixels = F.linear(patches, own["decoder.to_pixel.model.weight"], own["decoder.to_pixel.model.bias"])
    side = size // PATCH
    expected = torch.einsum("hwpqc->chpwq", pixels.view(side, side, PATCH, PATCH, 3)).reshape(1, 3, size, size)

    tokenizer = Tokenizer.from_pretrained(tmp_path)
    output = tokenizer(images)
    torch.testing.assert_close(output.encoded, encoded, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.quantized.latent, z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.images, expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(tokenizer.encode(images), (z - 0.00097) / 0.0726, atol=2e-3, rtol=1e-3)
