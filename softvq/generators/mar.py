"""MAR (Li et al. 2024): a masked encoder–decoder over tokens, and a small diffusion model that makes each token.

The diffusion model is conditioned on the decoder's output at the token's place.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softvq.config import register
from softvq.generators.base import Generator, GeneratorConfig, Noise, Part, Progress, Sampling, check_share
from softvq.generators.transformer import FinalLayer, TimeEmbedder, start_at_zero
from softvq.layers import Block, Dropout, ViTConfig, modulated
from softvq.transports import samplers
from softvq.transports.diffusion import LEAST_LAMBDA, STEPS, Diffusion
from softvq.transports.guidance import Guidance, guided

_MEAN, _STD, _LEAST = 1.0, 0.25, 0.7  # of the mask ratio: a normal, truncated to [0.7, 1]


@dataclass(frozen=True)
class MARNetworkConfig:
    """The sizes of MAR's networks.

    `tokens` of `channels` numbers each; `classes`: the number of labels, 0 for none. Encoder and decoder have `depth`
    blocks each; `buffer` tokens that hold the class stand before the others. The diffusion head has `head_depth` blocks
    of `head_width`. `query_key_norm` keeps attention logits bounded, against the NaN that the paper reports.
    """

    tokens: int
    channels: int
    classes: int
    width: int = 1280
    depth: int = 20
    heads: int = 16
    head_width: int = 1536
    head_depth: int = 12
    buffer: int = 64
    query_key_norm: bool = True

    def __post_init__(self):
        if min(self.tokens, self.channels, self.width, self.depth, self.heads, self.head_width, self.head_depth) < 1:
            raise ValueError("tokens, channels, widths, depths and heads must be at least 1")
        if self.buffer < 1 or self.classes < 0:
            raise ValueError("buffer must be at least 1, classes at least 0")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if max(self.depth, self.head_depth) > 256:
            raise ValueError("depth and head_depth must be at most 256")

    @classmethod
    def named(cls, size: str, tokens: int, channels: int, classes: int) -> "MARNetworkConfig":
        """Return one of `SIZES`: tiny, B, L, H."""
        if size not in SIZES:
            raise ValueError(f"there is no size {size!r}; there are {', '.join(SIZES)}.")
        return cls(tokens, channels, classes, *SIZES[size], buffer=64 if size != "tiny" else 4)

    def tiny(self) -> "MARNetworkConfig":
        """Return a small variant for the same latents, for the tiny variants of recipes."""
        small = self.named("tiny", self.tokens, self.channels, self.classes)
        return replace(small, query_key_norm=self.query_key_norm)


# Width, depth (of each half), heads, head width, head depth
SIZES = {
    "tiny": (32, 2, 2, 32, 2),
    "B": (768, 12, 12, 1024, 6),
    "L": (1024, 16, 16, 1280, 8),
    "H": (1280, 20, 16, 1536, 12),
}


@register
@dataclass(frozen=True)
class MARConfig(GeneratorConfig):
    """The configuration of `MAR`.

    `dropout`: the share of labels replaced by the null class; `hidden_dropout`: the share of activations dropped in the
    blocks; `repeats`: draws of noise and time for each token in a training step; `head_steps`: steps of the head's
    chain when sampling.
    """

    network: MARNetworkConfig
    dropout: float = 0.1
    hidden_dropout: float = 0.1
    repeats: int = 4
    head_steps: int = 100

    def __post_init__(self):
        check_share("dropout", self.dropout)
        check_share("hidden_dropout", self.hidden_dropout)
        if self.repeats < 1 or not 1 <= self.head_steps <= STEPS:
            raise ValueError(f"repeats must be at least 1, head_steps in 1 … {STEPS}")

    @property
    def guidance(self) -> Guidance:
        """The paper's guidance (appendix C.2), rising linearly as tokens are unmasked."""
        return Guidance(3.0, schedule="linear")

    def build(self, about: dict[str, Any] | None = None) -> "MAR":
        """Return the generator of this configuration with its initial weights; `about` is saved with it."""
        return MAR(self, about)


