"""Plain lines with a little colour, where a terminal shows them; the words are the same everywhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable

STYLES = (  # the first that fits; text, style
    ("  Verdict: ", "bold"),
    ("  ! ", "yellow"),
    ("DIFFERENCES", "bold red"),
    ("coverage complete", "green"),
    ("  agree", "green"),
    ("nothing lost, nothing doubled", "bold green"),
)


def style_of(line: str) -> str:
    """A heading is bold; what went wrong, well, or wants care is coloured."""
    if line and not line[0].isspace() and line[0].isupper():
        return "bold"
    return next((style for text, style in STYLES if text in line), "")


def write(lines: Iterable[str]) -> None:
    """Lines to stdout, coloured on a terminal (not with NO_COLOR or TERM=dumb)."""
    if not sys.stdout.isatty():
        sys.stdout.writelines(f"{line}\n" for line in lines)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for line in lines:
        console.print(Text(line, style=style_of(line)), soft_wrap=True)
