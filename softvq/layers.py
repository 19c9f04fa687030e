"""The nn code that rooms share: a Vision Transformer in parts, with timm's parameter names so that its weights load."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer (Dosovitskiy et al.; DINOv2's form when `layer_scale` is set).

    `width` must be a multiple of `heads`; `layer_scale` is the initial residual scale (None: no LayerScale).
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 16
    mlp_ratio: float = 4.0
    layer_scale: float | None = 1e-5
    norm_eps: float = 1e-6

    def __post_init__(self):
        if min(self.width, self.depth, self.heads, self.patch_size) < 1:
            raise ValueError("width, depth, heads and patch_size must be at least 1")
        if self.mlp_ratio <= 0 or self.norm_eps <= 0:
            raise ValueError("mlp_ratio and norm_eps must be positive")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B heads T D/heads
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, T, D))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (CaiT)."""

    def __init__(self, dim: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: x + scale · attention(norm(x)), then x + scale · mlp(norm(x))."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        D, scale = config.width, config.layer_scale
        self.norm1 = nn.LayerNorm(D, eps=config.norm_eps)
        self.attn = Attention(D, config.heads)
        self.ls1 = nn.Identity() if scale is None else LayerScale(D, scale)
        self.norm2 = nn.LayerNorm(D, eps=config.norm_eps)
        self.mlp = Mlp(D, int(D * config.mlp_ratio))
        self.ls2 = nn.Identity() if scale is None else LayerScale(D, scale)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Image to one token per patch, row by row; height and width must be multiples of the patch size."""

    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        return self.proj(images).flatten(2).transpose(1, 2)


class Trunk(nn.Module):
    """Class token, 2-D positions, blocks and final norm: what a ViT is behind its patch embedding.

    The decoder of Figure 2 feeds it mask tokens; `VisionTransformer` feeds it patches. `pos_embed` belongs to a
    `grid` (rows, columns) of patches with the class token's position first, and is resampled for other grids.
    """

    def __init__(self, config: ViTConfig, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def with_positions(self, patches: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B N+1 D"]:
        """The class token before the patches of a `grid`, positions added."""
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + resample_positions(self.pos_embed, self.grid, grid)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class VisionTransformer(Trunk):
    """A `Trunk` that reads images; parameter names are timm's."""

    def __init__(self, config: ViTConfig, grid: tuple[int, int]):
        super().__init__(config, grid)
        self.patch_embed = PatchEmbed(config.patch_size, config.width)


def resample_positions(
    pos_embed: Float[Tensor, "1 T D"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 S D"]:
    """Position embeddings of an `old` grid of patches (behind the class token) for a `new` one: antialiased bicubic."""
    if old == new:
        return pos_embed
    prefix = pos_embed.shape[1] - old[0] * old[1]
    grid = pos_embed[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2)  # 1 D rows columns
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", antialias=True).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)


def init_linear(module: nn.Module) -> None:
    """ViT initialisation of one module, for `Module.apply`: linear weights truncated normal of std 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
