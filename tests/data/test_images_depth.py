"""Grey values by the file's own depth and sense, transparency by its own scale; what is beside pixels costs nothing."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from softvq.data.images import as_image, open_image, size_of
from softvq.errors import ImageError
from tests.data.test_images import encoded


def tiff(values: list[int], bits: int, photometric: int = 1, kind: int = 1, **more: int) -> bytes:
    """A TIFF of one row, as the standard has it; `kind` is the sample format: whole, signed, float."""
    packed = sum(v << bits * (len(values) - 1 - i) for i, v in enumerate(values)) << (-bits * len(values)) % 8
    row = packed.to_bytes(-(-bits * len(values) // 8), "big") if bits == 12 else b""
    row = row or b"".join((v % 2**bits).to_bytes(bits // 8, "little") for v in values)
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(row)}
    tags |= {339: kind} | {int(tag[1:]): value for tag, value in more.items()}
    row += b"\0" * (len(row) % 2)
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(row)) + row + struct.pack("<H", len(tags)) + entries + bytes(4)


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(row: bytes, width: int, bits: int, colour: int = 0, *extra: bytes, after: bytes = b"") -> bytes:
    """A PNG of one row; `colour` is 0 for grey, 2 for RGB, 4 for grey with alpha."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + after + chunk(b"IEND", b"")


def jpeg(*segments: bytes) -> bytes:
    data = encoded(Image.new("RGB", (32, 16), (200, 30, 30)), "JPEG", quality=95)
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def greys(data: bytes) -> list[int]:
    pixels = np.asarray(open_image(data))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


FLOATS = np.array([0, 0.5, 1, 0.25], dtype=np.float32).view(np.uint32).tolist()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff([0, 2048, 4095, 1000], 12), [0, 127, 255, 62]),
        (tiff([0, 32768, 65535, 1000], 16), [0, 128, 255, 4]),
        (tiff([0, 32768, 65535, 1000], 16, photometric=0), [255, 127, 0, 251]),
        (tiff([0, 128, 255, 9], 8), [0, 128, 255, 9]),
        (tiff([0, 128, 255, 9], 8, photometric=0), [255, 127, 0, 246]),
        (tiff(FLOATS, 32, kind=3), [0, 128, 255, 64]),
        (tiff(FLOATS, 32, photometric=0, kind=3), [255, 127, 0, 191]),
        (b"P5\n3 1\n1023\n" + struct.pack(">3H", 0, 512, 1023), [0, 128, 255]),
        (b"P5\n3 1\n100\n\0\x32\x64", [0, 128, 255]),
        (b"P2\n4 1\n15\n0 8 15 3\n", [0, 136, 255, 51]),
        (b"P1\n3 1\n0 1 0\n", [255, 0, 255]),
        (png(b"\x35", 8, 1), [0, 0, 255, 255, 0, 255, 0, 255]),
        (png(b"\x1b", 4, 2), [0, 85, 170, 255]),
        (png(b"\x05\xaf", 4, 4), [0, 85, 170, 255]),
        (png(struct.pack(">3H", 0, 32768, 65535), 3, 16), [0, 128, 255]),
        (png(struct.pack(">4H", 0, 32768, 65535, 65535), 2, 16, 4), [127, 255]),
        (encoded(Image.fromarray(np.array([[0, 32768, 65535] * 8] * 8, np.uint16)), "JPEG2000"), [0, 128, 255] * 8),
    ],
)
def test_grey_is_scaled_by_the_files_depth_and_sense(data: bytes, expected: list[int]):
    assert greys(data) == expected


def fits(bits: int) -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": str(bits), "NAXIS": "2", "NAXIS1": "2", "NAXIS2": "1"}
    head = b"".join(f"{name:<8}= {value:>20}".ljust(80).encode() for name, value in cards.items())
    return (head + b"END".ljust(80)).ljust(2880) + struct.pack(">2h", -5, 100).ljust(2880, b"\0")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(np.float32([0, 128, 255, 9]).view(np.uint32).tolist(), 32, kind=3), "numbers from 0 to 255, whose black"),
        (tiff(np.float32([0, np.nan]).view(np.uint32).tolist(), 32, kind=3), "floating-point numbers"),
        (tiff([0, 1, 2, 3], 32), "32-bit grey, whose black and white are not known"),
        (tiff([0, -1, 2, 3], 16, kind=2), "signed grey"),
        (tiff([0, -1, 2, 3], 8, kind=2), "signed grey"),
        (fits(16), "signed grey"),
        (png(struct.pack(">3H", 1, 2, 3), 1, 16, 2, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))), "of 16 bits"),
        (tiff([0, 128, 255, 9], 8, t254=1), "a small preview, as raw files of cameras do"),
    ],
)
def test_what_has_no_known_black_and_white_is_refused_with_the_reason(data: bytes, reason: str):
    with pytest.raises(ImageError, match=rf"^a\.tif .*{reason}.*\.$"):
        open_image(data, "a.tif")


