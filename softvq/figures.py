"""Pictures people look at: grids of images, original | reconstruction | error, and matplotlib's figures."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from softvq.data.images import to_bytes
from softvq.errors import SoftVQError
from softvq.files import atomic

_GAP = 4
_HEADER = 18


def error_map(images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """The absolute error averaged over colours, four times enlarged: white is 0, black a quarter of the range."""
    error = (images.clamp(-1, 1) - targets).abs().mean(1, keepdim=True) / 2
    return (1 - 2 * (4 * error).clamp(0, 1)).expand_as(images)


def grid(columns: Sequence[UInt8[Tensor, "B 3 H W"]], titles: Sequence[str], rows: int | None = None) -> Image.Image:
    """Several batches side by side, a column each, in panels of `rows` rows (default: about a square picture)."""
    B, _, H, W = columns[0].shape
    rows = rows or max(1, round((B * len(columns) * W / H) ** 0.5))
    panels = -(-B // min(rows, B))
    rows = -(-B // panels)  # as equal panels as can be
    cell_w, cell_h = W + _GAP, H + _GAP
    panel_w = len(columns) * cell_w + 3 * _GAP
    canvas = np.full((_HEADER + rows * cell_h, panels * panel_w - 3 * _GAP, 3), 255, dtype=np.uint8)
    for index in range(B):
        panel, row = divmod(index, rows)
        for number, column in enumerate(columns):
            top, left = _HEADER + row * cell_h, panel * panel_w + number * cell_w
            canvas[top : top + H, left : left + W] = column[index].permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for panel in range(panels):
        for number, title in enumerate(titles):
            left = panel * panel_w + number * cell_w
            draw.text((left, 2), _fitting(draw, title, W), fill=(0, 0, 0), font=ImageFont.load_default())
    return image


def _fitting(draw: ImageDraw.ImageDraw, title: str, width: int) -> str:
    """The longest beginning of a title that fits above its column."""
    while title and draw.textlength(title, font=ImageFont.load_default()) > width:
        title = title[:-1]
    return title


def enlarge(images: UInt8[Tensor, "B 3 H W"], side: int = 128) -> UInt8[Tensor, "B 3 h w"]:
    """Small images by a whole factor of pixel repetition, so that a person sees them; large ones as they are."""
    factor = max(1, side // max(images.shape[2:]))
    return torch.repeat_interleave(torch.repeat_interleave(images, factor, dim=2), factor, dim=3)


def comparison(images: Float[Tensor, "B 3 H W"], outputs: Float[Tensor, "B 3 H W"]) -> Image.Image:
    """Return a picture of original | reconstruction | error, for images in [-1, 1]."""
    columns = [enlarge(to_bytes(x)) for x in (images, outputs, error_map(outputs, images))]
    return grid(columns, ("original", "reconstruction", "error x 4"))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write an image file atomically; the extension says the format."""
    with atomic(path) as temporary:
        picture.save(temporary, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing to files; `SoftVQError` where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise SoftVQError("figures need a package: pip install 'softvq[plots]'.") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def rendered(figure: Any) -> Image.Image:
    """Return a matplotlib figure as a picture; the figure is closed."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=150)
    pyplot().close(figure)
    picture = Image.open(memory)
    picture.load()
    return picture
