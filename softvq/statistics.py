"""The mean and deviation of a tokenizer's latents, which `encode` divides out: fitted, and stored with its weights.

fit_latent_statistics("runs/mine", "my_photos/")
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from softvq import distributed, files, hub
from softvq import progress as progresses
from softvq.data.loader import Batch, ordered_batches
from softvq.data.opening import listing
from softvq.data.order import Order
from softvq.data.sources import Source
from softvq.errors import ConfigError, DataError, ModelError, Notice, check_whole
from softvq.models import check_finite, load_tokenizer, own_device
from softvq.runtime import autocast, pick_precision
from softvq.tokenizer import Tokenizer


@dataclass(frozen=True)
class LatentStatistics:
    """The fitted mean and deviation of each channel of a tokenizer's latents.

    `images` is the number of images that they are of, `unreadable` holds those that were left out, with the reason, and
    `model` is the folder of the model that they are stored in.
    """

    mean: Float[Tensor, " D"]
    std: Float[Tensor, " D"]
    images: int
    unreadable: dict[str, str]
    model: Path


def fit_latent_statistics(
    model: str | Path,
    images: Any,
    out: str | Path | None = None,
    *,
    num: int = 10_000,
    batch_size: int = 32,
    workers: int = 0,
    device: str | torch.device | None = None,
    precision: str = "auto",
    progress: bool | None = None,
) -> LatentStatistics:
    """Fit a tokenizer's latent statistics on up to `num` images, at random but always the same, and store them.

    `model` is a folder, a bundled or a hub name; `images` are anything that `data.open_source` takes; `out` is the
    folder of the model with the new statistics, by default the model's own.

    Raise `ConfigError` when there is nowhere to store them, and `DataError` when a channel never changes.
    """
    for name, number, least in (("num", num, 2), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        check_whole(name, number, least)
    if out is None and not _is_ours(Path(model)):
        raise ConfigError(f"{model} is no finished model's folder to write to; name one.", setting="out")
    folder = Path(out) if out is not None else hub.find(model)
    files.check_writable(folder, folder=True)
    device = own_device(device)
    tokenizer = load_tokenizer(model)
    if not isinstance(tokenizer, Tokenizer):
        raise ModelError(f"{model} has no statistics of its own to fit.")
    tokenizer.to(device)
    source, used, bad = listing(images, num), 0, {}
    total = min(num, len(source.names))

    def seen(done: Any) -> Iterator[Tensor]:
        nonlocal used
        for batch in statistics_batches(source, tokenizer.config.image_size, num, batch_size, workers):
            used += len(batch.images)
            bad.update(batch.bad)
            done(len(batch.images) + len(batch.bad))
            yield batch.images

    with (
        progresses.bar(total, "image", "encoding", show=progress) as done,
        autocast(device, pick_precision(precision, device, training=False)),
    ):
        mean, std = fit_statistics(tokenizer, seen(done))
    if constant := int((std == 0).sum()):
        raise DataError(
            f"{constant} of {len(std)} latent channels are the same for all these images; give more of them."
        )
    _say_changed(tokenizer, mean, std)
    tokenizer.set_statistics(mean, std)
    weights = hub.find(model) / hub.WEIGHTS  # a run that has not ended has none yet
    stored = files.read_tensors(weights) if weights.is_file() else {}
    tokenizer.save_pretrained(folder, stored.get("decoder.mask_token", mean).dtype)
    return LatentStatistics(mean, std, used, bad, folder)


def _say_changed(tokenizer: Tokenizer, mean: Tensor, std: Tensor) -> None:
    """Say that latents made before do not fit any more, which are stored normalised; not for the first statistics."""
    before = torch.stack([tokenizer.latent_mean.cpu(), tokenizer.latent_std.cpu()])
    is_first = bool((before[0] == 0).all() and (before[1] == 1).all())
    if not is_first and not torch.equal(before, torch.stack([mean, std])):
        warnings.warn(
            f"the latent statistics of {tokenizer.name} change: latents that it made before, and generators trained on "
            "them, are refused from now on; encode again.",
            Notice,
            stacklevel=3,
        )


def _is_ours(folder: Path) -> bool:
    """Return True when a folder holds a model (or the run of one) that this package wrote."""
    if not folder.is_dir():
        return False
    config = hub.find(folder) / hub.CONFIG
    return config.is_file() and "format" in files.read_json(config)


def statistics_batches(source: Source, size: int, images: int, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Return batches of up to `images` centre crops, spread over the source at random but always in the same way."""
    count = len(source.names)
    chosen = sorted(Order(count, seed=0).at(range(min(images, count))))
    return ordered_batches(source, size=size, batch_size=batch_size, chosen=chosen, workers=workers)


@torch.no_grad()
def fit_statistics(tokenizer: Tokenizer, batches: Iterable[Float[Tensor, "_ 3 H W"]]) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (D,) of the latents before normalisation, over all tokens of all images.

    Sums run in float64; the batches of all ranks are counted together. A channel that is constant (to 1e-6 of its size)
    gets the deviation 0, with which `set_statistics` would refuse it.
    """
    device = tokenizer.latent_mean.device
    dim = tokenizer.config.latent_dim
    count = torch.zeros((), dtype=torch.float64)
    sums = torch.zeros(2, dim, dtype=torch.float64)
    for images in batches:
        latents = tokenizer.encode(images.to(device)) * tokenizer.latent_std + tokenizer.latent_mean
        latents = check_finite(latents.cpu(), "the tokenizer's latents").double().flatten(0, 1)
        count += len(latents)
        sums += torch.stack([latents.sum(0), latents.square().sum(0)])
    count, sums = distributed.total(count), distributed.total(sums)
    mean = sums[0] / count
    std = (sums[1] / count - mean.square()).clamp_min(0).sqrt()
    return mean.float(), torch.where(std > 1e-6 * mean.abs(), std, 0.0).float()
