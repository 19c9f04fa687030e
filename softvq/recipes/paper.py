"""Every tokenizer that the authors trained for Tables 1 to 5, with its published rFID.

All share appendix C.1's settings (the defaults of `TokenizerRecipe` and `AdamWConfig`) and the *released* form of the
model, because that is what the published numbers came from. Not stated in the paper and chosen here: 8,192 codewords
for VQ, GMMVQ and the variants of Table 5, two layers for RQ, cosine VQ (the authors' code's default), and alignment
for VQ and AE too ("the same training recipe").

No run at this scale has been made with this code: the published numbers are the authors', to be measured against.
"""

from dataclasses import replace
from typing import Any

from softvq.layers import ViTConfig
from softvq.losses.discriminators import DinoDiscriminatorConfig
from softvq.losses.total import ScheduleConfig
from softvq.optim import AdamWConfig
from softvq.quantizers.base import QuantizerConfig
from softvq.quantizers.compose import ProductConfig, ResidualConfig
from softvq.quantizers.gaussian import AEConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import GMMVQConfig, SoftVQConfig
from softvq.tokenizer import TokenizerConfig
from softvq.training.recipe import AdversarialConfig, AlignmentConfig, PublishedRecipe, TokenizerRecipe

DINOV2 = {size: f"vit_{name}_patch14_dinov2.lvd142m" for size, name in (("S", "small"), ("B", "base"), ("L", "large"))}
DINOV2["BL"] = DINOV2["B"]  # the teacher is as wide as the encoder
CLIP = "vit_base_patch16_clip_224.openai"
EVA02 = "eva02_base_patch16_clip_224.merged2b"
DIMS = {256: 8, 128: 16, 64: 32, 32: 64}  # tokens -> numbers a token (Table 3)
COMMON = {"reconstruction": 1.0, "perceptual": 1.0, "adversarial": 0.2, "alignment": 0.1}  # Section 4.1: λ1, λ2, λ3
SOFT = {**COMMON, "kl": 0.01}  # λ4
# Appendix C.1, and the released configuration for the discriminator's start
SCHEDULES = {"perceptual": ScheduleConfig(warmup=10_000), "adversarial": ScheduleConfig(start=20_000)}


def _released(codebook_size: int = 8192, tau: float = 0.07, groups: int = 4) -> ProductConfig:
    return ProductConfig(SoftVQConfig.released(codebook_size, tau), groups, axis="token", kl="pooled")


def _recipe(
    name: str,
    published: PublishedRecipe,
    size: str = "S",
    tokens: int = 64,
    quantizer: QuantizerConfig | None = None,
    image_size: int = 256,
    **fields: Any,
) -> TokenizerRecipe:
    dim = fields.pop("latent_dim", DIMS[tokens])
    quantizer = quantizer or _released()
    tokenizer = TokenizerConfig.of_size(size, image_size=image_size, tokens=tokens, latent_dim=dim, quantizer=quantizer)
    about = f"{published.row}: {tokens} tokens × {dim}, {image_size} px (Table {published.table})."
    common = TokenizerRecipe(
        name=name,
        about=about,
        tokenizer=tokenizer,
        data="imagenet/train",
        val="imagenet/val",
        weights=SOFT,
        schedules=SCHEDULES,
        encoder_weights=DINOV2[size],
        perceptual="vgg16.tv_in1k",
        alignment=AlignmentConfig(DINOV2[size]),
        adversarial=AdversarialConfig(),
        published=published,
    )
    return replace(common, **fields)


def _main() -> list[TokenizerRecipe]:
    """Tables 1 and 2."""
    rfid = {("B", 32): 0.89, ("BL", 32): 0.68, ("L", 32): 0.74, ("B", 64): 0.88, ("BL", 64): 0.65, ("L", 64): 0.61}
    recipes = [
        _recipe(f"softvq-{size.lower()}-{tokens}", PublishedRecipe("1", f"SoftVQ-{size}", value), size, tokens)
        for (size, tokens), value in rfid.items()
    ]
    large = (("BL", 64, "2", 0.71), ("L", 32, "7", 0.64))
    return recipes + [
        _recipe(
            f"softvq-{size.lower()}-{tokens}-512",
            PublishedRecipe(table, f"SoftVQ-{size}", value),
            size,
            tokens,
            image_size=512,
        )
        for size, tokens, table, value in large
    ]


def _comparison() -> list[TokenizerRecipe]:
    """Table 3: VQ, AE and SoftVQ of size S at four numbers of tokens."""
    kinds: dict[str, tuple[QuantizerConfig, dict[str, float], tuple[float, ...]]] = {
        "VQ": (
            VQConfig(8192, "cosine"),
            {**COMMON, "codebook": 1.0, "commitment": 0.25},
            (1.45, 2.61, 4.04, 10.97),
        ),
        "AE": (AEConfig(), COMMON, (1.15, 1.33, 1.64, 2.01)),
        "SoftVQ": (_released(), SOFT, (0.80, 0.92, 1.03, 1.24)),
    }
    return [
        _recipe(
            f"{kind.lower()}-s-{tokens}",
            PublishedRecipe("3", f"{kind}-S", rfid),
            tokens=tokens,
            quantizer=quantizer,
            weights=weights,
        )
        for kind, (quantizer, weights, rfids) in kinds.items()
        for tokens, rfid in zip(DIMS, rfids, strict=True)
    ]


