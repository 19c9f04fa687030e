"""Files, written whole or not at all: the only place that writes any.

    with atomic(path) as temporary: ...      # a file beside `path`, which takes its place when the block ends well
    write_json(path, data); write_tensors(path, tensors)

New files have the modes that the umask gives; files that would not fit on the disk are refused before they are written.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TextIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from softvq.errors import ConfigError, ModelError, StorageError

try:
    import fcntl
except ImportError:  # Windows has no such locks, and processes there are not kept apart
    fcntl = None

AGAIN = "delete it, and make or download it again"
LOCK = ".lock"  # in a folder in which one process alone may work
_HELD: set[Path] = set()  # locks of this process, which the system would give it once more
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_MARGIN = 2**20  # bytes that are left free


@contextmanager
def atomic(path: Path, size: int = 0) -> Iterator[Path]:
    """Open a block with a temporary file that takes the place of `path` when the block ends well.

    It lies beside `path`, and is removed when the block does not end well. `size` is the number of bytes that it will
    have, where it is known. Raise `StorageError` when there is no room for them, or the file cannot be made.
    """
    need_room(path, size)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the umask takes its part
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with storing(path, temporary):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def storing(path: Path, *temporary: Path) -> Iterator[None]:
    """Open a block in which a full disk, and any error of a `temporary` file, is a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None and Path(os.fsdecode(error.filename)) in temporary
        if isinstance(error, StorageError) or not (named or error.errno in _NO_ROOM):
            raise
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be written ({error.strerror or first_line(error)}).")


@contextmanager
def locked(folder: Path, setting: str | None = "out") -> Iterator[None]:
    """Open a block in which this process alone works in a folder, which is made where it is missing.

    The system frees the lock of a process however it ends, and its children do not inherit it. Folders that were made
    for the block and are empty at its end go again. Raise `StorageError` when another process is at work there; it
    names the process, and `setting` as what to change.
    """
    path, new = folder.resolve() / LOCK, [one for one in (folder, *folder.parents) if not one.exists()]
    busy = f"{folder} is in use by %s; wait until it has ended, or use another folder."
    if path in _HELD:
        raise StorageError(busy % "this process already", setting=setting)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise _cannot_write(folder, error) from error
    with file:
        if (owner := _lock(file, path)) is not None:
            raise StorageError(busy % owner, setting=setting)
        _HELD.add(path)
        try:
            yield
        finally:
            _HELD.discard(path)
            path.unlink(missing_ok=True)  # while it is held, see `_lock`
            with suppress(OSError):  # it holds something
                for one in new:
                    one.rmdir()


