"""Frozen dataclasses to and from JSON, strictly.

Every model and every recipe is described by frozen dataclasses. This module turns them into plain JSON and back.
An unknown key, a missing key, a value of the wrong type or an unknown variant is a `ConfigError`: one sentence that
says where it stands and which values are valid. A field whose type is a union of dataclasses is stored with the key
`"type"`: the class name without its `Config` suffix (`{"type": "SoftVQ", "codebook_size": 8192, ...}`).
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Any, TypeVar

from softvq.errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as JSON-ready values (dict, list, str, int, float, bool, None)."""
    hints = typing.get_type_hints(type(config))
    return {field.name: _plain(getattr(config, field.name), hints[field.name]) for field in dataclasses.fields(config)}


def later(default: Any) -> Any:
    """A dataclass field that a later version added: at its default it is no part of `identity`."""
    return dataclasses.field(default=default, metadata={"later": True})


def identity(config: Any) -> dict[str, Any]:
    """`to_dict` without the fields that later versions added where they have their defaults: what fingerprints are made
    of, so that a new field does not make a stranger of an old model."""
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
    """Build `cls` from what `to_dict` gave. Keys with a default may be left out; unknown keys are errors."""
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
            values[name] = _parse(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} lacks the key {name!r}.")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:  # a dataclass's own __post_init__ check
        raise ConfigError(f"{where}: {error}") from error


class UnknownField(ConfigError):
    """A dotted field that is not there: `path`, and the `valid` ones."""

    def __init__(self, path: str, valid: list[str]):
        super().__init__(f"there is no field {path!r}{nearest(path, valid)}")
        self.path, self.valid = path, valid


def override(config: T, changes: dict[str, str], where: str = "") -> T:
    """A copy with dotted fields replaced by values given as text: `{"optimizer.lr": "3e-4"}`.

    Values are read as JSON where they are JSON, else as strings; a field that holds a string keeps the text as it is
    (but for `null`). A union field also takes just the name of a variant (`quantizer` = `VQ`: that variant with its
    defaults), and later changes may then set the variant's own fields. Unknown fields raise `UnknownField`.
    """
    where = where or type(config).__name__
    data = to_dict(config)
    for path, text in changes.items():
        *parents, last = path.split(".")
        node = data
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise UnknownField(path, _walk(data))
        old = node[last]
        node[last] = text if isinstance(old, str) and text != "null" else _json_or_text(text)
        if isinstance(old, dict) and "type" in old:  # another variant has other fields
            data = to_dict(from_dict(type(config), data, where))
    return from_dict(type(config), data, where)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _walk(node: dict, prefix: str = "") -> list[str]:
    """Every dotted name of nested dictionaries."""
    names = []
    for key, value in node.items():
        names.append(prefix + key)
        if isinstance(value, dict):
            names += _walk(value, f"{prefix}{key}.")
    return names


def _variant_name(cls: type) -> str:
    return cls.__name__.removesuffix("Config")


def _variants(hint: Any) -> dict[str, type]:
    """The dataclasses of a union by name; empty when the hint is not a union of several dataclasses."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return {}
    classes = [arg for arg in typing.get_args(hint) if dataclasses.is_dataclass(arg)]
    return {_variant_name(cls): cls for cls in classes} if len(classes) > 1 else {}


def _plain(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value):
        plain = to_dict(value)
        return {"type": _variant_name(type(value)), **plain} if _variants(hint) else plain
    if isinstance(value, tuple | list):
        return [_plain(item, None) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, None) for key, item in value.items()}
    return value


def _parse(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if variants := _variants(hint):
        return _parse_variant(variants, value, where)
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
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be an object, not {_show(value)}.")
        return {str(key): _parse(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1023 else math.inf
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {_article(hint)}, not {_show(value)}.")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, not {value}.")
    return value


def _parse_variant(variants: dict[str, type], value: Any, where: str) -> Any:
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict) or "type" not in value:
        raise ConfigError(f"{where} must be an object whose 'type' is one of {', '.join(variants)}.")
    if not isinstance(value["type"], str) or value["type"] not in variants:
        raise ConfigError(f"{where}.type must be one of {', '.join(variants)}, not {_show(value['type'])}.")
    return from_dict(variants[value["type"]], {k: v for k, v in value.items() if k != "type"}, where)


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


def nearest(name: str, valid: list[str], mark: str = "") -> str:
    """`; did you mean …?` for close names, else the list of valid ones; `mark` is put before each (`--`)."""
    same_end = [other for other in valid if other.split(".")[-1] == name.split(".")[-1]]
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    if near := list(dict.fromkeys([*same_end, *close]))[:3]:
        return f"; did you mean {' or '.join(mark + name for name in near)}?"
    return f"; valid: {', '.join(mark + name for name in valid)}"
