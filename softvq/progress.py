"""Progress of long work on standard error: bars on terminals, plain lines elsewhere, and nothing where it is quiet.

with progress.bar(len(images), "image", "encoding") as done: ...; done(len(batch))
for epoch in progress.through(range(90), "epoch", "probe"): ...
with progress.waiting("counting operations"): ...
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
Show = bool | None  # None: a bar on a terminal or in a notebook, else lines; True: a bar; False: nothing
SECONDS = 10.0  # between two plain lines
PATIENCE = 2.0  # seconds of silence that need no word


@dataclass
class _Settings:
    quiet: bool = False


_SETTINGS = _Settings()


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Open a block in which no progress is shown at all, whatever a function's `progress` says."""
    before, _SETTINGS.quiet = _SETTINGS.quiet, quiet or _SETTINGS.quiet
    try:
        yield
    finally:
        _SETTINGS.quiet = before


def is_quiet() -> bool:
    """Return True within `quietly`, and in all but the first of torchrun's processes."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    return _SETTINGS.quiet or (several and os.environ.get("RANK", "0") != "0")


def on_terminal() -> bool:
    """Return True on a terminal or in a notebook, where a line can be drawn over."""
    if not sys.stderr.isatty():
        return "ipykernel" in sys.modules
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0  # some logs call themselves terminals of no width
    except OSError:
        return True


@contextmanager
def bar(
    total: int, unit: str, title: str = "", *, show: Show = None, kept: bool = True
) -> Iterator[Callable[[int], object]]:
    """Open a block that shows how far work of `total` units is.

    The block gets a function to call with the number of units done since its last call. With `kept` a bar stays on the
    terminal when the work ends.
    """
    if show is False or is_quiet() or not total:
        yield lambda count: None
    elif show or on_terminal():
        with tqdm(total=total, desc=title or None, unit=unit, leave=kept, dynamic_ncols=True) as drawn:
            yield drawn.update
    else:
        yield _lines(total, unit, title)


def _lines(total: int, unit: str, title: str) -> Callable[[int], None]:
    """Return a function that counts and prints, every ten seconds, where the work stands."""
    done, begun, last = 0, time.monotonic(), time.monotonic()

    def add(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= SECONDS:
            last = now
            left = (total - done) * (now - begun) / done if done else 0
            print(
                f"{title or 'working'}: {done:,} of {total:,} {unit}s, {_time(left)} left", file=sys.stderr, flush=True
            )

    return add


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def through(items: Sequence[T], unit: str, title: str = "", *, show: Show = None, kept: bool = True) -> Iterable[T]:
    """Yield the items, and show how many are done."""
    with bar(len(items), unit, title, show=show, kept=kept) as done:
        for item in items:
            yield item
            done(1)


@contextmanager
def waiting(title: str, *, show: Show = None) -> Iterator[None]:
    """Open a block whose `title` is shown when it takes longer than two seconds, for work that cannot be counted."""
    over = threading.Event()

    def tell() -> None:
        if over.wait(PATIENCE):
            return
        if not on_terminal():
            print(f"{title} …", file=sys.stderr, flush=True)
            return
        begun = time.monotonic() - PATIENCE
        while True:
            sys.stderr.write(f"\r{title} … {_time(time.monotonic() - begun)} ")
            sys.stderr.flush()
            if over.wait(1):
                sys.stderr.write("\r\033[K")
                sys.stderr.flush()
                return

    if show is False or is_quiet():
        yield
        return
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
