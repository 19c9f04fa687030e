"""Run a list of trainings, one after the other: what is missing is run, what was stopped goes on.

    python studies/run.py studies/bundled.json --threads 1 --log runs/bundled.log

The list is JSON: `{"runs": [{"name": …, "command": […], "hours": …}, …]}`. A command is the words behind `softvq`; in
them {run} is the run's own folder and {handovers} the folder of the models that runs leave to those behind them. A run
ends with its model in half precision in {handovers}/NAME; from then on it is done, also in another clone that holds
that folder.

While it goes, a line a minute in the log says where it stands (--every). A stage that takes longer than --hours is
stopped (it saves itself) and left for the next call, which resumes it; Ctrl-C and SIGTERM stop it in the same way.
A stage that was stopped also leaves the average of its weights in {handovers}/NAME-part: where its run is lost with the
machine, the next call begins from there, for the steps that are left (its optimizers and learning rate begin anew).
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.resolve().parent
LARGEST = 13_000_000  # bytes of a hand-over's weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="the JSON file that lists the runs")
    parser.add_argument("--only", nargs="+", default=[], help="names of runs: leave the others out")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run (default: 1)")
    parser.add_argument("--hours", type=float, default=2.5, help="the longest that a stage may take (default: 2.5)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    parser.add_argument("--handovers", type=Path, default=HERE / "handovers", help="where their models go")
    parser.add_argument("--every", type=float, default=60, metavar="SECONDS", help="between lines (default: 60)")
    parser.add_argument("--log", type=Path, help="append what is said to this file (default: standard error)")
    parser.add_argument("--dry-run", action="store_true", help="say what is missing, and stop")
    options = parser.parse_args()
    try:
        runs = json.loads(options.list.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{options.list} is no list of runs ({error})")
    if unknown := set(options.only) - {run["name"] for run in runs}:
        parser.error(f"{options.list} has no run {', '.join(sorted(unknown))}")
    missing = [run for run in runs if not is_done(run, options) and (not options.only or run["name"] in options.only)]
    for run in runs if options.dry_run else []:
        state = "missing" if run in missing else "done" if is_done(run, options) else "left out"
        print(f"{run['name']:20} {state:8} {run['hours']:5.1f} h  softvq {shlex.join(words(run, options))}")
    if options.dry_run:
        return 0
    for run in missing:
        code = stage(run, options)
        if "result" not in run:
            hand_over(run, options, unfinished=bool(code))
        if code:
            return code
    say(options, "nothing is missing")
    return 0


def is_done(run: dict, options: argparse.Namespace) -> bool:
    """Return True when the run has left its model or, where its list says so, another `result`."""
    if "result" in run:
        return Path(filled(run["result"], run, options)).exists()
    return (options.handovers / run["name"] / "config.json").is_file()


def filled(word: str, run: dict, options: argparse.Namespace) -> str:
    places = {"run": options.runs / run["name"], "runs": options.runs, "handovers": options.handovers}
    for name, path in places.items():
        word = word.replace(f"{{{name}}}", str(path))
    return word


def words(run: dict, options: argparse.Namespace) -> list[str]:
    """Return the run's command: as it was begun where there is something to resume, else from a part that was handed
    over, else from the start."""
    begun, part = options.runs / run["name"] / "begun.json", options.handovers / f"{run['name']}-part" / "config.json"
    if begun.is_file() and any((options.runs / run["name"] / "checkpoints").glob("step-*")):
        return json.loads(begun.read_text(encoding="utf-8"))
    command = [filled(word, run, options) for word in run["command"]]
    if part.is_file():
        about = json.loads(part.read_text(encoding="utf-8"))["about"]
        command += ["--init", str(part.parent), "--steps", str(about["recipe"]["steps"] - about["step"])]
    return command


def stage(run: dict, options: argparse.Namespace) -> int:
    """Run one command to its end; 0, or why it did not come to it (a command's exit code)."""
    threads = str(options.threads)
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)}
    folder, own = options.runs / run["name"], words(run, options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "begun.json").write_text(json.dumps(own), encoding="utf-8")
    command = [sys.executable, "-m", "softvq", *own]
    say(options, f"{run['name']}: softvq {shlex.join(own)}")
    output = folder / "output.log"
    began = said = time.monotonic()
    with output.open("ab") as file, ExitStack() as handlers:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        for number in (signal.SIGINT, signal.SIGTERM):  # passed on while the stage runs, obeyed between stages
            handlers.callback(signal.signal, number, signal.signal(number, lambda *_: process.terminate()))
        stopped = False
        while process.poll() is None:
            time.sleep(0.2)
            now = time.monotonic()
            if now - said >= options.every:
                said = now
                say(options, f"{run['name']}: {(now - began) / 3600:.2f} h, {last_line(output)}")
            if not stopped and now - began > options.hours * 3600:
                stopped = True
                process.terminate()
    if process.returncode:
        say(options, f"{run['name']}: ended with {process.returncode}: {last_line(output)}")
        return 128 - process.returncode if process.returncode < 0 else process.returncode
    say(options, f"{run['name']}: done after {(time.monotonic() - began) / 3600:.2f} h")
    return 0


def last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output yet")


def hand_over(run: dict, options: argparse.Namespace, unfinished: bool) -> None:
    """Keep the run's model in half precision, for the runs behind it and for other machines; of a run that was stopped
    the average of its last checkpoint, as NAME-part, where there is one."""
    folder, part = options.runs / run["name"], options.handovers / f"{run['name']}-part"
    if unfinished and not any((folder / "checkpoints").glob("step-*")):
        return
    import torch

    from softvq import Tokenizer
    from softvq.generators.base import Generator
    from softvq.saving import kind_of

    loaded = (Tokenizer if kind_of(folder) == Tokenizer.kind else Generator).from_pretrained(folder)
    target = part if unfinished else options.handovers / run["name"]
    # What is handed over is committed: it names places as they are in any checkout, and no folder of this machine.
    loaded.about = json.loads(json.dumps(loaded.about).replace(f"{ROOT}/", ""))
    loaded.save_pretrained(target, torch.float16)
    if not unfinished:
        shutil.rmtree(part, ignore_errors=True)
    size = (target / "model.safetensors").stat().st_size
    say(options, f"{run['name']}: {size / 1e6:.1f} MB in {target}")
    if size > LARGEST:
        say(options, f"{run['name']}: that is more than {LARGEST / 1e6:.0f} MB; do not commit it")


def say(options: argparse.Namespace, message: str) -> None:
    line = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} {message}\n"
    if options.log is None:
        sys.stderr.write(line)
        return
    options.log.parent.mkdir(parents=True, exist_ok=True)
    with options.log.open("a", encoding="utf-8") as file:
        file.write(line)


if __name__ == "__main__":
    sys.exit(main())
