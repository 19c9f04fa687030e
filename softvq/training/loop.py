"""The training loop, which knows steps; the step knows losses, and randomness is a function of (seed, step, sample).

`fit` takes a state and a function that makes one step, and adds what every run needs: checkpoints, logs, hooks, a clean
stop on Ctrl-C and SIGTERM, and a stop with a message when a loss is NaN.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import torch

from softvq import distributed
from softvq.errors import Interrupted, TrainingError, counted
from softvq.training.logs import Log
from softvq.training.options import Intervals
from softvq.training.state import Checkpoints, Players, TrainState
from softvq.training.task import Hook, TrainingBatch

Step = Callable[[Players, Any], dict[str, torch.Tensor]]


def fit(
    state: TrainState,
    steps: int,
    batches: Iterator[TrainingBatch],
    step: Step,
    *,
    device: torch.device,
    checkpoints: Checkpoints,
    log: Log,
    bad: dict[str, str] | None = None,
    most_bad: float = math.inf,
    intervals: Intervals | None = None,
    hooks: Sequence[Hook] = (),
) -> None:
    """Train from `state.step` to `steps`; `step` changes the players and returns named scalars.

    `bad` holds the unreadable files met before a resume, by name; more than `most_bad` of them stop the run at its next
    checkpoint. Raise `TrainingError` then, and when a logged loss or gradient norm is not finite (checked before every
    checkpoint, so that the last one is good). Raise `Interrupted` after a signal.
    """
    intervals = intervals or Intervals()
    bad = {} if bad is None else bad
    recent: list[tuple[dict[str, torch.Tensor], list[str]]] = []  # values not read yet, and the images' names
    with _closing(batches), _Signals(device) as signals:
        clock, waited = time.monotonic(), 0.0
        while state.step < steps:
            asked = time.monotonic()
            batch = next(batches).to(device)
            waited += time.monotonic() - asked
            values = _run(step, state, batch)
            state.step += 1
            log.advance()
            _report_bad(batch, bad, state.step, log)
            recent.append((values, batch.names))
            stopping = signals.agreed(state.step)  # read once: a later signal waits for the next step
            saving = stopping is not None or state.step == steps or state.step % intervals.checkpoint == 0
            if saving or state.step % intervals.log == 0:
                _check_finite(recent, state.step)
                speed = _speed(recent, batch, device, time.monotonic() - clock, waited)
                log.values(state.step, _over_ranks(values), speed)
                bad |= {name: why for files in distributed.gathered(bad) for name, why in files.items()}
                recent, clock, waited = [], time.monotonic(), 0.0
            for hook in hooks:
                if state.step % hook.every == 0 or state.step == steps:
                    hook.call(state, log)
            if saving:  # behind the hooks, so that what a killed run must do again is all of a step's output
                checkpoints.save(state, {"bad_files": bad})
            if saving and len(bad) > most_bad:
                raise TrainingError(
                    f"{counted(len(bad), 'file')} cannot be read, more than the share that may be; the run is saved. "
                    f"The first: {next(iter(bad.values()))}",
                    setting="most_bad",
                )
            if stopping is not None and state.step < steps:
                name = signal.Signals(stopping).name
                raise Interrupted(stopping, f"stopped by {name} after step {state.step}; the run is saved.")
    if bad:
        files = "1 unreadable file was" if len(bad) == 1 else f"{len(bad)} unreadable files were"
        log.say(f"{files} skipped, the first: {next(iter(bad.values()))}")


def _closing(batches: Iterator[TrainingBatch]) -> AbstractContextManager:
    """Return a block at whose end the processes end that decode images."""
    return closing(batches) if hasattr(batches, "close") else nullcontext()


def _run(step: Step, state: TrainState, batch: TrainingBatch) -> dict[str, torch.Tensor]:
    try:
        return step(state.players, batch)
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"the device has no memory left for {counted(len(batch), 'image')} a step.") from error


def _report_bad(batch: TrainingBatch, bad: dict[str, str], step: int, log: Log) -> None:
    for name, reason in batch.bad.items():
        if name not in bad:
            bad[name] = reason
            log.event(step, {"bad_file": name, "reason": reason})
            log.say(f"skipped: {reason}")


def _check_finite(recent: list[tuple[dict[str, torch.Tensor], list[str]]], step: int) -> None:
    """Raise `TrainingError` on all ranks when one of them finds a number that is not finite.

    The message names a loss term before a gradient norm, which follows from it.
    """
    problem = next(
        (
            f"step {step - len(recent) + back + 1}: {name} is {float(value)} on the images {', '.join(names[:4])}, …"
            for back, (values, names) in enumerate(recent)
            for name, value in values.items()
            if not math.isfinite(value)
        ),
        None,
    )
    if problems := sorted((p for p in distributed.gathered(problem) if p), key=lambda p: "gradient_norm" in p):
        raise TrainingError(
            f"{problems[0]}; the last checkpoint is from before. Lower the learning rate, or use float32.",
            setting="precision",
        )


def _over_ranks(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the mean of each named scalar over ranks."""
    numbers = torch.stack([value.detach().cpu().double() for value in values.values()])
    device = next((value.device for value in values.values() if value.device.type != "cpu"), numbers.device)
    means = distributed.total(numbers.float().to(device)) / distributed.world_size()
    alone = distributed.world_size() == 1
    return dict(zip(values, (numbers if alone else means).tolist(), strict=True))


def _speed(recent: list, batch: TrainingBatch, device: torch.device, elapsed: float, waited: float) -> dict[str, float]:
    """Return images a second over all ranks, the share of time spent waiting for images, and CUDA memory (GB)."""
    images = len(recent) * len(batch) * distributed.world_size()
    speed = {"images_per_second": images / elapsed, "waiting_share": waited / elapsed}
    if device.type == "cuda":
        speed["memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return speed


class _Signals:
    """A block in which Ctrl-C and SIGTERM are only noted, so that a step ends before the run does.

    A second signal raises `KeyboardInterrupt` at once.
    """

    def __init__(self, device: torch.device):
        self.received: int | None = None
        self.device = device  # that the ranks talk through

    def __enter__(self) -> "_Signals":
        self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, _frame: Any) -> None:
        if self.received is not None:  # asked twice: stop at once
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, step: int) -> int | None:
        """Return the number of the signal received, the same on all ranks after the same step; None without one.

        With several ranks it is one that any of them received. They ask each other every tenth step, because asking
        waits for the device.
        """
        if distributed.world_size() == 1:
            return self.received
        if step % 10:
            return None
        return int(distributed.maximum(torch.tensor(self.received or 0, device=self.device))) or None

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
