"""The nn code that rooms share: a Vision Transformer in parts, with timm's parameter names so that its weights load."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer's architecture: DINO's, DINOv2's, CLIP's and EVA-02's are in `VITS`.

    `width` must be a multiple of `heads`; `layer_scale` is the initial residual scale (None: no LayerScale).
    `registers` are extra learned tokens behind the class token (DINOv2 with registers); positions are then of patches
    alone. `pre_norm` is for a LayerNorm before the first block, and no bias in the patch embedding (CLIP). `block` is
    `vit` for pre-norm attention and a GELU MLP, or `eva02` for rotary positions, SwiGLU and two more norms.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 16
    mlp_ratio: float = 4.0
    layer_scale: float | None = 1e-5
    norm_eps: float = 1e-6
    registers: int = 0
    pre_norm: bool = False
    block: Literal["vit", "eva02"] = "vit"

    def __post_init__(self):
        if min(self.width, self.depth, self.heads, self.patch_size) < 1 or self.registers < 0:
            raise ValueError("width, depth, heads and patch_size must be at least 1, registers at least 0")
        if self.width * self.mlp_ratio < 1 or self.norm_eps <= 0:
            raise ValueError("mlp_ratio must give at least one hidden unit, norm_eps must be positive")
        if self.depth > 256:
            raise ValueError(f"depth must be at most 256, not {self.depth}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.block == "eva02" and self.width // self.heads % 4:
            raise ValueError(
                f"rotary positions need width / heads to be a multiple of 4, not {self.width // self.heads}"
            )

    @classmethod
    def named(cls, name: str, patch_size: int = 16) -> "ViTConfig":
        """Return one of `VITS` by name, with patches of this size."""
        return replace(VITS[name], patch_size=patch_size)

    def tiny(self) -> "ViTConfig":
        """Return this architecture in small, two blocks with 8 channels a head, for the tiny twins of recipes."""
        return replace(self, width=8 * self.heads, depth=2)

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches: the class token and the registers."""
        return 1 + self.registers


def _dinov2(width: int, depth: int, heads: int, registers: int = 0) -> ViTConfig:
    return ViTConfig(width, depth, heads, patch_size=14, layer_scale=1e-5, registers=registers)


# timm's names for architectures -> what they are
VITS = {
    "vit_small_patch16_224": ViTConfig(384, 12, 6, 16, layer_scale=None),
    "vit_small_patch14_dinov2": _dinov2(384, 12, 6),
    "vit_base_patch14_dinov2": _dinov2(768, 12, 12),
    "vit_large_patch14_dinov2": _dinov2(1024, 24, 16),
    "vit_small_patch14_reg4_dinov2": _dinov2(384, 12, 6, registers=4),
    "vit_base_patch14_reg4_dinov2": _dinov2(768, 12, 12, registers=4),
    "vit_large_patch14_reg4_dinov2": _dinov2(1024, 24, 16, registers=4),
    "vit_base_patch16_clip_224": ViTConfig(768, 12, 12, 16, layer_scale=None, norm_eps=1e-5, pre_norm=True),
    "eva02_base_patch16_clip_224": ViTConfig(768, 12, 12, 16, mlp_ratio=8 / 3, layer_scale=None, block="eva02"),
}


@dataclass(frozen=True)
class Rotary:
    """Rotations of the channel pairs of queries and keys, for the tokens from `first` on (RoPE, Su et al. 2021).

    Tokens before them (class, registers) and behind them (latents) are not rotated.
    """

    sin: Float[Tensor, "N d"]
    cos: Float[Tensor, "N d"]
    first: int

    @classmethod
    def of_grid(cls, grid: tuple[int, int], dim: int, first: int, device: torch.device) -> "Rotary":
        """Return EVA-02's rotations: half of a head's `dim` channels turn with the row, half with the column.

        A grid of any size is stretched over the 16 × 16 places of pretraining.
        """
        bands = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4))
        rows, columns = (torch.arange(n, dtype=torch.float32, device=device) * (16 / n) for n in grid)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).view(-1, 2, 1)
        angles = (places * bands).flatten(1).repeat_interleave(2, dim=1)  # N dim: each angle for a pair of channels
        return cls(angles.sin(), angles.cos(), first)

    def __call__(self, x: Float[Tensor, "B heads T d"]) -> Float[Tensor, "B heads T d"]:
        """Return queries or keys (B, heads, T, d) with the channel pairs of their N rotated tokens turned."""
        last = self.first + len(self.sin)
        turned = x[:, :, self.first : last]
        quarter_turn = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).flatten(-2)
        turned = (turned * self.cos + quarter_turn * self.sin).to(x.dtype)
        return torch.cat([x[:, :, : self.first], turned, x[:, :, last:]], dim=2)


