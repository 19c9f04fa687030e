"""Whatever file a person has becomes the right 8-bit RGB picture, or one sentence that names it; tensors and back."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from softvq.data.images import open_image, to_bytes, to_image, to_tensor
from softvq.errors import ImageError


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def patches() -> np.ndarray:
    """Six flat patches, all different, so that lossy formats keep them and no rotation or mirroring maps it on itself.

    Sides are multiples of 16: JPEG's blocks then never cross a patch.
    """
    colours = [[(200, 30, 30), (30, 200, 30), (30, 30, 200)], [(240, 240, 60), (20, 20, 20), (128, 90, 160)]]
    return np.kron(np.array(colours, dtype=np.uint8), np.ones((16, 16, 1), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    image = open_image(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[..., None] / 255
    return colour * alpha + 255 * (1 - alpha)


def assert_one_sentence(error: pytest.ExceptionInfo, name: str) -> None:
    message = str(error.value)
    assert message.startswith(name)
    assert message.endswith(".")
    assert "\n" not in message


# Decoding


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("PPM", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 4),
        ("JPEG", {"quality": 95, "subsampling": 0}, 4),
        ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0}, 4),
    ],
)
def test_a_file_and_its_bytes_give_the_pixels_that_were_saved(tmp_path, form, options, tolerance):
    path = tmp_path / f"picture.{form.lower()}"
    path.write_bytes(encoded(Image.fromarray(patches()), form, **options))
    from_bytes = decoded(path.read_bytes())
    inside = np.s_[4:12, 4:12]  # of the first patch: lossy WebP has colours of half the resolution, which blur at edges
    assert np.abs(from_bytes - patches())[inside].max() <= tolerance
    assert np.abs(from_bytes - patches()).mean() <= tolerance
    for source in (path, str(path)):
        np.testing.assert_array_equal(np.asarray(open_image(source)), from_bytes)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(form):
    first, second = (Image.new("RGB", (20, 10), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    data = encoded(first, form, save_all=True, append_images=[second], **({"lossless": True} if form == "WEBP" else {}))
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2  # else this test shows nothing
    np.testing.assert_array_equal(decoded(data), np.broadcast_to([255, 0, 0], (10, 20, 3)))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_divided_by_257(form):
    values = np.array([[0, 1, 128, 129, 257], [1000, 32767, 65279, 65407, 65535]], dtype=np.uint16)
    expected = np.repeat(np.round(values / 257.0)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(values), form)), expected)


def test_grey_becomes_three_equal_channels():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, axis=2))


def test_one_bit_is_black_and_white():
    bits = np.random.default_rng(0).integers(0, 2, (9, 13)).astype(bool)
    expected = np.repeat(bits[..., None] * 255, 3, axis=2)
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(bits), "PNG")), expected)


def test_a_palette_gives_its_colours():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    image.putdata([2, 0, 1])
    for form in ("PNG", "GIF"):
        np.testing.assert_array_equal(decoded(encoded(image, form))[0], [[7, 8, 9], [10, 20, 30], [200, 100, 50]])


def test_transparency_in_a_palette_is_laid_on_white():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    image.putdata([2, 0, 1])
    data = encoded(image, "PNG", transparency=bytes([255, 51, 0]))  # the alpha of colours 0, 1, 2
    expected = [[255, 255, 255], [10, 20, 30], on_white(np.array([[200, 100, 50]]), np.array([51]))[0]]
    assert np.abs(decoded(data)[0] - np.array(expected)).max() <= 1
    gif = decoded(encoded(image, "GIF", transparency=2))
    np.testing.assert_array_equal(gif[0], [[255, 255, 255], [10, 20, 30], [200, 100, 50]])


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(form):
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (8, 9, 4), dtype=np.uint8)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    # `exact` keeps WebP's colours under transparent pixels: a decoder that just drops alpha would show them.
    data = encoded(Image.fromarray(rgba), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    assert np.abs(decoded(data) - on_white(rgba[..., :3], rgba[..., 3])).max() <= 1


def test_grey_with_alpha_is_laid_on_white():
    la = np.random.default_rng(0).integers(0, 256, (8, 9, 2), dtype=np.uint8)
    data = encoded(Image.fromarray(la, mode="LA"), "PNG")
    assert np.abs(decoded(data) - on_white(np.repeat(la[..., :1], 3, axis=2), la[..., 1])).max() <= 1


def test_a_single_transparent_colour_is_white():
    image = Image.fromarray(patches())
    expected = patches()
    expected[(expected == (30, 200, 30)).all(2)] = 255
    np.testing.assert_array_equal(decoded(encoded(image, "PNG", transparency=(30, 200, 30))), expected)


def test_a_cmyk_jpeg_gives_rgb():
    ink = (51, 102, 204, 25)
    expected = [255 * (1 - c / 255) * (1 - ink[3] / 255) for c in ink[:3]]
    pixels = decoded(encoded(Image.new("CMYK", (32, 16), ink), "JPEG", quality=100))
    assert pixels.shape == (16, 32, 3)
    assert np.abs(pixels - expected).max() <= 3


@pytest.mark.parametrize("beyond", [-3.0, 7.0, np.nan, np.inf])
def test_a_float_tiff_is_taken_as_zero_to_one_and_refused_beyond(beyond):
    values = np.array([[0.0, 0.2], [0.5, 1.0]], dtype=np.float32)
    grey = decoded(encoded(Image.fromarray(values), "TIFF"))[..., 0]
    np.testing.assert_array_equal(grey, [[0, 51], [128, 255]])
    values[1, 0] = beyond
    with pytest.raises(ImageError, match="whose black and white are not known") as error:
        open_image(encoded(Image.fromarray(values), "TIFF"), "a.tif")
    assert_one_sentence(error, "a.tif")


# What EXIF 2.3 says of the stored rows and columns: value -> stored picture of an upright one.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_gives_the_upright_picture(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](patches())))
    upright = decoded(encoded(stored, form, exif=exif, **({"subsampling": 0} if form == "JPEG" else {})))
    assert upright.shape == patches().shape
    assert np.abs(upright - patches()).max() <= (6 if form == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_does_not_cost_the_picture(exif):
    assert decoded(encoded(Image.fromarray(patches()), "JPEG", exif=exif)).shape == patches().shape


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3000, 1), (1, 3000), (1999, 3)])
def test_extreme_shapes_are_read_as_they_are(width, height):
    image = noise(width, height)
    np.testing.assert_array_equal(decoded(encoded(image, "PNG")), np.asarray(image))


# What cannot be read


def _unreadable() -> dict[str, bytes]:
    image = noise(40, 30)
    whole = {form: encoded(image, form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}
    damaged = {f"half.{form.lower()}": data[: len(data) // 2] for form, data in whole.items()}
    damaged |= {f"begun.{form.lower()}": data[:20] for form, data in whole.items()}
    rubbish = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes()
    flipped = bytearray(whole["PNG"])
    flipped[len(flipped) // 2] ^= 0xFF  # whole, but its check sum is wrong
    texts = {"empty.png": b"", "text.png": b"not an image\n", "rubbish.jpg": rubbish, "flipped.png": bytes(flipped)}
    return damaged | texts


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(("name", "data"), _unreadable().items(), ids=_unreadable())
def test_an_unreadable_file_is_one_sentence_that_names_it(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError) as of_path:
        open_image(path)
    assert_one_sentence(of_path, str(path))
    with pytest.raises(ImageError) as of_bytes:
        open_image(data, name)
    assert_one_sentence(of_bytes, name)


def test_the_reason_is_the_same_every_time():
    """Reasons are stored with checkpoints and shown to people: no memory addresses in them."""
    with pytest.raises(ImageError) as error:
        open_image(b"not an image", "text.png")
    assert "0x" not in str(error.value)


def test_missing_files_and_folders_are_named(tmp_path):
    for path, what in ((tmp_path / "none.png", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(ImageError, match=what) as error:
            open_image(path)
        assert_one_sentence(error, str(path))


def test_bytes_without_a_name_are_called_the_image():
    with pytest.raises(ImageError) as error:
        open_image(b"")
    assert_one_sentence(error, "the image")


@pytest.mark.parametrize("as_bytes", [True, False])
def test_far_too_many_pixels_are_refused(tmp_path, monkeypatch, as_bytes):
    path = tmp_path / "bomb.png"
    noise(30, 20).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)  # Pillow raises above twice its limit
    with pytest.raises(ImageError, match="has more pixels") as error:
        open_image(path.read_bytes(), "bomb.png") if as_bytes else open_image(path)
    assert_one_sentence(error, "bomb.png" if as_bytes else str(path))


def test_a_picture_just_over_pillows_limit_is_still_read(monkeypatch):
    image = noise(30, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # between once and twice Pillow only warns
        np.testing.assert_array_equal(decoded(encoded(image, "PNG")), np.asarray(image))


# Tensors


def test_tensors_are_channels_first_in_minus_one_to_one():
    image = Image.fromarray(np.array([[[0, 255, 51], [255, 0, 204]]], dtype=np.uint8))
    tensor = to_tensor(image)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, torch.tensor([[[-1.0, 1.0]], [[1.0, -1.0]], [[-0.6, 0.6]]]))
    assert tensor.min() == -1
    assert tensor.max() == 1


def test_eight_bit_pictures_come_back_exactly():
    levels = np.arange(256 * 3, dtype=np.int64).reshape(16, 16, 3) % 256
    image = Image.fromarray(levels.astype(np.uint8))
    assert to_image(to_tensor(image)).tobytes() == image.tobytes()
    for dtype in (torch.float64, torch.float16):
        assert to_image(to_tensor(image).to(dtype)).tobytes() == image.tobytes()


def test_bytes_are_rounded_and_clamped():
    values = torch.tensor([-5.0, -1.0, -0.999, 0.0, 0.9999, 1.0, 5.0]).view(1, 7, 1).expand(2, 3, 7, 1)
    expected = torch.tensor([0, 0, 0, 128, 255, 255, 255], dtype=torch.uint8)  # 127.5 rounds to even: 128
    result = to_bytes(values.requires_grad_())
    assert result.shape == (2, 3, 7, 1)
    assert torch.equal(result, expected.view(1, 7, 1).expand(2, 3, 7, 1))
