"""One base of errors, in the library's words; the command line adds its options."""

import ast
import math
import re
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize("value", [3, np.int64(3), 0, -1])
def test_whole_numbers_are_numbers_too(value):
    assert errors.is_whole(value)
    assert errors.is_number(value)


@pytest.mark.parametrize("value", [2.5, np.float32(2.5), -1e300, 2.0])
def test_numbers_with_a_point_are_not_whole(value):
    assert not errors.is_whole(value)
    assert errors.is_number(value)


@pytest.mark.parametrize("value", [True, np.True_, None, "3", math.nan, math.inf, -math.inf, np.float32("nan"), 1j, []])
def test_what_is_no_number(value):
    assert not errors.is_whole(value)
    assert not errors.is_number(value)
    for check in (errors.check_whole, errors.check_number):
        with pytest.raises(errors.ConfigError, match=f"num must be a .* number, not {re.escape(repr(value))}") as error:
            check("num", value)
        assert error.value.setting == "num"


def test_bounds_are_inside():
    errors.check_whole("num", 1, 1)
    errors.check_number("share", 0, 0, 1)
    errors.check_number("share", 1.0, 0, 1)
    with pytest.raises(errors.ConfigError, match=r"^num must be at least 1, not 0"):
        errors.check_whole("num", 0, 1)
    for value, sentence in ((-0.1, "not -0.1"), (1.5, "not 1.5")):
        assert not errors.is_number(value, 0, 1)
        with pytest.raises(errors.ConfigError, match=f"^share must be from 0 to 1, {sentence}"):
            errors.check_number("share", value, 0, 1)
    with pytest.raises(errors.ConfigError, match=r"^scale must be at least 0, not -2"):
        errors.check_number("scale", -2, 0)
