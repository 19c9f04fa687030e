"""The words that commands which start runs share: the recipe's fields, where a run is, pretrained files."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from softvq.cli.main import Usage

OWN_OPTIONS = (
    "out",
    "resume",
    "workers",
    "pretrained",
    "parallel",
    "most-bad",
    "recompute",
    "compile",
    "rfid",
    "wandb",
    "dry-run",
    "log-every",
    "checkpoint-every",
    "sample-every",
)


def recipe_of(options: argparse.Namespace, changes: dict[str, str]) -> Any:
    """Return the recipe with the fields that were given as options."""
    from softvq import config as configs
    from softvq.recipes.opening import open_recipe

    try:
        return open_recipe(options.recipe, options.what, changes)
    except configs.UnknownField as error:
        hint = configs.nearest(error.path, [*error.valid, *OWN_OPTIONS], "--")
        raise Usage(f"unknown option --{error.path}{hint}") from None


def run_options(options: argparse.Namespace, recipe: Any) -> Any:
    """Return where and how the run is made; with --resume there must be one."""
    from softvq.recipes.opening import is_file
    from softvq.training.options import Intervals, RunOptions

    own = is_file(options.recipe) and Path(options.recipe).name != "config.json"  # a model's
    named = Path(options.recipe).stem if own else recipe.name
    out = options.out or Path("runs") / named
    if options.resume and not any((out / "checkpoints").glob("step-*")):
        raise Usage(f"--resume: {out} holds no run to resume; leave --resume out to start one")
    for name in ("log_every", "checkpoint_every", "sample_every"):
        if getattr(options, name) < 1:
            raise Usage(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    return RunOptions(
        out,
        options.device,
        options.precision,
        workers=options.workers,
        pretrained=pretrained_files(options.pretrained),
        parallel=options.parallel,
        most_bad=options.most_bad,
        recompute=options.recompute,
        compile=options.compile,
        command=shlex.join(["softvq", "train", options.what, options.recipe, *plugin_words(options), *options.extra]),
        intervals=Intervals(options.log_every, options.checkpoint_every, options.sample_every),
        wandb=options.wandb,
    )


def told(options: argparse.Namespace, folder: Path, then: str, steps: int) -> dict[str, Any]:
    """Say what to do next, once; return the command's result."""
    from softvq import distributed
    from softvq.files import read_json

    first = distributed.rank() == 0
    distributed.stop()
    if not first:
        options.json = False
    elif not options.json:
        then = shlex.join([*shlex.split(then), *plugin_words(options)])
        print(f"the {options.what} is in {folder}; try: {then}")
    about = read_json(folder / "config.json")["about"]
    return {"model": str(folder), "steps": steps, "figures": about.get("figures")}


def plugin_words(options: argparse.Namespace) -> list[str]:
    """Return the words that load the same plugins again."""
    return [word for file in options.plugin for word in ("--plugin", file)]


def pretrained_files(pairs: list[str]) -> dict[str, Path]:
    """Return the files of NAME=FILE pairs."""
    files: dict[str, Path] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not Path(file).is_file():
            raise Usage(f"--pretrained {pair}: write NAME=FILE, with a file that exists")
        if name in files:
            raise Usage(f"--pretrained {pair}: {name} is given twice")
        files[name] = Path(file)
    return files


def field_changes(words: list[str]) -> dict[str, str]:
    """Return the fields of `--field value` and `--field=value` pairs."""
    changes, rest = {}, list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise Usage(f"{word!r} stands where an option was expected; write --field value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise Usage(f"--{name} needs a value")
            value = rest.pop(0)
        changes[name.replace("-", "_")] = value
    return changes
