"""Tar shards as webdataset writes them: read in place, in any order, with their classes."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softvq.data.images import Augment
from softvq.data.loader import training_batches
from softvq.data.opening import open_source, with_columns
from softvq.data.shards import Shards
from softvq.data.sources import Source
from softvq.errors import DataError, Notice


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), value, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of four images, of the classes 2, 10 and 7, with other files between them."""
    for shard in range(3):
        files: dict[str, bytes] = {}
        for number in range(4):
            key = f"{4 * shard + number:06d}"
            files[f"{key}.cls"] = str((2, 10, 7)[number % 3]).encode() + b"\n"
            files[f"{key}.png"] = encoded(20 * (4 * shard + number))
            files[f"{key}.json"] = b"{}"
        write(tmp_path / f"train-{shard:02d}.tar", files)
    return tmp_path


def test_every_image_is_read_in_place_with_its_class(shards: Path):
    with pytest.warns(Notice, match=r"train-\{00\.\.02\}\.tar: 12 files left out, .*: 12 \.json\.$"):
        source = open_source(str(shards / "train-{00..02}.tar"))
    assert isinstance(source, Shards)
    assert len(source.names) == len(source.labels) == 12
    assert source.names[5] == "train-01.tar/000005.png"
    assert source.classes == [str(number) for number in range(11)]
    assert source.labels == [2, 10, 7, 2] * 3  # class numbers stay what they are
    for index in (11, 0, 5):
        assert source.read(index) == encoded(20 * index)
    again = pickle.loads(pickle.dumps(source))  # as a worker gets it
    assert again.read(7) == encoded(140)


def test_without_cls_files_folders_are_classes(tmp_path: Path):
    write(tmp_path / "a.tar", {"dog/1.png": encoded(1), "cat/2.png": encoded(2)})
    source = open_source(str(tmp_path / "a.tar"))
    assert source.classes == ["cat", "dog"]
    assert source.labels == [1, 0]


def test_what_is_missing_or_damaged_is_a_sentence(shards: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"there is no file '.*train-03\.tar'"):
        open_source(str(shards / "train-{00..03}.tar"))
    with pytest.raises(DataError, match="no file matches"):
        open_source(str(shards / "val-*.tar"))
    write(tmp_path / "empty.tar", {"readme.txt": b"nothing"})
    with pytest.raises(DataError, match="hold no images"):
        _ = open_source(str(tmp_path / "empty.tar")).names
    (tmp_path / "text.tar").write_text("no tar at all" * 100)
    with pytest.raises(DataError, match=r"text\.tar is not a tar file"):
        _ = open_source(str(tmp_path / "text.tar")).names
    whole = (shards / "train-00.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"000003.png") + 600])
    with pytest.raises(DataError, match=r"cut\.tar is (cut off inside 000003\.png|not a tar file)"):
        _ = open_source(str(tmp_path / "cut.tar")).names


def test_training_goes_through_all_shards_in_an_order_that_resumes(shards: Path):
    with pytest.warns(Notice, match=r"12 \.json\.$"):
        source = open_source(str(shards / "*.tar"))

    def names(start: int, steps: int, workers: int = 0) -> list[list[str]]:
        batches = training_batches(
            source, size=16, batch_size=4, augment=Augment(), seed=3, start_step=start, workers=workers
        )
        return [next(batches).names for _ in range(steps)]

    epochs = names(0, 6, workers=1)
    for epoch in (epochs[:3], epochs[3:]):
        assert sorted(name for batch in epoch for name in batch) == source.names
    assert epochs[:3] != epochs[3:]
    assert names(2, 4) == epochs[2:]


# Which file of a sample is its image, and which its label

A, B, JUNK = encoded(1), encoded(2), b"\x00\x05\x16\x07"


def quietly(data: str | Path) -> Source:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        return open_source(str(data))


def table(source: Source) -> dict[str, tuple[bytes, int]]:
    """Name without the shard's → contents and label."""
    return {name.partition("/")[2]: (source.read(i), source.labels[i]) for i, name in enumerate(source.names)}


def test_what_a_mac_adds_is_never_counted(tmp_path: Path):
    files = {
        f"{k:03}.{end}": data
        for k, label in enumerate((b"2", b"10", b"0"))
        for end, data in (("png", encoded(k)), ("cls", label))
    }
    hidden = {f"._{name}": JUNK for name in files} | {"__MACOSX/._000.png": JUNK, ".DS_Store": JUNK}
    write(tmp_path / "mac.tar", {**hidden, **files, **{f"./x/{name}": JUNK for name in hidden}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_source(str(tmp_path / "mac.tar"))
    assert table(source) == {"000.png": (encoded(0), 2), "001.png": (encoded(1), 10), "002.png": (encoded(2), 0)}
    assert source.classes == [str(k) for k in range(11)]
    assert source.left_out == {}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"000.input.png": A, "000.cls": b"7"}, {"000.input.png": (A, 7)}),
        ({"000.png": A, "000.seg.png": B, "000.cls": b"1"}, {"000.png": (A, 1)}),
        ({"000.seg.png": B, "000.cls": b"1", "000.png": A}, {"000.png": (A, 1)}),
        ({"A.PNG": A, "A.CLS": b"1"}, {"A.PNG": (A, 1)}),
        ({"a": A, "a.cls": b"1", "b": b"text"}, {"a": (A, 1)}),
        ({"v1.0/a.png": A, "v1.0/a.cls": b"1"}, {"v1.0/a.png": (A, 1)}),
        ({"./a.png": A, "a.cls": b"1"}, {"a.png": (A, 1)}),
        ({"/dog/1.png": A, "/cat/2.png": B}, {"dog/1.png": (A, 1), "cat/2.png": (B, 0)}),
        ({"../dog/1.png": A, "../cat/2.png": B}, {"dog/1.png": (A, 1), "cat/2.png": (B, 0)}),
        ({f"{k}/a.png": A for k in (2, 10)}, {"2/a.png": (A, 1), "10/a.png": (A, 0)}),
        ({f"{k}/a.png": A for k in range(11)}, {f"{k}/a.png": (A, k) for k in range(11)}),
        ({"x.png": A, "dog/a.png": B}, {"x.png": (A, -1), "dog/a.png": (B, 0)}),
        ({"a.png": A, "a.cls": b"3", "b.png": B, "b.cls": b"9"}, {"a.png": (A, 3), "b.png": (B, 9)}),
        ({"caf\udce9.png": A, "caf\udce9.cls": b"1"}, {"caf\udce9.png": (A, 1)}),
        ({"a\nb.png": A, "a\nb.cls": b"1"}, {"a\nb.png": (A, 1)}),
        ({"d" * 120 + "/" + "e" * 150 + ".png": A}, {"d" * 120 + "/" + "e" * 150 + ".png": (A, 0)}),
        ({"a.png": A, "b.cls": b"2"}, {"a.png": (A, 0)}),
    ],
)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_image_and_label_of_a_sample(tmp_path: Path, monkeypatch, form: int, files: dict, expected: dict):
    monkeypatch.setattr(tarfile, "DEFAULT_FORMAT", form)
    assert table(quietly(write(tmp_path / "a.tar", files))) == expected


