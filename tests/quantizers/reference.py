"""The paper's quantizers in a straight line: loops over tokens and codewords, one scalar at a time, as printed.

Nothing here comes from softvq, so that a slip there cannot hide here. Everything is differentiable by autograd; what
the paper stops (sg) is detached where it says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """`latent` (B, L, D), `indices` of the most likely codewords, `posteriors` (B, L, K), one for every codebook."""

    latent: Tensor
    indices: Tensor
    posteriors: list[Tensor]

    @property
    def kl(self) -> Tensor:
        """The mean over codebooks of each one's own KL term."""
        return sum(kl_term(q) for q in self.posteriors) / len(self.posteriors)

    @property
    def pooled_kl(self) -> Tensor:
        """E q over codebooks too: the same formula with their tokens side by side."""
        return kl_term(torch.cat(self.posteriors, dim=1))


Quantize = Callable[[Tensor], Answer]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal float64 numbers that do not depend on the test order."""
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dot(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros((), dtype=a.dtype)
    for i in range(len(a)):
        total = total + a[i] * b[i]
    return total


def unit(a: Tensor) -> Tensor:
    return a / dot(a, a).sqrt()


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖₂, not squared."""
    return dot(a - b, a - b).sqrt()


def softmax(logits: list[Tensor]) -> Tensor:
    highest = max(logit.item() for logit in logits)
    weights = [(logit - highest).exp() for logit in logits]
    return torch.stack([weight / sum(weights) for weight in weights])


def entropy(q: Tensor) -> Tensor:
    """H(q) = −Σ q log q, with 0 log 0 = 0."""
    total = torch.zeros((), dtype=q.dtype)
    for p in q:
        if p > 0:
            total = total - p * p.log()
    return total


def kl_term(posterior: Tensor) -> Tensor:
    """Eq. 4: H(q) − H(E q), both means over the tokens of the batch."""
    tokens = [q for image in posterior for q in image]
    mean = sum(tokens) / len(tokens)
    return sum(entropy(q) for q in tokens) / len(tokens) - entropy(mean)


def each_token(z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([torch.stack([function(token) for token in image]) for image in z])


def mix(posterior: Tensor, codebook: Tensor) -> Tensor:
    """z = q C."""
    return each_token(posterior, lambda q: sum(q[k] * codebook[k] for k in range(len(codebook))))


def soft_answer(posterior: Tensor, codebook: Tensor) -> Answer:
    return Answer(mix(posterior, codebook), posterior.argmax(-1), [posterior])


def soft_posterior(z: Tensor, codebook: Tensor, tau: Tensor | float, distance: str, detach: bool = False) -> Tensor:
    """Softmax(−‖ẑ − C‖₂ / τ), or the released Softmax(⟨ẑ, c⟩ / τ) of unit vectors."""
    codebook = codebook.detach() if detach else codebook

    def posterior(token: Tensor) -> Tensor:
        if distance == "euclidean":
            return softmax([-euclidean(token, c) / tau for c in codebook])
        return softmax([dot(unit(token), unit(c)) / tau for c in codebook])

    return each_token(z, posterior)


def soft_vq(z: Tensor, codebook: Tensor, tau: Tensor | float, distance: str, detach: bool = False) -> Answer:
    """Eq. 4; with the cosine the mixed codewords have unit length, the mixture is left as it is."""
    mixed = codebook if distance == "euclidean" else torch.stack([unit(c) for c in codebook])
    return soft_answer(soft_posterior(z, codebook, tau, distance, detach), mixed)


def gmm_vq(z: Tensor, raw: Tensor, codebook: Tensor) -> Answer:
    """Eq. 11. `raw` (B, L, 1) or (B, L, K): ω is softplus(raw + log(e − 1)) / 0.07."""

    def posterior(token_and_raw: Tensor) -> Tensor:
        token, raw = token_and_raw[: z.shape[-1]], token_and_raw[z.shape[-1] :]
        omega = (1 + (raw + math.log(math.e - 1)).exp()).log() / 0.07
        return softmax([-omega[k if len(omega) > 1 else 0] * euclidean(token, c) for k, c in enumerate(codebook)])

    return soft_answer(each_token(torch.cat([z, raw], -1), posterior), codebook)


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Eq. 2: arg min_j ‖ẑ − c_j‖₂."""
    return each_token(z, lambda token: torch.stack([euclidean(token, c) for c in codebook]).argmin())


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """Eq. 1, summed over channels and averaged over tokens."""
    total = torch.zeros((), dtype=mean.dtype)
    for m, v in zip(mean.flatten(), log_var.flatten(), strict=True):
        total = total - 0.5 * (1 + v - m**2 - v.exp())
    return total / (mean.shape[0] * mean.shape[1])


def product(z: Tensor, parts: list[Quantize], axis: str) -> Answer:
    """Eq. 12 with groups along the tokens or along each token's channels; group g has codebook g."""
    dim = 1 if axis == "token" else 2
    size = z.shape[dim] // len(parts)
    answers = [part(z.narrow(dim, g * size, size)) for g, part in enumerate(parts)]
    indices = [answer.indices for answer in answers]
    return Answer(
        torch.cat([answer.latent for answer in answers], dim),
        torch.cat(indices, 1) if axis == "token" else torch.stack(indices, 2),
        [q for answer in answers for q in answer.posteriors],
    )


def residual(z: Tensor, layers: list[Quantize]) -> Answer:
    """Eq. 13 as meant: z_l = z_{l−1} + Q_l(r_{l−1}), r_l = r_{l−1} − Q_l(r_{l−1}), z_0 = 0, r_0 = ẑ."""
    latent, left, answers = torch.zeros_like(z), z, []
    for layer in layers:
        answers.append(layer(left))
        latent, left = latent + answers[-1].latent, left - answers[-1].latent
    indices = torch.stack([answer.indices for answer in answers], 2)
    return Answer(latent, indices, [q for answer in answers for q in answer.posteriors])
