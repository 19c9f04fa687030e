"""How often `softvq reconstruct` wrongly says, or fails to say, that a tokenizer does not know an image.

    python benchmarks/domain.py --write                       # compute a bundled model's limits again, and measure
    python benchmarks/domain.py --unknown photographs=FOLDER cifar-10=test.parquet --other plots=FOLDER

The limits are those of the model's own validation images. Rows are images like those it knows, of which none should be
named (the bundled emoji, and the same as people have them: as JPEG, smaller, padded), images of --unknown, which should
all be named, also with what is hard about photographs (cut out on white, at night, blurred, padded), and images of
--other, of which neither is asked. No picture is kept.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter
from record import RESULTS, record
from torch import Tensor

from softvq import Tokenizer, hub
from softvq.data.images import center_crop, fit, to_tensor
from softvq.data.loader import ordered_batches
from softvq.data.opening import open_source
from softvq.data.order import evenly
from softvq.evaluation.comparison import domain_limits, joined, looks, outside_of_domain
from softvq.figures import table
from softvq.files import read_json, write_json

Edit = Callable[[Image.Image], Image.Image]
WHITE = (255, 255, 255)


def jpeg(quality: int, size: int | None = None) -> Edit:
    """Return a function that stores an image as JPEG, at `size` px where that is given."""

    def edit(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        (center_crop(image, size) if size else image).save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return edit


def cut_out(image: Image.Image) -> Image.Image:
    """Return the middle of an image as an ellipse on white, as in a catalogue."""
    image, mask = center_crop(image, 256), Image.new("L", (256, 256))
    ImageDraw.Draw(mask).ellipse((25, 40, 231, 216), fill=255)
    return Image.composite(image, Image.new("RGB", image.size, WHITE), mask.filter(ImageFilter.GaussianBlur(1)))


def at_night(image: Image.Image) -> Image.Image:
    """Return an image as if it were taken in the dark."""
    return image.point([round(255 * 0.35 * (level / 255) ** 2.2) for level in range(256)] * 3)


def widened(image: Image.Image) -> Image.Image:
    """Return an image with white at both sides, which `--fit pad` makes smaller."""
    wide = Image.new("RGB", (image.width * 3 // 2, image.height), WHITE)
    wide.paste(image, (image.width // 4, 0))
    return wide


def blurred(image: Image.Image) -> Image.Image:
    """Return an image out of focus, by a 64th of its side."""
    return center_crop(image, 512).filter(ImageFilter.GaussianBlur(8))


def shrunk(size: int) -> Edit:
    """Return a function that makes an image smaller than the model's."""
    return lambda image: image.resize((size, size), Image.Resampling.LANCZOS)


KNOWN = {  # name: (what is done to an emoji, how it becomes a square)
    "JPEG 75, 256 px": (jpeg(75), "crop"),
    "JPEG 40, 256 px": (jpeg(40), "crop"),
    "JPEG 75, 64 px": (jpeg(75, 64), "crop"),
    "72 px": (shrunk(72), "crop"),
    "32 px": (shrunk(32), "crop"),
    "padded": (widened, "pad"),
    "resized": (lambda image: image, "resize"),
}
UNKNOWN = {
    "padded": (lambda image: image, "pad"),
    "night": (at_night, "crop"),
    "blurred": (blurred, "crop"),
    "cut out on white": (cut_out, "crop"),
}


def described(data: str, size: int, most: int) -> dict[str, Tensor]:
    """Return the descriptions of images, at most so many, evenly."""
    source = open_source(data)
    chosen = evenly(most, len(source.names))
    return joined([looks(b.images) for b in ordered_batches(source, size=size, batch_size=64, chosen=chosen)])


def edited(data: str, size: int, most: int, edit: Edit, how: str) -> dict[str, Tensor]:
    """Return the descriptions of images after something was done to them."""
    source = open_source(data)
    images = (source.image(number)[0] for number in evenly(most, len(source.names)))
    return joined([looks(to_tensor(fit(edit(image), size, how))[None]) for image in images])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="softvq-emoji-64", help="a tokenizer's name or folder")
    parser.add_argument("--known", nargs="*", default=["emoji-train", "emoji-dev", "emoji-val"], help="like its own")
    parser.add_argument("--unknown", nargs="*", default=[], metavar="NAME=DATA", help="photographs")
    parser.add_argument("--other", nargs="*", default=[], metavar="NAME=DATA", help="neither")
    parser.add_argument("-n", type=int, default=10_000, help="images of each at most")
    parser.add_argument("--hard", type=int, default=600, help="images of each that something is done to, at most")
    parser.add_argument("--write", action="store_true", help="write the limits into the bundled model")
    parser.add_argument("--out", type=Path, default=RESULTS / "domain.json")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_pretrained(options.model)
    size, domain = tokenizer.config.image_size, tokenizer.about["domain"]
    limits = domain_limits(described(domain, size, options.n))
    if options.write:
        file = hub.BUNDLED / options.model / hub.CONFIG
        content = read_json(file)
        content["about"]["domain_limits"] = limits
        write_json(file, content)
    rows = []

    def add(name: str, wanted: str, found: dict[str, Tensor], by: dict[str, list[float]] = limits) -> None:
        outside = outside_of_domain(by, found)
        rows.append({"data": name, "wanted": wanted, "images": len(outside), "named": sum(map(bool, outside))})

    for data in options.known:
        add(data, "none", found := described(data, size, options.n))
        if data != domain and (others := domain_limits(found)):
            add(f"{domain}, by the limits of {data}", "none", described(domain, size, options.n), others)
    for name, (edit, how) in KNOWN.items():
        add(f"{domain}, {name}", "none", edited(domain, size, options.hard, edit, how))
    for name, _, data in (one.partition("=") for one in options.unknown):
        add(name, "all", described(data, size, options.n))
        for hard, (edit, how) in UNKNOWN.items():
            add(f"{name}, {hard}", "all", edited(data, size, options.hard, edit, how))
    for name, _, data in (one.partition("=") for one in options.other):
        add(name, "either", described(data, size, options.n))
    record(options.out, rows, model=options.model, fingerprint=tokenizer.fingerprint, limits=limits)
    cells = [
        (r["data"], r["wanted"], f"{r['images']:,}", f"{r['named']:,}", f"{100 * r['named'] / r['images']:.1f}")
        for r in rows
    ]
    print(table([("images", "to be named", "number", "named", "%"), *cells]))


if __name__ == "__main__":
    main()
