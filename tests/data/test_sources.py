"""Folders and the bundled emoji as lists of encoded images with classes."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from softvq.data.opening import emoji_labels, open_source
from softvq.data.shards import TarFile
from softvq.data.sources import EMOJI, Folder
from softvq.errors import DataError, ImageError, Notice
from tests.data.test_shards import encoded, write

SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
BUNDLED = {"emoji": ("train", 3094), "emoji-val": ("val", 280)}


def lay(root: Path, *names: str) -> Path:
    """Files whose content is their own name: sources do not decode."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


# Folders


def test_every_sub_folder_is_a_class(tmp_path):
    source = Folder(lay(tmp_path, "dog/2.png", "cat/1.png", "dog/1.png", "bird/x.jpg"))
    assert source.names == ["bird/x.jpg", "cat/1.png", "dog/1.png", "dog/2.png"]
    assert source.classes == ["bird", "cat", "dog"]
    assert source.labels == [0, 1, 2, 2]
    assert [source.read(i).decode() for i in range(4)] == source.names


def test_a_flat_folder_is_one_class(tmp_path):
    source = Folder(lay(tmp_path, "b.png", "a.png", "c.jpeg"))
    assert source.names == ["a.png", "b.png", "c.jpeg"]
    assert source.labels == [0, 0, 0]
    assert len(source.classes) == 1


def test_images_deep_inside_belong_to_the_outermost_sub_folder(tmp_path):
    source = Folder(lay(tmp_path, "dog/young/small/1.png", "dog/2.png", "cat/old/1.png"))
    assert source.names == ["cat/old/1.png", "dog/2.png", "dog/young/small/1.png"]
    assert source.classes == ["cat", "dog"]
    assert source.labels == [0, 1, 1]


def test_only_images_are_listed_and_in_any_case(tmp_path):
    source = Folder(lay(tmp_path, "a/1.PNG", "a/2.JpG", "a/notes.txt", "a/png", "a/3.png.bak", "README.md"))
    assert source.names == ["a/1.PNG", "a/2.JpG"]
    assert source.classes == ["a"]


def folders(root: Path, *names: object) -> Folder:
    return Folder(lay(root, *(f"{name}/a.png" for name in names)))


def test_numbered_folders_keep_their_numbers(tmp_path):
    """As text, "10" comes before "2"."""
    for form in ("{}", "{:02}", "{:04}"):
        source = folders(tmp_path / form[1:-1], *map(form.format, range(12)))
        assert source.classes == [form.format(k) for k in range(12)]
        assert [source.classes[label] for label in source.labels] == [name.split("/")[0] for name in source.names]
        assert source.labels[source.names.index(f"{form.format(10)}/a.png")] == 10


def test_folders_that_are_not_all_numbers_without_a_gap_are_names(tmp_path):
    for number, names in enumerate((("0", "2", "10"), range(1, 12), ("2019", "2020"), ("0", "1", "cat"), ("0", "00"))):
        found = folders(tmp_path / str(number), *names)
        assert found.classes == sorted(map(str, names))


def test_an_empty_folder_keeps_its_number_and_no_other_counts(tmp_path):
    for name in ("5", "masks", "99", ".cache"):
        (tmp_path / name).mkdir()
    source = folders(tmp_path, *(k for k in range(12) if k != 5))
    assert source.classes == [str(k) for k in range(12)]
    assert sorted(source.labels) == [k for k in range(12) if k != 5]


def test_images_beside_folders_are_unlabelled_and_said(tmp_path):
    lay(tmp_path, "cat/1.png", "dog/1.png", "x.png")
    with pytest.warns(Notice, match=r"1 image of 3 has no label, the first x\.png: unlabelled\.$"):
        source = open_source(tmp_path)
    assert dict(zip(source.names, source.labels, strict=True)) == {"cat/1.png": 0, "dog/1.png": 1, "x.png": -1}
    assert source.classes == ["cat", "dog"]


def test_what_is_no_image_is_counted(tmp_path):
    source = Folder(lay(tmp_path, "a/1.png", "a/1.txt", "a/2.txt", "b.JSON", "a/LICENSE", ".a.txt", "a/Thumbs.db"))
    assert source.names == ["a/1.png"]
    assert source.left_out == {".txt": 2, ".json": 1, "": 1}
    with pytest.raises(DataError, match=r"holds no images that Pillow can open, sub-folders too; it holds 2 \.txt\.$"):
        Folder(lay(tmp_path / "texts", "1.txt", "2.txt"))


@pytest.mark.skipif(os.name == "nt", reason="names are text on Windows")
def test_names_that_are_no_text_are_kept(tmp_path):
    source = Folder(lay(tmp_path, "caf\udce9/\udcff.png", "b/1.png"))
    assert source.names == ["b/1.png", "caf\udce9/\udcff.png"]
    assert source.classes == ["b", "caf\udce9"]
    assert source.read(1) == os.fsencode("caf\udce9/\udcff.png")
    assert source.identity["count"] == 2
    assert len(source.version) == 16


