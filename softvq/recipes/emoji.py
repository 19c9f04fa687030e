"""Recipes on the bundled emoji images: the tokenizer that ships with the package, and a quick one for the demo."""

from dataclasses import replace

from softvq.data.images import Augment
from softvq.layers import ViTConfig
from softvq.optim import AdamWConfig, MuonConfig
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.soft import SoftVQConfig
from softvq.tokenizer import TokenizerConfig
from softvq.training.recipe import AlignmentConfig, TokenizerRecipe

_VIT = ViTConfig(width=192, depth=4, heads=3, patch_size=8, layer_scale=None)
_VIT_128 = ViTConfig(width=256, depth=4, heads=4, patch_size=16, layer_scale=None)

EMOJI_64 = TokenizerRecipe(
    name="emoji-64",
    about="The tokenizer that ships with the package: 64 px emoji in 64 tokens of 16 (half the paper's width).",
    tokenizer=TokenizerConfig(
        image_size=64,
        tokens=64,
        latent_dim=16,
        encoder=_VIT,
        decoder=_VIT,
        quantizer=ProductConfig(SoftVQConfig.released(1024, tau=0.2), groups=4, axis="token", kl="pooled"),
    ),
    augment=Augment(min_scale=0.9),
    batch_size=32,
    steps=5_000,
    optimizer=MuonConfig(lr=0.012, rest=AdamWConfig(lr=2e-3, warmup_steps=100)),
    ema_decay=0.999,
    init="local",
)

EMOJI_64_32 = replace(
    EMOJI_64,
    name="emoji-64-32",
    about="64 px emoji in 32 tokens of 16, for generation: perceptual and alignment terms in Lite0, latent noise.",
    tokenizer=replace(EMOJI_64.tokenizer, tokens=32, refine=32),
    data="emoji-train",
    val="emoji-dev",
    steps=6_000,
    weights={"reconstruction": 1.0, "kl": 0.01, "perceptual": 0.03, "alignment": 0.05},
    perceptual="efficientnet-lite0",
    alignment=AlignmentConfig("efficientnet-lite0", hidden=256),
    latent_noise=0.2,
)

EMOJI_128 = replace(
    EMOJI_64,
    name="emoji-128",
    about="The same at 128 px with the paper's 32 numbers a token, for a GPU (benchmarks/README.md, the queue).",
    tokenizer=replace(EMOJI_64.tokenizer, image_size=128, latent_dim=32, encoder=_VIT_128, decoder=_VIT_128),
    batch_size=64,
    steps=40_000,
    optimizer=MuonConfig(lr=0.012, rest=AdamWConfig(lr=1e-3, warmup_steps=500)),
    ema_decay=0.9995,
)

EMOJI_64_QUICK = replace(
    EMOJI_64,
    name="emoji-64-quick",
    about="The same for some minutes on a laptop: what `softvq demo --train` runs.",
    steps=600,
    ema_decay=0.99,
)

EMOJI = (EMOJI_64, EMOJI_64_QUICK, EMOJI_64_32, EMOJI_128)
