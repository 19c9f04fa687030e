"""Every tokenizer that the authors trained for Tables 1 to 5, with its published rFID.

All share appendix C.1's settings (the defaults of `TokenizerRecipe` and `AdamWConfig`) and the *released* form of the
model, because that is what the published numbers came from. Not stated in the paper and chosen here: 8,192 codewords
for VQ, GMMVQ and the variants of Table 5, two layers for RQ, cosine VQ (the authors' code's default), and alignment
for VQ and AE too ("the same training recipe").

No run at this scale has been made with this code: the published numbers are the authors', to be measured against.
"""

from dataclasses import replace
from typing import Any

from softvq import published as published_figures
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
    size: str = "S",
    tokens: int = 64,
    quantizer: QuantizerConfig | None = None,
    image_size: int = 256,
    **fields: Any,
) -> TokenizerRecipe:
    published, dim = PublishedRecipe(*published_figures.TOKENIZERS[name]), fields.pop("latent_dim", DIMS[tokens])
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
    """Return the recipes of Tables 1 and 2, and of SoftVQ-L 32 at 512 px in Table 7."""
    recipes = [_recipe(f"softvq-{size.lower()}-{n}", size, n) for n in (32, 64) for size in ("B", "BL", "L")]
    large = (("BL", 64), ("L", 32))
    return recipes + [_recipe(f"softvq-{size.lower()}-{n}-512", size, n, image_size=512) for size, n in large]


def _comparison() -> list[TokenizerRecipe]:
    """Return the recipes of Table 3: VQ, AE and SoftVQ of size S at four numbers of tokens."""
    kinds: dict[str, tuple[QuantizerConfig, dict[str, float]]] = {
        "VQ": (VQConfig(8192, "cosine"), {**COMMON, "codebook": 1.0, "commitment": 0.25}),
        "AE": (AEConfig(), COMMON),
        "SoftVQ": (_released(), SOFT),
    }
    return [
        _recipe(f"{kind.lower()}-s-{tokens}", tokens=tokens, quantizer=quantizer, weights=weights)
        for kind, (quantizer, weights) in kinds.items()
        for tokens in DIMS
    ]


def _initialisation() -> list[TokenizerRecipe]:
    """Return the recipes of Table 4: SoftVQ-B 64 by the start of its encoder and the network it is aligned with.

    The table's fourth row is softvq-b-64.
    """
    encoders = {name: ViTConfig.named(name.partition(".")[0]) for name in (DINOV2["B"], CLIP, EVA02)}
    rows = {
        "none-none": (None, None),
        "none-dinov2": (None, DINOV2["B"]),
        "dinov2-none": (DINOV2["B"], None),
        "clip-clip": (CLIP, CLIP),
        "eva02-eva02": (EVA02, EVA02),
    }
    recipes = []
    for row, (start, teacher) in rows.items():
        recipe = _recipe(f"softvq-b-64-{row}", "B")
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
    """Return the recipes of Table 5, but for softvq-s-64 itself (PQ with 4 groups, K 8192, 64 tokens × 32, τ 0.07)."""
    soft = SoftVQConfig.released()
    residual = ResidualConfig(soft, depth=2)
    variants: dict[str, QuantizerConfig] = {
        "softvq-s-64-plain": soft,
        "softvq-s-64-pq2": _released(groups=2),
        "softvq-s-64-rq": residual,
        "softvq-s-64-rpq": ProductConfig(residual, 4, axis="token", kl="pooled"),
        "gmmvq-s-64": GMMVQConfig(8192),
        **{f"softvq-s-64-k{size}": _released(size) for size in (512, 1024, 2048, 4096, 16384)},
        **{f"softvq-s-64-tau{tau}": _released(tau=tau) for tau in (0.001, 0.01, 0.1, 1.0)},
        "softvq-s-64-tau-learned": ProductConfig(replace(soft, learn_tau=True), 4, axis="token", kl="pooled"),
    }
    widths = ((64, 16), (64, 64), (32, 32), (32, 128))
    return [_recipe(name, quantizer=quantizer) for name, quantizer in variants.items()] + [
        _recipe(f"softvq-s-{tokens}-d{dim}", tokens=tokens, latent_dim=dim) for tokens, dim in widths
    ]


PAPER = (*_main(), *_comparison(), *_initialisation(), *_ablation())


def as_printed(recipe: TokenizerRecipe) -> TokenizerRecipe | None:
    """Return the `-paper` twin, with Eq. 2, 4, 12 and 13 as printed instead of as released; None where it is equal."""
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
    """Return the `-tiny` twin, which trains on a laptop with no network.

    It has narrow and shallow networks (the pretrained ones too, with random weights), small codebooks and images, and
    few steps of few emoji. All else is the recipe's.
    """
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
