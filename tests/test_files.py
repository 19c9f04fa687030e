"""The one writer of files: whole or not at all, with the umask's modes, and not where there is no room. YAML and JSON
that people write, and recipes in them."""

import ast
import errno
import json
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch

import softvq
from softvq import Tokenizer, files, hub
from softvq.config import from_dict, to_dict
from softvq.errors import ConfigError, StorageError
from softvq.layers import ViTConfig
from softvq.quantizers.gaussian import AEConfig
from softvq.recipes.all import GENERATORS, RECIPES, twins
from softvq.recipes.opening import open_recipe, recipe_text
from softvq.tokenizer import TokenizerConfig
from softvq.training.generator import GeneratorRecipe
from softvq.training.recipe import TokenizerRecipe

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
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        files.write_json(blocked / "inside.json", {})


def fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fills_is_said_of_the_file_and_leaves_nothing(tmp_path: Path, code: int):
    path = tmp_path / "latents" / "a.safetensors"
    blocks = {path: files.atomic(path), tmp_path / "step": files.atomic_folder(tmp_path / "step")}
    for name, block in (blocks | {Path("a log"): files.storing(Path("a log"))}).items():
        wanted = rf"^{re.escape(str(name))} cannot be written \({os.strerror(code)}\)\.$"
        with pytest.raises(StorageError, match=wanted), block:
            fail(code)
    assert [one.name for one in tmp_path.rglob("*")] == ["latents"]


def test_an_error_of_the_temporary_file_names_the_file_that_was_asked_for(tmp_path: Path):
    with (
        pytest.raises(StorageError, match=r"picture\.png cannot be written \(No such file") as error,
        files.atomic(tmp_path / "picture.png") as temporary,
    ):
        temporary.unlink()
    assert temporary.name not in str(error.value)


def test_other_errors_within_a_block_stay_as_they_are(tmp_path: Path):
    """Such as of a file that is read while another is written."""
    with pytest.raises(FileNotFoundError, match="elsewhere"), files.atomic(tmp_path / "a") as temporary:
        (tmp_path / "elsewhere").read_bytes()
    assert not temporary.exists()


def test_names_that_are_no_utf_8_are_written_as_json_and_read_again(tmp_path: Path):
    name = b"caf\xe9/\xff.png".decode("utf-8", "surrogateescape")
    files.write_json(tmp_path / "a.json", {"name": name, "é": "ü"})
    assert files.read_json(tmp_path / "a.json") == {"name": name, "é": "ü"}
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")
    files.write_text(tmp_path / name.replace("/", "-"), "x")
    assert b"caf\xe9-\xff.png" in os.listdir(os.fsencode(tmp_path))


HOLD = """
import os, sys, time
from pathlib import Path
from softvq import files
with files.locked(Path(sys.argv[1])):
    if os.fork() == 0:  # as a process that decodes images
        time.sleep(60)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_lock_is_another_process_s_until_it_ends_however_it_does(tmp_path: Path):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        number = int(holder.stdout.readline())
        for _ in range(2):
            busy = f"run is in use by process {number} on .*; wait until"
            with pytest.raises(StorageError, match=busy) as error, files.locked(folder):
                pass
        assert error.value.setting == "out"
        holder.kill()
        holder.wait()
        begun = time.monotonic()
        with files.locked(folder):
            assert f"process {os.getpid()} on" in (folder / files.LOCK).read_text()
        assert time.monotonic() - begun < 1  # whatever its children do
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()
    assert list(folder.iterdir()) == []  # it was not made by this process


def test_a_lock_leaves_nothing_and_is_held_once(tmp_path: Path):
    with files.locked(tmp_path / "new"):
        again = files.locked(tmp_path / "new")
        with pytest.raises(StorageError, match="in use by this process already"), again:
            pass
        with files.locked(tmp_path / "another"):
            pass
    assert not (tmp_path / "new").exists()
    with files.locked(tmp_path / "new"):
        (tmp_path / "new" / "file").write_text("")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    with pytest.raises(StorageError, match=r"file cannot be written"), files.locked(tmp_path / "new" / "file"):
        pass


def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that was opened before its holder took it away, and locked after: another process may hold the new one."""
    lockf = files.fcntl.lockf

    def late(file, how):
        (tmp_path / files.LOCK).unlink()
        lockf(file, how)

    monkeypatch.setattr(files.fcntl, "lockf", late)
    with pytest.raises(StorageError, match="in use by another process"), files.locked(tmp_path):
        pass


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


# YAML and JSON that people write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E4", 1e4),
        ("-2.5e+3", -2500.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("+1.5", 1.5),
        ("0.0", 0.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("3", 3),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, 1e-3, a, null]", [1, 1e-3, "a", None]),
        ("{a: 1, b: {c: x}}", {"a": 1, "b": {"c": "x"}}),
        ('"1e-4"', "1e-4"),
        ("'true'", "true"),
    ],
)
def test_yaml_values_are_those_of_version_12(tmp_path: Path, text: str, value: object):
    (tmp_path / "a.yaml").write_text(f"value: {text}\n")
    found = files.read_data(tmp_path / "a.yaml")["value"]
    assert (found, type(found)) == (value, type(value))


