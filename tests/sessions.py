"""Commands and lines of Python, one after the other in one new process: a process costs seconds."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Answer:
    """What a step printed, and its exit code: 0 for lines of Python, None for what ended in a traceback."""

    code: int | None
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a new process that finds softvq and has one thread and no network."""
    paths = [more.pop("PYTHONPATH", ""), str(ROOT)]
    return {
        **os.environ,
        **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        **more,
    }


def session(folder: Path, steps: dict[str, str], **more: str) -> dict[str, Answer]:
    """Run steps by name in a new process in this folder: those that begin with `softvq` are commands, others Python."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.sessions"],
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(**more),
        timeout=400,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return {name: Answer(**found) for name, found in json.loads(child.stdout).items()}


def _run(text: str, names: dict) -> dict:
    from softvq.cli.main import main

    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if text.startswith("softvq "):
                code = main(shlex.split(text)[1:])
            else:
                exec(text, names)
                code = 0
        except BaseException:
            traceback.print_exc()
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    shared: dict = {"__name__": "__main__"}
    print(json.dumps({name: _run(text, shared) for name, text in json.load(sys.stdin).items()}))
