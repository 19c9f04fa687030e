"""Progress: bars on terminals, lines elsewhere, a word where one waits, and nothing where it is quiet."""

import contextlib
import io
import re
import threading
import time

import pytest

from softvq import progress


class Terminal(io.StringIO):
    """Standard error that a line can be drawn over."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line whenever more is done."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)


def work(**settings) -> None:
    with progress.bar(5_000, "image", "encoding", **settings) as done:
        done(2_000)
        done(3_000)


def test_lines_where_there_is_no_terminal(at_once, capsys):
    work()
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"encoding: 2,000 of 5,000 images, \d+ s left", first)
    assert second == "encoding: 5,000 of 5,000 images, 0 s left"


def test_a_line_every_ten_seconds_and_none_of_short_work(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress.bar(100, "step") as done:
        for seconds in (4, 5, 2, 9, 1):  # after 4, 9, 11, 20 and 21 seconds
            clock[0] += seconds
            done(10)
    said = capsys.readouterr().err.splitlines()
    assert said == ["working: 30 of 100 steps, 26 s left", "working: 50 of 100 steps, 21 s left"]


@pytest.mark.parametrize(("rate", "left"), [(1, "1 min 30 s left"), (100, "2 h 30 min left"), (0.1, "9 s left")])
def test_the_time_that_is_left(at_once, monkeypatch, capsys, rate: float, left: str):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress.bar(100, "step") as done:
        clock[0] = 10 * rate
        done(10)
    assert capsys.readouterr().err == f"working: 10 of 100 steps, {left}\n"


def test_nothing_done_yet_is_no_division(at_once, capsys):
    with progress.bar(3, "step", "sampling") as done:
        done(0)
    assert capsys.readouterr().err == "sampling: 0 of 3 steps, 0 s left\n"


@pytest.mark.parametrize("kept", [True, False])
def test_a_bar_on_a_terminal(kept: bool):
    with contextlib.redirect_stderr(Terminal()) as terminal:
        work(kept=kept)
    assert "encoding" in terminal.getvalue()
    assert ("5000/5000" if kept else "0/5000") in terminal.getvalue()
    assert "\r" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n") == kept  # else it is wiped


def test_shown_where_it_is_asked_for(at_once, capsys):
    work(show=True)
    assert "5000/5000" in capsys.readouterr().err
    work(show=False)
    assert capsys.readouterr().err == ""


def test_a_bar_where_nothing_is_to_be_done_is_none():
    with contextlib.redirect_stderr(Terminal()) as terminal, progress.bar(0, "image") as done:
        done(0)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("show", [None, True, False])
def test_quietly_is_stronger_than_any_wish(at_once, monkeypatch, capsys, show: bool | None):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.quietly():
        assert progress.is_quiet()
        work(show=show)
        assert list(progress.through(range(3), "step", show=show)) == [0, 1, 2]
        with progress.waiting("counting", show=show):
            time.sleep(0.02)
        with progress.quietly(False):
            assert progress.is_quiet()  # what is quiet outside is not loud within
    assert capsys.readouterr().err == ""
    assert not progress.is_quiet()
    with pytest.raises(ValueError, match="x"), progress.quietly():
        raise ValueError("x")
    assert not progress.is_quiet()


def test_items_go_through_and_are_counted(at_once, capsys):
    seen = []
    for item in progress.through(["a", "b"], "epoch", "probe"):
        seen.append((item, capsys.readouterr().err))
    assert [item for item, _ in seen] == ["a", "b"]
    assert [said[:21] for _, said in seen] == ["", "probe: 1 of 2 epochs,"]
    assert capsys.readouterr().err == "probe: 2 of 2 epochs, 0 s left\n"


# ---- Waiting


def test_a_word_after_patience_and_none_before(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    with progress.waiting("counting operations"):
        assert capsys.readouterr().err == ""
        deadline = time.monotonic() + 10
        said = ""
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
            said = capsys.readouterr().err
    assert said == "counting operations …\n"
    assert capsys.readouterr().err == ""


def test_short_work_is_not_talked_about():
    before = threading.active_count()
    with contextlib.redirect_stderr(Terminal()) as terminal, progress.waiting("counting operations"):
        pass
    assert terminal.getvalue() == ""
    assert threading.active_count() == before


def test_on_a_terminal_the_word_is_wiped_again(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with contextlib.redirect_stderr(Terminal()) as terminal, progress.waiting("counting operations"):
        deadline = time.monotonic() + 10
        while "counting operations … 0 s" not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "\rcounting operations … 0 s" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\033[K")


def test_not_waited_for_where_it_is_not_to_be_shown(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.waiting("counting", show=False):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_an_error_ends_the_wait(monkeypatch):
    before = threading.active_count()
    with pytest.raises(ValueError, match="x"), progress.waiting("counting"):
        raise ValueError("x")
    assert threading.active_count() == before