class Dropout(nn.Module):
    """Dropout whose mask is a function of each sample's seed and of the layer's number, and of nothing else.

    The mask is therefore equal however many processes share a batch, and when a block is evaluated once more for its
    gradients. `seeds` (B,) and `layer` are set by the model that it is in.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share, self.layer = share, 0
        self.seeds: Int[Tensor, " B"] | None = None

    @property
    def is_active(self) -> bool:
        """True when anything is dropped."""
        return self.training and self.share > 0

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Return the activations with a share of them set to 0 and the others scaled up to make up for it."""
        if not self.is_active:
            return x
        places = torch.arange(x[0].numel(), device=x.device).view(1, *x.shape[1:])
        seeds = self.seeds.to(x.device).view(-1, *[1] * (x.ndim - 1))
        mixed = _mixed(_mixed(seeds * 2**20 + self.layer) + places)
        uniform = (mixed & (2**24 - 1)).float() / 2**24
        return torch.where(uniform < self.share, 0.0, x / (1 - self.share))


def _mixed(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return 64 random-looking bits for each number, by a step of SplitMix64 (Steele et al. 2014)."""
    x = x - 0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    return x ^ ((x >> 31) & (2**33 - 1))


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    With `norm_eps` queries and keys are normalised first (LayerNorm). `dropout` is that of the attention's weights, and
    of the result.
    """

    def __init__(self, dim: int, heads: int, norm_eps: float | None = None, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        size = dim // heads
        self.q_norm = nn.Identity() if norm_eps is None else nn.LayerNorm(size, eps=norm_eps)
        self.k_norm = nn.Identity() if norm_eps is None else nn.LayerNorm(size, eps=norm_eps)
        self.drop_weights, self.drop = Dropout(dropout), Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the tokens (B, T, D) after attention among all T of them."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B heads T D/heads
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if self.drop_weights.is_active:  # its mask is ours to make, which PyTorch's kernels do not take
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
            x = self.drop_weights(weights).to(v.dtype) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.drop(self.proj(x.transpose(1, 2).reshape(B, T, D)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, exact or (`approximate="tanh"`) in tanh form; `dropout` behind each."""

    def __init__(self, dim: int, hidden: int, approximate: Literal["none", "tanh"] = "none", dropout: float = 0.0):
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop1, self.drop2 = Dropout(dropout), Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the tokens after both layers, each token alone."""
        return self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(x), approximate=self.approximate))))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return normalised activations shifted and scaled by a condition (adaLN, Peebles and Xie 2023)."""
    return x * (1 + scale) + shift


class EvaAttention(nn.Module):
    """Multi-head self-attention as in EVA-02, with rotary positions.

    It has separate projections (no bias for keys), and a LayerNorm before the last projection.
    """

    def __init__(self, dim: int, heads: int, norm_eps: float):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B T D"], rotary: Rotary) -> Float[Tensor, "B T D"]:
        """Return the tokens (B, T, D) after attention, queries and keys turned by `rotary`."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B heads T D/heads
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = F.scaled_dot_product_attention(rotary(q), rotary(k), v)
        return self.proj(self.norm(x.transpose(1, 2).flatten(2)))


