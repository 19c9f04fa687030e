"""Recipes of every generator that the authors trained for Tables 1 to 4 and 6 to 8, with its published gFID.

There are small ones on the bundled tokenizer's latents too.

All of the paper's have appendix C.2's settings: AdamW at 1e-4, betas (0.9, 0.999), no decay, EMA 0.9999, batch 256,
label dropout 0.1; SiT on the cosine path with log-normal times, clipped at 1; DiT with cosine betas. Their sampling is
that of their row: 250 steps, guided as the paper guides so many tokens, or not at all where the row is without
guidance. MAR: AdamW (0.9, 0.95) with decay 0.02 (none in the head), batch 2048, a peak of 2e-4 after 100 epochs of
warm-up, then constant; with query–key norm, against the NaN that the paper reports; as many unmasking steps as tokens.
No run at this scale has been made with this code.
"""

from dataclasses import replace

from softvq import published
from softvq.generators.base import Sampling
from softvq.generators.dit import DiTConfig
from softvq.generators.mar import MARConfig, MARNetworkConfig
from softvq.generators.sit import SiTConfig
from softvq.generators.transformer import TransformerConfig
from softvq.optim import AdamWConfig, MuonConfig
from softvq.training.generator import GeneratorRecipe, PublishedGeneratorRecipe
from softvq.transports.guidance import Guidance

_IMAGENET = 1000
_EPOCH = 1_281_167  # images
_DIFFUSION = AdamWConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=0, min_lr=1.0)
_MAR_EPOCH = _EPOCH // 2048
_MAR = AdamWConfig(
    lr=2e-4, betas=(0.9, 0.95), weight_decay=0.02, warmup_steps=100 * _MAR_EPOCH, min_lr=1.0, grad_clip=3.0
)
_SAMPLERS = {"sit": "sde", "dit": "ddpm"}
_DIMS = {256: 8, 128: 16, 64: 32, 32: 64}  # tokens -> numbers a token (Table 3)


def _published(name: str) -> PublishedGeneratorRecipe:
    row = published.GENERATORS[name]
    plain, guided = published.GENERATION[name, row.steps]
    return PublishedGeneratorRecipe(row.table, row.row, plain.gfid, guided and guided.gfid)


def _guidance(name: str, own: Guidance) -> Guidance:
    row = published.GENERATORS[name]
    return replace(own, scale=row.scale, interval=row.interval)


def _denoiser(kind: str, size: str, tokenizer: str, tokens: int) -> GeneratorRecipe:
    network = TransformerConfig.named(size, tokens, _DIMS[tokens], _IMAGENET)
    name, row = f"{kind}-{size.lower()}-{tokenizer}", _published(f"{kind}-{size.lower()}-{tokenizer}")
    return GeneratorRecipe(
        name=name,
        about=f"{row.row}, {tokens} tokens (Table {row.table}).",
        model=SiTConfig(network) if kind == "sit" else DiTConfig(network),
        tokenizer=f"SoftVQVAE/{tokenizer}",
        steps=published.GENERATORS[name].steps,
        optimizer=replace(_DIFFUSION, grad_clip=1.0 if kind == "sit" else None),
        sampling=Sampling(_SAMPLERS[kind], 250, _guidance(name, Guidance())),
        published=row,
    )


def _mar(tokenizer: str, tokens: int) -> GeneratorRecipe:
    model = MARConfig(MARNetworkConfig.named("H", tokens, _DIMS[tokens], _IMAGENET))
    name, row = f"mar-h-{tokenizer}", _published(f"mar-h-{tokenizer}")
    return GeneratorRecipe(
        name=name,
        about=f"{row.row}, {tokens} tokens (Table {row.table}).",
        model=model,
        tokenizer=f"SoftVQVAE/{tokenizer}",
        batch_size=2048,
        steps=published.GENERATORS[name].steps,
        optimizer=_MAR,
        sampling=Sampling("mar", tokens, _guidance(name, model.guidance)),
        published=row,
    )


