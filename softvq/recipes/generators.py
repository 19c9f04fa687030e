"""Every generator that the authors trained for Tables 1 to 4 and 6 to 8, with its published gFID, and small ones on the
bundled tokenizer's latents.

All have appendix C.2's settings: AdamW at 1e-4, betas (0.9, 0.999), no decay, EMA 0.9999, batch 256, label dropout 0.1;
SiT on the cosine path with log-normal times, clipped at 1; DiT with cosine betas. Their sampling is that of their row:
250 steps, guided as the paper guides so many tokens, or not at all where the row is without guidance. MAR: AdamW (0.9,
0.95) with decay 0.02 (none in the head), batch 2048, a peak of 2e-4 after 100 epochs of warm-up, then constant; with
query–key norm, against the NaN that the paper reports; as many unmasking steps as tokens. No run at this scale has been
made with this code.
"""

from dataclasses import replace

from softvq.generators.base import GeneratorConfig, Sampling
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
_DIMS = {256: 8, 128: 16, 64: 32, 32: 64}  # tokens -> numbers a token (Table 3)


def _denoiser(
    kind: str, size: str, tokenizer: str, tokens: int, published: PublishedGeneratorRecipe, steps: int
) -> GeneratorRecipe:
    network = TransformerConfig.named(size, tokens, _DIMS[tokens], _IMAGENET)
    model = SiTConfig(network) if kind == "sit" else DiTConfig(network)
    return GeneratorRecipe(
        name=f"{kind}-{size.lower()}-{tokenizer}",
        about=f"{published.row}, {tokens} tokens (Table {published.table}).",
        model=model,
        tokenizer=f"SoftVQVAE/{tokenizer}",
        steps=steps,
        optimizer=replace(_DIFFUSION, grad_clip=1.0 if kind == "sit" else None),
        sampling=_sampling(kind, model, published),
        published=published,
    )


def _sampling(kind: str, model: GeneratorConfig, published: PublishedGeneratorRecipe) -> Sampling:
    guidance = Guidance() if published.gfid_guided is None else model.guidance
    return Sampling({"sit": "sde", "dit": "ddpm"}[kind], 250, guidance)


def _mar(tokenizer: str, tokens: int, published: PublishedGeneratorRecipe) -> GeneratorRecipe:
    model = MARConfig(MARNetworkConfig.named("H", tokens, _DIMS[tokens], _IMAGENET))
    return GeneratorRecipe(
        name=f"mar-h-{tokenizer}",
        about=f"{published.row}, {tokens} tokens (Table {published.table}).",
        model=model,
        tokenizer=f"SoftVQVAE/{tokenizer}",
        batch_size=2048,
        steps=500 * _MAR_EPOCH,
        optimizer=_MAR,
        sampling=Sampling("mar", tokens, model.guidance),
        published=published,
    )


_LONG, _ABLATION = 3_000_000, 400_000  # steps (Section 4.1)


