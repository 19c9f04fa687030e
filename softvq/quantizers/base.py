"""The contract of every quantizer: its configuration, result and statistics, and the functions that all are made of."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from softvq.config import family
from softvq.errors import ConfigError, ModelError

Reduce = Callable[[Tensor], Tensor]  # a tensor -> its mean over all ranks, with gradients


def identity(x: Tensor) -> Tensor:
    """Return the tensor itself: the mean over ranks where there is one process."""
    return x


def tree(cls: type) -> type:
    """Register a dataclass of results with PyTorch as a tree of its fields, and return it.

    Functions that take results apart and put them together, `torch.export` for one, know its class then.
    """
    names = [one.name for one in fields(cls)]
    register_pytree_node(
        cls,
        lambda one: ([getattr(one, name) for name in names], names),
        lambda values, names: cls(**dict(zip(names, values, strict=True))),
        serialized_type_name=f"softvq.{cls.__name__}",  # wherever the class will lie
    )
    return cls


@tree
@dataclass(frozen=True)
class Assignment:
    """The spread of a batch of tokens over K codewords: the source of the KL term and of all statistics.

    `entropy` is the mean over tokens of H(q), `mean` is E q (with gradients; over the tokens of all ranks where the
    quantizer was given their reduction), `used` is 1 for each codeword that was some token's most likely one and 0 for
    the others, `largest` is the mean largest weight.
    """

    entropy: Float[Tensor, ""]
    mean: Float[Tensor, " K"]
    used: Float[Tensor, " K"]
    largest: Float[Tensor, ""]

    @property
    def kl(self) -> Float[Tensor, ""]:
        """The KL term H(q) − H(E q) of Eq. 4, in [−log K, 0].

        It is minus the mutual information of image token and codeword.
        """
        return self.entropy - entropy(self.mean)

    @property
    def statistics(self) -> dict[str, Float[Tensor, ""]]:
        """The statistics by name, without gradients.

        `usage` is the fraction of codewords that were a first choice, `perplexity` is exp H(E q) (1 … K), `entropy` is
        the mean H(q) in nats, `largest_weight` is the mean largest weight (1/K … 1).
        """
        values = {
            "usage": self.used.mean(),
            "perplexity": entropy(self.mean).exp(),
            "entropy": self.entropy,
            "largest_weight": self.largest,
        }
        return {name: value.detach() for name, value in values.items()}


@tree
@dataclass(frozen=True)
class Quantized:
    """The result of a quantizer: the latents, and the indices, losses and statistics that come with them.

    `latent` is z for the decoder, `indices` are those of the (most likely) codewords, None where there are none;
    `losses` and `statistics` are scalars by name. `assignment` is the assignment to codewords behind the KL term; with
    `kl_tau`, it is another posterior than the one that made z and its statistics.
    """

    latent: Float[Tensor, "B L D"]
    indices: Int[Tensor, "B L *G"] | None = None
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    statistics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    assignment: Assignment | None = None


@family
class QuantizerConfig(ABC):
    """The base of the quantizers' configurations.

    A configuration of your own is a frozen dataclass that derives from this class, has `@softvq.register` above it and
    defines `build`; all other methods have defaults.
    """

    @abstractmethod
    def build(self, dim: int) -> "Quantizer":
        """Return the quantizer of this configuration for latents of `dim` numbers a token."""

    @property
    def codebooks(self) -> int:
        """The number of codebooks, including those of nested quantizers."""
        return 1

    def check(self, tokens: int) -> None:
        """Raise `ValueError` when a sequence of so many tokens cannot be quantized."""

    def as_printed(self) -> "QuantizerConfig":
        """Return the form that the paper prints, for a configuration that was released in another form."""
        return self

    def tiny(self) -> "QuantizerConfig":
        """Return a small variant of this configuration, for the tiny variants of recipes."""
        return self


class Quantizer(nn.Module, ABC):
    """The bottleneck between encoder and decoder: ẑ (B, L, in_dim) → `Quantized` with latents z (B, L, dim).

    `in_dim` is the width that it takes from the encoder. `discrete` is True when indices alone determine z, so that
    `lookup` inverts them; `soft` is True when its loss `kl` is computed from soft assignments, so that several
    quantizers can be taken as one. `noise` is the reparametrisation noise (B, L, dim) of quantizers that sample; others
    ignore it.

    A quantizer of your own sets `dim` and `in_dim` and defines `forward(z, noise=None)`, and also `lookup` when it is
    discrete. Indices are (B, L), or (B, L, G) for G of them a token. Statistics may have any name; every loss needs an
    entry of its name in the recipe's `weights`.

    A quantizer knows nothing of ranks: E q in the KL term is not linear in the batch, so training on several processes
    passes in `reduce`, the mean over ranks. A `forward` without this argument is called without it (see `quantize`).
    """

    dim: int
    in_dim: int
    discrete: bool = False
    soft: bool = False
    takes_noise: bool = True  # the same for `noise`
    takes_reduction: bool = True  # if `forward` has the argument `reduce`; found out when the class is made

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        parameters = inspect.signature(cls.forward).parameters
        cls.takes_reduction, cls.takes_noise = "reduce" in parameters, "noise" in parameters

    @abstractmethod
    def forward(
        self,
        z: Float[Tensor, "B L {self.in_dim}"],
        noise: Float[Tensor, "B L {self.dim}"] | None = None,
        reduce: Reduce = identity,
    ) -> Quantized:
        """Return the latents z (B, L, dim) with their indices, losses, statistics and assignment."""

    @property
    def leaves(self) -> "list[Quantizer]":
        """The innermost quantizers of a nested one, in order; the quantizer itself when it holds none."""
        return [self]

    def latent(
        self, z: Float[Tensor, "B L {self.in_dim}"], noise: Float[Tensor, "B L {self.dim}"] | None = None
    ) -> Float[Tensor, "B L {self.dim}"]:
        """Return the latents z alone, for inference."""
        return quantize(self, z, noise, identity).latent

    def lookup(self, indices: Int[Tensor, "B L *G"]) -> Float[Tensor, "B L {self.dim}"]:
        """Return the latents of indices; raise `ModelError` for a quantizer whose indices do not determine them."""
        if self.discrete:
            raise ModelError(f"{type(self).__name__} says that it is discrete, but defines no lookup.")
        raise ModelError(
            f"{type(self).__name__} has continuous latents that indices do not determine; use encode and decode."
        )


def entropy(q: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """Return H(q) = −Σ q log q in nats, with 0 log 0 = 0 and a finite gradient there.

    The gradient matters because E q underflows to 0 at τ = 0.01.
    """
    return -(q * q.clamp_min(torch.finfo(q.dtype).tiny).log()).sum(-1)


TINY = 64  # codewords of the tiny twins' codebooks
MOST_CODEBOOKS = 1024  # far beyond use; a damaged file must not ask for millions


def check_quantizer(config: QuantizerConfig, tokens: int) -> None:
    """Raise `ValueError` when so many tokens cannot be quantized, or there are too many codebooks."""
    if config.codebooks > MOST_CODEBOOKS:
        raise ValueError(f"the quantizer has {config.codebooks} codebooks, more than {MOST_CODEBOOKS}")
    config.check(tokens)


def check_built(quantizer: Any, dim: int) -> None:
    """Raise `ConfigError` when the object that `build` returned is no quantizer for latents of `dim` numbers."""
    name = type(quantizer).__name__
    if not isinstance(quantizer, Quantizer):
        raise ConfigError(f"build must return a Quantizer, not a {name}.")
    for attribute in ("dim", "in_dim"):
        if not isinstance(getattr(quantizer, attribute, None), int):
            raise ConfigError(f"{name} must set self.{attribute}, a whole number, in __init__.")
    if quantizer.dim != dim:
        raise ConfigError(f"{name} has latents of {quantizer.dim} numbers a token, but was asked for {dim}.")


def check_quantized(quantizer: Quantizer, found: Any, shape: tuple[int, ...]) -> None:
    """Raise `ConfigError` when a quantizer returned anything but a `Quantized` with latents of this shape."""
    latent = found.latent if isinstance(found, Quantized) else None
    if not isinstance(latent, Tensor) or tuple(latent.shape) != shape:
        given = type(found).__name__ if latent is None else f"latents of {tuple(latent.shape)}"
        raise ConfigError(
            f"{type(quantizer).__name__}.forward must return Quantized(latent) with latents of {shape}, not {given}."
        )


def quantize(quantizer: Quantizer, z: Tensor, noise: Tensor | None, reduce: Reduce) -> Quantized:
    """Call a quantizer, with the noise and the reduction over ranks where its `forward` takes them."""
    given = {"noise": noise} if quantizer.takes_noise else {}
    return quantizer(z, **given, **({"reduce": reduce} if quantizer.takes_reduction else {}))


def assign(log_q: Float[Tensor, "B L K"], indices: Int[Tensor, "B L"], reduce: Reduce = identity) -> Assignment:
    """Summarise a posterior, given by its logarithm and the most likely index of each token."""
    q = log_q.exp()
    used = torch.zeros(q.shape[-1], device=q.device, dtype=q.dtype)
    used[indices.flatten()] = 1.0
    return Assignment(
        entropy=reduce(-(q * log_q).sum(-1).mean()),
        mean=reduce(q.mean((0, 1))),
        used=(reduce(used) > 0).to(q.dtype),
        largest=reduce(q.detach().amax(-1).mean()),
    )


def assign_hard(indices: Int[Tensor, "B L"], codebook_size: int, reduce: Reduce = identity) -> Assignment:
    """Summarise a one-hot posterior (Eq. 2), given by its indices."""
    flat = indices.flatten()  # whole numbers are added, so that no order and no number of them rounds
    counts = torch.zeros(codebook_size, dtype=torch.int64, device=flat.device).scatter_add(
        0, flat, torch.ones_like(flat)
    )
    counts = reduce(counts.float())
    zero = counts.new_zeros(())
    return Assignment(entropy=zero, mean=counts / counts.sum(), used=(counts > 0).float(), largest=zero + 1)


def pooled(assignments: list[Assignment]) -> Assignment:
    """Return the assignment of several codebooks of one size taken as one posterior, as in the released KL term.

    E q is the mean over the codebooks too.
    """

    def average(name: str) -> Tensor:
        return torch.stack([getattr(a, name) for a in assignments]).mean(0)

    return Assignment(average("entropy"), average("mean"), average("used"), average("largest"))


@contextmanager
def full_precision(z: Tensor) -> Iterator[Tensor]:
    """Enter a block with autocast off, and yield z in float32 if it was of half precision.

    Distances and softmax over K codewords need this precision.
    """
    with torch.autocast(z.device.type, enabled=False):
        yield z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def new_codebook(size: int, dim: int) -> nn.Parameter:
    """Return K codewords (K, D) of unit length in random directions: uniform in ±1/K, then normalised, as released."""
    codes = torch.empty(size, dim).uniform_(-1.0 / size, 1.0 / size)
    return nn.Parameter(torch.nn.functional.normalize(codes, dim=-1))


def distances(z: Float[Tensor, "B L D"], codebook: Float[Tensor, "K D"]) -> Float[Tensor, "B L K"]:
    """Return ‖z − c‖₂ for every token and codeword, as one matrix product.

    The gradient is 0 where the distance is 0. In float32 small distances are exact to about 1e-3 times the norms.
    """
    squared = z.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * z @ codebook.T
    zero = squared <= 0  # which NaN is not: it stays NaN
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