class SwiGLU(nn.Module):
    """An MLP with a gate, silu(g(x)) · f(x), and a LayerNorm before the last projection (EVA-02)."""

    def __init__(self, dim: int, hidden: int, norm_eps: float):
        super().__init__()
        self.fc1_g = nn.Linear(dim, hidden)
        self.fc1_x = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden, eps=norm_eps)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the tokens after the gated layers, each token alone."""
        return self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (CaiT)."""

    def __init__(self, dim: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the activations times the learned factor of their channel."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block: x + scale · attention(norm(x)), then x + scale · mlp(norm(x)).

    `query_key_norm` and `dropout` are those of `Attention`.
    """

    def __init__(self, config: ViTConfig, query_key_norm: bool = False, dropout: float = 0.0):
        super().__init__()
        D, scale = config.width, config.layer_scale
        self.norm1 = nn.LayerNorm(D, eps=config.norm_eps)
        self.attn = Attention(D, config.heads, config.norm_eps if query_key_norm else None, dropout)
        self.ls1 = nn.Identity() if scale is None else LayerScale(D, scale)
        self.norm2 = nn.LayerNorm(D, eps=config.norm_eps)
        self.mlp = Mlp(D, int(D * config.mlp_ratio), dropout=dropout)
        self.ls2 = nn.Identity() if scale is None else LayerScale(D, scale)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return the tokens (B, T, D) after attention and MLP, each added to its input."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class EvaBlock(nn.Module):
    """EVA-02's pre-norm block: x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        D, eps = config.width, config.norm_eps
        self.norm1 = nn.LayerNorm(D, eps=eps)
        self.attn = EvaAttention(D, config.heads, eps)
        self.norm2 = nn.LayerNorm(D, eps=eps)
        self.mlp = SwiGLU(D, int(D * config.mlp_ratio), eps)

    def forward(self, x: Float[Tensor, "B T D"], rotary: Rotary) -> Float[Tensor, "B T D"]:
        """Return the tokens (B, T, D) after attention and gated MLP, each added to its input."""
        x = x + self.attn(self.norm1(x), rotary)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A layer from an image to one token per patch, row by row; its sides must be multiples of the patch size."""

    def __init__(self, patch_size: int, dim: int, bias: bool = True):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Return the N = H·W / P² tokens of the images' patches of P × P pixels."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Trunk(nn.Module):
    """Class token, 2-D positions, blocks and final norm: the part of a ViT behind its patch embedding.

    The decoder of Figure 2 feeds it mask tokens; `VisionTransformer` feeds it patches. `pos_embed` belongs to a `grid`
    (rows, columns) of patches, with the class token's position first (unless there are registers), and is resampled for
    other grids. With `recompute`, blocks keep only their input for the backward pass and are evaluated once more in it:
    less memory, a third more time.
    """

    def __init__(self, config: ViTConfig, grid: tuple[int, int]):
        super().__init__()
        self.config, self.grid, self.recompute = config, grid, False
        positions = grid[0] * grid[1] + (0 if config.registers else 1)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width)) if config.registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, config.width))
        self.norm_pre = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        block = EvaBlock if config.block == "eva02" else Block
        self.blocks = nn.ModuleList(block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=1e-6)

    def forward(
        self,
        patches: Float[Tensor, "B N D"],
        grid: tuple[int, int],
        behind: Float[Tensor, "B L D"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return all tokens after the final norm.

        They are the `prefix` ones, the N patches of a `grid`, then the L tokens given as `behind` (the tokenizer's
        latents, with positions of their own).
        """
        return self.norm(self._through_blocks(patches, grid, behind)[-1])

    def _through_blocks(self, patches: Tensor, grid: tuple[int, int], behind: Tensor | None, after: Sequence[int] = ()):
        """Return the tokens after each number of blocks in `after` (0: before the first), and after the last block."""
        tokens = self._with_prefix(patches, resample_positions(self.pos_embed, self.grid, grid))
        if behind is not None:
            tokens = torch.cat([tokens, behind], dim=1)
        tokens = self.norm_pre(tokens)
        intermediates = [tokens] if 0 in after else []
        if self.config.block == "eva02":
            dim = self.config.width // self.config.heads
            rotary = (Rotary.of_grid(grid, dim, self.config.prefix, tokens.device),)
        else:
            rotary = ()
        for number, block in enumerate(self.blocks, start=1):
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, *rotary, use_reentrant=False)
            else:
                tokens = block(tokens, *rotary)
            if number in after:
                intermediates.append(tokens)
        return [*intermediates, tokens]

    def _with_prefix(self, patches: Tensor, positions: Tensor) -> Tensor:
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)
        if self.reg_token is None:
            return torch.cat([cls_token, patches], dim=1) + positions
        return torch.cat([cls_token, self.reg_token.expand(patches.shape[0], -1, -1), patches + positions], dim=1)


