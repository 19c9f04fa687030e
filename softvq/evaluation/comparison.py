"""Images beside a tokenizer's reconstructions of them: a picture, and PSNR and SSIM image by image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from softvq import progress as progresses
from softvq.config import nearest
from softvq.data.images import Fit
from softvq.data.loader import ordered_batches, readable
from softvq.data.objects import Objects
from softvq.data.opening import BUNDLED, open_source
from softvq.data.order import evenly
from softvq.data.sources import Folder
from softvq.errors import ConfigError, ImageError, counted
from softvq.evaluation.metrics import CONVENTION
from softvq.evaluation.reconstruction import measured
from softvq.figures import comparison, table
from softvq.models import Coder


@dataclass(frozen=True)
class Comparison:
    """Images beside their reconstructions.

    `rows` have `image`, `psnr` and `ssim` of each; `picture` shows the first of them, original | reconstruction |
    error; `latents` are there where they were requested; `unreadable` holds the images left out, with the reason; and
    `warning` is a sentence where the model does not know such images. `latent_floats` is the number of numbers that an
    image becomes, and `compression` how many times fewer these are than its colour values.
    """

    rows: list[dict[str, Any]]
    picture: Image.Image
    latents: Tensor | None
    unreadable: dict[str, str]
    warning: str | None
    fit: Fit
    size: int
    latent_floats: int
    compression: float

    @property
    def means(self) -> dict[str, float]:
        """The mean PSNR and SSIM over images."""
        return {name: sum(row[name] for row in self.rows) / len(self.rows) for name in ("psnr", "ssim")}

    def to_dict(self) -> dict[str, Any]:
        """Return all but the picture and the latents, JSON-ready."""
        settings = {name: getattr(self, name) for name in ("latent_floats", "compression", "fit", "size")}
        content = {
            "images": self.rows,
            **self.means,
            **settings,
            "convention": CONVENTION,
            "unreadable": self.unreadable,
        }
        return {**content, "warning": self.warning} if self.warning else content

    def __str__(self) -> str:
        """Return the figures of each image as a table."""
        rows = [*self.rows, {"image": "mean", **self.means}] if len(self.rows) > 1 else self.rows
        cells = [(row["image"], f"{row['psnr']:.2f}", f"{row['ssim']:.4f}") for row in rows]
        numbers = f"{self.latent_floats:,} numbers an image, {self.compression:.1f} times fewer than its"
        return f"{table([('image', 'PSNR dB', 'SSIM'), *cells])}\n{numbers} {self.size}×{self.size} pixels have"


def compare(
    coder: Coder,
    images: Any,
    *,
    fit: Fit = "crop",
    batch_size: int = 16,
    shown: int = 64,
    num: int | None = None,
    latents: bool = False,
    progress: bool | None = None,
) -> Comparison:
    """Return a tokenizer's reconstructions beside the images.

    `images` are a list of files and folders, or anything else that `data.open_source` takes. `fit` says how an image
    becomes the model's square; `num` is the number of images, spread evenly over all (None: all of them); `shown` is
    the largest number of them in the picture; with `latents` they are kept too. Raise `ImageError` when none can be
    read.
    """
    for name, number in (("batch_size", batch_size), ("shown", shown), ("num", 1 if num is None else num)):
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, not {number}.", setting=name)
    source = open_source(_files(images)).listing(num)
    chosen = evenly(num or len(source.names), len(source.names))
    rows: list[dict[str, Any]] = []
    kept: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    bad: dict[str, str] = {}
    with progresses.bar(len(chosen), "image", "reconstructing", show=progress) as done:
        size = coder.tokenizer.config.image_size
        batches = ordered_batches(source, size=size, batch_size=batch_size, how=fit, chosen=chosen)
        for batch in readable(batches, bad):
            codes = coder.encode(batch.images)
            output = coder.decode(codes)
            scores = measured(batch.images, output)
            values = zip(batch.names, scores["psnr"].tolist(), scores["ssim"].tolist(), strict=True)
            rows += [{"image": name, "psnr": p, "ssim": s} for name, p, s in values]
            kept += [codes] if latents else []
            if (room := shown - sum(len(x) for x, _ in pairs)) > 0:
                pairs.append((batch.images[:room], output[:room]))
            done(len(batch) + len(batch.bad))
    if not rows:
        alone = len(bad) == 1
        raise ImageError(
            next(iter(bad.values())) if alone else f"none of the {counted(len(bad), 'image')} can be read."
        )
    picture = comparison(*(torch.cat(part) for part in zip(*pairs, strict=True)))
    warning = outside_of_domain(coder.tokenizer.about, rows)
    return Comparison(
        rows,
        picture,
        torch.cat(kept) if latents else None,
        bad,
        warning,
        fit,
        coder.tokenizer.config.image_size,
        coder.latent_floats,
        coder.compression,
    )


def _files(images: Any) -> Any:
    """Return a list of files, with the images in folders instead of the folders.

    The name of a data set, alone in a list, is returned without the list, and anything that is no list of names as it
    is.
    """
    if not isinstance(images, list | tuple) or not all(isinstance(one, str | Path) for one in images):
        return images
    if len(images) == 1 and not Path(images[0]).exists():
        named = str(images[0])
        if named in BUNDLED or named.startswith("hf:") or named.lower().endswith((".tar", ".parquet")):
            return named
        if (hint := nearest(named, list(BUNDLED))).endswith("?"):
            raise ImageError(f"{named} does not exist{hint}")
    paths: list[str] = []
    for path in map(Path, images):
        paths += [str(path / name) for name in Folder(path).names] if path.is_dir() else [str(path)]
    return Objects(paths)


def outside_of_domain(about: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    """Return a warning when images come back worse than the first percentile of the model's validation images.

    It is None when none does, or the model does not say what that percentile is.
    """
    floor = about.get("figures", {}).get("psnr_floor")
    worse = [row for row in rows if floor is not None and row["psnr"] < floor]
    if not worse:
        return None
    which = worse[0]["image"] if len(worse) == 1 else f"{len(worse)} of {len(rows)} images"
    return (
        f"{which} came back below {floor:.1f} dB, worse than 99 % of this model's validation images "
        f"({about.get('domain', 'its own data')}): it does not know such images. "
        "The authors' released models, such as SoftVQVAE/softvq-l-64, know photographs."
    )
