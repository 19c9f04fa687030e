"""A tokenizer written in the format of the authors' releases, for tests: the inverse of `softvq.released`."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from softvq import Tokenizer
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.soft import SoftVQConfig

# What every released config.json holds beside the options below, as their class writes it.
FIXED = json.loads((Path(__file__).parent / "golden" / "tokenizer-s-64" / "config.json").read_text())


def released_tensors(tokenizer: Tokenizer) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in tokenizer.state_dict().items():
        if name.startswith(("latent_", "quantizer.")):
            continue
        for ours, theirs in (
            ("encoder.vit.", "encoder.model."),
            ("decoder.vit.", "decoder.model."),
            ("decoder.to_pixel.", "decoder.to_pixel.model."),
            ("to_quantizer.", "quant_conv."),
            ("from_quantizer.", "post_quant_conv."),
        ):
            if name.startswith(ours):
                name = theirs + name[len(ours) :]
                break
        tensors[name] = tensor
    if isinstance(tokenizer.config.quantizer, ProductConfig):
        tensors["quantize.embedding"] = torch.stack([inner.codebook for inner in tokenizer.quantizer.inner]).detach()
        tensors["quantize.codebook_used"] = torch.zeros(len(tokenizer.quantizer.inner), 16)
    elif hasattr(tokenizer.quantizer, "codebook"):
        tensors["quantize.embedding.weight"] = tokenizer.quantizer.codebook.detach()
    width = tokenizer.config.decoder.width
    tensors["decoder.model.patch_embed.proj.weight"] = torch.randn(width, 3, 8, 8)
    tensors["repa_model.cls_token"] = torch.full((1, 1, 8), torch.nan)  # nobody looks
    tensors["projection.0.weight"] = torch.randn(8, 2)
    return tensors


def released_config(tokenizer: Tokenizer, architecture: str, **options: Any) -> dict[str, Any]:
    ours = tokenizer.config
    quantizer = ours.quantizer
    soft = quantizer.inner if isinstance(quantizer, ProductConfig) else None
    return FIXED | {
        "encoder_model": f"{architecture}.lvd142m",
        "decoder_model": f"{architecture}.lvd142m",
        "image_size": ours.image_size,
        "num_latent_tokens": ours.tokens,
        "codebook_embed_dim": ours.latent_dim,
        "enc_patch_size": ours.encoder.patch_size,
        "dec_patch_size": ours.decoder.patch_size,
        "codebook_size": getattr(soft or quantizer, "codebook_size", 16),
        "num_codebooks": quantizer.groups if isinstance(quantizer, ProductConfig) else 1,
        "tau": soft.tau if isinstance(soft, SoftVQConfig) else 0.07,
        **options,
    }


def released_folder(tokenizer: Tokenizer, architecture: str, folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in released_tensors(tokenizer).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(released_config(tokenizer, architecture, **options)))
    return folder