def test_not_a_number_is_one(tmp_path: Path):
    (tmp_path / "a.yml").write_text("value: .nan\n")
    assert math.isnan(files.read_data(tmp_path / "a.yml")["value"])


TEXTS = [
    *("no", "on", "yes", "off", "y", "n", "Yes", "NO", "True", "FALSE", "Null", "010", "0x1f", "0o17", "0b1", "1_000"),
    *(
        "12:30",
        "1:30:05",
        "2026-11-26",
        "2026-11-26T12:30:00Z",
        "=",
        "<<",
        "1e",
        "e4",
        "1.2.3",
        "-",
        "+",
        ".",
        "1e-4 m",
    ),
]


@pytest.mark.parametrize("text", [text for text in TEXTS if text != "-"])
def test_what_other_yamls_take_for_something_else_is_text(tmp_path: Path, text: str):
    (tmp_path / "a.yaml").write_text(f"value: {text}\n{text}: 1\n")
    assert files.read_data(tmp_path / "a.yaml") == {"value": text, text: 1}


VALUES = [
    *TEXTS,
    *(
        "",
        " ",
        "a: b",
        "a #b",
        "#",
        "null",
        "~",
        "true",
        "1",
        "1e-4",
        "-.5",
        ".inf",
        ".nan",
        "0.0",
        "a\nb",
        "\ta",
        "ä — 中",
    ),
    *("{", "[", "!x", "&a", "*a", "|", ">", "%", "@", "`", "'", '"', "- a", "? a", "\\", "x" * 300, "a  b " * 60),
    *(0, -3, 10**15, 0.1, 1e-4, 1e-6, 2.5e-300, 1e22, -0.0, 1.0, math.inf, -math.inf, True, False, None),
    *([], {}, [[]], [1, [2.0, None]], {"a": {"b": [{"c": "no"}]}}),
]


def test_what_is_written_as_yaml_is_read_again(tmp_path: Path):
    same = [0.5, 3]
    data = {f"key {number}": value for number, value in enumerate(VALUES)} | {
        "no": same,
        "1e-4": same,
        "ä": [same, same],
    }
    text = files.yaml_text(data)
    assert "&" not in text.replace("'&a'", "")  # no anchors: people edit it
    assert list(files.read_data(saved(tmp_path / "a.yaml", text))) == list(data)
    found = files.read_data(tmp_path / "a.yaml")
    assert found == data
    assert [type(one) for one in found.values()] == [type(one) for one in data.values()]
    for number, value in enumerate(VALUES):  # each alone too: one might mend another
        alone = files.read_data(saved(tmp_path / "b.yaml", files.yaml_text({"value": value})))
        assert (alone, type(alone["value"])) == ({"value": value}, type(value)), number


