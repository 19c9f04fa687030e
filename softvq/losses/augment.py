"""DiffAug (Zhao et al. 2020): the discriminator sees coloured, shifted and cut images, with gradients through it all.

Each sample's augmentation is a function of its own random numbers, so that it does not depend on the batch or the rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """The augmentation drawn for each image of a batch.

    Colour: `brightness` is added to x, then `saturation` scales about the mean over channels, then `contrast` scales
    about the image's mean. `shift` is in pixels (rows, columns), with 0 coming in from outside. `kept` is False in the
    rectangle that is cut out.
    """

    brightness: Float[Tensor, " B"]
    saturation: Float[Tensor, " B"]
    contrast: Float[Tensor, " B"]
    shift: Int[Tensor, "B 2"]
    kept: Bool[Tensor, "B H W"]

    def to(self, device: torch.device) -> "Draws":
        """Return the same draws on a device."""
        return Draws(**{name: value.to(device) for name, value in vars(self).items()})


def draw(
    rngs: Sequence[np.random.Generator], size: tuple[int, int], probability: float = 0.5, cutout: float = 0.2
) -> Draws:
    """Draw an augmentation of an image of `size` (rows, columns) with each generator.

    Colour, translation (up to 1/8 of the side) and cutout (a rectangle of `cutout` of each side) each happen with this
    probability.
    """
    drawn = [_draw_one(rng, size, probability, cutout) for rng in rngs]
    colour, shift, kept = zip(*drawn, strict=True)
    colours = torch.tensor(np.stack(colour), dtype=torch.float32)
    return Draws(
        colours[:, 0], colours[:, 1], colours[:, 2], torch.tensor(np.stack(shift)), torch.from_numpy(np.stack(kept))
    )


def _draw_one(
    rng: np.random.Generator, size: tuple[int, int], probability: float, cutout: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (brightness, saturation, contrast), the shift of rows and columns, and the pixels that are kept."""
    colour, shift, kept = np.array([0.0, 1.0, 1.0]), np.zeros(2, dtype=np.int64), np.ones(size, dtype=bool)
    is_coloured, is_shifted, is_cut = rng.random(3) < probability
    # All seven are always drawn, so that a sample's later numbers do not depend on what was chosen.
    brightness, saturation, contrast, *places = rng.random(7)
    if is_coloured:  # brightness in [−0.5, 0.5], saturation in [0, 2], contrast in [0.5, 1.5]
        colour = np.array([brightness - 0.5, 2 * saturation, contrast + 0.5])
    if is_shifted:
        furthest = [int(side / 8 + 0.5) for side in size]
        shift = np.array([int(n * (2 * f + 1)) - f for n, f in zip(places[:2], furthest, strict=True)])
    if is_cut:
        bounds = []
        for number, side in zip(places[2:], size, strict=True):
            length = int(side * cutout + 0.5)
            first = int(number * (side + 1 - length % 2)) - length // 2  # it may reach over the border
            bounds.append(slice(max(0, first), max(0, first + length)))
        kept[bounds[0], bounds[1]] = False
    return colour, shift, kept


def augmented(images: Float[Tensor, "B 3 H W"], draws: Draws) -> Float[Tensor, "B 3 H W"]:
    """Return the images with these augmentations applied."""
    B, _, H, W = images.shape
    x = images + draws.brightness.view(B, 1, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * draws.saturation.view(B, 1, 1, 1) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * draws.contrast.view(B, 1, 1, 1) + mean
    rows = torch.arange(H, device=x.device) - draws.shift[:, :1]  # B H: where each row comes from
    columns = torch.arange(W, device=x.device) - draws.shift[:, 1:]
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None, :]
    sample = torch.arange(B, device=x.device)[:, None, None]
    x = x.permute(0, 2, 3, 1)[sample, rows.clamp(0, H - 1)[:, :, None], columns.clamp(0, W - 1)[:, None, :]]
    return x.permute(0, 3, 1, 2) * (inside & draws.kept)[:, None]


@dataclass(frozen=True)
class Views:
    """The part of each image that a discriminator with smaller inputs of one size sees.

    A `cropped` image is seen as the crop that starts at `corner` (rows, columns), any other as a whole, made smaller.
    """

    cropped: Bool[Tensor, " B"]
    corner: Int[Tensor, "B 2"]

    def to(self, device: torch.device) -> "Views":
        """Return the same views on a device."""
        return Views(self.cropped.to(device), self.corner.to(device))


def draw_views(rngs: Sequence[np.random.Generator], size: tuple[int, int], target: int) -> Views:
    """Draw a view of an image of `size` (rows, columns) with each generator: a random crop for half of the images."""
    numbers = np.stack([rng.random(3) for rng in rngs])
    room = np.maximum(0, np.array(size) - target)
    corner = (numbers[:, 1:] * (room + 1)).astype(np.int64)
    return Views(torch.from_numpy(numbers[:, 0] < 0.5), torch.from_numpy(corner))


def viewed(images: Float[Tensor, "B 3 H W"], views: Views, target: int) -> Float[Tensor, "B 3 T T"]:
    """Return images of `target` px: larger ones cropped or averaged over areas, smaller ones enlarged bicubically."""
    H, W = images.shape[2:]
    if H == W == target:
        return images
    if min(H, W) < target:
        return F.interpolate(images, size=(target, target), mode="bicubic")
    smaller = F.interpolate(images, size=(target, target), mode="area")
    places = torch.arange(target, device=images.device)
    rows = (views.corner[:, :1] + places)[:, :, None]
    columns = (views.corner[:, 1:] + places)[:, None, :]
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    crops = images.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)
    return torch.where(views.cropped[:, None, None, None], crops, smaller)
