"""Measurements of how well images come back from a tokenizer.

    result = evaluate_reconstruction("softvq-emoji-64", "emoji-val")
    result.scores["psnr"], result.scores["rfd"]; result.write("evaluations")

`score` measures any function that reconstructs images.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from softvq.data.images import to_bytes
from softvq.errors import ConfigError, MetricError
from softvq.evaluation.appearance import NAMES, appearance, appearance_scores
from softvq.evaluation.frechet import Gaussian, frechet_distance
from softvq.evaluation.images import DataImages
from softvq.evaluation.latent_space import CodebookCounts, codebook_scores
from softvq.evaluation.measuring import (
    Measuring,
    Settings,
    concatenated,
    evaluating,
    knows_bundled,
    none_readable,
    patch_of,
    workplace,
)
from softvq.evaluation.metrics import CONVENTION, psnr, ssim
from softvq.evaluation.parts import Part
from softvq.evaluation.results import Result, described
from softvq.models import AnyTokenizer, load_tokenizer, own_device
from softvq.pretrained import lpips as perceptual_networks
from softvq.runtime import autocast

Images = Float[Tensor, "_ 3 H W"]
Perceptual = Callable[[Images, Images], Float[Tensor, " B"]]  # (reconstructions, images) → LPIPS
Features = Callable[[UInt8[Tensor, "B 3 H W"]], Mapping[str, Tensor]]  # 8-bit images → features by name


@dataclass(frozen=True)
class Scores:
    """The scores of reconstructions.

    `psnr` (dB), `ssim` and, where a network for it was given, `lpips` are those of each image, in order. With features,
    `fd` is the Fréchet distance, `spatial_fd` that of sFID's features, and `reliable` is True when there were more
    images than features. `appearance` holds the scores of `evaluation.appearance`.
    """

    psnr: list[float]
    ssim: list[float]
    lpips: list[float] = field(default_factory=list)
    fd: float | None = None
    spatial_fd: float | None = None
    reliable: bool = True
    appearance: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, float | int | str]:
        """Return means over images, their number, and the convention; the Fréchet distance as rFID."""
        count = len(self.psnr)
        return {
            "psnr": sum(self.psnr) / count,
            "ssim": sum(self.ssim) / count,
            **({"lpips": sum(self.lpips) / count} if self.lpips else {}),
            **({} if self.fd is None else {"rfid": self.fd, "rfid_reliable": self.reliable}),
            "images": count,
            "convention": CONVENTION,
        }


def measured(
    images: Images,
    output: Images,
    *,
    perceptual: Perceptual | None = None,
    features: Features | None = None,
    periods: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Return what is measured of reconstructions, a row an image, on the CPU (float64 is not everywhere).

    These are `psnr`, `ssim` and `lpips`; with `features` those of both sides, `made/…` and `real/…`; with `periods`
    also the rows of `evaluation.appearance` of both.
    """
    rows = {"psnr": psnr(output.cpu(), images.cpu()), "ssim": ssim(output.cpu(), images.cpu())}
    if perceptual is not None:
        rows["lpips"] = perceptual(output.float().clamp(-1, 1), images).cpu().double()
    for side, pixels in (("made", output), ("real", images)) if features is not None or periods is not None else ():
        seen = to_bytes(pixels)
        columns = {} if features is None else {name: tensor.cpu() for name, tensor in features(seen).items()}
        columns |= {} if periods is None else appearance(seen.cpu(), periods)
        rows |= {f"{side}/{name}": tensor for name, tensor in columns.items()}
    return rows


class Tally:
    """The scores of rows that come a batch or a part at a time; it keeps a few numbers an image, not the images."""

    def __init__(self):
        self.values: dict[str, list[float]] = {"psnr": [], "ssim": [], "lpips": []}
        self.gaussians: dict[str, Gaussian] = {}
        self.seen: dict[str, list[Tensor]] = {}

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Count the rows that `measured` returned."""
        for name, tensor in rows.items():
            if name in self.values:
                self.values[name] += tensor.tolist()
            elif name.endswith(("/pool", "/spatial")):
                self.gaussians.setdefault(name, Gaussian(tensor.shape[1])).add(tensor)
            elif name.rpartition("/")[2] in NAMES:
                self.seen.setdefault(name, []).append(tensor)

    def scores(self, size: int = 0, periods: Sequence[int] = ()) -> Scores:
        """Return the scores of all that was counted, of images of `size` px; raise `MetricError` when there is none."""
        if not self.values["psnr"]:
            raise MetricError("there are no images to measure.")
        distances: dict[str, float | None] = {}
        for name in ("pool", "spatial"):
            sides = [self.gaussians.get(f"{side}/{name}") for side in ("made", "real")]
            enough = None not in sides and sides[0].count > 1
            distances[name] = frechet_distance(*(side.moments for side in sides)) if enough else None
        made = self.gaussians.get("made/pool")
        return Scores(
            **self.values,
            fd=distances["pool"],
            spatial_fd=distances["spatial"],
            reliable=made is None or made.count < 2 or made.moments.reliable,
            appearance=self._appearance(size, periods),
        )

    def _appearance(self, size: int, periods: Sequence[int]) -> dict[str, Any]:
        if not self.seen:
            return {}
        made, real = ({name: torch.cat(self.seen[f"{side}/{name}"]) for name in NAMES} for side in ("made", "real"))
        return appearance_scores(made, real, size, periods)


@torch.no_grad()
def score(
    reconstruct: Callable[[Images], Images],
    batches: Iterable[Images],
    *,
    perceptual: Perceptual | None = None,
    features: Features | None = None,
) -> Scores:
    """Reconstruct every batch (in [-1, 1]), measure it, and return the scores of all."""
    tally = Tally()
    for images in batches:
        output = reconstruct(images)
        tally.add(measured(images.to(output.device), output, perceptual=perceptual, features=features))
    return tally.scores()


def first_percentile(values: list[float]) -> float:
    """Return the value below which 1 % of the values lie (linear interpolation)."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.01))


