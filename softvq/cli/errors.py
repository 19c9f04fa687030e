"""Which errors are sentences for the user, what is said of them, and what they exit with."""

from softvq.errors import ConfigError, Interrupted, SoftVQError


def is_for_users(error: Exception) -> bool:
    """Return if the message is written for the person at the terminal: ours, and the operating system's."""
    return isinstance(error, SoftVQError | OSError)


def sentence(error: Exception) -> str:
    """Return what is printed: the message, with the option that changes the outcome, where there is one; for the
    operating system's errors the file and the reason."""
    if isinstance(error, SoftVQError):
        if error.setting is None:
            return str(error)
        return f"{str(error).removesuffix('.')} (--{error.setting.replace('_', '-')})."
    named = isinstance(error, OSError) and error.strerror and error.filename
    return f"{error.filename}: {error.strerror}." if named else str(error)


def exit_code_of(error: Exception) -> int:
    """128 + the signal's number for an interrupted run, 2 for a wrong setting, else 1."""
    if isinstance(error, Interrupted):
        return 128 + error.signal
    return 2 if isinstance(error, ConfigError) else 1
