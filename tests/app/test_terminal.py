"""Colour is an addition: what is written is the same words with and without a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from app import terminal

LINES = ["Run r1: finished", "  BTCUSDT trades: 3 rows, coverage complete", "  ! one fold: indicative", "  [plain] 1"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_lines_are_written_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write(LINES)
    assert capsys.readouterr().out.splitlines() == LINES


def test_on_a_terminal_the_words_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", Terminal())
    terminal.write(LINES)
    assert sys.stdout.getvalue().splitlines() == LINES  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("line", "style"),
    [
        ("Run r1: finished", "bold"),
        ("  trades: batches = store  10  agree", "green"),
        ("  trades: batches = store  10  2 DIFFERENCES", "bold red"),
        ("  standard error of an accuracy: 3.8%", ""),
        ("", ""),
    ],
)
def test_a_line_is_coloured_by_what_it_says(line: str, style: str) -> None:
    assert terminal.style_of(line) == style
