"""A tokenizer run's recipe: every choice that changes its result, as one frozen dataclass."""

import math
import shlex
from dataclasses import dataclass, field
from typing import Any, Literal

from softvq.config import check_numbers
from softvq.data.images import Augment
from softvq.losses.adversarial import AdversarialLoss
from softvq.losses.discriminators import DinoDiscriminatorConfig, DiscriminatorConfig
from softvq.losses.reconstruction import Distance
from softvq.losses.terms import TERMS
from softvq.losses.total import ScheduleConfig
from softvq.optim import AdamWConfig, OptimizerConfig
from softvq.pretrained.named import PERCEPTUAL, TEACHERS
from softvq.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class AlignmentConfig:
    """The alignment term of Eq. 6: a frozen teacher network, and the projector that maps latents to its features.

    `teacher` is a ViT of `pretrained.vit` or an EfficientNet-Lite of `pretrained.lite`, with patches of the encoder's
    size; `hidden` is the width of the projector's two inner layers.
    """

    teacher: str
    hidden: int = 1024

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {self.hidden}")


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial term (Section 4.1, appendix C.1) and the discriminator's own training.

    `loss` is the kind of loss for both players; `augment` is the probability of each of DiffAug's three changes;
    `consistency` weighs how far the logits move under a stronger augmentation, and `lecam` LeCAM's regularisation;
    `adaptive` balances the generator's term by gradients at the decoder's last layer, as VQGAN does and the paper does
    not.
    """

    discriminator: DiscriminatorConfig = field(default_factory=DinoDiscriminatorConfig)
    loss: AdversarialLoss = "hinge"
    augment: float = 0.5
    consistency: float = 4.0
    lecam: float = 0.001
    adaptive: bool = False
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)

    def __post_init__(self):
        if not (0 <= self.augment <= 1 and self.consistency >= 0 and self.lecam >= 0):
            raise ValueError("augment must be in [0, 1], consistency and lecam not negative")


@dataclass(frozen=True)
class PublishedRecipe:
    """The row of the paper that a recipe stands for, and its published rFID (ImageNet validation, 50,000 images)."""

    table: str
    row: str
    rfid: float


def check_run(recipe: Any) -> None:
    """Raise `ValueError` when a recipe, a tokenizer's or a generator's, cannot be run."""
    check_numbers(recipe, type(recipe).__name__)
    for name in ("batch_size", "steps"):
        if getattr(recipe, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(recipe, name)}.")
    if not 0 <= recipe.seed < 2**63:
        raise ValueError(f"seed must not be negative and be below 2^63, not {recipe.seed}")
    if not 0 <= recipe.ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), not {recipe.ema_decay}")
    if recipe.accumulate < 1 or recipe.batch_size % recipe.accumulate:
        raise ValueError(f"batch_size {recipe.batch_size} must be a multiple of accumulate, not of {recipe.accumulate}")
    if recipe.skip_above is not None and recipe.skip_above <= 1:
        raise ValueError(f"skip_above must be larger than 1, not {recipe.skip_above}")


@dataclass(frozen=True)
class TokenizerRecipe:
    """Every choice of a tokenizer's training run that changes its result.

    `data` and `val` name the images (see `data.open_source`): `emoji`, `emoji-val`, a folder, tar shards here or at an
    address (`train-{000..127}.tar`), a Hugging Face dataset or its parquet files; `val` may be None.

    `weights` are the λ of Eq. 7 by term: `reconstruction`, `perceptual` where a network for it is named (of
    `pretrained.lpips` or `pretrained.lite`), `alignment` where there is a teacher, `adversarial` where there is a
    discriminator, terms of the user's own (`losses.terms.TERMS`), and the losses that the quantizer reports (`kl`;
    `codebook` and `commitment` for VQ). `schedules` say from which step on a term counts.

    `batch_size` is over all processes; `accumulate` splits a batch into that many parts, processed one after the other
    (statistics of the batch are then those of a part). `skip_above` leaves out a step whose gradient norm is more than
    that many times the running average.

    `latent_noise` makes the decoder robust against latents that a generator gets a little wrong: in training, noise σ ·
    ε is added to each image's latents on their way to the decoder, with ε normal, σ uniform in [0, latent_noise], in
    units of each channel's standard deviation over the batch. 0, as in the paper, is for none.

    `trains` is `all`, or `decoder` for a phase in which encoder, quantizer and latent statistics stay as they are in
    the tokenizer that `init` names, so that its latents and the generators made of them stay valid.

    `ema_decay` is that of the average that becomes the model; with `ema_warmup` it is at most (1 + t) / (10 + t) at
    step t, so that short runs have an average of their own (the release has a constant decay).

    `projections` says how `to_quantizer`, `from_quantizer` and `to_pixel` start: `vit` (normal of deviation 0.02) as
    all linear layers here, or `default` (PyTorch's) as in the release.

    `init` says how the whole tokenizer starts: `vit` is the usual random start; `local` starts attention at each
    token's own place (see `training.initialise`); anything else is a tokenizer (folder, bundled or hub name) to go on
    from, at this recipe's image size and number of tokens. `encoder_weights` is a pretrained ViT that the encoder
    starts as, unless `init` names a tokenizer.
    """

    name: str
    about: str
    tokenizer: TokenizerConfig
    data: str = "emoji"
    val: str | None = "emoji-val"
    augment: Augment = field(default_factory=Augment)
    batch_size: int = 256
    steps: int = 250_000
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    reconstruction: Distance = "l2"
    weights: dict[str, float] = field(default_factory=lambda: {"reconstruction": 1.0, "kl": 0.01})
    schedules: dict[str, ScheduleConfig] = field(default_factory=dict)
    accumulate: int = 1
    skip_above: float | None = None
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    projections: Literal["vit", "default"] = "vit"
    latent_noise: float = 0.0
    trains: Literal["all", "decoder"] = "all"
    init: str = "vit"
    encoder_weights: str | None = None
    perceptual: str | None = None
    alignment: AlignmentConfig | None = None
    adversarial: AdversarialConfig | None = None
    published: PublishedRecipe | None = None

    def __post_init__(self):
        if not 0 <= self.latent_noise < math.inf:
            raise ValueError(f"latent_noise must not be negative, and finite, not {self.latent_noise}")
        check_run(self)
        if self.val is not None and self.tokenizer.image_size < 11:
            raise ValueError("validation measures SSIM, which needs an image_size of at least 11; or set val to null")
        if unknown := self.schedules.keys() - self.weights.keys():
            raise ValueError(f"schedules name {', '.join(sorted(unknown))}, which weights do not")
        if self.init == "local" and self.encoder_weights is not None:
            raise ValueError("init 'local' and encoder_weights both say where the encoder starts; give one of them")
        if self.init != "vit" and self.projections != "vit":
            raise ValueError(f"init {self.init!r} says how projections start; leave projections at 'vit'")
        if self.trains == "decoder" and not self.starts_from_model:
            raise ValueError("to train the decoder alone, init must name the tokenizer that it belongs to")
        if self.trains == "decoder" and self.alignment is not None:
            raise ValueError("where only the decoder trains, alignment changes nothing; set alignment to null")

    @property
    def starts_from_model(self) -> bool:
        """True when `init` names a tokenizer to go on from."""
        return self.init not in ("vit", "local")

    @property
    def networks(self) -> list[str]:
        """The names of the networks that the run uses and that are downloaded, or given as files."""
        start = None if self.starts_from_model else self.encoder_weights
        names = [start, self.perceptual, self.alignment and self.alignment.teacher]
        if self.adversarial is not None:
            names.append(self.adversarial.discriminator.backbone)
        packaged = {n for table in (TEACHERS, PERCEPTUAL) for n, known in table.items() if not known.from_file}
        return sorted({name for name in names if name and name not in packaged})

    @property
    def terms(self) -> list[str]:
        """The names of the loss terms that compare images.

        They are `reconstruction`, the terms that the recipe has networks for, and the user's own terms that `weights`
        name.
        """
        networks = {"perceptual": self.perceptual, "alignment": self.alignment}
        named = [n for n in TERMS if n in self.weights and n not in (*networks, "reconstruction")]
        return ["reconstruction", *(n for n, network in networks.items() if network is not None), *named]

    @property
    def command(self) -> str:
        """The command that runs this recipe."""
        words = ["softvq", "train", "tokenizer", self.name]
        if self.data != "emoji":
            words += ["--data", self.data, *(["--val", self.val] if self.val else [])]
        return shlex.join(words)
