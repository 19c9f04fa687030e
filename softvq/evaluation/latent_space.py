"""Measurements of a latent space: its channels, the quantizer's change, and codewords; and UMAP (Fig. 4).

    result = latent_space("softvq-emoji-64", "emoji")
    result.pictures["umap"].save("umap.png")

Needs pip install 'softvq[plots]'.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from softvq import progress
from softvq.data.labels import UNLABELLED
from softvq.data.loader import ordered_batches
from softvq.data.opening import listing
from softvq.data.order import evenly
from softvq.errors import ConfigError, DataError, MetricError, check_whole, counted
from softvq.evaluation.measuring import Working, evaluating
from softvq.evaluation.results import Result, described, short_name
from softvq.figures import pyplot, rendered
from softvq.models import AnyTokenizer, check_finite, load_tokenizer, own_device
from softvq.quantizers.base import Quantized, Quantizer
from softvq.runtime import autocast, pick_precision

_LEAST = 16  # images for UMAP


def latent_space(
    tokenizer: AnyTokenizer | str | Path,
    images: Any = "emoji",
    *,
    num: int = 2000,
    classes: int = 20,
    seed: int = 0,
    **settings: Any,
) -> Result:
    """Return statistics and pictures of a tokenizer's latents: `channels`, `codebooks` where it has some, and `umap`.

    They are those of `num` images, spread evenly over those of the first so many `classes` and those without a label.
    `images` are anything that `data.open_source` takes; `seed` is UMAP's; `settings` are the fields of `Working`.
    """
    given = Working(**settings)
    for name, number, least in (("num", num, 1), ("classes", classes, 1), ("seed", seed, 0)):
        check_whole(name, number, least)
    if seed >= 2**32:
        raise ConfigError(f"seed must be below 2^32, not {seed}.", setting="seed")
    pyplot()  # what is missing is said before the work begins
    umap_learn()
    device = own_device(given.device, tokenizer)
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    source = listing(images)
    among = [n for n, label in enumerate(source.labels) if label < classes]
    if not among:
        raise DataError(f"{source} holds no images of its first {classes} classes.")
    chosen = [among[number] for number in evenly(num, len(among))]
    _check_count(len(chosen))
    unreadable: dict[str, str] = {}
    size, reading = tokenizer.config.image_size, {"batch_size": given.batch_size, "workers": given.workers}
    batches = ordered_batches(source, size=size, chosen=chosen, **reading)
    precision = pick_precision(given.precision, device, training=False)
    with evaluating(tokenizer.to(device)):
        seen = _seen(tokenizer, batches, len(chosen), precision, unreadable)
    statistics = channel_statistics(seen.latents)
    pictures = {"channels": drawn_channels(statistics)}
    scores: dict[str, float] = {}
    if seen.encoded.shape == seen.latents.shape:
        scores = change(seen.encoded, seen.latents)
    if seen.counts is not None:
        leaves = tokenizer.quantizer.leaves
        nearest = [nearest_cosines(one.codebook) for one in leaves if hasattr(one, "codebook")]
        scores |= codebook_scores(seen.counts, seen.entropy)
        scores["nearest_cosine"] = sum(float(one.mean()) for one in nearest) / len(nearest)
        pictures["codebooks"] = drawn_codebooks(seen.counts, nearest)
    pictures["umap"] = drawn_umap(seen, source.classes, seed)
    name = str(images if isinstance(images, str | Path) else source)
    protocol = {"data": name, "images": len(seen.labels), "seed": seed}
    channels = {name: values.tolist() for name, values in statistics.items()}
    model = described(tokenizer)
    name = f"latents-{Path(model['name']).name}-{short_name(model['fingerprint'], protocol, classes, precision)}"
    notes = ()
    if left := int((seen.labels == UNLABELLED).sum()):
        notes = (f"{left:,} of the {counted(len(seen.labels), 'image')} {'has' if left == 1 else 'have'} no label",)
    return Result("latents", name, model, protocol, scores, {"channels": channels}, notes, unreadable, pictures)


@dataclass(frozen=True)
class _Seen:
    """The ẑ, z, labels and codeword counts of the images that are measured."""

    encoded: Tensor
    latents: Tensor
    labels: Tensor
    counts: Tensor | None
    entropy: Tensor | None


@torch.no_grad()
def _seen(tokenizer: AnyTokenizer, batches: Any, total: int, precision: str, unreadable: dict[str, str]) -> _Seen:
    counts = CodebookCounts(getattr(tokenizer, "quantizer", None))  # diffusers' have none
    encoded, latents, labels = [], [], []
    with counts, progress.bar(total, "image", "encoding") as done:
        for batch in batches:
            unreadable.update(batch.bad)
            with autocast(tokenizer.device, precision):
                reconstruction = tokenizer(batch.images.to(tokenizer.device))
            encoded.append(check_finite(reconstruction.encoded.float().cpu(), "the encoder's outputs"))
            latents.append(check_finite(reconstruction.quantized.latent.float().cpu(), "the tokenizer's latents"))
            labels.append(batch.labels)
            done(len(batch))
    usage = counts.tensors()
    return _Seen(
        torch.cat(encoded),
        torch.cat(latents),
        torch.cat(labels),
        usage["counts"][0] if usage else None,
        usage["entropy"][0] if usage else None,
    )


class CodebookCounts:
    """A block that counts how often each codeword of each codebook was a token's most likely one.

    It also sums the tokens' posterior entropy. Both are of all images that go through a quantizer while the block
    lasts.
    """

    def __init__(self, quantizer: Quantizer | None):
        self.counts: dict[int, Tensor] = {}
        self.entropy: list[Tensor] = []
        self.handles = [
            one.register_forward_hook(lambda module, _, result, number=number: self._add(number, module, result))
            for number, one in enumerate([] if quantizer is None else quantizer.leaves)
            if hasattr(one, "codebook")
        ]

    def __enter__(self) -> "CodebookCounts":
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _add(self, number: int, module: nn.Module, result: Quantized) -> None:
        if result.indices is None or "entropy" not in result.statistics:  # a quantizer of one's own, without them
            return
        size = len(module.codebook)
        uses = torch.bincount(result.indices.flatten().cpu(), minlength=size)
        self.counts[number] = self.counts.get(number, torch.zeros(size, dtype=torch.int64)) + uses
        tokens = result.indices.numel()
        self.entropy.append(torch.tensor([float(result.statistics["entropy"]) * tokens, tokens], dtype=torch.float64))

    def tensors(self) -> dict[str, Tensor]:
        """Return `counts` (1, codebooks, K) and `entropy` (1, 2); {} without codebooks.

        The latter is the sum of the entropy over tokens, and their number.
        """
        if not self.counts:
            return {}
        return {"counts": torch.stack(list(self.counts.values()))[None], "entropy": sum(self.entropy)[None]}


def channel_statistics(latents: Float[Tensor, "N L D"]) -> dict[str, Float[Tensor, " D"]]:
    """Return the `mean`, `std` and `kurtosis` (3 for a Gaussian) of each channel over images and tokens, in float64."""
    flat = latents.flatten(0, 1).double()
    mean, std = flat.mean(0), flat.std(0)
    scaled = (flat - mean) / std.clamp_min(torch.finfo(torch.float64).tiny)
    return {"mean": mean, "std": std, "kurtosis": scaled.pow(4).mean(0)}


def change(encoded: Float[Tensor, "N L D"], latents: Float[Tensor, "N L D"]) -> dict[str, float]:
    """Return figures of the quantizer's change of ẑ: `cosine` and `unexplained`.

    `cosine` is the mean over tokens of that of ẑ and z; `unexplained` is the share of ẑ's variance that the best
    multiple of z leaves (the soft mixture is shorter than what it is made of).
    """
    a, b = encoded.flatten(0, 1).double(), latents.flatten(0, 1).double()
    a, b = a - a.mean(0), b - b.mean(0)
    explained = (a * b).sum().square() / (a.square().sum() * b.square().sum())
    return {"cosine": float(F.cosine_similarity(encoded, latents, dim=-1).mean()), "unexplained": float(1 - explained)}


def nearest_cosines(codebook: Float[Tensor, "K D"]) -> Float[Tensor, " K"]:
    """Return each codeword's cosine with the most similar other one."""
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
    """Return scores of how the codewords are used.

    `counts` say how often each codeword was a token's most likely one, `entropy` is the sum of the tokens' H(q) and
    their number. `codebook_usage` is the share of codewords that ever were; `codebook_perplexity` is exp of the entropy
    of how often (1…K), a mean over codebooks; `posterior_entropy` is the mean H(q) in nats.
    """
    shares = counts / counts.sum(1, keepdim=True)
    perplexity = torch.special.entr(shares.double()).sum(1).exp()
    return {
        "codebook_usage": float((counts > 0).double().mean()),
        "codebook_perplexity": float(perplexity.mean()),
        "posterior_entropy": float(entropy[0] / entropy[1]),
    }


