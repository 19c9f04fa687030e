"""The errors of this library, as exceptions whose message is one sentence for the user.

`except SoftVQError` catches all that this library raises on purpose; anything else is a bug, or Python's own.
"""

import math
from numbers import Integral, Real
from typing import Any


class SoftVQError(Exception):
    """The base of all errors of this library.

    A message is in the library's words; `setting` names the argument that would change the outcome (`out`, `workers`),
    which the command line adds as its option.
    """

    def __init__(self, *args: object, setting: str | None = None):
        super().__init__(*args)
        self.setting = setting


class ConfigError(SoftVQError, ValueError):
    """A configuration or a setting that cannot be used."""


class UnknownVariant(ConfigError):
    """A configuration that names a class which nothing has registered; `name` is that name."""

    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


class PluginError(ConfigError):
    """A user's own file that cannot be loaded, or that registers what it may not."""


class Notice(UserWarning):
    """Something that was done otherwise than a reader might think, and is no error: said once, on standard error."""


class DataError(SoftVQError, ValueError):
    """Data that cannot be used."""


class ImageError(SoftVQError, ValueError):
    """An image that cannot be read; the message names it."""


class ModelError(SoftVQError, ValueError):
    """A model that cannot be loaded, saved or shared."""


class MetricError(SoftVQError, ValueError):
    """Something that cannot be measured."""


class TrainingError(SoftVQError, RuntimeError):
    """A run that cannot go on."""


class Interrupted(SoftVQError, RuntimeError):
    """A run that was asked to stop, after its checkpoint was written; `signal` is the signal's number."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


class LogError(SoftVQError, RuntimeError):
    """A place to log to that cannot be used."""


class StorageError(SoftVQError, OSError):
    """A file that cannot be written: no room for it, or no permission."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, for a sentence, in the singular or the plural: `1 image`, `1,024 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """Return True for a whole number of at least `least`; True and False are no numbers."""
    return isinstance(value, Integral) and not isinstance(value, bool) and bool(value >= least)


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Return True for a finite number from `least` to `most`; True and False are no numbers."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        return False
    return bool(least <= value <= most)


def check_whole(name: str, value: Any, least: float = -math.inf) -> None:
    """Raise `ConfigError` unless a setting is a whole number of at least `least`."""
    if not is_whole(value):
        raise ConfigError(f"{name} must be a whole number, not {value!r}.", setting=name)
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, not {value}.", setting=name)


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise `ConfigError` unless a setting is a finite number from `least` to `most`."""
    if not is_number(value):
        raise ConfigError(f"{name} must be a finite number, not {value!r}.", setting=name)
    if not least <= value <= most:
        within = f"from {least:g} to {most:g}" if math.isfinite(most) else f"at least {least:g}"
        raise ConfigError(f"{name} must be {within}, not {value:g}.", setting=name)
