"""The `softvq` command: its commands, its errors as sentences, its exit codes.

0 done · 1 it could not be done (one sentence says why) · 2 the command was not understood · 128 + n stopped by signal n
(a run has been saved). With --json standard output is one JSON object; messages and progress go to standard error.
"""

import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.exceptions import MissingArgumentError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

from softvq import __version__
from softvq.cli.options import Common, Outcome
from softvq.config import nearest
from softvq.errors import ConfigError, Interrupted, Notice, SoftVQError

# The groups of `softvq --help`. A command's function is in the module of its first word, and is called as its last.
COMMANDS = {
    "Images": ("demo", "reconstruct", "encode", "decode", "sample"),
    "Training": ("train tokenizer", "train generator", "recipes", "statistics", "push"),
    "Measuring": ("evaluate reconstruction", "evaluate generation", "evaluate reference", "probe", "latents"),
    "Cost and reports": ("bench cost", "report"),
}
OUTPUT = "standard output"
ABOUT = {  # commands of commands
    "train": "Train a tokenizer or a generator from a recipe.",
    "evaluate": "Measure reconstructions or generated images, comparably.",
    "bench": "Measure what tokenizers and generators cost.",
}


def app() -> App:
    """Return the whole command line; what the commands need is imported when they run."""
    root = App(
        name="softvq",
        help="SoftVQ-VAE: images to 32 or 64 continuous tokens and back, and new images from such tokens.",
        help_epilogue="softvq COMMAND --help explains a command. A first try: softvq demo, then softvq sample.",
        version=_version,
        help_format="markdown",
        default_parameter=Parameter(negative=(), show_default=_shown),
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for number, (title, commands) in enumerate(COMMANDS.items()):
        group = Group(title, sort_key=number)
        for order, words in enumerate(commands):
            first, last = words.split()[0], words.split()[-1]
            function = getattr(import_module(f"softvq.cli.{first}"), last)
            if first == last:
                root.command(function, name=first, group=group, sort_key=order)
                continue
            if first not in root:
                root.command(App(name=first, help=ABOUT[first], group=group, sort_key=order))
            root[first].command(function, name=last)
    return root


def _shown(default: Any) -> str | None:
    """Return a default for `--help`, None for what goes without saying."""
    if default in ((), False, None):
        return None
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _version() -> str:
    import torch

    from softvq.runtime import best_device

    return f"softvq {__version__}, PyTorch {torch.__version__}, device {best_device()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not _prepare_streams():
        return _say(f"{OUTPUT} is closed; redirect it, to a file or /dev/null.", 1)
    try:
        before = words[:1] if words and words[0] in ABOUT else []  # such as `train`, which a command follows
        first = next(iter(words[len(before) :]), "")
        if first.startswith("-") and first not in ("-h", "--help", "--version"):
            return _say(
                f"{first} stands before the command; write {' '.join(['softvq', *before])} COMMAND {first} …", 2
            )
        command, bound, _ = app().parse_args(words, exit_on_error=False, print_error=False)
        _run(command, bound.args, bound.kwargs, bound.arguments.get("common", Common()))
        return 0
    except CycloptsError as error:
        return _say(misunderstood(error), 2)
    except KeyboardInterrupt:
        return _say("stopped.", 130)
    except BrokenPipeError:  # `softvq … | head`
        return _drop_output()
    except (SoftVQError, OSError) as error:  # what users meet; anything else is a bug and keeps its traceback
        said = sentence(error)
        _say(said, 0)
        return _drop_output() if said.startswith(OUTPUT) else exit_code_of(error)
    except RuntimeError as error:
        if "closed by peer" not in str(error) and "reset by peer" not in str(error):
            raise
        return _say("another process of this group has ended, and this one with it.", 1)


def _prepare_streams() -> bool:
    """Make the standard streams able to show any name in any encoding; return True when there is standard output."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return streams["stdout"] is not None


def _drop_output() -> int:
    """Send what is left to be printed nowhere, so that nothing fails once more at the end; return the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _run(command: Any, args: tuple, kwargs: dict[str, Any], common: Common) -> None:
    """Load the plugins, run the command, and print what it has to say: the first of several processes does."""
    from softvq import plugins, progress

    for file in common.plugin:
        plugins.load(file)
    with _notices(), progress.quietly(common.quiet):
        outcome = command(*args, **kwargs)
    first = True
    if "torch" in sys.modules:
        from softvq import distributed

        first = distributed.rank() == 0
        distributed.stop()
    if first and isinstance(outcome, Outcome):  # --help and --version have printed
        print(json.dumps(outcome.result, indent=2, default=str) if common.json else outcome.text)
    sys.stdout.flush()


def misunderstood(error: CycloptsError) -> str:
    """Return one sentence for a command that could not be parsed."""
    command = " ".join(("softvq", *(error.command_chain or ())))
    said = str(error).splitlines()[0].rstrip(".")
    if isinstance(error, UnusedCliTokensError):
        said = f"{error.unused_tokens[0]!r} is one word too many"
    elif isinstance(error, MissingArgumentError) and error.argument is not None:
        number, _ = error.argument.token_count()
        values = "a value" if number == 1 else f"{number} values"
        said = f"{error.argument.name} {f'needs {values}' if error.keyword else 'is missing'}"
    elif isinstance(error, UnknownCommandError):
        names = [name for name in error.app or app() if not name.startswith("-")]
        return f"there is no command {error.unused_tokens[0]!r}{nearest(error.unused_tokens[0], names)}"
    elif isinstance(error, UnknownOptionError):
        words = [name for one in error.argument_collection or () for name in one.names]
        word = error.token.keyword or error.token.value
        hint = nearest(word, [name for name in words if name.startswith("--")])
        said = f"unknown option {word}{hint if hint.endswith('?') else ''}"
    said = said if said[1:2].isupper() else said[0].lower() + said[1:]
    return f"{said}{'' if said.endswith('?') else '.'} {command} --help explains it."


def sentence(error: Exception) -> str:
    """Return an error's message and the option that changes the outcome; the file and reason of the system's errors."""
    if isinstance(error, SoftVQError):
        if error.setting is None:
            return str(error)
        return f"{str(error).removesuffix('.')} (--{error.setting.replace('_', '-')})."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:  # files name themselves
        return f"{OUTPUT} cannot be written ({error.strerror})."
    named = isinstance(error, OSError) and error.strerror and error.filename
    return f"{error.filename}: {error.strerror}." if named else str(error)


def exit_code_of(error: Exception) -> int:
    """Return 128 + the signal's number for an interrupted run, 2 for a wrong setting, else 1."""
    return 128 + error.signal if isinstance(error, Interrupted) else 2 if isinstance(error, ConfigError) else 1


@contextmanager
def _notices() -> Iterator[None]:
    """Open a block in which the library's notices are sentences on standard error."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        _say(str(message), 0) if issubclass(category, Notice) else usual(message, category, *rest, **more)

    usual = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = show
        yield


def _say(message: str, code: int) -> int:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"softvq: {shown}", file=sys.stderr)
    return code


def entry() -> NoReturn:
    """Run the console script."""
    sys.exit(main())
