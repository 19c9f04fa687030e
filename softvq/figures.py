"""Pictures for people: grids of images, original | reconstruction | error, and matplotlib's figures."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from softvq.data.images import to_bytes
from softvq.errors import ConfigError, SoftVQError
from softvq.files import atomic

_GAP = 4
_HEADER = 18
_LETTERS = 15  # the height of class names, in pixels
_MARGIN = 160  # the widest class name, in pixels
_WIDEST = 10  # images of a class in a line


def error_map(images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Return the absolute error averaged over colours, times four: white is 0, black a quarter of the range."""
    error = (images.clamp(-1, 1) - targets).abs().mean(1, keepdim=True) / 2
    return (1 - 2 * (4 * error).clamp(0, 1)).expand_as(images)


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # by extension


def format_of(path: Path) -> str:
    """Return Pillow's name of the format that a picture's extension says; raise `ConfigError` for any other."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: a picture is written as {', '.join(FORMATS)}.", setting="out")
    return FORMATS[path.suffix.lower()]


def grid(columns: Sequence[UInt8[Tensor, "B 3 H W"]], titles: Sequence[str], rows: int | None = None) -> Image.Image:
    """Return batches side by side, a column each, in panels of `rows` rows (default: about a square picture)."""
    B, _, H, W = columns[0].shape
    rows = rows or max(1, round((B * len(columns) * W / H) ** 0.5))
    panels = -(-B // min(rows, B))
    rows = -(-B // panels)
    cell_w, cell_h = W + _GAP, H + _GAP
    panel_w = len(columns) * cell_w + 3 * _GAP
    canvas = np.full((_HEADER + rows * cell_h, panels * panel_w - 3 * _GAP, 3), 255, dtype=np.uint8)
    for index in range(B):
        row, panel = divmod(index, panels)
        for number, column in enumerate(columns):
            top, left = _HEADER + row * cell_h, panel * panel_w + number * cell_w
            canvas[top : top + H, left : left + W] = column[index].permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for panel in range(panels):
        for number, title in enumerate(titles):
            left = panel * panel_w + number * cell_w
            draw.text((left, 2), _fitting(title, W, font), fill=(0, 0, 0), font=font)
    return image


def _fitting(title: str, width: int, font: Any) -> str:
    """Return the longest beginning of a title that fits into a width in pixels."""
    while title and font.getlength(title) > width:
        title = title[:-1]
    return title


def class_grid(images: UInt8[Tensor, "N 3 H W"], classes: Sequence[str]) -> Image.Image:
    """Return images in rows, a row a class in the order in which the classes come first, with the class beside it.

    A class of more than ten images takes several lines. The images stand line by line in their order, each with its
    class written above it, where most classes have one image only. `classes` are the name of each image's class, empty
    where it has none.
    """
    N, _, H, W = images.shape
    classes = [name.encode("utf-8", "replace").decode() for name in classes]  # of folders that are no UTF-8
    names = list(dict.fromkeys(classes))
    if names in ([], [""]):
        return grid([images], ("",), rows=max(1, round(N**0.5)))
    if 2 * len(names) > N:
        return _captioned(images, classes)
    rows: list[tuple[str, list[int]]] = []
    for name in names:
        own = [number for number, one in enumerate(classes) if one == name]
        lines = [own[first : first + _WIDEST] for first in range(0, len(own), _WIDEST)]
        rows += [(name if line == 0 else "", numbers) for line, numbers in enumerate(lines)]
    font = ImageFont.load_default(_LETTERS)
    texts = [[_fitting(line, _MARGIN, font) for line in textwrap.wrap(name, 18)[:3]] for name, _ in rows]
    margin = 3 * _GAP + round(max((font.getlength(line) for text in texts for line in text), default=0))
    widest = max(len(numbers) for _, numbers in rows)
    canvas = Image.new("RGB", (margin + widest * (W + _GAP), len(rows) * (H + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for row, (text, (_, numbers)) in enumerate(zip(texts, rows, strict=True)):
        top = _GAP + row * (H + _GAP)
        draw.multiline_text((_GAP, top + H // 2), "\n".join(text), fill="black", font=font, anchor="lm")
        for column, number in enumerate(numbers):
            canvas.paste(_picture(images[number]), (margin + column * (W + _GAP), top))
    return canvas


def _captioned(images: UInt8[Tensor, "N 3 H W"], captions: Sequence[str]) -> Image.Image:
    """Return images line by line, each below its caption."""
    N, _, H, W = images.shape
    columns = max(1, round(N**0.5))
    canvas = Image.new("RGB", (columns * (W + _GAP), -(-N // columns) * (H + _HEADER + _GAP)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for number, caption in enumerate(captions):
        top, left = number // columns * (H + _HEADER + _GAP), number % columns * (W + _GAP)
        draw.text((left, top + 2), _fitting(caption, W, font), fill="black", font=font)
        canvas.paste(_picture(images[number]), (left, top + _HEADER))
    return canvas


def _picture(image: UInt8[Tensor, "3 H W"]) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def enlarge(images: UInt8[Tensor, "B 3 H W"], side: int = 128) -> UInt8[Tensor, "B 3 h w"]:
    """Return small images enlarged by a whole factor of pixel repetition, for people to see; large ones as they are."""
    factor = max(1, side // max(images.shape[2:]))
    return torch.repeat_interleave(torch.repeat_interleave(images, factor, dim=2), factor, dim=3)


def comparison(images: Float[Tensor, "B 3 H W"], outputs: Float[Tensor, "B 3 H W"]) -> Image.Image:
    """Return a picture of original | reconstruction | error, for images in [-1, 1]."""
    columns = [enlarge(to_bytes(x)) for x in (images, outputs, error_map(outputs, images))]
    return grid(columns, ("original", "reconstruction", "error x 4"))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write an image file atomically; its extension says the format."""
    with atomic(path) as temporary:
        picture.save(temporary, format=format_of(path), **({"quality": 95} if format_of(path) != "PNG" else {}))


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing to files; raise `SoftVQError` when it is not installed."""
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


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return rows of text as columns, the first `left` of them flush left and the others flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = (
        [
            f"{cell:<{width}}" if n < left else f"{cell:>{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return "\n".join("  ".join(row).rstrip() for row in cells)
