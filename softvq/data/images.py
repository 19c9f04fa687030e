"""Image files to tensors: decoding, ADM's crops, and [-1, 1].

Every image becomes 8-bit RGB: EXIF orientation applied, transparency laid on white, deep grey scaled by the file's own
bit depth and photometric sense, palettes and CMYK converted. An image that cannot be read, or whose black and white are
not known, raises `ImageError`, one sentence that names the file. What a file says beside its pixels never costs the
image.
"""

import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.random import Generator
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from softvq.errors import ConfigError, ImageError, is_number

Fit = Literal["crop", "resize", "pad"]  # how an image becomes a square
_BEYOND = 10.0  # the largest size of a value that is still taken for a decoded image's
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # Pillow's modes of grey beyond 8 bits
_KIND, _SIZE, _BITS, _PHOTOMETRIC, _SIGN = 254, (256, 257), 258, 262, 339  # tags of TIFF
_PNG = b"\x89PNG\r\n\x1a\n"


def open_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Decode a file, or the bytes of one, to 8-bit RGB (the first frame of an animation)."""
    name = name or (str(source) if not isinstance(source, bytes) else "the image")

    def decode(image: Image.Image) -> Image.Image:
        if _tags(image).get(_KIND) == 1:
            raise ImageError(f"{name} begins with a small preview, as raw files of cameras do; develop it to an image.")
        _scale_clear(image, name)
        image.load()
        return to_rgb(_upright(image), name, image)

    try:
        return _read(source, decode)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist.") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not an image.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has more pixels than an image should; resize it first.") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image of a kind that can be read.") from None
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error and more
        raise ImageError(f"{name} is not an image that can be read, or is truncated ({error}).") from error


def size_of(data: bytes, name: str) -> tuple[int, int]:
    """Return the width and height of an encoded image without decoding its pixels; `ImageError` when it is none."""

    def look(image: Image.Image) -> tuple[int, int]:
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)  # by a quarter
        except Exception:  # Pillow raises many kinds on damaged metadata
            turned = False
        width, height = (_tags(image).get(tag, side) for tag, side in zip(_SIZE, image.size, strict=True))
        return (height, width) if turned else (width, height)

    try:
        return _read(data, look)
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ImageError(f"{name} is not an image that can be read ({error}).") from error


def _read(source: str | Path | bytes, use: Callable[[Image.Image], Any]) -> Any:
    """Return what `use` makes of an opened image; one that fails is tried again without what is beside its pixels."""
    try:
        with (
            warnings.catch_warnings(),
            Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image,
        ):
            warnings.simplefilter("ignore")  # of odd metadata: the pixels are what counts
            return use(image)
    except (ImageError, FileNotFoundError, IsADirectoryError, Image.DecompressionBombError):
        raise
    except Exception:  # on damaged files Pillow raises OSError, SyntaxError, struct.error and more
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if (plain := _without_metadata(data)) == data:
            raise
        with warnings.catch_warnings(), Image.open(io.BytesIO(plain)) as image:
            warnings.simplefilter("ignore")
            return use(image)


def _tags(image: Image.Image) -> Any:
    """Return the tags of a TIFF, of other images an empty dictionary."""
    return getattr(image, "tag_v2", {})


def _scale_clear(image: Image.Image, name: str) -> None:
    """Give a PNG's transparent colour the scale of its pixels: Pillow makes 8 bits of them and leaves the colour."""
    raw, clear = (image.tile[0][3] if getattr(image, "tile", None) else ""), image.info.get("transparency")
    if isinstance(clear, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
    if isinstance(clear, tuple) and raw == "RGB;16B":
        raise ImageError(f"{name} has a transparent colour of 16 bits, which is not read; store transparency as alpha.")


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG or a JPEG with those parts alone that its pixels need; other data as it is.

    Pillow refuses parts that are large or damaged. The orientation stays.
    """
    if data.startswith(_PNG):
        return _plain_png(data)
    return _plain_jpeg(data) if data.startswith(b"\xff\xd8\xff") else data


def _plain_jpeg(data: bytes) -> bytes:
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xFF):  # up to the pixels
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at:end]
        is_extra = segment[1] == 0xFE or 0xE0 <= segment[1] < 0xF0  # comments, and what applications add
        if not is_extra or segment[4:10] == b"Exif\0\0" or (segment[4:9] == b"Adobe" and len(segment) >= 16):
            kept.append(segment)
        at = end
    return b"".join(kept) + data[at:]


def _plain_png(data: bytes) -> bytes:
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk, at = data[at : at + 12 + length], at + 12 + length
        if not kind[0] & 32 or kind in (b"tRNS", b"eXIf"):  # critical chunks begin with a capital
            sound = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
            kept += [chunk] if sound or kind != b"eXIf" else []
    return b"".join(kept)


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF says; EXIF that cannot be read turns nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises many kinds on damaged metadata
        return image


def as_image(image: Any, name: str = "the image", value_range: tuple[float, float] | None = None) -> Image.Image:
    """Return 8-bit RGB of an image as a path, a PIL image, an array or a tensor.

    Arrays are 8-bit (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), tensors 8-bit (3, H, W) or (1, H, W). Floating-point
    numbers need `value_range`, black and white. `ImageError` names an image that is none of these.
    """
    if isinstance(image, str | Path):
        return open_image(Path(os.path.expanduser(image)))
    if isinstance(image, Image.Image):
        _scale_clear(image, name)
        return to_rgb(_upright(image), name, image)
    if not isinstance(image, np.ndarray | Tensor):
        raise ImageError(f"{name} must be a PIL image, a path, an array or a tensor, not {a_kind(image)}.")
    given = image
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ImageError(f"{name} must be a tensor (3, H, W), not {tuple(image.shape)}.")
        image = image.detach().permute(1, 2, 0).cpu()
        array = (image.float() if image.is_floating_point() else image).numpy()
    else:
        array = image
    if np.issubdtype(array.dtype, np.floating):
        array = _scaled(array, name, value_range)
    colours = array.shape[2] if array.ndim == 3 else 1 if array.ndim == 2 else 0
    if array.dtype != np.uint8 or colours not in (1, 3, 4):
        kind = str(given.dtype).removeprefix("torch.")
        wanted = "(3, H, W) as a tensor" if isinstance(given, Tensor) else "(H, W, 3) as an array"
        raise ImageError(f"{name} must be 8-bit, {wanted}, not {kind} of {tuple(given.shape)}.")
    array = np.ascontiguousarray(array.squeeze(2) if array.shape[2:] == (1,) else array)
    return to_rgb(Image.fromarray(array))


def _scaled(array: np.ndarray, name: str, value_range: tuple[float, float] | None) -> np.ndarray:
    if value_range is None:
        raise ImageError(
            f"{name} is of floating-point numbers, whose black and white cannot be known: give 8-bit images, or "
            "their value_range, (0, 1) or (-1, 1), where one can be given."
        )
    black, white = value_range
    if not (is_number(black) and is_number(white) and black != white):
        raise ConfigError(f"value_range must be two numbers that differ, black and white, not {value_range}.")
    scaled = (array.astype(np.float64) - black) / (white - black)
    if not (np.isfinite(scaled).all() and scaled.min() >= -1e-3 and scaled.max() <= 1 + 1e-3):
        raise ImageError(
            f"{name} has numbers from {array.min():g} to {array.max():g}, outside of {black:g} to {white:g}."
        )
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def a_kind(value: Any) -> str:
    """Return the kind of a value in words for a sentence: "a PIL image", "a torch Tensor"."""
    name = f"{type(value).__module__.partition('.')[0]} {type(value).__name__}"
    return "a PIL image" if isinstance(value, Image.Image) else f"a {name.removeprefix('builtins ')}"


def to_rgb(image: Image.Image, name: str = "the image", opened: Image.Image | None = None) -> Image.Image:
    """Return an image as 8-bit RGB: transparency on white, deeper grey scaled as its file says.

    `opened` is the image as it was opened, which still knows its file's format and tags. Raise `ImageError` that names
    the image where its black and white are not known.
    """
    opened = opened or image
    if image.mode in _DEEP or (image.mode == "L" and _is_signed(opened)):
        return Image.fromarray(_shallow(image, name, opened)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _shallow(image: Image.Image, name: str, opened: Image.Image) -> np.ndarray:
    """Return grey of more than 8 bits as 8 bits; what a PNG declares transparent is white."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1):
            raise ImageError(
                f"{name} is of floating-point numbers from {values.min():g} to {values.max():g}, whose black and white "
                "are not known; scale them to [0, 1], or store 8 bits."
            )
        grey = np.rint(values.astype(np.float64) * 255)
    else:
        white = _white(name, opened)
        values = values.astype(np.int64).clip(0, white)
        grey = np.rint(values / 257) if white == 65535 else values * 255 // white
    if _tags(opened).get(_PHOTOMETRIC) == 0:  # white is zero
        grey = 255 - grey
    if isinstance(clear := image.info.get("transparency"), int):
        grey = np.where(values == clear, 255, grey)
    return grey.astype(np.uint8)


def _is_signed(opened: Image.Image) -> bool:
    """Return True when an image's file says that its numbers have a sign, as FITS does of whole ones."""
    return (opened.format == "FITS" and opened.mode != "L") or _tags(opened).get(_SIGN, (1,))[0] == 2


def _white(name: str, opened: Image.Image) -> int:
    """Return the whitest value of whole-number grey: by its TIFF's bits a sample, else of 16 bits."""
    bits, signed = _tags(opened).get(_BITS, (16,))[0], _is_signed(opened)
    if bits > 16 or signed or (opened.mode == "I" and opened.format not in ("PNG", "PPM")):
        kind = "signed" if signed else f"{max(bits, 32)}-bit"
        raise ImageError(
            f"{name} is of {kind} grey, whose black and white are not known; store it with 8 or 16 bits without sign."
        )
    return 2**bits - 1


@dataclass(frozen=True)
class Augment:
    """The augmentation of images in training: a crop and a flip.

    `crop`: `center` or `random`, both as ADM does; `min_scale`…1 is the range of the random crop's side relative to the
    image's short side; `flip` mirrors half of the images.
    """

    crop: Literal["center", "random"] = "random"
    min_scale: float = 0.8
    flip: bool = True

    def __post_init__(self):
        if not 0.1 <= self.min_scale <= 1:  # smaller crops would enlarge an image tenfold and more
            raise ValueError(f"min_scale must be in [0.1, 1], not {self.min_scale}")

    def __call__(self, image: Image.Image, size: int, rng: Generator) -> Image.Image:
        """Return a `size` × `size` view, a function of the image and the random numbers alone."""
        random = self.crop == "random"
        image = random_crop(image, size, rng, self.min_scale) if random else center_crop(image, size)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Return ADM's centre crop: halved by box averages while at least twice the size, then bicubic, then cut."""
    image = _short_side_to(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: Image.Image, size: int, rng: Generator, min_scale: float = 0.8) -> Image.Image:
    """Return ADM's random crop: a random square of an image with a random short side.

    The short side becomes a length in [size, size / min_scale].
    """
    image = _short_side_to(image, int(rng.integers(size, math.ceil(size / min_scale) + 1)))
    left = int(rng.integers(image.width - size + 1))
    top = int(rng.integers(image.height - size + 1))
    return image.crop((left, top, left + size, top + size))


def _short_side_to(image: Image.Image, size: int) -> Image.Image:
    """Return an image resized as ADM does it, so that its short side is `size`.

    An image longer than 16 times its short side keeps only its middle, so that enlarging a thin line does not take
    gigabytes.
    """
    if max(image.size) > (longest := 16 * min(image.size)):
        left, top = (max(0, side - longest) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def fit(image: Image.Image, size: int, how: Fit = "crop") -> Image.Image:
    """Return a `size` × `size` image from any: `crop` is ADM's centre crop, `resize` stretches, `pad` adds white."""
    if how == "crop":
        return center_crop(image, size)
    if how == "resize":
        return image.resize((size, size), Image.Resampling.LANCZOS)
    if how != "pad":
        raise ImageError(f"images are fitted by crop, resize or pad, not {how!r}.")
    return ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color=(255, 255, 255))


def to_tensor(image: Image.Image) -> Float[Tensor, "3 H W"]:
    """Return an 8-bit RGB image as a float32 tensor in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32).div_(127.5).sub_(1.0)


def to_bytes(images: Float[Tensor, "*B 3 H W"]) -> UInt8[Tensor, "*B 3 H W"]:
    """Return images in [-1, 1] as clamped 8-bit ones, 0 … 255; `ImageError` when one of their numbers is not finite."""
    scaled = images.detach().float().add(1.0).mul(127.5)
    is_known = type(scaled) is Tensor and not torch.compiler.is_compiling()  # see `check_range`
    if is_known and not scaled.sum().isfinite() and not scaled.isfinite().all():  # a sum costs least
        raise ImageError("the images are not finite: NaN and Inf are no colours, and what made them has failed.")
    return scaled.round().clamp(0, 255).to(torch.uint8)


def to_image(image: Float[Tensor, "3 H W"]) -> Image.Image:
    """Return one tensor in [-1, 1] as an 8-bit RGB image."""
    return Image.fromarray(to_bytes(image).permute(1, 2, 0).cpu().numpy())


def check_range(images: Any) -> None:
    """Raise `ImageError` for images that are not in [-1, 1], such as those from 0 to 255.

    Decoded images reach a little beyond it and may be encoded again.
    """
    if torch.compiler.is_compiling() or type(images) is not Tensor or not images.numel():
        return  # tensors without contents, by which a run is planned, have no range
    low, high = (float(bound) for bound in images.aminmax())
    if not -_BEYOND <= low <= high <= _BEYOND:
        raise ImageError(f"images must be in [-1, 1], not from {low:g} to {high:g}.")