class _HeadBlock(nn.Module):
    """A block of the head on single tokens: x + gate · mlp(modulated norm(x))."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Float[Tensor, "M D"], condition: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(modulated(self.norm(x), shift, scale))


class Head(nn.Module):
    """The diffusion head: a noisy token, a time and the decoder's output at its place → noise ‖ variance logits."""

    def __init__(self, config: MARNetworkConfig):
        super().__init__()
        D, C = config.head_width, config.channels
        self.x_embedder = nn.Linear(C, D)
        self.t_embedder = TimeEmbedder(D)
        self.condition = nn.Linear(config.width, D)
        self.layers = nn.ModuleList(_HeadBlock(D) for _ in range(config.head_depth))
        self.final_layer = FinalLayer(D, 2 * C)

    def forward(self, x: Float[Tensor, "M C"], t: Tensor, z: Float[Tensor, "M D"]) -> Float[Tensor, "M O"]:
        """Return noise ‖ variance logits (M, 2 C) of noisy tokens x at steps t, given the decoder's outputs z."""
        condition = self.t_embedder(t.float()) + self.condition(z)
        x = self.x_embedder(x)
        for layer in self.layers:
            x = layer(x, condition)
        return self.final_layer(x[:, None], condition)[:, 0]


class MAR(Generator):
    """A generator that makes tokens in a random order, several at a time, each from its own small diffusion."""

    samplers: ClassVar = {}  # filled below

    def __init__(self, config: MARConfig, about: dict[str, Any] | None = None):
        super().__init__(config, about)
        c = config.network
        shape = ViTConfig(c.width, c.depth, c.heads, layer_scale=None)
        self.recompute = False
        self.diffusion = Diffusion.named("cosine")
        self.token_embedder = nn.Linear(c.channels, c.width)
        self.label_embedder = nn.Embedding(c.classes + 1, c.width)
        self.embed_norm = nn.LayerNorm(c.width, eps=1e-6)
        self.encoder_pos_embed = nn.Parameter(torch.empty(1, c.buffer + c.tokens, c.width))
        self.encoder = nn.ModuleList(Block(shape, c.query_key_norm, config.hidden_dropout) for _ in range(c.depth))
        self.encoder_norm = nn.LayerNorm(c.width, eps=1e-6)
        self.decoder_embed = nn.Linear(c.width, c.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, c.width))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, c.buffer + c.tokens, c.width))
        self.decoder = nn.ModuleList(Block(shape, c.query_key_norm, config.hidden_dropout) for _ in range(c.depth))
        self.decoder_norm = nn.LayerNorm(c.width, eps=1e-6)
        self.head_pos_embed = nn.Parameter(torch.empty(1, c.tokens, c.width))
        self.head = Head(c)
        start_at_zero(self, "head.final_layer.linear")
        embeddings = (self.encoder_pos_embed, self.decoder_pos_embed, self.head_pos_embed, self.mask_token)
        times = [self.head.t_embedder.mlp[layer].weight for layer in (0, 2)]
        for weight in (*embeddings, self.label_embedder.weight, *times):
            nn.init.normal_(weight, std=0.02)
        self._dropouts = [module for module in self.modules() if isinstance(module, Dropout)]
        for number, dropout in enumerate(self._dropouts):
            dropout.layer = number

    @property
    def default_sampling(self) -> Sampling:
        """The sampling by default: `mar` with 32 steps, and the configuration's guidance."""
        return Sampling("mar", 32, self.config.guidance)

    @property
    def quick_sampling(self) -> Sampling:
        """The sampling of images to look at while training: 16 steps, guidance rising linearly to 2."""
        return Sampling("mar", 16, Guidance(2.0, schedule="linear"))

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of encoder, decoder and head, in order."""
        return [*self.encoder, *self.decoder, *self.head.layers]

    @property
    def undecayed(self) -> list[nn.Module]:
        """The head, whose weights no optimizer decays, as in MAR."""
        return [self.head]  # as in MAR

    def draw(self, rngs: Sequence[np.random.Generator], shared: np.random.Generator) -> dict[str, Tensor]:
        """Return one number of `masked` tokens for the batch, and each sample's order of tokens, times and noises.

        Each sample also has `drop` for its label, uniform in [0, 1), and the `seed` of the blocks' dropout.
        """
        T, C = self.shape
        R = self.config.repeats
        ratio = truncated_normal(shared)
        uniform = np.stack([g.random(1 + R * T) for g in rngs])
        return {
            "drop": torch.from_numpy(uniform[:, 0]).float(),
            "time": torch.from_numpy(uniform[:, 1:].reshape(-1, R, T)),
            "order": torch.from_numpy(np.stack([g.permutation(T) for g in rngs])),
            "noise": torch.from_numpy(np.stack([g.standard_normal((R, T, C), dtype=np.float32) for g in rngs])),
            "masked": torch.tensor(math.ceil(T * ratio), device="cpu"),
            "seed": torch.from_numpy(np.stack([g.integers(0, 2**31) for g in rngs])),
        }

    def loss(
        self, latents: Float[Tensor, "B T C"], labels: Int[Tensor, " B"], draws: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Return the head's loss (noise and variance, as DiT's), the mean over masked tokens and repeats.

        `mse` and `bound` add up to `loss`.
        """
        for dropout in self._dropouts:
            dropout.seeds = draws["seed"]
        R, hidden = self.config.repeats, int(draws["masked"])
        columns, visible = (part.sort(1).values for part in draws["order"].tensor_split([hidden], 1))
        z = self.places(latents, visible, self.dropped(labels, draws["drop"]))
        rows = torch.arange(len(latents), device=latents.device)[:, None].expand_as(columns).flatten()
        columns = columns.flatten()
        target, z = latents[rows, columns].repeat(R, 1), z[rows, columns].repeat(R, 1)
        noise = draws["noise"][rows, :, columns].transpose(0, 1).flatten(0, 1).to(latents)
        step = (draws["time"][rows, :, columns].T.flatten() * STEPS).long()
        point = self.diffusion.mix(target, noise, step)
        estimate, logits = self.head(point, step, z).float().chunk(2, dim=-1)
        mse = (estimate - noise).square().mean(1)
        bound = self.diffusion.bound(target, point, estimate, logits, step)
        means = {name: x.view(R, len(latents), -1).mean((0, 2)) for name, x in (("mse", mse), ("bound", bound))}
        return {"loss": means["mse"] + means["bound"], **means}

    def places(
        self, latents: Float[Tensor, "B T C"], visible: Int[Tensor, "B V"], labels: Int[Tensor, " B"]
    ) -> Float[Tensor, "B T D"]:
        """Return the decoder's output at every place (B, T, D), given the tokens that are visible.

        `visible` are the numbers of each sample's visible tokens, in rising order.
        """
        B, T, _ = latents.shape
        buffer = self.config.network.buffer
        tokens = self.token_embedder(latents.to(self.token_embedder.weight.dtype))
        label = self.label_embedder(labels)[:, None].expand(-1, buffer, -1)
        x = self.embed_norm(torch.cat([label.to(tokens.dtype), tokens], 1) + self.encoder_pos_embed)
        first = torch.arange(buffer, device=visible.device).expand(B, -1)
        kept = torch.cat([first, buffer + visible], 1)[:, :, None].expand(-1, -1, x.shape[-1])
        seen = self.through(self.encoder, x.gather(1, kept))
        seen = self.decoder_embed(self.encoder_norm(seen))
        x = self.mask_token.expand(B, buffer + T, -1).to(seen.dtype).scatter(1, kept, seen)
        x = self.through(self.decoder, x + self.decoder_pos_embed)
        return self.decoder_norm(x)[:, buffer:] + self.head_pos_embed

    def through(self, blocks: nn.ModuleList, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return tokens passed through the encoder's or the decoder's blocks."""
        for block in blocks:
            recompute = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x

    @torch.no_grad()
    def sample(
        self, labels: Int[Tensor, " B"], noise: Noise, sampling: Sampling, progress: Progress = None
    ) -> Float[Tensor, "B T C"]:
        """Return new latents (B, T, C) of these classes, float32, by the sampler that `sampling` names."""
        self.check(sampling)
        return self.samplers[sampling.sampler](self, labels, noise, sampling, progress or (lambda steps: steps))

    def unmask(
        self, labels: Int[Tensor, " B"], noise: Noise, sampling: Sampling, progress: Callable[[Sequence], Sequence]
    ) -> Float[Tensor, "B T C"]:
        """Return latents whose tokens are made in a random order, few at first and ever more at a time."""
        T, C = self.shape
        B, device = len(labels), labels.device
        rank = noise.uniform(T).argsort(1).argsort(1).to(device)  # when each token's turn comes, the last first
        latents = torch.zeros(B, T, C, dtype=torch.float32, device=device)
        hidden = T
        null = torch.full_like(labels, self.classes)
        plan = unmasking(T, sampling.steps)
        for after in progress(plan):
            chosen, visible = (rank < hidden) & (rank >= after), rank.argsort(1)[:, hidden:].sort(1).values
            at = torch.full((B,), after / T, dtype=torch.float64, device=device)
            scale = float(sampling.guidance.at(at)[0])
            z = self.places(latents, visible, labels)[chosen]
            other = self.places(latents, visible, null)[chosen] if scale != 1 else z
            latents[chosen] = self._tokens(z, other, scale, chosen, noise, getattr(torch, sampling.dtype))
            hidden = after
        return latents

    def one_evaluation(self) -> Callable[[], Any]:
        """Return a call with all image tokens hidden: encoder and decoder once, the head once a token."""
        tokens, channels = self.shape
        network, device = self.config.network, self.device
        x = torch.zeros(1, tokens, channels, device=device)

        def call() -> None:
            self.token_embedder(x)
            buffer = torch.zeros(1, network.buffer, network.width, device=device)
            seen = self.decoder_embed(self.through(self.encoder, buffer))
            hidden = torch.zeros(1, tokens, network.width, device=device)
            places = self.through(self.decoder, torch.cat([seen, hidden], 1))
            self.head(x[0], torch.zeros(tokens, device=device), places[0, network.buffer :])

        return call

    def parts(self, rows: int, steps: int, guided: bool) -> dict[str, Part]:
        """Return two parts, `evaluation` and `head`, each with the mean size of a step.

        `evaluation` is the encoder and decoder with the mean number of hidden tokens, `head` the head for a step's
        share of them.
        """
        tokens, channels = self.shape
        rows, device = rows * (2 if guided else 1), self.device
        left = [tokens, *unmasking(tokens, steps)[:-1]]
        visible = torch.arange(round(sum(left) / len(left)), tokens, device=device).expand(rows, -1)
        latents = torch.zeros(rows, tokens, channels, device=device)
        labels = torch.zeros(rows, dtype=torch.long, device=device)
        many = math.ceil(rows * tokens / len(left))
        x, t = torch.zeros(many, channels, device=device), torch.zeros(many, device=device)
        z = torch.zeros(many, self.config.network.width, device=device)
        return {
            "evaluation": Part(lambda: self.places(latents, visible, labels), len(left)),
            "head": Part(lambda: self.head(x, t, z), len(left) * self.config.head_steps),
        }

    def _tokens(self, z: Tensor, other: Tensor, scale: float, chosen: Tensor, noise: Noise, dtype) -> Tensor:
        """Return the chosen tokens, made by the head's own chain from noise."""

        def network(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            return self.head(x.to(condition.dtype), t, condition).float()

        field = guided(network, z, other, Guidance(scale), self.shape[1])
        chain = self.diffusion.respaced(min(self.config.head_steps, self.diffusion.longest(LEAST_LAMBDA)), LEAST_LAMBDA)
        mine = chosen.cpu()
        start = noise()[mine].to(z.device, dtype)
        return samplers.ddpm(field, start, chain, lambda number: noise()[mine]).float()


MAR.samplers["mar"] = MAR.unmask


def truncated_normal(rng: np.random.Generator) -> float:
    """Draw a mask ratio: normal with mean 1 and deviation 0.25, between 0.7 and 1."""
    while True:
        ratio = rng.normal(_MEAN, _STD)
        if _LEAST <= ratio <= 1:
            return float(ratio)


def unmasking(tokens: int, steps: int) -> list[int]:
    """Return the number of tokens still hidden after each step, ⌊T cos(π/2 · i / steps)⌋.

    There is at least one fewer each time, and none at the end. More steps than tokens are as many as there are tokens.
    """
    steps, hidden, left = min(steps, tokens), [], tokens
    for i in range(1, steps + 1):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * i / steps))
        left = 0 if i == steps else max(steps - i, min(wanted, left - 1))
        hidden.append(left)
    return hidden
