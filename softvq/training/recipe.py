"""What a tokenizer run is: every choice that changes its result, as one frozen dataclass."""

from dataclasses import dataclass, field
from typing import Literal

from softvq.data.images import Augment
from softvq.losses.reconstruction import Distance
from softvq.optim import AdamWConfig, OptimizerConfig
from softvq.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class AlignmentConfig:
    """Eq. 6: `teacher` is a frozen ViT of `pretrained.vit`, with patches of the encoder's size; `hidden` the width of
    the projector's two inner layers."""

    teacher: str
    hidden: int = 1024

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {self.hidden}")


@dataclass(frozen=True)
class PublishedRecipe:
    """The row of the paper that a recipe stands for, and its published rFID (ImageNet validation, 50,000 images)."""

    table: str
    row: str
    rfid: float


@dataclass(frozen=True)
class TokenizerRecipe:
    """A tokenizer training run.

    `data` and `val` name the images: `emoji`, `emoji-val`, or a folder (`val` may be None). `weights` are λ of Eq. 7
    by term: `reconstruction`, `alignment` where there is a teacher, and the losses that the quantizer reports (`kl`;
    `codebook` and `commitment` for VQ). `init`: `vit` is the usual random start; `local` starts attention at each
    token's own place (see `training.initialise`). `encoder_weights`: a pretrained ViT that the encoder starts as.
    `batch_size` is over all processes.
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
    ema_decay: float = 0.9999
    init: Literal["vit", "local"] = "vit"
    encoder_weights: str | None = None
    alignment: AlignmentConfig | None = None
    published: PublishedRecipe | None = None

    def __post_init__(self):
        if self.batch_size < 1 or self.steps < 1:
            raise ValueError(f"batch_size and steps must be at least 1, not {self.batch_size} and {self.steps}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if self.val is not None and self.tokenizer.image_size < 11:
            raise ValueError("validation measures SSIM, which needs an image_size of at least 11; or set val to null")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), not {self.ema_decay}")
        if self.init == "local" and self.encoder_weights is not None:
            raise ValueError("init 'local' and encoder_weights both say where the encoder starts; give one of them")

    @property
    def command(self) -> str:
        """The command that runs this recipe."""
        data = "" if self.data == "emoji" else f" --data {self.data}" + (f" --val {self.val}" if self.val else "")
        return f"softvq train tokenizer {self.name}{data}"
