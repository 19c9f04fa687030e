"""What a name of images means: a path that exists is itself, and what is not read is named for what it is."""

import gzip
import os
from pathlib import Path

import pytest

from softvq.data.objects import Objects
from softvq.data.opening import expand, listing, open_source, with_columns
from softvq.data.shards import Shards, TarFile
from softvq.data.sources import Folder
from softvq.errors import DataError, Notice
from tests.data.test_shards import encoded, write

NAMES = (
    *(
        "s[1]",
        "b{0..3}r",
        "a*b",
        "a?b",
        "c:d",
        "hf:x",
        "sp ace",
        " lead",
        "tail ",
        "{",
        "}",
        "{}",
        "'",
        '"',
        "#h",
        "-x",
    ),
    *("x.tar", "x.parquet", "x.zip", "%20", "$HOME", "😀", "a\nb", "tab\t", "\x1b[31mred", "\u202ertl", "caf\udce9"),
    *("n" * 255, "~", "Flat", "null", "1"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(encoded(7))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_folder_that_exists_is_itself(here: Path, name: str):
    lay(f"{name}/a.png")
    for data in (name, f"./{name}", f"{name}/", str(here / name), Path(name), with_columns(name)):
        assert open_source(data) == Folder(Path(data)), data
        assert open_source(data).read(0) == encoded(7)


@pytest.mark.parametrize("name", [name for name in NAMES if len(name) < 250], ids=ascii)
def test_a_tar_that_exists_is_itself(here: Path, name: str):
    write(Path(f"{name}.tar"), {"a.png": encoded(7)})
    for data in (f"{name}.tar", f"./{name}.tar", str(here / f"{name}.tar"), Path(f"{name}.tar")):
        source = open_source(data)
        assert isinstance(source, Shards)
        assert source.names == [f"{name}.tar/a.png"]


def test_patterns(here: Path):
    names = [f"train-{k:02}.tar" for k in range(3)]
    for folder in ("shards", "x[1]", "b{0..3}r"):
        for name in names:
            write(here / folder / name, {f"{name}.png": encoded(1)})
        for base in (folder, str(here / folder)):
            for pattern, expected in (
                *[("train-*.tar", names), ("train-{00..02}.tar", names), ("train-0{1..2}.tar", names[1:])],
                *[("train-{0..0}{0..1}.tar", names[:2]), ("train-0[02].tar", names[::2]), ("train-0?.tar", names)],
            ):
                assert expand(f"{base}/{pattern}") == [Path(base) / name for name in expected]
        (here / folder / "train-99.tar").mkdir()
        assert len(expand(f"{folder}/train-*.tar")) == 3  # a folder is no shard
    with pytest.raises(DataError, match=r"^no file matches 'x\[2\]/\*\.tar'\.$"):
        expand("x[2]/*.tar")
    with pytest.raises(DataError, match=r"^there is no file 'shards/train-03\.tar'\.$"):
        expand("shards/train-{01..03}.tar")


def test_home_is_known_and_a_folder_of_that_name_is_itself(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(here))
    write(Path("photos/a.tar"), {"a.png": encoded(1)})
    assert open_source("~/photos/*.tar").names == ["a.tar/a.png"]
    lay("~/photos/b.png")
    assert open_source("~/photos").names == ["b.png"]


def test_a_folder_called_as_a_bundled_set_is_asked_about(here: Path):
    lay("emoji-val/a.png")
    with pytest.raises(
        DataError, match=r"is a folder here and a bundled set; write \./emoji-val, or bundled:emoji-val"
    ):
        open_source("emoji-val")
    assert isinstance(open_source("bundled:emoji-val"), TarFile)
    assert open_source("./emoji-val").names == open_source(Path("emoji-val")).names == ["a.png"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        *[(f"a.{end}", b"\x1f\x8b", "is compressed, and") for end in ("tar.gz", "tgz", "TAR.GZ", "tar.zst", "tar.xz")],
        *[(f"a.{end}", b"PK", "is an archive that is not read: unpack it") for end in ("zip", "7z", "rar")],
        *[(f"a.{end}", b"", "is an array; in Python") for end in ("npz", "npy")],
        ("a.safetensors", b"", "holds tensors, and no images"),
        ("a.bin", gzip.compress(b"", mtime=0), "is a file of a kind that is not read"),
        *[(f"a.{end}", b"x", "is a file of a kind that is not read") for end in ("txt", "csv", "json", "pdf", "mp4")],
        ("a.heic", b"\0\0\0\x18ftypheic", "is a file of a kind that is not read"),
    ],
)
def test_a_file_that_is_not_read_is_called_what_it_is(name: str, content: bytes, said: str):
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=f"^'{name}' {said}") as error:
        open_source(name)
    assert "no folder" not in str(error.value)