def saved(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_json_is_read_by_its_ending(tmp_path: Path):
    assert files.read_data(saved(tmp_path / "a.json", '{"a": 1e-4, "b": [true, null]}')) == {
        "a": 1e-4,
        "b": [True, None],
    }
    assert files.read_data(saved(tmp_path / "A.JSON", '{"a": 1}')) == {"a": 1}
    assert files.read_data(saved(tmp_path / "a.YAML", '{"a": 1e-4}')) == {"a": 1e-4}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.yaml", "a: 1\nb: 2\na: 3\n", "'a' stands there twice"),
        ("a.yaml", "a:\n  b: 1\n  b: 1\n", "'b' stands there twice"),
        ("a.yaml", "[{a: 1, a: 2}]", "'a' stands there twice"),
        ("a.yaml", "a: [1, 2\nb: 3\n", "cannot be read"),
        ("a.yaml", "a: 'b\n", "cannot be read"),
        ("a.yaml", "a: b: c\n", "cannot be read"),
        ("a.yaml", "\ta: 1\n", "cannot be read"),
        ("a.yaml", "a: *nothing\n", "cannot be read"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []\n", "cannot be read"),
        ("a.yaml", "a: 1\n---\nb: 2\n", "cannot be read"),
        ("a.yaml", "a: \x07\n", "cannot be read"),
        ("a.yaml", "? {a: 1}\n: 2\n", "cannot be read"),
        ("a.yaml", "[" * 3000, "cannot be read"),
        ("a.yaml", "", "must hold an object"),
        ("a.yaml", "just words\n", "must hold an object"),
        ("a.yaml", "- 1\n- 2\n", "must hold an object"),
        ("a.json", '{"a": 1', "cannot be read"),
        ("a.json", "a: 1", "cannot be read"),
        ("a.json", "[1]", "must hold an object"),
        ("a.json", '{"a": 1, "a": 2}', "'a' stands there twice"),
        ("a.json", "[" * 100_000, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_that_names_the_file(tmp_path: Path, name: str, text: str, reason: str):
    path = saved(tmp_path / name, text)
    with pytest.raises(ConfigError, match=reason) as error:
        files.read_data(path)
    assert str(error.value).startswith(str(path))
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_no_file_a_folder_and_bytes_that_are_no_text(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^there is no file '.*none\.yaml'\.$"):
        files.read_data(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml cannot be read"):
        files.read_data(tmp_path / "folder.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"bytes\.yaml cannot be read"):
        files.read_data(tmp_path / "bytes.yaml")


# Recipes in files


def every_recipe() -> list[str]:
    tinies = [f"{name}-tiny" for name, recipe in GENERATORS.items() if recipe.published is not None]
    return [*RECIPES, *(twin for name in RECIPES for twin in twins(name)), *GENERATORS, *tinies]


def test_every_recipe_survives_a_file(tmp_path: Path):
    names = every_recipe()
    assert len(names) > 40
    for name in names:
        recipe = open_recipe(name)
        text = recipe_text(recipe)
        again = open_recipe(saved(tmp_path / "a.yaml", text))
        assert again == recipe, name
        assert open_recipe(saved(tmp_path / "a.json", json.dumps(to_dict(recipe)))) == recipe, name
        assert recipe_text(again) == text, name
        assert max(map(len, text.splitlines())) <= 120, name


def test_changes_are_made_in_a_file_as_by_name(tmp_path: Path):
    path = saved(tmp_path / "mine.yaml", recipe_text(open_recipe("emoji-64")))
    changes = {"optimizer.lr": 3e-4, "steps": 500, "tokenizer.quantizer.inner.tau": "0.1"}
    assert open_recipe(path, changes=changes) == open_recipe("emoji-64", changes=changes)
    assert open_recipe(path, changes=changes).optimizer.lr == 3e-4
    edited = path.read_text().replace("steps: ", "steps: 500  # was ", 1)
    assert open_recipe(saved(path, edited)).steps == 500
    with pytest.raises(ConfigError, match="there is no field 'stepps'; did you mean steps"):
        open_recipe(path, changes={"stepps": 3})


def test_a_file_of_the_other_kind_is_a_sentence(tmp_path: Path):
    kinds = {"tokenizer": "emoji-64", "generator": "emoji-sit"}
    for kind, name in kinds.items():
        path = saved(tmp_path / f"{kind}.yaml", recipe_text(open_recipe(name)))
        assert open_recipe(path, kind) == open_recipe(path) == open_recipe(name, kind)
        other = next(one for one in kinds if one != kind)
        for given in (path, str(path), name):
            with pytest.raises(
                ConfigError, match=rf"{Path(given).name} is the recipe of a {kind}, not of a {other}: `softvq train"
            ):
                open_recipe(given, other)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.pop("tokenizer"), "lacks the key 'tokenizer'"),
        (lambda data: data.update(stpes=3), r"unknown key 'stpes'; did you mean steps\?"),
        (lambda data: data.update(steps="many"), r'\.steps must be a whole number, not "many"'),
        (lambda data: data.update(steps=1e3), r"\.steps must be a whole number, not 1000\.0"),
        (lambda data: data["optimizer"].update(lr="no"), r'\.optimizer\.lr must be a number, not "no"'),
        (lambda data: data["optimizer"].update(lr=math.inf), r"\.optimizer\.lr must be a finite number"),
        (lambda data: data["tokenizer"]["quantizer"].update(type="SoftVC"), r"did you mean SoftVQ\?"),
        (lambda data: data.clear(), "lacks the key"),
    ],
)
def test_what_is_wrong_in_a_recipes_file_is_said_with_its_place(tmp_path: Path, change, reason: str):
    data = to_dict(open_recipe("emoji-64"))
    change(data)
    path = saved(tmp_path / "mine.yaml", files.yaml_text(data))
    with pytest.raises(ConfigError, match=reason) as error:
        open_recipe(path, "tokenizer")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_recipe_of_a_model_is_had_by_its_folder_or_its_configuration(tmp_path: Path):
    for name, kind in (("softvq-emoji-64", TokenizerRecipe), ("emoji-sit", GeneratorRecipe)):
        folder = hub.BUNDLED / name
        stored = from_dict(kind, files.read_json(folder / hub.CONFIG)["about"]["recipe"])
        assert open_recipe(folder) == open_recipe(str(folder)) == open_recipe(folder / hub.CONFIG) == stored
    with pytest.raises(ConfigError, match="a generator, not of a tokenizer"):
        open_recipe(hub.BUNDLED / "emoji-sit", "tokenizer")
    vit = ViTConfig(width=8, depth=1, heads=1, patch_size=8)
    Tokenizer(TokenizerConfig(16, 4, 3, vit, vit, AEConfig())).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not say which recipe it was trained with"):
        open_recipe(tmp_path)
