"""The rows of `softvq bench cost`: which networks, and what each of them costs."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from softvq.autoencoders import FoldedAutoencoder
from softvq.evaluation.cost import call_memory, grouped, macs, timed
from softvq.generators.base import Generator
from softvq.generators.dit import DiTConfig
from softvq.generators.mar import MARConfig, MARNetworkConfig
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.memory import without_contents
from softvq.pipeline import open_model, tokenizer_of
from softvq.runtime import autocast
from softvq.tokenizer import Tokenizer, TokenizerConfig

# The KL autoencoder of latent diffusion with 8 × 8 pixels a latent, and its size, as diffusers describes it
_KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}


@dataclass(frozen=True)
class CostRow:
    """A generator and what decodes its latents (None: nothing is known of it), or a tokenizer alone; beside it, what
    the paper prints: Gflops and images a second."""

    table: str
    about: str
    generator: Callable[[], Generator] | None
    tokenizer: Callable[[], nn.Module] | None
    gmacs: float | None = None
    images_per_second: float | None = None


def _transformer(kind: str, tokens: int, channels: int, positions: str = "1d") -> Callable[[], Generator]:
    config = SiTConfig if kind == "sit" else DiTConfig
    return lambda: config(TransformerConfig.named("XL", tokens, channels, 1000, positions)).build()


def _mar(tokens: int, channels: int) -> Callable[[], Generator]:
    return lambda: MARConfig(MARNetworkConfig.named("H", tokens, channels, 1000)).build()


def _softvq(size: str, tokens: int, image_size: int = 256) -> Callable[[], nn.Module]:
    config = TokenizerConfig.of_size(size, tokens=tokens, latent_dim=2048 // tokens, image_size=image_size)
    return lambda: Tokenizer(config)


def _kl(image_size: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from diffusers import AutoencoderKL

        return FoldedAutoencoder.of(AutoencoderKL(**_KL), "AutoencoderKL", image_size, {})

    return build


def _rows() -> dict[str, CostRow]:
    rows = {
        "dit-xl-2-kl": CostRow(
            "1", "DiT-XL/2, KL, 1024 latents", _transformer("dit", 256, 16, "2d"), _kl(256), 80.73, 0.51
        ),
        "sit-xl-2-kl": CostRow(
            "1", "SiT-XL/2, KL, 1024 latents", _transformer("sit", 256, 16, "2d"), _kl(256), 81.92, 0.54
        ),
        "mar-h-kl": CostRow("1", "MAR-H, KL, 256 tokens", _mar(256, 16), None, 145.08, 0.12),
    }
    for name, tokens, size, gmacs, speed in (
        ("MAR-H", 32, "L", 67.93, 2.08),
        ("MAR-H", 64, "BL", 86.55, 0.89),
        ("DiT-XL", 32, "L", 14.52, 8.74),
        ("DiT-XL", 64, "L", 28.81, 4.51),
        ("SiT-XL", 32, "L", 14.73, 10.11),
        ("SiT-XL", 64, "L", 29.23, 5.39),
    ):
        channels, kind = 2048 // tokens, name[:3].lower()
        generator = _mar(tokens, channels) if kind == "mar" else _transformer(kind, tokens, channels)
        about, name = f"{name}, SoftVQ-{size}, {tokens} tokens", f"{name.lower()}-{tokens}"
        rows[name] = CostRow("1", about, generator, _softvq(size, tokens), gmacs, speed)
    rows |= {
        "dit-xl-2-kl-512": CostRow(
            "2", "DiT-XL/2, KL, 4096 latents", _transformer("dit", 1024, 16, "2d"), _kl(512), 373.34, 0.10
        ),
        "sit-xl-2-kl-512": CostRow(
            "2", "SiT-XL/2, KL, 4096 latents", _transformer("sit", 1024, 16, "2d"), _kl(512), 373.32, 0.10
        ),
        "mar-h-64-512": CostRow("2", "MAR-H, SoftVQ-BL, 64 tokens", _mar(64, 32), _softvq("BL", 64, 512), 86.55, 1.50),
        "sit-xl-64-512": CostRow(
            "2", "SiT-XL, SoftVQ-BL, 64 tokens", _transformer("sit", 64, 32), _softvq("BL", 64, 512), 29.23, 5.38
        ),
    }
    for size in ("S", "B", "BL", "L"):
        rows[f"softvq-{size.lower()}-64"] = CostRow(
            "3", f"tokenizer SoftVQ-{size}, 64 tokens, 256 px", None, _softvq(size, 64)
        )
    rows["softvq-bl-64-512"] = CostRow("2", "tokenizer SoftVQ-BL, 64 tokens, 512 px", None, _softvq("BL", 64, 512))
    rows["kl-f8"] = CostRow("3", "tokenizer KL, 32 × 32 × 4, 256 px (needs diffusers)", None, _kl(256))
    return rows


ROWS = _rows()


def models(names: list[str]) -> dict[str, CostRow]:
    """Rows of models that are there."""
    rows = {}
    for name in names:
        model = open_model(name)
        if model.kind == "generator":
            tokenizer = tokenizer_of(model, name, None) if model.about.get("tokenizer") else None
            decoder = None if tokenizer is None else (lambda tokenizer=tokenizer: tokenizer)
            rows[name] = CostRow("–", name, lambda model=model: model, decoder)
        else:
            rows[name] = CostRow("–", name, None, lambda model=model: model)
    return rows


def measured(
    row: CostRow, options: argparse.Namespace, device: torch.device, precision: str, batch: int
) -> dict[str, Any]:
    """A row's figures; what is not known is None."""
    found: dict[str, Any] = {
        "table": row.table,
        "about": row.about,
        "published_gmacs": row.gmacs,
        "published_images_per_second": row.images_per_second,
    }
    times = argparse.Namespace(device=device, precision=precision, batch=batch, repeats=options.repeats)
    found |= _decoding(row, times, options.no_time)
    if row.generator is not None:
        found |= _generating(row, times, options)
    if not options.no_time and found.get("seconds") is not None:
        found["images_per_second"] = batch / (found.pop("seconds") + (found["decode_ms"] or 0) * batch / 1000)
    return found


