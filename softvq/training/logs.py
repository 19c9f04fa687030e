"""The log of a run: a progress bar or plain lines, JSONL, TensorBoard, and Weights & Biases."""

import json
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from softvq import distributed, progress
from softvq.errors import LogError
from softvq.files import atomic, storing

SLOW_LOADER = 0.3  # share of the time spent waiting for images from which on the user is told


class Log:
    """The log of a run, on the terminal and in the run's folder.

    The folder has `log.jsonl` and `tensorboard/`; the terminal has a bar (plain lines elsewhere). With `project` there
    is Weights & Biases too, with the run's `description` as its configuration.

    On resume, lines of steps after `start_step` are dropped: the log is that of one uninterrupted run. With several
    ranks only the first writes.
    """

    def __init__(
        self,
        folder: Path,
        start_step: int,
        steps: int,
        project: str | None = None,
        description: dict[str, Any] | None = None,
    ):
        self.steps, self.last_line, self.slow, self.begun = steps, 0.0, False, False
        self.writes = distributed.rank() == 0
        self.terminal = progress.on_terminal() and self.writes and not progress.is_quiet()
        self.bar = tqdm(
            total=steps,
            initial=start_step,
            desc=folder.name,
            unit="step",
            disable=not self.terminal,
            dynamic_ncols=True,
        )
        self.wandb = None
        if not self.writes:
            return
        if project is not None:
            self.wandb = _wandb_run(project, folder, description)
        from torch.utils.tensorboard import SummaryWriter  # costs a second

        self.folder, self.path = folder, folder / "log.jsonl"
        self._truncate(start_step)
        self.file = self.path.open("a", encoding="utf-8")
        try:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
        except UnicodeError:
            raise LogError(
                f"{folder} is no name in UTF-8, which TensorBoard needs; use another.", setting="out"
            ) from None

    def _truncate(self, step: int) -> None:
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            with atomic(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def advance(self) -> None:
        """Advance the bar by one step; off a terminal, say that the first is done, for the next word may take long."""
        self.bar.update()
        if not self.terminal and not self.begun:
            self.say("the first step is done")
        self.begun = True

    def values(self, step: int, values: dict[str, float], speed: dict[str, float] | None = None) -> None:
        """Log the numbers of one step.

        `speed` has that of the steps since the last call: it is for people and TensorBoard, not for the JSONL, which is
        the same for the same run on any machine.
        """
        if not self.writes:
            return
        self.event(step, values)
        more = {f"speed/{name}": value for name, value in (speed or {}).items()}
        with storing(self.folder / "tensorboard"):
            for name, value in {**values, **more}.items():
                self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log({**values, **more}, step=step)
        if speed is None:
            return
        rate, waiting = speed["images_per_second"], speed["waiting_share"]
        loss = f"loss {values['loss/total']:.4f}  " if "loss/total" in values else ""  # a task of one's own
        speed_text = f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s"
        self.bar.set_postfix_str(f"{loss}{speed_text}, {waiting:.0%} waiting")
        if not self.terminal and (time.monotonic() - self.last_line > 10 or step == self.steps):
            self.last_line = time.monotonic()
            self.say(f"step {step}/{self.steps}  {loss}{speed_text}")
        if waiting > SLOW_LOADER and self.slow is False and step > 100:
            self.slow = True
            self.say(f"{waiting:.0%} of the time is spent waiting for images to be decoded: more workers may help")

    def event(self, step: int, values: dict[str, Any]) -> None:
        """Write a line in the JSONL alone."""
        if self.writes:
            with storing(self.path):
                self.file.write(json.dumps({"step": step, **values}) + "\n")
                self.file.flush()

    def picture(self, step: int, name: str, image: Any) -> None:
        """Log an image (height × width × 3, 8-bit) in TensorBoard, and at Weights & Biases."""
        if self.writes:
            with storing(self.folder / "tensorboard"):
                self.board.add_image(name, image, step, dataformats="HWC")
        if self.wandb is not None:
            import wandb

            self.wandb.log({name: wandb.Image(image)}, step=step)

    def say(self, message: str) -> None:
        """Show a line to the person at the terminal."""
        if self.writes and not progress.is_quiet():
            self.bar.write(message, file=sys.stderr) if self.terminal else print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the bar, the files, and the run at Weights & Biases."""
        self.bar.close()
        if self.writes:
            with storing(self.folder):
                self.file.close()
                self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _wandb_run(project: str, folder: Path, description: dict[str, Any] | None):
    """Return the run at Weights & Biases that goes with this folder: a resumed run goes on in the same one."""
    try:
        import wandb
    except ImportError:
        raise LogError("Weights & Biases needs a package: pip install 'softvq[wandb]'.", setting="wandb") from None
    path = folder / "wandb.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps({"id": secrets.token_hex(8)}), encoding="utf-8")
    number = json.loads(path.read_text(encoding="utf-8"))["id"]
    try:
        return wandb.init(
            project=project, name=folder.name, dir=str(folder), id=number, resume="allow", config=description
        )
    except wandb.Error as error:
        raise LogError(f"Weights & Biases cannot be used: {error}; set WANDB_MODE=offline to log on disk.") from error


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut off by a kill
        return float("inf")
