"""The one writer of files: whole or not at all, with the umask's modes, and not where there is no room."""

import ast
import os
import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest
import torch

import softvq
from softvq import files
from softvq.errors import StorageError

USAGE = namedtuple("USAGE", "total used free")


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_new_files_have_the_modes_of_the_umask(tmp_path: Path, umask: int):
    files.write_json(tmp_path / "a.json", {})
    files.write_tensors(tmp_path / "b.safetensors", {"x": torch.zeros(3)})
    with files.atomic(tmp_path / "c") as temporary:
        temporary.write_bytes(b"c")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def fail_in(block, work) -> None:
    with block as temporary:
        work(temporary)
        raise KeyError


def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError):
        fail_in(files.atomic(path), lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path):
    target = tmp_path / "folder"
    for name in ("first", "second"):
        with files.atomic_folder(target) as temporary:
            (temporary / name).write_text(name)
            assert not (target / name).exists()
    assert [path.name for path in target.iterdir()] == ["second"]
    with pytest.raises(KeyError):
        fail_in(files.atomic_folder(target), lambda temporary: (temporary / "third").write_text(""))
    assert [path.name for path in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_does_not_fit_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: USAGE(10**9, 0, 3_000_000))
    files.write_tensors(tmp_path / "fits", {"x": torch.zeros(100_000)})
    with pytest.raises(StorageError, match=r"no room for .*x: it needs 4\.0 MB, 3\.0 MB are free\.$") as error:
        files.write_tensors(tmp_path / "new" / "x", {"x": torch.zeros(1_000_000)})
    assert isinstance(error.value, OSError)
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        files.write_json(blocked / "inside.json", {})


def test_no_other_room_renames_files_into_place():
    """`.part` names and renames of their own: what must be mended is mended in one place."""
    for path in Path(softvq.__file__).parent.rglob("*.py"):
        if path.name == "files.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert (getattr(node.value, "id", None), node.attr) not in {("os", "replace"), ("os", "rename")}, path
                assert node.attr not in ("mkstemp", "NamedTemporaryFile"), path
            assert not (isinstance(node, ast.Constant) and str(node.value).endswith(".part")), path