@pytest.mark.parametrize(
    ("content", "label"),
    [
        *[(b"3\r\n", 3), (b"\xef\xbb\xbf3", 3), ("3".encode("utf-16"), 3), (b"007", 7), (b"2.0", 2)],
        *[(b"", -1), (b"-1", -1), (b" \n", -1)],
    ],
)
def test_how_a_label_is_written(tmp_path: Path, content: bytes, label: int):
    path = write(tmp_path / "a.tar", {"a.png": A, "a.cls": content, "b.png": B, "b.cls": b"0"})
    assert quietly(path).labels == [label, 0]


def test_names_of_other_bytes_stay_different(tmp_path: Path):
    path = write(tmp_path / "a.tar", {"a.png": A, "a.cls": b"caf\xe8", "b.png": B, "b.cls": b"caf\xe9"})
    assert quietly(path).classes == ["caf\udce8", "caf\udce9"]


@pytest.mark.parametrize("content", [b"-5", b'{"label": 3}', b"3\n4", b"2\0"])
def test_what_is_no_label_is_named(tmp_path: Path, content: bytes):
    path = write(tmp_path / "a.tar", {"a.png": A, "a.cls": content})
    with pytest.raises(DataError, match=r"^the label of a\.tar/a\.png is .*, which is no class"):
        open_source(str(path))


def test_a_sample_without_a_label_in_a_labelled_set_is_named(tmp_path: Path):
    path = write(tmp_path / "a.tar", {"a.png": A, "a.cls": b"1", "b.png": B, "c.png": B})
    with pytest.warns(Notice, match=r"a\.tar: 2 images of 3 have no label, the first a\.tar/b\.png: unlabelled\.$"):
        source = open_source(str(path))
    assert source.labels == [1, -1, -1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # without any label there is nothing to say
        assert open_source(str(write(tmp_path / "b.tar", {"a.png": A, "b.png": B}))).labels == [0, 0]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"000.input.png": A, "000.target.png": B},
            r"a\.tar: the sample 000 has several images \(input\.png, target\.p",
        ),
        ({"000.png": A, "000.jpg": B}, r"the sample 000 has several images \(png, jpg\)"),
        ({"v.000.png": A, "v.001.png": B}, "its name ends at the first dot; name the ending of the images"),
    ],
)
def test_several_images_of_a_sample_are_a_sentence(tmp_path: Path, files: dict, said: str):
    with pytest.raises(DataError, match=said) as error:
        open_source(str(write(tmp_path / "a.tar", files)))
    assert error.value.setting == "image_column"