class VisionTransformer(Trunk):
    """A `Trunk` that reads images; parameter names are timm's."""

    def __init__(self, config: ViTConfig, grid: tuple[int, int]):
        super().__init__(config, grid)
        self.patch_embed = PatchEmbed(config.patch_size, config.width, bias=not config.pre_norm)

    def features(
        self, images: Float[Tensor, "B 3 H W"], behind: Float[Tensor, "B L D"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return all tokens after the final norm, as `forward` does, for the images' patches."""
        return self(self.patch_embed(images), self._grid_of(images), behind)

    def readouts(self, images: Float[Tensor, "B 3 H W"], after: Sequence[int]) -> list[Tensor]:
        """Return the tokens (B T D), without final norm, before the first block and after those numbered in `after`."""
        return self._through_blocks(self.patch_embed(images), self._grid_of(images), None, (0, *after))[:-1]

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.config.patch_size, images.shape[3] // self.config.patch_size


class Refinement(nn.Module):
    """Two 3 × 3 convolutions over an image, added to it: x + conv(GELU(conv(x))).

    It starts as the identity. It can make pixels agree across the borders of patches, which a linear layer for each
    patch cannot.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 3, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images with the convolutions' result added."""
        return images + self.conv2(F.gelu(self.conv1(images)))


def resample_positions(
    pos_embed: Float[Tensor, "1 T D"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 S D"]:
    """Return position embeddings of an `old` grid of patches for a `new` one, by antialiased bicubic interpolation.

    The embeddings of tokens before the patches (the class token) stay as they are.
    """
    if old == new:
        return pos_embed
    prefix = pos_embed.shape[1] - old[0] * old[1]
    grid = pos_embed[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2)  # 1 D rows columns
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", antialias=True).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)


def resample_patches(weight: Float[Tensor, "D C _ _"], size: int) -> Float[Tensor, "D C P P"]:
    """Return patch-embedding weights for another patch `size` (FlexiViT, Beyer et al. 2023).

    They give a patch that is resized, antialiased bicubically, the embedding that the old ones give the patch itself,
    as nearly as can be.
    """
    old = weight.shape[-1]
    if old == size:
        return weight
    basis = torch.eye(old * old, dtype=torch.float64).view(-1, 1, old, old)
    resize = F.interpolate(basis, size=(size, size), mode="bicubic", antialias=True).flatten(1)  # old² size²
    resized = weight.flatten(2).double() @ torch.linalg.pinv(resize.T)
    return resized.unflatten(2, (size, size)).to(weight.dtype)


def init_linear(module: nn.Module) -> None:
    """Start one module as in ViTs, for `Module.apply`: linear weights truncated normal of std 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fold(latents: Float[Tensor, "B C H W"], patch: int) -> Float[Tensor, "B T pC"]:
    """Return 2-D latents as tokens, one for each `patch` × `patch` square, row by row.

    A token's numbers are ordered by place and then channel. This is for a transformer with 2-D positions (the paper's
    KL rows: DiT-XL/2 and SiT-XL/2). Raise `ValueError` when the squares do not fill the latents.
    """
    B, C, H, W = latents.shape
    if H % patch or W % patch:
        raise ValueError(f"latents of {H} × {W} cannot be folded in squares of {patch}.")
    x = latents.view(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // patch) * (W // patch), patch * patch * C)


def unfold(tokens: Float[Tensor, "B T pC"], patch: int, grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Return the 2-D latents that `fold` made tokens of; `grid` is the number of squares down and across."""
    h, w = grid
    B, _, width = tokens.shape
    x = tokens.view(B, h, w, patch, patch, width // patch**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(B, width // patch**2, h * patch, w * patch)