def _decoding(row: CostRow, times: argparse.Namespace, no_time: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"decode_gmacs": None, "decode_ms": None}
    if row.tokenizer is None:
        return found
    try:
        with without_contents():
            model = row.tokenizer().eval()
            images, latents = _inputs(model, 1)
            encode, decode = macs(model, lambda: model.encode(images)), macs(model, lambda: model.decode(latents))
    except ImportError:  # a row of diffusers, which is not installed
        return found
    found["decode_gmacs"] = sum(decode.values()) / 1e9
    if row.generator is None:
        found |= {"parameters": _parameters(model), "gmacs": sum(encode.values()) / 1e9}
    if no_time:
        return found
    model = row.tokenizer().to(times.device).eval()
    images, latents = (x.to(times.device) for x in _inputs(model, times.batch))
    found["decode_ms"] = _milliseconds(lambda: model.decode(latents), times)
    if row.generator is None:
        found["evaluation_ms"] = _milliseconds(lambda: model.encode(images), times)
        found["memory_gb"] = _gigabytes(model, lambda: model.decode(model.encode(images)), times)
        found["images_per_second"] = 1000 / (found["evaluation_ms"] + found["decode_ms"])
    return found


def _inputs(model: nn.Module, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    c = model.config
    return torch.zeros(count, 3, c.image_size, c.image_size), torch.zeros(count, c.tokens, c.latent_dim)


def _generating(row: CostRow, times: argparse.Namespace, options: argparse.Namespace) -> dict[str, Any]:
    with without_contents():
        model = row.generator().eval()
        counts = macs(model, model.one_evaluation())
    found: dict[str, Any] = {
        "parameters": _parameters(model),
        "gmacs": sum(counts.values()) / 1e9,
        "by_layer": {name: count / 1e9 for name, count in grouped(counts).items()},
    }
    if options.no_time:
        return found
    model = row.generator().to(times.device).eval()
    parts = model.parts(times.batch, options.steps, options.guidance != 1)
    seconds = {name: _milliseconds(part.call, times) * times.batch / 1000 for name, part in parts.items()}
    found["memory_gb"] = _gigabytes(model, parts["evaluation"].call, times)
    found |= {f"{name}_ms": value * 1000 / times.batch for name, value in seconds.items()}
    found["seconds"] = sum(part.times * seconds[name] for name, part in parts.items())
    return found


def _milliseconds(call: Callable[[], Any], times: argparse.Namespace) -> float:
    """Of a call, an image."""
    with autocast(times.device, times.precision):
        return timed(call, times.device, times.repeats) * 1000 / times.batch


def _gigabytes(model: nn.Module, call: Callable[[], Any], times: argparse.Namespace) -> float:
    with autocast(times.device, times.precision):
        return call_memory(model, call) / 1e9


def _parameters(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6