def _initialisation() -> list[TokenizerRecipe]:
    """Table 4: what SoftVQ-B 64's encoder starts as and is aligned with. Its fourth row is softvq-b-64."""
    encoders = {name: ViTConfig.named(name.partition(".")[0]) for name in (DINOV2["B"], CLIP, EVA02)}
    rows = {
        "none-none": (None, None, 0.98),
        "none-dinov2": (None, DINOV2["B"], 0.93),
        "dinov2-none": (DINOV2["B"], None, 0.73),
        "clip-clip": (CLIP, CLIP, 0.75),
        "eva02-eva02": (EVA02, EVA02, 0.81),
    }
    recipes = []
    for row, (start, teacher, rfid) in rows.items():
        recipe = _recipe(f"softvq-b-64-{row}", PublishedRecipe("4", f"SoftVQ-B, encoder and target {row}", rfid), "B")
        weights = SOFT if teacher else {name: λ for name, λ in SOFT.items() if name != "alignment"}
        recipes.append(
            replace(
                recipe,
                tokenizer=replace(recipe.tokenizer, encoder=encoders[start or DINOV2["B"]]),
                encoder_weights=start,
                alignment=AlignmentConfig(teacher) if teacher else None,
                weights=weights,
            )
        )
    return recipes


def _ablation() -> list[TokenizerRecipe]:
    """Table 5; what it repeats of softvq-s-64 (PQ with 4 groups, K 8192, 64 tokens × 32, τ 0.07) is that recipe."""
    soft = SoftVQConfig.released()
    residual = ResidualConfig(soft, depth=2)
    variants: dict[str, tuple[str, float, QuantizerConfig]] = {
        "softvq-s-64-plain": ("SoftVQ-S", 1.33, soft),
        "softvq-s-64-pq2": ("SoftVQ-S + PQ (G=2)", 1.19, _released(groups=2)),
        "softvq-s-64-rq": ("SoftVQ-S + RQ", 1.55, residual),
        "softvq-s-64-rpq": ("SoftVQ-S + R-PQ (G=4)", 1.17, ProductConfig(residual, 4, axis="token", kl="pooled")),
        "gmmvq-s-64": ("GMMVQ-S", 1.12, GMMVQConfig(8192)),
        **{
            f"softvq-s-64-k{size}": (f"SoftVQ-S, K = {size}", rfid, _released(size))
            for size, rfid in ((512, 1.82), (1024, 1.58), (2048, 1.35), (4096, 1.14), (16384, 1.23))
        },
        **{
            f"softvq-s-64-tau{tau}": (f"SoftVQ-S, τ = {tau}", rfid, _released(tau=tau))
            for tau, rfid in ((0.001, 2.03), (0.01, 1.37), (0.1, 1.19), (1.0, 1.52))
        },
        "softvq-s-64-tau-learned": (
            "SoftVQ-S, τ learnable",
            1.10,
            ProductConfig(replace(soft, learn_tau=True), 4, axis="token", kl="pooled"),
        ),
    }
    widths = {(64, 16): 2.31, (64, 64): 0.63, (32, 32): 1.61, (32, 128): 0.79}
    return [
        _recipe(name, PublishedRecipe("5", row, rfid), quantizer=quantizer)
        for name, (row, rfid, quantizer) in variants.items()
    ] + [
        _recipe(
            f"softvq-s-{tokens}-d{dim}",
            PublishedRecipe("5", f"SoftVQ-S, L/D = {tokens}/{dim}", rfid),
            tokens=tokens,
            latent_dim=dim,
        )
        for (tokens, dim), rfid in widths.items()
    ]


PAPER = (*_main(), *_comparison(), *_initialisation(), *_ablation())


def as_printed(recipe: TokenizerRecipe) -> TokenizerRecipe | None:
    """The `-paper` twin: Eq. 2, 4, 12 and 13 as printed instead of as released. None where the two are the same."""
    quantizer = recipe.tokenizer.quantizer.as_printed()
    if quantizer == recipe.tokenizer.quantizer:
        return None
    return replace(
        recipe,
        name=f"{recipe.name}-paper",
        about=f"{recipe.about} The quantizer as the paper prints it.",
        tokenizer=replace(recipe.tokenizer, quantizer=quantizer),
    )


def tiny(recipe: TokenizerRecipe) -> TokenizerRecipe:
    """The `-tiny` twin, which trains on a laptop with no network: narrow and shallow networks (the pretrained ones
    too, with random weights), small codebooks and images, few steps of few emoji. All else is the recipe's."""
    config = recipe.tokenizer
    start, teacher = recipe.encoder_weights, recipe.alignment
    warm = AdamWConfig(warmup_steps=4)
    return replace(
        recipe,
        name=f"{recipe.name}-tiny",
        about=f"{recipe.name} in tiny, to try it out: {config.tokens} tokens × {config.latent_dim}, 128 px.",
        tokenizer=replace(
            config,
            image_size=128,
            encoder=config.encoder.tiny(),
            decoder=config.decoder.tiny(),
            quantizer=config.quantizer.tiny(),
        ),
        data="emoji",
        val="emoji-val",
        batch_size=8,
        steps=20,
        optimizer=warm,
        schedules={"perceptual": ScheduleConfig(warmup=4), "adversarial": ScheduleConfig(start=1)},
        encoder_weights=_tiny_name(start) if start else None,
        perceptual="tiny_vgg16",
        adversarial=replace(
            recipe.adversarial,
            discriminator=DinoDiscriminatorConfig("tiny_vit_small_patch16_224", after=(1, 2), image_size=64),
            optimizer=warm,
        ),
        alignment=AlignmentConfig(_tiny_name(teacher.teacher), hidden=64) if teacher else None,
        published=None,
    )


def _tiny_name(name: str) -> str:
    return f"tiny_{name.partition('.')[0]}"
