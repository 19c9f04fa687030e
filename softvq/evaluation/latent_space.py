"""What a latent space looks like: statistics of its channels, of what the quantizer changes, and of its codewords; UMAP
(Fig. 4)."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from softvq.errors import MetricError


def channel_statistics(latents: Float[Tensor, "N L D"]) -> dict[str, Float[Tensor, " D"]]:
    """Of each channel over images and tokens: `mean`, `std`, `kurtosis` (3 for a Gaussian), in float64."""
    flat = latents.flatten(0, 1).double()
    mean, std = flat.mean(0), flat.std(0)
    scaled = (flat - mean) / std.clamp_min(torch.finfo(torch.float64).tiny)
    return {"mean": mean, "std": std, "kurtosis": scaled.pow(4).mean(0)}


def change(encoded: Float[Tensor, "N L D"], latents: Float[Tensor, "N L D"]) -> dict[str, float]:
    """What the quantizer does to ẑ: `cosine`, the mean over tokens of that of ẑ and z; `unexplained`, the share of ẑ's
    variance that the best multiple of z leaves (the soft mixture is shorter than what it is made of)."""
    a, b = encoded.flatten(0, 1).double(), latents.flatten(0, 1).double()
    a, b = a - a.mean(0), b - b.mean(0)
    explained = (a * b).sum().square() / (a.square().sum() * b.square().sum())
    return {"cosine": float(F.cosine_similarity(encoded, latents, dim=-1).mean()), "unexplained": float(1 - explained)}


def nearest_cosines(codebook: Float[Tensor, "K D"]) -> Float[Tensor, " K"]:
    """Each codeword's cosine with the most similar other one."""
    words = F.normalize(codebook.detach().float().cpu(), dim=1)
    if len(words) < 2:
        raise MetricError("a codebook of one word has no distances.")
    nearest = []
    for first in range(0, len(words), 1024):
        cosines = words[first : first + 1024] @ words.T
        own = torch.arange(len(cosines))
        cosines[own, first + own] = -1
        nearest.append(cosines.amax(1))
    return torch.cat(nearest)


def codebook_scores(counts: Int[Tensor, "G K"], entropy: Float[Tensor, "2"]) -> dict[str, float]:
    """Of how often each codeword was a token's most likely one, and (sum of the tokens' H(q), their number):
    `codebook_usage`, the share of codewords that ever were; `codebook_perplexity`, exp of the entropy of how often
    (1…K), a mean over codebooks; `posterior_entropy`, the mean H(q) in nats."""
    shares = counts / counts.sum(1, keepdim=True)
    perplexity = torch.special.entr(shares.double()).sum(1).exp()
    return {
        "codebook_usage": float((counts > 0).double().mean()),
        "codebook_perplexity": float(perplexity.mean()),
        "posterior_entropy": float(entropy[0] / entropy[1]),
    }


def umap_learn() -> Any:
    """umap-learn's class, where it is installed."""
    try:
        from umap import UMAP
    except ImportError:
        raise MetricError("UMAP needs a package: pip install 'softvq[plots]'.") from None
    return UMAP


def umap(vectors: Float[Tensor, "N F"], seed: int = 0) -> Float[Tensor, "N 2"]:
    """Two dimensions that keep neighbours (McInnes et al. 2018), with umap-learn's own settings and a seed."""
    make = umap_learn()
    if len(vectors) < 16:
        raise MetricError(f"UMAP needs at least 16 images, not {len(vectors)}.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # what a seed costs
        found = make(random_state=seed).fit_transform(vectors.float().numpy())
    return torch.from_numpy(found)
