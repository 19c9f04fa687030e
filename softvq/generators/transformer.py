"""The network of DiT and SiT (Peebles and Xie 2023; Ma et al. 2024) on 1-D tokens: adaLN-Zero transformer blocks.

The parameters have the names of the released checkpoints.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softvq.layers import Attention, Mlp, modulated

_FREQUENCIES = 256


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of the network of DiT and SiT.

    `tokens` of `channels` numbers each. `classes`: the number of labels, 0 for none (unconditional); one more embedding
    is the null class. `positions`: `1d`, or `2d` where the tokens are a square grid (2-D latents folded by
    `layers.fold`).
    """

    tokens: int
    channels: int
    classes: int
    width: int = 1152
    depth: int = 28
    heads: int = 16
    mlp_ratio: float = 4.0
    positions: str = "1d"

    def __post_init__(self):
        if min(self.tokens, self.channels, self.width, self.depth, self.heads) < 1 or self.classes < 0:
            raise ValueError("tokens, channels, width, depth and heads must be at least 1, classes at least 0")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads {self.heads}")
        if self.depth > 256:
            raise ValueError(f"depth must be at most 256, not {self.depth}")
        if self.positions not in ("1d", "2d"):
            raise ValueError(f"positions must be '1d' or '2d', not {self.positions!r}")
        if self.positions == "2d" and math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ValueError(f"2-D positions need a square number of tokens, not {self.tokens}")

    @classmethod
    def named(cls, size: str, tokens: int, channels: int, classes: int, positions: str = "1d") -> "TransformerConfig":
        """Return one of `SIZES`: tiny, S, B, L, XL."""
        if size not in SIZES:
            raise ValueError(f"there is no size {size!r}; there are {', '.join(SIZES)}.")
        width, depth, heads = SIZES[size]
        return cls(tokens, channels, classes, width, depth, heads, positions=positions)

    def tiny(self) -> "TransformerConfig":
        """Return a small variant for the same latents, for the tiny variants of recipes."""
        width, depth, heads = SIZES["tiny"]
        return replace(self, width=width, depth=depth, heads=heads)


# Width, depth, heads
SIZES = {
    "tiny": (32, 2, 2),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


class TimeEmbedder(nn.Module):
    """A time (in [0, 1] for SiT, 0 to 999 for DiT) as cosines and sines of 128 frequencies, through an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Return the embedding (B, D) of times."""
        return self.mlp(waves(t.float(), _FREQUENCIES).to(self.mlp[0].weight.dtype))


def waves(t: Float[Tensor, " B"], count: int) -> Float[Tensor, "B count"]:
    """Return cos(t ω), then sin(t ω), for ω from 1 down to almost 1 / 10,000."""
    half = count // 2
    bands = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t[:, None] * bands
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class LabelEmbedder(nn.Module):
    """One vector a class, and one for the null class behind them."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Return the vector of each label."""
        return self.embedding_table(labels)


class AdaBlock(nn.Module):
    """A transformer block whose norms are shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        D = config.width
        self.norm1 = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(D, config.heads)
        self.norm2 = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(D, int(D * config.mlp_ratio), approximate="tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))

    def forward(self, x: Float[Tensor, "B T D"], condition: Float[Tensor, "B D"]) -> Float[Tensor, "B T D"]:
        """Return the tokens after attention and MLP, both modulated by the condition."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulated(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulated(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """A norm, shifted and scaled by the condition, and a linear layer."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Float[Tensor, "B T D"], condition: Float[Tensor, "B D"]) -> Float[Tensor, "B T C"]:
        """Return C numbers for each token."""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(modulated(self.norm_final(x), shift, scale))


class Transformer(nn.Module):
    """The network: tokens at a time, given a class, to `out_channels` numbers a token.

    With `recompute`, blocks keep less for the gradients and are computed again.
    """

    def __init__(self, config: TransformerConfig, out_channels: int):
        super().__init__()
        self.config, self.recompute = config, False
        D = config.width
        self.x_embedder = nn.Linear(config.channels, D)
        self.t_embedder = TimeEmbedder(D)
        self.y_embedder = LabelEmbedder(config.classes, D)
        self.register_buffer("pos_embed", positions(config))
        self.blocks = nn.ModuleList(AdaBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(D, out_channels)
        start_at_zero(self, "final_layer.linear")
        for weight in (self.y_embedder.embedding_table.weight, *(self.t_embedder.mlp[i].weight for i in (0, 2))):
            nn.init.normal_(weight, std=0.02)

    def forward(
        self, x: Float[Tensor, "B T C"], t: Float[Tensor, " B"], labels: Int[Tensor, " B"]
    ) -> Float[Tensor, "B T O"]:
        """Return `out_channels` numbers a token (B, T, O).

        `labels` are from 0 on; `config.classes` is the null class.
        """
        condition = self.t_embedder(t) + self.y_embedder(labels)
        return self.final_layer(self._hidden(x, condition, len(self.blocks)), condition)

    def hidden(
        self, x: Float[Tensor, "B T C"], t: Float[Tensor, " B"], labels: Int[Tensor, " B"], layer: int
    ) -> Float[Tensor, "B T D"]:
        """Return the tokens after `layer` blocks, which linear probing reads (Fig. 3).

        Raise `ValueError` unless `layer` is a number from 1 to the number of blocks.
        """
        if not 1 <= layer <= len(self.blocks):
            raise ValueError(f"the network has layers 1 to {len(self.blocks)}, not {layer}.")
        return self._hidden(x, self.t_embedder(t) + self.y_embedder(labels), layer)

    def _hidden(self, x: Tensor, condition: Tensor, layer: int) -> Tensor:
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks[:layer]:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, use_reentrant=False)
            else:
                x = block(x, condition)
        return x


def start_at_zero(model: nn.Module, last: str) -> None:
    """Initialise linear layers by Xavier, but with zeros in modulating layers and in the one called `last`.

    Each block then starts as the identity.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        if "adaLN_modulation.1" in name or name == last:
            nn.init.zeros_(module.weight)


def positions(config: TransformerConfig) -> Float[Tensor, "1 T D"]:
    """Return the fixed positions' embeddings (1, T, D).

    1-D: sin and cos of each frequency side by side. 2-D: half of the channels for the column, half for the row, each
    all sines and then all cosines (as in DiT).
    """
    T, D = config.tokens, config.width
    if config.positions == "1d":
        bands = torch.exp(-math.log(10_000) / D * torch.arange(0, D, 2, dtype=torch.float64))
        angles = torch.arange(T, dtype=torch.float64)[:, None] * bands
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None].float()
    side = math.isqrt(T)
    bands = 10_000.0 ** -(torch.arange(D // 4, dtype=torch.float64) / (D // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64),) * 2, indexing="ij")
    halves = []
    for place in (columns, rows):
        angles = place.reshape(-1, 1) * bands
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1)[None].float()