def test_signed_bytes_of_a_format_with_other_depths():
    assert greys(fits(8)) == [255, 251]  # FITS has a sign in all but its bytes


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(b"\x35", 8, 1, 0, chunk(b"tRNS", b"\0\0")), [255] * 8),
        (png(b"\x1b", 4, 2, 0, chunk(b"tRNS", b"\0\1")), [0, 255, 170, 255]),
        (png(b"\x05\xaf", 4, 4, 0, chunk(b"tRNS", b"\0\5")), [0, 255, 170, 255]),
        (png(b"\x05\xaf", 2, 8, 0, chunk(b"tRNS", b"\0\5")), [255, 175]),
        (png(struct.pack(">3H", 1000, 1001, 0), 3, 16, 0, chunk(b"tRNS", struct.pack(">H", 1000))), [255, 4, 0]),
    ],
)
def test_a_transparent_grey_is_white_at_any_depth(data: bytes, expected: list[int]):
    assert greys(data) == expected
    held = as_image(Image.open(io.BytesIO(data)))  # as a program gives it
    assert np.asarray(held)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LA"])
def test_every_mode_of_transparency_is_laid_on_white(mode: str):
    assert np.asarray(as_image(Image.new(mode, (2, 2)))).tolist() == [[[255] * 3] * 2] * 2


ROW, TEXT = bytes([1, 2, 3, 4, 5, 6]), b"comment\0text"
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        png(ROW, 2, 8, 2, chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(3_000_000)))),
        png(ROW, 2, 8, 2, chunk(b"iCCP", b"c\0\0" + zlib.compress(bytes(3_000_000)))),
        png(ROW, 2, 8, 2, chunk(b"iCCP", b"c\0\0rubbish")),
        png(ROW, 2, 8, 2, *[chunk(b"iTXt", b"k\0\0\0\0\0" + b"x" * 1_000_000)] * 70),
        png(ROW, 2, 8, 2, chunk(b"tEXt", TEXT, crc=0)),
        png(ROW, 2, 8, 2, after=chunk(b"tEXt", TEXT, crc=0)),
        png(ROW, 2, 8, 2, chunk(b"eXIf", b"rubbish", crc=0), chunk(b"tEXt", TEXT, crc=0)),
        png(ROW, 2, 8, 2, chunk(b"gAMA", b"")),
        png(ROW, 2, 8, 2) + b"garbage" * 100,
    ],
    ids=["text", "profile", "odd profile", "70 MB", "check sum", "check sum behind", "exif", "gamma", "garbage"],
)
def test_what_a_png_says_beside_its_pixels_never_costs_it(data: bytes):
    assert np.asarray(open_image(data)).tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert size_of(data, "a.png") == (2, 1)


@pytest.mark.parametrize("cut", [4000, 200, 30])
@pytest.mark.parametrize("text", [b"", chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(3_000_000)))])
def test_a_truncated_png_stays_truncated(cut: int, text: bytes):
    whole = encoded(Image.fromarray(NOISE), "PNG")
    whole = whole[:33] + text + whole[33:]
    assert np.array_equal(np.asarray(open_image(whole)), NOISE)
    with pytest.raises(ImageError, match="truncated"):
        open_image(whole[:-cut], "a.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "beside",
    [
        segment(0xE0, b"JFIF\0"),
        segment(0xEE, b"Adobe"),
        segment(0xE2, b"ICC_PROFILE\0\5\1rubbish"),
        segment(0xE2, b"MPF\0rubbish"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        segment(0xFE, b"\xff\xfe\0"),
    ],
    ids=["JFIF", "Adobe", "profile", "MPF", "Photoshop", "XMP", "comment"],
)
def test_what_a_jpeg_says_beside_its_pixels_never_costs_it(beside: bytes):
    assert np.array_equal(np.asarray(open_image(jpeg(beside))), np.asarray(open_image(jpeg())))


def test_a_jpeg_without_its_odd_parts_is_turned_as_it_says_and_stays_truncated():
    exif = segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0")
    assert open_image(jpeg(segment(0xE0, b"JFIF\0"), exif)).size == (16, 32)
    with pytest.raises(ImageError, match="truncated"):
        open_image(jpeg(segment(0xE0, b"JFIF\0"))[:-60], "a.jpg")


@pytest.mark.parametrize("form", ["TIFF", "JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 5, 6, 8])
def test_sizes_are_those_of_the_upright_picture(form: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", (32, 16)), form, exif=exif)
    assert size_of(data, "a") == open_image(data).size == ((16, 32) if orientation > 4 else (32, 16))


def test_of_several_pictures_the_first_is_read():
    first, second = Image.new("RGB", (32, 16), (200, 30, 30)), Image.new("RGB", (32, 16))
    for form in ("MPO", "TIFF"):  # of animations, see tests/data/test_images.py
        found = open_image(encoded(first.copy(), form, save_all=True, append_images=[second.copy()]))
        assert np.abs(np.asarray(found)[8, 8].astype(int) - (200, 30, 30)).max() < 8, form
