import io
import sys

import pytest

from hsae.progress import Progress


@pytest.mark.parametrize(("total", "step"), [(100, 1), (1000, 7), (7, 1), (3, 3)])
def test_off_a_terminal_at_most_ten_lines_are_printed_and_the_last_tells_the_end(
    total: int, step: int, capsys: pytest.CaptureFixture[str]
):
    with Progress("phase1", total) as bar:
        done = 0
        while done < total:
            bar.advance(min(step, total - done), "loss 0.5")
            done += step
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 10
    assert lines[-1] == f"phase1: {total}/{total} loss 0.5"


def test_a_line_is_printed_at_every_tenth(capsys: pytest.CaptureFixture[str]):
    with Progress("copy", 20) as bar:
        for _ in range(20):
            bar.advance()
    assert capsys.readouterr().out.splitlines() == [f"copy: {done}/20" for done in range(2, 21, 2)]


def test_an_unknown_total_of_zero_is_no_error(capsys: pytest.CaptureFixture[str]):
    with Progress("copy", 0) as bar:
        bar.advance(0)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_a_bar_on_stderr_takes_the_lines_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("copy", 4) as bar:
        for _ in range(4):
            bar.advance(1, "loss 0.5")
    assert capsys.readouterr().out == ""
    assert "copy" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