def _of_the_paper() -> list[GeneratorRecipe]:
    # Tables 1 and 6 (3M steps)
    recipes = [
        _denoiser(kind, "XL", f"softvq-{size}-{tokens}", tokens)
        for tokens in (32, 64)
        for size in ("b", "bl", "l")
        for kind in ("sit", "dit")
    ]
    recipes += [_mar("softvq-l-32", 32), _mar("softvq-bl-64", 64)]
    # Tables 2 and 7, 512 px
    recipes += [_denoiser("sit", "XL", "softvq-bl-64-512", 64), _mar("softvq-bl-64-512", 64)]
    recipes.append(_denoiser("sit", "XL", "softvq-l-32-512", 32))
    # Table 3: SiT-L without guidance, 400K steps
    recipes += [_denoiser("sit", "L", f"{kind}-s-{n}", n) for kind in ("vq", "ae", "softvq") for n in _DIMS]
    # Table 4: SiT-L on SoftVQ-B by encoder and alignment target; dinov2-dinov2 is softvq-b-64
    variants = ("-none-none", "-none-dinov2", "-dinov2-none", "", "-clip-clip", "-eva02-eva02")
    recipes += [_denoiser("sit", "L", f"softvq-b-64{variant}", 64) for variant in variants]
    return recipes + [_two_dimensional(kind, name) for kind, name in (("dit", "DiT-XL/2"), ("sit", "SiT-XL/2"))]


def _two_dimensional(kind: str, title: str) -> GeneratorRecipe:
    """Return a baseline of Table 1 as its authors trained it: 2-D latents of 32 × 32 × 4, two by two a token."""
    network = TransformerConfig.named("XL", 256, 16, _IMAGENET, positions="2d")
    name = f"{kind}-xl-2-kl"
    return GeneratorRecipe(
        name=name,
        about=f"{title} on a KL autoencoder's 32 × 32 latents (Table 1's baseline).",
        model=DiTConfig(network, betas="linear") if kind == "dit" else SiTConfig(network, "linear", "uniform"),
        tokenizer="diffusers:stabilityai/sd-vae-ft-mse",
        steps=published.GENERATORS[name].steps,
        optimizer=replace(_DIFFUSION, grad_clip=None),
        sampling=Sampling(_SAMPLERS[kind], 250, _guidance(name, Guidance())),
        published=_published(name),
    )


# Table 8 is the 1,000,000 and 4,000,000 steps of these; give --steps.
PAPER_GENERATORS = _of_the_paper()

_EMOJI = TransformerConfig(tokens=64, channels=16, classes=9, width=192, depth=9, heads=6)
_EMOJI_SIT = GeneratorRecipe(
    name="emoji-sit",
    about="The generator that ships with the package: emoji of nine classes from 64 tokens, SiT.",
    model=SiTConfig(_EMOJI),
    tokenizer="softvq-emoji-64",
    batch_size=64,
    steps=4_000,
    optimizer=MuonConfig(
        lr=0.015, rest=AdamWConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup_steps=100, min_lr=0.02)
    ),
    ema_decay=0.999,
    sampling=Sampling("dpm", 20, Guidance(3.5)),
)
_EMOJI_MAR = MARNetworkConfig(
    tokens=64, channels=16, classes=9, width=192, depth=4, heads=6, head_width=256, head_depth=3, buffer=8
)
EMOJI_GENERATORS = (
    _EMOJI_SIT,
    replace(
        _EMOJI_SIT,
        name="emoji-sit-32",
        about="A SiT on the 32 tokens of emoji-64-32: narrower and shallower, and trained for longer.",
        model=SiTConfig(TransformerConfig(tokens=32, channels=16, classes=9, width=160, depth=8, heads=5)),
        tokenizer="runs/emoji-64-32",
        steps=30_000,
    ),
    replace(
        _EMOJI_SIT, name="emoji-dit", about="The same latents, network and steps as a DiT.", model=DiTConfig(_EMOJI)
    ),
    replace(
        _EMOJI_SIT,
        name="emoji-mar",
        about="The same latents and steps as a MAR.",
        model=MARConfig(_EMOJI_MAR, hidden_dropout=0.0),
        sampling=Sampling("mar", 16, Guidance(3.5, schedule="linear")),
    ),
)


def tiny_generator(recipe: GeneratorRecipe) -> GeneratorRecipe:
    """Return the `-tiny` twin: a small network and few steps, on whatever latents are there (`softvq encode emoji`)."""
    return replace(
        recipe,
        name=f"{recipe.name}-tiny",
        about=f"{recipe.name} in tiny, to try it out.",
        model=replace(recipe.model, network=recipe.model.network.tiny()),
        tokenizer="softvq-emoji-64",
        batch_size=16,
        steps=20,
        optimizer=replace(recipe.optimizer, warmup_steps=4),
        sampling=replace(recipe.sampling, steps=8),
        published=None,
    )
