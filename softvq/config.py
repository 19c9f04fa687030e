"""Frozen dataclasses to and from JSON, strictly.

Every model and every recipe is described by frozen dataclasses. This module turns them into plain JSON and back.
An unknown key, a missing key, a value of the wrong type or an unknown variant is a `ConfigError`: one sentence that
says where it stands and which values are valid.

A field may be of a family: `QuantizerConfig`, `GeneratorConfig`, `DiscriminatorConfig`, `OptimizerConfig`, `Source`.
Its value is then any class that is registered in the family, and is stored with the key `"type"`, the class's name
without its `Config` suffix (`{"type": "SoftVQ", "codebook_size": 8192, ...}`):

    @register
    @dataclass(frozen=True)
    class RoundConfig(QuantizerConfig): ...        # known as "Round" from here on
"""

import dataclasses
import difflib
import inspect
import json
import math
import numbers
import os
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from softvq import plugins
from softvq.errors import ConfigError, PluginError, UnknownVariant

T = TypeVar("T")
C = TypeVar("C", bound=type)

_COMPARED = 10_000  # names that are compared for likeness at most: it takes a millisecond for each ten
_LISTED = 24  # names in an error's sentence at most
_FAMILIES: dict[type, dict[str, type]] = {}  # base class -> its registered classes by name


def family(base: C) -> C:
    """Make a class the base of a family, whose derived classes can be registered."""
    _FAMILIES[base] = {}
    return base


def register(cls: C) -> C:
    """Make a frozen dataclass known by name in the family that it is derived from.

    The families are those of `QuantizerConfig`, `GeneratorConfig`, `DiscriminatorConfig`, `OptimizerConfig` and
    `Source`. The name is the class's without `Config`.

        @softvq.register
        @dataclass(frozen=True)
        class RoundConfig(QuantizerConfig): ...        # `--tokenizer.quantizer Round`

    A class that is registered again (a notebook's cell that is run twice) takes its own place. Raise `PluginError` for
    another class of a name that is taken, and for one that is in no family.
    """
    if not isinstance(cls, type):
        raise PluginError(f"register takes a class, not {cls!r}: write @softvq.register without brackets.")
    name = variant_name(cls)
    if not ("__dataclass_params__" in vars(cls) and cls.__dataclass_params__.frozen):
        raise PluginError(f"{cls.__name__} must be a frozen dataclass: put @dataclass(frozen=True) below @register.")
    if inspect.isabstract(cls):
        raise PluginError(f"{cls.__name__} lacks {', '.join(sorted(cls.__abstractmethods__))}.")
    bases = [base for base in _FAMILIES if issubclass(cls, base)]
    if not bases:
        known = ", ".join(base.__name__ for base in _FAMILIES)
        raise PluginError(f"{cls.__name__} is derived from none of the bases of families, such as {known}.")
    for base in bases:
        lacking = [one for one in getattr(base, "required", ()) if one not in _fields(cls) and not hasattr(cls, one)]
        if lacking:
            raise PluginError(f"{cls.__name__} lacks {', '.join(lacking)}, which every {base.__name__} has.")
        old = _FAMILIES[base].get(name)
        if old is not None and _origin(old) != _origin(cls):
            raise PluginError(
                f"{cls.__name__} cannot be registered as {name!r}, which is {old.__module__}.{old.__qualname__} "
                "already; give it another name."
            )
        _FAMILIES[base][name] = cls
    return cls