def test_a_tar_without_its_ending_is_called_one():
    write(Path("a"), {"a.png": encoded(1)})
    with pytest.raises(DataError, match=r"^'a' is a tar file without the ending \.tar: rename it"):
        open_source("a")


@pytest.mark.parametrize("name", ["a.png", "a.jfif", "a", "caf\udce9.png"], ids=ascii)
def test_an_image_is_a_source_of_one(name: str):
    lay(name)
    source = open_source(name)
    assert isinstance(source, Objects)
    assert source.names == [name]
    assert source.image(0)[0].getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_what_is_no_folder_and_no_file():
    os.symlink("nowhere", "link")
    os.mkfifo("pipe")
    for name in ("link", "pipe", os.devnull):
        with pytest.raises(DataError, match="is neither a folder nor a file, or a link that leads nowhere"):
            open_source(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "the name of the images is empty"),
        ("hf:", "names no dataset; write hf:OWNER/NAME"),
        *[(name, "there is no folder") for name in ("x" * 300, "x/" * 3000, "a\0b", "nothing.tar.gz", "nothing/*.png")],
        ("nothing.tar", "there is no file"),
        ("https://host/a.tar.gz", "remote images are read from .tar files, not compressed"),
        ('{"data": "x", "more": 1}', "there is no key 'more'"),
        ('{"data"}', "is no JSON"),
        ('{"type": "Nothing", "a": "' + "x" * 300 + '"}', "Nothing"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_what_is_not_there_is_a_sentence(name: str, said: str):
    with pytest.raises((DataError, ValueError), match=said) as error:
        open_source(name)
    assert "Errno" not in str(error.value)


def test_only_samples_of_several_parts_have_columns():
    lay("folder/a.png")
    for data in ("folder", "emoji-val", "folder/a.png"):
        for image, label, setting in (("png", None, "image_column"), (None, "cls", "label_column")):
            with pytest.raises(DataError, match="has no columns: these are for datasets and tar shards") as error:
                open_source(with_columns(data, image, label))
            assert error.value.setting == setting
    assert with_columns("folder") == "folder"


def test_what_is_left_out_is_said_by_the_name_that_was_given():
    write(Path("a.tar"), {"a.png": encoded(1), "a.seg.png": encoded(2), "a.txt": b"a cat"})
    lay("folder/a.png", "folder/b.txt", "folder/c", "folder/.d", "folder/Thumbs.db")
    Path("folder/c").write_bytes(b"text")
    for data, said in (
        ("a.tar", r"^a\.tar: 2 files left out, which are no images to be used: 1 \.txt, 1 \.seg\.png\.$"),
        (with_columns("a.tar", "seg.png"), r"^a\.tar: 2 files left out, .*: 1 \.txt, 1 \.png\.$"),
        ("folder", r"^folder: 2 files left out, .*: 1 .*, 1 .*\.$"),
    ):
        with pytest.warns(Notice, match=said):
            open_source(data)
        with pytest.warns(Notice, match=said):
            listing(data)
    assert open_source(Folder(Path("folder"))).left_out == {".txt": 1, "": 1}
