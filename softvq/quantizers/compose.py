"""Quantizers made of other quantizers of any kind, nested ones too: Product (Eq. 12) and Residual (Eq. 13)."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from softvq import config as configs
from softvq.errors import ModelError
from softvq.quantizers.base import Quantized, Quantizer, QuantizerConfig, Reduce, identity, pooled, quantize
from softvq.quantizers.soft import SoftVQConfig


@configs.register
@dataclass(frozen=True)
class ProductConfig(QuantizerConfig):
    """The configuration of `Product`: `groups` parts of the latent, each with a quantizer of its own (Eq. 12).

    `axis`: `token` splits the L tokens into runs of L/G, as the released `num_codebooks` does; `channel` splits each
    token's D numbers, as Eq. 12 is usually read. `kl`: `group` averages the parts' own KL terms; `pooled` takes the
    expectation over all codebooks together, as released (only for parts with a soft posterior). All other losses are
    averaged over the parts.
    """

    inner: QuantizerConfig = field(default_factory=SoftVQConfig)
    groups: int = 4
    axis: Literal["token", "channel"] = "token"
    kl: Literal["group", "pooled"] = "group"

    def __post_init__(self):
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, not {self.groups}")

    def build(self, dim: int) -> "Product":
        """Return the quantizer of this configuration for latents of `dim` numbers a token."""
        return Product(self, dim)

    @property
    def codebooks(self) -> int:
        """The number of codebooks: `groups` times those of the inner quantizer."""
        return self.groups * self.inner.codebooks

    def check(self, tokens: int) -> None:
        """Raise `ValueError` when so many tokens cannot be split into equal groups, or quantized in them."""
        if self.axis == "token" and tokens % self.groups:
            raise ValueError(f"{tokens} tokens cannot be split into the {self.groups} equal groups of Product")
        self.inner.check(tokens // self.groups if self.axis == "token" else tokens)

    def as_printed(self) -> "ProductConfig":
        """Return the form that the paper prints: channels are split, and the KL terms of the groups are averaged."""
        return ProductConfig(self.inner.as_printed(), self.groups, axis="channel")

    def tiny(self) -> "ProductConfig":
        """Return the same product of a small inner quantizer."""
        return replace(self, inner=self.inner.tiny())


class Product(Quantizer):
    """A quantizer that splits its latents into z⁽¹⁾, …, z⁽ᴳ⁾, each part with its own quantizer (Eq. 12).

    Indices are (B, L) along tokens and (B, L, G) along channels; nested quantizers' extra axes stay last.
    """

    def __init__(self, config: ProductConfig, dim: int):
        super().__init__()
        G = config.groups
        if config.axis == "channel" and dim % G:
            raise ValueError(f"the latent width {dim} is not a multiple of the {G} groups of Product.")
        self.config, self.dim = config, dim
        self.split_axis = 1 if config.axis == "token" else 2
        part = dim if config.axis == "token" else dim // G
        self.inner = nn.ModuleList(config.inner.build(part) for _ in range(G))
        self.in_dim = self.inner[0].in_dim * (1 if config.axis == "token" else G)
        self.discrete, self.soft = self.inner[0].discrete, self.inner[0].soft
        if config.kl == "pooled" and not self.soft:
            raise ValueError(
                f"Product's kl 'pooled' needs soft posteriors, which {type(self.inner[0]).__name__} has not."
            )

    @property
    def leaves(self) -> list[Quantizer]:
        """The innermost quantizers of all parts, in order."""
        return [leaf for inner in self.inner for leaf in inner.leaves]

    def forward(
        self, z: Float[Tensor, "B L D_in"], noise: Float[Tensor, "B L D"] | None = None, reduce: Reduce = identity
    ) -> Quantized:
        """Return the parts' latents and indices joined, and the means of their losses and statistics.

        The loss `kl` is that of all codebooks together when the configuration's `kl` is `pooled`.
        """
        noises = [None] * len(self.inner) if noise is None else self._split(noise)
        parts = [
            quantize(inner, z_g, n_g, reduce)
            for inner, z_g, n_g in zip(self.inner, self._split(z), noises, strict=True)
        ]
        losses = average([part.losses for part in parts])
        assignments = [part.assignment for part in parts if part.assignment is not None]
        assignment = pooled(assignments) if assignments else None
        if self.config.kl == "pooled" and "kl" in losses and assignment is not None:
            losses["kl"] = assignment.kl
        return Quantized(
            torch.cat([part.latent for part in parts], dim=self.split_axis),
            None if parts[0].indices is None else self._join_indices([part.indices for part in parts]),
            losses,
            average([part.statistics for part in parts]),
            assignment,
        )

    def latent(self, z: Float[Tensor, "B L D_in"], noise: Float[Tensor, "B L D"] | None = None) -> Tensor:
        """Return the latents z (B, L, D) alone, for inference."""
        noises = [None] * len(self.inner) if noise is None else self._split(noise)
        triples = zip(self.inner, self._split(z), noises, strict=True)
        return torch.cat([inner.latent(z_g, n_g) for inner, z_g, n_g in triples], dim=self.split_axis)

    def lookup(self, indices: Int[Tensor, "B L *G"]) -> Float[Tensor, "B L D"]:
        """Return the latents of indices, (B, L) along tokens or (B, L, G) along channels; `ValueError` for others."""
        parts = self._split(indices) if self.config.axis == "token" else self._split_channels(indices)
        codes = [inner.lookup(part) for inner, part in zip(self.inner, parts, strict=True)]
        return torch.cat(codes, dim=self.split_axis)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        G, size = len(self.inner), x.shape[self.split_axis]
        if size % G:
            what = "tokens" if self.split_axis == 1 else "channels"
            raise ModelError(f"{size} {what} cannot be split into the {G} equal groups of Product.")
        return x.split(size // G, dim=self.split_axis)

    def _join_indices(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, dim=1) if self.config.axis == "token" else torch.stack(parts, dim=2)

    def _split_channels(self, indices: Tensor) -> tuple[Tensor, ...]:
        if indices.ndim < 3 or indices.shape[2] != len(self.inner):
            raise ModelError(
                f"indices of shape {tuple(indices.shape)} must have {len(self.inner)} groups on their third axis."
            )
        return indices.unbind(2)


@configs.register
@dataclass(frozen=True)
class ResidualConfig(QuantizerConfig):
    """The configuration of `Residual`: `depth` quantizers in a row, each on the remainder of the ones before (Eq. 13).

    `normalise` divides ẑ by its length first. Eq. 13 does not; but by cosine, where latents are no longer than 1, the
    length of ẑ is free, and from a long one nothing is left over but its own direction again.
    """

    inner: QuantizerConfig = field(default_factory=SoftVQConfig)
    depth: int = 2
    normalise: bool = configs.later(False)

    def __post_init__(self):
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, not {self.depth}")

    def build(self, dim: int) -> "Residual":
        """Return the quantizer of this configuration for latents of `dim` numbers a token."""
        return Residual(self, dim)

    @property
    def codebooks(self) -> int:
        """The number of codebooks: `depth` times those of the inner quantizer."""
        return self.depth * self.inner.codebooks

    def check(self, tokens: int) -> None:
        """Raise `ValueError` when the inner quantizer cannot quantize so many tokens."""
        self.inner.check(tokens)

    def as_printed(self) -> "ResidualConfig":
        """Return the same layers of the inner quantizer in the form that the paper prints."""
        return replace(self, inner=self.inner.as_printed())

    def tiny(self) -> "ResidualConfig":
        """Return the same layers of a small inner quantizer."""
        return replace(self, inner=self.inner.tiny())


class Residual(Quantizer):
    """A quantizer in layers, each of which quantizes the remainder of the layers before (Eq. 13 as meant).

    z = Σ_l Q_l(r_{l−1}), r_l = r_{l−1} − Q_l(r_{l−1}), r_0 = ẑ. Eq. 13 prints r_l = r_{l−1} − z_l with the running sum
    z_l, which from the second layer on would subtract the first layers twice. Indices are (B, L, depth), nested
    quantizers' extra axes last.
    """

    def __init__(self, config: ResidualConfig, dim: int):
        super().__init__()
        self.config, self.dim = config, dim
        self.inner = nn.ModuleList(config.inner.build(dim) for _ in range(config.depth))
        self.in_dim = self.inner[0].in_dim
        self.discrete, self.soft = self.inner[0].discrete, self.inner[0].soft
        if self.in_dim != dim:
            raise ValueError(
                f"Residual needs quantizers that take what they give, but {type(self.inner[0]).__name__} "
                f"takes {self.in_dim} numbers a token and gives {dim}."
            )

    @property
    def leaves(self) -> list[Quantizer]:
        """The innermost quantizers of all layers, in order."""
        return [leaf for inner in self.inner for leaf in inner.leaves]

    def forward(
        self, z: Float[Tensor, "B L D"], noise: Float[Tensor, "B L D"] | None = None, reduce: Reduce = identity
    ) -> Quantized:
        """Return the sum of the layers' latents, their indices stacked, and their mean losses and statistics."""
        residual, layers = F.normalize(z, dim=-1) if self.config.normalise else z, []
        for inner in self.inner:
            layers.append(quantize(inner, residual, noise, reduce))
            residual = residual - layers[-1].latent
        assignments = [layer.assignment for layer in layers if layer.assignment is not None]
        return Quantized(
            sum(layer.latent for layer in layers),
            None if layers[0].indices is None else torch.stack([layer.indices for layer in layers], dim=2),
            average([layer.losses for layer in layers]),
            average([layer.statistics for layer in layers]),
            pooled(assignments) if assignments else None,
        )

    def lookup(self, indices: Int[Tensor, "B L *G"]) -> Float[Tensor, "B L D"]:
        """Return the sum of the layers' latents for indices (B, L, depth); `ModelError` for another depth."""
        if indices.ndim < 3 or indices.shape[2] != len(self.inner):
            raise ModelError(
                f"indices of shape {tuple(indices.shape)} must have {len(self.inner)} layers on their third axis."
            )
        return sum(inner.lookup(layer) for inner, layer in zip(self.inner, indices.unbind(2), strict=True))


def average(dicts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each named scalar over the dictionaries."""
    return {name: torch.stack([d[name] for d in dicts]).mean() for name in dicts[0]}