def umap_learn() -> Any:
    """Return umap-learn's class; raise `MetricError` when it is not installed."""
    try:
        from umap import UMAP
    except ImportError:
        raise MetricError("UMAP needs a package: pip install 'softvq[plots]'.") from None
    return UMAP


def umap(vectors: Float[Tensor, "N F"], seed: int = 0) -> Float[Tensor, "N 2"]:
    """Return two dimensions that keep neighbours (McInnes et al. 2018), with umap-learn's own settings and a seed."""
    make = umap_learn()
    _check_count(len(vectors))
    threads = torch.get_num_threads()  # which numba's may change for the rest of the process
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="n_jobs value")  # what a seed costs
            embedding = make(random_state=seed).fit_transform(vectors.float().numpy())
    finally:
        torch.set_num_threads(threads)
    return torch.from_numpy(embedding)


def _check_count(images: int) -> None:
    if images < _LEAST:
        raise MetricError(f"UMAP needs at least {_LEAST} images, not {images}.")


def drawn_channels(statistics: dict[str, Tensor]) -> Image.Image:
    """Return each channel's mean and deviation as a figure."""
    figure, axes = pyplot().subplots(figsize=(7, 3), layout="constrained")
    axes.errorbar(range(len(statistics["mean"])), statistics["mean"], statistics["std"], fmt="o", capsize=2)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(xlabel="channel of z", ylabel="mean ± deviation")
    return rendered(figure)


