"""Images beside a tokenizer's reconstructions of them: a picture, PSNR and SSIM, and which the model does not know.

A model knows images like those that it was validated on. `looks` describes images by a few numbers, whatever the model,
and `domain_limits` are the ranges of these numbers over the validation images. They are stored with a trained model;
an image with a number beyond its range is outside of the model's domain.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from softvq import progress as progresses
from softvq.config import nearest
from softvq.data.images import Fit
from softvq.data.loader import ordered_batches, readable
from softvq.data.objects import Objects
from softvq.data.opening import BUNDLED, is_name, open_source
from softvq.data.order import evenly
from softvq.data.sources import Folder, tell
from softvq.errors import ImageError, check_whole, counted
from softvq.evaluation.measuring import knows_bundled
from softvq.evaluation.metrics import CONVENTION
from softvq.evaluation.reconstruction import measured
from softvq.figures import comparison, table
from softvq.models import Coder

_LEVELS = 16  # of 255, by which equal colours differ at most: JPEG's noise
_TURN, _EDGE, _WHITE = 10, 64, 242  # levels of a turn up and down, of a sharp edge, and of white
_LUMA = (0.299, 0.587, 0.114)
_TAIL = 0.001  # the share of validation images beyond either end of a range
_MARGIN = 0.05  # how far a range reaches beyond them, relative to its length
_FEWEST = 100  # validation images: the range of fewer leaves out too many of their own kind
_WORDS = {  # of each number of `looks`: what an image is called that has less, or more of it
    "white": ("less white", "more white"),
    "border": ("a busier border", "a more even border"),
    "flat": ("fewer even areas", "larger even areas"),
    "edges": ("fewer sharp edges", "more sharp edges"),
    "texture": ("less fine texture", "more fine texture"),
}


@dataclass(frozen=True)
class Comparison:
    """Images beside their reconstructions.

    `rows` have `image`, `psnr` and `ssim` of each; `picture` shows the first of them, original | reconstruction |
    error; `latents` are there where they were requested; `unreadable` holds the images left out, with the reason; and
    `outside` names those that are outside of the model's domain (None: the model does not say what that is), and
    `warning` is a sentence about them where there are any. `latent_floats` is the number of numbers that an
    image becomes, and `compression` how many times fewer these are than its colour values.
    """

    rows: list[dict[str, Any]]
    picture: Image.Image
    latents: Tensor | None
    unreadable: dict[str, str]
    outside: list[str] | None
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
            "outside": self.outside,
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
        check_whole(name, number, 1)
    source = open_source(_files(images)).listing(num)
    chosen = evenly(num or len(source.names), len(source.names))
    rows: list[dict[str, Any]] = []
    bad: dict[str, str] = {}
    kept, described, pairs = [], [], []
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
            described.append(looks(batch.images))
            if (room := shown - sum(len(x) for x, _ in pairs)) > 0:
                pairs.append((batch.images[:room], output[:room]))
            done(len(batch) + len(batch.bad))
    if not rows:
        raise ImageError(
            next(iter(bad.values())) if len(bad) == 1 else f"none of the {counted(len(bad), 'image')} can be read."
        )
    outside = _outside(coder.tokenizer.about.get("domain_limits"), rows, joined(described))
    return Comparison(
        rows,
        comparison(*(torch.cat(part) for part in zip(*pairs, strict=True))),
        torch.cat(kept) if latents else None,
        bad,
        None if outside is None else list(outside),
        _warning(coder.tokenizer, outside) if outside else None,
        fit,
        size,
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
    named = str(images[0]) if len(images) == 1 and not Path(images[0]).is_dir() else ""
    if is_name(named):
        return named
    if named and not Path(named).exists() and (hint := nearest(named, list(BUNDLED))).endswith("?"):
        raise ImageError(f"{named} does not exist{hint}")
    paths: list[str] = []
    for path in map(Path, images):
        if path.is_dir():
            tell(folder := Folder(path), str(path))
            paths += [str(path / name) for name in folder.names]
        else:
            paths.append(str(path))
    return Objects(paths)


def looks(images: Float[Tensor, "B 3 S S"]) -> dict[str, Float[Tensor, " B"]]:
    """Return numbers that describe how images in [-1, 1] look, a row an image; all but `texture` are shares in [0, 1].

    `white` is the share of nearly white pixels; `border` that of the outermost sixteenth whose colour is nearly the
    border's median; `flat` that of neighbours of nearly the same colour, `edges` that of neighbours with sharply
    different ones; `texture` is how often the brightness of three neighbours goes up and down, where it changes at all:
    fine texture, grain and thin lines. Nearly means by 16 levels of 255, so that JPEG's noise is not seen.
    """
    levels = (images.float() + 1) * 127.5
    steps = torch.cat([levels.diff(dim=side).abs().amax(1).flatten(1) for side in (2, 3)], 1)
    flat = (steps < _LEVELS + 0.5).float().mean(1)  # 8-bit levels, not quite whole after [-1, 1]
    inner = slice(width := max(1, images.shape[-1] // 16), -width)
    is_border = torch.ones(images.shape[-2:], dtype=torch.bool, device=images.device)
    is_border[inner, inner] = False
    border = levels[:, :, is_border]
    from_median = (border - border.median(2, keepdim=True).values).abs().amax(1)
    luma = (levels * levels.new_tensor(_LUMA).view(3, 1, 1)).sum(1)
    turns = (_turns(luma) + _turns(luma.mT)) / 2
    return {
        "white": (levels.amin(1) > _WHITE + 0.5).float().mean((1, 2)),
        "border": (from_median < _LEVELS + 0.5).float().mean(1),
        "flat": flat,
        "edges": (steps > _EDGE + 0.5).float().mean(1),
        "texture": turns / (1 - flat + 0.02),  # finite where nothing changes
    }


def _turns(luma: Float[Tensor, "B S T"]) -> Float[Tensor, " B"]:
    """Return the share of places in rows where brightness clearly goes up and then down, or down and then up."""
    before, after = luma.diff(dim=2)[:, :, :-1], luma.diff(dim=2)[:, :, 1:]
    is_turn = (before * after < 0) & (torch.minimum(before.abs(), after.abs()) > _TURN)
    return is_turn.float().mean((1, 2))


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the descriptions of several batches as those of one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def domain_limits(described: Mapping[str, Float[Tensor, " B"]]) -> dict[str, list[float]]:
    """Return the range, [low, high], of each number of a model's validation images, as `looks` describes them.

    It holds all but a thousandth of the images at either end, and a twentieth of its length more on both sides. It is
    empty for fewer than 100 images, which are too few to tell what the model knows.
    """
    ends = torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)
    limits = {}
    for name, values in described.items():
        if len(values) >= _FEWEST:
            low, high = values.double().cpu().quantile(ends).tolist()
            margin = _MARGIN * (high - low)
            limits[name] = [low - margin, high + margin]
    return limits


def outside_of_domain(
    limits: Mapping[str, Sequence[float]], described: Mapping[str, Float[Tensor, " B"]]
) -> list[list[str]]:
    """Return, image by image, in words what is beyond the limits of a model; nothing for an image inside of them.

    `limits` are what `domain_limits` returned, `described` what `looks` did.
    """
    count = len(next(iter(described.values())))
    reasons: list[list[str]] = [[] for _ in range(count)]
    for name in (name for name in described if name in limits):
        low, high = limits[name]
        for why, value in zip(reasons, described[name].tolist(), strict=True):
            if not low <= value <= high:
                why.append(_WORDS[name][value > high])
    return reasons


def _outside(limits: Any, rows: list[dict[str, Any]], described: Mapping[str, Tensor]) -> dict[str, list[str]] | None:
    """Return the images outside of a model's domain by name, with reasons; None when it has no limits."""
    if not limits:
        return None
    reasons = outside_of_domain(limits, described)
    return {row["image"]: why for row, why in zip(rows, reasons, strict=True) if why}


def _warning(tokenizer: Any, outside: Mapping[str, Sequence[str]]) -> str:
    named = ", ".join(list(outside)[:3]) + (f" and {len(outside) - 3} more" if len(outside) > 3 else "")
    common = Counter(why for reasons in outside.values() for why in reasons).most_common(3)
    domain = tokenizer.about.get("domain", "its validation images")
    hint = " The authors' released models, such as SoftVQVAE/softvq-l-64, know photographs."
    return (
        f"{tokenizer.name or 'the model'} does not know images like {named}: they have "
        f"{', '.join(why for why, _ in common)} than nearly all of {domain}, which it was validated on. Such images "
        f"may come back badly.{hint if knows_bundled(tokenizer) else ''}"
    )
