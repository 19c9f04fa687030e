"""One base of errors, in the library's words; the command line adds its options."""

import ast
import re
from pathlib import Path

import pytest

import softvq
from softvq import errors
from softvq.cli.errors import exit_code_of, is_for_users, sentence

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning)
]
ROOT = Path(softvq.__file__).parent


def test_one_except_catches_them_all_and_the_former_bases_too():
    assert all(issubclass(kind, errors.SoftVQError) for kind in KINDS)
    for name in ("ConfigError", "DataError", "ImageError", "ModelError", "MetricError"):
        assert issubclass(getattr(errors, name), ValueError)
    for name in ("TrainingError", "Interrupted", "LogError"):
        assert issubclass(getattr(errors, name), RuntimeError)
    assert issubclass(errors.StorageError, OSError)


@pytest.mark.parametrize(
    ("error", "printed", "code"),
    [
        (errors.DataError("there is no folder."), "there is no folder.", 1),
        (errors.ConfigError("use another folder.", setting="out"), "use another folder (--out).", 2),
        (errors.TrainingError("too many", setting="most_bad"), "too many (--most-bad).", 1),
        (errors.Interrupted(15, "stopped."), "stopped.", 143),
        (errors.StorageError("there is no room."), "there is no room.", 1),
        (PermissionError(13, "Permission denied", "folder/x"), "folder/x: Permission denied.", 1),
    ],
)
def test_what_the_command_line_prints(error: Exception, printed: str, code: int):
    assert is_for_users(error)
    assert (sentence(error), exit_code_of(error)) == (printed, code)


def test_a_bug_is_no_sentence():
    assert not is_for_users(KeyError("x"))


def raised(path: Path) -> list[str]:
    """The texts of all that a file raises."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            found += [str(n.value) for n in ast.walk(node.exc) if isinstance(n, ast.Constant)]
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_of_the_library_names_an_option(path: Path):
    if path.is_relative_to(ROOT / "cli"):
        return
    assert not [text for text in raised(path) if re.search(r"(^|[\s(])--[a-z]", text)]
