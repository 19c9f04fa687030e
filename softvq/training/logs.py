"""What a run shows and writes while it goes: a progress bar or plain lines, JSONL, TensorBoard."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from softvq import distributed
from softvq.hub import atomic

SLOW_LOADER = 0.3  # share of the time spent waiting for images from which on the user is told


class Log:
    """`log.jsonl` and `tensorboard/` in the run's folder, and a bar on the terminal (plain lines elsewhere).

    On resume, lines of steps after `start_step` are dropped: the log is that of one uninterrupted run. Of several
    ranks only the first writes.
    """

    def __init__(self, folder: Path, start_step: int, steps: int):
        self.steps, self.last_line, self.slow = steps, 0.0, False
        self.writes = distributed.rank() == 0
        self.terminal = sys.stderr.isatty() and self.writes
        self.bar = tqdm(total=steps, initial=start_step, unit="step", disable=not self.terminal, dynamic_ncols=True)
        if not self.writes:
            return
        from torch.utils.tensorboard import SummaryWriter  # costs a second

        self.path = folder / "log.jsonl"
        self._truncate(start_step)
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def _truncate(self, step: int) -> None:
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            with atomic(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def advance(self) -> None:
        self.bar.update()

    def values(self, step: int, values: dict[str, float], speed: dict[str, float] | None = None) -> None:
        """Numbers of one step. `speed` is how fast the steps since the last call were: for people and TensorBoard, not
        for the JSONL, which is the same for the same run on any machine."""
        if not self.writes:
            return
        self.event(step, values)
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        if speed is None:
            return
        for name, value in speed.items():
            self.board.add_scalar(f"speed/{name}", value, step)
        rate, waiting = speed["images_per_second"], speed["waiting_share"]
        self.bar.set_postfix_str(f"loss {values['loss/total']:.4f}, {rate:.0f} images/s, {waiting:.0%} waiting")
        if not self.terminal and (time.monotonic() - self.last_line > 10 or step == self.steps):
            self.last_line = time.monotonic()
            self.say(f"step {step}/{self.steps}  loss {values['loss/total']:.4f}  {rate:.0f} images/s")
        if waiting > SLOW_LOADER and self.slow is False and step > 100:
            self.slow = True
            self.say(f"{waiting:.0%} of the time is spent waiting for images to be decoded: more --workers may help")

    def event(self, step: int, values: dict[str, Any]) -> None:
        """A line in the JSONL alone."""
        if self.writes:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()

    def picture(self, step: int, name: str, image: Any) -> None:
        """An image (height × width × 3, 8-bit) in TensorBoard."""
        if self.writes:
            self.board.add_image(name, image, step, dataformats="HWC")

    def say(self, message: str) -> None:
        """A line for the person at the terminal."""
        if self.writes:
            self.bar.write(message, file=sys.stderr) if self.terminal else print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()
        if self.writes:
            self.file.close()
            self.board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut off by a kill
        return float("inf")
