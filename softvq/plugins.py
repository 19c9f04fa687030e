"""A user's own files: quantizers, generators, samplers … that register themselves when they are imported.

    load("my_quantizer.py")        # what `softvq … --plugin my_quantizer.py` does
    load_installed()               # packages that announce modules in the entry-point group `softvq.plugins`

Nothing is ever imported because a model's folder names it: the person who loads a model says which code to trust.
"""

import hashlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from softvq.errors import Notice, PluginError

GROUP = "softvq.plugins"
T = TypeVar("T")


@dataclass
class _Loaded:
    """The plugins of this process: files by path with their checksums, and what installed packages have announced."""

    files: dict[str, str] = field(default_factory=dict)
    installed: dict[str, str] | None = None


_LOADED = _Loaded()


def load(path: str | Path) -> ModuleType:
    """Import a Python file once (again where it has changed), under a name of its own; return the module.

    The file can import modules beside it, as a script can. Raise `PluginError`, which says what went wrong in it.
    """
    file = Path(os.path.expanduser(path)).resolve()
    if not file.is_file():
        raise PluginError(f"there is no file {str(path)!r} to load as a plugin.", setting="plugin")
    name = f"softvq_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules and _LOADED.files.get(str(file)) == checksum(file):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is no Python file (.py).", setting="plugin")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    _run(lambda: spec.loader.exec_module(module), str(path), lambda: sys.modules.pop(name))
    _LOADED.files[str(file)] = checksum(file)
    return module


def checksum(file: Path) -> str:
    """Return the first 16 hex digits of a file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def load_installed() -> None:
    """Import the modules that installed packages announce in the group `softvq.plugins`, once in this process.

    It is called when a name is looked up that is not known. A module that cannot be loaded is a `Notice`.
    """
    if _LOADED.installed is not None:
        return
    _LOADED.installed = {}
    for entry in entry_points(group=GROUP):
        try:
            _run(entry.load, f"the installed plugin {entry.name!r} ({entry.value})", lambda: None)
        except PluginError as error:  # what has nothing to do with it goes on
            warnings.warn(str(error), Notice, stacklevel=2)
            continue
        distribution = entry.dist
        _LOADED.installed[entry.value] = "" if distribution is None else f"{distribution.name} {distribution.version}"


def _run(action: Callable[[], Any], what: str, undo: Callable[[], Any]) -> None:
    try:
        action()
    except PluginError:
        undo()
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        undo()
        reason = str(error).strip().splitlines()
        at = _line_in(error, what)
        raise PluginError(
            f"{what} cannot be loaded ({type(error).__name__}{at}: {reason[0] if reason else ''})."
        ) from error


def _line_in(error: BaseException, file: str) -> str:
    """Return the place in the file where an error arose, as ` in line 12`; nothing if it arose elsewhere."""
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(Path(file).name):
            line = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    return line


def files() -> tuple[str, ...]:
    """Return the paths of the files that were loaded."""
    return tuple(_LOADED.files)


def described() -> dict[str, str]:
    """Return the record of plugins for a run or a model, by name.

    It has each file's name with the beginning of its SHA-256, and each announced module with its package and version.
    """
    own: dict[str, str] = {}
    for path, digest in _LOADED.files.items():
        name = Path(path).name
        own[str(Path(Path(path).parent.name, name)) if name in own else name] = digest
    return {**own, **(_LOADED.installed or {})}


def carried(value: T) -> T:
    """Return the value in such a form that a process which unpickles it has these plugins loaded first.

    Data workers get it where they do not inherit this process's memory. Without plugins it is the value itself.
    """
    if not _LOADED.files and not _LOADED.installed:
        return value
    return _Carried(value)


class _Carried:
    """A stand-in for another object, with its items and length."""

    def __init__(self, value: Any):
        self.value = value

    def __reduce__(self) -> tuple:
        return _after, (_Needed(files(), bool(_LOADED.installed)), self.value)  # unpickled in this order

    def __getitem__(self, index: int) -> Any:
        return self.value[index]

    def __len__(self) -> int:
        return len(self.value)


def _after(_: None, value: Any) -> _Carried:
    return _Carried(value)


@dataclass(frozen=True)
class _Needed:
    """The plugins of this process; where it is unpickled, they are loaded."""

    paths: tuple[str, ...]
    installed: bool

    def __reduce__(self) -> tuple:
        return _load_all, (self.paths, self.installed)


def _load_all(paths: tuple[str, ...], installed: bool) -> None:
    for path in paths:
        load(path)
    if installed:
        load_installed()