def drawn_codebooks(counts: Int[Tensor, "G K"], nearest: list[Tensor]) -> Image.Image:
    """Return a figure of how often codewords are the likeliest, and of how near they are to each other."""
    figure, (usage, distances) = pyplot().subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for number, (row, cosines) in enumerate(zip(counts, nearest, strict=True)):
        share = row.sort(descending=True).values.double() / row.sum()
        usage.plot(range(1, len(share) + 1), share, label=f"codebook {number + 1}")
        distances.hist(cosines, bins=50, histtype="step")
    usage.axhline(1 / counts.shape[1], color="grey", linewidth=0.5)
    usage.set(xscale="log", xlabel="codeword, by how often it is the likeliest", ylabel="share of tokens")
    distances.set(xlabel="cosine with the nearest other codeword", ylabel="codewords")
    usage.legend(fontsize=7)
    return rendered(figure)


def drawn_umap(seen: "_Seen", classes: list[str], seed: int) -> Image.Image:
    """Return a figure of images as points, by UMAP of ẑ and of z."""
    panels = {"ẑ: what the encoder gives": seen.encoded, "z: what the decoder gets": seen.latents}
    figure, axes = pyplot().subplots(
        1, len(panels), figsize=(5 * len(panels), 4.4), layout="constrained", squeeze=False
    )
    colours = pyplot().get_cmap("tab20")
    present = seen.labels.unique().tolist()
    names = dict(zip(present, _legend(present, classes), strict=True))
    for axis, (title, latents) in zip(axes[0], panels.items(), strict=True):
        with progress.waiting(f"UMAP of {title[0]}"):
            places = umap(latents.flatten(1), seed)
        for label in present:
            chosen = seen.labels == label
            colour = "lightgrey" if label == UNLABELLED else colours(label % 20)
            marker = "osD^v*PX"[label // 20 % 8]
            axis.scatter(*places[chosen].T, s=4, color=colour, marker=marker, label=names[label])
        axis.set(title=title, xticks=[], yticks=[])
    if any(classes):  # of images without classes there is nothing to tell
        axes[0][-1].legend(fontsize=6, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    return rendered(figure)


def _legend(labels: list[int], classes: list[str]) -> list[str]:
    """Return a name for each label that a legend shows: short, no two the same, and read as no formula."""
    full = ["no label" if n == UNLABELLED else classes[n] if n < len(classes) else str(n) for n in labels]
    short = [name[:24] for name in full]
    told = [f"{name} ({n})" if short.count(name) > 1 else name for name, n in zip(short, labels, strict=True)]
    # matplotlib leaves names out that begin with "_", and sets what is between "$" as mathematics.
    return [("\u200b" if name[:1] == "_" else "") + name.replace("$", r"\$") for name in told]
