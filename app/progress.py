"""How a run's steps look while they work: bars with rates and time left on a terminal, plain lines elsewhere.

A plain line per step comes at most every two seconds, so that a log of a run stays readable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Json = dict[str, Any]

LINE_EVERY_S = 2.0
SAME_LINE_EVERY_S = 15.0
RATE_OVER_S = 10.0
DONE = ("finished", "error", "interrupted")
WORDS = {"error": "[red]error[/]", "interrupted": "[yellow]interrupted[/]", "finished": "[green]finished[/]"}


Update = Callable[[Json], None]


@contextmanager
def shown(console: Console) -> Iterator[Update]:
    """A function to call with the run's state as often as one likes: bars where they can move, else lines."""
    if not console.is_terminal:
        yield Lines(console).update
        return
    progress = Progress(
        TextColumn("{task.description:<18}"), BarColumn(bar_width=24), TaskProgressColumn(),
        TextColumn("{task.fields[rows]:>22}"), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[word]}"), console=console,
    )  # fmt: skip
    with progress:
        yield Bars(progress).update


def step_name(step: Json) -> str:
    """`load candles_5m`: what a step does in two words."""
    verb = {"loader-producer": "load", "arango-connector": "store", "graph-builder": "graph", "gnn-trainer": "train"}
    what = str(step.get("type", "")).removeprefix("api_")
    said = verb.get(str(step.get("target")), str(step.get("target")))
    return said if what in ("gnn_graph", "gnn_train") else f"{said} {what}"


class Rate:
    """Records per second over the last RATE_OVER_S seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def at(self, now_s: float, records: int) -> float:
        self._seen = [(t, n) for t, n in self._seen if now_s - t <= RATE_OVER_S]
        self._seen.append((now_s, records))
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


class Lines:
    """One line per step whenever its state changes, and every LINE_EVERY_S while it works and has something new."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[int, str] = {}
        self._said: dict[int, tuple[float, str]] = {}  # when, what
        self._rates: dict[int, Rate] = {}

    def update(self, run: Json) -> None:
        now = time.monotonic()
        for index, step in enumerate(run["steps"]):
            state, records = step["state"], int(step.get("records_written") or 0)
            rate = self._rates.setdefault(index, Rate()).at(now, records)
            said_s, before = self._said.get(index, (-SAME_LINE_EVERY_S, ""))
            text = _line(step, rate)
            changed = state != self._states.get(index, "waiting")
            due = now - said_s >= (LINE_EVERY_S if text != before else SAME_LINE_EVERY_S)
            if changed or (state == "loading" and due):
                self._states[index], self._said[index] = state, (now, text)
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class Bars:
    """A bar per step: share done, records, rate, time left, and the step's last word."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[int, TaskID] = {}
        self._rates: dict[int, Rate] = {}

    def update(self, run: Json) -> None:
        now = time.monotonic()
        for index, step in enumerate(run["steps"]):
            if index not in self._tasks:
                self._tasks[index] = self._progress.add_task(
                    step_name(step), total=1.0, start=False, rows="", word="waits"
                )
            task, state = self._tasks[index], step["state"]
            records = int(step.get("records_written") or 0)
            if state == "waiting":
                continue
            if not self._progress.tasks[task].started:
                self._progress.start_task(task)
            rate = self._rates.setdefault(index, Rate()).at(now, records)
            word = WORDS.get(state) or str(step.get("message") or state)
            rows = f"{records:,}" + (f" {rate:,.0f}/s" if rate >= 1 and state == "loading" else "")
            share = float(step.get("progress") or 0.0)
            self._progress.update(task, completed=share, rows=rows, word=word)
            if state in DONE and not self._progress.tasks[task].finished:
                self._progress.stop_task(task)


def _line(step: Json, rate: float) -> str:
    parts = [f"{step_name(step):<18} {step['state']:<11}"]
    if step.get("progress") is not None and step["state"] == "loading":
        parts.append(f"{float(step['progress']):>4.0%}")
    if records := int(step.get("records_written") or 0):
        parts.append(f"{records:,} records")
    if rate >= 1 and step["state"] == "loading":
        parts.append(f"{rate:,.0f}/s")
    parts += [str(text) for text in (step.get("error") or step.get("message"),) if text]
    return "  ".join(parts).rstrip()