def test_a_folder_that_cannot_be_read_is_a_sentence(tmp_path, monkeypatch):
    """Its images would be left out without a word."""
    lay(tmp_path, "cat/1.png", "dog/1.png")
    usual = os.scandir

    def scandir(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return usual(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"^the folder .*dog cannot be read \(Permission denied\)\.$"):
        Folder(tmp_path)


def test_hidden_files_are_ignored(tmp_path):
    source = Folder(lay(tmp_path, ".a.png", "b.png", "dog/._c.png", "dog/c.png"))
    assert source.names == ["b.png", "dog/c.png"]


def test_hidden_folders_are_ignored(tmp_path):
    """`.ipynb_checkpoints` and `.thumbnails` hold copies of images, and are no class."""
    source = Folder(lay(tmp_path, "dog/1.png", ".thumbnails/1.png", "dog/.ipynb_checkpoints/1-checkpoint.png"))
    assert source.names == ["dog/1.png"]
    assert source.classes == ["dog"]


def test_a_folder_that_is_called_like_an_image_is_none(tmp_path):
    assert Folder(lay(tmp_path, "odd.png/1.png")).names == ["odd.png/1.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_linked_folders_are_followed(tmp_path):
    lay(tmp_path / "elsewhere", "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert Folder(tmp_path / "data").names == ["dog/1.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_back_to_the_folder_lists_no_image_twice(tmp_path):
    lay(tmp_path, "dog/1.png", "cat/1.png")
    (tmp_path / "dog" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "cat" / "dogs").symlink_to(tmp_path / "dog", target_is_directory=True)
    assert Folder(tmp_path).names == ["cat/1.png", "cat/dogs/1.png", "dog/1.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_two_links_to_a_folder_are_two_classes(tmp_path):
    lay(tmp_path / "elsewhere", "1.png")
    for name in ("a", "b"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert Folder(tmp_path / "data").names == ["a/1.png", "b/1.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_that_lead_nowhere_are_bad_files(tmp_path):
    lay(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to("nowhere")
    (tmp_path / "c.png").symlink_to("c.png")
    source = Folder(tmp_path)
    assert source.names == ["a.png", "b.png", "c.png"]
    for index in (1, 2):
        with pytest.raises(ImageError, match=rf"^{source.names[index]} cannot be read \("):
            source.image(index)


def test_a_missing_or_empty_folder_is_a_sentence_that_names_it(tmp_path):
    lay(tmp_path / "texts", "notes.txt", "sub/.hidden.png")
    for path, what in ((tmp_path / "none", "no folder"), (tmp_path / "texts", "no images")):
        for make in (Folder, lambda p: open_source(str(p))):
            with pytest.raises(DataError, match=what) as error:
                make(path)
            assert str(path) in str(error.value)
            assert str(error.value).endswith(".")
            assert "\n" not in str(error.value)


def test_a_file_is_no_folder(tmp_path):
    lay(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"a\.png"):
        Folder(tmp_path / "a.png")


def test_open_source_takes_a_path_and_knows_home(tmp_path, monkeypatch):
    lay(tmp_path, "photos/a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/photos").names == open_source(str(tmp_path / "photos")).names == ["a.png"]


# The bundled emoji


@pytest.mark.parametrize("data", BUNDLED)
def test_the_bundled_emoji_are_what_the_tar_holds(data):
    split, count = BUNDLED[data]
    source = open_source(data)
    assert len(source.names) == count
    assert source.names == sorted(set(source.names))
    with tarfile.open(EMOJI / f"{split}.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}
    assert {name: source.read(i) for i, name in enumerate(source.names)} == members


@pytest.mark.parametrize("data", BUNDLED)
def test_the_bundled_emoji_have_nine_classes(data):
    source = open_source(data)
    assert len(source.classes) == 9
    assert source.classes == open_source("emoji").classes  # the same numbers mean the same classes in both splits
    assert [source.classes[label] for label in source.labels] == [name.split("/")[0] for name in source.names]


@pytest.mark.parametrize("data", BUNDLED)
def test_the_bundled_emoji_are_readable_pictures(data):
    source = open_source(data)
    for index in range(0, len(source.names), 97):
        with Image.open(io.BytesIO(source.read(index))) as image:
            assert (image.size, image.mode) == ((256, 256), "RGB")


def test_labels_match_names_classes_and_splits():
    labels = emoji_labels()
    listed = {}
    for data, (split, _) in BUNDLED.items():
        for name in open_source(data).names:
            group, file = name.split("/")
            listed[file.removesuffix(".webp")] = (group, split)
    as_class = {key: value["group"].lower().replace(" & ", "-") for key, value in labels.items()}
    assert {key: (as_class[key], value["split"]) for key, value in labels.items()} == listed
    assert all(value["name"] and value["subgroup"] for value in labels.values())


def test_no_emoji_is_in_both_splits_in_another_skin_tone():
    """By code points without tones (and without U+FE0F, which toned variants drop)."""
    bases = {split: set() for split in ("train", "val")}
    for key, value in emoji_labels().items():
        bases[value["split"]].add(tuple(c for c in key.split("-") if c not in SKIN_TONES | {"fe0f"}))
    assert bases["train"]
    assert bases["val"]
    assert not bases["train"] & bases["val"]


def test_no_picture_is_in_both_splits():
    train, val = (open_source(data) for data in BUNDLED)
    seen = {train.read(i) for i in range(len(train.names))}
    assert not any(val.read(i) in seen for i in range(len(val.names)))


# Both


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("kind", [Folder, TarFile])
def test_sources_are_picklable(tmp_path, kind, warm):
    """Workers that are spawned get them by pickle, before and after the names were listed."""
    path = lay(tmp_path, "dog/1.png", "cat/2.png") if kind is Folder else EMOJI / "val.tar"
    source = kind(path)
    if warm:
        source.read(1)
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert (copy.names, copy.labels, copy.classes) == (source.names, source.labels, source.classes)
    assert copy.read(1) == source.read(1)


def test_large_class_numbers_are_names(tmp_path: Path):
    """A date in a `.cls` file is no reason for twenty million classes."""
    write(tmp_path / "a.tar", {"0.png": encoded(0), "0.cls": b"20231101", "1.png": encoded(1), "1.cls": b"7"})
    source = open_source(str(tmp_path / "a.tar"))
    assert source.classes == ["20231101", "7"]
    assert source.labels == [0, 1]