def _lock(file: TextIO, path: Path) -> str | None:
    """Lock a file and write into it who has; return who has locked it, if another process."""
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # some file systems know no locks
            file.seek(0)
            return file.read().strip() or "another process"
    if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
        return "another process"  # which has just left, and another may have come
    with storing(path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return None


@contextmanager
def atomic_folder(path: Path, size: int = 0) -> Iterator[Path]:
    """Open a block with a temporary folder that replaces the one at `path` as a whole when the block ends well.

    `size` is as in `atomic`.
    """
    need_room(path, size)
    temporary = path.with_name(f".writing-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with storing(path, temporary):
            yield temporary
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path, size: int = 0, *, folder: bool = False) -> None:
    """Raise `StorageError` when no file could be written at `path`, or `size` bytes do not fit.

    With `folder` it is a folder that could not be made there. This is called before long work whose result is to be
    written there. Nothing is left behind: a file is tried out in the nearest folder that exists.
    """
    if path.exists() and path.is_dir() != folder:
        raise StorageError(
            f"{path} is {'a file' if folder else 'a folder'}; name {'a folder' if folder else 'a file'}."
        )
    existing = path if folder else path.parent
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise StorageError(f"{path} cannot be written: {existing} is a file.")
    trial = existing / f".{secrets.token_hex(8)}"
    try:
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        trial.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error
    need_room(path, size)


def need_room(path: Path, size: int) -> None:
    """Raise `StorageError` when `size` bytes do not fit on the disk where `path` is to be."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size and size + _MARGIN > free:
        raise StorageError(f"there is no room for {path}: it needs {_megabytes(size)}, {_megabytes(free)} are free.")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of bytes of tensors in memory, which is about that in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_text(path: Path, text: str) -> None:
    r"""Write a text file (UTF-8) atomically; bytes of names that are no UTF-8 become escapes, `\udce9`, JSON's own."""
    data = text.encode("utf-8", "backslashreplace")
    with atomic(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, readable by people."""
    write_text(path, json_text(data))


def json_text(data: Mapping[str, Any]) -> str:
    """Return a JSON object as it is written to files."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise `ModelError` when it cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON ({first_line(error)}); {AGAIN}{_stored_as(path)}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return data


def read_data(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or in a YAML file (`.yaml`, `.yml`); raise `ConfigError` when there is none.

    YAML is read as version 1.2 has it: `1e-4` is a number; `no`, `on`, `010` and `12:30` are text.
    """
    try:
        text = path.read_text(encoding="utf-8")
        is_json = path.suffix.lower() == ".json"
        data = json.loads(text, object_pairs_hook=_object) if is_json else _yaml().load(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)}).") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold an object: names and values.")
    return data


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of these pairs; raise `ValueError` when a name stands there twice."""
    _check_once([name for name, _ in pairs])
    return dict(pairs)


def _check_once(names: list[Any]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} stands there twice")


def yaml_text(data: Mapping[str, Any]) -> str:
    """Return an object as YAML that `read_data` reads again."""
    return _yaml().dump(data)


class _Yaml:
    """A reader and writer of YAML with the plain values of version 1.2, which PyYAML has otherwise."""

    RESOLVERS = (
        ("tag:yaml.org,2002:null", r"~|null|", ["~", "n", ""]),
        ("tag:yaml.org,2002:bool", r"true|false", ["t", "f"]),
        ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
        (
            "tag:yaml.org,2002:float",
            r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan",
            list("-+.0123456789"),
        ),
    )

    def __init__(self):
        import yaml  # only recipes' files need it

        class Loader(yaml.SafeLoader):
            yaml_implicit_resolvers: ClassVar = {}

            def construct_mapping(self, node: Any, deep: bool = False) -> dict:
                _check_once([self.construct_object(key, deep=True) for key, _ in node.value])
                return super().construct_mapping(node, deep)

        class Dumper(yaml.SafeDumper):
            def ignore_aliases(self, data: Any) -> bool:
                return True

        for tag, pattern, first in self.RESOLVERS:
            for cls in (Loader, Dumper):  # what the one would read as a number, the other writes in quotes
                cls.add_implicit_resolver(tag, re.compile(f"^(?:{pattern})$"), first)
        Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _float(loader.construct_scalar(node)))
        self.yaml, self.loader, self.dumper = yaml, Loader, Dumper

    def load(self, text: str) -> Any:
        """Return the content of a text; raise `ValueError` when it is no YAML."""
        try:
            return self.yaml.load(text, self.loader)
        except self.yaml.YAMLError as error:
            raise ValueError(str(error).replace("\n", " ")) from error

    def dump(self, data: Any) -> str:
        """Return a text that holds this object."""
        return self.yaml.dump(data, Dumper=self.dumper, sort_keys=False, allow_unicode=True, width=110)


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


@lru_cache(1)
def _yaml() -> _Yaml:
    return _Yaml()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path, size_of(plain)) as temporary:
        temporary.write_bytes(to_bytes(plain, metadata=dict(metadata) if metadata else None))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return a safetensors file's tensors on the CPU; raise `ModelError` when it is missing or damaged."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{path} is truncated or not a safetensors file ({first_line(error)}); {AGAIN}{_stored_as(path)}."
        ) from error


def _stored_as(path: Path) -> str:
    """Return the file to delete, in brackets, where the path is a link to it, as in the hub's cache."""
    return f" (the file is {path.resolve()})" if path.is_symlink() else ""


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text that a safetensors file carries beside its tensors, by name."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, its kind where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def hashed(data: bytes | str, digits: int = 16) -> str:
    """Return the first hex digits of the SHA-256 of bytes, or of a text whatever is in it."""
    return hashlib.sha256(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data).hexdigest()[
        :digits
    ]


def checksum(path: Path) -> str:
    """Return the first 16 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()[:16]


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of a configuration and every tensor, whatever type and file they are stored in."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