def _fields(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _origin(cls: type) -> tuple[str, str]:
    """Return the place where a class was written, equal for two imports of one file."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return cls.__qualname__, str(Path(file).resolve()) if file else cls.__module__


def variants(base: type) -> dict[str, type]:
    """Return the registered classes of a family by name, those of installed plugins too."""
    plugins.load_installed()
    return dict(sorted(_FAMILIES[base].items()))


def variant_name(cls: type) -> str:
    """Return the name by which a class is known: its own without the suffix `Config`."""
    return cls.__name__.removesuffix("Config")


def tagged(config: Any) -> dict[str, Any]:
    """Return a family's configuration as JSON-ready values, with its `type` first."""
    cls, name = type(config), variant_name(type(config))
    registered = [classes[name] for base, classes in _FAMILIES.items() if isinstance(config, base) and name in classes]
    if not any(_origin(other) == _origin(cls) for other in registered):
        raise ConfigError(f"{cls.__name__} is not registered: put @softvq.register above its @dataclass.")
    return {"type": name, **to_dict(config)}


def lookup(table: dict[str, T], name: str, what: str) -> T:
    """Return the entry of a dictionary of functions under a name, those of installed plugins included.

    Raise `UnknownVariant`, which lists the names there are, when there is none; `what` says what the names are of, such
    as "path".
    """
    if name not in table:
        plugins.load_installed()
    if name not in table:
        raise UnknownVariant(name, f"there is no {what} {name!r}{nearest(name, list(table))}")
    return table[name]


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as JSON-ready values (dict, list, str, int, float, bool, None)."""
    hints = typing.get_type_hints(type(config))
    return {field.name: _plain(getattr(config, field.name), hints[field.name]) for field in dataclasses.fields(config)}


def later(default: Any) -> Any:
    """Return a dataclass field that a later version added: at its default it is no part of `identity`."""
    return dataclasses.field(default=default, metadata={"later": True})


def identity(config: Any) -> dict[str, Any]:
    """Return `to_dict` without the fields that later versions added where they have their defaults.

    Fingerprints are made of this, so that a new field does not make a stranger of an old model.
    """
    plain = to_dict(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("later") and value == field.default:
            del plain[field.name]
        elif dataclasses.is_dataclass(value):
            variant = {"type": plain[field.name]["type"]} if "type" in plain[field.name] else {}
            plain[field.name] = variant | identity(value)
    return plain


def from_dict(cls: type[T], data: Any, where: str = "config") -> T:
    """Build `cls` from the values that `to_dict` returned.

    Keys with a default may be left out. Raise `ConfigError` for unknown and missing keys and for values that do not
    fit.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be an object with the keys of {cls.__name__}, not {_show(data)}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where} has the unknown key {key!r}{nearest(key, list(fields))}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _parse(hints[name], _with_type(field, hints[name], data[name]), f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} lacks the key {name!r}.")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:  # a dataclass's own __post_init__ check
        raise ConfigError(f"{where}: {error}") from error


