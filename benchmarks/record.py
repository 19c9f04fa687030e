"""What every benchmark leaves behind: its rows as JSON, with the command, the machine and the date that gave them."""

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from softvq import __version__
from softvq.files import write_json

RESULTS = Path(__file__).parent / "results"


def record(path: Path, rows: Mapping[str, Any] | Sequence[Any], **more: Any) -> None:
    """Write the rows of this script's table, and what is needed to repeat it."""
    write_json(path, {"command": command(), **more, **machine(), "rows": rows})


def command() -> str:
    """Return the command that runs this script again, from the repository's root."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Return the date and all that a figure of time or precision depends on besides the command."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = {"softvq": __version__, "torch": torch.__version__, "python": platform.python_version()}
    date = datetime.now(timezone.utc).date().isoformat()
    return {"date": date, "machine": device, "threads": torch.get_num_threads(), **versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