@pytest.mark.parametrize("other", ["a.PNG", "a.CLS"])
def test_the_same_ending_in_two_cases_is_a_sentence(tmp_path: Path, other: str):
    with pytest.raises(DataError, match=rf"^a\.tar has both a\.{other[2:].lower()} and {other}: "):
        open_source(str(write(tmp_path / "a.tar", {"a.png": A, "a.cls": b"1", other: b"0"})))


def test_endings_of_images_and_labels_may_be_named(tmp_path: Path):
    files = {"0.input.png": A, "0.target.png": B, "0.cls": b"1", "0.coarse.cls": b"0"}
    path = str(write(tmp_path / "a.tar", files))
    for image, label, expected in (
        ("target.png", None, {"0.target.png": (B, 1)}),
        (".INPUT.png", "coarse.cls", {"0.input.png": (A, 0)}),
        ("input.png", "none", {"0.input.png": (A, 0)}),
    ):
        assert table(quietly(with_columns(path, image, label))) == expected
    assert quietly(with_columns(path, "input.png", "none")).classes == [""]
    with pytest.raises(DataError, match=r"hold no images; there are 1 \.cls, 1 \.input\.png, 1 \.target") as error:
        quietly(with_columns(path, "webp"))
    assert error.value.setting == "image_column"
    with pytest.raises(DataError, match="has a label in a file of the ending 'txt'") as error:
        quietly(with_columns(path, "input.png", "txt"))
    assert error.value.setting == "label_column"


# What tars are like


def members(path: Path, *files: tuple[str, bytes | tuple[bytes, str]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def test_the_last_of_a_name_counts_as_in_any_tar(tmp_path: Path):
    path = members(tmp_path / "a.tar", ("a.png", A), ("a.cls", b"1"))
    members(path, ("a.png", B), ("./a.cls", b"2"), mode="a")
    assert table(quietly(path)) == {"a.png": (B, 2)}


def test_a_link_is_the_file_that_it_leads_to(tmp_path: Path):
    link, same = tarfile.SYMTYPE, tarfile.LNKTYPE
    path = members(
        tmp_path / "a.tar",
        *[("real/a.png", A), ("real/b.png", (same, "real/a.png"))],
        *[
            ("x/third.png", (link, "again.png")),
            ("x/again.png", (link, "first.png")),
            ("x/first.png", (link, "../real/a.png")),
            ("x/gone.png", (link, "/gone.png")),
            ("x/round.png", (link, "round.png")),
        ],
        *[("latest", (link, "real")), ("x/fifo.png", (tarfile.FIFOTYPE, ""))],
    )
    found = table(quietly(path))
    wanted = dict.fromkeys(("real/a.png", "real/b.png", "x/first.png", "x/again.png", "x/third.png"), A)
    wanted |= dict.fromkeys(("x/gone.png", "x/round.png"), b"")
    assert {name: data for name, (data, _) in found.items()} == wanted


def test_a_tar_is_read_to_its_end_or_refused(tmp_path: Path):
    whole = write(tmp_path / "a.tar", {f"{k}.png": encoded(k) for k in range(3)}).read_bytes()
    end = whole.rindex(b"2.png") + 1024
    for name, data, said in (
        ("cut.tar", whole[: whole.rindex(b"2.png") + 100], r"cut\.tar: after 2 files it is cut off or damaged"),
        ("bad.tar", whole.replace(b"1.png", b"1.pnX"), r"after 1 file it is cut off or damaged"),
        ("two.tar", whole + whole, r"after 3 files another tar begins"),
        ("tail.tar", whole + b"rubbish", r"after 3 files it is cut off or damaged"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=said):
            open_source(str(tmp_path / name))
    for data in (whole + bytes(100_000), whole[:end]):  # more zeros than tar writes, and none
        (tmp_path / "sound.tar").write_bytes(data)
        assert len(open_source(str(tmp_path / "sound.tar")).names) == 3


@pytest.mark.parametrize(
    ("pack", "kind"),
    [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"), (b"\x28\xb5\x2f\xfd".__add__, "zstd")],
)
def test_a_compressed_tar_is_called_what_it_is(tmp_path: Path, pack, kind: str):
    packed = pack(write(tmp_path / "a.tar", {"a.png": A}).read_bytes())
    (tmp_path / "b.tar").write_bytes(packed)
    with pytest.raises(DataError, match=rf"b\.tar is compressed \({kind}\), and images in it cannot be read in place"):
        open_source(str(tmp_path / "b.tar"))


def test_what_follows_an_empty_file_is_not_its_beginning(tmp_path: Path):
    source = quietly(write(tmp_path / "a.tar", {"a": b"", "GIF89a": A}))
    assert source.names == ["a.tar/GIF89a"]
    assert source.left_out == {"": 1}
