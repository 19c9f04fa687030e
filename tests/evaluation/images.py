"""Images that evaluations are tried on, and small parts and features for them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from softvq.data.images import fit, open_image
from softvq.data.loader import ordered_batches
from softvq.data.opening import open_source
from softvq.data.sources import Folder
from softvq.evaluation import measuring
from softvq.evaluation.parts import Parts
from softvq.pretrained import inception

COUNT, SIZE = 12, 64
COLOURS = {"blue": (20, 60, 220), "green": (20, 180, 60), "red": (220, 40, 30)}


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Parts of five images; and 40 spatial features: those of 2,023 take seconds, tests/pretrained has them."""
    activations = inception.Inception.activations

    def fewer(self: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pool, spatial = activations(self, images)
        return pool, spatial[:, :40]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception.Inception, "activations", fewer)
        patch.setattr(measuring, "Parts", partial(Parts, size=5))
        yield


def lay(folder: Path, numbers: range, size: int = 80) -> Path:
    """Those of the bundled validation images, larger than the model's."""
    source = open_source("emoji-val")
    folder.mkdir(parents=True)
    for number in numbers:
        fit(open_image(source.read(number * 20)), size).save(folder / f"{number:02}.png")
    return folder


def draw(folder: Path, each: int, seed: int, size: int = 64) -> Path:
    """`each` images of a disc somewhere, in each of three colours: its class."""
    rng = np.random.default_rng(seed)
    for colour, value in COLOURS.items():
        (folder / colour).mkdir(parents=True)
        for number in range(each):
            picture = Image.new("RGB", (size, size), "white")
            x, y, radius = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.1, 0.3)
            corners = [size * (centre + sign * radius) for sign in (-1, 1) for centre in (x, y)]
            ImageDraw.Draw(picture).ellipse(corners, value)
            picture.save(folder / colour / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay(tmp_path_factory.mktemp("images") / "real", range(COUNT))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As if a generator had made them."""
    return lay(tmp_path_factory.mktemp("images") / "other", range(1, 14), SIZE)


def pixels(folder: Path) -> torch.Tensor:
    return next(ordered_batches(Folder(folder), size=SIZE, batch_size=100)).images


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every figure to 1e-4; KID, a difference of sums a hundred times as large, to 1e-4 of those; a distance to itself
    is the square root of what rounding leaves."""
    assert found.keys() == expected.keys()
    least = {"kid": 1e-4, "kid_std": 1e-4, "nearest": 1e-6}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=least.get(name, 1e-9)), name