def check_numbers(config: Any, where: str) -> None:
    """Raise `ConfigError` when a dataclass that was made in Python holds a number that its file could not.

    Numbers must be finite, and whole where the field says so; those in nested dataclasses, lists and dictionaries too.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        _check_number(hint, getattr(config, name, None), f"{where}.{name}")


def _check_number(hint: Any, value: Any, where: str) -> None:
    kinds = {arg for arg in typing.get_args(hint) if arg not in (Ellipsis, type(None), str)}
    inner = kinds.pop() if len(kinds) == 1 else hint
    if dataclasses.is_dataclass(value):
        check_numbers(value, where)
    elif isinstance(value, Mapping | tuple | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_number(inner, item, f"{where}[{key!r}]")
    elif isinstance(value, numbers.Real):
        plain = getattr(value, "item", lambda: value)()  # NumPy's numbers as Python's
        _parse(inner if inner in (int, float) else type(plain), plain, where)


def _with_type(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    """Return the value of a family's field with its `type`: without one it is that of the field's default."""
    if not _is_family(hint) or not isinstance(value, dict) or "type" in value:
        return value
    made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return value if made is dataclasses.MISSING else {"type": variant_name(type(made)), **value}


class UnknownField(ConfigError):
    """The error of a dotted field that does not exist: its `path`, and the `valid` ones."""

    def __init__(self, path: str, valid: list[str]):
        super().__init__(f"there is no field {path!r}{nearest(path, valid)}")
        self.path, self.valid = path, valid


def override(config: T, changes: Mapping[str, Any], where: str = "") -> T:
    """Return a copy with dotted fields replaced.

    The new values are given as they are, `{"optimizer.lr": 3e-4}`, or as text, `{"optimizer.lr": "3e-4"}`.

    Text is read as JSON where it is JSON, else as strings; a field that holds a string keeps the text as it is (but for
    `null`). A field of a family also takes just the name of a variant (`quantizer` = `VQ`: that variant with its
    defaults), and later changes may then set the variant's own fields. Raise `UnknownField` for fields that do not
    exist.
    """
    where = where or type(config).__name__
    data = to_dict(config)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if node is None and (parent := _null_parent(data, parents)):
            raise ConfigError(
                f"{parent} is null and has no fields yet: give it whole, as JSON, such as "
                f'{parent} = {{"{path.removeprefix(parent + ".").split(".")[0]}": …}}.'
            )
        if not isinstance(node, dict) or last not in node:
            raise UnknownField(path, _walk(data))
        old = node[last]
        is_text = isinstance(old, str) and value != "null"
        node[last] = _json_or_text(value) if isinstance(value, str) and not is_text else _plain_or_tagged(value)
        if isinstance(old, dict) and "type" in old:  # another variant has other fields
            data = to_dict(from_dict(type(config), data, where))
    return from_dict(type(config), data, where)


def _null_parent(data: dict[str, Any], parents: list[str]) -> str | None:
    """Return the dotted name of the field that is null on the way down, None where there is no such field at all."""
    node: Any = data
    for depth, parent in enumerate(parents):
        if not isinstance(node, dict) or parent not in node:
            return None
        node = node[parent]
        if node is None:
            return ".".join(parents[: depth + 1])
    return None


def _plain_or_tagged(value: Any) -> Any:
    """Return a value as JSON has it; a configuration of a family with its `type`."""
    if not dataclasses.is_dataclass(value):
        return value
    return tagged(value) if any(isinstance(value, base) for base in _FAMILIES) else to_dict(value)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _walk(node: dict, prefix: str = "") -> list[str]:
    """Return every dotted name of nested dictionaries."""
    names = []
    for key, value in node.items():
        names.append(prefix + key)
        if isinstance(value, dict):
            names += _walk(value, f"{prefix}{key}.")
    return names


def _plain(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return tagged(value) if _is_family(hint) or _is_family(_optional(hint)) else to_dict(value)
    if isinstance(value, Path):
        return str(value)
    items = [arg for arg in typing.get_args(hint) if arg is not Ellipsis and arg is not type(None)]
    if isinstance(value, tuple | list):
        return [_plain(item, items[min(n, len(items) - 1)] if items else None) for n, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _plain(item, items[-1] if items else None) for key, item in value.items()}
    return value


def _parse(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if _is_family(hint):
        return parse(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (typing.Union, types.UnionType):  # X | None
        if value is None and type(None) in args:
            return None
        return _parse(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool):
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, args))}, not {_show(value)}.")
        return value
    if origin is tuple:
        return _parse_tuple(args, value, where)
    if origin is list:
        return list(_parse_tuple((args[0], Ellipsis), value, where))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be an object, not {_show(value)}.")
        return {str(key): _parse(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is Path and isinstance(value, str):
        return Path(os.path.expanduser(value))  # which leaves a ~ where there is no home folder
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1023 else math.inf
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {_article(hint)}, not {_show(value)}.")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, not {value}.")
    return value


def parse(base: type, value: Any, where: str) -> Any:
    """Build the configuration of a family from the values that `tagged` returned, or from a name alone.

    Raise `UnknownVariant` when the name is not registered.
    """
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict) or "type" not in value:
        raise ConfigError(f"{where} must be an object whose 'type' is one of {', '.join(variants(base))}.")
    name = value["type"]
    if not isinstance(name, str):
        raise ConfigError(f"{where}.type must be one of {', '.join(variants(base))}, not {_show(name)}.")
    if name not in _FAMILIES[base] and name not in variants(base):
        known = ", ".join(variants(base))
        near = nearest(name, list(variants(base)))
        hint = near if near.endswith("?") else "."
        raise UnknownVariant(name, f"{where}.type must be one of {known}, not {_show(name)}{hint}")
    return from_dict(_FAMILIES[base][name], {k: v for k, v in value.items() if k != "type"}, where)


def _is_family(hint: Any) -> bool:
    return isinstance(hint, type) and hint in _FAMILIES


def _optional(hint: Any) -> Any:
    """Return X of `X | None`, else None."""
    args = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return args[0] if len(args) == 1 and typing.get_origin(hint) in (typing.Union, types.UnionType) else None


def _parse_tuple(args: tuple, value: Any, where: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} must be a list, not {_show(value)}.")
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise ConfigError(f"{where} must have {len(args)} entries, not {len(value)}.")
    return tuple(_parse(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))


def _article(hint: type) -> str:
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}.get(hint, hint.__name__)


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(name: str, valid: list[str], mark: str = "", every: str = "") -> str:
    """Return `; did you mean …?` for close names, else the list of valid ones where it is short.

    `mark` is put before each name (`--`); `every` says where a long list can be read.
    """
    same_end = [other for other in valid if other.split(".")[-1].casefold() == name.split(".")[-1].casefold()]
    folded = {other.casefold(): other for other in reversed(valid)}
    close = [] if len(folded) > _COMPARED else difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
    if near := list(dict.fromkeys([*same_end, *(folded[one] for one in close)]))[:3]:
        return f"; did you mean {' or '.join(mark + name for name in near)}?"
    if len(valid) > _LISTED:
        return f"; {every} lists them all." if every else "."
    return f"; valid: {', '.join(mark + name for name in valid)}."
