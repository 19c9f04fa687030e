"""The `softvq` command: its options, its errors as sentences, its exit codes.

0 done · 1 it could not be done (one sentence says why) · 2 the command was not understood · 128 + n stopped by signal n
(a run in progress has been saved). With --json the last thing on standard output is one JSON object; messages and
progress go to standard error.
"""

import argparse
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from softvq import __version__
from softvq.config import nearest

# One line a command: its module in this package, and what it says in `softvq --help`.
COMMANDS = {
    "demo": ("demo", "reconstruct the bundled images with the bundled tokenizer: no network, no GPU"),
    "reconstruct": ("reconstruct", "encode and decode images; write original | reconstruction | error"),
    "decode": ("decode", "turn saved latents back into images"),
    "sample": ("sample", "make new images with a generator"),
    "encode": ("encode", "tokenize a data set once, for training generators on"),
    "evaluate": ("evaluate", "measure reconstructions or generated images, comparably"),
    "probe": ("probe", "linear probing and k-NN of latents or of a generator's features"),
    "latents": ("latents", "pictures of a latent space: UMAP, codebooks, channels"),
    "bench": ("bench", "what tokenizers and generators cost, beside the paper's figures"),
    "report": ("report", "tables of measured results beside the paper's, from a folder of them"),
    "train": ("train", "train a model from a recipe"),
    "recipes": ("recipes", "list the recipes"),
    "push": ("push", "share a model on the Hugging Face hub"),
    "statistics": ("statistics", "fit a tokenizer's latent mean and standard deviation on your images"),
}


class Failure(Exception):
    """Something that could not be done; the message is one sentence for the user."""


class Usage(Exception):
    """A command that was not understood; the message is one sentence for the user."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors keep to this command's form, and whose options are never abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message}; see {self.prog} --help")


def common_options(inside: bool = False) -> argparse.ArgumentParser:
    """The options that every command has. `inside`: for a command's own sub-command, where what is left out must not
    replace what stood before it."""
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("every command")
    group.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the networks; auto is bfloat16 for training where the machine gains from it, else float32",
    )
    group.add_argument(
        "--plugin",
        type=str,
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file of your own that registers quantizers, generators, data …; can be given several times",
    )
    group.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    for action in common._actions if inside else ():
        action.default = argparse.SUPPRESS
    return common


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _parse(arguments)
        if options.plugin:
            from softvq import plugins

            for file in options.plugin:
                plugins.load(file)
        with _notices():
            result = options.run(options)
        if options.json and result is not None:
            print(json.dumps(result, indent=2, ensure_ascii=False))
        sys.stdout.flush()
        return 0
    except Usage as error:
        return _say(error, 2)
    except KeyboardInterrupt:
        return _say("stopped.", 130)
    except BrokenPipeError:  # `softvq … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _explain(error)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="softvq", description="SoftVQ-VAE: images to 32 or 64 continuous tokens and back.")
    parser.add_argument("--version", action="version", version=f"softvq {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        raise Usage(f"{arguments[0]} stands before the command; write softvq COMMAND {arguments[0]} …")
    asked = next((word for word in arguments if not word.startswith("-")), None)
    if asked is not None and asked not in COMMANDS:
        raise Usage(f"there is no command {asked!r}{nearest(asked, list(COMMANDS))}")
    for name, (module, summary) in COMMANDS.items():
        if name != asked:  # keep `softvq --help` free of what the commands import
            commands.add_parser(name, help=summary)
            continue
        command = importlib.import_module(f"softvq.cli.{module}")
        sub = commands.add_parser(
            name,
            help=summary,
            description=command.__doc__,
            parents=[common_options()],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
        sub.set_defaults(run=command.run, extra=[])
    options, extra = parser.parse_known_args(arguments)
    if extra and not getattr(options, "takes_fields", False):
        hint = nearest(extra[0].partition("=")[0], _option_words(asked))
        raise Usage(f"unknown option {extra[0]}{hint} (softvq {asked} --help explains them)")
    options.extra = extra
    return options


def _option_words(name: str) -> list[str]:
    module = importlib.import_module(f"softvq.cli.{COMMANDS[name][0]}")
    parser = Parser(parents=[common_options()])
    module.configure(parser)
    return [word for action in parser._actions for word in action.option_strings if word.startswith("--")]


def _explain(error: Exception) -> int:
    """One sentence for the errors that users meet; anything else is a bug and keeps its traceback."""
    from softvq.cli.errors import exit_code_of, is_for_users, sentence

    if isinstance(error, Failure) or is_for_users(error):
        return _say(sentence(error), exit_code_of(error))
    raise error


@contextmanager
def _notices() -> Iterator[None]:
    """A block in which the library's notices are sentences on standard error."""
    from softvq.errors import Notice

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, Notice):
            print(f"softvq: {message}", file=sys.stderr)
        else:
            usual(message, category, *rest, **more)

    usual = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = show
        yield


def _say(message: Any, code: int) -> int:
    print(f"softvq: {message}", file=sys.stderr)
    return code


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())
