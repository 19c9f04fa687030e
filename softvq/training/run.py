"""The one training run, of a tokenizer, a generator or a task of the user's own: resumed, lengthened, saved.

train(TokenizerTask(recipe), RunOptions(Path("runs/mine")))
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softvq import distributed, files, progress
from softvq.data.order import check_batch
from softvq.errors import ConfigError, Notice, counted
from softvq.saving import UNFINISHED
from softvq.training.logs import Log
from softvq.training.loop import fit
from softvq.training.options import RunOptions
from softvq.training.state import Checkpoints, TrainState, check_same_run
from softvq.training.task import Hook, Task

RUN = "run.json"  # in a run's folder: which run it is


def train(task: Task, options: RunOptions | str | Path, *, hooks: Sequence[Hook] = ()) -> Path:
    """Run a task to its end, from its last checkpoint where `options.out` holds one; return the model's folder.

    `options` may be the folder alone. `hooks` are called in addition to the task's own. A run that exists already and
    is to have more steps than before goes on from its last checkpoint: its warm-up is as it was, and from there on the
    learning rate is that of a run of the new length. Raise `ConfigError` when something does not fit, before the work
    begins, and `TrainingError` when something stops the run.
    """
    options = (options if isinstance(options, RunOptions) else RunOptions(Path(options))).settled()
    files.check_writable(options.out, folder=True)
    with distributed.locked(options.out):
        return _train(task, options, hooks)


def _train(task: Task, options: RunOptions, hooks: Sequence[Hook]) -> Path:
    checkpoints = Checkpoints(options.out / "checkpoints")
    task.options, task.resumes = options, bool(checkpoints.all())
    check_batch(task.recipe.batch_size, task.accumulate)
    with progress.waiting("looking through the data"):
        task.prepare()
        description = task.describe()
    before, task.lengthened = _compared(options.out, description, task.steps)
    distributed.barrier()  # all have looked
    with progress.waiting("building the networks"):
        players = task.build()
    state = TrainState(players)
    content = task.content(players)
    try:
        for player in players.values():
            player.place(options.device, options.parallel)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(f"recipe {task.recipe.name}: {str(error).strip().splitlines()[0]}") from error
    if options.compile:
        players["model"].module.compile()
    description = {**description, "steps": task.steps}
    saved_state = _open(options.out, description, checkpoints, state, content)
    log = Log(options.out, state.step, task.steps, options.wandb, description)
    task.say = log.say
    try:
        if before != task.steps and state.step:
            _lengthen(task, before, description, state, log)
        return _run(task, checkpoints, state, saved_state, log, hooks)
    finally:
        log.close()


def _run(
    task: Task,
    checkpoints: Checkpoints,
    state: TrainState,
    saved_state: Mapping[str, Any],
    log: Log,
    hooks: Sequence[Hook],
) -> Path:
    options = task.options
    fit(
        state,
        task.steps,
        task.batches(state.step),
        task.step,
        device=options.device,
        checkpoints=checkpoints,
        log=log,
        bad=dict(saved_state.get("bad_files", {})),
        most_bad=options.most_bad * task.images(),
        intervals=options.intervals,
        hooks=[*task.hooks(state.players), *hooks],
    )
    with progress.waiting("finishing the model"):
        model = task.finish(state.players)
    if distributed.rank() == 0:
        model.save_pretrained(options.out / "model")
    distributed.barrier()
    return options.out / "model"


def _compared(out: Path, description: Mapping[str, Any], steps: int) -> tuple[int, list[dict[str, int]]]:
    """Compare with the run in the folder, if any; return the steps it was to have and the times it was lengthened.

    Raise `ConfigError` when it is another run, or a longer one.
    """
    if not (out / RUN).exists():
        return steps, []
    old = files.read_json(out / RUN)
    lengthened, before = old.pop("lengthened", []), old.pop("steps", steps)
    check_same_run(out, old, description)
    if steps < before:
        raise ConfigError(
            f"{out} holds a run of {counted(before, 'step')}: it can get more, but not fewer ({steps:,}); "
            "use another folder.",
            setting="steps",
        )
    return before, lengthened


def _open(
    out: Path, description: dict[str, Any], checkpoints: Checkpoints, state: TrainState, content: dict[str, Any]
) -> dict[str, Any]:
    """Start a run in `out`, or load the last checkpoint of the one that is there; return the checkpoint's `state.json`.

    `content` says which model the checkpoints' weights belong to (see `saving`), and is kept in `model.json`. Raise
    `ConfigError` when `out` holds a finished model without the checkpoints that could say which run made it.
    """
    if (out / UNFINISHED).exists():
        before = files.read_json(out / UNFINISHED).get("about", {}).get("plugins", {})
        if before != content["about"].get("plugins", {}):
            warnings.warn(f"the plugins have changed since the run in {out} began.", Notice, stacklevel=4)
    if checkpoints.all():
        with progress.waiting(f"loading the last checkpoint in {out}"):
            return checkpoints.load(state)
    if (out / "model").exists():
        raise ConfigError(f"{out} holds a finished model and no checkpoints; use another folder.", setting="out")
    if distributed.rank() == 0:
        files.write_json(out / UNFINISHED, content)
        files.write_json(out / RUN, description)
    return {}


def _lengthen(task: Task, before: int, description: dict[str, Any], state: TrainState, log: Log) -> None:
    """Note, once, that a run gets more steps than it had: in its files, and in `task.lengthened` for the model."""
    out = task.options.out
    task.lengthened = [*task.lengthened, {"at_step": state.step, "from": before, "to": task.steps}]
    if distributed.rank() == 0:
        files.write_json(out / UNFINISHED, task.content(state.players))
        files.write_json(out / RUN, {**description, "lengthened": task.lengthened})
    log.event(state.step, {"lengthened_from": before, "lengthened_to": task.steps})
    log.say(
        f"lengthened at step {state.step}: from {before} to {counted(task.steps, 'step')}, "
        "its learning rate anew from here on"
    )