def _published() -> list[GeneratorRecipe]:
    found = []
    # Tables 1 and 6 (3M steps): tokenizer, tokens, gFID without and with guidance of SiT-XL, then of DiT-XL
    for size, tokens, sit, dit in (
        ("B", 32, (7.99, 2.51), (9.83, 3.91)),
        ("BL", 32, (7.67, 2.44), (9.22, 3.78)),
        ("L", 32, (7.59, 2.44), (9.07, 3.69)),
        ("B", 64, (5.98, 1.78), (6.62, 3.29)),
        ("BL", 64, (5.80, 1.88), (6.53, 3.11)),
        ("L", 64, (5.35, 1.86), (5.83, 2.93)),
    ):
        for kind, name, gfid in (("sit", "SiT-XL", sit), ("dit", "DiT-XL", dit)):
            row = PublishedGeneratorRecipe("1", f"{name}, SoftVQ-{size}", *gfid)
            found.append(_denoiser(kind, "XL", f"softvq-{size.lower()}-{tokens}", tokens, row, _LONG))
    found.append(_mar("softvq-l-32", 32, PublishedGeneratorRecipe("1", "MAR-H, SoftVQ-L", 3.83, 2.54)))
    found.append(_mar("softvq-bl-64", 64, PublishedGeneratorRecipe("1", "MAR-H, SoftVQ-BL", 2.81, 1.93)))
    # Tables 2 and 7, 512 px
    bl_512 = PublishedGeneratorRecipe("2", "SiT-XL, SoftVQ-BL, 512 px", 7.96, 2.21)
    found.append(_denoiser("sit", "XL", "softvq-bl-64-512", 64, bl_512, _LONG))
    found.append(_mar("softvq-bl-64-512", 64, PublishedGeneratorRecipe("2", "MAR-H, SoftVQ-BL, 512 px", 8.21, 3.42)))
    l_512 = PublishedGeneratorRecipe("7", "SiT-XL, SoftVQ-L, 512 px", 10.17, 4.23)
    found.append(_denoiser("sit", "XL", "softvq-l-32-512", 32, l_512, _LONG))
    # Table 3: SiT-L without guidance, 400K steps
    for kind, gfids in (
        ("VQ", (19.02, 18.51, 20.07, 21.57)),
        ("AE", (22.11, 22.31, 25.53, 28.18)),
        ("SoftVQ", (9.21, 10.12, 11.24, 12.89)),
    ):
        for tokens, gfid in zip(_DIMS, gfids, strict=True):
            row = PublishedGeneratorRecipe("3", f"SiT-L, {kind}-S", gfid, None)
            found.append(_denoiser("sit", "L", f"{kind.lower()}-s-{tokens}", tokens, row, _ABLATION))
    # Table 4: SiT-L on SoftVQ-B by encoder and alignment target; dinov2-dinov2 is softvq-b-64
    for variant, gfid in (
        ("-none-none", 20.33),
        ("-none-dinov2", 10.96),
        ("-dinov2-none", 17.20),
        ("", 10.13),
        ("-clip-clip", 9.89),
        ("-eva02-eva02", 10.34),
    ):
        row = PublishedGeneratorRecipe(
            "4", f"SiT-L, SoftVQ-B{variant.replace('-', ' ', 1) or ' dinov2-dinov2'}", gfid, None
        )
        found.append(_denoiser("sit", "L", f"softvq-b-64{variant}", 64, row, _ABLATION))
    return found + _two_dimensional()


def _two_dimensional() -> list[GeneratorRecipe]:
    """The baselines of Table 1 as their authors trained them: 2-D latents of 32 × 32 × 4, two by two a token."""
    found = []
    for kind, name, gfid in (("dit", "DiT-XL/2", (9.62, 2.27)), ("sit", "SiT-XL/2", (8.30, 2.06))):
        network = TransformerConfig.named("XL", 256, 16, _IMAGENET, positions="2d")
        model = DiTConfig(network, betas="linear") if kind == "dit" else SiTConfig(network, "linear", "uniform")
        row = PublishedGeneratorRecipe("1", f"{name}, KL, 1024 latents", *gfid)
        found.append(
            GeneratorRecipe(
                name=f"{kind}-xl-2-kl",
                about=f"{name} on a KL autoencoder's 32 × 32 latents (Table 1's baseline).",
                model=model,
                tokenizer="diffusers:stabilityai/sd-vae-ft-mse",
                steps=7_000_000,
                optimizer=replace(_DIFFUSION, grad_clip=None),
                sampling=_sampling(kind, model, row),
                published=row,
            )
        )
    return found


# Table 8 is the 1,000,000 and 4,000,000 steps of these; give --steps.
PAPER_GENERATORS = _published()

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
    """The `-tiny` twin: a small network and few steps, on whatever latents are there (`softvq encode emoji`)."""
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
