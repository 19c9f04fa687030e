"""The `softvq` command in this process: a new one that imports torch costs three seconds."""

import contextlib
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from softvq.cli.main import main

PROGRESS = re.compile(r"[^:]+: [\d,]+ of [\d,]+ \w+, .* left$|.+ …$")  # where standard error is no terminal


def softvq(*words: object) -> tuple[int, str, str]:
    """Run a command; gives its exit code, and what it prints on standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def result(*words: object) -> dict[str, Any]:
    """Run a command that must succeed; gives what --json prints."""
    code, out, err = softvq(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def refusal(code: int, *words: object) -> str:
    """Run a command that must fail with this code and say nothing but why, in one sentence; gives the sentence. Lines
    of progress may come before it where the machine is slow."""
    found, out, err = softvq(*words)
    assert (found, out) == (code, ""), (found, out, err)
    *before, last = err.splitlines()
    assert last.startswith("softvq: "), err
    assert all(PROGRESS.match(line) for line in before), err
    return last.removeprefix("softvq: ")


def instead(words: Sequence[object], *changes: object) -> list[object]:
    """Return words with other values for some of their options, each with one value: none may be given twice."""
    kept = list(words)
    for option in changes:
        if option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    return [*kept, *changes]
