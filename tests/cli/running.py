"""The `softvq` command in this process: a new one that imports torch costs three seconds."""

import contextlib
import io
import json
from typing import Any

from softvq.cli.main import main


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
    """Run a command that must fail with this code, one sentence on standard error, and nothing else; gives it."""
    found, out, err = softvq(*words)
    assert (found, out) == (code, ""), (found, out, err)
    assert err.startswith("softvq: "), err
    assert err.count("\n") == 1, err
    return err.removeprefix("softvq: ").removesuffix("\n")
