"""One base of errors, in the library's words; the command line adds its options."""

import ast
import re
from pathlib import Path

import pytest

import softvq
from softvq import errors

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
