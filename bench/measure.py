"""How a benchmark measures and reports: medians of repeats, and one line of JSON a figure, the last thing printed."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    return statistics.median(seconds(work) for _ in range(repeats))


def report(
    name: str, value: float, unit: str, *, ratio: float | None = None, goal: float | None = None, less: bool = False
) -> bool:
    """Print a figure; `ratio` is value to its reference in the same run. True when it reaches the goal, or has none.

    `less`: a smaller value is the better one.
    """
    ok = goal is None or (value <= goal if less else value >= goal)
    figure = {"name": name, "value": _short(value), "unit": unit, "ratio": _short(ratio), "goal": goal, "ok": ok}
    print(json.dumps(figure), flush=True)
    return ok


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
