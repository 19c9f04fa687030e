"""What is an image is asked of Pillow: by the ending where it says so, else by the first bytes."""

import io
from collections.abc import Iterator

import pytest
from PIL import Image, ImageFile

from softvq.data import finding
from softvq.data.finding import ImageFinder, is_hidden
from tests.data.test_images import encoded

PICTURE = Image.new("RGB", (16, 16), (9, 9, 9))
KINDS = {
    **{"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "tga": "TGA", "jp2": "JPEG2000", "dds": "DDS", "ico": "ICO"},
    **{"sgi": "SGI", "pcx": "PCX", "pnm": "PPM", "apng": "PNG", "dib": "DIB", "tif": "TIFF", "webp": "WEBP"},
    **{"xyz": "PNG", "image": "JPEG", "0001": "GIF", "png_": "PNG", "": "PNG"},  # endings that say nothing
}


def found(name: str, data: bytes) -> tuple[bool, dict[str, int]]:
    finder = ImageFinder()
    return finder.is_image(name, lambda: data), finder.left_out


@pytest.mark.parametrize(("ending", "form"), KINDS.items(), ids=KINDS)
def test_what_pillow_can_open_is_an_image(ending: str, form: str):
    assert found(f"a.{ending}" if ending else "a", encoded(PICTURE, form)) == (True, {})


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0"),
        ("a.pdf", b"%PDF-1.4\n"),
        ("a.h5", b"\x89HDF\r\n\x1a\n"),  # Pillow knows it, and never decodes it
        ("a", b"\x89HDF\r\n\x1a\n"),
        ("a.wmf", b"\xd7\xcd\xc6\x9a\0\0"),
        ("a.mp4", b"\0\0\0\x18ftypmp42"),
        ("a.npy", b"\x93NUMPY"),
        ("a.txt", b"P5 begins this text"),
        ("README", b"P"),
        ("a", b""),
        ("a.", b""),
        ("v1.0/LICENSE", b"MIT"),
    ],
)
def test_what_it_cannot_open_is_left_out_and_counted(name: str, data: bytes):
    base = name.rpartition("/")[2]
    assert found(name, data) == (False, {f".{base.partition('.')[2]}" if "." in base else "": 1})


def test_every_file_of_an_ending_that_says_nothing_is_looked_into():
    finder, picture = ImageFinder(), encoded(PICTURE, "PNG")
    contents = [b"text", picture, b"", picture]
    assert [finder.is_image(f"{i}.dat", lambda i=i: contents[i]) for i in range(4)] == [False, True, False, True]
    assert finder.left_out == {".dat": 2}


def test_a_known_ending_costs_no_look():
    finder = ImageFinder()
    assert finder.is_image("a.png", lambda: pytest.fail("looked"))
    assert not finder.is_image("a.txt", lambda: pytest.fail("looked"))


@pytest.fixture
def plugin() -> Iterator[None]:
    """A format as packages add it to Pillow, of which one is taught HEIC."""

    class Fake(ImageFile.ImageFile):
        format = "FAKE"

        def _open(self):
            self._mode, self._size, self.tile = "L", (1, 1), []

    finding._by_ending.cache_clear()
    Image.init()
    Image.register_open("FAKE", Fake, lambda start: start[4:12] == b"ftypfake")
    Image.register_extension("FAKE", ".heix")
    yield
    del Image.OPEN["FAKE"], Image.EXTENSION[".heix"]
    Image.ID.remove("FAKE")
    finding._by_ending.cache_clear()


@pytest.mark.usefixtures("plugin")
def test_formats_that_packages_add_to_pillow_count():
    assert found("a.heix", b"") == (True, {})
    assert found("a.other", b"\0\0\0\0ftypfake") == (True, {})


def test_a_format_that_cannot_bear_few_bytes_is_no_answer(monkeypatch: pytest.MonkeyPatch):
    Image.init()
    monkeypatch.setitem(Image.OPEN, "FAKE", (ImageFile.ImageFile, lambda start: start[40] == 1))
    assert found("a", b"short") == (False, {"": 1})
    monkeypatch.setitem(Image.OPEN, "FAKE", (ImageFile.ImageFile, lambda start: "support is not installed"))
    assert found("a", b"short") == (False, {"": 1})


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        *[(path, True) for path in ("._a.png", "x/._a.png", ".git/a.png", "__MACOSX/a.png", "@eaDir/a.png")],
        *[(path, True) for path in ("Thumbs.db", "THUMBS.DB", "x/desktop.ini", "Icon\r", "$RECYCLE.BIN/a.png")],
        *[(path, False) for path in ("a.png", "./a.png", "../a.png", "/a.png", "x/a.b.png", "_a.png", "Icon")],
    ],
)
def test_hidden_and_system_files(path: str, hidden: bool):
    assert is_hidden(path) is hidden


def test_the_beginning_is_enough_for_the_common_formats():
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"):
        data = encoded(PICTURE, form)
        assert found("a", io.BytesIO(data).read(finding.HEAD)) == (True, {}), form
