"""The errors of this library, as exceptions whose message is one sentence for the user.

`except SoftVQError` catches all that this library raises on purpose; anything else is a bug, or Python's own.
"""


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
