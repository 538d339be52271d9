"""Progress goes to stderr: one line per task in a log, a bar on a terminal."""

from __future__ import annotations

import sys
import time

import pytest

from pneumoscope.progress import SILENT, TerminalProgress


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with SILENT.task("reading", 3, "images") as task:
        task.advance(3, "note")
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_one_line_when_the_task_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress().task("reading", 5, "images") as task:
        task.advance()
        task.advance(4, "note")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("reading: 5 images in ")
    assert err.endswith("images/s)\n")
    assert err.count("\n") == 1


def test_what_takes_minutes_each_has_a_rate_above_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter((0.0, 5770.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with TerminalProgress().task("network", 54, "epochs") as task:
        task.advance(54, "note")
    assert capsys.readouterr().err == "network: 54 epochs in 5770.0 s (0.0094 epochs/s)\n"


def test_a_task_that_fails_claims_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> None:
        with TerminalProgress().task("reading", 5, "images") as task:
            task.advance()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [0, 4])
def test_a_terminal_gets_a_bar_with_rate_and_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, total: int
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with TerminalProgress().task("reading", total, "images") as task:
        task.advance(total, "validation AUC 0.9")
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{total}/{total}" in err
    assert "images/s" in err
    assert "validation AUC 0.9" in err