def evaluate_reconstruction(
    tokenizer: AnyTokenizer | str | Path, images: Any = None, *, lpips: bool | None = None, **settings: Any
) -> Result:
    """Return the figures of a tokenizer's reconstructions: rFID, PSNR, SSIM, LPIPS and more.

    rFID is called FD in the features of another network than Inception's. The others are codebook usage and entropy,
    and what people see of the images (`evaluation.appearance`).

    `images` are anything that `data.open_source` takes; by default those that the model says it is for. `lpips` says
    whether LPIPS is measured, with VGG16's weights; by default unless the model is for the bundled images. `settings`
    are the fields of `Settings`.
    """
    given = Settings(**settings)
    device = own_device(given.device, tokenizer)
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    images = tokenizer.about.get("domain") if images is None else images
    if images is None:
        raise ConfigError(
            f"{described(tokenizer)['name']} does not say which images it is for; name some.", setting="data"
        )
    bundled = knows_bundled(tokenizer)
    lpips = not bundled if lpips is None else lpips
    data = DataImages(images, tokenizer.config.image_size, given.batch_size, given.workers)
    with workplace(given.folder) as place:
        more = (perceptual_networks.NAME,) if lpips else ()
        measuring = Measuring(given, place, device, bundled, patch_of(tokenizer), more)
        perceptual = None
        if lpips:
            file = (given.pretrained or {}).get(perceptual_networks.NAME)
            perceptual = perceptual_networks.LPIPS.load(perceptual_networks.NAME, file).to(device)
        with evaluating(tokenizer.to(device)):
            return _evaluated(tokenizer, data, measuring, perceptual)


def _evaluated(
    tokenizer: AnyTokenizer, data: DataImages, measuring: Measuring, perceptual: Perceptual | None
) -> Result:
    model = described(tokenizer)
    known = {"name": model["name"], "fingerprint": model["fingerprint"]}
    stem = measuring.stem(known, data.title, data.checksum, perceptual is not None)
    name = f"reconstruction-{Path(model['name']).name}-{stem}"
    parts = measuring.place.parts(f"{name}.parts", data.count, data.version)
    parts.fill(lambda numbers, done: _part(tokenizer, measuring, data, numbers, done, perceptual), data.title)
    tally = Tally()
    for rows in parts:
        tally.add(rows)
    if not (count := len(tally.values["psnr"])):
        raise none_readable(data, parts)
    figures = tally.scores(data.size, measuring.periods(data.size))
    distances = {"fd": figures.fd, **({} if figures.spatial_fd is None else {"spatial_fd": figures.spatial_fd})}
    means = {name: getattr(figures, name) for name in ("psnr", "ssim", "lpips")}
    means = {name: float(torch.tensor(values, dtype=torch.float64).mean()) for name, values in means.items() if values}
    scores = {**measuring.named(distances, "r"), **means, **figures.appearance}
    if (counts := parts.all("counts")) is not None:
        scores |= codebook_scores(counts.sum(0), parts.all("entropy").sum(0))
    scores["reliable"] = figures.reliable
    return Result(
        "reconstruction",
        name,
        model,
        measuring.protocol(count, data.size, data.crop, (data.title, parts.checksum, count)),
        scores,
        {"tokens": tokenizer.config.tokens},
        (*measuring.notes(scores), CONVENTION),
        parts.bad,
        parts=parts.folder,
    )


@torch.no_grad()
def _part(
    tokenizer: AnyTokenizer,
    measuring: Measuring,
    data: DataImages,
    numbers: range,
    done: Callable[[int], object],
    perceptual: Perceptual | None,
) -> Part:
    rows: list[dict[str, Tensor]] = []
    bad: dict[str, str] = {}
    digest = hashlib.sha256()
    with CodebookCounts(getattr(tokenizer, "quantizer", None)) as counts:
        for batch in data.tensors(numbers, bad):
            digest.update(to_bytes(batch).contiguous().numpy())
            batch = batch.to(measuring.device)
            with autocast(measuring.device, measuring.precision):
                output = tokenizer(batch).images.float().clamp(-1, 1)
            features, periods = measuring.features, measuring.periods(data.size)
            rows.append(measured(batch, output, perceptual=perceptual, features=features, periods=periods))
            if perceptual is not None and not rows[-1]["lpips"].isfinite().all():  # the rest is of 8-bit images
                raise MetricError("LPIPS is not finite: the weights of its network are damaged.", setting="pretrained")
            done(len(batch))
    return Part({**concatenated(rows), **counts.tensors()}, bad, digest.hexdigest())
